"""What apivitals adds to a request, whoever makes its span: classes, tallies and our own histograms.

`ServerObserver.serve` wraps the whole application, outside of the span's maker; `InnerObserver` stands inside
of it, next to the application. Between them they see everything that decides a request's class while the span
can still be written to.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Span, get_current_span
from opentelemetry.util.http import sanitize_method

from apivitals import semconv, tally
from apivitals.classify import CLASSES as CLASS_NAMES
from apivitals.classify import FAILURES, error_class, error_rate_class, latency_class, throughput_class
from apivitals.semconv import Instrument
from apivitals.settings import Settings
from apivitals.telemetry.rates import RateWindow, total

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where the observation of a request is kept in its ASGI scope; a mounted application finds it there.
SCOPE_KEY = "apivitals.observation"

logger = logging.getLogger(__name__)


class ServerObserver:
    """Observes the requests of a process and records what they did."""

    def __init__(self, settings: Settings, meter: Meter) -> None:
        self.settings = settings
        self.rates = RateWindow(settings.class_window_seconds)
        self._first_byte = _histogram(meter, semconv.TIME_TO_FIRST_BYTE)
        self._errors = _counter(meter, semconv.ERRORS)
        self._queries = _histogram(meter, semconv.REQUEST_QUERIES)
        self._query_time = _histogram(meter, semconv.REQUEST_QUERY_TIME)
        self._cache_hits = _histogram(meter, semconv.REQUEST_CACHE_HITS)
        self._cache_misses = _histogram(meter, semconv.REQUEST_CACHE_MISSES)
        self._cache_time = _histogram(meter, semconv.REQUEST_CACHE_TIME)
        self._outbound = _histogram(meter, semconv.REQUEST_OUTBOUND)
        self._outbound_time = _histogram(meter, semconv.REQUEST_OUTBOUND_TIME)
        self._complained = False
        for instrument, read in (
            (semconv.THROUGHPUT, self._read_throughput),
            (semconv.THROUGHPUT_CLASS, self._read_throughput_class),
            (semconv.ERROR_RATE_CLASS, self._read_error_rate_class),
        ):
            meter.create_observable_gauge(instrument.name, [read], instrument.unit, instrument.description)

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send, route: RouteOf) -> None:
        """Serve one request by `call(app, scope, receive, send)`; a WebSocket session is only handed on.

        Args:
            app: the application.
            call: serves it, including whatever makes the span.
            scope, receive, send: as ASGI has them.
            route: tells the route template, once the application has matched it.
        """
        if scope["type"] != "http":
            await call(app, scope, receive, send)
            return
        opened, token = tally.open_tally()
        request = ObservedRequest(self, scope, receive, send, opened, route)
        scope[SCOPE_KEY] = request
        try:
            await call(app, scope, request.receive, request.send)
        except BaseException as error:
            request.error = request.error or error
            raise
        finally:
            request.finish()
            tally.close_tally(token)

    def record(self, request: ObservedRequest, seconds: float) -> None:
        """Classify a request that has ended, write the classes to its span and the rest to the histograms."""
        try:
            self._record(request, seconds)
        except Exception:
            if not self._complained:
                self._complained = True
                logger.warning("recording a request failed; said once", exc_info=True)

    def _record(self, request: ObservedRequest, seconds: float) -> None:
        done = request.tally
        ended = error_class(request.status, request.error, disconnected=request.disconnected, complete=request.complete)
        method = sanitize_method(request.scope["method"])
        route = request.route(request.scope)
        bounds = self.settings.thresholds_for(route).latency_bounds
        span = request.span
        if span is not None and span.is_recording():
            span.set_attributes(
                {
                    semconv.LATENCY_CLASS: latency_class(seconds, bounds),
                    semconv.ERROR_CLASS: ended,
                    **_tally_attributes(done),
                }
            )
        self.rates.add(method, route, ended in FAILURES)
        attributes = {semconv.HTTP_METHOD: method}
        if route:
            attributes[semconv.HTTP_ROUTE] = route
        if request.first_byte is not None:
            self._first_byte.record(request.first_byte, attributes)
        if ended != "none":
            self._errors.add(1, {**attributes, semconv.ERROR_CLASS: ended})
        if done.queries:
            self._queries.record(done.queries, attributes)
            self._query_time.record(done.query_seconds, attributes)
        if done.cache_hits or done.cache_misses:
            self._cache_hits.record(done.cache_hits, attributes)
            self._cache_misses.record(done.cache_misses, attributes)
            self._cache_time.record(done.cache_seconds, attributes)
        if done.outbound_calls:
            self._outbound.record(done.outbound_calls, attributes)
            self._outbound_time.record(done.outbound_seconds, attributes)

    def _read_throughput(self, options: CallbackOptions) -> list[Observation]:
        rates = self.rates.read()
        return [
            Observation(total(rates)[0], {}),
            *(Observation(rps, _route_attributes(*route)) for route, rps, _ in rates),
        ]

    def _read_throughput_class(self, options: CallbackOptions) -> list[Observation]:
        rates = self.rates.read()
        own = self.settings.thresholds.throughput_bounds
        return [
            _level(throughput_class(total(rates)[0], own), {}),
            *(
                _level(
                    throughput_class(rps, self.settings.thresholds_for(route[1]).throughput_bounds),
                    _route_attributes(*route),
                )
                for route, rps, _ in rates
            ),
        ]

    def _read_error_rate_class(self, options: CallbackOptions) -> list[Observation]:
        # Without a request there is no error rate, and no class is better than a good one.
        rates = [row for row in self.rates.read() if row[2] is not None]
        ratio = total(rates)[1]
        own = self.settings.thresholds.error_rate_bounds
        return [
            *([] if ratio is None else [_level(error_rate_class(ratio, own), {})]),
            *(
                _level(
                    error_rate_class(share or 0.0, self.settings.thresholds_for(route[1]).error_rate_bounds),
                    _route_attributes(*route),
                )
                for route, _, share in rates
            ),
        ]


RouteOf = Callable[[Scope], "str | None"]


class ObservedRequest:
    """One HTTP request while it is served; stands between the server and the application."""

    __slots__ = (
        "_observer",
        "_receive",
        "_send",
        "_start",
        "_trailers",
        "complete",
        "disconnected",
        "error",
        "finished",
        "first_byte",
        "matched",
        "route",
        "scope",
        "span",
        "status",
        "tally",
    )

    def __init__(
        self, observer: ServerObserver, scope: Scope, receive: Receive, send: Send, opened: tally.Tally, route: RouteOf
    ) -> None:
        self._start = perf_counter()
        self._observer = observer
        self._receive = receive
        self._send = send
        self._trailers = False
        self.scope = scope
        self.tally = opened
        self.route = route
        self.matched: str | None = None
        self.span: Span | None = None
        self.status: int | None = None
        self.error: BaseException | None = None
        self.first_byte: float | None = None
        self.complete = False
        self.disconnected = False
        self.finished = False

    async def receive(self) -> Message:
        """Hand on what the client sent, and notice when it leaves."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Hand on what the application sends; the request is finished when the last byte is out."""
        kind = message["type"]
        if kind == "http.response.start":
            self.first_byte = perf_counter() - self._start
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
        try:
            await self._send(message)
        except OSError:
            # So servers say that the client is gone.
            self.disconnected = True
            raise
        if (
            (kind == "http.response.body" and not message.get("more_body", False) and not self._trailers)
            or (kind == "http.response.trailers" and not message.get("more_trailers", False))
            or kind == "http.response.pathsend"
        ):
            self.complete = True
            self.finish()

    def finish(self) -> None:
        """Record the request; only the first call does."""
        if not self.finished:
            self.finished = True
            self._observer.record(self, perf_counter() - self._start)


class InnerObserver:
    """Innermost of the middleware: sees the span, and what the application raised before anyone handles it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of the application within."""
        request: ObservedRequest | None = scope.get(SCOPE_KEY)
        if request is None or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if request.span is None:
            request.span = get_current_span()
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            request.error = error
            # An answer that has begun is not replaced by an error page: nothing more will come.
            if request.status is not None:
                request.finish()
            raise
        except BaseException as error:
            request.error = error
            request.finish()
            raise
        if not request.complete:
            request.finish()


def _tally_attributes(done: tally.Tally) -> dict[str, int | float]:
    attributes: dict[str, int | float] = {}
    if done.queries:
        attributes[semconv.DB_QUERIES] = done.queries
        attributes[semconv.DB_SECONDS] = done.query_seconds
    if done.cache_hits or done.cache_misses:
        attributes[semconv.CACHE_HITS] = done.cache_hits
        attributes[semconv.CACHE_MISSES] = done.cache_misses
        attributes[semconv.CACHE_SECONDS] = done.cache_seconds
    if done.outbound_calls:
        attributes[semconv.OUTBOUND_CALLS] = done.outbound_calls
        attributes[semconv.OUTBOUND_SECONDS] = done.outbound_seconds
    return attributes


def _route_attributes(method: str, route: str | None) -> dict[str, str]:
    attributes = {semconv.HTTP_METHOD: method}
    if route:
        attributes[semconv.HTTP_ROUTE] = route
    return attributes


def _level(name: str, attributes: dict[str, str]) -> Observation:
    return Observation(CLASS_NAMES.index(name), attributes)


def _histogram(meter: Meter, instrument: Instrument) -> Any:
    return meter.create_histogram(
        instrument.name,
        instrument.unit,
        instrument.description,
        explicit_bucket_boundaries_advisory=instrument.bounds,
    )


def _counter(meter: Meter, instrument: Instrument) -> Any:
    return meter.create_counter(instrument.name, instrument.unit, instrument.description)
