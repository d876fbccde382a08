"""What else happened in an episode: metrics that moved along, traces, and how the failed requests failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apivitals.analytics.episodes import RouteEpisode
from apivitals.analytics.grid import Grid
from apivitals.analytics.series import build_series, error_class_of, histogram_cells, is_failure, matching
from apivitals.analytics.telemetry import Telemetry
from apivitals.semconv import ERROR_TYPE, HTTP_STATUS, REQUEST_DURATION, SHORT_NAMES, MetricQuery
from apivitals.wording import METRIC_TITLES, quantity

#: Metrics of a route that may explain it, and those of the process.
_OF_ROUTE = ("database_queries", "database_time", "external_api_calls", "external_api_time", "cache_misses")
_OF_PROCESS = ("event_loop_lag", "process_cpu_usage", "throughput")
_MOVED = 1.5
_MOST_TRACES = 3


@dataclass(frozen=True, slots=True)
class CoMoving:
    """A metric that was higher inside an episode than outside, by at least half; in the metric's unit."""

    metric: str
    before: float
    inside: float

    @property
    def ratio(self) -> float:
        """How many times higher."""
        return self.inside / self.before if self.before > 0 else float("inf")

    @property
    def sentence(self) -> str:
        """The same in words."""
        unit = SHORT_NAMES[self.metric].unit.split("/")[0]
        unit = unit if unit in ("ms", "%", "rps") else ""
        values = " to ".join(quantity(value, unit) for value in (self.before, self.inside))
        return f"{METRIC_TITLES[self.metric]} rose from {values}"


def co_moving(telemetry: Telemetry, grid: Grid, episode: RouteEpisode) -> list[CoMoving]:
    """Metrics that rose in an episode, the strongest first."""
    inside = np.zeros(grid.size, bool)
    inside[episode.first : episode.last] = True
    found = []
    for names, route, method in ((_OF_ROUTE, episode.route, episode.method), (_OF_PROCESS, None, None)):
        for name in names:
            if SHORT_NAMES[name].metric not in telemetry.metrics():
                continue
            series = build_series(telemetry, name, grid, route=route, method=method)
            good = np.isfinite(series.values)
            if (good & inside).sum() < 1 or (good & ~inside).sum() < 3:
                continue
            before, during = (float(np.mean(series.values[good & part])) for part in (~inside, inside))
            scatter = float(np.std(series.values[good & ~inside])) / np.sqrt(max(1, int((good & inside).sum())))
            if during >= _MOVED * before and during - before > 3 * scatter and during > 0:
                found.append(CoMoving(name, before, during))
    return sorted(found, key=lambda item: (item.metric in _OF_PROCESS, -item.ratio))


def trace_ids(telemetry: Telemetry, episode: RouteEpisode) -> list[str]:
    """Traces of requests in an episode, the slowest first: of failed requests where it is about errors."""
    streams = matching(telemetry, MetricQuery(REQUEST_DURATION.name, "mean"), episode.route, episode.method)
    if episode.kind == "errors":
        streams = tuple(filter(is_failure, streams))
    begin, end = episode.start.timestamp(), episode.end.timestamp()
    values: dict[str, float] = {}
    for stream in streams:
        for exemplar in stream.exemplars:
            if begin <= exemplar.time <= end:
                values[exemplar.trace_id] = max(values.get(exemplar.trace_id, 0.0), exemplar.value)
    return sorted(values, key=lambda trace: -values[trace])[:_MOST_TRACES]


def how_they_failed(telemetry: Telemetry, grid: Grid, episode: RouteEpisode) -> list[tuple[str, int]]:
    """Status (or error type) of the failed requests of an episode with their counts, the most frequent first."""
    counts: dict[str, int] = {}
    for stream in matching(telemetry, MetricQuery(REQUEST_DURATION.name, "mean"), episode.route, episode.method):
        if not is_failure(stream):
            continue
        number = round(float(histogram_cells((stream,), grid).counts[episode.first : episode.last].sum()))
        if number:
            error, status = stream.get(ERROR_TYPE), stream.get(HTTP_STATUS)
            named = error if error and not error.isdigit() else None
            name = " ".join(filter(None, (f"status {status}" if status else None, named))) or error_class_of(stream)
            counts[name] = counts.get(name, 0) + number
    return sorted(counts.items(), key=lambda item: -item[1])
