"""OTLP protobuf: spans.

The SERVER span of a request has its own way through: what it shares with the other requests of its route and
with those of its client is encoded once and kept beside it, so that a span costs little more than its ids.
Source: opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apivitals.export.otlp_values import attributes, key_value
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
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from apivitals.export.server_span import ServerSpan, Shape

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

_SERVER = _KIND + b"\x02"
# Bit 8 says that bit 9 means something; bit 9 that the parent is in another process.
_LOCAL, _REMOTE = fixed32(0x100), fixed32(0x300)
_LOCAL_PARENT, _REMOTE_PARENT = _FLAGS + _LOCAL, _FLAGS + _REMOTE

_IDS = _TRACE_ID + b"\x10", _SPAN_ID + b"\x08", _PARENT_ID + b"\x08"
_ROOT_HEAD = struct.Struct("<2s16s2s8s cQ cQ 6s").pack
_CHILD_HEAD = struct.Struct("<2s16s2s8s2s8s cQ cQ 6s").pack


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
    state = span.trace_state
    if state:
        head += text(_TRACE_STATE, state)
    if getattr(span, "touched", True):
        return head + _written_to(span, of_shape, of_peer)
    parts = [head, of_peer, of_shape]
    for key, value in span.own_attributes():
        parts.append(_ATTRIBUTES)
        parts.append(key_value(key, value))
    return b"".join(parts)


def _written_to(span: ServerSpan, of_shape: _Prepared, of_peer: _Prepared) -> bytes:
    """What comes after the ids and times of a span that user code may have written to."""
    shape, peer = span.shape, span.peer
    # As a dictionary, because what user code wrote may repeat a key.
    own = dict(span.own_attributes())
    status = span.status_override
    name = span.name
    parts: list[bytes]
    if (
        status is None
        and (name is shape.name or name == shape.name)
        and of_shape.keys.isdisjoint(own)
        and of_peer.keys.isdisjoint(own)
    ):
        parts = [of_peer, of_shape]
        for key, value in own.items():
            parts.append(_ATTRIBUTES)
            parts.append(key_value(key, value))
    else:
        merged = {**dict(peer.attributes), **dict(shape.attributes), **own}
        code, description = (shape.status_code, shape.status_description) if status is None else status
        parts = [text(_NAME, name), _SERVER, attributes(_ATTRIBUTES, merged.items()), _status(code, description)]
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
