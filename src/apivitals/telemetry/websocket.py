"""Measures WebSocket sessions for the server instrumentation `apivitals`.

A session is long and rare, so it is an ordinary SDK span with ordinary instruments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from opentelemetry import propagate
from opentelemetry.metrics import Meter
from opentelemetry.trace import SpanKind, StatusCode, Tracer, use_span

from apivitals import semconv
from apivitals.semconv import Instrument
from apivitals.telemetry.routing import RouteReader

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Close codes of a session that ended as it should: done, going away, no code given.
_NORMAL = (1000, 1001, 1005)


class WebSocketTelemetry:
    """One SERVER span, one duration and two message counts a session."""

    def __init__(self, tracer: Tracer, meter: Meter, routes: RouteReader, headers: Any) -> None:
        self._tracer = tracer
        self._routes = routes
        self._headers = headers
        self._duration = meter.create_histogram(
            semconv.WEBSOCKET_DURATION.name,
            semconv.WEBSOCKET_DURATION.unit,
            semconv.WEBSOCKET_DURATION.description,
            explicit_bucket_boundaries_advisory=semconv.WEBSOCKET_DURATION.bounds,
        )
        self._messages = _counter(meter, semconv.WEBSOCKET_MESSAGES)

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one session by `call(app, scope, receive, send)`, measured."""
        start = perf_counter()
        counts = {"receive": 0, "transmit": 0}
        closed: list[int] = []

        async def counted_receive() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                counts["receive"] += 1
            elif message["type"] == "websocket.disconnect":
                closed.append(message.get("code") or 1005)
            return message

        async def counted_send(message: Message) -> None:
            await send(message)
            if message["type"] == "websocket.send":
                counts["transmit"] += 1
            elif message["type"] == "websocket.close":
                closed.append(message.get("code") or 1000)

        parent = propagate.extract(scope["headers"], getter=self._headers)
        attributes = {
            semconv.URL_SCHEME: scope.get("scheme", "ws"),
            "url.path": scope["path"],
            "network.protocol.name": "websocket",
        }
        span = self._tracer.start_span("WS", parent, SpanKind.SERVER, attributes)
        error: BaseException | None = None
        with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            try:
                await call(app, scope, counted_receive, counted_send)
            except BaseException as raised:
                error = raised
                raise
            finally:
                route = self._routes.template(scope)
                code = closed[0] if closed else None
                labels: dict[str, Any] = {semconv.HTTP_ROUTE: route} if route else {}
                failed = error is not None and code not in _NORMAL
                if failed:
                    labels[semconv.ERROR_TYPE] = type(error).__qualname__
                    span.set_status(StatusCode.ERROR)
                if failed and isinstance(error, Exception):
                    span.record_exception(error)
                if route:
                    span.update_name(f"WS {route}")
                span.set_attributes(labels)
                span.set_attribute(semconv.WEBSOCKET_RECEIVED, counts["receive"])
                span.set_attribute(semconv.WEBSOCKET_SENT, counts["transmit"])
                if code is not None:
                    span.set_attribute(semconv.WEBSOCKET_CLOSE_CODE, code)
                self._duration.record(perf_counter() - start, labels)
                for direction, count in counts.items():
                    if count:
                        where = {semconv.HTTP_ROUTE: route} if route else {}
                        self._messages.add(count, {**where, semconv.NETWORK_DIRECTION: direction})
                span.end()


def _counter(meter: Meter, instrument: Instrument) -> Any:
    return meter.create_counter(instrument.name, instrument.unit, instrument.description)
