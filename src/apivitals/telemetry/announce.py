"""The one line at the start that says what goes where."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from apivitals.telemetry.plan import FILE, PROMETHEUS, ExportPlan, otlp_protocol

logger = logging.getLogger("apivitals")


def targets(plan: ExportPlan, environ: Mapping[str, str], folder: str, page: str) -> str:
    """Where each signal goes.

    Args:
        plan: the exporters.
        environ: the environment, for the endpoints.
        folder: where the files are, empty when there are none.
        page: where `/metrics` is, empty when it is not served.
    """
    if environ.get("OTEL_CONFIG_FILE"):
        return f"exporters by {environ['OTEL_CONFIG_FILE']}"
    nowhere = "nowhere (see the warning above)"
    exits = []
    for signal in ("traces", "metrics", "logs"):
        for name in getattr(plan, signal):
            if name == FILE:
                target = folder or nowhere
            elif name == PROMETHEUS:
                target = page or nowhere
            elif name.startswith("otlp"):
                target = f"OTLP {_otlp_target(environ, signal)}"
            else:
                target = name
            exits.append(f"{signal} → {target}")
    return "; ".join(exits) or "nothing is exported, as OTEL_*_EXPORTER say"


def _otlp_target(environ: Mapping[str, str], signal: str) -> str:
    named = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = otlp_protocol(environ, signal.upper())
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    return f"{protocol} {named or default}"


def say(text: str) -> None:
    """Log a line so that it is seen: under a server that configures only its own loggers nobody prints INFO."""
    seen = logger
    while seen is not None:
        if any(isinstance(handler, logging.StreamHandler) for handler in seen.handlers):
            logger.info(text)
            return
        seen = seen.parent if seen.propagate else None  # type: ignore[assignment]
    print(f"INFO:     {text}", file=sys.stderr, flush=True)  # noqa: T201
