"""A fresh process's telemetry for each test, and snapshots made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import apivitals
from tests.telemetry_reset import reset_opentelemetry


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No providers, no files, no port; whatever a test sets up is taken down."""
    monkeypatch.chdir(tmp_path)
    for signal in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tested")
    reset_opentelemetry()
    yield
    apivitals.shutdown()
    reset_opentelemetry()
