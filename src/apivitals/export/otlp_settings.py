"""What the OTEL_* variables say of pushing over OTLP/HTTP: where to, how, how much at a time, and in which form.

Sources: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from apivitals.errors import ConfigurationError

Signal = Literal["traces", "metrics", "logs"]
Compression = Literal["gzip", "deflate", "none"]
Temporality = Literal["cumulative", "delta", "lowmemory"]

_DEFAULT_ENDPOINT = "http://localhost:4318"
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Where and how the export requests of one signal are sent.

    Attributes:
        signal: traces, metrics or logs.
        endpoint: the whole URL, without user name and password.
        headers: what is sent with every request, names in lower case.
        timeout: seconds that one request may take, connecting included.
        compression: of the request's body.
        certificate: a file of certificates to trust in place of the system's, empty for the system's.
        client_key, client_certificate: files that say who we are, empty for none.
    """

    signal: Signal
    endpoint: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout: float = 10.0
    compression: Compression = "none"
    certificate: str = ""
    client_key: str = ""
    client_certificate: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], signal: Signal) -> OtlpSettings:
        """What OTEL_EXPORTER_OTLP_* say; a variable of the signal stands for the general one.

        OTEL_EXPORTER_OTLP_ENDPOINT gets `v1/<signal>` appended; that of a signal is taken as it is. The timeout
        is in seconds, as in all of OpenTelemetry Python, although the specification has milliseconds.

        Raises:
            ConfigurationError: a value cannot be used. Values of headers, which are secrets, are not shown.
        """
        name, url = _endpoint(environ, signal)
        parts = _checked_url(name, url)
        headers = dict(_headers(*_variable(environ, signal, "HEADERS")))
        if parts.username:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers.setdefault("authorization", f"Basic {b64encode(credentials).decode()}")
        authority = parts.netloc.rpartition("@")[2]
        settings = cls(
            signal=signal,
            endpoint=urlunsplit((parts.scheme, authority, parts.path or "/", parts.query, "")),
            headers=tuple(headers.items()),
            timeout=_positive(*_variable(environ, signal, "TIMEOUT"), default=10.0, unit="seconds"),
            compression=_compression(*_variable(environ, signal, "COMPRESSION")),
            certificate=_file(*_variable(environ, signal, "CERTIFICATE")),
            client_key=_file(*_variable(environ, signal, "CLIENT_KEY")),
            client_certificate=_file(*_variable(environ, signal, "CLIENT_CERTIFICATE")),
        )
        if settings.client_key and not settings.client_certificate:
            name, value = _variable(environ, signal, "CLIENT_KEY")
            raise ConfigurationError(
                f"{name} is {value!r}, and no certificate belongs to it; "
                f"set {name.replace('CLIENT_KEY', 'CLIENT_CERTIFICATE')} as well"
            )
        return settings


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How spans are batched. Times in seconds.

    Attributes:
        queue_size: finished spans that may wait; what comes on top is dropped and counted.
        batch_size: spans of one request, and how many must wait for it to be sent before its time.
        delay: how long a span waits at the most before it is sent.
        timeout: how long the sending of one batch may take, with what is tried again.
    """

    queue_size: int = 2048
    batch_size: int = 512
    delay: float = 5.0
    timeout: float = 30.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> BatchSettings:
        """What OTEL_BSP_* say; their times are in milliseconds.

        Raises:
            ConfigurationError: a value is not a positive number, or a batch is to be larger than the queue.
        """
        size, batch = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
        queue_size = _count(size, environ.get(size, ""), 2048)
        batch_size = _count(batch, environ.get(batch, ""), min(512, queue_size))
        if batch_size > queue_size:
            raise ConfigurationError(
                f"{batch} is {batch_size}, more than the {queue_size} that the queue holds; "
                f"give {queue_size} or less, or raise {size}"
            )
        return cls(
            queue_size,
            batch_size,
            _milliseconds(environ, "OTEL_BSP_SCHEDULE_DELAY", 5.0),
            _milliseconds(environ, "OTEL_BSP_EXPORT_TIMEOUT", 30.0),
        )


@dataclass(frozen=True, slots=True)
class MetricPushSettings:
    """How often metrics are pushed, how long a push may take (seconds), and in which temporality."""

    interval: float = 60.0
    timeout: float = 30.0
    temporality: Temporality = "cumulative"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> MetricPushSettings:
        """What OTEL_METRIC_EXPORT_* and OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE say.

        Raises:
            ConfigurationError: a value cannot be used.
        """
        name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
        raw = environ.get(name, "").strip()
        preference = raw.lower() or "cumulative"
        if preference not in ("cumulative", "delta", "lowmemory"):
            raise ConfigurationError(f"{name} is {raw!r}; give cumulative, delta or lowmemory")
        return cls(
            _milliseconds(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60.0),
            _milliseconds(environ, "OTEL_METRIC_EXPORT_TIMEOUT", 30.0),
            cast("Temporality", preference),
        )


def _variable(environ: Mapping[str, str], signal: str, what: str) -> tuple[str, str]:
    """The name of the variable that governs, and its value; an empty one counts as unset."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}"
    value = environ.get(own, "").strip()
    return (own, value) if value else (general, environ.get(general, "").strip())


def _endpoint(environ: Mapping[str, str], signal: str) -> tuple[str, str]:
    name, value = _variable(environ, signal, "ENDPOINT")
    if name != "OTEL_EXPORTER_OTLP_ENDPOINT":
        return name, value
    parts = _checked_url(name, value or _DEFAULT_ENDPOINT)
    path = f"{parts.path.removesuffix('/')}/v1/{signal}"
    return name, urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _checked_url(name: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        # It goes into the request line as it is.
        usable = usable and re.search(r"[^!-~]", url) is None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{name} is {_shown(url)!r}; give a URL like {_DEFAULT_ENDPOINT}")
    return parts


def _shown(url: str) -> str:
    """A URL without a password, for a message."""
    return re.sub(r"(?<=//)[^/]*@", "***@", url)


def _headers(name: str, text: str) -> list[tuple[str, str]]:
    """Pairs `key=value`, separated by commas, percent-encoded, as in the W3C's baggage but without properties."""
    headers = []
    for place, item in enumerate(text.split(","), 1):
        if not item.strip():
            continue
        key, separator, value = item.partition("=")
        key = unquote(key.strip()).lower()
        if not separator or not _HEADER_NAME.fullmatch(key):
            raise ConfigurationError(
                f"{name}: item {place} does not start with the name of a header and an equals sign; write "
                "name=value,name=value, with a comma within a value as %2C (the value is not shown: it may be a secret)"
            )
        value = unquote(value.strip())
        # A line break would end the header and begin one that nobody meant.
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise ConfigurationError(f"{name}: the value of {key!r} has a control character in it; remove it")
        headers.append((key, value))
    return headers


def _number(name: str, raw: str, remedy: str) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = 0.0
    # The operating system takes no timeouts of centuries.
    if not 0 < value < 1e9:
        raise ConfigurationError(f"{name} is {raw!r}; give {remedy}")
    return value


def _positive(name: str, raw: str, *, default: float, unit: str) -> float:
    return _number(name, raw, f"a positive number of {unit}") if raw else default


def _milliseconds(environ: Mapping[str, str], name: str, default: float) -> float:
    raw = environ.get(name, "").strip()
    return _positive(name, raw, default=default * 1e3, unit="milliseconds") / 1e3


def _count(name: str, raw: str, default: int) -> int:
    value = _number(name, raw.strip(), "a positive whole number") if raw.strip() else default
    if value != int(value):
        raise ConfigurationError(f"{name} is {raw!r}; give a positive whole number")
    return int(value)


def _compression(name: str, raw: str) -> Compression:
    if raw.lower() not in ("", "gzip", "deflate", "none"):
        raise ConfigurationError(f"{name} is {raw!r}; give gzip, deflate or none")
    return cast("Compression", raw.lower() or "none")


def _file(name: str, raw: str) -> str:
    if raw and not Path(raw).is_file():
        raise ConfigurationError(f"{name} is {raw!r}, which is no file; give the path of a PEM file")
    return raw
