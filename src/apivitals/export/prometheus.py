"""The text of a Snapshot that Prometheus reads: the classic exposition format 0.0.4, or OpenMetrics 1.0.

Both have the same series with the same labels, so that who scrapes may change the format; `families`, `naming`
and `openmetrics` say how things are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import Lock
from time import sleep

from apivitals.export import openmetrics as om
from apivitals.export.families import TARGET_INFO, Family, families
from apivitals.export.naming import border, braces, escape_help, label_text, metric_name, number
from apivitals.export.snapshot import Attributes, ExponentialPoint, HistogramPoint, NumberPoint, Snapshot
from apivitals.exposition import CLASSIC as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "PrometheusRenderer", "metric_name"]

#: A series by name, attributes, and whether it has buckets.
SeriesKey = tuple[str, Attributes, bool]
#: The labels of a series, and what stands before its numbers: a value's one line, or a histogram's three kinds.
SeriesText = tuple[str, ...]

_TARGET_HEADER = f"# HELP {TARGET_INFO} Attributes of the service that emits these metrics.\n# TYPE {TARGET_INFO} gauge"
#: After so many series the interpreter is left to other threads, about every 0.3 ms.
_SERIES_AT_ONCE = 100
#: Seconds; long enough that a thread which waits for the interpreter gets it. `sleep(0)` takes it right back.
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
        """The whole exposition, ending with a newline; metrics without points are left out.

        Gives way to other threads now and then, so that an event loop goes on while thousands of series are
        rendered in a thread.
        """
        with self._lock:
            used: dict[SeriesKey, SeriesText] = {}
            text = "".join(self._chunks(snapshot, openmetrics, used))
            self._templates = used
        return text

    def _chunks(self, snapshot: Snapshot, openmetrics: bool, used: dict[SeriesKey, SeriesText]) -> Iterator[str]:
        # Every line begins with the end of the one before.
        pieces: list[str] = []
        if snapshot.resource:
            head = om.TARGET_HEADER if openmetrics else _TARGET_HEADER
            pieces.append(f"{head}\n{TARGET_INFO}{braces(label_text(snapshot.resource))} 1\n")
        series = 0
        shown = om.unambiguous(families(snapshot)) if openmetrics else families(snapshot)
        for family in shown:
            pieces.append(om.header(family) if openmetrics else _header(family))
            for _ in self._series(family, openmetrics, used, pieces):
                series += 1
                if series % _SERIES_AT_ONCE == 0:
                    yield "".join(pieces)
                    pieces.clear()
                    sleep(_PAUSE)
            pieces.append("\n")
        yield "".join(pieces)
        if openmetrics:
            yield om.EOF

    def _series(
        self, family: Family, openmetrics: bool, used: dict[SeriesKey, SeriesText], pieces: list[str]
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
                    pieces.extend(_histogram(shown, text, borders, openmetrics))
                elif openmetrics and family.kind == "counter":
                    # A counter that fell below zero, or is no number, is none.
                    if shown.value >= 0:
                        mark = om.counter_exemplar(shown.exemplars) if shown.exemplars else ""
                        pieces += (text[1], number(shown.value), mark)
                else:
                    pieces += (text[1], number(shown.value))
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
    """The lines of a histogram, in pieces; OpenMetrics' with exemplars."""
    _, bucket, total, count = text
    cumulative = [f"{each}" for each in accumulate(point.counts)]
    if openmetrics and point.exemplars:
        for place, mark in om.bucket_exemplars(point.exemplars, point.bounds).items():
            cumulative[place] += mark
    # A slice takes an item a bucket in one go; a loop over the buckets is what a scrape would spend its time in.
    pieces = [bucket] * (3 * len(borders))
    pieces[1::3] = borders
    pieces[2::3] = cumulative
    # With negative values the sum is no counter any more; OpenMetrics then wants neither it nor the count.
    if not openmetrics or (point.sum >= 0 and not (point.bounds and point.bounds[0] < 0)):
        pieces += (total, number(point.sum), count, f"{point.count}")
    return pieces


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
