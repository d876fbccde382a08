"""A Snapshot in the SDK's own form, for exporters that were written for the SDK."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as SdkMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from apivitals.export.snapshot import Exemplar, ExponentialPoint, HistogramPoint, Metric, NumberPoint, Point, Snapshot


def to_sdk(snapshot: Snapshot) -> MetricsData:
    """What the SDK would have collected, had it measured everything in the snapshot."""
    scopes = [
        ScopeMetrics(
            InstrumentationScope(scope.name, scope.version, scope.schema_url, dict(scope.attributes)),
            [_metric(metric) for metric in scope.metrics],
            scope.schema_url,
        )
        for scope in snapshot.scopes
    ]
    resource = Resource(dict(snapshot.resource), snapshot.resource_schema_url)
    return MetricsData([ResourceMetrics(resource, scopes, snapshot.resource_schema_url)])


def _metric(metric: Metric) -> SdkMetric:
    temporality = AggregationTemporality.DELTA if metric.delta else AggregationTemporality.CUMULATIVE
    points: list[Any] = [_point(point) for point in metric.points]
    data: Any
    if metric.kind == "gauge":
        data = Gauge(points)
    elif metric.kind == "histogram":
        data = Histogram(points, temporality)
    elif metric.kind == "exponential":
        data = ExponentialHistogram(points, temporality)
    else:
        data = Sum(points, temporality, metric.kind == "counter")
    return SdkMetric(metric.name, metric.description, metric.unit, data)


def _point(point: Point) -> Any:
    common: dict[str, Any] = {
        "attributes": dict(point.attributes),
        "start_time_unix_nano": point.start_ns,
        "time_unix_nano": point.time_ns,
        "exemplars": [_exemplar(exemplar) for exemplar in point.exemplars],
    }
    if isinstance(point, NumberPoint):
        return NumberDataPoint(value=point.value, **common)
    common |= {"count": point.count, "sum": point.sum, "min": point.min, "max": point.max}
    if isinstance(point, HistogramPoint):
        return HistogramDataPoint(bucket_counts=point.counts, explicit_bounds=point.bounds, **common)
    return _exponential(point, common)


def _exponential(point: ExponentialPoint, common: dict[str, Any]) -> ExponentialHistogramDataPoint:
    return ExponentialHistogramDataPoint(
        scale=point.scale,
        zero_count=point.zero_count,
        positive=Buckets(point.positive_offset, point.positive),
        negative=Buckets(point.negative_offset, point.negative),
        flags=0,
        **common,
    )


def _exemplar(exemplar: Exemplar) -> SdkExemplar:
    return SdkExemplar(
        dict(exemplar.attributes),
        exemplar.value,
        exemplar.time_ns,
        int(exemplar.span_id, 16) if exemplar.span_id else None,
        int(exemplar.trace_id, 16) if exemplar.trace_id else None,
    )
