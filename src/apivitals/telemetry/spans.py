"""The SERVER span: a real span for whoever asks, and a few numbers for everybody else.

Most requests end without anybody having looked at their span. So it keeps what the middleware knows anyway, and
makes a `SpanContext`, attributes or events only when they are asked for: by user code, by a span processor, by an
exporter. What user code writes goes to an SDK span behind this one, so that limits, cleaning of values, locking and
the order of statuses are the SDK's own. It keeps nothing of the request's scope, which may hold anything of the
application and which an exporter would keep alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from types import MappingProxyType
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import _Span as MadeSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from apivitals import semconv
from apivitals.classify import ErrorClass, latency_class
from apivitals.tally import Tally
from apivitals.telemetry.aggregate import Shape
from apivitals.telemetry.incoming import Incoming
from apivitals.telemetry.peers import NO_PEER, Peer
from apivitals.telemetry.redaction import redacted_query
from apivitals.telemetry.tracebacks import exception_message, exception_type, format_exception

_FLAGS = tuple(TraceFlags(flags) for flags in range(4))
_NO_STATE = TraceState()
#: Attributes that we may give to a span ourselves: room for them within the limit of attributes.
_OURS = 24
#: Fields of the SDK's spans that processors and instrumentations are known to read.
_SDK_FIELDS = {
    "_attributes": "attributes",
    "_context": "context",
    "_end_time": "end_time",
    "_events": "events",
    "_instrumentation_scope": "instrumentation_scope",
    "_kind": "kind",
    "_links": "links",
    "_name": "name",
    "_parent": "parent",
    "_resource": "resource",
    "_start_time": "start_time",
    "_status": "status",
}

#: The tally of a request that did nothing that is counted.
_NOTHING_DONE = Tally()

_making = Lock()


class Origin:
    """What the spans of one service have in common.

    Attributes:
        scope: the instrumentation scope.
        limits: of the provider.
        behind: the limits of what user code adds.
        tight: the limits concern our own attributes too, and not only what user code adds.
    """

    __slots__ = ("_provider", "behind", "limits", "scope", "tight")

    def __init__(self, provider: TracerProvider, scope: InstrumentationScope) -> None:
        limits = provider._span_limits
        self._provider = provider
        self.scope = scope
        self.limits = self.behind = limits
        most = limits.max_span_attributes
        self.tight = (most is not None and most < 2 * _OURS) or limits.max_span_attribute_length is not None
        if not self.tight and most is not None:
            self.behind = SpanLimits(
                max_attributes=_given(limits.max_attributes),
                max_events=_given(limits.max_events),
                max_links=_given(limits.max_links),
                max_span_attributes=most - _OURS,
                max_event_attributes=_given(limits.max_event_attributes),
                max_link_attributes=_given(limits.max_link_attributes),
                max_attribute_length=_given(limits.max_attribute_length),
                max_span_attribute_length=_given(limits.max_span_attribute_length),
            )

    @property
    def resource(self) -> Resource:
        """The provider's resource now: it has another one after a fork."""
        return self._provider.resource


def _given(limit: int | None) -> int:
    # None would mean the environment's.
    return SpanLimits.UNSET if limit is None else limit


class BareShape:
    """A shape without attributes, for a span that brings all of its own."""

    __slots__ = ("attributes", "encoded", "name", "status_code", "status_description")

    def __init__(self, shape: Shape) -> None:
        self.name = shape.name
        self.attributes: tuple[tuple[str, Any], ...] = ()
        self.status_code = shape.status_code
        self.status_description = shape.status_description
        self.encoded: bytes | None = None


class ServerSpan(ReadableSpan, Span):
    """The span of one HTTP request. Made and ended by the middleware; `end` of user code does nothing.

    Args:
        origin: what all spans have in common.
        incoming: the parent and its state.
        trace_id, span_id: its own.
        method: as measured; `original` as the client sent it.
        path, query: of the URL.
        client_port: of the socket, 0 where it is not known.
        peer: what the client's requests have in common.
        start_ns: nanoseconds since the epoch.
    """

    # The base classes of the SDK and the API have no slots, so these only keep the common fields out of a dict.
    __slots__ = (
        "_behind",
        "_context_made",
        "_squeezed",
        "client_port",
        "end_ns",
        "ended_as",
        "first_method",
        "flags",
        "incoming",
        "origin",
        "original_method",
        "parent_id",
        "path",
        "peer",
        "query",
        "recording",
        "seconds",
        "shape",
        "span_id",
        "start_ns",
        "state",
        "tally",
        "trace_id",
    )

    def __init__(
        self,
        origin: Origin,
        incoming: Incoming,
        trace_id: int,
        span_id: int,
        flags: int,
        method: str,
        original: str,
        path: str,
        query: bytes,
        client_port: int,
        peer: Peer,
        start_ns: int,
    ) -> None:
        self.origin = origin
        self.incoming = incoming
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = incoming.span_id
        self.flags = flags
        self.state: TraceState | None = incoming.state
        self.recording = bool(flags & 1)
        self.first_method = method
        self.original_method = original
        self.path = path
        self.query = query
        self.client_port = client_port
        self.peer = peer
        self.start_ns = start_ns
        self.tally = _NOTHING_DONE
        self.end_ns = 0
        self.shape: Shape | BareShape | None = None
        self.seconds = 0.0
        self.ended_as: ErrorClass = "none"
        self._behind: SdkSpan | None = None
        self._context_made: SpanContext | None = None
        self._squeezed: BoundedAttributes | None = None

    def __getattr__(self, name: str) -> Any:
        field = _SDK_FIELDS.get(name)
        if field is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, field)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name="{self.name}", context={self.get_span_context()})'

    # --- the API of a span

    def get_span_context(self) -> SpanContext:
        """Ids and flags; made when first asked for."""
        made = self._context_made
        if made is None:
            made = SpanContext(self.trace_id, self.span_id, False, _FLAGS[self.flags], self.state or _NO_STATE)
            self._context_made = made
        return made

    def is_recording(self) -> bool:
        """Whether what is written to the span is kept."""
        return self.recording and not self.end_ns

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """As the API has it."""
        if self.recording:
            self._written().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """As the API has it."""
        if self.recording:
            self._written().set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """As the API has it."""
        if self.recording:
            self._written().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """As the API has it."""
        if self.recording:
            self._written().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """As the API has it; wins over the name that the route gives."""
        if self.recording:
            self._written().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """As the API has it; wins over the status that the response gives."""
        if self.recording:
            self._written().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """As the API has it."""
        if self.recording:
            details: dict[str, Any] = {
                "exception.type": exception_type(exception),
                "exception.message": exception_message(exception),
                "exception.stacktrace": format_exception(exception),
                "exception.escaped": str(escaped),
            }
            self._written().add_event("exception", {**details, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Nothing: the request ends its span."""

    def finish(self, end_ns: int, done: Tally) -> None:
        """End the span: from now on it is what it is.

        Args:
            end_ns: nanoseconds since the epoch.
            done: what the request did so far.
        """
        self.end_ns = end_ns
        if done.queries or done.cache_hits or done.cache_misses or done.outbound_calls:
            # A copy, because the tally goes on counting, and leads back to the request.
            self.tally = _copied(done)
        if self._behind is not None:
            self._behind.end(end_ns)
        if self.origin.tight:
            self._squeeze()

    def _written(self) -> SdkSpan:
        """The SDK span behind this one, which keeps what is written to it."""
        behind = self._behind
        if behind is None:
            with _making:
                if self._behind is None:
                    if self.end_ns:
                        # It says what the SDK says about a span that has ended, and keeps nothing.
                        return _ended_span()
                    self._behind = self._made()
                behind = self._behind
        return behind

    def _made(self) -> SdkSpan:
        behind = MadeSpan(
            name="",
            context=self.get_span_context(),
            resource=self.origin.resource,
            kind=SpanKind.SERVER,
            limits=self.origin.behind,
            instrumentation_scope=self.origin.scope,
        )
        behind.start(self.start_ns)
        return behind

    def _squeeze(self) -> None:
        """Apply limits that concern our own attributes."""
        shape = self.shape
        if isinstance(shape, Shape):
            self._squeezed = self._bounded()
            self.peer, self.shape = NO_PEER, BareShape(shape)

    def _bounded(self) -> BoundedAttributes:
        limits = self.origin.limits
        return BoundedAttributes(
            limits.max_span_attributes, self._merged(), max_value_len=limits.max_span_attribute_length
        )

    # --- what a processor or an exporter reads

    @property
    def name(self) -> str:
        """Method and route; before the route is known the method, unless user code named it."""
        if self._behind is not None and self._behind.name:
            return str(self._behind.name)
        if self.shape is not None:
            return self.shape.name
        return "HTTP" if self.first_method == "_OTHER" else self.first_method

    @property
    def context(self) -> SpanContext:
        """The same as `get_span_context()`."""
        return self.get_span_context()

    @property
    def kind(self) -> SpanKind:
        """SERVER."""
        return SpanKind.SERVER

    @property
    def parent(self) -> SpanContext | None:
        """The caller's span, None at the root of a trace."""
        return self.incoming.span_context()

    @property
    def remote_parent(self) -> bool:
        """Whether the parent is another process's."""
        return self.incoming.remote

    @property
    def sampled(self) -> bool:
        """Whether the span is to be exported."""
        return bool(self.flags & 1)

    @property
    def start_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self.start_ns

    @property
    def end_time(self) -> int | None:
        """Nanoseconds since the epoch, None while the request is served."""
        return self.end_ns or None

    @property
    def status(self) -> Status:
        """Error for a request that failed, unless user code said otherwise."""
        override = self.status_override
        if override is not None:
            return Status(StatusCode(override[0]), override[1] or None)
        shape = self.shape
        return Status(StatusCode(shape.status_code), shape.status_description or None) if shape else Status()

    @property
    def status_override(self) -> tuple[int, str] | None:
        """What user code set the status to, None when it did not."""
        behind = self._behind
        if behind is None or behind.status.status_code is StatusCode.UNSET:
            return None
        return behind.status.status_code.value, behind.status.description or ""

    @property
    def attributes(self) -> Mapping[str, AttributeValue]:
        """All attributes; what user code wrote wins."""
        if self._squeezed is not None:
            return self._squeezed
        return MappingProxyType(self._bounded() if self.origin.tight else self._merged())

    def _merged(self) -> dict[str, Any]:
        shared = self.shape.attributes if self.shape is not None else self._early_attributes()
        return {**dict(self.peer.attributes), **dict(shared), **dict(self.own_attributes())}

    def own_attributes(self) -> list[tuple[str, Any]]:
        """The attributes that this request shares with no other."""
        if self._squeezed is not None:
            return list(self._squeezed.items())
        path = self.path
        pairs: list[tuple[str, Any]] = [("url.path", path if path.isascii() else _encodable(path))]
        if self.query:
            pairs.append(("url.query", redacted_query(self.query)))
        if self.client_port:
            pairs.append(("client.port", self.client_port))
        if self.original_method != self.first_method:
            pairs.append(("http.request.method_original", self.original_method))
        if isinstance(self.shape, Shape):
            bounds = self.shape.route.latency_bounds
            pairs.append((semconv.LATENCY_CLASS, latency_class(self.seconds, bounds)))
            pairs.append((semconv.ERROR_CLASS, self.ended_as))
            pairs.extend(tally_attributes(self.tally))
        if self._behind is not None:
            pairs.extend((self._behind.attributes or {}).items())
        return pairs

    def _early_attributes(self) -> tuple[tuple[str, Any], ...]:
        pairs = [(semconv.HTTP_METHOD, self.first_method), (semconv.URL_SCHEME, self.peer.scheme)]
        if self.peer.version:
            pairs.append((semconv.PROTOCOL_VERSION, self.peer.version))
        return tuple(pairs)

    @property
    def events(self) -> Sequence[Event]:
        """Events that user code or an exception added."""
        return self._behind.events if self._behind is not None else ()

    @property
    def links(self) -> Sequence[Link]:
        """Links that user code added."""
        return self._behind.links if self._behind is not None else ()

    @property
    def dropped_attributes(self) -> int:
        """Attributes beyond the limit."""
        dropped = self._behind.dropped_attributes if self._behind is not None else 0
        return dropped + self._squeezed.dropped if self._squeezed is not None else dropped

    @property
    def dropped_events(self) -> int:
        """Events beyond the limit."""
        return self._behind.dropped_events if self._behind is not None else 0

    @property
    def dropped_links(self) -> int:
        """Links beyond the limit."""
        return self._behind.dropped_links if self._behind is not None else 0

    @property
    def trace_state(self) -> str:
        """The trace state as its header has it."""
        return self.state.to_header() if self.state else ""

    @property
    def resource(self) -> Resource:
        """The service's resource."""
        return self.origin.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """apivitals."""
        return self.origin.scope

    def to_json(self, indent: int | None = 4) -> str:
        """As the SDK's spans have it."""
        return str(self._readable_span().to_json(indent))

    def _readable_span(self) -> ReadableSpan:
        """The span as it is now, in the SDK's own class."""
        attributes = BoundedAttributes(attributes=dict(self.attributes))
        attributes.dropped = self.dropped_attributes
        return ReadableSpan(
            name=self.name,
            context=self.context,
            parent=self.parent,
            resource=self.resource,
            attributes=attributes,
            events=_bounded(self.events, self.dropped_events),
            links=_bounded(self.links, self.dropped_links),
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=self.instrumentation_scope,
        )


def tally_attributes(done: Tally) -> list[tuple[str, int | float]]:
    """What a request did, as attributes of its span; kinds of work it did not do are left out."""
    pairs: list[tuple[str, int | float]] = []
    if done.queries:
        pairs += [(semconv.DB_QUERIES, done.queries), (semconv.DB_SECONDS, done.query_seconds)]
    if done.cache_hits or done.cache_misses:
        pairs += [(semconv.CACHE_HITS, done.cache_hits), (semconv.CACHE_MISSES, done.cache_misses)]
        pairs.append((semconv.CACHE_SECONDS, done.cache_seconds))
    if done.outbound_calls:
        pairs += [(semconv.OUTBOUND_CALLS, done.outbound_calls), (semconv.OUTBOUND_SECONDS, done.outbound_seconds)]
    return pairs


def _copied(done: Tally) -> Tally:
    copy = Tally()
    for field in Tally.__slots__:
        setattr(copy, field, getattr(done, field))
    return copy


def _encodable(text: str) -> str:
    """Text without lone surrogates, which some servers put in place of bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bounded(items: Sequence[Any], dropped: int) -> Sequence[Any]:
    """Events or links in the form that knows how many more there were."""
    kept = BoundedList.from_seq(len(items), items)
    kept.dropped = dropped
    return kept


def _ended_span() -> SdkSpan:
    span = MadeSpan(name="", context=INVALID_SPAN_CONTEXT, resource=Resource.get_empty())
    span.start(1)
    span.end(1)
    return span
