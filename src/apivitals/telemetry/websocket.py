"""Measures WebSocket sessions for the server instrumentation `apivitals`.

A session is long and rare, so it is an ordinary SDK span with ordinary instruments.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.metrics import Meter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, Tracer, set_span_in_context

from apivitals import semconv, tally
from apivitals.semconv import Instrument
from apivitals.telemetry.extras import Extras
from apivitals.telemetry.peers import Peers
from apivitals.telemetry.redaction import redacted_query
from apivitals.telemetry.routing import RouteReader
from apivitals.telemetry.spans import tally_attributes
from apivitals.telemetry.tracebacks import exception_type

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Close codes of a session that ended as it should: done, going away, no code given.
_NORMAL = (1000, 1001, 1005)
#: Raised by a handler that was waiting for a message when the client went: that is how sessions end.
_DISCONNECT = "WebSocketDisconnect"

logger = logging.getLogger(__name__)


class WebSocketTelemetry:
    """One SERVER span, one duration and two message counts a session.

    Args:
        tracer, meter: of the provider.
        routes: finds the route.
        peers: what sessions of one client have in common.
        headers: reads headers for the propagators.
        extras: hooks and captured headers, if any.
    """

    def __init__(
        self,
        tracer: Tracer,
        meter: Meter,
        routes: RouteReader,
        peers: Peers,
        headers: Getter[Any],
        extras: Extras | None,
    ) -> None:
        self._tracer = tracer
        self._routes = routes
        self._peers = peers
        self._headers = headers
        self._extras = extras
        self._complained = False
        self._duration = meter.create_histogram(
            semconv.WEBSOCKET_DURATION.name,
            semconv.WEBSOCKET_DURATION.unit,
            semconv.WEBSOCKET_DURATION.description,
            explicit_bucket_boundaries_advisory=semconv.WEBSOCKET_DURATION.bounds,
        )
        self._messages = _counter(meter, semconv.WEBSOCKET_MESSAGES)

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one session by `call(app, scope, receive, send)`, measured."""
        parent = self._parent(scope)
        session = Session(scope, receive, send, self._started(scope, parent), self._extras)
        token = otel_context.attach(set_span_in_context(session.span, parent))
        opened, closing = tally.open_tally()
        try:
            if self._extras is not None:
                self._extras.begin(session.span, scope)
            await call(app, scope, session.receive, session.send)
        except BaseException as error:
            session.error = error
            raise
        finally:
            self._finish(app, session, opened)
            session.error = None
            # A server that gave up on the session closes it in another context.
            with suppress(ValueError):
                tally.close_tally(closing)
                otel_context._RUNTIME_CONTEXT.detach(token)

    def _parent(self, scope: Scope) -> otel_context.Context:
        """What the headers bring, on top of what is current."""
        current = otel_context.get_current()
        try:
            brought = propagate.extract(scope["headers"], context=otel_context.Context(), getter=self._headers)
        except Exception:  # noqa: BLE001 - a propagator is anybody's code
            self._complain()
            return current
        return otel_context.Context({**current, **(brought or {})})

    def _started(self, scope: Scope, parent: otel_context.Context) -> Span:
        try:
            headers = dict(reversed(list(scope["headers"])))
            peer = self._peers.of(scope, headers)
            attributes: dict[str, Any] = {
                semconv.URL_SCHEME: peer.scheme,
                "url.path": scope["path"],
                "network.protocol.name": "websocket",
                **dict(peer.attributes),
            }
            if peer.version:
                attributes[semconv.PROTOCOL_VERSION] = peer.version
            if scope.get("query_string"):
                attributes["url.query"] = redacted_query(scope["query_string"])
            client = scope.get("client")
            if client and client[1]:
                attributes["client.port"] = client[1]
            return self._tracer.start_span("WS", parent, SpanKind.SERVER, attributes)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain()
            return INVALID_SPAN

    def _finish(self, app: Any, session: Session, done: tally.Tally) -> None:
        try:
            self._record(app, session, done)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain()

    def _record(self, app: Any, session: Session, done: tally.Tally) -> None:
        span, error = session.span, session.error
        route = self._routes.template(app, session.scope, None)
        where: dict[str, Any] = {semconv.HTTP_ROUTE: route} if route else {}
        labels = dict(where)
        failed = error is not None and not (type(error).__name__ == _DISCONNECT and session.code in _NORMAL)
        if failed and error is not None:
            labels[semconv.ERROR_TYPE] = exception_type(error)
            span.set_status(StatusCode.ERROR)
            if isinstance(error, Exception):
                span.record_exception(error)
        if route:
            span.update_name(f"WS {route}")
        status = session.status or (101 if session.accepted else 403 if session.code is not None else None)
        if status is not None:
            span.set_attribute(semconv.HTTP_STATUS, status)
            if status >= 400 and not failed:
                labels[semconv.ERROR_TYPE] = str(status)
        span.set_attributes({**labels, **dict(tally_attributes(done))})
        span.set_attribute(semconv.WEBSOCKET_RECEIVED, session.received)
        span.set_attribute(semconv.WEBSOCKET_SENT, session.sent)
        if session.accepted and session.code is not None:
            span.set_attribute(semconv.WEBSOCKET_CLOSE_CODE, session.code)
        self._duration.record(session.seconds(), labels, set_span_in_context(span, otel_context.Context()))
        for direction, count in (("receive", session.received), ("transmit", session.sent)):
            if count:
                self._messages.add(count, {**where, semconv.NETWORK_DIRECTION: direction})
        span.end()

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("measuring a WebSocket session failed; said once", exc_info=True)


class Session:
    """One WebSocket session while it lasts; stands between the server and the application.

    Attributes:
        received, sent: messages.
        accepted: the application took the session.
        code: the first close code that either side gave.
        status: of an HTTP response that refused the session.
        error: what the application raised.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, span: Span, extras: Extras | None) -> None:
        self.scope = scope
        self.span = span
        self.received = 0
        self.sent = 0
        self.accepted = False
        self.code: int | None = None
        self.status: int | None = None
        self.error: BaseException | None = None
        self._receive = receive
        self._send = send
        self._extras = extras
        self._start = perf_counter()

    def seconds(self) -> float:
        """How long the session has lasted."""
        return perf_counter() - self._start

    async def receive(self) -> Message:
        """Hand on what the client sent, and count it."""
        if self._extras is not None:
            message = await self._extras.receive(self._receive, self.span, self.scope)
        else:
            message = await self._receive()
        if message["type"] == "websocket.receive":
            self.received += 1
        elif message["type"] == "websocket.disconnect":
            self._closed(message.get("code") or 1005)
        return message

    async def send(self, message: Message) -> None:
        """Hand on what the application sends, and count it."""
        if self._extras is not None:
            self._extras.sending(self.span, self.scope, message)
        await self._send(message)
        kind = message["type"]
        if kind == "websocket.send":
            self.sent += 1
        elif kind == "websocket.accept":
            self.accepted = True
        elif kind == "websocket.close":
            self._closed(message.get("code") or 1000)
        elif kind == "websocket.http.response.start":
            self.status = message["status"]

    def _closed(self, code: int) -> None:
        if self.code is None:
            self.code = code


def _counter(meter: Meter, instrument: Instrument) -> Any:
    return meter.create_counter(instrument.name, instrument.unit, instrument.description)
