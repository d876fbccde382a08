"""What is counted about requests, without a request."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals import PerformanceThresholds, Settings, semconv
from apivitals.semconv import Instrument
from apivitals.tally import Tally
from apivitals.telemetry.aggregate import Histogram, Key, ServerAggregator
from apivitals.telemetry.rates import RateWindow

OK: Key = ("GET", "http", "1.1", "/items/{item}", 200, None)


def record(aggregator: ServerAggregator, key: Key = OK, seconds: float = 0.01, **given_: Any) -> None:
    arguments: dict[str, Any] = {
        "first_byte": None,
        "ended": "none",
        "request_bytes": -1,
        "response_bytes": -1,
        "done": Tally(),
        "exemplar": None,
        "failed": False,
        **given_,
    }
    aggregator.record(aggregator.shape(key), seconds, **arguments)


def points(aggregator: ServerAggregator, instrument: Instrument) -> dict[Any, Any]:
    return {
        point.attributes: point for one in aggregator.collect() if one.instrument is instrument for point in one.points
    }


@given(st.lists(st.floats(0, 100), min_size=1))
def test_a_histogram_counts_each_value_once_in_its_bucket(values: list[float]) -> None:
    histogram = Histogram(semconv.DURATION_BOUNDS)
    for value in values:
        place = histogram.add(value)
        upper = (*semconv.DURATION_BOUNDS, float("inf"))[place]
        lower = (float("-inf"), *semconv.DURATION_BOUNDS)[place]
        assert lower < value <= upper
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    assert (histogram.min, histogram.max) == (min(values), max(values))


def test_one_request_is_one_point_of_each_instrument_that_it_has_a_value_for() -> None:
    aggregator = ServerAggregator(Settings())
    assert aggregator.collect() == []
    record(aggregator, seconds=0.02, first_byte=0.01, request_bytes=10, response_bytes=2000, exemplar=(7, 8, 9))
    found = {one.instrument: one.points for one in aggregator.collect()}
    assert found.keys() == {
        semconv.REQUEST_DURATION,
        semconv.TIME_TO_FIRST_BYTE,
        semconv.REQUEST_BODY_SIZE,
        semconv.RESPONSE_BODY_SIZE,
    }
    (duration,) = found[semconv.REQUEST_DURATION]
    assert duration.attributes == (
        (semconv.HTTP_METHOD, "GET"),
        (semconv.HTTP_STATUS, 200),
        (semconv.HTTP_ROUTE, "/items/{item}"),
        (semconv.PROTOCOL_VERSION, "1.1"),
        (semconv.URL_SCHEME, "http"),
    )
    assert duration.value == 0.02
    assert duration.exemplars == ((7, 8, 9, 0.02),)
    (first,) = found[semconv.TIME_TO_FIRST_BYTE]
    assert first.attributes == ((semconv.HTTP_METHOD, "GET"), (semconv.HTTP_ROUTE, "/items/{item}"))


def test_the_boundaries_are_cut_at_the_thresholds() -> None:
    own = PerformanceThresholds(response_time_ms={"excellent": 33})
    aggregator = ServerAggregator(Settings(routes={"/items/{item}": own}))
    record(aggregator, first_byte=0.1)
    for instrument in (semconv.REQUEST_DURATION, semconv.TIME_TO_FIRST_BYTE):
        (point,) = points(aggregator, instrument).values()
        assert {0.033, 0.1, 0.3, 0.5, 1.0, 2.0} <= set(point.bounds)
    assert aggregator.shape(OK).route.latency_bounds[0] == 0.033


def test_shapes_of_one_route_share_what_is_not_split_by_status() -> None:
    aggregator = ServerAggregator(Settings())
    record(aggregator, first_byte=0.1)
    record(aggregator, ("GET", "http", "1.1", "/items/{item}", 503, "503"), first_byte=0.3, ended="server_error")
    record(aggregator, ("GET", "http", "2", "/items/{item}", 404, None), ended="client_error")
    assert len(points(aggregator, semconv.REQUEST_DURATION)) == 3
    (first,) = points(aggregator, semconv.TIME_TO_FIRST_BYTE).values()
    assert sum(first.counts) == 2
    errors = points(aggregator, semconv.ERRORS)
    assert {dict(key)[semconv.ERROR_CLASS]: point.value for key, point in errors.items()} == {
        "server_error": 1,
        "client_error": 1,
    }
    assert all(list(key) == sorted(key) for key in errors)


def test_spans_get_their_names_and_states_from_the_shape() -> None:
    aggregator = ServerAggregator(Settings())
    names = {
        OK: ("GET /items/{item}", 0),
        ("GET", "http", "1.1", None, 404, None): ("GET", 0),
        ("_OTHER", "http", "1.1", "/x", 405, None): ("HTTP /x", 0),
        ("POST", "https", "", "/x", 500, "ValueError"): ("POST /x", 2),
    }
    for key, (name, status) in names.items():
        shape = aggregator.shape(key)
        assert (shape.name, shape.status_code) == (name, status)
        assert aggregator.shape(key) is shape
        assert all(value is not None for _, value in shape.attributes)


def test_what_requests_did_is_counted_where_they_did_anything() -> None:
    aggregator = ServerAggregator(Settings())
    idle, busy = Tally(), Tally()
    busy.queries, busy.query_seconds = 3, 0.5
    busy.cache_misses, busy.cache_seconds = 2, 0.25
    record(aggregator, done=idle)
    record(aggregator, done=busy)
    expected = {
        semconv.REQUEST_QUERIES: 3,
        semconv.REQUEST_QUERY_TIME: 0.5,
        semconv.REQUEST_CACHE_HITS: 0,
        semconv.REQUEST_CACHE_MISSES: 2,
        semconv.REQUEST_CACHE_TIME: 0.25,
    }
    for instrument, value in expected.items():
        (point,) = points(aggregator, instrument).values()
        assert (point.value, sum(point.counts)) == (value, 1)
    assert points(aggregator, semconv.REQUEST_OUTBOUND) == {}


def test_background_tasks_by_what_they_raised() -> None:
    aggregator = ServerAggregator(Settings())
    record(aggregator)
    aggregator.record_background("GET", "/items/{item}", 1.5, None)
    aggregator.record_background("GET", "/items/{item}", 2.5, None)
    aggregator.record_background("GET", "/items/{item}", 3.0, "ValueError")
    # A route that no request was recorded for: shapes may be at their limit.
    aggregator.record_background("GET", "/unknown", 1.0, None)
    found = points(aggregator, semconv.BACKGROUND_DURATION)
    route = ((semconv.HTTP_METHOD, "GET"), (semconv.HTTP_ROUTE, "/items/{item}"))
    assert {key: (point.value, sum(point.counts)) for key, point in found.items()} == {
        route: (4.0, 2),
        ((semconv.ERROR_TYPE, "ValueError"), *route): (3.0, 1),
    }


def test_active_requests() -> None:
    aggregator = ServerAggregator(Settings())
    active = aggregator.active("GET", "http")
    assert aggregator.active("GET", "http") is active
    active.add(1)
    active.add(2)
    aggregator.active("POST", "https").add(3)
    active.discard(1)
    found = {key: point.value for key, point in points(aggregator, semconv.ACTIVE_REQUESTS).items()}
    assert found == {
        ((semconv.HTTP_METHOD, "GET"), (semconv.URL_SCHEME, "http")): 1,
        ((semconv.HTTP_METHOD, "POST"), (semconv.URL_SCHEME, "https")): 1,
    }


def test_beyond_the_limit_requests_are_counted_as_overflow() -> None:
    aggregator = ServerAggregator(Settings(), limit=3)
    for number in range(10):
        record(aggregator, ("GET", "http", "1.1", f"/route/{number}", 200, None), first_byte=0.1, ended="timeout")
    durations = points(aggregator, semconv.REQUEST_DURATION)
    overflow = (("otel.metric.overflow", True),)
    assert len(durations) == 4
    assert sum(durations[overflow].counts) == 7
    assert sum(sum(point.counts) for point in durations.values()) == 10
    assert sum(points(aggregator, semconv.TIME_TO_FIRST_BYTE)[overflow].counts) == 7
    errors = points(aggregator, semconv.ERRORS)
    assert sum(point.value for point in errors.values()) == 10


def test_rates_are_counted_where_it_was_told_to() -> None:
    rates = RateWindow(60)
    aggregator = ServerAggregator(Settings())
    aggregator.follow(rates)
    assert aggregator.lock is rates.lock
    record(aggregator)
    record(aggregator, ("GET", "http", "1.1", "/items/{item}", 500, "500"), failed=True)
    (row,) = rates.read()
    assert row[0] == ("GET", "/items/{item}")
    assert row[2] == 0.5


def test_threads_lose_nothing() -> None:
    aggregator = ServerAggregator(Settings())

    def work(number: int) -> None:
        for step in range(300):
            aggregator.active("GET", "http").add(number * 1000 + step)
            record(aggregator, ("GET", "http", "1.1", f"/{step % 3}", 200, None), 0.01, response_bytes=1)
            aggregator.active("GET", "http").discard(number * 1000 + step)
            if step % 100 == 0:
                aggregator.collect()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    durations = points(aggregator, semconv.REQUEST_DURATION)
    assert [sum(point.counts) for point in durations.values()] == [600] * 3
    assert sum(point.value for point in points(aggregator, semconv.RESPONSE_BODY_SIZE).values()) == 1800
    (active,) = points(aggregator, semconv.ACTIVE_REQUESTS).values()
    assert active.value == 0
