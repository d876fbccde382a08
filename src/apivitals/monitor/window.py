"""The live window: snapshots of the last hour, and what happened between two of them.

Every few seconds of the last five minutes and every minute before that is kept. What did not change of a
histogram is shared between snapshots, so that an idle route costs next to nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock

from apivitals.export.snapshot import Attributes, HistogramPoint, Metric, NumberPoint, Point, Scope, Snapshot

_FINE_SECONDS = 300.0
_COARSE_STEP = 60.0
_LENGTH_SECONDS = 3600.0

PointKey = tuple[str, Attributes, int]


class LiveWindow:
    """Snapshots of the last hour, thinned with age.

    Args:
        take: gives the present snapshot.
    """

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._kept: deque[Snapshot] = deque()
        self._points: dict[PointKey, Point] = {}
        self._lock = Lock()

    def sample(self) -> Snapshot:
        """Take a snapshot and keep it."""
        snapshot = self._take()
        with self._lock:
            snapshot = self._shared(snapshot)
            self._kept.append(snapshot)
            self._thin(snapshot.time_ns / 1e9)
        return snapshot

    def snapshots(self) -> list[Snapshot]:
        """What is kept, oldest first."""
        with self._lock:
            return list(self._kept)

    def since(self, seconds: float) -> Delta:
        """What happened in the last `seconds`, or since the process started if that is less."""
        now = self._take()
        with self._lock:
            times = [snapshot.time_ns for snapshot in self._kept]
            place = bisect_right(times, now.time_ns - int(seconds * 1e9))
            # Without a snapshot that old, the counters' own start is the beginning.
            earlier = self._kept[place - 1] if place else None
        return Delta(earlier, now)

    def _shared(self, snapshot: Snapshot) -> Snapshot:
        points: dict[PointKey, Point] = {}
        scopes = tuple(replace(scope, metrics=tuple(self._reuse(scope, points))) for scope in snapshot.scopes)
        self._points = points
        return replace(snapshot, scopes=scopes)

    def _reuse(self, scope: Scope, points: dict[PointKey, Point]) -> Iterator[Metric]:
        for metric in scope.metrics:
            kept = []
            for point in metric.points:
                key = (f"{scope.name}/{metric.name}", point.attributes, point.start_ns)
                old = self._points.get(key)
                if isinstance(old, HistogramPoint) and isinstance(point, HistogramPoint) and old.count == point.count:
                    point = replace(old, time_ns=point.time_ns)
                points[key] = point
                kept.append(point)
            yield replace(metric, points=tuple(kept))

    def _thin(self, now: float) -> None:
        while self._kept and now - self._kept[0].time_ns / 1e9 > _LENGTH_SECONDS:
            self._kept.popleft()
        thinned: deque[Snapshot] = deque()
        for snapshot in self._kept:
            age = now - snapshot.time_ns / 1e9
            gap = (snapshot.time_ns - thinned[-1].time_ns) / 1e9 if thinned else _COARSE_STEP
            if age <= _FINE_SECONDS or gap >= _COARSE_STEP:
                thinned.append(snapshot)
        self._kept = thinned


class Delta:
    """What happened between two snapshots of one process; from its start when there is no earlier one."""

    def __init__(self, earlier: Snapshot | None, now: Snapshot) -> None:
        self.now = now
        self._before: dict[PointKey, Point] = {}
        if earlier is not None:
            for scope in earlier.scopes:
                for metric in scope.metrics:
                    for point in metric.points:
                        self._before[(f"{scope.name}/{metric.name}", point.attributes, point.start_ns)] = point
        starts = [point.start_ns for metric in now.metrics() for point in metric.points if point.start_ns]
        began = earlier.time_ns if earlier is not None else min(starts, default=now.time_ns)
        # As if a second had passed at the least: five requests in three milliseconds are no rate of 1,667.
        self.seconds = max((now.time_ns - began) / 1e9, 1.0)

    def histograms(self, name: str) -> list[HistogramPoint]:
        """The histogram points of a metric with what was counted in between; those with nothing are left out."""
        found = []
        for scope, metric in self._metrics(name):
            for point in metric.points:
                if isinstance(point, HistogramPoint):
                    before = self._before.get((f"{scope.name}/{name}", point.attributes, point.start_ns))
                    change = _subtract(point, before if isinstance(before, HistogramPoint) else None)
                    if change.count:
                        found.append(change)
        return found

    def values(self, name: str) -> list[NumberPoint]:
        """The present points of a gauge or an up-down counter."""
        return [point for _, metric in self._metrics(name) for point in metric.points if isinstance(point, NumberPoint)]

    def _metrics(self, name: str) -> Iterator[tuple[Scope, Metric]]:
        for scope in self.now.scopes:
            for metric in scope.metrics:
                if metric.name == name:
                    yield scope, metric


def _subtract(point: HistogramPoint, before: HistogramPoint | None) -> HistogramPoint:
    if before is None or before.bounds != point.bounds:
        return point
    counts = tuple(new - old for new, old in zip(point.counts, before.counts, strict=True))
    smallest, largest = _extremes(point, before, counts)
    return replace(
        point,
        count=point.count - before.count,
        sum=point.sum - before.sum,
        counts=counts,
        min=smallest,
        max=largest,
    )


def _extremes(
    point: HistogramPoint, before: HistogramPoint, counts: Sequence[int]
) -> tuple[float | None, float | None]:
    """Smallest and largest value in between: known where one is a new record, else that of the outermost bucket."""
    if point.min is None or point.max is None or before.min is None or before.max is None:
        return None, None
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return None, None
    lower = point.bounds[used[0] - 1] if used[0] else point.min
    upper = point.bounds[used[-1]] if used[-1] < len(point.bounds) else point.max
    smallest = point.min if point.min < before.min else max(lower, point.min)
    return smallest, point.max if point.max > before.max else min(upper, point.max)


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float, largest: float | None = None) -> float:
    """The value below which `share` (0 to 1) of a histogram lies, interpolated inside its bucket; 0 when empty.

    Args:
        bounds: upper bounds of all buckets but the last.
        counts: observations per bucket, one more than bounds.
        share: 0 to 1.
        largest: the largest value seen, where it is known: nothing lies above it.
    """
    total = sum(counts)
    if not total:
        return 0.0
    rank = share * total
    seen = 0
    for place, count in enumerate(counts):
        if count and seen + count >= rank:
            lower = bounds[place - 1] if place else 0.0
            upper = bounds[place] if place < len(bounds) else max(largest or 0.0, lower)
            if largest:
                upper = min(upper, max(largest, lower))
            return lower + (upper - lower) * (rank - seen) / count
        seen += count
    return bounds[-1] if bounds else 0.0
