"""Telemetry to a report: every question asked of every route, on one machine or fanned out over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from apivitals.analytics.changes import find_changes
from apivitals.analytics.correlations import MIN_POINTS as MIN_CORRELATION
from apivitals.analytics.correlations import find_correlations
from apivitals.analytics.curves import chart
from apivitals.analytics.episodes import RouteCells, RouteEpisode, at, find_route_episodes
from apivitals.analytics.findings import episode_finding, ranked, step_finding, told_once, trend_finding
from apivitals.analytics.forecasts import find_forecast
from apivitals.analytics.grid import Floats, Grid
from apivitals.analytics.history import first_cell, history_grid, merged
from apivitals.analytics.regular import DAY
from apivitals.analytics.sensitivity import DEFAULT
from apivitals.analytics.series import (
    Series,
    build_series,
    exposure,
    histogram_cells,
    is_failure,
    matching,
    window_grid,
)
from apivitals.analytics.summary import routes_of, summarise
from apivitals.analytics.telemetry import Telemetry
from apivitals.analytics.trends import find_trend
from apivitals.errors import MissingExtraError
from apivitals.models import Correlation, Finding, Forecast, Report, Trend
from apivitals.semconv import REQUEST_DURATION, SHORT_NAMES, MetricQuery
from apivitals.settings import PerformanceThresholds
from apivitals.wording import span

OnProgress = Callable[[int, int, str], None]

_TRENDS = ("response_time", "throughput", "error_rate", "process_memory", "cpu_usage", "event_loop_lag")
_RELATED = (
    "response_time",
    "throughput",
    "error_rate",
    "cpu_usage",
    "memory_usage",
    "event_loop_lag",
    "database_time",
    "external_api_time",
    "cache_misses",
)
_FORECASTS = ("throughput", "response_time_p95")
#: A report does not speak of drifts in less than this.
_TREND_SECONDS = 1_800.0
#: Nor of lasting steps in less than this.
_STEP_SECONDS = 6 * 3_600.0
#: Below this many cells times routes one process is quicker than several.
_WORTH_A_PROCESS = 200_000
#: A route with fewer requests in the window is not judged.
_MIN_REQUESTS = 20


def analyse(
    telemetry: Telemetry,
    *,
    start: float | None = None,
    end: float | None = None,
    period: str = "",
    thresholds: PerformanceThresholds | None = None,
    routes: Mapping[str, PerformanceThresholds] | None = None,
    sensitivity: float = DEFAULT,
    n_jobs: int | None = None,
    on_progress: OnProgress = lambda done, total, what: None,
) -> Report:
    """Everything there is to say about one service over a window, whose episodes are judged against what came before.

    Args:
        telemetry: what was read, with up to eight days before the window where there are any.
        start, end: the window, seconds since the epoch; None: all there is.
        period: how the window is called in the report.
        thresholds, routes: class bounds of the service, and of single routes by template.
        sensitivity: of the anomaly search; more finds less.
        n_jobs: processes to use; None: one, or all CPUs where there is much to do.
        on_progress: called with how many of how many steps are done, and what comes next.
    """
    thresholds = thresholds or PerformanceThresholds()
    notes = list(telemetry.notes)
    if telemetry.empty:
        notes.append("no metrics were found: send the service some requests, and wait for an export")
        return Report(telemetry.service, period, None, None, 0.0, notes=tuple(notes))
    grid = window_grid(telemetry, start, end)
    steps = 6
    on_progress(0, steps, "summaries")
    total, summaries = summarise(telemetry, grid, thresholds, routes, notes)
    on_progress(1, steps, "episodes")
    routed, service = _episodes(telemetry, grid, thresholds, routes or {}, sensitivity, n_jobs)
    past = history_grid(telemetry, grid)
    if past is not None:
        since = first_cell(past, grid)
        older = _episodes(telemetry, past, thresholds, routes or {}, sensitivity, n_jobs, since)
        routed, service = merged(routed, older[0]), merged(service, older[1])
    busy = sum(1 for summary in summaries if summary.count >= _MIN_REQUESTS)
    # A coarse last cell may reach beyond the data.
    told = [replace(item, end=min(item.end, at(telemetry.end))) for item in told_once(routed, service, busy)]
    findings = [episode_finding(telemetry, episode) for episode in told]
    episodes = [episode.onto(grid) for episode in told]
    findings += _steps(telemetry, grid, episodes)
    on_progress(2, steps, "trends")
    trends, drifting = _trends(telemetry, grid, total.count if total else 0, told=bool(findings))
    on_progress(3, steps, "correlations")
    correlations = _correlations(telemetry, grid, notes)
    on_progress(4, steps, "forecasts")
    forecasts = _forecasts(telemetry, grid)
    on_progress(5, steps, "charts")
    charted = list(dict.fromkeys([(None, None), *((e.route, e.method) for e in episodes)]))[:9]
    charts = [
        chart(build_series(telemetry, metric, grid, route=route, method=method), episodes)
        for route, method in charted
        for metric in ("response_time_p95", "throughput", "error_rate")
    ]
    on_progress(steps, steps, "done")
    return Report(
        service=telemetry.service,
        period=period,
        start_time=at(grid.start),
        end_time=at(min(grid.end, telemetry.end)),
        step_seconds=grid.step,
        total=total,
        routes=summaries,
        findings=ranked([*findings, *drifting]),
        trends=trends,
        anomalies=tuple(episode.anomaly() for episode in sorted(episodes, key=lambda e: e.start)),
        correlations=correlations,
        forecasts=forecasts,
        charts=tuple(drawn for drawn in charts if drawn is not None),
        notes=tuple(notes),
    )


def route_cells(telemetry: Telemetry, grid: Grid, route: str | None, method: str | None) -> RouteCells:
    """The durations and failures of one route, or with None of the whole service, on a grid."""
    streams = matching(telemetry, MetricQuery(REQUEST_DURATION.name, "mean"), route, method)
    failed = histogram_cells(tuple(filter(is_failure, streams)), grid)
    return RouteCells(method, route, histogram_cells(streams, grid), failed.counts)


def _episodes(
    telemetry: Telemetry,
    grid: Grid,
    thresholds: PerformanceThresholds,
    routes: Mapping[str, PerformanceThresholds],
    sensitivity: float,
    n_jobs: int | None,
    since: int = 0,
) -> tuple[list[RouteEpisode], list[RouteEpisode]]:
    seconds = exposure(telemetry, grid)
    cells = [route_cells(telemetry, grid, route, method) for method, route in routes_of(telemetry)]
    cells = [item for item in cells if item.cells.counts.sum() >= _MIN_REQUESTS]
    if n_jobs is None:
        n_jobs = -1 if len(cells) * grid.size >= _WORTH_A_PROCESS else 1
    tasks = [(item, grid, seconds, routes.get(item.route or "", thresholds), sensitivity, since) for item in cells]
    found = [episode for some in _fan_out(tasks, n_jobs) for episode in some]
    whole = route_cells(telemetry, grid, None, None)
    service = find_route_episodes(
        whole, grid, seconds, thresholds, sensitivity=sensitivity, kinds=("latency", "errors", "traffic"), since=since
    )
    kept = [episode for episode in service if episode.kind == "traffic" or not _is_mix(episode, cells)]
    return found, kept


_Task = tuple[RouteCells, Grid, Floats, PerformanceThresholds, float, int]


def _one(task: _Task) -> list[RouteEpisode]:
    item, grid, seconds, thresholds, sensitivity, since = task
    return find_route_episodes(item, grid, seconds, thresholds, sensitivity=sensitivity, since=since)


def _fan_out(tasks: Sequence[_Task], n_jobs: int) -> list[list[RouteEpisode]]:
    if n_jobs == 1 or len(tasks) < 2:
        return [_one(task) for task in tasks]
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise MissingExtraError("analysis in several processes", "analytics", "joblib") from None
    return list(Parallel(n_jobs=n_jobs)(delayed(_one)(task) for task in tasks))


def _steps(telemetry: Telemetry, grid: Grid, episodes: Sequence[RouteEpisode]) -> list[Finding]:
    """Lasting steps of mean latency, at the routes; a step at a route is not told again for the service."""
    if grid.end - grid.start < _STEP_SECONDS:
        return []
    found: list[Finding] = []
    for method, route in routes_of(telemetry):
        series = build_series(telemetry, "response_time", grid, route=route, method=method)
        changes = find_changes(series.times, series.values, metric="response_time", unit=series.unit)
        # Only where the series ended up: a step that was taken back later is an episode.
        for change in changes[-1:]:
            first = int((change.timestamp.timestamp() - grid.start) // grid.step)
            told = any(
                (e.method, e.route) == (method, route) and e.first <= first + 2 and e.last >= first - 2
                for e in episodes
            )
            finding = step_finding(change, method, route, round(float(np.nansum(series.counts[first:]))))
            if finding is not None and not told:
                found.append(finding)
    return found


def _is_mix(episode: RouteEpisode, routes: Sequence[RouteCells]) -> bool:
    """Whether the service got worse only because slower or failing routes were called more."""
    inside = slice(episode.first, episode.last)
    usual = 0.0
    actual = 0.0
    for item in routes:
        amount = item.failures if episode.kind == "errors" else item.cells.sums
        counts = item.cells.counts
        n_in, n_out = float(counts[inside].sum()), float(counts.sum() - counts[inside].sum())
        if n_out > 0:
            usual += n_in * float(amount.sum() - amount[inside].sum()) / n_out
            actual += float(amount[inside].sum())
    return actual < 1.5 * usual


def _present(telemetry: Telemetry, grid: Grid, names: Sequence[str]) -> dict[str, Series]:
    series = {
        name: build_series(telemetry, name, grid) for name in names if SHORT_NAMES[name].metric in telemetry.metrics()
    }
    return {name: item for name, item in series.items() if item.points}


def _trends(telemetry: Telemetry, grid: Grid, requests: int, *, told: bool) -> tuple[tuple[Trend, ...], list[Finding]]:
    series = _present(telemetry, grid, _TRENDS)
    seconds = grid.end - grid.start
    if seconds < _TREND_SECONDS:
        short = Trend(
            "response_time",
            "not enough data",
            points=series["response_time"].points if "response_time" in series else 0,
            message=f"not enough data: {span(seconds)}, a trend needs at least {span(_TREND_SECONDS)}",
        )
        return (short,), []
    trends, findings = [], []
    for name, item in series.items():
        trend = find_trend(item.times, item.values, metric=name, unit=item.unit)
        trends.append(trend)
        # An episode leaves a slope in a short window, and a step in any; it has been told already.
        if not (told and seconds < 3 * DAY and name in ("response_time", "error_rate")):
            finding = trend_finding(trend, float(np.nanmean(item.values)), requests)
            findings += [finding] if finding else []
    return tuple(trends), findings


def _correlations(telemetry: Telemetry, grid: Grid, notes: list[str]) -> tuple[Correlation, ...]:
    series = _present(telemetry, grid, _RELATED)
    if grid.size < MIN_CORRELATION:
        if len(series) > 1:
            notes.append(
                f"relations between metrics need at least {MIN_CORRELATION} moments; there are {grid.size} "
                f"at one every {grid.step:g} s"
            )
        return ()
    pairs = find_correlations({name: (item.times, item.values) for name, item in series.items()})
    return tuple(pair for pair in pairs if pair.significance not in ("none", "not enough data"))


def _forecasts(telemetry: Telemetry, grid: Grid) -> tuple[Forecast, ...]:
    found = []
    for name, item in _present(telemetry, grid, _FORECASTS).items():
        horizon = max(1, round(min(DAY, (grid.end - grid.start) / 3) / grid.step))
        found.append(find_forecast(item.times, item.values, horizon, metric=name, unit=item.unit))
    # One sentence about missing data says it for all.
    undecided = [forecast for forecast in found if not forecast.timestamps]
    return (*(forecast for forecast in found if forecast.timestamps), *undecided[:1])
