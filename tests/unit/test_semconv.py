"""The table of everything that is emitted holds together."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from apivitals import semconv
from apivitals.errors import UnknownMetricError
from apivitals.semconv import INSTRUMENTS, SHORT_NAMES, Instrument, MetricQuery, resolve_metric

#: What a statistic can be read from.
READABLE = {
    "mean": {"histogram"},
    "p50": {"histogram"},
    "p95": {"histogram"},
    "p99": {"histogram"},
    "sum_rate": {"histogram"},
    "failure_ratio": {"histogram"},
    "rate": {"histogram", "counter"},
    "value": {"gauge", "updowncounter"},
}


def declared() -> list[Instrument]:
    found = [value for value in vars(semconv).values() if isinstance(value, Instrument)]
    return [*found, *semconv._SYSTEM]


def test_every_instrument_is_in_the_table_once() -> None:
    names = [instrument.name for instrument in declared()]
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(INSTRUMENTS)
    assert all(name == instrument.name for name, instrument in INSTRUMENTS.items())


def test_prometheus_names_do_not_meet() -> None:
    from apivitals.export.prometheus import metric_name

    names = [metric_name(each.name, each.unit, each.kind) for each in INSTRUMENTS.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("instrument", list(INSTRUMENTS.values()), ids=lambda instrument: instrument.name)
def test_an_instrument_is_well_formed(instrument: Instrument) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", instrument.name)
    assert instrument.description.endswith(".")
    assert len(set(instrument.attributes)) == len(instrument.attributes)
    if instrument.kind == "histogram":
        assert instrument.bounds
        assert all(a < b for a, b in pairwise(instrument.bounds))
    else:
        assert instrument.bounds is None
    if instrument.kind != "gauge":
        # Prometheus names a gauge with this unit a ratio; of anything else it would say nothing.
        assert instrument.unit != "1"


def test_attribute_names_are_unique() -> None:
    names = [value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "query"), list(SHORT_NAMES.items()))
def test_a_short_name_reads_something_that_is_emitted(name: str, query: MetricQuery) -> None:
    instrument = INSTRUMENTS[query.metric]
    assert instrument.kind in READABLE[query.statistic]
    assert {key for key, _ in query.where} <= set(instrument.attributes)
    assert query.unit
    assert query.scale > 0
    assert resolve_metric(name) is query


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("http.server.request.duration", "mean"),
        ("apivitals.server.errors", "rate"),
        ("http.server.active_requests", "value"),
        ("system.cpu.utilization", "value"),
    ],
)
def test_an_opentelemetry_name_is_read_by_its_kind(name: str, statistic: str) -> None:
    query = resolve_metric(name)
    assert (query.metric, query.statistic, query.scale, query.where) == (name, statistic, 1.0, ())
    assert query.unit == INSTRUMENTS[name].unit


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("respones_time", "response_time"),
        ("http.server.request.durations", "http.server.request.duration"),
        ("cpu-usage", "cpu_usage"),
        ("queue.length.max", "queue.length"),
    ],
)
def test_a_misspelt_name_is_answered_with_close_ones(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownMetricError) as caught:
        resolve_metric(wrong, also=["queue.length"])
    assert repr(wrong) in str(caught.value)
    assert repr(meant) in str(caught.value)


def test_a_name_that_resembles_none_is_answered_with_the_short_ones() -> None:
    with pytest.raises(UnknownMetricError) as caught:
        resolve_metric("§§§")
    assert all(name in str(caught.value) for name in SHORT_NAMES)


def test_a_metric_of_somebody_else_is_read_as_a_value() -> None:
    assert resolve_metric("queue.length", also=iter(["queue.length"])) == MetricQuery("queue.length", "value")
    # Ours win over a name that the data happens to have too.
    assert resolve_metric("throughput", also=["throughput"]) == SHORT_NAMES["throughput"]


def test_server_metrics_are_never_split_by_more_than_the_views_allow() -> None:
    for instrument in INSTRUMENTS.values():
        if instrument.name.startswith("http.server."):
            assert set(instrument.attributes) <= semconv.SERVER_ATTRIBUTES
