"""Exporters by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from apivitals.errors import ConfigurationError
from apivitals.telemetry import exporters
from apivitals.telemetry.exporters import (
    CountingSpanExporter,
    log_exporter,
    metric_exporter,
    span_exporter,
)

MAKERS = {"traces": span_exporter, "metrics": metric_exporter, "logs": log_exporter}


@pytest.mark.parametrize(("signal", "make"), list(MAKERS.items()))
@pytest.mark.parametrize(("protocol", "package"), [("grpc", "proto.grpc"), ("http/protobuf", "proto.http")])
def test_otlp_by_protocol(signal: str, make: Any, protocol: str, package: str) -> None:
    exporter = make("otlp", {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    assert f"opentelemetry.exporter.otlp.{package}" in type(exporter).__module__
    exporter.shutdown()


@pytest.mark.parametrize(("signal", "make"), list(MAKERS.items()))
def test_a_signal_may_have_a_protocol_of_its_own(signal: str, make: Any) -> None:
    exporter = make("otlp", {f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL": "grpc"})
    assert "proto.grpc" in type(exporter).__module__
    exporter.shutdown()


@pytest.mark.parametrize(("signal", "make"), list(MAKERS.items()))
def test_an_unknown_name_is_answered_with_the_known(signal: str, make: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make("zipkim", {})
    message = str(caught.value)
    assert message.startswith(f"OTEL_{signal.upper()}_EXPORTER names 'zipkim', which nothing installed provides")
    assert {"otlp", "console", "file", "none"} <= set(message.partition("there are ")[2].split(", "))
    assert ("prometheus" in message) == (signal == "metrics")


def test_what_an_installed_package_registers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(span_exporter("console", {}), ConsoleSpanExporter)
    entry = EntryPoint("mine", f"{__name__}:Mine", "opentelemetry_traces_exporter")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Mine)
    monkeypatch.setattr(exporters, "entry_points", lambda group: EntryPoints([entry]))
    assert isinstance(span_exporter("mine", {}), Mine)
    with pytest.raises(ConfigurationError, match="there are file, mine, none, otlp"):
        span_exporter("other", {})


def test_a_metric_exporter_may_be_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("pull", "x:y", "opentelemetry_metrics_exporter")
    monkeypatch.setattr(EntryPoint, "load", lambda self: InMemoryMetricReader)
    monkeypatch.setattr(exporters, "entry_points", lambda group: EntryPoints([entry]))
    assert isinstance(metric_exporter("pull", {}), InMemoryMetricReader)


class Mine(SpanExporter):
    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.calls: list[Any] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls.append(list(spans))
        return self.result

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.calls.append(timeout_millis)
        return False


@pytest.mark.parametrize(
    ("result", "lost"), [(SpanExportResult.SUCCESS, []), (SpanExportResult.FAILURE, [("traces", "export", 3)])]
)
def test_lost_spans_are_counted(result: SpanExportResult, lost: list[Any]) -> None:
    dropped: list[Any] = []
    inner = Mine(result)
    counting = CountingSpanExporter(inner, lambda *what: dropped.append(what))
    spans = [ReadableSpan("a")] * 3
    assert counting.export(spans) is result
    assert dropped == lost
    assert counting.force_flush(5) is False
    counting.shutdown()
    assert inner.calls == [spans, 5, "shutdown"]
