"""OTLP JSON metrics to columns: the walk over requests, points and their many ways to say a number.

64-bit integers are text, zero and false fields are left out, doubles may be "NaN", flag 1 means that there is
no value, enums may be numbers or names, and unknown keys are nobody's business.
Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from apivitals.analytics.buckets import Bounds, ExponentialBuckets, explicit
from apivitals.analytics.differencing import difference
from apivitals.analytics.grid import Floats, choose_step
from apivitals.analytics.telemetry import (
    Attributes,
    CounterFlow,
    Exemplar,
    GaugeFlow,
    HistogramFlow,
    Telemetry,
    lasting_interval,
    typical_interval,
)

_DELTA = (1, "1", "AGGREGATION_TEMPORALITY_DELTA")
_KINDS = ("histogram", "sum", "gauge", "exponentialHistogram")
_MAX_EXEMPLARS = 2_000
#: Points this long before a window are needed one by one: its first totals are differenced from them.
_LEAD = 3_600.0
#: Of the history before that, so many exports are kept for each cell that a grid up to them would have.
_KEPT_PER_CELL = 4
#: The year 2100: a clock beyond it is broken, and would stretch every window.
_LATEST = 4_102_444_800.0


class _Column:
    """Points of one stream as they are read."""

    __slots__ = (
        "bounds",
        "delta",
        "exemplars",
        "exponential",
        "kind",
        "monotonic",
        "starts",
        "times",
        "unit",
        "values",
    )

    def __init__(self, kind: str, unit: str, delta: bool, monotonic: bool, bounds: Bounds) -> None:
        self.kind = kind
        self.unit = unit
        self.delta = delta
        self.monotonic = monotonic
        self.bounds = bounds
        self.times = array("d")
        self.starts = array("d")
        #: The value, or the sum followed by the buckets, one row after the other.
        self.values = array("d")
        self.exponential: list[ExponentialBuckets] = []
        self.exemplars: deque[Exemplar] = deque(maxlen=_MAX_EXEMPLARS)


_Key = tuple[str, str, str, Attributes, str, str, Bounds]  # service, instance, metric, attributes, scope, kind, bounds


class Decoder:
    """Collects points of any number of requests; `telemetry` gives what they amount to.

    Args:
        window: start and end of what interests, seconds since the epoch. What came long before it is history: of
            its running totals and readings only as many are kept as a grid can show. None: everything is kept.
    """

    def __init__(self, window: tuple[float, float] | None = None) -> None:
        self._window = window
        self._kept: dict[tuple[str, str], float] = {}
        self._columns: dict[_Key, _Column] = {}
        self._exports: dict[tuple[str, str], set[float]] = {}
        self._points: Counter[str] = Counter()
        self._recent: Counter[str] = Counter()
        self._bad = 0
        self._example = ""

    def add(self, request: Mapping[str, Any]) -> None:
        """Take in one request; a part of it that is malformed is counted and left out."""
        for resource in _dicts(request.get("resourceMetrics")):
            described = dict(_attributes(_inside(resource.get("resource")).get("attributes")))
            service = described.get("service.name", "")
            instance = described.get("service.instance.id") or ":".join(
                described.get(key, "") for key in ("host.name", "process.pid")
            )
            newest = self._passed_over(service, instance, resource)
            if newest:
                self._exports.setdefault((service, instance), set()).add(newest)
                continue
            for scope in _dicts(resource.get("scopeMetrics")):
                name = str(_inside(scope.get("scope")).get("name", ""))
                for metric in _dicts(scope.get("metrics")):
                    newest = max(newest, self._metric(service, instance, name, metric))
            if newest:
                self._exports.setdefault((service, instance), set()).add(newest)

    def _passed_over(self, service: str, instance: str, resource: dict[str, Any]) -> float:
        """The time of an export of the history that adds nothing to those that were kept, else 0."""
        if self._window is None:
            return 0.0
        start, end = self._window
        time = _cumulative_time(resource)
        if not 0 < time < start - _LEAD:
            return 0.0
        gap = choose_step(1.0, end - time) / _KEPT_PER_CELL
        before = self._kept.get((service, instance))
        # An export may be split into several requests, moments apart; they stay together.
        if before is not None and 1.0 <= time - before < gap:
            return time
        self._kept[service, instance] = time
        return 0.0

    def _metric(self, service: str, instance: str, scope: str, metric: dict[str, Any]) -> float:
        """Take in one metric; returns the time of its newest point."""
        name = metric.get("name")
        kind = next((kind for kind in _KINDS if isinstance(metric.get(kind), dict)), None)
        if kind is None or not isinstance(name, str) or not name:
            return 0.0
        data = metric[kind]
        delta = data.get("aggregationTemporality") in _DELTA
        unit = str(metric.get("unit", ""))
        monotonic = bool(data.get("isMonotonic"))
        newest = 0.0
        for point in _dicts(data.get("dataPoints")):
            try:
                flags = point.get("flags")
                if flags and int(flags) & 1:
                    continue
                time = _seconds(point["timeUnixNano"])
                start = _seconds(point.get("startTimeUnixNano", 0))
                row, bounds, exponential = _row(kind, point)
            except (KeyError, TypeError, ValueError, OverflowError):
                self._bad += 1
                self._example = self._example or name
                continue
            if row is None:
                continue
            if not 0 < time < _LATEST:
                self._bad += 1
                self._example = self._example or name
                continue
            key = (service, instance, name, _attributes(point.get("attributes")), scope, kind, bounds)
            column = self._columns.get(key)
            if column is None:
                column = self._columns[key] = _Column(kind, unit, delta, monotonic, bounds)
            column.times.append(time)
            column.starts.append(start)
            column.values.extend(row)
            if exponential is not None:
                column.exponential.append(exponential)
            if point.get("exemplars"):
                column.exemplars.extend(_exemplars(point["exemplars"]))
            self._points[service] += 1
            if self._window is not None and time >= self._window[0]:
                self._recent[service] += 1
            newest = max(newest, time)
        return newest

    def telemetry(self, *, service: str | None = None, start: float | None = None) -> Telemetry:
        """What was collected, for one service; see `read_telemetry`."""
        notes = []
        if self._bad:
            some = "1 data point was" if self._bad == 1 else f"{self._bad} data points were"
            notes.append(f"{some} malformed and left out, the first of {self._example}")
        # A service that is only in the history is not what the window is about.
        points = self._recent or self._points
        chosen = service if service is not None else next((name for name, _ in points.most_common(1)), "")
        others = sorted(name or "(no service.name)" for name in points if name != chosen)
        if others and service is None:
            notes.append(f"the data hold several services; this is about {chosen!r}, and not about {', '.join(others)}")
        exports = {
            instance: np.array(sorted(times)) for (name, instance), times in self._exports.items() if name == chosen
        }
        columns = {key: column for key, column in self._columns.items() if key[0] == chosen}
        if not columns:
            return Telemetry(service=chosen, notes=tuple(notes))
        interval = typical_interval(exports.values())
        exports = {instance: _collapse(times, 0.2 * interval) for instance, times in exports.items()}
        earliest = min(times[0] for times in exports.values())
        lasting = lasting_interval([(t[:-1], t[1:]) for t in exports.values()], 0.0, math.inf) or interval
        horizon = (min(earliest, start) if start is not None else earliest) - 2.5 * max(interval, lasting)
        histograms, counters, gauges = [], [], []
        first: dict[str, float] = {}
        for (_, instance, name, attributes, _, _, bounds), column in columns.items():
            times, starts = np.array(column.times), np.array(column.starts)
            common = (name, column.unit, attributes, instance)
            if column.kind == "gauge" or (column.kind == "sum" and not column.monotonic):
                gauges.append(_gauge(common, column, times, starts))
                continue
            rows = np.array(column.values).reshape(len(times), -1)
            if column.exponential:
                bounds, counts = explicit(column.exponential)
                rows = np.concatenate([rows[:, :1], counts], axis=1)
            earlier = exports[instance][exports[instance] < times.min() - 0.2 * interval]
            previous = float(earlier[-1]) if len(earlier) else None
            got = difference(
                times,
                starts,
                rows,
                delta=column.delta,
                previous=previous,
                horizon=horizon,
                may_fall=0 if column.kind == "sum" else 1,
            )
            if column.kind == "sum":
                counters.append(CounterFlow(*common, got.begins, got.ends, got.amounts[:, 0]))
            else:
                exemplars = tuple(column.exemplars)
                histograms.append(
                    HistogramFlow(
                        *common, got.begins, got.ends, got.amounts[:, 0], got.amounts[:, 1:], bounds, exemplars
                    )
                )
            if len(got.begins):
                first[instance] = min(first.get(instance, math.inf), float(got.begins[0]))
        # Where old exports were thinned out, the gap that most time lies in is longer than the most frequent one.
        longest = max(10 * interval, 3 * lasting if lasting < 20 * interval else 0.0)
        covers = {instance: _cover(times, first.get(instance), longest) for instance, times in exports.items()}
        begins = [float(cover[0][0]) for cover in covers.values() if len(cover[0])]
        return Telemetry(
            service=chosen,
            histograms=tuple(histograms),
            counters=tuple(counters),
            gauges=tuple(gauges),
            exports=covers,
            interval=interval,
            start=min(begins, default=float(earliest)),
            end=float(max(times[-1] for times in exports.values())),
            notes=tuple(notes),
        )


def _gauge(common: tuple[str, str, Attributes, str], column: _Column, times: Floats, starts: Floats) -> GaugeFlow:
    order = np.lexsort((starts, times))
    values = np.array(column.values)[order]
    if column.kind == "sum" and column.delta:
        values = np.cumsum(values)
    return GaugeFlow(*common, times[order], values, column.kind == "sum")


def _collapse(times: Floats, gap: float) -> Floats:
    """One time per export: a request that was split gives several, moments apart."""
    last: Floats = times[np.append(np.diff(times) > gap, True)]
    return last


def _cover(times: Floats, first: float | None, longest: float) -> tuple[Floats, Floats]:
    """The intervals that a process's exports cover: from each export to the next, if that is at most `longest` off."""
    begins = np.concatenate([[first if first is not None and first < times[0] else times[0]], times[:-1]])
    # What was never exported is unknown, and not a time without requests.
    silent = times - begins > longest
    silent[0] = False
    return begins[~silent], times[~silent]


def _row(kind: str, point: dict[str, Any]) -> tuple[list[float] | None, Bounds, ExponentialBuckets | None]:
    """A point's numbers: (value) of a sum or gauge, (sum, bucket, …) of a histogram; None when it has no value."""
    if kind in ("sum", "gauge"):
        raw = next((point[key] for key in ("asDouble", "asInt") if point.get(key) is not None), 0.0)
        value = float(raw)
        return ([value] if math.isfinite(value) else None), (), None
    total = float(point.get("sum", 0.0))
    total = total if math.isfinite(total) else 0.0
    count = float(point.get("count", 0))
    if kind == "exponentialHistogram":
        positive = _inside(point.get("positive"))
        negative = _inside(point.get("negative"))
        zeros = int(point.get("zeroCount", 0)) + sum(map(int, negative.get("bucketCounts", ())))
        counts = tuple(map(int, positive.get("bucketCounts", ())))
        exponential = ExponentialBuckets(int(point.get("scale", 0)), zeros, int(positive.get("offset", 0)), counts)
        return [total], (), exponential
    bounds = tuple(map(float, point.get("explicitBounds") or ()))
    buckets = list(map(float, point.get("bucketCounts") or ()))
    if not buckets and not count:
        return [total, *([0.0] * (len(bounds) + 1))], bounds, None
    if len(buckets) != len(bounds) + 1 or any(b <= a for a, b in pairwise(bounds)):
        return [total, count], (), None
    return [total, *buckets], bounds, None


def _cumulative_time(resource: dict[str, Any]) -> float:
    """Time of a resource's first data point; 0 where it has none or holds increments, of which none may be lost."""
    time = 0.0
    for scope in _dicts(resource.get("scopeMetrics")):
        for metric in _dicts(scope.get("metrics")):
            for kind in _KINDS:
                data = metric.get(kind)
                if not isinstance(data, dict):
                    continue
                if data.get("aggregationTemporality") in _DELTA:
                    return 0.0
                point = next(_dicts(data.get("dataPoints")), None) if not time else None
                try:
                    time = _seconds(point["timeUnixNano"]) if point is not None else time
                except (KeyError, TypeError, ValueError, OverflowError):
                    return 0.0
    return time


def _seconds(nanos: Any) -> float:
    return int(nanos) / 1e9


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _inside(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _attributes(pairs: Any) -> Attributes:
    found = [(str(pair.get("key", "")), _text(pair.get("value"))) for pair in _dicts(pairs)]
    found.sort()
    return tuple(found)


def _text(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    inner = next(iter(value.values()))
    if isinstance(inner, bool):
        return "true" if inner else "false"
    return inner if isinstance(inner, str) else str(inner)


def _exemplars(items: Any) -> Iterator[Exemplar]:
    for item in _dicts(items):
        try:
            value = float(item.get("asDouble", item.get("asInt", 0.0)))
            if item.get("traceId"):
                yield Exemplar(_seconds(item.get("timeUnixNano", 0)), value, str(item["traceId"]))
        except (TypeError, ValueError):
            continue
