"""PerformanceMonitor: what the service does now, from its own telemetry of the last minutes."""

from __future__ import annotations

import os
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from heapq import nlargest
from pathlib import Path
from threading import Lock
from time import perf_counter, time_ns
from typing import Any

from opentelemetry.metrics import get_meter

from apivitals import semconv, tally
from apivitals.errors import ConfigurationError
from apivitals.export.otlp import metrics_request
from apivitals.export.prometheus import PrometheusRenderer
from apivitals.export.reader import Periodic, current_reader
from apivitals.export.snapshot import Snapshot
from apivitals.models import Alert, EndpointMetrics, RequestMetrics, SystemMetrics, as_dict
from apivitals.monitor import health
from apivitals.monitor.window import Delta, LiveWindow
from apivitals.settings import PerformanceThresholds, Settings

_SAMPLE_SECONDS = 5.0
_RECENT = 200
_SLOWEST = 50
_OPEN = 10_000
_ERROR_TYPES = 100


class PerformanceMonitor:
    """Answers from the live window: health, summary, endpoints, alerts, Prometheus text.

    Making one sets telemetry up for every FastAPI application of the process, where the launcher or
    `apivitals.configure` has not. It measures nothing itself: the numbers are those of the histograms that
    are exported.

    Args:
        thresholds: the class bounds; those of the settings by default.
        window_seconds: how far back the summary and the health look.
        capture_client: keep the address and the user agent of recent requests.
    """

    def __init__(
        self,
        thresholds: PerformanceThresholds | None = None,
        *,
        window_seconds: float = 60.0,
        capture_client: bool = False,
    ) -> None:
        import apivitals

        if not 0 < window_seconds < float("inf"):
            raise ConfigurationError(f"window_seconds is {window_seconds!r}; give a number above 0")
        apivitals.configure(thresholds=thresholds)
        apivitals.instrument_everything()
        settings = Settings.load(os.environ, directory=Path.cwd(), problems=[])
        self.thresholds = thresholds or settings.thresholds
        self.window_seconds = window_seconds
        self._throughput_objective = settings.throughput_objective
        self._capture_client = capture_client
        self._window = LiveWindow(_present)
        self._renderer = PrometheusRenderer()
        self._sampler: Periodic | None = None
        self._alert_config: dict[str, float] = {}
        self._watched: set[str] = set()
        self._open: dict[str, tuple[RequestMetrics, float, tally.Tally | None]] = {}
        self._recent: deque[RequestMetrics] = deque(maxlen=_RECENT)
        self._slowest: list[RequestMetrics] = []
        self._errors: Counter[str] = Counter()
        self._lock = Lock()
        self._operations = get_meter("apivitals").create_histogram(
            semconv.OPERATION_DURATION.name,
            semconv.OPERATION_DURATION.unit,
            semconv.OPERATION_DURATION.description,
            explicit_bucket_boundaries_advisory=semconv.OPERATION_DURATION.bounds,
        )

    # --- running

    @property
    def _is_running(self) -> bool:
        return self._sampler is not None

    async def start_monitoring(self) -> None:
        """Keep snapshots from now on; a second call does nothing."""
        if self._sampler is None:
            # The window begins now, and not when the process did.
            self._window.sample()
            self._sampler = Periodic("window", _SAMPLE_SECONDS, self._window.sample)
            self._sampler.start()

    async def start_background_monitoring(self) -> None:
        """The same as `start_monitoring`, which is in the background already."""
        await self.start_monitoring()

    async def stop_monitoring(self) -> None:
        """Stop keeping snapshots."""
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    # --- answers

    def get_performance_summary(self) -> dict[str, Any]:
        """The last `window_seconds` as the guide's nested dictionary."""
        delta, rows, whole = self._read()
        system = as_dict(self._system(delta, whole))
        return {
            "timestamp": _utc(delta.now.time_ns),
            "window_seconds": round(delta.seconds, 3),
            "system": system,
            "response_time": {
                "avg_ms": whole.avg_duration_ms,
                "p50_ms": whole.p50_duration_ms,
                "p95_ms": whole.p95_duration_ms,
                "p99_ms": whole.p99_duration_ms,
            },
            "throughput": {"rps": whole.requests_per_second, "class": whole.throughput_class},
            "requests": {
                "total": whole.total_requests,
                "successful": whole.successful_requests,
                "failed": whole.failed_requests,
                "error_rate_percent": whole.error_rate_percent,
                "error_rate_class": whole.error_rate_class,
            },
            "latency_classes": dict(whole.latency_classes),
            "endpoints": [as_dict(row) for row in self._with_watched(rows)],
            "errors": dict(self._errors),
            "recent_requests": [as_dict(request) for request in list(self._recent)[-20:]],
            "slowest_requests": [as_dict(request) for request in self._slowest[:20]],
            "alerts": self.performance_alerts,
        }

    def get_health_status(self) -> dict[str, Any]:
        """Status `healthy`, `degraded`, `unhealthy` or `unknown`, the class of each objective, and the reasons."""
        delta, rows, whole = self._read()
        status = health.health(
            whole, rows, self.thresholds, delta.seconds, throughput_objective=self._throughput_objective
        )
        return dict(as_dict(status))

    def get_endpoint_metrics(self) -> list[EndpointMetrics]:
        """Every route and method requested in the window, the busiest first."""
        return self._read()[1]

    def get_system_metrics(self) -> SystemMetrics:
        """The process and its host now."""
        delta, _, whole = self._read()
        return self._system(delta, whole)

    def get_prometheus_metrics(self) -> str:
        """The Prometheus exposition of this process."""
        return self._renderer.render(_present())

    @property
    def performance_alerts(self) -> list[dict[str, Any]]:
        """The alerts of `setup_alerts` that hold now."""
        return [as_dict(alert) for alert in self._alerts()]

    def setup_alerts(self, alert_config: Mapping[str, float]) -> None:
        """Watch the thresholds of the guide's `alert_config`.

        Raises:
            ConfigurationError: an unknown key or a threshold that is not a number above 0.
        """
        self._alert_config = health.checked_alert_config(alert_config)

    def add_endpoint_monitoring(self, path: str) -> None:
        """Show an endpoint in the summary also while nobody requests it."""
        self._watched.add(path)

    def requests(self, start: datetime | None = None, end: datetime | None = None) -> Iterator[dict[str, Any]]:
        """The kept snapshots as OTLP export requests: what `PerformanceAnalytics(monitor)` reads."""
        for snapshot in (*self._window.snapshots(), _present()):
            taken = datetime.fromtimestamp(snapshot.time_ns / 1e9, timezone.utc)
            if (start is None or taken >= start) and (end is None or taken <= end):
                yield metrics_request(snapshot)

    # --- single requests and operations

    def start_request(self, request: Any) -> str:
        """Note that a request has begun; the id is for `end_request`. Counts nothing: the telemetry does."""
        identity = uuid.uuid4().hex
        client = getattr(request, "client", None)
        noted = RequestMetrics(
            request_id=identity,
            method=request.method,
            # Building the URL fails on a Host header that is none.
            path=request.scope["path"] if hasattr(request, "scope") else request.url.path,
            request_size_bytes=_length(request.headers),
            user_agent=request.headers.get("user-agent") if self._capture_client else None,
            ip_address=client.host if client is not None and self._capture_client else None,
        )
        with self._lock:
            # Requests whose end is never told must not pile up.
            if len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[identity] = (noted, perf_counter(), tally.current())
        return identity

    def end_request(self, request_id: str, response: Any, duration_ms: float | None = None) -> RequestMetrics | None:
        """Note that a request has ended, and keep it among the recent and slowest; None for an unknown id."""
        with self._lock:
            opened = self._open.pop(request_id, None)
            if opened is None:
                return None
            noted, began, done = opened
            ended = replace(
                noted,
                status_code=response.status_code,
                duration_ms=(perf_counter() - began) * 1e3 if duration_ms is None else duration_ms,
                response_size_bytes=_length(response.headers),
                database_queries=done.queries if done else 0,
                cache_hits=done.cache_hits if done else 0,
                cache_misses=done.cache_misses if done else 0,
                external_api_calls=done.outbound_calls if done else 0,
            )
            self._recent.append(ended)
            self._slowest = nlargest(_SLOWEST, [*self._slowest, ended], key=lambda each: each.duration_ms)
        return ended

    def record_error(self, request: Any, error: BaseException) -> None:
        """Count an error by its type. The request itself is counted by the telemetry."""
        name = type(error).__name__
        with self._lock:
            if name in self._errors or len(self._errors) < _ERROR_TYPES:
                self._errors[name] += 1

    def record_endpoint_metrics(self, endpoint_name: str, duration_ms: float, success: bool = True) -> None:
        """Record one run of an operation that the application names itself."""
        attributes = {semconv.OPERATION_NAME: endpoint_name}
        if not success:
            attributes[semconv.ERROR_TYPE] = "_OTHER"
        self._operations.record(duration_ms / 1e3, attributes)

    # --- reading

    def _read(self) -> tuple[Delta, list[EndpointMetrics], EndpointMetrics]:
        delta = self._window.since(self.window_seconds)
        rows = health.endpoints(delta, self.thresholds)
        return delta, rows, health.total(rows, delta, self.thresholds)

    def _alerts(self) -> list[Alert]:
        if not self._alert_config:
            return []
        delta, _, whole = self._read()
        system = as_dict(self._system(delta, whole))
        # Without a request there is no response time and no error rate to complain about.
        if not whole.total_requests:
            system |= {"response_time_ms": None, "error_rate_percent": None}
        else:
            system["response_time_ms"] = whole.avg_duration_ms
        return health.alerts(system, self._alert_config, self.thresholds)

    def _with_watched(self, rows: list[EndpointMetrics]) -> list[EndpointMetrics]:
        idle = sorted(self._watched - {row.path for row in rows})
        return [*rows, *(EndpointMetrics("*", path) for path in idle)]

    def _system(self, delta: Delta, whole: EndpointMetrics) -> SystemMetrics:
        def gauge(name: str, **where: str) -> float:
            points = delta.values(name)
            return float(
                sum(
                    point.value for point in points if all(dict(point.attributes).get(k) == v for k, v in where.items())
                )
            )

        def direction(name: str) -> int:
            return int(gauge("system.network.io", **{"network.io.direction": name}))

        return SystemMetrics(
            timestamp=datetime.fromtimestamp(delta.now.time_ns / 1e9, timezone.utc),
            cpu_usage_percent=gauge("system.cpu.utilization") * 100,
            memory_usage_percent=gauge("system.memory.utilization") * 100,
            memory_available_mb=gauge("system.memory.usage", **{"system.memory.state": "free"}) / 1048576,
            disk_usage_percent=gauge("system.filesystem.utilization") * 100,
            network_bytes_sent=direction("transmit"),
            network_bytes_received=direction("receive"),
            active_connections=int(gauge("process.network.connection.count")),
            total_requests_per_second=whole.requests_per_second,
            avg_response_time_ms=whole.avg_duration_ms,
            error_rate_percent=whole.error_rate_percent,
            throughput_rps=whole.requests_per_second,
        )


def _present() -> Snapshot:
    reader = current_reader()
    # Telemetry that is switched off must not break the routes that would show it.
    return reader.snapshot() if reader is not None else Snapshot(time_ns(), (), ())


def _length(headers: Mapping[str, str]) -> int:
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, timezone.utc).isoformat()
