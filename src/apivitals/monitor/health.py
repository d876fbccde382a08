"""What the live window says in numbers and words: endpoints, classes, health and alerts. Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from apivitals import semconv
from apivitals.classify import (
    CLASSES,
    FAILURES,
    Class,
    error_rate_class,
    latency_class,
    status_class,
    throughput_class,
    worst,
)
from apivitals.errors import ConfigurationError
from apivitals.export.snapshot import HistogramPoint
from apivitals.models import Alert, EndpointMetrics, HealthStatus
from apivitals.monitor.window import Delta, percentile
from apivitals.settings import PerformanceThresholds

#: The keys that `alert_config` may have, and what each is called.
ALERT_KEYS: dict[str, tuple[str, str]] = {
    "response_time_ms": ("high_response_time", "Average response time"),
    "error_rate_percent": ("high_error_rate", "Error rate"),
    "cpu_usage_percent": ("high_cpu_usage", "CPU usage"),
    "memory_usage_percent": ("high_memory_usage", "Memory usage"),
    "throughput_rps": ("low_throughput", "Throughput"),
}
_UNIT = {"response_time_ms": " ms", "throughput_rps": " requests/s"}

Histogram = tuple[tuple[float, ...], tuple[int, ...]]


def endpoints(delta: Delta, thresholds: PerformanceThresholds) -> list[EndpointMetrics]:
    """Every route and method that was requested in the window, the busiest first."""
    groups: dict[tuple[str, str], list[HistogramPoint]] = {}
    for point in delta.histograms(semconv.REQUEST_DURATION.name):
        labels = dict(point.attributes)
        key = (str(labels.get(semconv.HTTP_METHOD, "")), str(labels.get(semconv.HTTP_ROUTE, "")))
        groups.setdefault(key, []).append(point)
    work = {name: _sums(delta, name) for name in _WORK}
    rows = [
        _endpoint(
            method,
            path,
            points,
            delta.seconds,
            thresholds,
            {name: sums.get((method, path), 0) for name, sums in work.items()},
        )
        for (method, path), points in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.total_requests)


def total(rows: Sequence[EndpointMetrics], delta: Delta, thresholds: PerformanceThresholds) -> EndpointMetrics:
    """The whole service over the window, as an endpoint called `*`."""
    points = delta.histograms(semconv.REQUEST_DURATION.name)
    work = {name: sum(_sums(delta, name).values()) for name in _WORK}
    return _endpoint("*", "*", points, delta.seconds, thresholds, work)


_WORK = (
    semconv.REQUEST_QUERIES.name,
    semconv.REQUEST_CACHE_HITS.name,
    semconv.REQUEST_CACHE_MISSES.name,
    semconv.REQUEST_OUTBOUND.name,
)


def _endpoint(
    method: str,
    path: str,
    points: Sequence[HistogramPoint],
    seconds: float,
    thresholds: PerformanceThresholds,
    work: Mapping[str, int],
) -> EndpointMetrics:
    count = sum(point.count for point in points)
    failed = sum(point.count for point in points if _failed(point))
    spent = sum(point.sum for point in points) * 1e3
    bounds, counts = merge(points)
    largest = max((point.max for point in points if point.max is not None), default=0.0)
    smallest = min((point.min for point in points if point.min is not None), default=0.0)
    share = failed / count if count else 0.0
    return EndpointMetrics(
        method=method,
        path=path,
        total_requests=count,
        successful_requests=count - failed,
        failed_requests=failed,
        total_duration_ms=spent,
        avg_duration_ms=spent / count if count else 0.0,
        p50_duration_ms=percentile(bounds, counts, 0.50, largest) * 1e3,
        p95_duration_ms=percentile(bounds, counts, 0.95, largest) * 1e3,
        p99_duration_ms=percentile(bounds, counts, 0.99, largest) * 1e3,
        min_duration_ms=smallest * 1e3,
        max_duration_ms=largest * 1e3,
        total_database_queries=work[semconv.REQUEST_QUERIES.name],
        total_cache_hits=work[semconv.REQUEST_CACHE_HITS.name],
        total_cache_misses=work[semconv.REQUEST_CACHE_MISSES.name],
        total_external_api_calls=work[semconv.REQUEST_OUTBOUND.name],
        requests_per_second=count / seconds,
        error_rate_percent=share * 100,
        latency_classes=class_counts(bounds, counts, thresholds.latency_bounds),
        throughput_class=throughput_class(count / seconds, thresholds.throughput_bounds),
        error_rate_class=error_rate_class(share, thresholds.error_rate_bounds),
    )


def merge(points: Iterable[HistogramPoint]) -> Histogram:
    """One histogram of several; points with other bounds than the first are left out."""
    bounds: tuple[float, ...] | None = None
    counts: list[int] = []
    for point in points:
        if bounds is None:
            bounds, counts = point.bounds, list(point.counts)
        elif point.bounds == bounds:
            counts = [a + b for a, b in zip(counts, point.counts, strict=True)]
    return bounds or (), tuple(counts)


def class_counts(bounds: Sequence[float], counts: Sequence[int], limits: Sequence[float]) -> dict[Class, int]:
    """Requests per latency class: exact where the histogram is cut at the limits, as ours is."""
    running = [0, *accumulate(counts)]
    below = [running[min(bisect_right(bounds, limit), len(running) - 1)] for limit in limits]
    edges = [0, *below, running[-1]]
    return {name: edges[place + 1] - edges[place] for place, name in enumerate(CLASSES)}


def health(
    whole: EndpointMetrics,
    rows: Sequence[EndpointMetrics],
    thresholds: PerformanceThresholds,
    seconds: float,
    *,
    throughput_objective: bool,
) -> HealthStatus:
    """The worst objective decides; the reasons name the endpoints that carry it."""
    if not whole.total_requests:
        return HealthStatus("unknown", "excellent", "excellent", "critical", ("no requests in the window",), seconds)
    latency = latency_class(whole.p95_duration_ms / 1e3, thresholds.latency_bounds)
    objectives = [latency, whole.error_rate_class]
    reasons = []
    if CLASSES.index(latency) >= 3:
        slowest = max(rows, key=lambda row: row.p95_duration_ms)
        reasons.append(
            f"95 % of requests take up to {whole.p95_duration_ms:.0f} ms ({latency}); "
            f"slowest is {slowest.method} {slowest.path or '(no route)'} with {slowest.p95_duration_ms:.0f} ms"
        )
    if CLASSES.index(whole.error_rate_class) >= 2:
        failing = max(rows, key=lambda row: row.failed_requests)
        reasons.append(
            f"{whole.error_rate_percent:.1f} % of requests fail ({whole.error_rate_class}); "
            f"most at {failing.method} {failing.path or '(no route)'}: "
            f"{failing.failed_requests} of {failing.total_requests}"
        )
    if throughput_objective:
        objectives.append(whole.throughput_class)
        if CLASSES.index(whole.throughput_class) >= 3:
            reasons.append(f"{whole.requests_per_second:.1f} requests per second ({whole.throughput_class})")
    verdict = CLASSES.index(worst(objectives))
    status: Literal["healthy", "degraded", "unhealthy"] = (
        "healthy" if verdict <= 1 else "degraded" if verdict <= 3 else "unhealthy"
    )
    if status == "degraded" and not reasons:
        reasons.append(f"latency is {latency}, error rate is {whole.error_rate_class}")
    return HealthStatus(status, latency, whole.error_rate_class, whole.throughput_class, tuple(reasons), seconds)


def alerts(system: Mapping[str, Any], config: Mapping[str, float], thresholds: PerformanceThresholds) -> list[Alert]:
    """The alerts that hold now, by the guide's `alert_config`; a key with no number now gives none."""
    found = []
    for key, threshold in config.items():
        value = system[key]
        kind, title = ALERT_KEYS[key]
        low = key == "throughput_rps"
        if value is None or (value >= threshold if low else value <= threshold):
            continue
        critical = thresholds.response_time_ms["critical"] if key == "response_time_ms" else None
        severity: Literal["warning", "error", "critical"] = "warning"
        if key == "error_rate_percent":
            severity = "critical" if value >= thresholds.error_rate_percent["critical"] else "error"
        elif critical is not None and value >= critical:
            severity = "critical"
        unit = _UNIT.get(key, " %")
        compared = "below" if low else "above"
        message = f"{title} is {value:.2f}{unit}, {compared} {threshold:g}{unit}"
        found.append(Alert(kind, title, message, severity, float(value), float(threshold)))
    return found


def checked_alert_config(config: Mapping[str, float]) -> dict[str, float]:
    """The configuration as it is, after a check.

    Raises:
        ConfigurationError: an unknown key, or a threshold that is not a number above 0.
    """
    for key, value in config.items():
        if key not in ALERT_KEYS:
            raise ConfigurationError(f"alert_config has {key!r}; the keys are {', '.join(ALERT_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigurationError(f"alert_config[{key!r}] is {value!r}; give a number above 0")
    return dict(config)


def _sums(delta: Delta, name: str) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for point in delta.histograms(name):
        labels = dict(point.attributes)
        key = (str(labels.get(semconv.HTTP_METHOD, "")), str(labels.get(semconv.HTTP_ROUTE, "")))
        sums[key] = sums.get(key, 0) + round(point.sum)
    return sums


def _failed(point: HistogramPoint) -> bool:
    labels = dict(point.attributes)
    status = labels.get(semconv.HTTP_STATUS)
    if isinstance(status, int):
        return status_class(status) in FAILURES
    return semconv.ERROR_TYPE in labels
