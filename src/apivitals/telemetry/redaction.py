"""Keeps credentials out of the query strings of spans."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

#: Query parameters whose values are credentials: those of the HTTP conventions, now and formerly.
#: Source: https://opentelemetry.io/docs/specs/semconv/registry/attributes/url/ (`url.query`)
SENSITIVE = frozenset(
    {
        "AWSAccessKeyId",
        "Signature",
        "sig",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Goog-Signature",
    }
)

# A key can hide behind percent-encoding; most queries have neither and are done with after this.
_suspect = re.compile("|".join([*map(re.escape, sorted(SENSITIVE)), "%"])).search


def redacted_query(query: bytes) -> str:
    """A query string with the values of credentials replaced by REDACTED, and everything else as it was."""
    text = query.decode("latin-1")
    if _suspect(text) is None:
        return text
    return "&".join(map(_redacted, text.split("&")))


def _redacted(parameter: str) -> str:
    key, equals, _ = parameter.partition("=")
    return f"{key}=REDACTED" if equals and unquote_plus(key) in SENSITIVE else parameter
