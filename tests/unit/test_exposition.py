"""Which format and coding an exposition is asked for in, and what is sent."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.exposition import (
    CLASSIC,
    GZIP_FROM,
    OPENMETRICS,
    Exposition,
    accepts_gzip,
    prefers_openmetrics,
)

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_3_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6," + PROMETHEUS_3
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        (PROMETHEUS_3_PROTOBUF, True),
        (BROWSER, False),
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0 ; charset=utf-8", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        # Another version is another format.
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", False),
        # q=0 is a refusal.
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.000,*/*;q=0", False),
        ("application/openmetrics-text,text/plain;q=0", True),
        # The dearer one; of two that are equally dear, the one that can do more.
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.4", True),
        ("text/plain,application/openmetrics-text", True),
        ("application/openmetrics-text;q=0.5,*/*", False),
        # What names the classic text most closely counts for it.
        ("application/openmetrics-text;q=0.5,text/plain;q=0.1,*/*;q=0.9", True),
        ("application/openmetrics-text;q=0.5,text/*;q=0.1,*/*;q=0.9", True),
        # A version of it that we do not have is none.
        ("application/openmetrics-text;q=0.5,text/plain;version=1.0.0", True),
        # What is not understood is as if it were not there.
        ("application/openmetrics-text;q=much", False),
        ("application/openmetrics-text;q=2", False),
        ("application/openmetrics-text;q=-1", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=", False),
        (";;,,=,application/openmetrics-text", True),
    ],
)
def test_formats(accept: str, expected: bool) -> None:
    assert prefers_openmetrics(accept) is expected


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("br", False),
        ("identity", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=0.001", True),
        ("gzip;q=all", False),
    ],
)
def test_codings(accept_encoding: str, expected: bool) -> None:
    assert accepts_gzip(accept_encoding) is expected


@given(st.text(max_size=60) | st.text('aq=;,/*"01. ', max_size=60))
def test_any_header_is_understood_or_not(header: str) -> None:
    prefers_openmetrics(header)
    accepts_gzip(header)
    # Beside whatever else is there, what is said plainly holds.
    assert accepts_gzip(f"gzip,{header}") or "gzip" in header.lower()


def test_the_end_tells_the_format() -> None:
    assert Exposition.of("a 1\n# EOF\n").content_type == OPENMETRICS
    assert Exposition.of("# EOF\n").content_type == OPENMETRICS
    assert Exposition.of("a 1\n").content_type == CLASSIC
    assert Exposition.of("").content_type == CLASSIC


def text(length: int) -> str:
    """So many bytes that do not compress away."""
    return "".join(random.Random(1).choices("0123456789abcdef\n", k=length))


@pytest.mark.parametrize("length", [0, 1, GZIP_FROM - 1, GZIP_FROM, GZIP_FROM + 1, 262_144, 262_145, 1_000_000])
@pytest.mark.parametrize("coding", ["gzip", ""])
def test_only_a_large_text_is_compressed(length: int, coding: str) -> None:
    said = text(length)
    body = Exposition.of(said).encode(coding)
    assert body.coding == ("gzip" if length >= GZIP_FROM and coding else "")
    sent = b"".join(body.pieces)
    assert (gzip.decompress(sent) if body.coding else sent).decode() == said
    assert body.headers["Content-Length"] == str(len(sent))
    assert body.headers["Vary"] == "Accept, Accept-Encoding"
    assert body.headers.get("Content-Encoding", "") == body.coding


@given(st.text(max_size=300), st.sampled_from(["gzip", ""]))
def test_any_text_comes_through(said: str, coding: str) -> None:
    for repeated in (said, said * 200):
        body = Exposition.of(repeated).encode(coding)
        sent = b"".join(body.pieces)
        assert (gzip.decompress(sent) if body.coding else sent) == repeated.encode()


def test_what_is_no_unicode_becomes_a_question_mark() -> None:
    assert Exposition.of('a{path="/caf\udce9"} 1\n').encode().pieces == [b'a{path="/caf?"} 1\n']


def test_pieces_are_compressed_as_they_are_made() -> None:
    alive = 0

    class Piece(str):
        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            nonlocal alive
            alive -= 1
            return super().encode(encoding, errors)

    def pieces() -> Iterator[str]:
        nonlocal alive
        for _ in range(50):
            alive += 1
            assert alive == 1
            yield Piece("a 1\n" * 5000)

    body = Exposition(CLASSIC, pieces()).encode("gzip")
    assert gzip.decompress(b"".join(body.pieces)) == b"a 1\n" * 250_000
