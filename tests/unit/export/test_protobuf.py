"""The wire format, held against protobuf's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, HistogramDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from apivitals.export import protobuf as wire

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)


@given(INT64)
def test_a_varint_is_protobuf_s(value: int) -> None:
    assert AnyValue.FromString(wire.tag(3, wire.VARINT) + wire.varint(value)).int_value == value
    assert wire.tag(3, wire.VARINT) + wire.varint(value) == AnyValue(int_value=value).SerializeToString()


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1023, "ff07")])
def test_short_varints(value: int, encoded: str) -> None:
    assert wire.varint(value).hex() == encoded


def test_a_negative_varint_has_ten_bytes() -> None:
    assert wire.varint(-1).hex() == "ff" * 9 + "01"


@given(st.integers(-(2**31), 2**31 - 1))
def test_zigzag_is_protobuf_s(value: int) -> None:
    encoded = wire.tag(6, wire.VARINT) + wire.zigzag(value)
    assert ExponentialHistogramDataPoint.FromString(encoded).scale == value


@given(UINT64, st.integers(0, 2**32 - 1))
def test_fixed_widths_are_protobuf_s(eight: int, four: int) -> None:
    encoded = wire.tag(7, wire.FIXED64) + wire.fixed64(eight) + wire.tag(16, wire.FIXED32) + wire.fixed32(four)
    decoded = Span.FromString(encoded)
    assert (decoded.start_time_unix_nano, decoded.flags) == (eight, four)


@given(st.lists(UINT64, max_size=5), st.lists(st.floats(allow_nan=False), max_size=5))
def test_packed_fields_are_protobuf_s(counts: list[int], bounds: list[float]) -> None:
    encoded = wire.packed_fixed64(wire.tag(6, wire.LENGTH), counts) + wire.packed_doubles(
        wire.tag(7, wire.LENGTH), bounds
    )
    decoded = HistogramDataPoint.FromString(encoded)
    assert (list(decoded.bucket_counts), list(decoded.explicit_bounds)) == (counts, bounds)
    buckets = ExponentialHistogramDataPoint.Buckets.FromString(wire.packed_varints(wire.tag(2, wire.LENGTH), counts))
    assert list(buckets.bucket_counts) == counts


def test_text_that_utf_8_cannot_hold() -> None:
    assert Span.FromString(wire.text(wire.tag(5, wire.LENGTH), "a\ud800ü")).name == "a?ü"
    assert wire.text(wire.tag(5, wire.LENGTH), "") == b""


@given(st.text(st.characters(exclude_categories=["Cs"])), UINT64, st.integers(0, 2**32 - 1), INT64)
def test_reading_what_protobuf_wrote(name: str, start: int, flags: int, rejected: int) -> None:
    written = Span(name=name, start_time_unix_nano=start, flags=flags).SerializeToString()
    read = {number: value for number, _, value in wire.fields(written)}
    assert read == {
        number: value for number, value in ((5, name.encode()), (7, start), (16, flags)) if value not in (b"", 0)
    }
    ((number, kind, value),) = wire.fields(AnyValue(int_value=rejected).SerializeToString())
    assert (number, kind, value) == (3, wire.VARINT, rejected % 2**64)


@pytest.mark.parametrize(
    "message", ["80", "0a", "0a05ab", "09ff", "0b", "00", "ff" * 11, "0a" + "ff" * 9 + "7f"], ids=str
)
def test_reading_garbage_says_so(message: str) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        list(wire.fields(bytes.fromhex(message)))


@given(st.binary(max_size=40))
def test_reading_anything_ends(message: bytes) -> None:
    try:
        found = list(wire.fields(message))
    except ValueError:
        return
    assert all(number > 0 for number, _, _ in found)
