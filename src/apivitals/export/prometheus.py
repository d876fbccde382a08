"""The text of a Snapshot that Prometheus reads: the classic exposition format 0.0.4, or OpenMetrics 1.0.

Both have the same series with the same labels, so that who scrapes may change the format; `families`, `naming`
and `openmetrics` say how things are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from threading import Lock
from time import sleep

from apivitals.export import openmetrics as om
from apivitals.export.families import TARGET_INFO, Family, families
from apivitals.export.naming import border, braces, escape_help, label_text, metric_name, number
from apivitals.export.snapshot import Attributes, ExponentialPoint, HistogramPoint, Snapshot
from apivitals.exposition import CLASSIC as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "PrometheusRenderer", "metric_name"]

#: A series by name, attributes, and whether it has buckets.
SeriesKey = tuple[str, Attributes, bool]
#: The labels of a series, and what stands before its numbers: a value's one line, or a histogram's three kinds.
SeriesText = tuple[str, ...]

_TARGET_HEADER = f"# HELP {TARGET_INFO} Attributes of the service that emits these metrics.\n# TYPE {TARGET_INFO} gauge"
#: Series that are rendered at a time; their text is small enough that the allocator keeps its memory at hand.
_TURN = 32
#: After so many series, less than half a millisecond, the interpreter is left to other threads.
_PAUSE_AFTER = 96
#: Seconds; long enough that a thread which waits for the interpreter gets it.
_PAUSE = 5e-5


class PrometheusRenderer:
    """Renders snapshots; keeps the label text of the series it has seen.

    A scrape formats numbers and nothing else: what stands around them is kept from the scrape before. The memory
    is bounded by the number of live series.
    """

    def __init__(self) -> None:
        self._templates: dict[SeriesKey, SeriesText] = {}
        self._lock = Lock()

    def render(self, snapshot: Snapshot, *, openmetrics: bool = False) -> str:
        """The whole exposition, ending with a newline; metrics without points are left out."""
        return "".join(chain.from_iterable(self._turns(snapshot, openmetrics)))

    def pieces(self, snapshot: Snapshot, *, openmetrics: bool = False) -> Iterator[str]:
        """The same in pieces of about a hundred kilobytes, so that nobody needs to hold all of a large one."""
        for turn in self._turns(snapshot, openmetrics):
            yield "".join(turn)

    def _turns(self, snapshot: Snapshot, openmetrics: bool) -> Iterator[list[str]]:
        """The text of some series at a time, in parts that are good until the next are taken.

        It gives way to other threads now and then, so that an event loop goes on while this runs in a thread.
        """
        with self._lock:
            used: dict[SeriesKey, SeriesText] = {}
            parts: list[str] = []
            if snapshot.resource:
                head = om.TARGET_HEADER if openmetrics else _TARGET_HEADER
                parts.append(f"{head}\n{TARGET_INFO}{braces(label_text(snapshot.resource))} 1\n")
            done = 0
            for family in om.unambiguous(families(snapshot)) if openmetrics else families(snapshot):
                # A line of a series begins with the end of the line before, and so the last one lacks its own.
                parts.append(om.header(family) if openmetrics else _header(family))
                for _ in self._series(family, openmetrics, used, parts):
                    done += 1
                    if done % _TURN == 0:
                        yield parts
                        parts.clear()
                    if done % _PAUSE_AFTER == 0:
                        sleep(_PAUSE)
                parts.append("\n")
            yield [*parts, om.EOF] if openmetrics else parts
            self._templates = used

    def _series(
        self, family: Family, openmetrics: bool, used: dict[SeriesKey, SeriesText], parts: list[str]
    ) -> Iterator[None]:
        """Adds the lines of every series of a family, and yields after each series."""
        name = family.name
        seen: set[str] = set()
        bounds: tuple[float, ...] | None = None
        borders: list[str] = []
        for extra, metric in family.members:
            for point in metric.points:
                shown = _explicit(point) if isinstance(point, ExponentialPoint) else point
                distribution = isinstance(shown, HistogramPoint)
                key = (name, point.attributes + extra, distribution)
                text = used[key] = self._templates.get(key) or _series_text(*key)
                # Attributes that differ can give the same labels; a series said twice would spoil the scrape.
                if text[0] in seen:
                    continue
                seen.add(text[0])
                if isinstance(shown, HistogramPoint):
                    if shown.bounds != bounds:
                        bounds = shown.bounds
                        borders = [f'le="{border(bound)}"}} ' for bound in (*bounds, math.inf)]
                    parts.extend(_histogram(shown, text, borders, openmetrics))
                elif openmetrics and family.kind == "counter":
                    # A counter that fell below zero, or is no number, is none.
                    if shown.value >= 0:
                        mark = om.counter_exemplar(shown.exemplars) if shown.exemplars else ""
                        parts += (text[1], number(shown.value), mark)
                else:
                    parts += (text[1], number(shown.value))
                yield


def _header(family: Family) -> str:
    return f"# HELP {family.name} {escape_help(family.help)}\n# TYPE {family.name} {family.kind}"


def _series_text(name: str, attributes: Attributes, distribution: bool) -> SeriesText:
    if not distribution:
        labels = label_text(attributes)
        return (labels, f"\n{name}{braces(labels)} ")
    labels = label_text(attributes, reserved="le")
    before = f"{labels}," if labels else ""
    own = braces(labels)
    return (labels, f"\n{name}_bucket{{{before}", f"\n{name}_sum{own} ", f"\n{name}_count{own} ")


def _histogram(point: HistogramPoint, text: SeriesText, borders: Sequence[str], openmetrics: bool) -> list[str]:
    """The parts of a histogram's lines; OpenMetrics' with exemplars."""
    _, bucket, total, count = text
    cumulative = [f"{each}" for each in accumulate(point.counts)]
    if openmetrics and point.exemplars:
        for place, mark in om.bucket_exemplars(point.exemplars, point.bounds).items():
            cumulative[place] += mark
    # A slice takes an item a bucket in one go; a loop over the buckets is what a scrape would spend its time in.
    parts = [bucket] * (3 * len(borders))
    parts[1::3] = borders
    parts[2::3] = cumulative
    # With negative values the sum is no counter any more; OpenMetrics then wants neither it nor the count.
    if not openmetrics or (point.sum >= 0 and not (point.bounds and point.bounds[0] < 0)):
        parts += (total, number(point.sum), count, f"{point.count}")
    return parts


def _explicit(point: ExponentialPoint) -> HistogramPoint:
    """An exponential histogram with its bucket borders written out; neither format has another form."""
    pairs = [(-_border(point.scale, point.negative_offset + i), count) for i, count in enumerate(point.negative)]
    pairs = [*reversed(pairs), (0.0, point.zero_count)]
    pairs += [(_border(point.scale, point.positive_offset + i + 1), count) for i, count in enumerate(point.positive)]
    # At either end of what a double can hold, the borders of several buckets are one number.
    buckets: dict[float, int] = {}
    for bound, count in pairs:
        buckets[bound] = buckets.get(bound, 0) + count
    return HistogramPoint(
        point.attributes,
        point.start_ns,
        point.time_ns,
        point.count,
        point.sum,
        tuple(buckets),
        (*buckets.values(), 0),
        exemplars=point.exemplars,
    )


def _border(scale: int, index: int) -> float:
    """Lower border of an exponential bucket, kept below the largest double."""
    return math.pow(2.0, min(index * math.pow(2.0, -scale), 1023.0))
