"""Puts providers, reader, processors and exits together, and takes them down: the one place that does.

`configure` builds the pipeline; what belongs to the process that serves (the scrape port, the telemetry
files, host metrics) starts when the first application gets its first ASGI event, so that a supervisor that
merely imports us opens nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import _logs, metrics, trace

from apivitals import semconv
from apivitals.errors import ConfigurationError
from apivitals.exposition import CLASSIC, OPENMETRICS, Exposition, prefers_openmetrics
from apivitals.settings import Settings
from apivitals.telemetry.announce import say, targets
from apivitals.telemetry.plan import FILE, OTLP, PROMETHEUS, ExportPlan, export_plan, pushed_by_us
from apivitals.telemetry.registered import registered_id_generator, registered_sampler
from apivitals.telemetry.resource import our_version, service_of, service_resource
from apivitals.telemetry.stopping import FLUSH_SECONDS, run_all

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from apivitals.export.files import TelemetryFiles
    from apivitals.export.scrape import ScrapeServer
    from apivitals.export.sender import Sender
    from apivitals.export.snapshot import Snapshot
    from apivitals.telemetry.event_loop import EventLoopLag
    from apivitals.telemetry.instrumentations import ServerInstrumentation

logger = logging.getLogger("apivitals")


class Pipeline:
    """Everything that `configure` started in this process.

    Attributes:
        settings: the settings in force.
        service: the name of the service.
        files: the telemetry files, None when there are none.
        active: the exits have been started.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        from apivitals.export.prometheus import PrometheusRenderer
        from apivitals.export.reader import FanOutReader
        from apivitals.telemetry.propagation import mend_empty_propagator

        self.settings = settings
        self.plan: ExportPlan = export_plan(environ)
        self.files: TelemetryFiles | None = None
        self.active = False
        self.reader = FanOutReader(exponential=_asks_for_exponential(environ))
        self._environ = environ
        self._renderer = PrometheusRenderer()
        self._starting: list[Callable[[], object]] = []
        self._flushing: list[Callable[[], object]] = []
        self._closing: list[Callable[[], object]] = []
        self._closing_last: list[Callable[[], object]] = []
        self._server: ScrapeServer | None = None
        self._lag: EventLoopLag | None = None
        self._own_meters = False
        self._lock = RLock()
        if environ.get("OTEL_CONFIG_FILE"):
            self._from_config_file(environ["OTEL_CONFIG_FILE"])
        else:
            self._from_environment()
        meter = metrics.get_meter("apivitals", our_version())
        self._dropped = meter.create_counter(semconv.DROPPED.name, semconv.DROPPED.unit, semconv.DROPPED.description)
        self._lag_histogram = meter.create_histogram(
            semconv.EVENT_LOOP_LAG.name,
            semconv.EVENT_LOOP_LAG.unit,
            semconv.EVENT_LOOP_LAG.description,
            explicit_bucket_boundaries_advisory=semconv.EVENT_LOOP_LAG.bounds,
        )
        self.meter = meter
        mend_empty_propagator()

    # --- building

    def _from_config_file(self, path: str) -> None:
        """The declarative configuration governs providers and exporters; we add nothing to them but a reader."""
        try:
            from opentelemetry.configuration import configure_sdk, load_config_file
        except ImportError:
            raise ConfigurationError(
                f"OTEL_CONFIG_FILE is {path!r}, which needs a package: run  pip install opentelemetry-configuration"
            ) from None
        configure_sdk(load_config_file(path))
        self.plan = ExportPlan((), (), ())
        self.service = service_of(getattr(trace.get_tracer_provider(), "resource", None))
        self._adopt_meter_provider(metrics.get_meter_provider())

    def _from_environment(self) -> None:
        resource = service_resource(self.settings)
        self.service = service_of(resource)
        self._instance = str(resource.attributes["service.instance.id"])
        if self.plan.files:
            self.files = self._open_files()
        tracers = trace.get_tracer_provider()
        if isinstance(tracers, trace.ProxyTracerProvider):
            tracers = self._tracer_provider(resource)
            trace.set_tracer_provider(tracers)
        for processor in self._span_processors():
            # A provider that the application made itself keeps its own exporters and gets ours beside them.
            add = getattr(tracers, "add_span_processor", None)
            if add is not None:
                add(processor)
        meters = metrics.get_meter_provider()
        self._own_meters = type(meters).__name__ == "_ProxyMeterProvider"
        if self._own_meters:
            metrics.set_meter_provider(self._meter_provider(resource))
        else:
            self._adopt_meter_provider(meters)
        if self.plan.logs:
            self._set_up_logs(resource)

    def _open_files(self) -> TelemetryFiles:
        from apivitals.export.files import TelemetryFiles, default_data_dir, service_folder

        settings = self.settings
        root = Path(settings.data_dir).absolute() if settings.data_dir else default_data_dir()
        return TelemetryFiles(
            service_folder(root, self.service),
            self._instance[:8],
            rotate_seconds=settings.files_rotate_seconds,
            max_age_seconds=settings.files_max_age_days * 86400,
            max_bytes=settings.files_max_size_mb * 1024 * 1024,
            on_drop=self.drop,
        )

    def _tracer_provider(self, resource: Resource) -> TracerProvider:
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider(
            sampler=registered_sampler(self._environ),
            id_generator=registered_id_generator(self._environ),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._closing.append(provider.shutdown)
        return provider

    def _span_processors(self) -> list[SpanProcessor]:
        from apivitals.telemetry.processors import ClassifyingProcessor

        return [ClassifyingProcessor(self._span_exit(name), self.settings) for name in self.plan.traces]

    def _span_exit(self, name: str) -> SpanProcessor:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

        from apivitals.export.files import FileSpanExporter
        from apivitals.telemetry.exporters import CountingSpanExporter, span_exporter

        if name == FILE and self.files is not None:
            return BatchSpanProcessor(FileSpanExporter(self.files))
        if name == OTLP and pushed_by_us(self._environ, "TRACES"):
            from apivitals.export.otlp_settings import BatchSettings
            from apivitals.export.push import SpanPusher

            return SpanPusher(self._sender("traces"), BatchSettings.from_environ(self._environ), self.drop)
        exporter = span_exporter(name, self._environ)
        if isinstance(exporter, ConsoleSpanExporter):
            return SimpleSpanProcessor(exporter)
        return BatchSpanProcessor(CountingSpanExporter(exporter, self.drop))

    def _sender(self, signal: Literal["traces", "metrics"]) -> Sender:
        from apivitals.export.otlp_settings import OtlpSettings
        from apivitals.export.sender import Sender

        settings = OtlpSettings.from_environ(self._environ, signal)
        return Sender(settings, user_agent=f"apivitals/{our_version()}")

    def _meter_provider(self, resource: Resource) -> MeterProvider:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricReader

        from apivitals.telemetry.exporters import metric_exporter
        from apivitals.telemetry.views import views

        readers: list[MetricReader] = [self.reader]
        for name in self.plan.metrics:
            if name in (FILE, PROMETHEUS):
                continue
            if name == OTLP and pushed_by_us(self._environ, "METRICS"):
                self._push_by_http()
                continue
            exporter = metric_exporter(name, self._environ)
            if isinstance(exporter, MetricReader):
                readers.append(exporter)
            else:
                self._push_through(name, exporter)
        provider = MeterProvider(
            metric_readers=readers, resource=resource, views=views(self.settings), shutdown_on_exit=False
        )
        self._closing_last.append(provider.shutdown)
        for start in self._starting:
            start()
        return provider

    def _push_by_http(self) -> None:
        from apivitals.export.metric_push import MetricPusher
        from apivitals.export.otlp_settings import MetricPushSettings

        pusher = MetricPusher(
            self.snapshot, self._sender("metrics"), MetricPushSettings.from_environ(self._environ), self.drop
        )
        self._starting.append(pusher.start)
        self._flushing.append(partial(pusher.force_flush, int(FLUSH_SECONDS * 1000)))
        self._closing.append(pusher.shutdown)

    def _push_through(self, name: str, exporter: MetricExporter) -> None:
        """Push by somebody else's exporter, in the temporality that the environment asks for."""
        from apivitals.export.delta import Baseline
        from apivitals.export.otlp_settings import MetricPushSettings
        from apivitals.export.reader import Periodic
        from apivitals.export.sdk import to_sdk

        settings = MetricPushSettings.from_environ(self._environ)
        baseline = Baseline() if settings.temporality != "cumulative" else None

        def push() -> None:
            snapshot = self.snapshot()
            said = baseline.since(snapshot) if baseline is not None else snapshot
            if said.scopes and exporter.export(to_sdk(said)).name != "SUCCESS":
                self.drop("metrics", "export", sum(len(metric.points) for metric in said.metrics()))
            elif baseline is not None:
                baseline.advance(snapshot)

        periodic = Periodic(f"metrics-{name}", settings.interval, push)
        self._starting.append(periodic.start)
        self._flushing.append(periodic.run)
        self._closing += [periodic.stop, exporter.shutdown]

    def _adopt_meter_provider(self, provider: Any) -> None:
        """Read a provider that somebody else made; its views, and so its boundaries, are its own."""
        add = getattr(provider, "add_metric_reader", None)
        if add is not None:
            add(self.reader)
        else:
            logger.warning("the meter provider %r takes no reader; /metrics and files stay empty", provider)

    def _set_up_logs(self, resource: Resource) -> None:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

        from apivitals.telemetry.exporters import log_exporter

        provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        for name in self.plan.logs:
            provider.add_log_record_processor(BatchLogRecordProcessor(log_exporter(name, self._environ)))
        _logs.set_logger_provider(provider)
        self._closing.append(provider.shutdown)

    def instrumentation(self) -> ServerInstrumentation:
        """The server instrumentation that the settings name."""
        from opentelemetry.sdk.trace import TracerProvider

        from apivitals.telemetry.aggregate import ServerAggregator
        from apivitals.telemetry.instrumentations import upstream
        from apivitals.telemetry.middleware import TelemetryMiddleware
        from apivitals.telemetry.server import ServerObserver

        observer = ServerObserver(self.settings, self.meter)
        provider = trace.get_tracer_provider()
        # What we count ourselves is in our exits only: an application that made its own meter provider, or has a
        # configuration file make it, gets its server metrics through that.
        wanted = self.settings.server_instrumentation == "apivitals" and self._own_meters
        if not wanted or not isinstance(provider, TracerProvider):
            return upstream(observer)
        aggregator = ServerAggregator(self.settings)
        self.reader.add_source(aggregator.collect)
        return TelemetryMiddleware(self.settings, provider, aggregator, observer.rates, self.meter, our_version())

    # --- running

    def activate(self) -> None:
        """Start what belongs to the serving process; the first call does, on the application's event loop."""
        import asyncio

        from apivitals.export.reader import Periodic
        from apivitals.export.scrape import ScrapeServer

        with self._lock:
            if self.active:
                return
            self.active = True
            if self.settings.system_metrics:
                from apivitals.telemetry import system
                from apivitals.telemetry.event_loop import EventLoopLag

                system.register(self.meter)
                self._lag = EventLoopLag(self._lag_histogram.record)
                with suppress(RuntimeError):
                    self._lag.start(asyncio.get_running_loop())
            if self.files is not None and not self.files.writable():
                self.files = None
            if self.files is not None and FILE in self.plan.metrics:
                writer = Periodic("metrics-file", self.settings.files_interval_seconds, self._write_metrics)
                writer.start()
                self._flushing.append(writer.run)
                self._closing.append(writer.stop)
            if PROMETHEUS in self.plan.metrics:
                server = ScrapeServer(self.settings.prometheus_host, self.settings.prometheus_port, self.expose)
                self._server = server if server.start() else None
        self._announce()

    def ready(self) -> None:
        """The application has started: what it holds now it holds for good, if the settings say so."""
        if self.settings.gc_freeze:
            gc.collect()
            gc.freeze()

    def snapshot(self) -> Snapshot:
        """Every metric of this process now."""
        return self.reader.snapshot()

    def expose(self, accept: str = "") -> Exposition:
        """Every metric of this process in the Prometheus format that an Accept header prefers, classic by default."""
        openmetrics = prefers_openmetrics(accept)
        pieces = self._renderer.pieces(self.snapshot(), openmetrics=openmetrics)
        return Exposition(OPENMETRICS if openmetrics else CLASSIC, pieces)

    @property
    def scrape_port(self) -> int | None:
        """The port that serves `/metrics`, None when none does."""
        return self._server.port if self._server is not None else None

    def drop(self, signal: str, reason: str, count: int = 1) -> None:
        """Count telemetry that was lost."""
        self._dropped.add(count, {semconv.SIGNAL: signal, semconv.REASON: reason})

    def flush(self) -> None:
        """Send and write what was measured so far; telemetry goes on afterwards."""
        steps = list(self._flushing)
        for provider in (trace.get_tracer_provider(), _logs.get_logger_provider()):
            flush = getattr(provider, "force_flush", None)
            if flush is not None:
                steps.append(partial(flush, int(FLUSH_SECONDS * 1000)))
        last = [self.files.close] if self.files is not None else []
        run_all("flushing", steps, last)

    def shutdown(self) -> None:
        """Flush and stop everything, within a bounded time; a fault of one exit does not keep the others."""
        with self._lock:
            if self._lag is not None:
                self._lag.stop()
            steps = list(self._closing)
            if self._server is not None:
                steps.append(self._server.stop)
            # What still takes a last snapshot, or writes a last line, comes before what it needs.
            last = [*self._closing_last, *([self.files.close] if self.files is not None else [])]
            self._starting, self._flushing, self._closing, self._server = [], [], [], None
        run_all("shutting down", steps, last)

    def _write_metrics(self) -> None:
        from apivitals.export.otlp import metrics_request

        if self.files is not None:
            snapshot = self.snapshot()
            if snapshot.scopes:
                self.files.write("metrics", metrics_request(snapshot))

    def _announce(self) -> None:
        folder = str(self.files.folder) if self.files is not None else ""
        page = f"http://{self.settings.prometheus_host}:{self.scrape_port}/metrics" if self.scrape_port else ""
        where = targets(self.plan, self._environ, folder, page)
        say(f"apivitals {our_version()}: service {self.service!r}; {where}")


_pipeline: Pipeline | None = None
_lock = RLock()


def configure(*, environ: Mapping[str, str] | None = None, problems: list[str] | None = None, **settings: Any) -> None:
    """Set up OpenTelemetry for this process; a second call does nothing.

    Args:
        environ: the environment to read, `os.environ` by default.
        problems: when given, bad settings are described here and replaced by their defaults.
        **settings: any field of `Settings`; OTEL_* and APIVITALS_* variables win over them.

    Raises:
        ConfigurationError: a setting has a value that cannot be used, and `problems` is None.
    """
    global _pipeline
    environ = os.environ if environ is None else environ
    with _lock:
        if _pipeline is not None or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return
        # Contrib reads it when the first instrumentor is imported, and its default is the old conventions.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
        loaded = Settings.load(environ, directory=Path.cwd(), problems=problems, **settings)
        from apivitals.export.reader import set_current_reader
        from apivitals.telemetry import clients, fastapi

        _pipeline = Pipeline(loaded, environ)
        set_current_reader(_pipeline.reader)
        hook = fastapi.FastAPIHook(
            _pipeline.instrumentation, loaded.excluded_urls, _pipeline.activate, _pipeline.ready, _pipeline.flush
        )
        fastapi.install(hook)
        clients.install()
        atexit.register(shutdown)


def instrument(app: FastAPI) -> FastAPI:
    """Instrument one application, before or after it was given its routes; a second time does nothing.

    Calls `configure()` with the environment's settings when nobody has. Returns the application.
    """
    from apivitals.telemetry import fastapi

    configure()
    hook = fastapi.installed()
    if hook is not None:
        hook.add(app)
    return app


def instrument_everything() -> None:
    """Instrument every FastAPI application of this process, those to come too."""
    from apivitals.telemetry import fastapi

    hook = fastapi.installed()
    if hook is not None:
        hook.everywhere = True


def shutdown() -> None:
    """Flush what is on its way and stop; within seconds, also when an exporter hangs. Idempotent."""
    global _pipeline
    with _lock:
        pipeline, _pipeline = _pipeline, None
    if pipeline is not None:
        from apivitals.export.reader import set_current_reader
        from apivitals.telemetry import clients, fastapi

        set_current_reader(None)
        atexit.unregister(shutdown)
        fastapi.install(None)
        clients.uninstall()
        pipeline.shutdown()


def render_metrics(accept: str = "") -> str:
    """The Prometheus exposition of this process; empty where telemetry is off.

    It is the classic text, or OpenMetrics where an Accept header prefers that.
    """
    pipeline = _pipeline
    return "".join(pipeline.expose(accept).pieces) if pipeline is not None else ""


def current_pipeline() -> Pipeline | None:
    """The pipeline of this process, None before `configure` and after `shutdown`."""
    return _pipeline


def _asks_for_exponential(environ: Mapping[str, str]) -> bool:
    """Whether histograms without boundaries of their own are to be exponential, for every exit alike."""
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    return environ.get(name, "").strip().lower() == "base2_exponential_bucket_histogram"
