"""Every episode of a route or of the whole service, whichever way it was found, in one shape.

Windows shorter than a day are scanned (`incidents`); longer ones are compared with the days before (`anomalies`),
and what that finds must still be large in the counts of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Literal

import numpy as np

from apivitals.analytics.anomalies import Episode, find_episodes, prolonged
from apivitals.analytics.grid import Bools, Floats, Grid
from apivitals.analytics.incidents import (
    MIN_DROP,
    Slowdown,
    scan_drop,
    scan_failures,
    scan_latency,
    slowdown_of,
)
from apivitals.analytics.regular import DAY
from apivitals.analytics.scan import Stretch
from apivitals.analytics.sensitivity import DEFAULT, alpha_of
from apivitals.analytics.series import HistogramCells
from apivitals.models import Anomaly, Severity
from apivitals.semconv import SHORT_NAMES
from apivitals.settings import PerformanceThresholds

#: From this length of a window on the time of day is felt, and an episode is at most that long.
_HALF_A_SHIFT = 4 * 3_600.0
_EPISODE_SECONDS = 2 * 3_600.0
#: Most failing stretches that are told apart in a window; in a history there may be more before it.
_MOST_EPISODES = 4

Kind = Literal["latency", "errors", "traffic"]


@dataclass(frozen=True, slots=True)
class RouteCells:
    """What one route (None: the whole service) did in each cell: all requests, and those that failed."""

    method: str | None
    route: str | None
    cells: HistogramCells
    failures: Floats


@dataclass(frozen=True, slots=True)
class RouteEpisode:
    """A stretch of cells in which a route was slower, failed, or was not called.

    Attributes:
        grid: the cells in which it was found.
        first, last: cells of it, `last` not included.
        metric: what `value` and its kin are of, a short name.
        value, expected: mean or p95 in ms (latency), share in % (errors), requests per second (traffic).
        requests: how many were made in it; `hit`: how many were slow or failed.
        slowdown: the figures of a latency episode.
    """

    kind: Kind
    metric: str
    method: str | None
    route: str | None
    grid: Grid
    first: int
    last: int
    start: datetime
    end: datetime
    peak: datetime
    value: float
    expected: float
    lower: float
    upper: float
    confidence: float
    severity: Severity
    requests: int
    hit: int
    slowdown: Slowdown | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def overlaps(self, other: RouteEpisode) -> bool:
        """Whether the two share a moment."""
        return self.start < other.end and other.start < self.end

    def onto(self, grid: Grid) -> RouteEpisode:
        """The same with the cells of another grid, as far as that reaches; the times stay as they are."""
        first = int(np.floor((self.start.timestamp() - grid.start) / grid.step + 1e-6))
        last = int(np.ceil((self.end.timestamp() - grid.start) / grid.step - 1e-6))
        first = min(max(0, first), grid.size - 1)
        return replace(self, grid=grid, first=first, last=min(max(first + 1, last), grid.size))

    def anomaly(self) -> Anomaly:
        """The same as the record that users get."""
        return Anomaly(
            metric=self.metric,
            timestamp=self.start,
            end_time=self.end,
            peak_time=self.peak,
            value=self.value,
            expected_value=self.expected,
            lower=self.lower,
            upper=self.upper,
            severity=self.severity,
            confidence=self.confidence,
            direction="up" if self.value > self.expected else "down",
            unit=SHORT_NAMES[self.metric].unit,
            labels=self.labels,
        )


def find_route_episodes(
    what: RouteCells,
    grid: Grid,
    seconds: Floats,
    thresholds: PerformanceThresholds,
    *,
    sensitivity: float = DEFAULT,
    kinds: tuple[Kind, ...] = ("latency", "errors"),
    since: int = 0,
) -> list[RouteEpisode]:
    """Episodes of one route.

    Args:
        what: its cells.
        grid: where they are.
        seconds: how much of each cell was observed, shape (n,).
        thresholds: decide how severe an episode is.
        sensitivity: see `apivitals.analytics.sensitivity`.
        kinds: what to look for.
        since: the first cell of the window that is asked about; what was over by then is left out.
    """
    alpha = alpha_of(sensitivity)
    long = grid.end - grid.start >= DAY
    longest = round(_EPISODE_SECONDS / grid.step) if grid.end - grid.start > _HALF_A_SHIFT else None
    found: list[RouteEpisode] = []
    if "latency" in kinds:
        slow = (
            _slow_against_history(what, grid, sensitivity)
            if long
            else scan_latency(what.cells, alpha=alpha, longest=longest)
        )
        found += [_latency(what, grid, item, thresholds) for item in slow]
    if "errors" in kinds:
        most = _MOST_EPISODES * (4 if since else 1)
        failing = scan_failures(what.failures, what.cells.counts, alpha=alpha, most=most)
        found += [_errors(what, grid, stretch, thresholds) for stretch in failing]
    if "traffic" in kinds:
        drops = (
            _drops_against_history(what, grid, seconds, sensitivity)
            if long
            else scan_drop(what.cells.counts, seconds, alpha=alpha, longest=longest)
        )
        found += [_traffic(what, grid, stretch, seconds) for stretch in drops]
    return sorted((item for item in found if _goes_on(what, item, since)), key=lambda episode: episode.first)


def _goes_on(what: RouteCells, episode: RouteEpisode, since: int) -> bool:
    """Whether an episode reaches into the cells from `since` on, and is still one there."""
    if episode.last <= since:
        return False
    if episode.first >= since:
        return True
    inside = slice(since, episode.last)
    counts = float(what.cells.counts[inside].sum())
    if episode.kind == "traffic":
        return True
    if counts <= 0:
        return False
    if episode.kind == "errors":
        now = 100 * float(what.failures[inside].sum()) / counts
        return now - episode.expected >= 0.5 * (episode.value - episode.expected)
    slow = episode.slowdown
    now = float(what.cells.sums[inside].sum()) / counts
    return slow is not None and now - slow.mean_before >= 0.5 * (slow.mean - slow.mean_before)


def _slow_against_history(what: RouteCells, grid: Grid, sensitivity: float) -> list[Slowdown]:
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(what.cells.counts > 0, what.cells.sums / what.cells.counts, np.nan)
    slow: list[Slowdown] = []
    for episode in find_episodes(grid.times, means, sensitivity=sensitivity).episodes:
        stretch = _stretch(episode, grid, means)
        found = slowdown_of(what.cells, stretch, outside=_day_before(stretch, grid))
        # One that lasts may be found again later.
        again = bool(slow) and stretch.first < slow[-1].stretch.last
        if episode.direction == "up" and found is not None and not again:
            slow.append(found)
    return slow


def _drops_against_history(what: RouteCells, grid: Grid, seconds: Floats, sensitivity: float) -> list[Stretch]:
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(seconds >= 0.5 * grid.step, what.cells.counts / seconds, np.nan)
    drops: list[Stretch] = []
    for episode in find_episodes(grid.times, rate, sensitivity=sensitivity).episodes:
        stretch = replace(_stretch(episode, grid, rate), inside=episode.value, outside=episode.expected)
        again = bool(drops) and stretch.first < drops[-1].last
        if episode.direction == "down" and episode.value <= MIN_DROP * episode.expected and not again:
            drops.append(stretch)
    return drops


def _stretch(episode: Episode, grid: Grid, values: Floats) -> Stretch:
    first = int(np.clip(round((episode.start - grid.start) / grid.step), 0, grid.size - 1))
    last = int(np.clip(round((episode.end - grid.start) / grid.step), first + 1, grid.size))
    last = prolonged(values, grid.step, episode, first, last)
    return Stretch(first, last, episode.value, episode.expected, 1.0 - episode.confidence)


def _day_before(stretch: Stretch, grid: Grid) -> Bools:
    outside = np.zeros(grid.size, bool)
    outside[max(0, stretch.first - round(DAY / grid.step)) : stretch.first] = True
    return outside


def _latency(what: RouteCells, grid: Grid, slow: Slowdown, thresholds: PerformanceThresholds) -> RouteEpisode:
    stretch = slow.stretch
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.nan_to_num(what.cells.sums / what.cells.counts)
    # Interpolated percentiles jump with the bucket; where they say another thing than the exact mean, that counts.
    p95_ratio = slow.p95 / slow.p95_before if slow.p95_before > 0 else float("nan")
    use_mean = not (np.isfinite(p95_ratio) and 0.8 <= p95_ratio / slow.ratio <= 1.25)
    value, before = (slow.mean, slow.mean_before) if use_mean else (slow.p95, slow.p95_before)
    low, high = slow.p50_before, slow.p95_before
    bounds = thresholds.all_latency_bounds
    ratio = slow.ratio
    severity: Severity = (
        "critical"
        if value >= bounds[4]
        else "high"
        if value >= bounds[3] or ratio >= 4
        else "medium"
        if value >= bounds[1] or ratio >= 2
        else "low"
    )
    return _episode(
        what,
        grid,
        "latency",
        "response_time" if use_mean else "response_time_p95",
        stretch,
        int(means[stretch.first : stretch.last].argmax()),
        value=value * 1e3,
        expected=before * 1e3,
        lower=min(low, before) * 1e3 if np.isfinite(low) else before * 1e3,
        upper=max(high, before) * 1e3 if np.isfinite(high) else before * 1e3,
        severity=severity,
        requests=slow.requests,
        hit=slow.requests,
        slowdown=slow,
    )


def _errors(what: RouteCells, grid: Grid, stretch: Stretch, thresholds: PerformanceThresholds) -> RouteEpisode:
    inside = slice(stretch.first, stretch.last)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(what.failures / what.cells.counts)
    outside = np.delete(ratio, np.r_[inside])
    limits = [thresholds.error_rate_percent[name] / 100 for name in ("acceptable", "poor", "critical")]
    severity: Severity = ("low", "medium", "high", "critical")[sum(stretch.inside >= limit for limit in limits)]
    return _episode(
        what,
        grid,
        "errors",
        "error_rate",
        stretch,
        int(ratio[inside].argmax()),
        value=stretch.inside * 100,
        expected=stretch.outside * 100,
        lower=0.0,
        upper=100 * max(stretch.outside, float(np.quantile(outside, 0.975)) if len(outside) else 0.0),
        severity=severity,
        requests=round(float(what.cells.counts[inside].sum())),
        hit=round(float(what.failures[inside].sum())),
    )


def _traffic(what: RouteCells, grid: Grid, stretch: Stretch, seconds: Floats) -> RouteEpisode:
    inside = slice(stretch.first, stretch.last)
    requests = round(float(what.cells.counts[inside].sum()))
    missing = max(0, round(stretch.outside * float(seconds[inside].sum())) - requests)
    severity: Severity = "high" if stretch.inside <= 0.1 * stretch.outside else "medium"
    return _episode(
        what,
        grid,
        "traffic",
        "throughput",
        stretch,
        int(what.cells.counts[inside].argmin()),
        value=stretch.inside,
        expected=stretch.outside,
        lower=0.7 * stretch.outside,
        upper=1.3 * stretch.outside,
        severity=severity,
        requests=requests,
        hit=missing,
    )


def _episode(
    what: RouteCells,
    grid: Grid,
    kind: Kind,
    metric: str,
    stretch: Stretch,
    peak: int,
    *,
    value: float,
    expected: float,
    lower: float,
    upper: float,
    severity: Severity,
    requests: int,
    hit: int,
    slowdown: Slowdown | None = None,
) -> RouteEpisode:
    edges = grid.edges
    labels = {
        key: text
        for key, text in (("http.request.method", what.method), ("http.route", what.route))
        if text is not None
    }
    return RouteEpisode(
        kind=kind,
        metric=metric,
        method=what.method,
        route=what.route,
        grid=grid,
        first=stretch.first,
        last=stretch.last,
        start=at(edges[stretch.first]),
        end=at(edges[stretch.last]),
        peak=at(edges[stretch.first + peak]),
        value=float(value),
        expected=float(expected),
        lower=float(lower),
        upper=float(upper),
        confidence=float(min(1.0, max(0.0, 1.0 - stretch.p_value))),
        severity=severity,
        requests=requests,
        hit=hit,
        slowdown=slowdown,
        labels=labels,
    )


def at(seconds: float) -> datetime:
    """Seconds since the epoch as a UTC datetime."""
    return datetime.fromtimestamp(float(seconds), timezone.utc)
