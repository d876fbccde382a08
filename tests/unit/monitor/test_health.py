"""Endpoints, classes, health and alerts from histograms made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals import semconv
from apivitals.classify import CLASSES, latency_class
from apivitals.errors import ConfigurationError
from apivitals.export.snapshot import HistogramPoint, Metric, Scope, Snapshot
from apivitals.monitor import health
from apivitals.monitor.window import Delta
from apivitals.settings import PerformanceThresholds, Settings

THRESHOLDS = PerformanceThresholds()
BOUNDS = Settings().duration_bounds(semconv.DURATION_BOUNDS)


def histogram(values: list[float], bounds: tuple[float, ...] = BOUNDS, **labels: Any) -> HistogramPoint:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[sum(value > bound for bound in bounds)] += 1
    attributes = tuple(sorted((name.replace("_", "."), value) for name, value in labels.items()))
    extremes = (min(values), max(values)) if values else (None, None)
    return HistogramPoint(attributes, 0, 60_000_000_000, len(values), sum(values), bounds, tuple(counts), *extremes)


def request(values: list[float], route: str | None = "/a", status: int | None = 200, **labels: Any) -> HistogramPoint:
    point = histogram(values, **labels)
    said = {
        semconv.HTTP_METHOD: "GET",
        semconv.HTTP_ROUTE: route,
        semconv.HTTP_STATUS: status,
        **dict(point.attributes),
    }
    attributes = tuple(sorted((key, value) for key, value in said.items() if value is not None))
    return HistogramPoint(attributes, *[getattr(point, name) for name in HistogramPoint.__slots__[1:]])


def delta(*points: HistogramPoint, **others: HistogramPoint) -> Delta:
    metrics = [Metric(semconv.REQUEST_DURATION.name, "s", "", "histogram", points)]
    metrics += [Metric(name.replace("__", "."), "", "", "histogram", (point,)) for name, point in others.items()]
    found = Delta(None, Snapshot(60_000_000_000, (), (Scope("t", "", "", tuple(metrics)),)))
    found.seconds = 60.0
    return found


# --- endpoints


def test_an_endpoint_is_a_route_and_a_method() -> None:
    found = health.endpoints(
        delta(
            request([0.05] * 90),
            request([0.2] * 8, status=404),
            request([0.6] * 2, status=500),
            request([0.01] * 300, route="/b"),
            request([0.01], route=None, status=404),
        ),
        THRESHOLDS,
    )
    assert [(row.method, row.path, row.total_requests) for row in found] == [
        ("GET", "/b", 300),
        ("GET", "/a", 100),
        ("GET", "", 1),
    ]
    row = found[1]
    assert (row.successful_requests, row.failed_requests, row.error_rate_percent) == (98, 2, 2.0)
    assert row.total_duration_ms == pytest.approx(90 * 50 + 8 * 200 + 2 * 600)
    assert row.avg_duration_ms == pytest.approx(73)
    assert (row.min_duration_ms, row.max_duration_ms) == (50, 600)
    assert row.requests_per_second == pytest.approx(100 / 60)
    assert row.latency_classes == {"excellent": 90, "good": 8, "acceptable": 0, "poor": 2, "critical": 0}
    assert row.throughput_class == "critical"
    assert row.error_rate_class == "acceptable"
    assert row.p50_duration_ms <= row.p95_duration_ms <= row.p99_duration_ms <= row.max_duration_ms


def test_work_is_told_by_endpoint() -> None:
    def work(total: float, route: str) -> HistogramPoint:
        return request([total], route=route, status=None)

    found = {
        row.path: row
        for row in health.endpoints(
            delta(
                request([0.1] * 3),
                request([0.1] * 2, route="/b"),
                apivitals__request__db__queries=work(30, "/a"),
                apivitals__request__cache__hits=work(7, "/a"),
                apivitals__request__cache__misses=work(2, "/b"),
                apivitals__request__outbound__calls=work(4, "/b"),
            ),
            THRESHOLDS,
        )
    }
    a, b = found["/a"], found["/b"]
    assert (a.total_database_queries, a.total_cache_hits, a.total_cache_misses) == (30, 7, 0)
    assert (b.total_database_queries, b.total_cache_misses, b.total_external_api_calls) == (0, 2, 4)


def test_the_whole_service_is_the_sum() -> None:
    points = [request([0.05] * 10), request([0.7] * 5, route="/b", status=503)]
    found = delta(*points, apivitals__request__db__queries=request([12.0], status=None))
    whole = health.total(health.endpoints(found, THRESHOLDS), found, THRESHOLDS)
    assert (whole.method, whole.path, whole.total_requests, whole.failed_requests) == ("*", "*", 15, 5)
    assert whole.total_database_queries == 12
    assert whole.latency_classes["poor"] == 5


def test_no_requests_are_zeros() -> None:
    whole = health.total([], delta(), THRESHOLDS)
    assert (whole.total_requests, whole.avg_duration_ms, whole.p99_duration_ms, whole.error_rate_percent) == (0,) * 4


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [
        (200, None, False),
        (404, None, False),
        (404, "404", False),
        (408, "408", True),
        (500, "RuntimeError", True),
        (503, None, True),
        (504, None, True),
        (None, "RuntimeError", True),
        (None, None, False),
    ],
)
def test_what_counts_as_failed(status: int | None, error: str | None, failed: bool) -> None:
    labels = {"error_type": error} if error else {}
    (row,) = health.endpoints(delta(request([0.1], status=status, **labels)), THRESHOLDS)
    assert row.failed_requests == int(failed)


# --- classes


@given(st.lists(st.floats(0, 4), max_size=60))
def test_class_counts_are_exact_at_the_thresholds(values: list[float]) -> None:
    limits = THRESHOLDS.latency_bounds
    # A value that is a bound belongs to the bucket below it and to the class above it.
    values = [value for value in values if value not in limits]
    point = histogram(values)
    found = health.class_counts(point.bounds, point.counts, limits)
    expected = [latency_class(value, limits) for value in values]
    assert found == {name: expected.count(name) for name in CLASSES}


def test_class_counts_of_foreign_bounds_add_up() -> None:
    assert sum(health.class_counts((0.2, 0.7), (3, 4, 5), THRESHOLDS.latency_bounds).values()) == 12
    assert sum(health.class_counts((), (5,), THRESHOLDS.latency_bounds).values()) == 5
    assert health.class_counts((), (), THRESHOLDS.latency_bounds) == dict.fromkeys(CLASSES, 0)


def test_merging() -> None:
    assert health.merge([]) == ((), ())
    same = [histogram([0.1, 0.2]), histogram([0.1])]
    bounds, counts = health.merge(same)
    assert bounds == BOUNDS
    assert sum(counts) == 3
    other = histogram([9.0], bounds=(1.0,))
    assert health.merge([*same, other]) == (bounds, counts)


# --- health


def judge(*points: HistogramPoint, objective: bool = False) -> Any:
    found = delta(*points)
    rows = health.endpoints(found, THRESHOLDS)
    whole = health.total(rows, found, THRESHOLDS)
    return health.health(whole, rows, THRESHOLDS, found.seconds, throughput_objective=objective)


def test_a_service_nobody_asked_is_unknown() -> None:
    status = judge()
    assert (status.status, status.reasons) == ("unknown", ("no requests in the window",))


@pytest.mark.parametrize(
    ("seconds", "status", "latency"),
    [
        (0.05, "healthy", "excellent"),
        (0.2, "healthy", "good"),
        (0.45, "degraded", "acceptable"),
        (0.9, "degraded", "poor"),
        (3.0, "unhealthy", "critical"),
    ],
)
def test_latency_decides(seconds: float, status: str, latency: str) -> None:
    found = judge(request([seconds] * 100), request([0.001] * 5, route="/fast"))
    assert (found.status, found.latency, found.errors) == (status, latency, "excellent")
    if latency in ("poor", "critical"):
        (reason,) = found.reasons
        assert "slowest is GET /a with" in reason
        assert f"({latency})" in reason
    elif status == "degraded":
        assert found.reasons == ("latency is acceptable, error rate is excellent",)
    else:
        assert found.reasons == ()


@pytest.mark.parametrize(
    ("failed", "status", "errors"),
    [
        (0, "healthy", "excellent"),
        (5, "healthy", "good"),
        (30, "degraded", "acceptable"),
        (70, "degraded", "poor"),
        (200, "unhealthy", "critical"),
    ],
)
def test_errors_decide(failed: int, status: str, errors: str) -> None:
    found = judge(
        request([0.01] * (1000 - failed)), *([request([0.01] * failed, route="/b", status=500)] if failed else [])
    )
    assert (found.status, found.latency, found.errors) == (status, "excellent", errors)
    if errors in ("acceptable", "poor", "critical"):
        (reason,) = found.reasons
        assert f"{failed / 10:.1f} % of requests fail ({errors}); most at GET /b: {failed} of {failed}" == reason


def test_requests_without_a_route_have_a_name() -> None:
    (reason,) = judge(request([0.01] * 10, route=None, status=500)).reasons
    assert "most at GET (no route): 10 of 10" in reason


def test_a_quiet_night_is_an_outage_only_where_that_is_declared() -> None:
    assert judge(request([0.01] * 10)).status == "healthy"
    found = judge(request([0.01] * 10), objective=True)
    assert (found.status, found.throughput) == ("unhealthy", "critical")
    assert found.reasons == ("0.2 requests per second (critical)",)


def test_the_worst_decides_and_all_reasons_are_said() -> None:
    found = judge(request([3.0] * 50, status=500), request([0.01] * 50, route="/b"))
    assert found.status == "unhealthy"
    assert len(found.reasons) == 2


# --- alerts

SYSTEM = {
    "response_time_ms": 500.0,
    "error_rate_percent": 2.0,
    "cpu_usage_percent": 50.0,
    "memory_usage_percent": 60.0,
    "throughput_rps": 100.0,
}


@pytest.mark.parametrize(
    ("key", "value", "threshold", "type_", "severity"),
    [
        ("response_time_ms", 1000.01, 1000, "high_response_time", "warning"),
        ("response_time_ms", 2000, 1000, "high_response_time", "critical"),
        ("error_rate_percent", 5.1, 5, "high_error_rate", "error"),
        ("error_rate_percent", 25, 5, "high_error_rate", "critical"),
        ("cpu_usage_percent", 80.5, 80, "high_cpu_usage", "warning"),
        ("memory_usage_percent", 99, 85, "high_memory_usage", "warning"),
        ("throughput_rps", 49.9, 50, "low_throughput", "warning"),
    ],
)
def test_an_alert_that_holds(key: str, value: float, threshold: float, type_: str, severity: str) -> None:
    (alert,) = health.alerts({**SYSTEM, key: value}, {key: threshold}, THRESHOLDS)
    assert (alert.type, alert.severity, alert.value, alert.threshold) == (type_, severity, value, threshold)
    assert f"{value:.2f}" in alert.message
    assert f"{'below' if key == 'throughput_rps' else 'above'} {threshold:g}" in alert.message


@pytest.mark.parametrize("key", list(SYSTEM))
def test_at_the_threshold_there_is_none(key: str) -> None:
    assert health.alerts({**SYSTEM, key: 10.0}, {key: 10.0}, THRESHOLDS) == []
    assert health.alerts({**SYSTEM, key: None}, {key: 10.0}, THRESHOLDS) == []


def test_only_what_is_configured_is_watched() -> None:
    worst = {key: 0.0 if key == "throughput_rps" else 1e9 for key in SYSTEM}
    assert health.alerts(worst, {}, THRESHOLDS) == []
    assert len(health.alerts(worst, dict.fromkeys(SYSTEM, 50.0), THRESHOLDS)) == 5


def test_an_alert_config_is_checked() -> None:
    config = {"response_time_ms": 1000, "error_rate_percent": 5.0}
    assert health.checked_alert_config(config) == config
    with pytest.raises(ConfigurationError, match=r"alert_config has 'latency'; the keys are response_time_ms, error_"):
        health.checked_alert_config({"latency": 5})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "5", None])
def test_an_alert_threshold_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"alert_config\['throughput_rps'\] is .*; give a number above 0"):
        health.checked_alert_config({"throughput_rps": value})
