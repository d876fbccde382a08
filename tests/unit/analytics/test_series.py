from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apivitals.analytics.series import build_series, error_class_of, window_grid
from apivitals.analytics.summary import summarise
from apivitals.analytics.telemetry import HistogramFlow, read_telemetry
from apivitals.errors import UnknownMetricError
from apivitals.settings import PerformanceThresholds

EPOCH = 1_760_000_000.0


def test_a_summary_of_ten_thousand_known_requests_is_exact(make_worker: Any) -> None:
    rng = np.random.default_rng(7)
    worker = make_worker(step=15.0)
    when = np.sort(rng.uniform(EPOCH, EPOCH + 300, 10_000))
    seconds = rng.lognormal(-2.0, 1.0, 10_000)
    status = rng.choice([200, 404, 500, 504], 10_000, p=[0.9, 0.05, 0.04, 0.01])
    worker.serve(when, seconds, "GET", "/items/{id}", status)
    telemetry = read_telemetry(worker.exports(EPOCH + 300))
    notes: list[str] = []
    total, (route,) = summarise(telemetry, window_grid(telemetry), PerformanceThresholds(), notes=notes)
    assert total is not None
    for summary in (total, route):
        assert summary.count == 10_000
        assert summary.mean_ms == pytest.approx(1e3 * seconds.mean())
        assert summary.rps == pytest.approx(10_000 / 300)
        assert summary.failures == int(((status == 500) | (status == 504)).sum())
        assert summary.error_classes == {
            "client_error": int((status == 404).sum()),
            "server_error": int((status == 500).sum()),
            "timeout": int((status == 504).sum()),
        }
        edges = [0.0, 0.1, 0.3, 0.5, 1.0, np.inf]
        assert list(summary.latency_classes.values()) == np.histogram(seconds, edges)[0].tolist()
        assert summary.p95_ms == pytest.approx(1e3 * float(np.quantile(seconds, 0.95)), rel=0.2)
    assert (total.route, total.method, route.route, route.method) == ("*", "*", "/items/{id}", "GET")
    assert notes == []


def test_a_missing_boundary_is_said_and_interpolated(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.arange(100) * 0.5, np.full(100, 0.2))
    telemetry = read_telemetry(worker.exports(EPOCH + 60))
    notes: list[str] = []
    thresholds = PerformanceThresholds(response_time_ms={"excellent": 120})
    total, _ = summarise(telemetry, window_grid(telemetry), thresholds, notes=notes)
    assert total is not None
    assert sum(total.latency_classes.values()) == 100
    assert "no boundary at 120 ms" in notes[0]


def test_thresholds_of_a_route_decide_its_class(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.arange(100) * 0.5, np.full(100, 0.2), route="/slow")
    telemetry = read_telemetry(worker.exports(EPOCH + 60))
    lenient = PerformanceThresholds(response_time_ms={"excellent": 250})
    total, (route,) = summarise(telemetry, window_grid(telemetry), PerformanceThresholds(), {"/slow": lenient})
    assert total is not None
    assert (total.latency_class, route.latency_class) == ("good", "excellent")


def test_two_workers_add_up_and_a_restart_is_no_fall(make_worker: Any) -> None:
    one = make_worker(instance="one")
    two = make_worker(start=EPOCH + 30, instance="two")
    one.serve(EPOCH + np.arange(0, 60, 0.1), np.full(600, 0.01))
    two.serve(EPOCH + np.arange(30, 60, 0.1), np.full(300, 0.01))
    requests = [*one.exports(EPOCH + 60), *two.exports(EPOCH + 60)]
    telemetry = read_telemetry(requests)
    grid = window_grid(telemetry)
    series = build_series(telemetry, "throughput", grid)
    assert series.counts.sum() == 900
    assert series.values[1:5] == pytest.approx(10.0, rel=0.15)
    assert series.values[7:11] == pytest.approx(20.0, rel=0.15)


def test_means_follow_the_requests_and_not_the_clock(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.array([1.0, 2.0, 11.0]), np.array([0.1, 0.3, 0.9]))
    telemetry = read_telemetry(worker.exports(EPOCH + 20))
    series = build_series(telemetry, "response_time", window_grid(telemetry))
    assert series.unit == "ms"
    assert series.values[0] == pytest.approx(200.0)
    assert series.values[2] == pytest.approx(900.0)
    assert np.isnan(series.values[1])


def test_failures_are_a_share_with_the_counts_beside_it(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.full(10, 1.0), np.full(10, 0.1), status=np.array([500] * 3 + [404] * 2 + [200] * 5))
    telemetry = read_telemetry(worker.exports(EPOCH + 10))
    series = build_series(telemetry, "error_rate", window_grid(telemetry))
    assert series.values[0] == pytest.approx(30.0)
    assert series.counts[0] == 10


def test_gauges_are_averaged_over_workers(make_worker: Any) -> None:
    requests = []
    for instance, level in (("one", 0.2), ("two", 0.6)):
        worker = make_worker(instance=instance)
        worker.gauges["system.cpu.utilization"] = [(EPOCH + t, level) for t in range(0, 60, 5)]
        requests += list(worker.exports(EPOCH + 60))
    telemetry = read_telemetry(requests)
    series = build_series(telemetry, "cpu_usage", window_grid(telemetry))
    assert series.values[np.isfinite(series.values)] == pytest.approx(40.0)
    assert series.points >= 11


def test_unknown_and_absent_metrics(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.array([1.0]), np.array([0.1]))
    telemetry = read_telemetry(worker.exports(EPOCH + 20))
    grid = window_grid(telemetry)
    assert build_series(telemetry, "memory_usage", grid).points == 0
    with pytest.raises(UnknownMetricError, match="response_time"):
        build_series(telemetry, "respons_time", grid)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"http.response.status_code": "200"}, "none"),
        ({"http.response.status_code": "404", "error.type": "HTTPException"}, "client_error"),
        ({"http.response.status_code": "503", "error.type": "503"}, "server_error"),
        ({"http.response.status_code": "500", "error.type": "builtins.ValueError"}, "exception"),
        ({"http.response.status_code": "504"}, "timeout"),
        ({"http.response.status_code": "500", "error.type": "asyncio.TimeoutError"}, "timeout"),
        ({"error.type": "CancelledError"}, "cancelled"),
        ({"error.type": "ClientDisconnect"}, "disconnected"),
        ({}, "none"),
    ],
)
def test_how_a_request_ended(attributes: dict[str, str], expected: str) -> None:
    nothing = np.zeros(0)
    flow = HistogramFlow("m", "s", tuple(attributes.items()), "one", nothing, nothing, nothing, np.zeros((0, 1)), ())
    assert error_class_of(flow) == expected


def test_counters_of_the_service_decide_the_error_classes(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.full(10, 1.0), np.full(10, 0.1), status=np.array([500] * 3 + [200] * 7))
    requests = list(worker.exports(EPOCH + 10))
    for request in requests:
        moment = request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["histogram"]["dataPoints"][0]
        points = [
            {
                "timeUnixNano": moment["timeUnixNano"],
                "startTimeUnixNano": moment["startTimeUnixNano"],
                "asInt": str(number),
                "attributes": [
                    {"key": key, "value": {"stringValue": text}}
                    for key, text in (
                        ("http.request.method", "GET"),
                        ("http.route", "/"),
                        ("apivitals.error.class", name),
                    )
                ],
            }
            for name, number in (("exception", 3), ("disconnected", 2))
        ]
        request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].append(
            {
                "name": "apivitals.server.errors",
                "sum": {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": points},
            }
        )
    telemetry = read_telemetry(requests)
    total, _ = summarise(telemetry, window_grid(telemetry), PerformanceThresholds())
    assert total is not None
    assert total.error_classes == {"exception": 3, "disconnected": 2}
    assert total.failures == 3


def test_work_per_request(make_worker: Any) -> None:
    worker = make_worker()
    worker.serve(EPOCH + np.full(10, 1.0), np.full(10, 0.1))
    for name, values in (
        ("apivitals.request.db.queries", [3.0] * 5),
        ("apivitals.request.cache.hits", [1.0] * 6),
        ("apivitals.request.cache.misses", [1.0] * 2),
    ):
        worker.extra += [(name, "GET", "/", EPOCH + 1.0, value) for value in values]
    telemetry = read_telemetry(worker.exports(EPOCH + 10))
    total, _ = summarise(telemetry, window_grid(telemetry), PerformanceThresholds())
    assert total is not None
    assert total.queries_per_request == pytest.approx(1.5)
    assert total.cache_hit_percent == pytest.approx(75.0)
    assert total.outbound_per_request is None
