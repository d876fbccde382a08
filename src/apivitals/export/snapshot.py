"""A `Snapshot`: what one collection of all metrics yields, in the one shape that every exit takes.

Values are cumulative since `start_ns`. Attributes are a tuple of sorted pairs, so that a point's identity
is hashable and comparable between snapshots and between workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from apivitals.models import Measured, MeasuredPoint

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData

AttributeValue = str | bool | int | float | tuple[Any, ...]
Attributes = tuple[tuple[str, AttributeValue], ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measurement that stands for its bucket, with the trace it came from (hex ids, empty when none)."""

    time_ns: int
    value: float
    trace_id: str = ""
    span_id: str = ""
    attributes: Attributes = ()


@dataclass(frozen=True, slots=True)
class NumberPoint:
    """The value of a counter, an up-down counter or a gauge."""

    attributes: Attributes
    start_ns: int
    time_ns: int
    value: int | float
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, slots=True)
class HistogramPoint:
    """An explicit-bucket histogram: `counts` has one entry more than `bounds`, the last is above all bounds."""

    attributes: Attributes
    start_ns: int
    time_ns: int
    count: int
    sum: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    min: float | None = None
    max: float | None = None
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, slots=True)
class ExponentialPoint:
    """An exponential histogram: bucket i of `positive` covers (base^(offset+i), base^(offset+i+1)]."""

    attributes: Attributes
    start_ns: int
    time_ns: int
    count: int
    sum: float
    scale: int
    zero_count: int
    positive_offset: int
    positive: tuple[int, ...]
    negative_offset: int
    negative: tuple[int, ...]
    min: float | None = None
    max: float | None = None
    exemplars: tuple[Exemplar, ...] = ()


Point = NumberPoint | HistogramPoint | ExponentialPoint


@dataclass(frozen=True, slots=True)
class Metric:
    """All points of one instrument. `kind` is counter, updowncounter, gauge, histogram or exponential."""

    name: str
    unit: str
    description: str
    kind: str
    points: tuple[Point, ...]
    delta: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """The instrumentation scope that made some metrics."""

    name: str
    version: str
    schema_url: str
    metrics: tuple[Metric, ...]
    attributes: Attributes = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every metric of this process at one moment (nanoseconds since the epoch)."""

    time_ns: int
    resource: Attributes
    scopes: tuple[Scope, ...]
    resource_schema_url: str = ""

    def metrics(self) -> Iterator[Metric]:
        """All metrics of all scopes."""
        for scope in self.scopes:
            yield from scope.metrics

    def find(self, name: str) -> list[Metric]:
        """The metrics of that name: more than one when several scopes emit it."""
        return [metric for metric in self.metrics() if metric.name == name]


def freeze_attributes(attributes: Mapping[str, Any] | None) -> Attributes:
    """Attributes as sorted pairs; sequences become tuples."""
    if not attributes:
        return ()
    return tuple(
        sorted((key, tuple(value) if isinstance(value, (list, tuple)) else value) for key, value in attributes.items())
    )


def from_sdk(data: MetricsData | None, time_ns: int) -> Snapshot:
    """The SDK's collection as a Snapshot; an empty one when nothing was collected."""
    if data is None or not data.resource_metrics:
        return Snapshot(time_ns, (), ())
    first = data.resource_metrics[0]
    scopes = tuple(
        Scope(
            entry.scope.name,
            entry.scope.version or "",
            entry.schema_url or "",
            tuple(_metric(metric) for metric in entry.metrics),
            freeze_attributes(entry.scope.attributes),
        )
        for resource in data.resource_metrics
        for entry in resource.scope_metrics
    )
    return Snapshot(time_ns, freeze_attributes(first.resource.attributes), scopes, first.schema_url or "")


def with_measured(snapshot: Snapshot, measured: Sequence[Measured]) -> Snapshot:
    """A snapshot with what was measured outside of the SDK, as one more scope."""
    metrics = tuple(
        Metric(
            entry.instrument.name,
            entry.instrument.unit,
            entry.instrument.description,
            entry.instrument.kind,
            tuple(_measured_point(point, snapshot.time_ns) for point in entry.points),
        )
        for entry in measured
    )
    scope = Scope("apivitals.server", "", "", metrics)
    return replace(snapshot, scopes=(*snapshot.scopes, scope))


def _measured_point(point: MeasuredPoint, time_ns: int) -> Point:
    exemplars = tuple(
        Exemplar(when, value, f"{trace_id:032x}", f"{span_id:016x}")
        for when, trace_id, span_id, value in point.exemplars
    )
    if not point.bounds:
        return NumberPoint(point.attributes, point.start_ns, time_ns, point.value)
    return HistogramPoint(
        point.attributes,
        point.start_ns,
        time_ns,
        sum(point.counts),
        point.value,
        point.bounds,
        point.counts,
        point.min,
        point.max,
        exemplars,
    )


def _metric(metric: Any) -> Metric:
    data = metric.data
    kind = _kind(data)
    # 2 is CUMULATIVE, 1 is DELTA, as in the protocol; a gauge has neither.
    delta = getattr(data, "aggregation_temporality", 2) == 1
    convert = {"histogram": _histogram, "exponential": _exponential}.get(kind, _number)
    points = tuple(convert(point) for point in data.data_points)
    return Metric(metric.name, metric.unit or "", metric.description or "", kind, points, delta)


def _kind(data: Any) -> str:
    name = type(data).__name__
    if name == "Sum":
        return "counter" if data.is_monotonic else "updowncounter"
    return {"Gauge": "gauge", "Histogram": "histogram", "ExponentialHistogram": "exponential"}[name]


def _number(point: Any) -> Point:
    return NumberPoint(
        freeze_attributes(point.attributes),
        # The SDK leaves an observable gauge's start unset.
        point.start_time_unix_nano or 0,
        point.time_unix_nano,
        _plain(point.value),
        _exemplars(point.exemplars),
    )


def _histogram(point: Any) -> Point:
    return HistogramPoint(
        freeze_attributes(point.attributes),
        point.start_time_unix_nano,
        point.time_unix_nano,
        point.count,
        _plain(point.sum),
        tuple(point.explicit_bounds),
        tuple(point.bucket_counts),
        _plain(point.min),
        _plain(point.max),
        _exemplars(point.exemplars),
    )


def _exponential(point: Any) -> Point:
    return ExponentialPoint(
        freeze_attributes(point.attributes),
        point.start_time_unix_nano,
        point.time_unix_nano,
        point.count,
        _plain(point.sum),
        point.scale,
        point.zero_count,
        point.positive.offset,
        tuple(point.positive.bucket_counts),
        point.negative.offset,
        tuple(point.negative.bucket_counts),
        _plain(point.min),
        _plain(point.max),
        _exemplars(point.exemplars),
    )


def _plain(value: Any) -> Any:
    """A measurement as the int or float that it is: the SDK takes a bool or a number of NumPy as well."""
    if type(value) is float or type(value) is int:
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _exemplars(exemplars: Sequence[Any]) -> tuple[Exemplar, ...]:
    if not exemplars:
        return ()
    return tuple(
        Exemplar(
            exemplar.time_unix_nano,
            _plain(exemplar.value),
            f"{exemplar.trace_id:032x}" if exemplar.trace_id else "",
            f"{exemplar.span_id:016x}" if exemplar.span_id else "",
            freeze_attributes(exemplar.filtered_attributes),
        )
        for exemplar in exemplars
    )
