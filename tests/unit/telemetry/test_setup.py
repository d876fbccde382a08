"""The pipeline as a whole: set up once, taken down in bounded time, polite to what the application had before."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import apivitals
from apivitals import semconv
from apivitals.errors import ConfigurationError
from apivitals.export.reader import current_reader
from apivitals.export.snapshot import HistogramPoint
from apivitals.telemetry import exporters, setup, stopping
from tests.services import free_port
from tests.telemetry_reset import reset_opentelemetry

pytestmark = pytest.mark.anyio
SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    reset_opentelemetry()
    yield
    apivitals.shutdown()
    reset_opentelemetry()


def configure(environ: dict[str, str] | None = None, **settings: Any) -> setup.Pipeline:
    apivitals.configure(
        environ={"OTEL_SERVICE_NAME": "tested", **SILENT, **(environ or {})}, **{"system_metrics": False, **settings}
    )
    pipeline = setup.current_pipeline()
    assert pipeline is not None
    return pipeline


def service() -> FastAPI:
    app = FastAPI()

    @app.get("/a")
    async def a() -> str:
        return "a"

    return app


async def ask(app: FastAPI, path: str = "/a") -> int:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return (await client.get(path)).status_code


def counted(pipeline: setup.Pipeline) -> dict[Any, int]:
    """Requests by route that we saw. FastAPI's own telemetry sees those of every application, ours those we should."""
    found: Counter[Any] = Counter()
    for metric in pipeline.snapshot().find(semconv.TIME_TO_FIRST_BYTE.name):
        for point in metric.points:
            assert isinstance(point, HistogramPoint)
            found[dict(point.attributes).get(semconv.HTTP_ROUTE)] += point.count
    return dict(found)


# --- configuring


def test_a_second_configuration_does_nothing() -> None:
    first = configure()
    providers = trace.get_tracer_provider(), metrics.get_meter_provider()
    assert configure(service_name="other", class_window_seconds=5) is first
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == providers
    assert first.service == "tested"


def test_a_bad_setting_raises_and_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigurationError, match="prometheus_port"):
        apivitals.configure(environ={"OTEL_EXPORTER_PROMETHEUS_PORT": "x"})
    assert setup.current_pipeline() is None
    assert current_reader() is None


def test_a_bad_setting_is_described_where_that_is_asked_for() -> None:
    problems: list[str] = []
    apivitals.configure(environ={**SILENT, "APIVITALS_CLASS_WINDOW_SECONDS": "soon"}, problems=problems)
    assert problems == ["APIVITALS_CLASS_WINDOW_SECONDS: class_window_seconds is 'soon'; give a number"]
    assert setup.current_pipeline() is not None


@pytest.mark.parametrize("text", ["true", "TRUE", " True "])
def test_a_disabled_sdk_is_left_alone(text: str) -> None:
    apivitals.configure(environ={"OTEL_SDK_DISABLED": text})
    assert setup.current_pipeline() is None
    assert apivitals.render_metrics() == ""
    app = service()
    apivitals.shutdown()
    assert isinstance(app, FastAPI)


def test_nothing_is_opened_before_the_first_event(tmp_path: Path) -> None:
    environ = {
        "OTEL_TRACES_EXPORTER": "file",
        "OTEL_METRICS_EXPORTER": "file,prometheus",
        "APIVITALS_DATA_DIR": str(tmp_path / "data"),
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }
    pipeline = configure(environ)
    apivitals.instrument(service())
    assert pipeline.files is not None
    assert pipeline.files.folder == tmp_path / "data" / "tested"
    assert not (tmp_path / "data").exists()
    assert pipeline.scrape_port is None
    assert not pipeline.active


async def test_the_first_event_opens_the_exits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "apivitals")
    environ = {
        "OTEL_TRACES_EXPORTER": "file",
        "OTEL_METRICS_EXPORTER": "file,prometheus",
        "APIVITALS_DATA_DIR": str(tmp_path / "data"),
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }
    pipeline = configure(environ)
    app = apivitals.instrument(service())
    for _ in range(3):
        assert await ask(app) == 200
    assert pipeline.active
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{pipeline.scrape_port}/metrics")
    assert 'http_route="/a"' in answer.text
    assert answer.text.splitlines()[0] == apivitals.render_metrics().splitlines()[0]
    (said,) = [record.getMessage() for record in caplog.records if record.name == "apivitals"]
    assert f"http://127.0.0.1:{pipeline.scrape_port}/metrics" in said
    apivitals.shutdown()
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "data" / "tested").iterdir())
    assert left == ["metrics", "traces"]


# --- instrumenting


async def test_an_application_may_be_instrumented_before_its_routes() -> None:
    pipeline = configure()
    app = apivitals.instrument(FastAPI())

    @app.get("/later")
    async def later() -> str:
        return "later"

    assert await ask(app, "/later") == 200
    assert counted(pipeline) == {"/later": 1}


async def test_an_application_may_be_instrumented_after_its_first_request() -> None:
    app = service()
    assert await ask(app) == 200
    pipeline = configure()
    assert await ask(app) == 200
    assert counted(pipeline) == {}
    apivitals.instrument(app)
    assert await ask(app) == 200
    assert counted(pipeline) == {"/a": 1}


async def test_routes_may_be_added_between_requests() -> None:
    pipeline = configure()
    app = apivitals.instrument(service())
    assert await ask(app) == 200

    @app.get("/b/{x}")
    async def b(x: str) -> str:
        return x

    assert await ask(app, "/b/1") == 200
    assert counted(pipeline) == {"/a": 1, "/b/{x}": 1}


async def test_only_what_is_handed_in_is_instrumented() -> None:
    pipeline = configure()
    one, other = apivitals.instrument(service()), service()
    assert await ask(one) == await ask(other) == 200
    assert counted(pipeline) == {"/a": 1}
    apivitals.instrument_everything()
    assert await ask(other) == await ask(service()) == 200
    assert counted(pipeline) == {"/a": 3}


async def test_instrumenting_configures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SILENT, "APIVITALS_SYSTEM_METRICS": "false"}.items():
        monkeypatch.setenv(name, value)
    app = apivitals.instrument(service())
    pipeline = setup.current_pipeline()
    assert pipeline is not None
    assert await ask(app) == 200
    assert counted(pipeline) == {"/a": 1}


# --- what the application had before


async def test_providers_of_the_application_are_kept_and_get_ours() -> None:
    spans, mine = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([mine], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    pipeline = configure(
        {"OTEL_TRACES_EXPORTER": "file"}, data_dir=str(Path.cwd() / "data"), server_instrumentation="contrib"
    )
    assert trace.get_tracer_provider() is tracers
    assert metrics.get_meter_provider() is meters
    app = apivitals.instrument(service())
    assert await ask(app) == 200
    # Both see everything: theirs as before, and ours beside it.
    (span,) = [span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
    assert span.attributes is not None
    assert span.attributes[semconv.LATENCY_CLASS] == "excellent"
    assert counted(pipeline) == {"/a": 1}
    data = mine.get_metrics_data()
    assert data is not None
    names = {each.name for scope in data.resource_metrics[0].scope_metrics for each in scope.metrics}
    assert semconv.REQUEST_DURATION.name in names
    tracers.force_flush()
    assert list((Path.cwd() / "data" / "tested").glob("traces-*"))
    # What is theirs is theirs to shut down.
    apivitals.shutdown()
    with trace.get_tracer("theirs").start_as_current_span("after"):
        pass
    assert spans.get_finished_spans()[-1].name == "after"
    tracers.shutdown()
    meters.shutdown()


def test_a_meter_provider_that_takes_no_reader_is_a_warning(caplog: Any) -> None:
    class Foreign(metrics.MeterProvider):
        def get_meter(self, *args: Any, **kwargs: Any) -> metrics.Meter:
            return metrics.NoOpMeter("none")

    metrics.set_meter_provider(Foreign())
    configure()
    assert "takes no reader" in caplog.text
    assert "http" not in apivitals.render_metrics()


# --- shutting down


class Hanging(SpanExporter):
    """Takes spans and comes back when it is told to."""

    release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.release.wait(60)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.release.wait(60)


async def test_an_exporter_that_hangs_does_not_hang_the_shutdown(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(stopping, "FLUSH_SECONDS", 0.3)
    monkeypatch.setattr(exporters, "_registered", lambda signal, name: Hanging)
    Hanging.release.clear()
    configure({"OTEL_TRACES_EXPORTER": "hanging", "OTEL_METRICS_EXPORTER": "none"})
    assert await ask(apivitals.instrument(service())) == 200
    began = monotonic()
    try:
        apivitals.shutdown()
        assert monotonic() - began < 3
        assert "shutting down telemetry took more than 0.3 s and goes on without waiting" in caplog.text
        apivitals.shutdown()
        assert monotonic() - began < 3
    finally:
        Hanging.release.set()
        for thread in threading.enumerate():
            if thread.name == "apivitals-flush":
                thread.join(10)


async def test_an_exit_that_fails_keeps_no_other_from_closing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    environ = {"OTEL_METRICS_EXPORTER": "file", "APIVITALS_DATA_DIR": str(tmp_path / "data")}
    pipeline = configure(environ)
    assert await ask(apivitals.instrument(service())) == 200

    def fail() -> None:
        raise RuntimeError("out of order")

    pipeline._closing.insert(0, fail)
    apivitals.shutdown()
    assert "out of order" in caplog.text
    (left,) = (tmp_path / "data" / "tested").iterdir()
    assert left.name.endswith(".zst")


async def test_after_the_shutdown_the_application_runs_on() -> None:
    pipeline = configure({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0"})
    app = apivitals.instrument(service())
    assert await ask(app) == 200
    port = pipeline.scrape_port
    apivitals.shutdown()
    apivitals.shutdown()
    assert setup.current_pipeline() is None
    assert current_reader() is None
    assert apivitals.render_metrics() == ""
    assert await ask(app) == 200
    assert await ask(app, "/nowhere") == 404
    assert await ask(service()) == 200
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/metrics")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("apivitals-")]


def test_shutting_down_what_was_never_set_up() -> None:
    apivitals.shutdown()
    assert setup.current_pipeline() is None


EXIT = """
import asyncio, os, sys
import httpx
from fastapi import FastAPI
import apivitals

app = FastAPI()

@app.get("/a")
async def a():
    return "a"

apivitals.instrument(app)

async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://service") as client:
        assert (await client.get("/a")).status_code == 200

asyncio.run(ask())
"""


@pytest.mark.parametrize("exporter", ["file", "otlp"])
def test_a_process_that_just_ends_flushes_and_ends_in_time(exporter: str, tmp_path: Path) -> None:
    # Nobody listens on the collector's port: each export fails and is tried again.
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "APIVITALS_"))},
        "OTEL_TRACES_EXPORTER": exporter,
        "OTEL_METRICS_EXPORTER": exporter,
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "tested",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "APIVITALS_DATA_DIR": str(tmp_path / "data"),
    }
    began = monotonic()
    done = subprocess.run(
        [sys.executable, "-c", EXIT], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert monotonic() - began < 12
    if exporter == "file":
        left = sorted(path.name.split("-")[0] for path in (tmp_path / "data" / "tested").iterdir())
        assert left == ["metrics", "traces"]
        assert all(path.name.endswith(".zst") for path in (tmp_path / "data" / "tested").iterdir())


# --- the rest


def test_lost_telemetry_is_counted() -> None:
    pipeline = configure()
    pipeline.drop("traces", "export", 512)
    pipeline.drop("traces", "export")
    pipeline.drop("metrics", "file")
    (metric,) = pipeline.snapshot().find(semconv.DROPPED.name)
    assert {dict(point.attributes)[semconv.SIGNAL]: point.value for point in metric.points} == {
        "traces": 513,
        "metrics": 1,
    }


def test_the_resource_says_who_is_speaking() -> None:
    pipeline = configure()
    pipeline.drop("traces", "test")
    resource = dict(pipeline.snapshot().resource)
    assert resource["telemetry.distro.name"] == "apivitals"
    assert len(str(resource["service.instance.id"])) == 36


def test_what_the_environment_says_of_the_service_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,service.instance.id=7,k=v")
    apivitals.configure(environ={**SILENT}, service_name="ours", system_metrics=False)
    pipeline = setup.current_pipeline()
    assert pipeline is not None
    pipeline.drop("traces", "test")
    resource = dict(pipeline.snapshot().resource)
    assert (resource["service.instance.id"], resource["k"]) == ("7", "v")
    assert pipeline.service == resource["service.name"] == "theirs"
