"""Classes for the SERVER spans that nobody classified while the request was served."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from apivitals import semconv
from apivitals.settings import PerformanceThresholds, Settings
from apivitals.telemetry.processors import ClassifyingProcessor

MS = 1_000_000


class Inner(SpanProcessor):
    def __init__(self) -> None:
        self.started: list[Any] = []
        self.ended: list[ReadableSpan] = []
        self.calls: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append((span, parent_context))

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.calls.append(timeout_millis)
        return False


@pytest.fixture
def inner() -> Inner:
    return Inner()


def server_span(milliseconds: float = 50, **attributes: Any) -> ReadableSpan:
    given = {name.replace("_", "."): value for name, value in attributes.items()}
    return ReadableSpan(
        "GET /a",
        SpanContext(1, 2, False),
        kind=SpanKind.SERVER,
        attributes={semconv.HTTP_METHOD: "GET", **given},
        start_time=10**18,
        end_time=10**18 + int(milliseconds * MS),
    )


def classified(inner: Inner, span: ReadableSpan, settings: Settings | None = None) -> ReadableSpan:
    ClassifyingProcessor(inner, settings or Settings()).on_end(span)
    (ended,) = inner.ended
    return ended


def classes(span: ReadableSpan) -> tuple[Any, Any]:
    attributes = span.attributes or {}
    return attributes.get(semconv.LATENCY_CLASS), attributes.get(semconv.ERROR_CLASS)


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [(0, "excellent"), (99.9, "excellent"), (100, "good"), (300, "acceptable"), (500, "poor"), (1000, "critical")],
)
def test_the_latency_class(inner: Inner, milliseconds: float, expected: str) -> None:
    assert classes(classified(inner, server_span(milliseconds)))[0] == expected


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (200, None, "none"),
        (404, None, "client_error"),
        (404, "404", "client_error"),
        (503, "503", "server_error"),
        (408, "408", "timeout"),
        (504, "504", "timeout"),
        (500, "RuntimeError", "exception"),
        (500, "TimeoutError", "timeout"),
        (500, "asyncio.exceptions.TimeoutError", "timeout"),
        (500, "NotATimeoutErrorAtAll", "exception"),
        (None, "RuntimeError", "exception"),
        (None, None, "exception"),
        ("200", None, "exception"),
    ],
)
def test_the_error_class(inner: Inner, status: Any, error: str | None, expected: str) -> None:
    attributes = {semconv.HTTP_STATUS: status, semconv.ERROR_TYPE: error}
    span = server_span()
    span._attributes = {**span.attributes, **{key: value for key, value in attributes.items() if value is not None}}
    assert classes(classified(inner, span))[1] == expected


def test_the_route_s_own_thresholds_count(inner: Inner) -> None:
    strict = PerformanceThresholds(response_time_ms={"excellent": 1, "good": 2, "acceptable": 3, "poor": 4})
    span = server_span(50, http_route="/a")
    assert classes(classified(inner, span, Settings(routes={"/a": strict})))[0] == "critical"


def test_a_span_that_has_its_classes_is_handed_on_as_it_is(inner: Inner) -> None:
    span = server_span(apivitals_latency_class="poor", apivitals_error_class="timeout")
    assert classified(inner, span) is span


@pytest.mark.parametrize(
    "span",
    [
        ReadableSpan(
            "child", SpanContext(1, 2, False), kind=SpanKind.INTERNAL, attributes={"http.request.method": "G"}
        ),
        ReadableSpan("call", SpanContext(1, 2, False), kind=SpanKind.CLIENT, attributes={"http.request.method": "GET"}),
        # A server span of something else than HTTP.
        ReadableSpan("rpc", SpanContext(1, 2, False), kind=SpanKind.SERVER, attributes={"rpc.system": "grpc"}),
        ReadableSpan("bare", SpanContext(1, 2, False), kind=SpanKind.SERVER),
    ],
)
def test_other_spans_are_handed_on_as_they_are(inner: Inner, span: ReadableSpan) -> None:
    before = dict(span.attributes or {})
    assert classified(inner, span) is span
    assert dict(span.attributes or {}) == before


def test_a_copy_says_everything_that_the_span_said(inner: Inner) -> None:
    limits = SpanLimits(max_span_attributes=4, max_events=1, max_links=1)
    provider = TracerProvider(resource=Resource({"service.name": "x"}), span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(ClassifyingProcessor(inner, Settings()))
    seen = Inner()
    provider.add_span_processor(seen)
    context = SpanContext(7, 8, True)
    tracer = provider.get_tracer("contrib", "2", "https://schema", {"k": 1})
    span = tracer.start_span("GET /a", kind=SpanKind.SERVER, links=[Link(context), Link(context)])
    span.set_attributes({f"k{place}": place for place in range(5)})
    span.set_attribute(semconv.HTTP_METHOD, "GET")
    span.add_event("one")
    span.add_event("two", {"b": (1, 2)})
    span.set_status(Status(StatusCode.ERROR, "why"))
    span.end()
    (copy,) = inner.ended
    (original,) = seen.ended
    assert copy is not original
    assert classes(original) == (None, None)
    assert None not in classes(copy)
    assert copy.dropped_attributes == original.dropped_attributes == 2
    assert copy.dropped_events == original.dropped_events == 1
    assert copy.dropped_links == original.dropped_links == 1
    for name in (
        *("name", "context", "parent", "kind", "resource", "events", "links", "start_time", "end_time"),
        *("instrumentation_scope",),
    ):
        assert getattr(copy, name) == getattr(original, name), name
    assert copy.status.status_code == original.status.status_code
    assert copy.status.description == "why"
    added = {semconv.LATENCY_CLASS, semconv.ERROR_CLASS}
    assert {key: value for key, value in (copy.attributes or {}).items() if key not in added} == original.attributes
    provider.shutdown()


def test_everything_else_is_handed_on(inner: Inner) -> None:
    processor = ClassifyingProcessor(inner, Settings())
    span: Any = object()
    context: Any = object()
    processor.on_start(span, context)
    assert inner.started == [(span, context)]
    assert processor.force_flush(123) is False
    processor.shutdown()
    assert inner.calls == [123, "shutdown"]
