"""apivitals: an OpenTelemetry distribution for FastAPI. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apivitals import tally as tally
    from apivitals.analytics.job import PerformanceAnalytics as PerformanceAnalytics
    from apivitals.dashboard.routes import mount as mount
    from apivitals.errors import ApiVitalsError as ApiVitalsError
    from apivitals.errors import ConfigurationError as ConfigurationError
    from apivitals.errors import MissingExtraError as MissingExtraError
    from apivitals.errors import NoDataError as NoDataError
    from apivitals.errors import UnknownMetricError as UnknownMetricError
    from apivitals.models import Alert as Alert
    from apivitals.models import Anomaly as Anomaly
    from apivitals.models import Correlation as Correlation
    from apivitals.models import EndpointMetrics as EndpointMetrics
    from apivitals.models import Forecast as Forecast
    from apivitals.models import HealthStatus as HealthStatus
    from apivitals.models import Report as Report
    from apivitals.models import RequestMetrics as RequestMetrics
    from apivitals.models import SystemMetrics as SystemMetrics
    from apivitals.models import TimeWindow as TimeWindow
    from apivitals.models import Trend as Trend
    from apivitals.monitor.middleware import PerformanceMiddleware as PerformanceMiddleware
    from apivitals.monitor.middleware import monitor_endpoint as monitor_endpoint
    from apivitals.monitor.monitor import PerformanceMonitor as PerformanceMonitor
    from apivitals.settings import PerformanceThresholds as PerformanceThresholds
    from apivitals.settings import Settings as Settings
    from apivitals.telemetry.instrumentor import ApiVitalsInstrumentor as ApiVitalsInstrumentor
    from apivitals.telemetry.setup import configure as configure
    from apivitals.telemetry.setup import instrument as instrument
    from apivitals.telemetry.setup import instrument_everything as instrument_everything
    from apivitals.telemetry.setup import render_metrics as render_metrics
    from apivitals.telemetry.setup import shutdown as shutdown

_HOME = {
    "tally": "apivitals.tally",
    "PerformanceAnalytics": "apivitals.analytics.job",
    "mount": "apivitals.dashboard.routes",
    **dict.fromkeys(
        ("ApiVitalsError", "ConfigurationError", "MissingExtraError", "NoDataError", "UnknownMetricError"),
        "apivitals.errors",
    ),
    **dict.fromkeys(
        (
            "Alert",
            "Anomaly",
            "Correlation",
            "EndpointMetrics",
            "Forecast",
            "HealthStatus",
            "Report",
            "RequestMetrics",
            "SystemMetrics",
            "TimeWindow",
            "Trend",
        ),
        "apivitals.models",
    ),
    **dict.fromkeys(("PerformanceMiddleware", "monitor_endpoint"), "apivitals.monitor.middleware"),
    "PerformanceMonitor": "apivitals.monitor.monitor",
    **dict.fromkeys(("PerformanceThresholds", "Settings"), "apivitals.settings"),
    "ApiVitalsInstrumentor": "apivitals.telemetry.instrumentor",
    **dict.fromkeys(
        ("configure", "instrument", "instrument_everything", "render_metrics", "shutdown"), "apivitals.telemetry.setup"
    ),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'apivitals' has no attribute {name!r}")
    module = import_module(home)
    return module if home == f"apivitals.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
