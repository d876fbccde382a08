"""Delta temporality: what was counted since a snapshot that has arrived where it was to go.

Counters and histograms become deltas; up-down counters and gauges stay what they are. Under `lowmemory` the
specification leaves observable counters cumulative. A Snapshot does not tell them from others, and the
baseline is one snapshot in either case, so they are made deltas as well: a backend that takes deltas of the
other counters takes these too.
Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#temporality
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from apivitals.export.snapshot import (
    Attributes,
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    NumberPoint,
    Point,
    Scope,
    Snapshot,
)

_SLICE = 64
_CUMULATIVE_KINDS = ("gauge", "updowncounter")

Identity = tuple[Any, ...]


class Baseline:
    """The last snapshot that arrived, as points by identity. Before the first one everything counts as new."""

    def __init__(self) -> None:
        self._points: dict[Identity, Point] = {}
        self._time_ns = 0

    def since(self, snapshot: Snapshot, pause: Callable[[], object] = lambda: None) -> Snapshot:
        """What a snapshot has on top of the baseline, without metrics to which nothing was added.

        The baseline stays what it was, so increments that do not arrive are in the next delta. `pause` is called
        between slices of 64 points, for a thread that lets others run meanwhile.
        """
        scopes = []
        for scope in snapshot.scopes:
            metrics = [self._metric(scope, metric, pause) for metric in scope.metrics]
            said = tuple(metric for metric in metrics if metric.points)
            if said:
                scopes.append(replace(scope, metrics=said))
        return replace(snapshot, scopes=tuple(scopes))

    def advance(self, snapshot: Snapshot) -> None:
        """Make a snapshot that has arrived, or that nobody will take, the baseline."""
        self._time_ns = snapshot.time_ns
        self._points = {
            _identity(scope, metric, point.attributes): point
            for scope in snapshot.scopes
            for metric in scope.metrics
            if _cumulates(metric)
            for point in metric.points
        }

    def _metric(self, scope: Scope, metric: Metric, pause: Callable[[], object]) -> Metric:
        if not _cumulates(metric):
            return metric
        points = []
        for place, point in enumerate(metric.points, 1):
            before = self._points.get(_identity(scope, metric, point.attributes))
            added = difference(point, before, self._time_ns)
            if added is not None:
                points.append(added)
            if place % _SLICE == 0:
                pause()
        return replace(metric, points=tuple(points), delta=True)


def _cumulates(metric: Metric) -> bool:
    return metric.kind not in _CUMULATIVE_KINDS and not metric.delta


def _identity(scope: Scope, metric: Metric, attributes: Attributes) -> Identity:
    return (
        (scope.name, scope.version, scope.schema_url, scope.attributes),
        (metric.name, metric.kind, metric.unit),
        attributes,
    )


def difference(point: Point, before: Point | None, since_ns: int) -> Point | None:
    """What a cumulative point has on top of an earlier one of its own; None when that is nothing.

    A point that was reset in between (it starts later, or something in it has fallen) counts in full.

    Args:
        point: the point now.
        before: the same point in the baseline, None when it was not there.
        since_ns: the time of the baseline, from which a new point counts at the earliest.
    """
    if before is None or before.start_ns < point.start_ns:
        return replace(point, start_ns=max(point.start_ns, since_ns)) if _counted(point) else None
    if _counted(point) == _counted(before):
        return None
    found: Point | None = None
    if isinstance(point, NumberPoint) and isinstance(before, NumberPoint):
        found = _of_numbers(point, before)
    elif isinstance(point, HistogramPoint) and isinstance(before, HistogramPoint):
        found = _of_histograms(point, before)
    elif isinstance(point, ExponentialPoint) and isinstance(before, ExponentialPoint):
        found = _of_exponentials(point, before)
    if found is None:
        return replace(point, start_ns=max(point.start_ns, before.time_ns)) if _counted(point) else None
    return replace(found, start_ns=before.time_ns, exemplars=_newer(found.exemplars, before.time_ns))


def _counted(point: Point) -> int | float:
    return point.value if isinstance(point, NumberPoint) else point.count


def _newer(exemplars: tuple[Exemplar, ...], than_ns: int) -> tuple[Exemplar, ...]:
    return tuple(exemplar for exemplar in exemplars if exemplar.time_ns > than_ns)


def _of_numbers(point: NumberPoint, before: NumberPoint) -> NumberPoint | None:
    if point.value < before.value:
        return None
    return replace(point, value=point.value - before.value)


def _of_histograms(point: HistogramPoint, before: HistogramPoint) -> HistogramPoint | None:
    counts = _subtracted(point.counts, before.counts)
    if point.bounds != before.bounds or counts is None or point.count < before.count:
        return None
    return replace(
        point,
        count=point.count - before.count,
        sum=point.sum - before.sum,
        counts=counts,
        # The extremes since the beginning say nothing of the interval.
        min=None,
        max=None,
    )


def _of_exponentials(point: ExponentialPoint, before: ExponentialPoint) -> ExponentialPoint | None:
    # A histogram halves its resolution when its range outgrows it, and never doubles it.
    shift = before.scale - point.scale
    if shift < 0 or point.count < before.count or point.zero_count < before.zero_count:
        return None
    sides = []
    for offset, counts, old_offset, old_counts in (
        (point.positive_offset, point.positive, before.positive_offset, before.positive),
        (point.negative_offset, point.negative, before.negative_offset, before.negative),
    ):
        side = _of_buckets(offset, counts, *downscaled(old_offset, old_counts, shift))
        if side is None:
            return None
        sides.append(side)
    (positive_offset, positive), (negative_offset, negative) = sides
    return replace(
        point,
        count=point.count - before.count,
        sum=point.sum - before.sum,
        zero_count=point.zero_count - before.zero_count,
        positive_offset=positive_offset,
        positive=positive,
        negative_offset=negative_offset,
        negative=negative,
        min=None,
        max=None,
    )


def downscaled(offset: int, counts: Sequence[int], shift: int) -> tuple[int, tuple[int, ...]]:
    """Buckets of an exponential histogram with the scale lowered by `shift`: 2^shift of them become one."""
    if not counts or not shift:
        return offset, tuple(counts)
    # Rounding towards minus infinity is what the bounds of the buckets ask for.
    first = offset >> shift
    merged = [0] * (((offset + len(counts) - 1) >> shift) - first + 1)
    for place, count in enumerate(counts):
        merged[((offset + place) >> shift) - first] += count
    return first, tuple(merged)


def _of_buckets(
    offset: int, counts: Sequence[int], old_offset: int, old_counts: Sequence[int]
) -> tuple[int, tuple[int, ...]] | None:
    remaining = list(counts)
    for place, count in enumerate(old_counts, old_offset - offset):
        if not count:
            continue
        if not 0 <= place < len(remaining) or remaining[place] < count:
            return None
        remaining[place] -= count
    while remaining and not remaining[-1]:
        remaining.pop()
    leading = next((place for place, count in enumerate(remaining) if count), 0)
    return (offset + leading, tuple(remaining[leading:])) if remaining else (0, ())


def _subtracted(counts: Sequence[int], before: Sequence[int]) -> tuple[int, ...] | None:
    left = tuple(now - then for now, then in zip_longest(counts, before, fillvalue=0))
    return left if min(left, default=0) >= 0 else None
