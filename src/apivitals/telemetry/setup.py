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
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import RLock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import _logs, metrics, trace

from apivitals import semconv
from apivitals.errors import ConfigurationError
from apivitals.settings import Settings
from apivitals.telemetry.plan import FILE, PROMETHEUS, ExportPlan, export_plan, guess_service_name

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from apivitals.export.files import TelemetryFiles
    from apivitals.export.scrape import ScrapeServer
    from apivitals.export.snapshot import Snapshot
    from apivitals.telemetry.event_loop import EventLoopLag
    from apivitals.telemetry.instrumentations import ServerInstrumentation

logger = logging.getLogger("apivitals")

_FLUSH_SECONDS = 5.0


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
        from apivitals.export.reader import FanOutReader, Periodic
        from apivitals.telemetry.propagation import mend_empty_propagator

        self.settings = settings
        self.plan: ExportPlan = export_plan(environ)
        self.files: TelemetryFiles | None = None
        self.active = False
        self.reader = FanOutReader()
        self._environ = environ
        self._renderer = PrometheusRenderer()
        self._periodic: list[Periodic] = []
        self._closing: list[Callable[[], object]] = []
        self._server: ScrapeServer | None = None
        self._lag: EventLoopLag | None = None
        self._lock = RLock()
        if environ.get("OTEL_CONFIG_FILE"):
            self._from_config_file(environ["OTEL_CONFIG_FILE"])
        else:
            self._from_environment()
        meter = metrics.get_meter("apivitals", _version())
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
        self.service = _service_of(getattr(trace.get_tracer_provider(), "resource", None))
        self._adopt_meter_provider(metrics.get_meter_provider())

    def _from_environment(self) -> None:
        resource = _resource(self.settings, self._environ)
        self.service = _service_of(resource)
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
        if type(meters).__name__ == "_ProxyMeterProvider":
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
            sampler=_registered_sampler(self._environ),
            id_generator=_registered_id_generator(self._environ),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._closing.append(provider.shutdown)
        return provider

    def _span_processors(self) -> list[SpanProcessor]:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

        from apivitals.export.files import FileSpanExporter
        from apivitals.telemetry.exporters import CountingSpanExporter, span_exporter
        from apivitals.telemetry.processors import ClassifyingProcessor

        processors: list[SpanProcessor] = []
        for name in self.plan.traces:
            if name == FILE and self.files is not None:
                inner: SpanProcessor = BatchSpanProcessor(FileSpanExporter(self.files))
            else:
                exporter = span_exporter(name, self._environ)
                if isinstance(exporter, ConsoleSpanExporter):
                    inner = SimpleSpanProcessor(exporter)
                else:
                    inner = BatchSpanProcessor(CountingSpanExporter(exporter, self.drop))
            processors.append(ClassifyingProcessor(inner, self.settings))
        return processors

    def _meter_provider(self, resource: Resource) -> MeterProvider:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader

        from apivitals.export.reader import Periodic
        from apivitals.telemetry.exporters import metric_exporter, wants_reader_of_its_own
        from apivitals.telemetry.views import views

        readers: list[MetricReader] = [self.reader]
        for name in self.plan.metrics:
            if name in (FILE, PROMETHEUS):
                continue
            exporter = metric_exporter(name, self._environ)
            if isinstance(exporter, MetricReader):
                readers.append(exporter)
            elif isinstance(exporter, MetricExporter) and wants_reader_of_its_own(exporter):
                readers.append(PeriodicExportingMetricReader(exporter))
            else:
                push = Periodic(f"metrics-{name}", self._push_interval(), partial(self._push, exporter))
                self._periodic.append(push)
                self._closing.append(exporter.shutdown)
        provider = MeterProvider(
            metric_readers=readers, resource=resource, views=views(self.settings), shutdown_on_exit=False
        )
        self._closing.append(provider.shutdown)
        for push in self._periodic:
            push.start()
        return provider

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

    def _push_interval(self) -> float:
        """OTEL_METRIC_EXPORT_INTERVAL, in seconds; the specification's 60 without it."""
        return self.settings.files_interval_seconds if self._environ.get("OTEL_METRIC_EXPORT_INTERVAL") else 60.0

    def _push(self, exporter: Any) -> None:
        from apivitals.export.sdk import to_sdk

        snapshot = self.snapshot()
        if snapshot.scopes and exporter.export(to_sdk(snapshot)).name != "SUCCESS":
            self.drop("metrics", "export")

    def instrumentation(self) -> ServerInstrumentation:
        """The server instrumentation that the settings name."""
        from opentelemetry.sdk.trace import TracerProvider

        from apivitals.telemetry.aggregate import ServerAggregator
        from apivitals.telemetry.instrumentations import upstream
        from apivitals.telemetry.middleware import TelemetryMiddleware
        from apivitals.telemetry.server import ServerObserver

        observer = ServerObserver(self.settings, self.meter)
        provider = trace.get_tracer_provider()
        if self.settings.server_instrumentation != "apivitals" or not isinstance(provider, TracerProvider):
            return upstream(observer)
        aggregator = ServerAggregator(self.settings)
        self.reader.add_source(aggregator.collect)
        return TelemetryMiddleware(self.settings, provider, aggregator, observer.rates, self.meter, _version())

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
                self._periodic.append(writer)
            if PROMETHEUS in self.plan.metrics:
                server = ScrapeServer(self.settings.prometheus_host, self.settings.prometheus_port, self.render_metrics)
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

    def render_metrics(self) -> str:
        """The Prometheus exposition of every metric of this process."""
        return self._renderer.render(self.snapshot())

    @property
    def scrape_port(self) -> int | None:
        """The port that serves `/metrics`, None when none does."""
        return self._server.port if self._server is not None else None

    def drop(self, signal: str, reason: str, count: int = 1) -> None:
        """Count telemetry that was lost."""
        self._dropped.add(count, {semconv.SIGNAL: signal, semconv.REASON: reason})

    def flush(self) -> None:
        """Send and write what was measured so far; telemetry goes on afterwards."""
        steps = [periodic.run for periodic in self._periodic]
        for provider in (trace.get_tracer_provider(), _logs.get_logger_provider()):
            flush = getattr(provider, "force_flush", None)
            if flush is not None:
                steps.append(partial(flush, int(_FLUSH_SECONDS * 1000)))
        _run_all("flushing", steps, self.files.close if self.files is not None else None)

    def shutdown(self) -> None:
        """Flush and stop everything, within a bounded time; a fault of one exit does not keep the others."""
        with self._lock:
            if self._lag is not None:
                self._lag.stop()
            steps = [*(periodic.stop for periodic in self._periodic), *self._closing]
            if self._server is not None:
                steps.append(self._server.stop)
            self._periodic, self._closing, self._server = [], [], None
        _run_all("shutting down", steps, self.files.close if self.files is not None else None)

    def _write_metrics(self) -> None:
        from apivitals.export.otlp import metrics_request

        if self.files is not None:
            snapshot = self.snapshot()
            if snapshot.scopes:
                self.files.write("metrics", metrics_request(snapshot))

    def _governed(self) -> str:
        if self._environ.get("OTEL_CONFIG_FILE"):
            return f"exporters by {self._environ['OTEL_CONFIG_FILE']}"
        return "nothing is exported, as OTEL_*_EXPORTER say"

    def _announce(self) -> None:
        """One line that says what goes where."""
        exits = []
        for signal in ("traces", "metrics", "logs"):
            for name in getattr(self.plan, signal):
                if name == FILE:
                    target = str(self.files.folder) if self.files else "nowhere (see the warning above)"
                elif name == PROMETHEUS:
                    port = self.scrape_port
                    host = self.settings.prometheus_host
                    target = f"http://{host}:{port}/metrics" if port else "nowhere (see the warning above)"
                elif name.startswith("otlp"):
                    target = f"OTLP {_otlp_target(self._environ, signal)}"
                else:
                    target = name
                exits.append(f"{signal} → {target}")
        text = f"apivitals {_version()}: service {self.service!r}; {'; '.join(exits) or self._governed()}"
        _say(text)


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


def render_metrics() -> str:
    """The Prometheus exposition of this process; empty where telemetry is off."""
    pipeline = _pipeline
    return pipeline.render_metrics() if pipeline is not None else ""


def current_pipeline() -> Pipeline | None:
    """The pipeline of this process, None before `configure` and after `shutdown`."""
    return _pipeline


def _run_all(what: str, steps: Sequence[Callable[[], object]], last: Callable[[], object] | None) -> None:
    """Run steps side by side and then the last one, for a bounded time: an exporter that hangs holds up nobody."""

    def run(step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            logger.warning("%s telemetry: %r failed", what, step, exc_info=True)

    threads = [Thread(target=run, args=(step,), name="apivitals-flush", daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    deadline = monotonic() + _FLUSH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    if any(thread.is_alive() for thread in threads):
        logger.warning("%s telemetry took more than %g s and goes on without waiting", what, _FLUSH_SECONDS)
    if last is not None:
        run(last)


def _version() -> str:
    try:
        return version("apivitals")
    except PackageNotFoundError:
        return "unknown"


def _resource(settings: Settings, environ: Mapping[str, str]) -> Resource:
    """What the environment says of the service, completed by what we know; the environment wins."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    said = OTELResourceDetector().detect().attributes
    ours: dict[str, Any] = {
        "service.instance.id": str(uuid.uuid4()),
        "telemetry.distro.name": "apivitals",
        "telemetry.distro.version": _version(),
    }
    name = settings.service_name or guess_service_name(_command_line(), os.getcwd())
    if name:
        ours["service.name"] = name
    return Resource.create({key: value for key, value in ours.items() if key not in said})


def _command_line() -> list[str]:
    """The command that started this process; of a spawned worker, the one that started its parent."""
    words = list(getattr(sys, "orig_argv", sys.argv))
    if any("multiprocessing" in word for word in words):
        import psutil

        with suppress(psutil.Error):
            parent = psutil.Process().parent()
            words = parent.cmdline() if parent is not None else words
    return words


def _service_of(resource: Any) -> str:
    attributes = getattr(resource, "attributes", None) or {}
    return str(attributes.get("service.name") or "unknown_service")


def _registered_sampler(environ: Mapping[str, str]) -> Any:
    """A sampler that an installed package registers; the SDK itself reads the variable for its own."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    if not name or name in ("always_on", "always_off", "traceidratio") or name.startswith("parentbased_"):
        return None
    from opentelemetry.sdk._configuration import _import_sampler

    return _import_sampler(name)


def _registered_id_generator(environ: Mapping[str, str]) -> Any:
    name = environ.get("OTEL_PYTHON_ID_GENERATOR", "").strip()
    if not name or name == "random":
        return None
    from opentelemetry.sdk._configuration import _import_id_generator

    return _import_id_generator(name)


def _otlp_target(environ: Mapping[str, str], signal: str) -> str:
    from apivitals.telemetry.plan import otlp_protocol

    named = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = otlp_protocol(environ, signal.upper())
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    return f"{protocol} {named or default}"


def _say(text: str) -> None:
    """Log a line so that it is seen: under a server that configures only its own loggers nobody prints INFO."""
    seen = logger
    while seen is not None:
        if any(isinstance(handler, logging.StreamHandler) for handler in seen.handlers):
            logger.info(text)
            return
        seen = seen.parent if seen.propagate else None  # type: ignore[assignment]
    print(f"INFO:     {text}", file=sys.stderr, flush=True)  # noqa: T201
