"""Every metric, attribute, unit and bucket boundary that apivitals emits, in one table.

Names outside the `apivitals.` namespace are OpenTelemetry's stable HTTP conventions and its system,
process and CPython conventions. `docs/telemetry.md` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from apivitals.errors import UnknownMetricError

Kind = Literal["histogram", "counter", "updowncounter", "gauge"]
Statistic = Literal["mean", "p50", "p95", "p99", "rate", "failure_ratio", "value", "sum_rate"]

# --- attributes
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"
URL_SCHEME = "url.scheme"
PROTOCOL_VERSION = "network.protocol.version"
LATENCY_CLASS = "apivitals.latency.class"
ERROR_CLASS = "apivitals.error.class"
DB_QUERIES = "apivitals.db.queries"
DB_SECONDS = "apivitals.db.duration"
CACHE_HITS = "apivitals.cache.hits"
CACHE_MISSES = "apivitals.cache.misses"
CACHE_SECONDS = "apivitals.cache.duration"
OUTBOUND_CALLS = "apivitals.outbound.calls"
OUTBOUND_SECONDS = "apivitals.outbound.duration"
SIGNAL = "apivitals.signal"
REASON = "apivitals.reason"
OPERATION_NAME = "apivitals.operation.name"
WEBSOCKET_RECEIVED = "apivitals.websocket.messages.received"
WEBSOCKET_SENT = "apivitals.websocket.messages.sent"
WEBSOCKET_CLOSE_CODE = "apivitals.websocket.close_code"
NETWORK_DIRECTION = "network.io.direction"

#: What a server histogram may be split by. Anything else is dropped by the view, so that a header or a
#: raw path that an instrumentation adds can never become a label.
SERVER_ATTRIBUTES = frozenset({HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, ERROR_TYPE, URL_SCHEME, PROTOCOL_VERSION})
ROUTE_ATTRIBUTES = frozenset({HTTP_METHOD, HTTP_ROUTE})

# --- bucket boundaries
DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SIZE_BOUNDS = (0.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7)
COUNT_BOUNDS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric: its name, kind, UCUM unit, what it says, and for a histogram its bucket boundaries."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] | None = None


_SERVER = (HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, ERROR_TYPE, URL_SCHEME, PROTOCOL_VERSION)
_ROUTE = (HTTP_METHOD, HTTP_ROUTE)

REQUEST_DURATION = Instrument(
    "http.server.request.duration",
    "histogram",
    "s",
    "Duration of HTTP server requests, to the last body byte.",
    _SERVER,
    DURATION_BOUNDS,
)
REQUEST_BODY_SIZE = Instrument(
    "http.server.request.body.size", "histogram", "By", "Size of HTTP server request bodies.", _SERVER, SIZE_BOUNDS
)
RESPONSE_BODY_SIZE = Instrument(
    "http.server.response.body.size", "histogram", "By", "Size of HTTP server response bodies.", _SERVER, SIZE_BOUNDS
)
ACTIVE_REQUESTS = Instrument(
    "http.server.active_requests",
    "updowncounter",
    "{request}",
    "Requests being served now.",
    (HTTP_METHOD, URL_SCHEME),
)
TIME_TO_FIRST_BYTE = Instrument(
    "apivitals.server.time_to_first_byte",
    "histogram",
    "s",
    "Time until the response starts.",
    _ROUTE,
    DURATION_BOUNDS,
)
ERRORS = Instrument(
    "apivitals.server.errors",
    "counter",
    "{request}",
    "Requests whose error class is not none.",
    (*_ROUTE, ERROR_CLASS),
)
REQUEST_QUERIES = Instrument(
    "apivitals.request.db.queries",
    "histogram",
    "{query}",
    "Database queries of a request that made any.",
    _ROUTE,
    COUNT_BOUNDS,
)
REQUEST_QUERY_TIME = Instrument(
    "apivitals.request.db.duration",
    "histogram",
    "s",
    "Time a request spent in database queries.",
    _ROUTE,
    DURATION_BOUNDS,
)
REQUEST_CACHE_HITS = Instrument(
    "apivitals.request.cache.hits",
    "histogram",
    "{hit}",
    "Cache hits of a request that looked something up.",
    _ROUTE,
    COUNT_BOUNDS,
)
REQUEST_CACHE_MISSES = Instrument(
    "apivitals.request.cache.misses",
    "histogram",
    "{miss}",
    "Cache misses of a request that looked something up.",
    _ROUTE,
    COUNT_BOUNDS,
)
REQUEST_CACHE_TIME = Instrument(
    "apivitals.request.cache.duration",
    "histogram",
    "s",
    "Time a request spent in cache look-ups.",
    _ROUTE,
    DURATION_BOUNDS,
)
REQUEST_OUTBOUND = Instrument(
    "apivitals.request.outbound.calls",
    "histogram",
    "{call}",
    "Calls to other services of a request that made any.",
    _ROUTE,
    COUNT_BOUNDS,
)
REQUEST_OUTBOUND_TIME = Instrument(
    "apivitals.request.outbound.duration",
    "histogram",
    "s",
    "Time a request spent waiting for other services.",
    _ROUTE,
    DURATION_BOUNDS,
)
BACKGROUND_DURATION = Instrument(
    "apivitals.background.duration",
    "histogram",
    "s",
    "Time from the last byte of a response until its background tasks were done.",
    (*_ROUTE, ERROR_TYPE),
    DURATION_BOUNDS,
)
WEBSOCKET_DURATION = Instrument(
    "apivitals.websocket.duration",
    "histogram",
    "s",
    "Duration of WebSocket sessions.",
    (HTTP_ROUTE, ERROR_TYPE),
    (0.1, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0),
)
WEBSOCKET_MESSAGES = Instrument(
    "apivitals.websocket.messages",
    "counter",
    "{message}",
    "Messages of WebSocket sessions, counted when the session ends.",
    (HTTP_ROUTE, NETWORK_DIRECTION),
)
OPERATION_DURATION = Instrument(
    "apivitals.operation.duration",
    "histogram",
    "s",
    "Duration of an operation that the application names itself (`monitor_endpoint`).",
    (OPERATION_NAME, ERROR_TYPE),
    DURATION_BOUNDS,
)
THROUGHPUT = Instrument(
    "apivitals.server.throughput",
    "gauge",
    "{request}/s",
    "Requests per second over the class window; without http.route, of the whole service.",
    _ROUTE,
)
THROUGHPUT_CLASS = Instrument(
    "apivitals.server.throughput.class",
    "gauge",
    "{class}",
    "Throughput class over the class window: 0 excellent, 1 good, 2 acceptable, 3 poor, 4 critical.",
    _ROUTE,
)
ERROR_RATE_CLASS = Instrument(
    "apivitals.server.error_rate.class",
    "gauge",
    "{class}",
    "Error-rate class over the class window: 0 excellent to 4 critical.",
    _ROUTE,
)
EVENT_LOOP_LAG = Instrument(
    "apivitals.event_loop.lag",
    "histogram",
    "s",
    "How late the event loop ran a timer that was due.",
    (),
    LAG_BOUNDS,
)
DROPPED = Instrument(
    "apivitals.telemetry.dropped",
    "counter",
    "{item}",
    "Telemetry that was lost instead of holding up the service.",
    (SIGNAL, REASON),
)

_SYSTEM = (
    Instrument(
        "process.cpu.time",
        "counter",
        "s",
        "CPU time of this process.",
        ("cpu.mode",),
    ),
    Instrument("process.cpu.utilization", "gauge", "1", "CPU time of this process over elapsed time and CPUs."),
    Instrument("process.memory.usage", "updowncounter", "By", "Physical memory of this process."),
    Instrument("process.memory.virtual", "updowncounter", "By", "Virtual memory of this process."),
    Instrument("process.thread.count", "updowncounter", "{thread}", "Threads of this process."),
    Instrument("process.unix.file_descriptor.count", "updowncounter", "{file_descriptor}", "Open file descriptors."),
    Instrument("process.disk.io", "counter", "By", "Bytes this process read and wrote.", ("disk.io.direction",)),
    Instrument("process.uptime", "gauge", "s", "Time since this process started."),
    Instrument(
        "process.network.connection.count",
        "updowncounter",
        "{connection}",
        "Open network connections of this process.",
        ("network.transport", "network.connection.state"),
    ),
    Instrument("system.cpu.time", "counter", "s", "CPU time of the host.", ("cpu.mode",)),
    Instrument("system.cpu.utilization", "gauge", "1", "Share of the host's CPU time that was not idle."),
    Instrument("system.memory.usage", "updowncounter", "By", "Memory of the host.", ("system.memory.state",)),
    Instrument("system.memory.utilization", "gauge", "1", "Share of the host's memory that is not available."),
    Instrument("system.disk.io", "counter", "By", "Bytes the host read and wrote.", ("disk.io.direction",)),
    Instrument(
        "system.filesystem.utilization", "gauge", "1", "Share of the working directory's file system that is used."
    ),
    Instrument("system.network.io", "counter", "By", "Bytes the host sent and received.", ("network.io.direction",)),
    Instrument(
        "cpython.gc.collections",
        "counter",
        "{collection}",
        "Garbage collections by generation.",
        ("cpython.gc.generation",),
    ),
    Instrument(
        "cpython.gc.collected_objects",
        "counter",
        "{object}",
        "Objects that garbage collection freed.",
        ("cpython.gc.generation",),
    ),
)

INSTRUMENTS: dict[str, Instrument] = {
    instrument.name: instrument
    for instrument in (
        REQUEST_DURATION,
        REQUEST_BODY_SIZE,
        RESPONSE_BODY_SIZE,
        ACTIVE_REQUESTS,
        TIME_TO_FIRST_BYTE,
        ERRORS,
        REQUEST_QUERIES,
        REQUEST_QUERY_TIME,
        REQUEST_CACHE_HITS,
        REQUEST_CACHE_MISSES,
        REQUEST_CACHE_TIME,
        REQUEST_OUTBOUND,
        REQUEST_OUTBOUND_TIME,
        BACKGROUND_DURATION,
        WEBSOCKET_DURATION,
        WEBSOCKET_MESSAGES,
        OPERATION_DURATION,
        THROUGHPUT,
        THROUGHPUT_CLASS,
        ERROR_RATE_CLASS,
        EVENT_LOOP_LAG,
        DROPPED,
        *_SYSTEM,
    )
}


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """How a short name reads as a number over time: a metric, a statistic of it, and the factor to its unit.

    Attributes:
        metric: the OpenTelemetry name.
        statistic: `mean` and percentiles of a histogram; `rate` (points per second of a histogram's count or
            a counter); `sum_rate` (a histogram's sum per request); `failure_ratio` (failed requests ÷ requests);
            `value` (a gauge or an up-down counter).
        scale: what the statistic is multiplied by.
        unit: the unit after scaling, as shown to a person.
        where: attributes that points must carry.
    """

    metric: str
    statistic: Statistic
    scale: float = 1.0
    unit: str = ""
    where: tuple[tuple[str, str], ...] = ()


_DURATION = REQUEST_DURATION.name

#: The short names of the user's guide, and what each means.
SHORT_NAMES: dict[str, MetricQuery] = {
    "response_time": MetricQuery(_DURATION, "mean", 1e3, "ms"),
    "response_time_p50": MetricQuery(_DURATION, "p50", 1e3, "ms"),
    "response_time_p95": MetricQuery(_DURATION, "p95", 1e3, "ms"),
    "response_time_p99": MetricQuery(_DURATION, "p99", 1e3, "ms"),
    "latency": MetricQuery(_DURATION, "p95", 1e3, "ms"),
    "throughput": MetricQuery(_DURATION, "rate", 1.0, "rps"),
    "error_rate": MetricQuery(_DURATION, "failure_ratio", 100.0, "%"),
    "cpu_usage": MetricQuery("system.cpu.utilization", "value", 100.0, "%"),
    "process_cpu_usage": MetricQuery("process.cpu.utilization", "value", 100.0, "%"),
    "memory_usage": MetricQuery("system.memory.utilization", "value", 100.0, "%"),
    "process_memory": MetricQuery("process.memory.usage", "value", 1 / 1048576, "MiB"),
    "disk_usage": MetricQuery("system.filesystem.utilization", "value", 100.0, "%"),
    "network_sent": MetricQuery("system.network.io", "rate", 1.0, "B/s", (("network.io.direction", "transmit"),)),
    "network_received": MetricQuery("system.network.io", "rate", 1.0, "B/s", (("network.io.direction", "receive"),)),
    "active_connections": MetricQuery("process.network.connection.count", "value", 1.0, "connections"),
    "active_requests": MetricQuery(ACTIVE_REQUESTS.name, "value", 1.0, "requests"),
    "event_loop_lag": MetricQuery(EVENT_LOOP_LAG.name, "p95", 1e3, "ms"),
    "database_queries": MetricQuery(REQUEST_QUERIES.name, "mean", 1.0, "queries/request"),
    "database_time": MetricQuery(REQUEST_QUERY_TIME.name, "mean", 1e3, "ms"),
    "cache_hits": MetricQuery(REQUEST_CACHE_HITS.name, "mean", 1.0, "hits/request"),
    "cache_misses": MetricQuery(REQUEST_CACHE_MISSES.name, "mean", 1.0, "misses/request"),
    "external_api_calls": MetricQuery(REQUEST_OUTBOUND.name, "mean", 1.0, "calls/request"),
    "external_api_time": MetricQuery(REQUEST_OUTBOUND_TIME.name, "mean", 1e3, "ms"),
}

_DEFAULT_STATISTIC: dict[Kind, Statistic] = {
    "histogram": "mean",
    "counter": "rate",
    "updowncounter": "value",
    "gauge": "value",
}


def resolve_metric(name: str, also: Iterable[str] = ()) -> MetricQuery:
    """The query behind a short name (`response_time`) or an OpenTelemetry name.

    Args:
        name: what the user wrote.
        also: names of metrics that the data holds although we do not emit them; they are read as values.

    Raises:
        UnknownMetricError: neither is known; the message names close ones.
    """
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name in INSTRUMENTS:
        instrument = INSTRUMENTS[name]
        return MetricQuery(name, _DEFAULT_STATISTIC[instrument.kind], 1.0, instrument.unit)
    others = tuple(also)
    if name in others:
        return MetricQuery(name, "value")
    close = get_close_matches(name, [*SHORT_NAMES, *INSTRUMENTS, *others], n=3)
    raise UnknownMetricError(name, tuple(SHORT_NAMES), tuple(close))
