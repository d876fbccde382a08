"""OTLP protobuf: a Snapshot as ExportMetricsServiceRequest.

Source: opentelemetry/proto/metrics/v1/metrics.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from apivitals.export.otlp_values import attributes, resource_field, schema_url_field, scope_field
from apivitals.export.protobuf import (
    FIXED64,
    LENGTH,
    VARINT,
    delimited,
    double,
    fixed64,
    packed_doubles,
    packed_fixed64,
    packed_varints,
    tag,
    text,
    zigzag,
)
from apivitals.export.snapshot import Exemplar, ExponentialPoint, HistogramPoint, Metric, NumberPoint, Snapshot

# --- ExportMetricsServiceRequest, ResourceMetrics, ScopeMetrics
_RESOURCE_METRICS, _SCOPE_METRICS, _METRICS = tag(1, LENGTH), tag(2, LENGTH), tag(2, LENGTH)
# --- Metric
_NAME, _DESCRIPTION, _UNIT = tag(1, LENGTH), tag(2, LENGTH), tag(3, LENGTH)
_DATA = {
    "gauge": tag(5, LENGTH),
    "counter": tag(7, LENGTH),
    "updowncounter": tag(7, LENGTH),
    "histogram": tag(9, LENGTH),
    "exponential": tag(10, LENGTH),
}
# --- Gauge, Sum, Histogram, ExponentialHistogram
_POINTS = tag(1, LENGTH)
_DELTA, _CUMULATIVE = tag(2, VARINT) + b"\x01", tag(2, VARINT) + b"\x02"
_MONOTONIC = tag(3, VARINT) + b"\x01"
# --- common to all data points
_START, _TIME = tag(2, FIXED64), tag(3, FIXED64)
# --- NumberDataPoint
_AS_DOUBLE, _AS_INT = tag(4, FIXED64), tag(6, FIXED64)
_NUMBER_EXEMPLARS, _NUMBER_ATTRIBUTES = tag(5, LENGTH), tag(7, LENGTH)
# --- HistogramDataPoint and ExponentialHistogramDataPoint
_COUNT, _SUM = tag(4, FIXED64), tag(5, FIXED64)
_BUCKET_COUNTS, _BOUNDS, _EXEMPLARS, _ATTRIBUTES = tag(6, LENGTH), tag(7, LENGTH), tag(8, LENGTH), tag(9, LENGTH)
_MIN, _MAX = tag(11, FIXED64), tag(12, FIXED64)
_EXPONENTIAL_ATTRIBUTES, _SCALE, _ZERO_COUNT = tag(1, LENGTH), tag(6, VARINT), tag(7, FIXED64)
_POSITIVE, _NEGATIVE, _EXPONENTIAL_EXEMPLARS = tag(8, LENGTH), tag(9, LENGTH), tag(11, LENGTH)
_EXPONENTIAL_MIN, _EXPONENTIAL_MAX = tag(12, FIXED64), tag(13, FIXED64)
_OFFSET, _COUNTS = tag(1, VARINT), tag(2, LENGTH)
# --- Exemplar; its time is field 2
_EXEMPLAR_TIME, _EXEMPLAR_DOUBLE, _EXEMPLAR_INT = tag(2, FIXED64), tag(3, FIXED64), tag(6, FIXED64)
_EXEMPLAR_SPAN, _EXEMPLAR_TRACE, _FILTERED = tag(4, LENGTH), tag(5, LENGTH), tag(7, LENGTH)

_SLICE = 64


def metrics_request(snapshot: Snapshot, pause: Callable[[], object] | None = None) -> bytes:
    """The ExportMetricsServiceRequest of a snapshot.

    Args:
        snapshot: what to encode.
        pause: called between slices of 64 points, for a thread that lets others run meanwhile.

    Raises:
        struct.error: a count is negative or has more than 64 bits.
    """
    breathe = _breathing(pause)
    scopes = b"".join(
        delimited(
            _SCOPE_METRICS,
            scope_field(scope.name, scope.version, scope.attributes)
            + b"".join(delimited(_METRICS, _metric(metric, breathe)) for metric in scope.metrics)
            + schema_url_field(scope.schema_url),
        )
        for scope in snapshot.scopes
    )
    body = resource_field(snapshot.resource) + scopes + schema_url_field(snapshot.resource_schema_url)
    return delimited(_RESOURCE_METRICS, body)


def _breathing(pause: Callable[[], object] | None) -> Iterator[None]:
    """Advances once a point, and pauses every so often."""
    while True:
        for _ in range(_SLICE):
            yield
        if pause is not None:
            pause()


def _metric(metric: Metric, breathe: Iterator[None]) -> bytes:
    head = text(_NAME, metric.name) + text(_DESCRIPTION, metric.description) + text(_UNIT, metric.unit)
    if not metric.points:
        return head
    parts = []
    for point in metric.points:
        next(breathe)
        if isinstance(point, NumberPoint):
            body = _number(point, metric.kind)
        elif isinstance(point, HistogramPoint):
            body = _histogram(point)
        else:
            body = _exponential(point)
        parts.append(delimited(_POINTS, body))
    if metric.kind != "gauge":
        parts.append(_DELTA if metric.delta else _CUMULATIVE)
    if metric.kind == "counter":
        parts.append(_MONOTONIC)
    return head + delimited(_DATA[metric.kind], b"".join(parts))


def _number(point: NumberPoint, kind: str) -> bytes:
    # Without a start for a gauge: it means nothing there.
    start = _START + fixed64(point.start_ns) if point.start_ns and kind != "gauge" else b""
    return (
        attributes(_NUMBER_ATTRIBUTES, point.attributes)
        + start
        + _TIME
        + fixed64(point.time_ns)
        + _value(_AS_INT, _AS_DOUBLE, point.value)
        + _exemplars(_NUMBER_EXEMPLARS, point.exemplars)
    )


def _value(as_int: bytes, as_double: bytes, value: int | float) -> bytes:
    # The protocol has no integer beyond 64 bits.
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return as_int + fixed64(value)
    return as_double + double(value)


def _histogram(point: HistogramPoint) -> bytes:
    return (
        attributes(_ATTRIBUTES, point.attributes)
        + _totals(point, _MIN, _MAX)
        + packed_fixed64(_BUCKET_COUNTS, point.counts)
        + packed_doubles(_BOUNDS, point.bounds)
        + _exemplars(_EXEMPLARS, point.exemplars)
    )


def _exponential(point: ExponentialPoint) -> bytes:
    return (
        attributes(_EXPONENTIAL_ATTRIBUTES, point.attributes)
        + _totals(point, _EXPONENTIAL_MIN, _EXPONENTIAL_MAX)
        + _SCALE
        + zigzag(point.scale)
        + _ZERO_COUNT
        + fixed64(point.zero_count)
        + _buckets(_POSITIVE, point.positive_offset, point.positive)
        + _buckets(_NEGATIVE, point.negative_offset, point.negative)
        + _exemplars(_EXPONENTIAL_EXEMPLARS, point.exemplars)
    )


def _totals(point: HistogramPoint | ExponentialPoint, least: bytes, most: bytes) -> bytes:
    body = _START + fixed64(point.start_ns) + _TIME + fixed64(point.time_ns) + _COUNT + fixed64(point.count)
    body += _SUM + double(point.sum)
    # Of an empty histogram the SDK gives min inf and max -inf, which mean none.
    if point.min is not None and point.max is not None and point.count:
        body += least + double(point.min) + most + double(point.max)
    return body


def _buckets(head: bytes, offset: int, counts: tuple[int, ...]) -> bytes:
    return delimited(head, _OFFSET + zigzag(offset) + packed_varints(_COUNTS, counts)) if counts else b""


def _exemplars(head: bytes, exemplars: Iterable[Exemplar]) -> bytes:
    if not exemplars:
        return b""
    return b"".join(delimited(head, _exemplar(exemplar)) for exemplar in exemplars)


def _exemplar(exemplar: Exemplar) -> bytes:
    body = (
        attributes(_FILTERED, exemplar.attributes)
        + _EXEMPLAR_TIME
        + fixed64(exemplar.time_ns)
        + _value(_EXEMPLAR_INT, _EXEMPLAR_DOUBLE, exemplar.value)
    )
    if exemplar.trace_id:
        body += delimited(_EXEMPLAR_SPAN, bytes.fromhex(exemplar.span_id))
        body += delimited(_EXEMPLAR_TRACE, bytes.fromhex(exemplar.trace_id))
    return body
