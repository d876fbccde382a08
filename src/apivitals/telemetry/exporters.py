"""Exporters by name: ours, the stock OTLP ones by protocol, and whatever an installed package registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from apivitals.errors import ConfigurationError
from apivitals.telemetry.plan import OTLP, otlp_protocol


def span_exporter(name: str, environ: Mapping[str, str]) -> SpanExporter:
    """The span exporter of that name.

    Raises:
        ConfigurationError: nothing installed registers it.
    """
    if name == OTLP and otlp_protocol(environ, "TRACES") == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if name == OTLP:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return cast("SpanExporter", GrpcSpanExporter())
    return cast("SpanExporter", _registered("traces", name)())


def metric_exporter(name: str, environ: Mapping[str, str]) -> MetricExporter | MetricReader:
    """The metric exporter of that name, or the reader where the name is a reader's.

    Raises:
        ConfigurationError: nothing installed registers it.
    """
    if name == OTLP and otlp_protocol(environ, "METRICS") == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()
    if name == OTLP:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return cast("MetricExporter", GrpcMetricExporter())
    return cast("MetricExporter | MetricReader", _registered("metrics", name)())


def log_exporter(name: str, environ: Mapping[str, str]) -> LogRecordExporter:
    """The log exporter of that name.

    Raises:
        ConfigurationError: nothing installed registers it.
    """
    if name == OTLP and otlp_protocol(environ, "LOGS") == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

        return cast("LogRecordExporter", OTLPLogExporter())
    if name == OTLP:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter

        return cast("LogRecordExporter", GrpcLogExporter())
    return cast("LogRecordExporter", _registered("logs", name)())


def _registered(signal: str, name: str) -> Any:
    group = f"opentelemetry_{signal}_exporter"
    found = entry_points(group=group)
    for entry in found:
        if entry.name == name:
            return entry.load()
    known = sorted({OTLP, "file", "none", *found.names} | ({"prometheus"} if signal == "metrics" else set()))
    raise ConfigurationError(
        f"OTEL_{signal.upper()}_EXPORTER names {name!r}, which nothing installed provides; there are {', '.join(known)}"
    )


class CountingSpanExporter(SpanExporter):
    """Hands batches on and counts the spans of those that were lost."""

    def __init__(self, inner: SpanExporter, on_drop: Callable[[str, str, int], None]) -> None:
        self._inner = inner
        self._on_drop = on_drop

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Handed on."""
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._on_drop("traces", "export", len(spans))
        return result

    def shutdown(self) -> None:
        """Handed on."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Handed on."""
        return self._inner.force_flush(timeout_millis)
