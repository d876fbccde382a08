"""Span processors that stand between the tracer provider and an exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import SpanKind

from apivitals import semconv
from apivitals.classify import ErrorClass, latency_class, status_class
from apivitals.settings import Settings


class ClassifyingProcessor(SpanProcessor):
    """Hands spans on to another processor, and sees to it that every HTTP SERVER span has its classes.

    Requests of a FastAPI application are classified while they are served, with more knowledge. This is for
    the others: a Starlette application beside it, or a span that an instrumentation ended on a path of its
    own. A span that has ended cannot be written to, so the inner processor gets a copy.
    """

    def __init__(self, inner: SpanProcessor, settings: Settings) -> None:
        self._inner = inner
        self._settings = settings

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Handed on."""
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Handed on, with classes."""
        if span.kind is SpanKind.SERVER:
            span = self._classified(span)
        self._inner.on_end(span)

    def shutdown(self) -> None:
        """Handed on."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Handed on."""
        return self._inner.force_flush(timeout_millis)

    def _classified(self, span: ReadableSpan) -> ReadableSpan:
        attributes: Mapping[str, Any] = span.attributes or {}
        if semconv.LATENCY_CLASS in attributes or semconv.HTTP_METHOD not in attributes:
            return span
        route = attributes.get(semconv.HTTP_ROUTE)
        bounds = self._settings.thresholds_for(route).latency_bounds
        seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
        classified = BoundedAttributes(
            attributes={
                **attributes,
                semconv.LATENCY_CLASS: latency_class(seconds, bounds),
                semconv.ERROR_CLASS: _error_class(attributes),
            }
        )
        classified.dropped = span.dropped_attributes
        return ReadableSpan(
            name=span.name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=classified,
            events=_bounded(span.events, span.dropped_events),
            links=_bounded(span.links, span.dropped_links),
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def _bounded(items: Sequence[Any], dropped: int) -> Sequence[Any]:
    """Events or links in the form that knows how many more there were."""
    kept = BoundedList.from_seq(len(items), items)
    kept.dropped = dropped
    return kept


def _error_class(attributes: Mapping[str, Any]) -> ErrorClass:
    status = attributes.get(semconv.HTTP_STATUS)
    error = attributes.get(semconv.ERROR_TYPE)
    # The conventions put the status itself into error.type when nothing was raised.
    if error is not None and error != str(status):
        return "timeout" if str(error).rpartition(".")[2] == "TimeoutError" else "exception"
    return status_class(status) if isinstance(status, int) else "exception"
