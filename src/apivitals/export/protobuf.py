"""The wire format of protocol buffers: as much of it as OTLP needs, written and read.

Fields that say nothing (an empty string, a zero) may be left out by whoever writes a message; the functions
here write what they are given, and the encoders decide.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_MASK64 = 2**64 - 1
_DOUBLE = struct.Struct("<d").pack
_FIXED64 = struct.Struct("<Q").pack
_FIXED32 = struct.Struct("<I").pack


def _long_varint(value: int) -> bytes:
    value &= _MASK64
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


# Nearly every varint of a telemetry request is the length of something short.
_SHORT = tuple(_long_varint(value) for value in range(1024))


def varint(value: int) -> bytes:
    """An integer in groups of seven bits; a negative one as its 64-bit two's complement, ten bytes."""
    return _SHORT[value] if 0 <= value < 1024 else _long_varint(value)


def tag(number: int, wire_type: int) -> bytes:
    """What stands before a field: its number and how its value is written."""
    return varint(number << 3 | wire_type)


def zigzag(value: int) -> bytes:
    """A signed integer (sint32, sint64) as a varint that is short for small negative ones."""
    return varint((value << 1) ^ (value >> 63))


def fixed64(value: int) -> bytes:
    """Eight bytes, little-endian; negative and larger values as their lowest 64 bits."""
    return _FIXED64(value & _MASK64)


def fixed32(value: int) -> bytes:
    """Four bytes, little-endian; the lowest 32 bits."""
    return _FIXED32(value & 0xFFFFFFFF)


def double(value: float) -> bytes:
    """An IEEE 754 double."""
    return _DOUBLE(value)


def delimited(head: bytes, payload: bytes) -> bytes:
    """A tag, the length of the payload, the payload: a string, bytes or a message within another."""
    return head + varint(len(payload)) + payload


def text(head: bytes, value: str) -> bytes:
    """A string field, nothing for the empty string; half a surrogate pair, which UTF-8 cannot hold, becomes `?`."""
    return delimited(head, value.encode("utf-8", "replace")) if value else b""


def packed_fixed64(head: bytes, values: Sequence[int]) -> bytes:
    """A packed repeated fixed64 field; nothing when there are none."""
    return delimited(head, struct.pack(f"<{len(values)}Q", *values)) if values else b""


def packed_doubles(head: bytes, values: Sequence[float]) -> bytes:
    """A packed repeated double field; nothing when there are none."""
    return delimited(head, struct.pack(f"<{len(values)}d", *values)) if values else b""


def packed_varints(head: bytes, values: Sequence[int]) -> bytes:
    """A packed repeated integer field; nothing when there are none."""
    return delimited(head, b"".join(map(varint, values))) if values else b""


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message as (number, wire type, value); numbers as unsigned integers.

    Raises:
        ValueError: the bytes are no message.
    """
    place, end = 0, len(message)
    while place < end:
        key, place = _read_varint(message, place)
        number, wire_type = key >> 3, key & 7
        value: int | bytes
        if wire_type == VARINT:
            value, place = _read_varint(message, place)
        elif wire_type in (FIXED64, FIXED32, LENGTH):
            size = 8 if wire_type == FIXED64 else 4
            if wire_type == LENGTH:
                size, place = _read_varint(message, place)
            if size > end - place:
                raise ValueError(f"field {number} has {size} bytes, and {end - place} are left")
            value = message[place : place + size]
            place += size
            if wire_type != LENGTH:
                value = int.from_bytes(value, "little")
        else:
            raise ValueError(f"field {number} has wire type {wire_type}, which is not in use")
        if number == 0:
            raise ValueError("a field has the number 0")
        yield number, wire_type, value


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if place >= len(message):
            raise ValueError("the message ends within a number")
        group = message[place]
        place += 1
        value |= (group & 0x7F) << shift
        if group < 0x80:
            return value & _MASK64, place
        shift += 7
    raise ValueError("a number has more than ten bytes")
