"""OTLP protobuf: attribute values, and what carries nothing but attributes (resource, scope).

What repeats is kept encoded, in bounded caches: one for short attributes by key, type and value, one for
resources and scopes by identity. They are shared by all threads; a dictionary's single look-up or store is
atomic, and what is lost to a race is encoded again.
Source: opentelemetry/proto/common/v1/common.proto, opentelemetry/proto/resource/v1/resource.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apivitals.export.protobuf import FIXED64, LENGTH, VARINT, delimited, double, tag, text, varint

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_STRING, _BOOL, _INT, _DOUBLE = tag(1, LENGTH), tag(2, VARINT), tag(3, VARINT), tag(4, FIXED64)
_ARRAY, _KVLIST, _BYTES = tag(5, LENGTH), tag(6, LENGTH), tag(7, LENGTH)
_KEY, _VALUE = tag(1, LENGTH), tag(2, LENGTH)
_FIRST, _SECOND, _THIRD = tag(1, LENGTH), tag(2, LENGTH), tag(3, LENGTH)
_TRUE, _FALSE = _BOOL + b"\x01", _BOOL + b"\x00"

#: An entry takes about 250 bytes.
_CACHE_SIZE = 4096
_SHORT_TEXT = 64

_key_values: dict[tuple[str, type, Any], bytes] = {}
_by_identity: dict[int, tuple[object, bytes]] = {}


def any_value(value: Any) -> bytes:
    """One value as an AnyValue message; what the protocol has no form for is its text."""
    encode = _ANY_VALUE.get(type(value))
    if encode is not None:
        return encode(value)
    if value is None:
        return b""
    for kind, encode in _ANY_VALUE.items():
        if isinstance(value, kind):  # a member of an enumeration, for one
            return encode(value)
    if isinstance(value, Mapping):
        pairs = b"".join(_FIRST + key_value(str(key), item) for key, item in value.items())
        return delimited(_KVLIST, pairs)
    if isinstance(value, Sequence):
        return delimited(_ARRAY, b"".join(delimited(_FIRST, any_value(item)) for item in value))
    return _string(str(value))


def _string(value: str) -> bytes:
    # A string enumeration may have an `encode` of its own meaning.
    return delimited(_STRING, str.encode(value, "utf-8", "replace"))


def _integer(value: int) -> bytes:
    # The protocol has no integer beyond 64 bits.
    return _INT + varint(value) if -(2**63) <= value < 2**63 else _string(str(int(value)))


# bool before int, whose subclass it is.
_ANY_VALUE: dict[type, Callable[[Any], bytes]] = {
    str: _string,
    bool: lambda value: _TRUE if value else _FALSE,
    int: _integer,
    float: lambda value: _DOUBLE + double(value),
    bytes: lambda value: delimited(_BYTES, value),
}


def key_value(key: str, value: Any) -> bytes:
    """One attribute as a KeyValue message with its length before it; the field's tag is the caller's."""
    kind = type(value)
    # By type as well: 1, 1.0 and True are equal, and so are their hashes.
    repeats = (kind is str and len(value) <= _SHORT_TEXT) or kind is int or kind is bool
    if repeats:
        known = _key_values.get((key, kind, value))
        if known is not None:
            return known
    name = key.encode("utf-8", "replace")
    body = delimited(_KEY, name) + delimited(_VALUE, any_value(value))
    encoded = varint(len(body)) + body
    if repeats:
        if len(_key_values) >= _CACHE_SIZE:
            # Emptying costs a fraction of what keeping an order of use would.
            _key_values.clear()
        _key_values[key, kind, value] = encoded
    return encoded


def attributes(head: bytes, pairs: Iterable[tuple[str, Any]]) -> bytes:
    """Attributes as the repeated KeyValue field with the tag `head`."""
    return b"".join([head + key_value(key, value) for key, value in pairs])


def resource_field(pairs: Iterable[tuple[str, Any]]) -> bytes:
    """Field 1 of ResourceSpans and ResourceMetrics."""
    return delimited(_FIRST, attributes(_FIRST, pairs))


def scope_field(name: str, version: str, pairs: Iterable[tuple[str, Any]]) -> bytes:
    """Field 1 of ScopeSpans and ScopeMetrics."""
    return delimited(_FIRST, text(_FIRST, name) + text(_SECOND, version) + attributes(_THIRD, pairs))


def schema_url_field(url: str | None) -> bytes:
    """Field 3 of ResourceSpans, ScopeSpans, ResourceMetrics and ScopeMetrics."""
    return text(_THIRD, url or "")


def sdk_resource_field(resource: Resource) -> bytes:
    """`resource_field` of a resource of the SDK."""
    return _once(resource, lambda: resource_field(resource.attributes.items()))


def sdk_scope_field(scope: InstrumentationScope | None) -> bytes:
    """`scope_field` of a scope of the SDK; an empty scope for None."""
    if scope is None:
        return scope_field("", "", ())
    return _once(scope, lambda: scope_field(scope.name, scope.version or "", (scope.attributes or {}).items()))


def _once(owner: object, encode: Callable[[], bytes]) -> bytes:
    # By identity, because hashing a resource of the SDK renders it as JSON. The owner is held, so that its
    # identity stays its own.
    known = _by_identity.get(id(owner))
    if known is not None and known[0] is owner:
        return known[1]
    encoded = encode()
    if len(_by_identity) >= _CACHE_SIZE // 16:
        _by_identity.clear()
    _by_identity[id(owner)] = (owner, encoded)
    return encoded
