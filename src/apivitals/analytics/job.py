"""The analytics job: from a source to verdicts, one at a time or as a whole report.

`PerformanceAnalytics` computes in a worker thread, so that it may be awaited in a service.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from apivitals.analytics.analysis import OnProgress, analyse, route_cells
from apivitals.analytics.anomalies import Episode, find_episodes, prolonged
from apivitals.analytics.changes import find_changes
from apivitals.analytics.correlations import find_correlations
from apivitals.analytics.curves import chart
from apivitals.analytics.episodes import Kind, at, find_route_episodes
from apivitals.analytics.forecasts import find_forecast
from apivitals.analytics.grid import Grid
from apivitals.analytics.history import HISTORY_SECONDS, first_cell, history_grid, merged_anomalies
from apivitals.analytics.regular import DAY
from apivitals.analytics.sensitivity import DEFAULT, checked
from apivitals.analytics.series import Series, build_series, exposure, window_grid
from apivitals.analytics.sources import MetricsSource, open_source
from apivitals.analytics.telemetry import Telemetry, read_telemetry
from apivitals.analytics.trends import find_trend
from apivitals.analytics.windows import PERIODS, Period, epoch, horizon_seconds, moment_of, period_seconds, window_of
from apivitals.errors import ConfigurationError
from apivitals.models import Anomaly, Change, Correlation, Forecast, Report, TimeWindow, Trend, as_dict
from apivitals.semconv import REQUEST_DURATION, resolve_metric
from apivitals.settings import PerformanceThresholds, Settings

__all__ = ["PERIODS", "PerformanceAnalytics", "analyse"]

#: The statistics of the duration histogram whose episodes are tested on counts of requests.
_COUNTED: dict[str, Kind] = {
    "mean": "latency",
    "p50": "latency",
    "p95": "latency",
    "p99": "latency",
    "failure_ratio": "errors",
    "rate": "traffic",
}


class PerformanceAnalytics:
    """Trends, anomalies, correlations, forecasts and reports of one service's telemetry.

    Args:
        source: a folder or file of OTLP JSON lines, a list of these, an object with a `requests(start, end)`
            method (a `PerformanceMonitor`), or one with a `data_directory`. None: the folder that services on
            this machine write to.
        thresholds, routes: class bounds of the service, and of single routes by template.

    Raises:
        ConfigurationError: the source is none of these.
    """

    def __init__(
        self,
        source: Any = None,
        *,
        thresholds: PerformanceThresholds | None = None,
        routes: Mapping[str, PerformanceThresholds] | None = None,
    ) -> None:
        self.source: MetricsSource = open_source(_default_folder() if source is None else source)
        given = getattr(source, "thresholds", None)
        self.thresholds = thresholds or (given if isinstance(given, PerformanceThresholds) else PerformanceThresholds())
        self.routes = dict(routes or {})

    async def analyze_trends(
        self,
        metric: str,
        time_window: TimeWindow = TimeWindow.DAY,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        route: str | None = None,
        method: str | None = None,
    ) -> Trend:
        """Where a metric is heading; see `apivitals.analytics.trends`.

        Args:
            metric: a short name (`response_time`) or an OpenTelemetry name.
            time_window: how far back from the end to look, where no start is given.
            start_time, end_time: the window; the end is the newest data unless given. Without a zone: UTC.
            route, method: one route template and method; None: the whole service.

        Raises:
            UnknownMetricError: there is no such metric.
            NoDataError: the source holds no telemetry.
        """

        def work() -> Trend:
            series = self._series(metric, time_window, start_time, end_time, route, method)[1]
            return find_trend(series.times, series.values, metric=metric, unit=series.unit, labels=series.labels)

        return await asyncio.to_thread(work)

    async def detect_anomalies(
        self,
        metric: str,
        time_window: TimeWindow = TimeWindow.HOUR,
        sensitivity: float = DEFAULT,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        route: str | None = None,
        method: str | None = None,
    ) -> list[Anomaly]:
        """Episodes in which a metric left what was expected, in time order; empty where there are too few data.

        Args:
            metric, time_window, start_time, end_time, route, method: as in `analyze_trends`.
            sensitivity: 0.5 to 10, more finds less; what the numbers mean is in `apivitals.analytics.sensitivity`.

        Raises:
            ConfigurationError: `sensitivity` is out of range.
            UnknownMetricError: there is no such metric.
            NoDataError: the source holds no telemetry.
        """
        checked(sensitivity)
        return await asyncio.to_thread(
            self._anomalies, metric, time_window, sensitivity, start_time, end_time, route, method
        )

    async def detect_changes(
        self,
        metric: str,
        time_window: TimeWindow = TimeWindow.DAY,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        route: str | None = None,
        method: str | None = None,
    ) -> list[Change]:
        """Lasting steps of a metric's level, in time order; see `apivitals.analytics.changes`.

        Args:
            metric, time_window, start_time, end_time, route, method: as in `analyze_trends`.

        Raises:
            UnknownMetricError: there is no such metric.
            NoDataError: the source holds no telemetry.
        """

        def work() -> list[Change]:
            series = self._series(metric, time_window, start_time, end_time, route, method)[1]
            return find_changes(series.times, series.values, metric=metric, unit=series.unit, labels=series.labels)

        return await asyncio.to_thread(work)

    async def analyze_correlations(
        self,
        metrics: Sequence[str],
        time_window: TimeWindow = TimeWindow.DAY,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        route: str | None = None,
        method: str | None = None,
    ) -> list[Correlation]:
        """Every pair of some metrics, the strongest first; see `apivitals.analytics.correlations`.

        Args:
            metrics: two or more names.
            time_window, start_time, end_time, route, method: as in `analyze_trends`; metrics that no route has
                (`cpu_usage`) are those of the whole service.

        Raises:
            ConfigurationError: fewer than two metrics.
            UnknownMetricError: there is no such metric.
            NoDataError: the source holds no telemetry.
        """
        names = list(dict.fromkeys(metrics))
        if isinstance(metrics, str) or len(names) < 2:
            raise ConfigurationError(f"metrics is {metrics!r}; give a list of two names or more")

        def work() -> list[Correlation]:
            telemetry = self._read(time_window, start_time, end_time)
            grid = window_grid(telemetry, *window_of(telemetry, time_window.seconds, start_time, end_time))
            samples = {}
            for name in names:
                series = build_series(telemetry, name, grid, route=route, method=method)
                if not series.points and (route is not None or method is not None):
                    series = build_series(telemetry, name, grid)
                samples[name] = (series.times, series.values)
            return find_correlations(samples)

        return await asyncio.to_thread(work)

    async def forecast(
        self,
        metric: str,
        horizon: timedelta | TimeWindow | float = TimeWindow.HOUR,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        route: str | None = None,
        method: str | None = None,
    ) -> Forecast:
        """The next values of a metric with a 95 % band; see `apivitals.analytics.forecasts`.

        Args:
            metric, start_time, end_time, route, method: as in `analyze_trends`; four weeks back at most.
            horizon: how far ahead: a timedelta, a TimeWindow, or seconds.

        Raises:
            ConfigurationError: the horizon is not positive.
            UnknownMetricError: there is no such metric.
            NoDataError: the source holds no telemetry.
        """
        seconds = horizon_seconds(horizon)

        def work() -> Forecast:
            series = self._series(metric, TimeWindow.MONTH, start_time, end_time, route, method)[1]
            steps = max(1, int(np.ceil(seconds / series.step)))
            return find_forecast(
                series.times, series.values, steps, metric=metric, unit=series.unit, labels=series.labels
            )

        return await asyncio.to_thread(work)

    async def generate_report(self, period: Period = "hourly") -> dict[str, Any]:
        """The report of the last hour, day or week up to the newest data, as plain JSON values.

        Raises:
            ConfigurationError: an unknown period.
            NoDataError: the source holds no telemetry.
        """
        report = await asyncio.to_thread(self.build_report, period)
        document: dict[str, Any] = as_dict(report)
        return document

    def build_report(
        self,
        period: str | float = "hourly",
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        sensitivity: float = DEFAULT,
        service: str | None = None,
        n_jobs: int | None = None,
        on_progress: OnProgress = lambda done, total, what: None,
    ) -> Report:
        """The report of a window, computed here and now.

        Args:
            period: `hourly`, `daily`, `weekly` or seconds: how far back from the end, where no start is given.
            start_time, end_time: the window; the end is the newest data unless given.
            sensitivity: of the anomaly search.
            service: `service.name`, where the data hold several.
            n_jobs: processes; None: one, or all CPUs where there is much to do.
            on_progress: called with steps done, steps in all, and what comes next.

        Raises:
            ConfigurationError: an unknown period, or a sensitivity out of range.
            NoDataError: the source holds no telemetry.
        """
        seconds = period_seconds(period)
        checked(sensitivity)
        on_progress(0, 7, "reading")
        start, end = epoch(start_time), epoch(end_time)
        telemetry = self._telemetry(seconds, start, end, service, history=True)
        begin, stop = window_of(telemetry, seconds, start_time, end_time)
        return analyse(
            telemetry,
            start=begin,
            end=stop,
            period=period if isinstance(period, str) else f"{seconds:g} s",
            thresholds=self.thresholds,
            routes=self.routes,
            sensitivity=sensitivity,
            n_jobs=n_jobs,
            on_progress=lambda done, total, what: on_progress(done + 1, total + 1, what),
        )

    async def _generate_charts(
        self, metrics: Sequence[str], start_time: datetime | None = None, end_time: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Series for charts, as plain JSON values, of the metrics that the window has data of."""

        def work() -> list[dict[str, Any]]:
            telemetry = self._read(TimeWindow.DAY, start_time, end_time)
            grid = window_grid(telemetry, *window_of(telemetry, DAY, start_time, end_time))
            drawn = (chart(build_series(telemetry, metric, grid)) for metric in metrics)
            return [as_dict(series) for series in drawn if series is not None]

        return await asyncio.to_thread(work)

    def _anomalies(
        self,
        metric: str,
        time_window: TimeWindow,
        sensitivity: float,
        start_time: datetime | None,
        end_time: datetime | None,
        route: str | None,
        method: str | None,
    ) -> list[Anomaly]:
        telemetry = self._telemetry(time_window.seconds, epoch(start_time), epoch(end_time), None, history=True)
        grid = window_grid(telemetry, *window_of(telemetry, time_window.seconds, start_time, end_time))
        found = self._anomalies_on(telemetry, grid, metric, sensitivity, route, method)
        past = history_grid(telemetry, grid)
        if past is None:
            return found
        older = self._anomalies_on(telemetry, past, metric, sensitivity, route, method, first_cell(past, grid))
        told = merged_anomalies(found, older, past.step)
        # A coarse last cell may reach beyond the data.
        return [replace(item, end_time=min(item.end_time or item.timestamp, at(telemetry.end))) for item in told]

    def _anomalies_on(
        self,
        telemetry: Telemetry,
        grid: Grid,
        metric: str,
        sensitivity: float,
        route: str | None,
        method: str | None,
        since: int = 0,
    ) -> list[Anomaly]:
        """Anomalies in the cells of a grid, those that were over before cell `since` left out."""
        series = build_series(telemetry, metric, grid, route=route, method=method)
        query = resolve_metric(metric, telemetry.metrics())
        short = len(series.times) * series.step < DAY
        if short and query.metric == REQUEST_DURATION.name and query.statistic in _COUNTED:
            kind = _COUNTED[query.statistic]
            thresholds = self.routes.get(route or "", self.thresholds)
            cells = route_cells(telemetry, grid, route, method)
            found = find_route_episodes(
                cells, grid, exposure(telemetry, grid), thresholds, sensitivity=sensitivity, kinds=(kind,), since=since
            )
            return [_as(episode.anomaly(), series, episode.first, episode.last, metric) for episode in found]
        return [
            Anomaly(
                metric=metric,
                timestamp=at(episode.start),
                end_time=at(episode.end),
                peak_time=at(episode.peak),
                value=episode.value,
                expected_value=episode.expected,
                lower=episode.lower,
                upper=episode.upper,
                severity=episode.severity,
                confidence=episode.confidence,
                direction=episode.direction,
                unit=series.unit,
                labels=series.labels,
            )
            for episode in _whole(find_episodes(series.times, series.values, sensitivity=sensitivity).episodes, series)
            if _reaches(episode, series, since)
        ]

    def _series(
        self,
        metric: str,
        time_window: TimeWindow,
        start_time: datetime | None,
        end_time: datetime | None,
        route: str | None,
        method: str | None,
    ) -> tuple[Telemetry, Series]:
        telemetry = self._read(time_window, start_time, end_time)
        grid = window_grid(telemetry, *window_of(telemetry, time_window.seconds, start_time, end_time))
        return telemetry, build_series(telemetry, metric, grid, route=route, method=method)

    def _read(self, window: TimeWindow, start_time: datetime | None, end_time: datetime | None) -> Telemetry:
        return self._telemetry(window.seconds, epoch(start_time), epoch(end_time), None)

    def _telemetry(
        self, seconds: float, start: float | None, end: float | None, service: str | None, *, history: bool = False
    ) -> Telemetry:
        last = end if end is not None else _newest(self.source)
        if start is None:
            start = last - seconds if last is not None else None
        # An hour more, so that the first totals of the window have something to be differenced from.
        before = 3_600.0 + (HISTORY_SECONDS if history else 0.0)
        early = moment_of(start - before) if start is not None else None
        telemetry = read_telemetry(
            self.source.requests(early, moment_of(end)), service=service, start=start, end=last if history else None
        )
        notes = tuple(getattr(self.source, "notes", ()))
        return replace(telemetry, notes=(*notes, *telemetry.notes))


def _whole(episodes: Sequence[Episode], series: Series) -> list[Episode]:
    """Episodes up to where they really end; one that lasts may have been found again later."""
    out: list[Episode] = []
    for episode in episodes:
        if out and episode.start < out[-1].end:
            continue
        first, last = (round((moment - series.times[0]) / series.step) for moment in (episode.start, episode.end))
        last = prolonged(series.values, series.step, episode, first, last)
        out.append(replace(episode, end=max(episode.end, float(series.times[0] + last * series.step))))
    return out


def _reaches(episode: Episode, series: Series, since: int) -> bool:
    """Whether an episode is still half as large as at its peak in a cell from `since` on."""
    times = series.times[since:]
    inside = series.values[since:][(times > episode.start - 0.5 * series.step) & (times < episode.end)]
    off = (inside - episode.expected) / (episode.value - episode.expected or 1.0)
    return bool((off[np.isfinite(off)] >= 0.5).any())


def _as(anomaly: Anomaly, series: Series, first: int, last: int, metric: str) -> Anomaly:
    """An episode that was found in counts, told in the metric that was asked for."""
    outside = np.isfinite(series.values)
    outside[first:last] = False
    inside = series.values[first:last]
    if not np.isfinite(inside).any() or not outside.any():
        return replace(anomaly, metric=metric, labels=series.labels)
    low, middle, high = np.quantile(series.values[outside], [0.025, 0.5, 0.975])
    peak = first + int(np.nanargmax(inside) if anomaly.direction == "up" else np.nanargmin(inside))
    return replace(
        anomaly,
        metric=metric,
        unit=series.unit,
        labels=series.labels,
        peak_time=at(float(series.times[peak])),
        value=float(series.values[peak]),
        expected_value=float(middle),
        lower=float(low),
        upper=float(high),
    )


def _newest(source: MetricsSource) -> float | None:
    newest = getattr(source, "newest", None)
    found = newest() if callable(newest) else None
    return float(found) if found is not None else None


def _default_folder() -> Path:
    from platformdirs import user_state_path

    settings = Settings.load(os.environ, directory=Path.cwd(), problems=[])
    return Path(settings.data_dir).expanduser() if settings.data_dir else user_state_path("apivitals")
