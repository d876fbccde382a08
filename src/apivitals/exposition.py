"""How an exposition of metrics is asked for and sent: which format, which type, compressed or not.

A leaf, because the port that is scraped and the route that an application mounts both need it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Below so many characters compression saves nobody anything.
GZIP_FROM = 16_384

#: Characters that are encoded at once: the interpreter is held for the time that one piece takes.
_PIECE = 262_144


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


def content_type(text: str) -> str:
    """The type of an exposition: OpenMetrics ends with a line that the classic text does not have."""
    return OPENMETRICS if text.endswith("# EOF\n") else CLASSIC


def encoded(text: str, *, gzip: bool) -> list[bytes]:
    """An exposition as bytes, in pieces; between them other threads run. What is no Unicode becomes `?`.

    Slow for large texts: not for an event loop.
    """
    pieces = (text[start : start + _PIECE].encode(errors="replace") for start in range(0, len(text), _PIECE))
    return list(_gzipped(pieces) if gzip else pieces)


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # The lowest level halves the time of the next and leaves a tenth of the text; 16 more bits say gzip.
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
