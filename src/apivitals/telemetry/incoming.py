"""What a request brings with it: its parent span, and baggage and whatever else the propagators read.

The configured propagators do the reading. Only for the stock ones (W3C trace context and baggage) a request without
their headers is known to bring nothing, and a `traceparent` in its plain form, alone, is read here; every other form
of it is left to the propagator, so that what is valid is decided in one place.
Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState

from apivitals.telemetry.propagation import NoPropagator

RawHeaders = list[tuple[bytes, bytes]]

_NO_STATE = TraceState()
_STOCK = ([TraceContextTextMapPropagator, W3CBaggagePropagator], [TraceContextTextMapPropagator])
_plain_traceparent = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch


class Incoming:
    """The parent of a request and what came along.

    Attributes:
        trace_id, span_id: of the parent; 0 where there is none.
        flags: of the parent, as its `traceparent` has them.
        state: the parent's, None for an empty one.
        remote: the parent is another process's.
        values: what the propagators put into the context besides the span, None for nothing.
    """

    __slots__ = ("flags", "remote", "span_id", "state", "trace_id", "values")

    def __init__(
        self,
        trace_id: int = 0,
        span_id: int = 0,
        flags: int = 0,
        state: TraceState | None = None,
        remote: bool = False,
        values: Mapping[str, object] | None = None,
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.state = state
        self.remote = remote
        self.values = values

    def span_context(self) -> SpanContext | None:
        """The parent as the API has it, None where there is none."""
        if not self.span_id:
            return None
        return SpanContext(self.trace_id, self.span_id, self.remote, TraceFlags(self.flags), self.state or _NO_STATE)

    def context(self, current: Context) -> Context:
        """The context that a sampler and a span processor are given as the parent's."""
        parent = self.span_context()
        if parent is None:
            return Context(dict(self.values or {}))
        if not self.remote:
            return Context({**current, **self.values}) if self.values else current
        return Context({**(self.values or {}), _SPAN_KEY: NonRecordingSpan(parent)})


#: A request that brings nothing.
NOTHING = Incoming()


class IncomingReader:
    """Reads the headers of requests with the propagators that are set at the time.

    Attributes:
        textmap: the propagator that the following was found out about.
        reads_nothing: it has no use for any header.
        stock: it has none but for `traceparent`, `tracestate` and `baggage`.
    """

    def __init__(self) -> None:
        self.textmap: TextMapPropagator | None = None
        self.reads_nothing = False
        self.stock = False

    def read(self, raw: RawHeaders, headers: Mapping[bytes, bytes], repeated: bool, current: Context) -> Incoming:
        """What a request brings; without a parent in its headers, the span that is current is its parent.

        Args:
            raw: all headers in order.
            headers: those of the stock propagators, by name.
            repeated: a header is there more than once.
            current: the context in which the request is served: not empty for one that is made inside another.
        """
        textmap = propagate.get_global_textmap()
        if textmap is not self.textmap:
            self.reads_nothing = type(textmap) is NoPropagator
            self.stock = _is_stock(textmap)
            self.textmap = textmap
        if self.reads_nothing:
            return _local(current) if current else NOTHING
        if self.stock:
            traceparent = headers.get(b"traceparent")
            if traceparent is None:
                if b"baggage" not in headers:
                    return _local(current) if current else NOTHING
            elif b"tracestate" not in headers and b"baggage" not in headers and not repeated:
                plain = _plain_traceparent(traceparent)
                if plain is not None:
                    trace_id, span_id, flags = plain.groups()
                    found = Incoming(int(trace_id, 16), int(span_id, 16), int(flags, 16), None, True)
                    if found.trace_id and found.span_id:
                        return found
        return self._extracted(textmap, raw, current)

    def _extracted(self, textmap: TextMapPropagator, raw: RawHeaders, current: Context) -> Incoming:
        # A propagator may give None where it found nothing.
        context: Mapping[str, Any] = textmap.extract(raw, context=Context(), getter=HEADERS) or {}
        values = {key: value for key, value in context.items() if key != _SPAN_KEY}
        span = context.get(_SPAN_KEY)
        parent = span.get_span_context() if isinstance(span, Span) else None
        if parent is None or not parent.is_valid:
            found = _local(current)
            return Incoming(found.trace_id, found.span_id, found.flags, found.state, found.remote, values)
        return Incoming(
            parent.trace_id, parent.span_id, int(parent.trace_flags), parent.trace_state or None, True, values
        )


def _local(current: Context) -> Incoming:
    """The span that is current, as the parent."""
    span = current.get(_SPAN_KEY)
    outer = span.get_span_context() if isinstance(span, Span) else None
    if outer is None or not outer.is_valid:
        return NOTHING
    return Incoming(outer.trace_id, outer.span_id, int(outer.trace_flags), outer.trace_state or None)


def _is_stock(textmap: TextMapPropagator) -> bool:
    """Whether a propagator is known to read nothing but `traceparent`, `tracestate` and `baggage`, and how."""
    return type(textmap) is CompositePropagator and [type(one) for one in textmap._propagators] in _STOCK


class _Headers(Getter[RawHeaders]):
    """Reads ASGI headers, which are pairs of lower-case bytes."""

    def get(self, carrier: RawHeaders, key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1", "replace")
        values = [value.decode("latin-1") for name, value in carrier if name == wanted]
        # The baggage propagator reads only the first value.
        return ([",".join(values)] if wanted == b"baggage" else values) if values else None

    def keys(self, carrier: RawHeaders) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


HEADERS = _Headers()
