"""How each configuration is set up: functions that make an application and instrument it as its documentation says.

They run in the process that is measured, and import what they need when they are called: no environment has
all of it, and importing one must not load another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

Make = Callable[[], "FastAPI"]


def nothing() -> None:
    """For a configuration that has nothing to flush."""


def fill_through_opentelemetry(series: int) -> None:
    """Record into that many series of one histogram."""
    from opentelemetry import metrics

    histogram = metrics.get_meter("bench").create_histogram("bench.work", "s", "Time of a piece of work.")
    for number in range(series):
        attributes = {"method": "GET", "status": 200, "route": f"/parts/{number}/{{key}}"}
        for value in (0.003, 0.04, 0.04, 0.7):
            histogram.record(value, attributes)


@dataclass(frozen=True, slots=True)
class Instrumented:
    """An instrumented application and what can be asked of its telemetry.

    Attributes:
        flush: sends the spans that wait.
        fill: makes that many series of a histogram.
        render: gives the text of a scrape.
        scrape_port: the port that serves it, None when none does.
        counts: requests are counted in that text, as `http_server_request_duration_seconds`.
    """

    app: FastAPI
    flush: Callable[[], object] = nothing
    fill: Callable[[int], None] = fill_through_opentelemetry
    render: Callable[[], str | bytes] | None = None
    scrape_port: Callable[[], int | None] = lambda: None
    counts: bool = False


def plain(make: Make) -> Instrumented:
    """FastAPI alone."""
    return Instrumented(make())


def launched(make: Make) -> Instrumented:
    """What `opentelemetry-instrument` does; nothing where it has been done."""
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        from opentelemetry.instrumentation.auto_instrumentation import initialize

        initialize(swallow_exceptions=False)
    app = make()
    if os.environ["OTEL_PYTHON_DISTRO"] != "apivitals":
        return Instrumented(app, _flush_spans)

    import apivitals
    from apivitals.telemetry.setup import current_pipeline

    def port() -> int | None:
        pipeline = current_pipeline()
        return pipeline.scrape_port if pipeline is not None else None

    return Instrumented(app, _flush_spans, render=apivitals.render_metrics, scrape_port=port, counts=True)


def launched_processor(make: Make) -> Instrumented:
    """The same with a span processor that the user registers."""
    made = launched(make)
    _add_processor()
    return made


def contrib(make: Make) -> Instrumented:
    """SDK providers that export nothing; three spans a request, as it comes."""
    _providers()
    return _contrib(make)


def contrib_otlp(make: Make) -> Instrumented:
    """One span a request."""
    _providers(otlp=True)
    return _contrib(make, exclude_spans=["receive", "send"])


def contrib_metrics(make: Make) -> Instrumented:
    """Spans that are never recorded."""
    _providers(traces=False)
    return _contrib(make, exclude_spans=["receive", "send"])


def contrib_processor(make: Make) -> Instrumented:
    """One span a request, through a span processor of the user."""
    _providers()
    _add_processor()
    return _contrib(make, exclude_spans=["receive", "send"])


def native(make: Make) -> Instrumented:
    """One span a request."""
    _providers(otlp=True)
    app = make()
    app._telemetry.update(operation_spans=False, logs=False)
    return Instrumented(app, _flush_spans)


def native_metrics(make: Make) -> Instrumented:
    """No spans and no logs."""
    _providers(traces=False)
    app = make()
    app._telemetry.update(tracing=False, operation_spans=False, logs=False)
    return Instrumented(app)


def instrumentator(make: Make) -> Instrumented:
    """prometheus-fastapi-instrumentator as its documentation begins."""
    from prometheus_fastapi_instrumentator import Instrumentator

    app = make()
    Instrumentator().instrument(app).expose(app)
    return Instrumented(app)


def starlette_exporter(make: Make) -> Instrumented:
    """starlette_exporter as its documentation begins."""
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app = make()
    app.add_middleware(PrometheusMiddleware)
    app.add_route("/metrics", handle_metrics)
    return Instrumented(app)


def logfire(make: Make) -> Instrumented:
    """Sends to the sink, which OTEL_EXPORTER_OTLP_ENDPOINT names, and not to its vendor."""
    import logfire

    logfire.configure(send_to_logfire=False, console=False)
    app = make()
    logfire.instrument_fastapi(app)
    return Instrumented(app, logfire.force_flush)


def ddtrace(make: Make) -> Instrumented:
    """Patches what is imported after it."""
    import ddtrace.auto  # noqa: F401
    from ddtrace.trace import tracer

    return Instrumented(make(), tracer.flush)


def sentry(make: Make) -> Instrumented:
    """Every request is a transaction."""
    import sentry_sdk

    dsn = os.environ["BENCH_SINK"].replace("://", "://key@") + "/1"
    # Its default queue of 100 drops what does not fit, and what is dropped costs nothing.
    sentry_sdk.init(dsn=dsn, traces_sample_rate=1.0, transport_queue_size=65536)
    return Instrumented(make(), sentry_sdk.flush)


def otel_prometheus(make: Make) -> Instrumented:
    """The exporter of the OpenTelemetry project, beside OTLP."""
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from prometheus_client import REGISTRY, generate_latest, start_http_server

    readers = [PrometheusMetricReader(), PeriodicExportingMetricReader(OTLPMetricExporter())]
    metrics.set_meter_provider(MeterProvider(readers))
    server, _ = start_http_server(0, "127.0.0.1")
    return Instrumented(make(), render=lambda: generate_latest(REGISTRY), scrape_port=lambda: server.server_port)


def prometheus_client(make: Make) -> Instrumented:
    """Its own histogram, without OpenTelemetry."""
    from prometheus_client import REGISTRY, Histogram, generate_latest, start_http_server

    def fill(series: int) -> None:
        work = Histogram("bench_work_seconds", "Time of a piece of work.", ["method", "status", "route"])
        for number in range(series):
            one = work.labels("GET", "200", f"/parts/{number}/{{key}}")
            for value in (0.003, 0.04, 0.04, 0.7):
                one.observe(value)

    server, _ = start_http_server(0, "127.0.0.1")
    return Instrumented(
        make(), fill=fill, render=lambda: generate_latest(REGISTRY), scrape_port=lambda: server.server_port
    )


def _providers(*, otlp: bool = False, traces: bool = True) -> None:
    """SDK providers as an application makes them itself."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    reader: MetricReader = InMemoryMetricReader()
    tracers: trace.TracerProvider = TracerProvider() if traces else trace.NoOpTracerProvider()
    if otlp:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # type: ignore[attr-defined]
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))


def _contrib(make: Make, **options: Any) -> Instrumented:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    app = make()
    FastAPIInstrumentor.instrument_app(app, **options)
    return Instrumented(app, _flush_spans)


def _add_processor() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

    class Slowest(SpanProcessor):
        """Remembers the slowest request by route, as a user's processor could."""

        def __init__(self) -> None:
            self.slowest: dict[Any, int] = {}

        def on_end(self, span: ReadableSpan) -> None:
            route = (span.attributes or {}).get("http.route")
            took = (span.end_time or 0) - (span.start_time or 0)
            if took > self.slowest.get(route, 0):
                self.slowest[route] = took

    trace.get_tracer_provider().add_span_processor(Slowest())  # type: ignore[attr-defined]


def _flush_spans() -> None:
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush()
