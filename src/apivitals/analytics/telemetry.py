"""Decoded telemetry in columns: per metric, attributes and process, what accrued in which interval.

`read_telemetry` turns export requests into a `Telemetry`. Attribute values are text, whatever type they had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apivitals.analytics.buckets import Bounds
from apivitals.analytics.grid import Floats

Attributes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measured value with the trace it came from; `time` in seconds since the epoch."""

    time: float
    value: float
    trace_id: str


@dataclass(frozen=True, slots=True)
class Stream:
    """What all streams have: the metric, its unit, its attributes, and the process that it comes from."""

    metric: str
    unit: str
    attributes: Attributes
    instance: str

    def get(self, key: str) -> str | None:
        """One attribute, None when the stream does not carry it."""
        for name, value in self.attributes:
            if name == key:
                return value
        return None


@dataclass(frozen=True, slots=True)
class HistogramFlow(Stream):
    """Increments of a histogram: intervals, counts and sums of shape (n,), buckets of shape (n, len(bounds) + 1).

    A histogram that was sent without buckets has no bounds and one bucket, its count.
    """

    begins: Floats
    ends: Floats
    sums: Floats
    buckets: Floats
    bounds: Bounds
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, slots=True)
class CounterFlow(Stream):
    """Increments of a counter: intervals and amounts of shape (n,)."""

    begins: Floats
    ends: Floats
    amounts: Floats


@dataclass(frozen=True, slots=True)
class GaugeFlow(Stream):
    """Readings of a gauge or an up-down counter (`additive`: processes add up), times and values of shape (n,)."""

    times: Floats
    values: Floats
    additive: bool


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Everything that was read about one service.

    Attributes:
        exports: per process, the intervals that its exports cover, as begins and ends.
        interval: typical seconds between two exports of a process.
        start, end: first and last moment that data cover, seconds since the epoch; 0 when there are none.
        notes: what could not be used and why, a sentence each.
    """

    service: str = ""
    histograms: tuple[HistogramFlow, ...] = ()
    counters: tuple[CounterFlow, ...] = ()
    gauges: tuple[GaugeFlow, ...] = ()
    exports: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)
    interval: float = 15.0
    start: float = 0.0
    end: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing was read."""
        return not (self.histograms or self.counters or self.gauges)

    def metrics(self) -> frozenset[str]:
        """The names of the metrics that there are."""
        return frozenset(stream.metric for group in (self.histograms, self.counters, self.gauges) for stream in group)

    def histograms_of(self, metric: str) -> tuple[HistogramFlow, ...]:
        """The streams of one histogram."""
        return tuple(stream for stream in self.histograms if stream.metric == metric)


def read_telemetry(
    requests: Iterable[Mapping[str, Any]],
    *,
    service: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Telemetry:
    """Decode export requests and turn running totals into increments.

    Args:
        requests: ExportMetricsServiceRequests as decoded JSON, in any order.
        service: `service.name` to keep; None keeps the one with the most points and notes the others.
        start: where the window that interests begins (seconds since the epoch): a process that started later
            counts from zero. None: at the first data point.
        end: where it ends. With both given, what lies more than an hour before `start` is history: it is thinned
            out to what a grid can show, and does not decide which service is kept.
    """
    from apivitals.analytics.decoding import Decoder

    decoder = Decoder((start, end) if start is not None and end is not None else None)
    for request in requests:
        decoder.add(request)
    return decoder.telemetry(service=service, start=start)


def lasting_interval(exports: Iterable[tuple[Floats, Floats]], start: float, end: float) -> float | None:
    """The gap between exports that covers half of a window, in seconds; None where no export falls into it.

    A live window keeps fine snapshots of the last minutes and coarse ones before: its median gap is fine, and
    most of its time is coarse.
    """
    pairs = list(exports)
    begins = np.concatenate([np.maximum(begin, start) for begin, _ in pairs]) if pairs else np.zeros(0)
    ends = np.concatenate([np.minimum(stop, end) for _, stop in pairs]) if pairs else np.zeros(0)
    lengths = np.sort((ends - begins)[ends > begins])
    if not len(lengths):
        return None
    return float(lengths[np.searchsorted(np.cumsum(lengths), 0.5 * lengths.sum())])


def typical_interval(times: Iterable[Floats]) -> float:
    """Median of the gaps between the exports of each process, in seconds; 15 when there are no two exports."""
    gaps = [np.diff(series) for series in times if len(series) > 1]
    together = np.concatenate(gaps) if gaps else np.zeros(0)
    together = together[together > 0]
    return float(np.median(together)) if len(together) else 15.0
