"""OTLP protobuf: spans, and the ExportTraceServiceRequest around them.

The SERVER span of a request has its own way through: what it shares with the other requests of its route and
with those of its client is encoded once and kept beside it, so that a span costs little more than its ids.
Source: opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apivitals.export.otlp_values import (
    attributes,
    key_value,
    schema_url_field,
    sdk_resource_field,
    sdk_scope_field,
)
from apivitals.export.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    delimited,
    fixed32,
    fixed64,
    tag,
    text,
    varint,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext

# --- Span
_TRACE_ID, _SPAN_ID, _TRACE_STATE, _PARENT_ID = tag(1, LENGTH), tag(2, LENGTH), tag(3, LENGTH), tag(4, LENGTH)
_NAME, _KIND, _START, _END = tag(5, LENGTH), tag(6, VARINT), tag(7, FIXED64), tag(8, FIXED64)
_ATTRIBUTES, _DROPPED_ATTRIBUTES = tag(9, LENGTH), tag(10, VARINT)
_EVENTS, _DROPPED_EVENTS = tag(11, LENGTH), tag(12, VARINT)
_LINKS, _DROPPED_LINKS = tag(13, LENGTH), tag(14, VARINT)
_STATUS, _FLAGS = tag(15, LENGTH), tag(16, FIXED32)
# --- Span.Event
_EVENT_TIME, _EVENT_NAME, _EVENT_ATTRIBUTES, _EVENT_DROPPED = (
    tag(1, FIXED64),
    tag(2, LENGTH),
    tag(3, LENGTH),
    tag(4, VARINT),
)
# --- Span.Link; its ids and its state have the numbers of the span's
_LINK_ATTRIBUTES, _LINK_DROPPED, _LINK_FLAGS = tag(4, LENGTH), tag(5, VARINT), tag(6, FIXED32)
# --- Status
_MESSAGE, _CODE = tag(2, LENGTH), tag(3, VARINT)
# --- ExportTraceServiceRequest, ResourceSpans, ScopeSpans
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = tag(1, LENGTH), tag(2, LENGTH), tag(2, LENGTH)

_SERVER = _KIND + b"\x02"
# Bit 8 says that bit 9 means something; bit 9 that the parent is in another process.
_LOCAL, _REMOTE = fixed32(0x100), fixed32(0x300)
_LOCAL_PARENT, _REMOTE_PARENT = _FLAGS + _LOCAL, _FLAGS + _REMOTE

_IDS = _TRACE_ID + b"\x10", _SPAN_ID + b"\x08", _PARENT_ID + b"\x08"
_ROOT_HEAD = struct.Struct("<2s16s2s8s cQ cQ 6s").pack
_CHILD_HEAD = struct.Struct("<2s16s2s8s2s8s cQ cQ 6s").pack


class Shape(Protocol):
    """What the SERVER spans of one method, route, status and error have in common; `encoded` is ours to fill.

    `status_code` is 0 unset, 1 ok, 2 error.
    """

    name: str
    attributes: tuple[tuple[str, Any], ...]
    status_code: int
    status_description: str
    encoded: bytes | None


class Peer(Protocol):
    """What the SERVER spans of one client, agent and host have in common; `encoded` is ours to fill."""

    attributes: tuple[tuple[str, Any], ...]
    encoded: bytes | None


class ServerSpan(Protocol):
    """A finished SERVER span: ids as integers (`parent_id` 0 for none), times in nanoseconds since the epoch.

    Its attributes are those of the peer and those of the shape, which have no key in common, and then its own,
    which stand for those of the same key.
    Events and links are like the SDK's. `status_override` is a code and a description that stand for the
    shape's. `resource` and `instrumentation_scope` are the SDK's.
    """

    @property
    def trace_id(self) -> int:
        """128 bits."""

    @property
    def span_id(self) -> int:
        """64 bits."""

    @property
    def parent_id(self) -> int:
        """The caller's span, 0 at the root of a trace."""

    @property
    def trace_state(self) -> str:
        """As its header has it, empty for none."""

    @property
    def remote_parent(self) -> bool:
        """Whether the caller is in another process."""

    @property
    def name(self) -> str:
        """That of the shape, unless user code gave another."""

    @property
    def start_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def end_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def shape(self) -> Shape:
        """Shared by all spans of its kind."""

    @property
    def peer(self) -> Peer:
        """Shared by all spans of its client."""

    @property
    def status_override(self) -> tuple[int, str] | None:
        """Code and description in place of the shape's, None for the shape's."""

    @property
    def events(self) -> Sequence[Any]:
        """Like the SDK's."""

    @property
    def links(self) -> Sequence[Any]:
        """Like the SDK's."""

    @property
    def dropped_attributes(self) -> int:
        """Beyond the limit."""

    @property
    def dropped_events(self) -> int:
        """Beyond the limit."""

    @property
    def dropped_links(self) -> int:
        """Beyond the limit."""

    def own_attributes(self) -> list[tuple[str, Any]]:
        """What it shares with no other; of a key that is here twice the last counts."""


class _Prepared(bytes):
    """Encoded fields, and the keys of the attributes among them."""

    keys: frozenset[str]


def encode_server_span(span: ServerSpan) -> bytes:
    """The Span message of one of our own SERVER spans.

    Raises:
        struct.error, OverflowError: an id or a time does not fit its field.
    """
    shape, peer = span.shape, span.peer
    of_shape: Any = shape.encoded
    if of_shape is None:
        of_shape = shape.encoded = _prepared_shape(shape)
    of_peer: Any = peer.encoded
    if of_peer is None:
        of_peer = peer.encoded = _prepared(peer.attributes, attributes(_ATTRIBUTES, peer.attributes))
    # As a dictionary, because what user code wrote may repeat a key.
    own = dict(span.own_attributes())
    status = span.status_override
    name = span.name
    parent = span.parent_id
    if parent:
        head = _CHILD_HEAD(
            _IDS[0],
            span.trace_id.to_bytes(16, "big"),
            _IDS[1],
            span.span_id.to_bytes(8, "big"),
            _IDS[2],
            parent.to_bytes(8, "big"),
            _START,
            span.start_ns,
            _END,
            span.end_ns,
            _REMOTE_PARENT if span.remote_parent else _LOCAL_PARENT,
        )
    else:
        head = _ROOT_HEAD(
            _IDS[0],
            span.trace_id.to_bytes(16, "big"),
            _IDS[1],
            span.span_id.to_bytes(8, "big"),
            _START,
            span.start_ns,
            _END,
            span.end_ns,
            _LOCAL_PARENT,
        )
    if (
        status is None
        and (name is shape.name or name == shape.name)
        and of_shape.keys.isdisjoint(own)
        and of_peer.keys.isdisjoint(own)
    ):
        parts = [head, of_peer, of_shape]
        for key, value in own.items():
            parts.append(_ATTRIBUTES)
            parts.append(key_value(key, value))
    else:
        merged = {**dict(peer.attributes), **dict(shape.attributes), **own}
        code, description = (shape.status_code, shape.status_description) if status is None else status
        parts = [
            head,
            text(_NAME, name),
            _SERVER,
            attributes(_ATTRIBUTES, merged.items()),
            _status(code, description),
        ]
    state = span.trace_state
    if state:
        parts.append(text(_TRACE_STATE, state))
    events, links = span.events, span.links
    if events or links:
        parts.append(_events(events) + _links(links))
    dropped = span.dropped_attributes, span.dropped_events, span.dropped_links
    if any(dropped):
        parts.append(_dropped(*dropped))
    return b"".join(parts)


def encode_span(span: ReadableSpan | ServerSpan) -> bytes:
    """The Span message of any finished span of the SDK, or of one of our own."""
    if getattr(span, "shape", None) is not None:
        return encode_server_span(span)  # type: ignore[arg-type]
    return _encode_sdk_span(span)  # type: ignore[arg-type]


def _encode_sdk_span(span: ReadableSpan) -> bytes:
    parent = span.parent
    parts = [
        _context(span.get_span_context()),
        delimited(_PARENT_ID, parent.span_id.to_bytes(8, "big")) if parent is not None else b"",
        text(_NAME, span.name),
        # The protocol counts from unspecified = 0; the API from internal = 0.
        _KIND + varint(span.kind.value + 1),
        _START + fixed64(span.start_time or 0),
        _END + fixed64(span.end_time or 0),
        attributes(_ATTRIBUTES, _pairs(span.attributes)),
        _dropped(span.dropped_attributes, span.dropped_events, span.dropped_links),
        _status(span.status.status_code.value, span.status.description or ""),
        _REMOTE_PARENT if parent is not None and parent.is_remote else _LOCAL_PARENT,
    ]
    events, links = span.events, span.links
    if events or links:
        parts.append(_events(events) + _links(links))
    return b"".join(parts)


def _prepared(pairs: tuple[tuple[str, Any], ...], encoded: bytes) -> _Prepared:
    prepared = _Prepared(encoded)
    prepared.keys = frozenset(key for key, _ in pairs)
    return prepared


def _prepared_shape(shape: Shape) -> _Prepared:
    encoded = (
        text(_NAME, shape.name)
        + _SERVER
        + attributes(_ATTRIBUTES, shape.attributes)
        + _status(shape.status_code, shape.status_description)
    )
    return _prepared(shape.attributes, encoded)


def _pairs(found: Mapping[str, Any] | None) -> Iterable[tuple[str, Any]]:
    return found.items() if found else ()


def _context(context: SpanContext | None) -> bytes:
    if context is None:
        return b""
    ids = delimited(_TRACE_ID, context.trace_id.to_bytes(16, "big")) + delimited(
        _SPAN_ID, context.span_id.to_bytes(8, "big")
    )
    state = context.trace_state
    return ids + text(_TRACE_STATE, state.to_header()) if state else ids


def _status(code: int, description: str) -> bytes:
    return delimited(_STATUS, text(_MESSAGE, description) + (_CODE + varint(code) if code else b""))


def _dropped(of_attributes: int, of_events: int, of_links: int) -> bytes:
    if not (of_attributes or of_events or of_links):
        return b""
    return b"".join(
        head + varint(count)
        for head, count in (
            (_DROPPED_ATTRIBUTES, of_attributes),
            (_DROPPED_EVENTS, of_events),
            (_DROPPED_LINKS, of_links),
        )
        if count
    )


def _events(events: Sequence[Any]) -> bytes:
    return b"".join(
        delimited(
            _EVENTS,
            _EVENT_TIME
            + fixed64(event.timestamp or 0)
            + text(_EVENT_NAME, event.name)
            + attributes(_EVENT_ATTRIBUTES, _pairs(event.attributes))
            + (_EVENT_DROPPED + varint(event.dropped_attributes) if event.dropped_attributes else b""),
        )
        for event in events
    )


def _links(links: Sequence[Any]) -> bytes:
    return b"".join(
        delimited(
            _LINKS,
            _context(link.context)
            + attributes(_LINK_ATTRIBUTES, _pairs(link.attributes))
            + (_LINK_DROPPED + varint(link.dropped_attributes) if link.dropped_attributes else b"")
            + _LINK_FLAGS
            + (_REMOTE if link.context.is_remote else _LOCAL),
        )
        for link in links
    )


#: Finished spans of one scope of one resource, encoded.
SpanGroup = tuple["Resource", "InstrumentationScope | None", Sequence[bytes]]


def traces_request(groups: Iterable[SpanGroup]) -> bytes:
    """The ExportTraceServiceRequest of encoded spans; equal resources and equal scopes are put together."""
    resources: list[tuple[Resource, list[tuple[InstrumentationScope | None, list[bytes]]]]] = []
    for resource, scope, bodies in groups:
        scopes = next((found for known, found in resources if known is resource or known == resource), None)
        if scopes is None:
            scopes = []
            resources.append((resource, scopes))
        together = next((found for known, found in scopes if known is scope or known == scope), None)
        if together is None:
            scopes.append((scope, list(bodies)))
        else:
            together.extend(bodies)
    return b"".join(
        delimited(
            _RESOURCE_SPANS,
            sdk_resource_field(resource)
            + b"".join(delimited(_SCOPE_SPANS, _scope_spans(scope, bodies)) for scope, bodies in scopes)
            + schema_url_field(resource.schema_url),
        )
        for resource, scopes in resources
    )


def _scope_spans(scope: InstrumentationScope | None, bodies: Sequence[bytes]) -> bytes:
    parts = [sdk_scope_field(scope)]
    for body in bodies:
        parts += (_SPANS, varint(len(body)), body)
    parts.append(schema_url_field(scope.schema_url if scope is not None else ""))
    return b"".join(parts)


class TraceBatch:
    """An export request that is put together span by span, so that the work can be spread over time.

    Attributes:
        count: how many spans there are.
        size: how many bytes they take.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self._groups: dict[tuple[int, int], tuple[Resource, InstrumentationScope | None, list[bytes]]] = {}

    def add(self, span: Any) -> None:
        """Encode one finished span; when that raises, the batch is as it was."""
        body = encode_span(span)
        resource, scope = span.resource, span.instrumentation_scope
        # By identity, because hashing a resource of the SDK renders it as JSON.
        group = self._groups.get((id(resource), id(scope)))
        if group is None:
            group = self._groups[id(resource), id(scope)] = (resource, scope, [])
        group[2].append(body)
        self.count += 1
        self.size += len(body)

    def encode(self) -> bytes:
        """The ExportTraceServiceRequest."""
        return traces_request(self._groups.values())
