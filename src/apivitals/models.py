"""The data that the wings hand to one another and to the user: frozen, slotted, and nothing but data.

Times are timezone-aware UTC datetimes. Durations carry their unit in the name (`_ms`, `_seconds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Literal

from apivitals.classify import Class
from apivitals.semconv import Instrument

TrendDirection = Literal["increasing", "decreasing", "stable", "not enough data"]
Severity = Literal["low", "medium", "high", "critical"]


def utc_now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(timezone.utc)


class TimeWindow(Enum):
    """A span of time that an analysis looks at; `.seconds` is its length."""

    MINUTE = 60
    FIVE_MINUTES = 300
    HOUR = 3_600
    DAY = 86_400
    WEEK = 604_800
    MONTH = 2_592_000

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return float(self.value)


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """One request. Address, user agent and user id stay empty unless they are switched on."""

    request_id: str
    method: str
    path: str
    status_code: int | None = None
    start_time: datetime = field(default_factory=utc_now)
    duration_ms: float = 0.0
    request_size_bytes: int = 0
    response_size_bytes: int = 0
    user_agent: str | None = None
    ip_address: str | None = None
    user_id: str | None = None
    database_queries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    external_api_calls: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """All requests of one route and method over a window."""

    method: str
    path: str
    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    total_duration_ms: float = 0.0
    avg_duration_ms: float = 0.0
    p50_duration_ms: float = 0.0
    p95_duration_ms: float = 0.0
    p99_duration_ms: float = 0.0
    min_duration_ms: float = 0.0
    max_duration_ms: float = 0.0
    total_database_queries: int = 0
    total_cache_hits: int = 0
    total_cache_misses: int = 0
    total_external_api_calls: int = 0
    requests_per_second: float = 0.0
    error_rate_percent: float = 0.0
    latency_classes: Mapping[Class, int] = field(default_factory=dict)
    throughput_class: Class = "critical"
    error_rate_class: Class = "excellent"


@dataclass(frozen=True, slots=True)
class SystemMetrics:
    """The process and its host at one moment."""

    timestamp: datetime = field(default_factory=utc_now)
    cpu_usage_percent: float = 0.0
    memory_usage_percent: float = 0.0
    memory_available_mb: float = 0.0
    disk_usage_percent: float = 0.0
    network_bytes_sent: int = 0
    network_bytes_received: int = 0
    active_connections: int = 0
    total_requests_per_second: float = 0.0
    avg_response_time_ms: float = 0.0
    error_rate_percent: float = 0.0
    throughput_rps: float = 0.0


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """How the service does over a window: the worst objective decides, and the reasons say why."""

    status: Literal["healthy", "degraded", "unhealthy", "unknown"]
    latency: Class
    errors: Class
    throughput: Class
    reasons: tuple[str, ...] = ()
    window_seconds: float = 60.0
    timestamp: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that holds now."""

    type: str
    title: str
    message: str
    severity: Literal["warning", "error", "critical"]
    value: float
    threshold: float
    timestamp: datetime = field(default_factory=utc_now)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trend:
    """Where a metric is heading, beyond its daily pattern and its noise.

    Attributes:
        trend_strength: share of the detrended spread that the drift makes up, 0 to 1.
        slope: change per hour, in the metric's unit.
        change: change over the whole window, in the metric's unit.
        p_value: probability of a drift this large if there is none, given the autocorrelation.
        message: the same in a sentence; for `not enough data`, what was there and what is needed.
    """

    metric: str
    trend_direction: TrendDirection
    trend_strength: float = 0.0
    slope: float = 0.0
    change: float = 0.0
    r_squared: float = 0.0
    p_value: float = 1.0
    confidence: float = 0.0
    points: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    unit: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """An episode in which a metric left what was expected of it.

    `timestamp` is the start, `value` the value at the peak, `expected_value` what was expected there, and
    `lower` and `upper` the band around it.
    """

    metric: str
    timestamp: datetime
    end_time: datetime
    peak_time: datetime
    value: float
    expected_value: float
    lower: float
    upper: float
    severity: Severity
    confidence: float
    direction: Literal["up", "down"]
    unit: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A lasting step of a metric's level; for later use by the change-point search."""

    metric: str
    timestamp: datetime
    before: float
    after: float
    confidence: float
    unit: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Two metrics that move together beyond the clock they share.

    `lag_seconds` is positive when `metric2` follows `metric1`.
    """

    metric1: str
    metric2: str
    correlation_coefficient: float
    significance: Literal["strong", "moderate", "weak", "none", "not enough data"]
    relationship: Literal["positive", "negative", "none"]
    p_value: float = 1.0
    lag_seconds: float = 0.0
    points: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next values of a metric with a 95 % band; empty with a message when there is not enough data.

    `mase` is the error of the same method on held-out data against repeating the last period (below 1 is
    better), `coverage` the share of held-out values that fell into the band; None where the data are too
    short to hold any out.
    """

    metric: str
    timestamps: tuple[datetime, ...] = ()
    mean: tuple[float, ...] = ()
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()
    method: str = ""
    mase: float | None = None
    coverage: float | None = None
    unit: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """One route (or, with route `*`, the whole service) over the analysed window.

    `latency_classes` and `error_classes` are counts; percentiles are interpolated inside a bucket.
    """

    method: str
    route: str
    count: int
    rps: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failures: int
    error_rate_percent: float
    latency_classes: Mapping[Class, int]
    error_classes: Mapping[str, int]
    latency_class: Class
    throughput_class: Class
    error_rate_class: Class
    queries_per_request: float | None = None
    cache_hit_percent: float | None = None
    outbound_per_request: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth telling a person: what happened, where, since when, how sure, and what to do.

    `impact` is the number of requests that were hit; findings are ranked by it.
    """

    kind: Literal["latency", "errors", "traffic", "saturation", "trend", "correlation", "forecast"]
    severity: Severity
    title: str
    detail: str
    metric: str
    start_time: datetime | None = None
    end_time: datetime | None = None
    route: str | None = None
    method: str | None = None
    value: float | None = None
    expected_value: float | None = None
    confidence: float = 0.0
    impact: int = 0
    evidence: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChartSeries:
    """One metric over time for a chart: seconds since the epoch, values (None is a gap), optional band, marks."""

    name: str
    unit: str
    timestamps: tuple[float, ...]
    values: tuple[float | None, ...]
    lower: tuple[float | None, ...] = ()
    upper: tuple[float | None, ...] = ()
    episodes: tuple[tuple[float, float], ...] = ()
    forecast_from: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run of the analytics job has to say about one service."""

    service: str
    period: str
    start_time: datetime | None
    end_time: datetime | None
    step_seconds: float
    total: RouteSummary | None = None
    routes: tuple[RouteSummary, ...] = ()
    findings: tuple[Finding, ...] = ()
    trends: tuple[Trend, ...] = ()
    anomalies: tuple[Anomaly, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    charts: tuple[ChartSeries, ...] = ()
    notes: tuple[str, ...] = ()
    generated_at: datetime = field(default_factory=utc_now)
    schema_version: int = 1


#: One request that stands for its bucket: nanoseconds since the epoch, trace id, span id, value.
MeasuredExemplar = tuple[int, int, int, float]


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One series of an instrument, cumulative: a histogram's sum and buckets, or with no bounds a plain value."""

    attributes: tuple[tuple[str, str | int | bool], ...]
    start_ns: int
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    min: float = 0.0
    max: float = 0.0
    exemplars: tuple[MeasuredExemplar, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured outside of the SDK for one instrument."""

    instrument: Instrument
    points: tuple[MeasuredPoint, ...]


def as_dict(record: Any) -> Any:
    """A record as plain JSON values: datetimes become ISO 8601 text, non-finite numbers None."""
    return _plain(asdict(record))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
