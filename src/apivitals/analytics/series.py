"""Questions to telemetry on a regular grid: `response_time` of `GET /items/{id}`, one number per cell.

Counts are whole numbers and exact: the cells of a route add up to the requests that were made. Means follow
the counts. Percentiles are interpolated inside a histogram bucket, so their error is at most that bucket's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apivitals.analytics.buckets import Bounds, common_bounds, merge, percentile
from apivitals.analytics.grid import Bools, Floats, Grid, choose_step, covered, make_grid, spread, spread_histogram
from apivitals.analytics.telemetry import GaugeFlow, HistogramFlow, Telemetry, lasting_interval
from apivitals.classify import FAILURES, ErrorClass, status_class
from apivitals.semconv import (
    ERROR_TYPE,
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    MetricQuery,
    resolve_metric,
)

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Series:
    """One metric on a regular grid.

    Attributes:
        times: cell starts, seconds since the epoch, shape (n,).
        values: in `unit`, NaN where there is nothing to say, shape (n,).
        counts: requests (or other events) behind each value, shape (n,); NaN for gauges.
    """

    metric: str
    unit: str
    step: float
    times: Floats
    values: Floats
    counts: Floats
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def points(self) -> int:
        """How many values there are."""
        return int(np.isfinite(self.values).sum())


@dataclass(frozen=True, slots=True)
class HistogramCells:
    """A histogram on a grid: counts and sums of shape (n,), buckets of shape (n, len(bounds) + 1).

    `unbucketed` is how many values came without buckets or on boundaries that the others do not share.
    """

    counts: Floats
    sums: Floats
    buckets: Floats
    bounds: Bounds
    unbucketed: float = 0.0


def window_grid(telemetry: Telemetry, start: float | None = None, end: float | None = None) -> Grid:
    """The grid over a window (seconds since the epoch) of the data; None: from the first, to the newest data."""
    first = telemetry.start if start is None else max(start, telemetry.start)
    last = telemetry.end if end is None else min(end, telemetry.end)
    last = max(last, first)
    interval = lasting_interval(telemetry.exports.values(), first, last) or telemetry.interval
    step = choose_step(interval, last - first)
    if step > interval * 1.5:
        return make_grid(first, last, step, np.zeros(0))
    exports = [ends for _, ends in telemetry.exports.values()]
    return make_grid(first, last, step, np.concatenate(exports) if exports else np.zeros(0))


def exposure(telemetry: Telemetry, grid: Grid) -> Floats:
    """Seconds of each cell in which any process exported, shape (n,)."""
    begins = [begin for begin, _ in telemetry.exports.values()]
    ends = [end for _, end in telemetry.exports.values()]
    if not begins:
        return np.zeros(grid.size)
    return covered(grid.edges, np.concatenate(begins), np.concatenate(ends))


def error_class_of(stream: HistogramFlow) -> ErrorClass:
    """How the requests of one duration stream ended, by their status and error type."""
    status, error = stream.get(HTTP_STATUS), stream.get(ERROR_TYPE)
    if error and not error.isdigit():
        kind = error.rsplit(".", 1)[-1].lower()
        if "timeout" in kind:
            return "timeout"
        if "cancelled" in kind:
            return "cancelled"
        if "disconnect" in kind:
            return "disconnected"
        # error.type of a response that was sent (HTTPException) says less than its status.
        if status is None or not status.isdigit() or int(status) >= 500 or int(status) < 400:
            return "exception"
    code = status if status and status.isdigit() else error if error and error.isdigit() else None
    return status_class(int(code)) if code else "none"


def is_failure(stream: HistogramFlow) -> bool:
    """Whether the requests of a duration stream count against the error rate."""
    return error_class_of(stream) in FAILURES


def matching(
    telemetry: Telemetry, query: MetricQuery, route: str | None, method: str | None
) -> tuple[HistogramFlow, ...]:
    """The histogram streams behind a query, of one route and method, or of all."""
    return tuple(
        stream
        for stream in telemetry.histograms_of(query.metric)
        if (route is None or (stream.get(HTTP_ROUTE) or "") == route)
        and (method is None or stream.get(HTTP_METHOD) == method)
        and all(stream.get(key) == value for key, value in query.where)
    )


def histogram_cells(streams: tuple[HistogramFlow, ...], grid: Grid) -> HistogramCells:
    """Streams of one histogram, added up on a grid."""
    with_bounds = [stream for stream in streams if stream.bounds and len(stream.begins)]
    bounds = common_bounds(stream.bounds for stream in with_bounds)
    if with_bounds and not bounds:
        bounds = max(with_bounds, key=lambda stream: float(stream.buckets.sum())).bounds
    counts, sums = np.zeros(grid.size), np.zeros(grid.size)
    buckets = np.zeros((grid.size, len(bounds) + 1))
    unbucketed = 0.0
    for stream in streams:
        if not len(stream.begins):
            continue
        cells, seconds = spread_histogram(grid.edges, stream.begins, stream.ends, stream.buckets, stream.sums)
        counts += cells.sum(axis=1)
        sums += seconds
        if stream.bounds and set(bounds) <= set(stream.bounds):
            buckets += merge(cells, stream.bounds, bounds)
        else:
            unbucketed += float(cells.sum())
    return HistogramCells(counts, sums, buckets, bounds, unbucketed)


def build_series(
    telemetry: Telemetry,
    metric: str,
    grid: Grid,
    *,
    route: str | None = None,
    method: str | None = None,
) -> Series:
    """A metric over the cells of a grid; all NaN when the metric is known but absent from the data.

    Args:
        telemetry: what was read.
        metric: a short name (`response_time`) or an OpenTelemetry name.
        grid: the cells.
        route, method: one route template and method; None sums over all.

    Raises:
        UnknownMetricError: nobody emits such a metric, and the data do not hold it.
    """
    query = resolve_metric(metric, telemetry.metrics())
    labels = {key: value for key, value in ((HTTP_METHOD, method), (HTTP_ROUTE, route)) if value is not None}
    seconds = exposure(telemetry, grid)
    # Half a cell is too little to speak of a rate.
    seen = seconds >= 0.5 * grid.step
    streams = matching(telemetry, query, route, method)
    counts = np.full(grid.size, np.nan)
    if streams:
        values, counts = _histogram_series(streams, query, grid, seconds, seen)
    elif any(stream.metric == query.metric for stream in telemetry.counters):
        values, counts = _counter_series(telemetry, query, grid, seconds, seen, labels)
    else:
        values = _gauge_series(telemetry, query, grid, labels)
    return Series(metric, query.unit, grid.step, grid.times, values * query.scale, counts, labels)


def _histogram_series(
    streams: tuple[HistogramFlow, ...], query: MetricQuery, grid: Grid, seconds: Floats, seen: Bools
) -> tuple[Floats, Floats]:
    if query.statistic == "failure_ratio":
        counts = histogram_cells(streams, grid).counts
        failed = histogram_cells(tuple(filter(is_failure, streams)), grid).counts
        return _ratio(failed, counts), counts
    cells = histogram_cells(streams, grid)
    if query.statistic in _QUANTILES:
        return percentile(cells.buckets, cells.bounds, _QUANTILES[query.statistic]), cells.counts
    if query.statistic == "rate":
        return np.where(seen, _ratio(cells.counts, seconds), np.nan), cells.counts
    return _ratio(cells.sums, cells.counts), cells.counts


def _counter_series(
    telemetry: Telemetry, query: MetricQuery, grid: Grid, seconds: Floats, seen: Bools, labels: Mapping[str, str]
) -> tuple[Floats, Floats]:
    amounts: dict[str, Floats] = {}
    for stream in telemetry.counters:
        if stream.metric == query.metric and _carries(stream.attributes, query, labels):
            cells = spread(grid.edges, stream.begins, stream.ends, stream.amounts)
            amounts[stream.instance] = amounts.get(stream.instance, 0.0) + cells
    if not amounts:
        return np.full(grid.size, np.nan), np.zeros(grid.size)
    total = np.sum(list(amounts.values()), axis=0)
    # Every worker reports the whole host's counters.
    host = len(amounts) if query.metric.startswith("system.") else 1
    return np.where(seen, _ratio(total / host, seconds), np.nan), total


def _gauge_series(telemetry: Telemetry, query: MetricQuery, grid: Grid, labels: Mapping[str, str]) -> Floats:
    instances: dict[str, Floats] = {}
    additive = False
    for stream in telemetry.gauges:
        if stream.metric != query.metric or not _carries(stream.attributes, query, labels):
            continue
        additive = stream.additive and not query.metric.startswith("system.")
        cells = _readings(stream, grid, hold=max(1, int(np.ceil(1.5 * telemetry.interval / grid.step))))
        before = instances.get(stream.instance)
        instances[stream.instance] = cells if before is None else _nansum(np.stack([before, cells]))
    if not instances:
        return np.full(grid.size, np.nan)
    stacked = np.stack(list(instances.values()))
    if additive:
        return _nansum(stacked)
    present = np.isfinite(stacked).sum(axis=0)
    return _ratio(np.where(present > 0, np.nan_to_num(stacked).sum(axis=0), np.nan), present.astype(np.float64))


def _readings(stream: GaugeFlow, grid: Grid, hold: int) -> Floats:
    """Mean reading per cell; a cell without one takes the last, up to `hold` cells back."""
    # A reading on the edge between two cells tells about the one that it closes.
    index = np.ceil((stream.times - grid.start) / grid.step - 1e-6).astype(np.int64) - 1
    inside = (index >= 0) & (index < grid.size)
    sums = np.bincount(index[inside], weights=stream.values[inside], minlength=grid.size).astype(np.float64)
    numbers = np.bincount(index[inside], minlength=grid.size).astype(np.float64)
    cells = _ratio(sums, numbers)
    for _ in range(hold):
        cells = np.where(np.isnan(cells), np.concatenate([[np.nan], cells[:-1]]), cells)
    return cells


def _carries(attributes: tuple[tuple[str, str], ...], query: MetricQuery, labels: Mapping[str, str]) -> bool:
    own = dict(attributes)
    return all(own.get(key) == value for key, value in (*query.where, *labels.items()))


def _nansum(stacked: Floats) -> Floats:
    total: Floats = np.where(np.isfinite(stacked).any(axis=0), np.nansum(stacked, axis=0), np.nan)
    return total


def _ratio(above: Floats, below: Floats) -> Floats:
    out: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return out
