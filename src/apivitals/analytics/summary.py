"""What a route did over a window, in exact counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from apivitals.analytics.buckets import count_below, percentile
from apivitals.analytics.grid import Floats, Grid, spread
from apivitals.analytics.series import error_class_of, exposure, histogram_cells, matching
from apivitals.analytics.telemetry import HistogramFlow, Telemetry
from apivitals.classify import (
    CLASSES,
    ERROR_CLASSES,
    FAILURES,
    Class,
    ErrorClass,
    error_rate_class,
    latency_class,
    throughput_class,
)
from apivitals.models import RouteSummary
from apivitals.semconv import (
    ERROR_CLASS,
    ERRORS,
    HTTP_METHOD,
    HTTP_ROUTE,
    REQUEST_CACHE_HITS,
    REQUEST_CACHE_MISSES,
    REQUEST_DURATION,
    REQUEST_OUTBOUND,
    REQUEST_QUERIES,
    Instrument,
    MetricQuery,
)
from apivitals.settings import PerformanceThresholds

WHOLE_SERVICE = "*"


def routes_of(telemetry: Telemetry) -> list[tuple[str, str]]:
    """Method and route of everything that was requested, in alphabetical order; a path without a route is ''."""
    return sorted(
        {
            (stream.get(HTTP_METHOD) or "", stream.get(HTTP_ROUTE) or "")
            for stream in telemetry.histograms_of(REQUEST_DURATION.name)
        },
        key=lambda pair: (pair[1], pair[0]),
    )


def summarise(
    telemetry: Telemetry,
    grid: Grid,
    thresholds: PerformanceThresholds,
    routes: Mapping[str, PerformanceThresholds] | None = None,
    notes: list[str] | None = None,
) -> tuple[RouteSummary | None, tuple[RouteSummary, ...]]:
    """Summaries of the whole service and of each route, the busiest first.

    Args:
        telemetry: what was read.
        grid: the window.
        thresholds, routes: class bounds of the service, and of single routes by their template.
        notes: gets a sentence when class counts had to be interpolated because a boundary is missing.

    Returns:
        The total (None when there were no requests), and the routes that had any.
    """
    found = []
    inexact: set[str] = set()
    for method, route in routes_of(telemetry):
        own = (routes or {}).get(route, thresholds)
        summary = _summary(telemetry, grid, own, route, method, inexact)
        if summary is not None:
            found.append(summary)
    total = _summary(telemetry, grid, thresholds, None, None, inexact)
    if inexact and notes is not None:
        bounds = ", ".join(sorted(inexact, key=float))
        notes.append(
            f"the histogram has no boundary at {bounds} ms, so the latency classes that begin there are interpolated; "
            "a service started with these thresholds records them exactly"
        )
    return total, tuple(sorted(found, key=lambda summary: -summary.count))


def _summary(
    telemetry: Telemetry,
    grid: Grid,
    thresholds: PerformanceThresholds,
    route: str | None,
    method: str | None,
    inexact: set[str],
) -> RouteSummary | None:
    streams = matching(telemetry, MetricQuery(REQUEST_DURATION.name, "mean"), route, method)
    cells = histogram_cells(streams, grid)
    count = round(float(cells.counts.sum()))
    if count == 0:
        return None
    buckets = cells.buckets.sum(axis=0)
    mean = float(cells.sums.sum()) / count
    p50, p95, p99 = (float(percentile(buckets, cells.bounds, q)) for q in (0.5, 0.95, 0.99))
    seconds = float(exposure(telemetry, grid).sum())
    errors = _error_classes(telemetry, streams, grid, route, method, count)
    failures = sum(number for name, number in errors.items() if name in FAILURES)
    rps = count / seconds if seconds > 0 else 0.0
    return RouteSummary(
        method=method if method is not None else WHOLE_SERVICE,
        route=route if route is not None else WHOLE_SERVICE,
        count=count,
        rps=rps,
        mean_ms=mean * 1e3,
        p50_ms=p50 * 1e3,
        p95_ms=p95 * 1e3,
        p99_ms=p99 * 1e3,
        failures=failures,
        error_rate_percent=100.0 * failures / count,
        latency_classes=_latency_classes(buckets, cells.bounds, thresholds, count, inexact),
        error_classes=errors,
        latency_class=latency_class(p95 if np.isfinite(p95) else mean, thresholds.latency_bounds),
        throughput_class=throughput_class(rps, thresholds.throughput_bounds),
        error_rate_class=error_rate_class(failures / count, thresholds.error_rate_bounds),
        queries_per_request=_per_request(telemetry, REQUEST_QUERIES, grid, route, method, count),
        cache_hit_percent=_cache_hits(telemetry, grid, route, method),
        outbound_per_request=_per_request(telemetry, REQUEST_OUTBOUND, grid, route, method, count),
    )


def _latency_classes(
    buckets: Floats, bounds: tuple[float, ...], thresholds: PerformanceThresholds, count: int, inexact: set[str]
) -> dict[Class, int]:
    if not bounds:
        return {}
    below = [0]
    for limit in thresholds.latency_bounds:
        number, exact = count_below(buckets, bounds, limit)
        if not exact:
            inexact.add(f"{limit * 1e3:g}")
        below.append(max(below[-1], round(number)))
    below.append(max(round(float(buckets.sum())), below[-1]))
    return {name: below[i + 1] - below[i] for i, name in enumerate(CLASSES)}


def _error_classes(
    telemetry: Telemetry,
    streams: tuple[HistogramFlow, ...],
    grid: Grid,
    route: str | None,
    method: str | None,
    count: int,
) -> dict[str, int]:
    """Requests per error class but `none`: by our own counter where there is one, else by status and error type."""
    found = dict.fromkeys(ERROR_CLASSES[1:], 0)
    counted = [
        stream
        for stream in telemetry.counters
        if stream.metric == ERRORS.name
        and (route is None or (stream.get(HTTP_ROUTE) or "") == route)
        and (method is None or stream.get(HTTP_METHOD) == method)
    ]
    by_status = dict.fromkeys(ERROR_CLASSES[1:], 0)
    for stream in streams:
        name = error_class_of(stream)
        if name != "none":
            by_status[name] += round(float(histogram_cells((stream,), grid).counts.sum()))
    if not any(stream.metric == ERRORS.name for stream in telemetry.counters):
        return _filled(by_status)
    for counter in counted:
        for known in found:
            if counter.get(ERROR_CLASS) == known:
                cells = spread(grid.edges, counter.begins, counter.ends, counter.amounts, whole=True)
                found[known] += round(float(cells.sum()))
    # A counter that was exported apart from the histogram may be a moment ahead of it.
    if sum(found.values()) > count or sum(found[c] for c in FAILURES) < sum(by_status[c] for c in FAILURES):
        return _filled(by_status)
    return _filled(found)


def _filled(counts: Mapping[ErrorClass, int]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if number}


def _total(telemetry: Telemetry, instrument: Instrument, grid: Grid, route: str | None, method: str | None) -> float:
    streams = matching(telemetry, MetricQuery(instrument.name, "mean"), route, method)
    return float(histogram_cells(streams, grid).sums.sum()) if streams else float("nan")


def _per_request(
    telemetry: Telemetry, instrument: Instrument, grid: Grid, route: str | None, method: str | None, count: int
) -> float | None:
    total = _total(telemetry, instrument, grid, route, method)
    return total / count if np.isfinite(total) else None


def _cache_hits(telemetry: Telemetry, grid: Grid, route: str | None, method: str | None) -> float | None:
    hits, misses = (
        float(np.nan_to_num(_total(telemetry, kind, grid, route, method)))
        for kind in (REQUEST_CACHE_HITS, REQUEST_CACHE_MISSES)
    )
    return 100.0 * hits / (hits + misses) if hits + misses > 0 else None
