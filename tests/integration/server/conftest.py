"""A service's telemetry in this process, in either server instrumentation, read from memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apivitals import semconv
from apivitals.export.snapshot import HistogramPoint, Point
from apivitals.telemetry import setup
from tests.telemetry_reset import reset_opentelemetry


class Telemetry:
    """What a service under test has emitted."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._spans = InMemorySpanExporter()

    def start(self, environ: dict[str, str] | None = None, **settings: Any) -> Telemetry:
        silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
        setup.configure(
            environ={"OTEL_SERVICE_NAME": "tested", **silent, **(environ or {})},
            server_instrumentation=self.mode,
            system_metrics=False,
            **settings,
        )
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(self._spans))
        setup.instrument_everything()
        return self

    def server_spans(self) -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.kind is trace.SpanKind.SERVER]

    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    def points(self, name: str) -> list[Point]:
        pipeline = setup.current_pipeline()
        assert pipeline is not None
        return [point for metric in pipeline.snapshot().find(name) for point in metric.points]

    def durations(self) -> dict[tuple[Any, Any], HistogramPoint]:
        """Duration points by route and status."""
        found = {}
        for point in self.points(semconv.REQUEST_DURATION.name):
            assert isinstance(point, HistogramPoint)
            labels = dict(point.attributes)
            key = (labels.get(semconv.HTTP_ROUTE), labels.get(semconv.HTTP_STATUS))
            assert key not in found
            found[key] = point
        return found

    def counts(self) -> dict[tuple[Any, Any], int]:
        return {key: point.count for key, point in self.durations().items()}

    def total(self) -> int:
        """Requests in all duration points."""
        return sum(point.count for point in self.points(semconv.REQUEST_DURATION.name))  # type: ignore[union-attr]

    def errors(self) -> dict[tuple[Any, str], int]:
        """The error counter by route and class."""
        return {
            (dict(point.attributes).get(semconv.HTTP_ROUTE), str(dict(point.attributes)[semconv.ERROR_CLASS])): int(
                point.value  # type: ignore[union-attr]
            )
            for point in self.points(semconv.ERRORS.name)
        }


@pytest.fixture(params=["apivitals", "contrib", "native"])
def telemetry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Telemetry]:
    monkeypatch.chdir(tmp_path)
    reset_opentelemetry()
    yield Telemetry(request.param)
    setup.shutdown()
    reset_opentelemetry()


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


class Clock:
    """Time that passes when a handler says so, for whoever measures a duration."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    import opentelemetry.instrumentation.asgi

    import apivitals.telemetry.middleware
    import apivitals.telemetry.request
    import apivitals.telemetry.server

    clock = Clock()
    monkeypatch.setattr(apivitals.telemetry.middleware, "perf_counter", clock)
    monkeypatch.setattr(apivitals.telemetry.request, "perf_counter", clock)
    monkeypatch.setattr(apivitals.telemetry.server, "perf_counter", clock)
    monkeypatch.setattr(opentelemetry.instrumentation.asgi, "default_timer", clock)
    try:
        import fastapi.telemetry._asgi
    except ImportError:
        pass
    else:
        monkeypatch.setattr(fastapi.telemetry._asgi, "perf_counter", clock)
    return clock


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def connect() -> Any:
    return client
