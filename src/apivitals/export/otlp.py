"""OTLP JSON: a Snapshot or a batch of spans as the export request of the OpenTelemetry protocol.

The mapping is protobuf's JSON form with the protocol's own changes: 64-bit integers are strings, trace and
span ids are hex, enum values are numbers.
Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apivitals.export.snapshot import (
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    NumberPoint,
    Point,
    Snapshot,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

Json = dict[str, Any]

_DELTA, _CUMULATIVE = 1, 2


def metrics_request(snapshot: Snapshot) -> Json:
    """The ExportMetricsServiceRequest of a snapshot."""
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": key_values(snapshot.resource)},
                "scopeMetrics": [
                    {
                        "scope": _scope(scope.name, scope.version, scope.attributes),
                        "metrics": [_metric(metric) for metric in scope.metrics],
                        "schemaUrl": scope.schema_url,
                    }
                    for scope in snapshot.scopes
                ],
                "schemaUrl": snapshot.resource_schema_url,
            }
        ]
    }


def traces_request(spans: Sequence[ReadableSpan]) -> Json:
    """The ExportTraceServiceRequest of finished spans, grouped by resource and scope."""
    resources: dict[Any, dict[Any, list[Json]]] = {}
    for span in spans:
        scopes = resources.setdefault(span.resource, {})
        scopes.setdefault(span.instrumentation_scope, []).append(_span(span))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": key_values(resource.attributes.items())},
                "scopeSpans": [
                    {
                        "scope": _scope(scope.name, scope.version or "", (scope.attributes or {}).items())
                        if scope
                        else {},
                        "spans": encoded,
                        "schemaUrl": (scope.schema_url or "") if scope else "",
                    }
                    for scope, encoded in scopes.items()
                ],
                "schemaUrl": resource.schema_url or "",
            }
            for resource, scopes in resources.items()
        ]
    }


def key_values(pairs: Iterable[tuple[str, Any]]) -> list[Json]:
    """Attributes as the protocol's list of KeyValue."""
    return [{"key": key, "value": any_value(value)} for key, value in pairs]


def any_value(value: Any) -> Json:
    """One value as the protocol's AnyValue; what it has no form for is its text."""
    encode = _ANY_VALUE.get(type(value))
    if encode is not None:
        return encode(value)
    if value is None:
        return {}
    for kind, encode in _ANY_VALUE.items():
        if isinstance(value, kind):  # a member of an enumeration, for one
            return encode(value)
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": key_values((str(key), item) for key, item in value.items())}}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {"stringValue": str(value)}


_ANY_VALUE: dict[type, Callable[[Any], Json]] = {
    str: lambda value: {"stringValue": value},
    bool: lambda value: {"boolValue": value},
    # The protocol has no integer beyond 64 bits.
    int: lambda value: {"intValue" if -(2**63) <= value < 2**63 else "stringValue": str(int(value))},
    float: lambda value: {"doubleValue": number(value)},
    bytes: lambda value: {"bytesValue": b64encode(value).decode()},
}


def number(value: float) -> float | str:
    """A double in JSON: the three that JSON has no literal for are text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _scope(name: str, version: str, attributes: Iterable[tuple[str, Any]]) -> Json:
    return {"name": name, "version": version, "attributes": key_values(attributes)}


def _metric(metric: Metric) -> Json:
    temporality = _DELTA if metric.delta else _CUMULATIVE
    points = [_point(point) for point in metric.points]
    data: Json
    if metric.kind == "gauge":
        data = {"gauge": {"dataPoints": points}}
    elif metric.kind in ("counter", "updowncounter"):
        monotonic = metric.kind == "counter"
        data = {"sum": {"dataPoints": points, "aggregationTemporality": temporality, "isMonotonic": monotonic}}
    else:
        key = "histogram" if metric.kind == "histogram" else "exponentialHistogram"
        data = {key: {"dataPoints": points, "aggregationTemporality": temporality}}
    return {"name": metric.name, "unit": metric.unit, "description": metric.description, **data}


def _point(point: Point) -> Json:
    encoded: Json = {
        "attributes": key_values(point.attributes),
        "startTimeUnixNano": str(point.start_ns),
        "timeUnixNano": str(point.time_ns),
    }
    if point.exemplars:
        encoded["exemplars"] = [_exemplar(exemplar) for exemplar in point.exemplars]
    if isinstance(point, NumberPoint):
        if isinstance(point.value, int):
            encoded["asInt"] = str(point.value)
        else:
            encoded["asDouble"] = number(point.value)
        return encoded
    encoded["count"] = str(point.count)
    encoded["sum"] = number(point.sum)
    # Of an empty histogram the SDK gives min inf and max -inf, which mean none.
    if point.min is not None and point.max is not None and point.count:
        encoded["min"] = number(point.min)
        encoded["max"] = number(point.max)
    if isinstance(point, HistogramPoint):
        encoded["bucketCounts"] = list(map(str, point.counts))
        encoded["explicitBounds"] = [number(bound) for bound in point.bounds]
    else:
        encoded.update(_exponential_buckets(point))
    return encoded


def _exponential_buckets(point: ExponentialPoint) -> Json:
    return {
        "scale": point.scale,
        "zeroCount": str(point.zero_count),
        "positive": {"offset": point.positive_offset, "bucketCounts": list(map(str, point.positive))},
        "negative": {"offset": point.negative_offset, "bucketCounts": list(map(str, point.negative))},
    }


def _exemplar(exemplar: Exemplar) -> Json:
    value = exemplar.value
    encoded: Json = {
        "filteredAttributes": key_values(exemplar.attributes),
        "timeUnixNano": str(exemplar.time_ns),
        **({"asInt": str(value)} if isinstance(value, int) else {"asDouble": number(value)}),
    }
    if exemplar.trace_id:
        encoded["traceId"] = exemplar.trace_id
        encoded["spanId"] = exemplar.span_id
    return encoded


def _span(span: ReadableSpan) -> Json:
    context = span.get_span_context()
    parent = span.parent
    encoded: Json = {
        "name": span.name,
        # The protocol counts from unspecified = 0; the API from internal = 0.
        "kind": span.kind.value + 1,
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": key_values((span.attributes or {}).items()),
        "droppedAttributesCount": span.dropped_attributes,
        "events": [
            {
                "name": event.name,
                "timeUnixNano": str(event.timestamp),
                "attributes": key_values((event.attributes or {}).items()),
                "droppedAttributesCount": event.dropped_attributes,
            }
            for event in span.events
        ],
        "droppedEventsCount": span.dropped_events,
        "links": [
            {
                "traceId": f"{link.context.trace_id:032x}",
                "spanId": f"{link.context.span_id:016x}",
                "traceState": link.context.trace_state.to_header(),
                "attributes": key_values((link.attributes or {}).items()),
                "droppedAttributesCount": link.dropped_attributes,
                "flags": _flags(link.context),
            }
            for link in span.links
        ],
        "droppedLinksCount": span.dropped_links,
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
        "flags": _flags(parent),
    }
    if context is not None:
        encoded["traceId"] = f"{context.trace_id:032x}"
        encoded["spanId"] = f"{context.span_id:016x}"
        encoded["traceState"] = context.trace_state.to_header()
    if parent is not None:
        encoded["parentSpanId"] = f"{parent.span_id:016x}"
    return encoded


def _flags(parent: SpanContext | None) -> int:
    # Bit 8 says that bit 9 means something; bit 9 that the parent is in another process.
    return 0x100 | (0x200 if parent is not None and parent.is_remote else 0)
