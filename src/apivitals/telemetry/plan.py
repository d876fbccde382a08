"""Decides from the environment which exporters each signal goes to, and what the service is called.

Pure functions of a mapping, so that every rule can be tested without touching the process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

from apivitals.errors import ConfigurationError

#: Names of our own beside those of the entry points: the telemetry files, and `/metrics`.
FILE, PROMETHEUS, OTLP = "file", "prometheus", "otlp"

_SERVERS = ("uvicorn", "gunicorn", "hypercorn", "fastapi", "granian")
_TARGET = re.compile(r"^([A-Za-z_][\w.]*):[A-Za-z_][\w.]*(\(.*\))?$", re.DOTALL)
_GENERIC = ("main", "app", "api", "asgi", "server", "wsgi", "web", "application")


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The exporters of each signal, by name."""

    traces: tuple[str, ...]
    metrics: tuple[str, ...]
    logs: tuple[str, ...]

    @property
    def files(self) -> bool:
        """Whether anything is written to telemetry files."""
        return FILE in self.traces or FILE in self.metrics


def export_plan(environ: Mapping[str, str]) -> ExportPlan:
    """The exporters that OTEL_* name; without them OTLP where an endpoint is set and files where none is.

    `/metrics` is served in either case, until OTEL_METRICS_EXPORTER says otherwise.
    """
    return ExportPlan(
        traces=_exporters(environ, "TRACES", (OTLP,), (FILE,)),
        metrics=_exporters(environ, "METRICS", (OTLP, PROMETHEUS), (FILE, PROMETHEUS)),
        logs=_exporters(environ, "LOGS", (OTLP,), ()),
    )


def _exporters(
    environ: Mapping[str, str], signal: str, pushed: tuple[str, ...], embedded: tuple[str, ...]
) -> tuple[str, ...]:
    named = [name.strip() for name in environ.get(f"OTEL_{signal}_EXPORTER", "").split(",") if name.strip()]
    if named:
        return tuple(dict.fromkeys(name for name in named if name.lower() != "none"))
    return pushed if _endpoint(environ, signal) else embedded


def _endpoint(environ: Mapping[str, str], signal: str) -> str:
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""


def otlp_protocol(environ: Mapping[str, str], signal: str) -> str:
    """`grpc` or `http/protobuf` for a signal.

    Without OTEL_EXPORTER_OTLP_PROTOCOL it is http/protobuf, as the specification recommends, except for an
    endpoint on port 4317, which is gRPC's.

    Raises:
        ConfigurationError: the variable names another protocol.
    """
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        named = environ.get(variable, "").strip()
        if named in ("grpc", "http/protobuf"):
            return named
        if named:
            raise ConfigurationError(f"{variable} is {named!r}; this distribution speaks grpc and http/protobuf")
    endpoint = _endpoint(environ, signal)
    try:
        # gRPC's own form of an address has no scheme.
        port = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
    except ValueError:
        port = None
    return "grpc" if port == 4317 else "http/protobuf"


def pushed_by_us(environ: Mapping[str, str], signal: str) -> bool:
    """Whether OTLP of a signal goes through our own encoder: over HTTP, unless somebody else's session is asked for."""
    named = ("", f"{signal}_")
    session = any(environ.get(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{part}CREDENTIAL_PROVIDER") for part in named)
    return otlp_protocol(environ, signal) == "http/protobuf" and not session


def guess_service_name(arguments: Sequence[str], directory: str) -> str:
    """A service name from the command line of an ASGI server, empty when there is nothing to go by.

    `uvicorn shop:app` is shop; for a module with a name that everybody uses (`app.main:app`) the first
    telling part of its path decides (of an absolute path the last), and at the end the working directory.
    """
    words = list(arguments)
    servers = [place for place, word in enumerate(words) if PurePath(word).name in _SERVERS]
    if not servers:
        return ""
    following = words[servers[0] + 1 :]
    for word in following:
        matched = _TARGET.match(word)
        if matched and matched.group(1) != "unix":
            return _telling(matched.group(1).split("."), directory)
    # With other servers a Python file is their configuration.
    files = [PurePath(word) for word in following if word.endswith(".py")]
    if files and PurePath(words[servers[0]]).name == "fastapi":
        parts = [*files[0].parts[:-1], files[0].stem]
        return _telling(parts[:0:-1] if files[0].is_absolute() else parts, directory)
    # `fastapi run` and friends find the application in the working directory.
    return PurePath(directory).name


def _telling(parts: Sequence[str], directory: str) -> str:
    telling = [part for part in parts if part.lower() not in _GENERIC and part not in ("src", ".", "..", "/")]
    return telling[0] if telling else PurePath(directory).name
