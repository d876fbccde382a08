"""How an exposition of metrics is asked for and sent: which format, which type, compressed or not.

A leaf, because the port that is scraped and the route that an application mounts both need it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Below so many bytes compression saves nobody anything.
GZIP_FROM = 16_384

#: Characters of a piece of a given text: the interpreter is held for the time that its encoding takes.
_PIECE = 262_144


@dataclass(frozen=True, slots=True)
class Exposition:
    """One answer to a scrape: its type, and its text in pieces, which may be rendered as they are taken."""

    content_type: str
    pieces: Iterable[str]

    @classmethod
    def of(cls, text: str) -> Exposition:
        """A text as it is. OpenMetrics ends with a line that the classic text does not have."""
        kind = OPENMETRICS if text.endswith("# EOF\n") else CLASSIC
        return cls(kind, [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)])

    def encode(self, accept_encoding: str = "") -> Body:
        """What is sent, compressed where that is allowed and worth it. What is no Unicode becomes `?`.

        Between two pieces other threads run. Slow for large texts even so: not for an event loop.
        """
        pieces = (piece.encode(errors="replace") for piece in self.pieces)
        plain: list[bytes] = []
        # The size is known only when it is reached, because the pieces are not made before.
        if accepts_gzip(accept_encoding):
            size = 0
            for piece in pieces:
                plain.append(piece)
                size += len(piece)
                if size >= GZIP_FROM:
                    return Body("gzip", list(_gzipped(chain(plain, pieces))))
        return Body("", [*plain, *pieces])


@dataclass(frozen=True, slots=True)
class Body:
    """The body of an answer: its content coding, empty for none, and its bytes in pieces."""

    coding: str
    pieces: list[bytes]

    @property
    def headers(self) -> dict[str, str]:
        """The headers that describe it."""
        length = {"Content-Length": str(sum(map(len, self.pieces))), "Vary": "Accept, Accept-Encoding"}
        return length | ({"Content-Encoding": self.coding} if self.coding else {})


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header (RFC 9110) names OpenMetrics 1.0.0, and nothing classic more dearly.

    A wildcard is no wish for OpenMetrics: a browser and curl get what a person can read. A part that is not
    understood is as if it were not there.
    """
    wanted = 0.0
    # By how closely each range names the classic text: what is said most closely counts.
    classic: dict[str, float] = {}
    for media, parameters in _ranges(accept):
        weight = _weight(parameters)
        if media == "application/openmetrics-text":
            if parameters.get("version", "1.0.0") == "1.0.0":
                wanted = max(wanted, weight)
        elif media in ("text/plain", "text/*", "*/*") and parameters.get("version", "0.0.4") == "0.0.4":
            classic[media] = max(classic.get(media, 0.0), weight)
    closest = next((classic[media] for media in ("text/plain", "text/*", "*/*") if media in classic), 0.0)
    return wanted > 0 and wanted >= closest


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110) allows gzip."""
    weights = {coding: _weight(parameters) for coding, parameters in _ranges(accept_encoding)}
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    # The lowest level takes half the time of the default and leaves a little more; 16 more bits say gzip.
    squeeze = zlib.compressobj(1, wbits=zlib.MAX_WBITS + 16)
    for piece in pieces:
        yield squeeze.compress(piece)
    yield squeeze.flush()


def _ranges(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What a header of weighted ranges lists, in lower case, with parameters."""
    for part in header.lower().split(","):
        name, *rest = part.split(";")
        pairs = (parameter.partition("=") for parameter in rest)
        yield name.strip(), {key.strip(): value.strip(' \t"') for key, _, value in pairs}


def _weight(parameters: dict[str, str]) -> float:
    try:
        weight = float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
