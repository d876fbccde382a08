"""What a measurement was made on and with, without anything that names the machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

#: Packages whose versions decide what a request costs.
PACKAGES = (
    *("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools"),
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation-fastapi", "opentelemetry-distro"),
    *("opentelemetry-exporter-otlp-proto-http", "opentelemetry-exporter-prometheus", "prometheus_client"),
    *("prometheus-fastapi-instrumentator", "starlette_exporter", "logfire", "ddtrace", "sentry-sdk"),
)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor, the architecture where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def description() -> str:
    """Processor, cores, system and interpreter in a sentence."""
    cores = os.cpu_count() or 1
    return (
        f"{processor()}, {cores} core{'s' if cores != 1 else ''}, {platform.system()} on {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def version_list(versions: Mapping[str, str]) -> str:
    """Packages and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
