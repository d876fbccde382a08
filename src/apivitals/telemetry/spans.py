"""The SERVER span: a real span for whoever asks, and a few numbers for everybody else.

Most requests end without anybody having looked at their span. So it keeps what the middleware knows anyway, and
makes a `SpanContext`, attributes or events only when they are asked for: by user code, by a span processor, by an
exporter. What user code writes goes to an SDK span behind this one, so that limits, cleaning of values and the
order of statuses are the SDK's own.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlencode

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import _Span as MadeSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from apivitals import semconv
from apivitals.classify import ErrorClass, latency_class
from apivitals.tally import Tally
from apivitals.telemetry.aggregate import Shape

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_NO_STATE = TraceState()

#: Query parameters whose values are credentials, by the HTTP conventions.
_SENSITIVE = frozenset({"X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "Signature"})
_SENSITIVE |= {"sig", "X-Goog-Signature"}


class Origin:
    """What the spans of one service have in common."""

    __slots__ = ("limits", "resource", "scope")

    def __init__(self, resource: Resource, scope: InstrumentationScope, limits: SpanLimits) -> None:
        self.resource = resource
        self.scope = scope
        self.limits = limits


class Peer:
    """What the requests of one client to one host have in common; `encoded` is the span encoder's."""

    __slots__ = ("attributes", "encoded")

    def __init__(self, host: str, port: int | None, agent: str | None, client: str | None) -> None:
        pairs = {
            "server.address": host or None,
            "server.port": port,
            "user_agent.original": agent,
            "client.address": client,
        }
        self.attributes = tuple((name, value) for name, value in pairs.items() if value is not None)
        self.encoded: bytes | None = None


class ServerSpan(ReadableSpan, Span):
    """The span of one HTTP request. Made and ended by the middleware; `end` of user code does nothing more."""

    # The base classes of the SDK and the API have no slots, so these only keep the common fields out of a dict.
    __slots__ = (
        "_behind",
        "_context_made",
        "_parent_made",
        "client_port",
        "end_ns",
        "ended_as",
        "first_method",
        "origin",
        "parent_id",
        "parent_state",
        "peer",
        "remote_parent",
        "sampled",
        "scope",
        "seconds",
        "shape",
        "span_id",
        "start_ns",
        "tally",
        "trace_id",
    )

    def __init__(
        self,
        origin: Origin,
        scope: MutableMapping[str, Any],
        method: str,
        trace_id: int,
        span_id: int,
        parent_id: int,
        parent_state: TraceState | None,
        remote_parent: bool,
        sampled: bool,
        start_ns: int,
        peer: Peer,
        tally: Tally,
    ) -> None:
        self.origin = origin
        self.scope = scope
        self.first_method = method
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.parent_state = parent_state
        self.remote_parent = remote_parent
        self.sampled = sampled
        self.start_ns = start_ns
        self.peer = peer
        self.tally = tally
        self.end_ns = 0
        self.shape: Shape | None = None
        self.seconds = 0.0
        self.ended_as: ErrorClass = "none"
        self._behind: SdkSpan | None = None
        self._context_made: SpanContext | None = None

    # --- the API of a span

    def get_span_context(self) -> SpanContext:
        """Ids and flags; made when first asked for."""
        made = self._context_made
        if made is None:
            flags = _SAMPLED if self.sampled else _UNSAMPLED
            made = SpanContext(self.trace_id, self.span_id, False, flags, self.parent_state or _NO_STATE)
            self._context_made = made
        return made

    def is_recording(self) -> bool:
        """Whether what is written to the span is kept."""
        return self.sampled and not self.end_ns

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """As the API has it."""
        if self.sampled:
            self._written().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """As the API has it."""
        if self.sampled:
            self._written().set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """As the API has it."""
        if self.sampled:
            self._written().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """As the API has it."""
        if self.sampled:
            self._written().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """As the API has it; wins over the name that the route gives."""
        if self.sampled:
            self._written().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """As the API has it; wins over the status that the response gives."""
        if self.sampled:
            self._written().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """As the API has it."""
        if self.sampled:
            self._written().record_exception(exception, attributes, timestamp, escaped)

    def end(self, end_time: int | None = None) -> None:
        """Nothing: the request ends its span."""

    def _written(self) -> SdkSpan:
        """The SDK span behind this one, which keeps what is written to it."""
        behind = self._behind
        if behind is None:
            behind = self._behind = MadeSpan(
                name="",
                context=self.get_span_context(),
                resource=self.origin.resource,
                kind=SpanKind.SERVER,
                limits=self.origin.limits,
                instrumentation_scope=self.origin.scope,
            )
            behind.start(self.start_ns)
        return behind

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
        if not self.parent_id:
            return None
        flags = _SAMPLED if self.sampled else _UNSAMPLED
        return SpanContext(self.trace_id, self.parent_id, self.remote_parent, flags, self.parent_state or _NO_STATE)

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
        shared: tuple[tuple[str, Any], ...] = self.shape.attributes if self.shape else self._early_attributes()
        return MappingProxyType({**dict(self.peer.attributes), **dict(shared), **dict(self.own_attributes())})

    def own_attributes(self) -> list[tuple[str, Any]]:
        """The attributes that this request shares with no other."""
        scope = self.scope
        pairs: list[tuple[str, Any]] = [("url.path", scope["path"])]
        query = scope.get("query_string")
        if query:
            pairs.append(("url.query", redacted_query(query)))
        client = scope.get("client")
        if client and client[1]:
            pairs.append(("client.port", client[1]))
        original = scope["method"]
        if original != self.first_method:
            pairs.append(("http.request.method_original", original))
        if self.shape is not None:
            bounds = self.shape.route.latency_bounds
            pairs.append((semconv.LATENCY_CLASS, latency_class(self.seconds, bounds)))
            pairs.append((semconv.ERROR_CLASS, self.ended_as))
            pairs.extend(tally_attributes(self.tally))
        if self._behind is not None:
            pairs.extend((self._behind.attributes or {}).items())
        return pairs

    def _early_attributes(self) -> tuple[tuple[str, Any], ...]:
        scope = self.scope
        pairs = [(semconv.HTTP_METHOD, self.first_method), (semconv.URL_SCHEME, scope.get("scheme", "http"))]
        if scope.get("http_version"):
            pairs.append((semconv.PROTOCOL_VERSION, scope["http_version"]))
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
        return self._behind.dropped_attributes if self._behind is not None else 0

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
        return self.parent_state.to_header() if self.parent_state else ""

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
        plain = ReadableSpan(
            name=self.name,
            context=self.context,
            parent=self.parent,
            resource=self.resource,
            attributes=dict(self.attributes),
            events=self.events,
            links=self.links,
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=self.instrumentation_scope,
        )
        return str(plain.to_json(indent))


def redacted_query(query: bytes) -> str:
    """A query string with the values of credentials replaced."""
    text = query.decode("latin-1")
    if not any(name in text for name in _SENSITIVE):
        return text
    pairs = parse_qsl(text, keep_blank_values=True)
    return urlencode([(name, "REDACTED" if name in _SENSITIVE else value) for name, value in pairs])


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
