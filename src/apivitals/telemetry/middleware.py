"""Serves a request and measures it: the server instrumentation `apivitals`.

Everything that a request costs is here and in `ServerAggregator.record`. Headers are read in one pass, the route is
read where the application's router left it, and what the span will say is worked out when it is exported.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from random import getrandbits
from time import perf_counter, time_ns
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.trace.span import TraceState
from opentelemetry.util.http import sanitize_method

from apivitals import tally
from apivitals.classify import FAILURES, ErrorClass, error_class
from apivitals.settings import Settings
from apivitals.telemetry.aggregate import ServerAggregator
from apivitals.telemetry.instrumentations import NATIVE_KEY
from apivitals.telemetry.rates import RateWindow
from apivitals.telemetry.routing import APP_KEY, RouteReader
from apivitals.telemetry.spans import Origin, Peer, ServerSpan
from apivitals.telemetry.websocket import WebSocketTelemetry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PEERS = 1024
_STOCK_FIELDS = {"traceparent", "tracestate", "baggage"}
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

logger = logging.getLogger(__name__)


class TelemetryMiddleware:
    """Measures the requests of a process.

    Args:
        settings: decides the classes.
        provider: gives sampler, ids, limits and processors.
        aggregator: counts the requests.
        rates: counts them for the classes over a window.
        meter: for the instruments of WebSocket sessions.
        version: of apivitals, for the instrumentation scope.
    """

    def __init__(
        self,
        settings: Settings,
        provider: TracerProvider,
        aggregator: ServerAggregator,
        rates: RateWindow,
        meter: Meter,
        version: str,
    ) -> None:
        self.settings = settings
        self.aggregator = aggregator
        self.rates = rates
        self.routes = RouteReader()
        tracer = provider.get_tracer("apivitals", version)
        self._websockets = WebSocketTelemetry(tracer, meter, self.routes, _HEADERS)
        self._provider = provider
        scope = InstrumentationScope("apivitals", version)
        self.origin = Origin(provider.resource, scope, provider._span_limits)
        self._sampler: Sampler = provider.sampler
        self._always = _root_decision(provider.sampler)
        stock_ids = type(provider.id_generator) is RandomIdGenerator
        self._ids = None if stock_ids else provider.id_generator
        self._stock_propagators = set(propagate.get_global_textmap().fields) <= _STOCK_FIELDS
        self._peers: dict[tuple[Any, ...], Peer] = {}
        self._complained = False

    def prepare(self, app: Any) -> None:
        """Nothing to do: everything is outside of the application."""

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request by `call(app, scope, receive, send)`, measured."""
        # FastAPI's own telemetry stays out, also in mounted applications.
        scope[NATIVE_KEY] = None
        scope[APP_KEY] = app
        if scope["type"] != "http":
            await self._websockets.serve(app, call, scope, receive, send)
            return
        try:
            request = self._begin(scope, receive, send)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain()
            await call(app, scope, receive, send)
            return
        span = request.span
        current = otel_context.get_current()
        token = otel_context.attach(Context({**current, **request.carried, _SPAN_KEY: span}))
        opened = tally._current.set(span.tally)
        try:
            await call(app, scope, request.receive, request.send)
        except BaseException as error:
            request.error = error
            raise
        finally:
            request.close()
            tally._current.reset(opened)
            otel_context.detach(token)

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> Request:
        start_ns = time_ns()
        headers = dict(scope["headers"])
        trace_id, parent_id, sampled_parent, state, carried, remote = self._parent(scope, headers)
        method = sanitize_method(scope["method"])
        always = self._always
        span_id = getrandbits(64) or 1
        if parent_id:
            sampled = sampled_parent
        elif self._ids is not None:
            trace_id, span_id, sampled = self._ids.generate_trace_id(), self._ids.generate_span_id(), bool(always)
        else:
            trace_id, sampled = getrandbits(128) or 1, bool(always)
        span = ServerSpan(
            self.origin,
            scope,
            method,
            trace_id,
            span_id,
            parent_id,
            state,
            remote,
            sampled,
            start_ns,
            self._peer(scope, headers),
            tally.Tally(),
        )
        if always is None:
            self._ask_sampler(span, carried)
        if span.sampled:
            self._provider._active_span_processor.on_start(span)  # type: ignore[arg-type]
        request = Request(self, span, receive, send, carried)
        length = headers.get(b"content-length")
        if length is not None and length.isdigit():
            request.request_bytes = int(length[:18])
        request.active = self.aggregator.active(method, scope.get("scheme", "http"))
        with self.aggregator.lock:
            request.active[0] += 1
        return request

    def _parent(
        self, scope: Scope, headers: dict[bytes, bytes]
    ) -> tuple[int, int, bool, TraceState | None, Mapping[str, Any], bool]:
        """Trace id, parent span id, whether it is sampled, its state, what else came along, whether it is remote."""
        if self._stock_propagators and b"traceparent" not in headers and b"baggage" not in headers:
            outer = get_current_span().get_span_context()
            if outer.is_valid:
                return outer.trace_id, outer.span_id, outer.trace_flags.sampled, outer.trace_state or None, {}, False
            return 0, 0, False, None, {}, False
        extracted = propagate.extract(scope["headers"], context=Context(), getter=_HEADERS)
        parent = get_current_span(extracted).get_span_context()
        carried = {key: value for key, value in extracted.items() if key != _SPAN_KEY}
        if not parent.is_valid:
            return 0, 0, False, None, carried, False
        state = parent.trace_state or None
        return parent.trace_id, parent.span_id, parent.trace_flags.sampled, state, carried, True

    def _ask_sampler(self, span: ServerSpan, carried: Mapping[str, Any]) -> None:
        """What a sampler decides that has to see the span."""
        parent = Context({**carried, _SPAN_KEY: _Parent(span)}) if span.parent_id else Context(dict(carried))
        result = self._sampler.should_sample(
            parent, span.trace_id, span.name, SpanKind.SERVER, dict(span.attributes), ()
        )
        span.sampled = result.decision is Decision.RECORD_AND_SAMPLE
        span.parent_state = result.trace_state or span.parent_state
        if span.sampled and result.attributes:
            span.set_attributes(result.attributes)

    def _peer(self, scope: Scope, headers: dict[bytes, bytes]) -> Peer:
        client = scope.get("client")
        host, agent = headers.get(b"host"), headers.get(b"user-agent")
        key = (host, agent, client[0] if client else None, scope.get("scheme"))
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= _PEERS:
                self._peers.clear()
            peer = self._peers[key] = _make_peer(scope, host, agent, key[2])
        return peer

    def finish(self, request: Request) -> None:
        """Record a request that has ended; raises nothing."""
        try:
            self._record(request)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain()

    def _record(self, request: Request) -> None:
        span = request.span
        scope = span.scope
        ended = error_class(request.status, request.error, disconnected=request.disconnected, complete=request.complete)
        route = self.routes.template(scope)
        status = request.status
        if status is None and isinstance(request.error, Exception):
            status = 500
        failed = ended in FAILURES
        key = (
            span.first_method,
            scope.get("scheme", "http"),
            scope.get("http_version", ""),
            route,
            status,
            _error_type(request.error, status, ended) if ended != "none" and ended != "client_error" else None,
        )
        shape = self.aggregator.shape(key)
        span.shape = shape
        span.ended_as = ended
        span.seconds = request.seconds
        end_ns = span.start_ns + int(request.seconds * 1e9)
        if request.error is not None and isinstance(request.error, Exception) and span.sampled:
            span.record_exception(request.error)
        self.aggregator.record(
            shape,
            request.seconds,
            request.first_byte,
            ended,
            request.request_bytes,
            request.sent_bytes,
            span.tally,
            (end_ns, span.trace_id, span.span_id) if span.sampled else None,
        )
        self.rates.add(span.first_method, route, failed)
        span.end_ns = end_ns
        if span.sampled:
            self._provider._active_span_processor.on_end(span)

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("measuring a request failed; said once", exc_info=True)


class Request:
    """One HTTP request while it is served; stands between the server and the application."""

    __slots__ = (
        "_middleware",
        "_receive",
        "_send",
        "_start",
        "_trailers",
        "active",
        "carried",
        "complete",
        "disconnected",
        "error",
        "finished",
        "first_byte",
        "request_bytes",
        "seconds",
        "sent_bytes",
        "span",
        "status",
    )

    def __init__(
        self,
        middleware: TelemetryMiddleware,
        span: ServerSpan,
        receive: Receive,
        send: Send,
        carried: Mapping[str, Any],
    ) -> None:
        self._middleware = middleware
        self._receive = receive
        self._send = send
        self._start = perf_counter()
        self._trailers = False
        self.span = span
        self.carried = carried
        self.active: list[int] = [0]
        self.status: int | None = None
        self.error: BaseException | None = None
        self.first_byte: float | None = None
        self.seconds = -1.0
        self.request_bytes = -1
        self.sent_bytes = -1
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
        """Hand on what the application sends; the request ends when the last byte is out."""
        kind = message["type"]
        if kind == "http.response.body":
            if self.sent_bytes < 0:
                self.sent_bytes = 0
            self.sent_bytes += len(message.get("body", b""))
            last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.start":
            self.first_byte = perf_counter() - self._start
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
            last = False
        else:
            last = kind == "http.response.pathsend" or (
                kind == "http.response.trailers" and not message.get("more_trailers", False)
            )
        try:
            await self._send(message)
        except OSError:
            # So servers say that the client is gone.
            self.disconnected = True
            raise
        if last:
            self.complete = True
            self.seconds = perf_counter() - self._start
            # Behind a 5xx an exception may be on its way that this answer is for.
            if self.status is not None and self.status < 500:
                self._finish()

    def close(self) -> None:
        """The application is done with the request."""
        if not self.finished:
            if self.seconds < 0:
                self.seconds = perf_counter() - self._start
            self._finish()

    def _finish(self) -> None:
        self.finished = True
        aggregator = self._middleware.aggregator
        with aggregator.lock:
            self.active[0] -= 1
        self._middleware.finish(self)


class _Parent:
    """A span that is nothing but its context, for a sampler that looks at the parent."""

    def __init__(self, span: ServerSpan) -> None:
        self._context = span.parent

    def get_span_context(self) -> Any:
        return self._context


class _HeadersGetter(Getter[list[tuple[bytes, bytes]]]):
    """Reads ASGI headers, which are pairs of lower-case bytes."""

    def get(self, carrier: list[tuple[bytes, bytes]], key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        values = [value.decode("latin-1") for name, value in carrier if name == wanted]
        # The baggage propagator reads only the first value.
        return ([",".join(values)] if wanted == b"baggage" else values) if values else None

    def keys(self, carrier: list[tuple[bytes, bytes]]) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_HEADERS = _HeadersGetter()


def _root_decision(sampler: Sampler) -> bool | None:
    """What the stock samplers that look at nothing decide for a root span; None where the sampler must be asked."""
    if type(sampler) is ParentBased and all(
        (
            sampler._remote_parent_sampled is ALWAYS_ON,
            sampler._local_parent_sampled is ALWAYS_ON,
            sampler._remote_parent_not_sampled is ALWAYS_OFF,
            sampler._local_parent_not_sampled is ALWAYS_OFF,
        )
    ):
        if sampler._root is ALWAYS_ON:
            return True
        if sampler._root is ALWAYS_OFF:
            return False
    return None


def _make_peer(scope: Scope, host: bytes | None, agent: bytes | None, client: str | None) -> Peer:
    address, port = "", None
    if host is not None:
        address, separator, tail = host.decode("latin-1").rpartition(":")
        if not separator or tail.endswith("]"):
            address, tail = host.decode("latin-1"), ""
        port = int(tail) if tail.isdigit() and len(tail) <= 5 else _PORTS.get(scope.get("scheme", "http"))
    elif scope.get("server"):
        address, port = scope["server"][0], scope["server"][1]
    return Peer(address.strip("[]"), port, agent.decode("latin-1") if agent is not None else None, client)


def _error_type(error: BaseException | None, status: int | None, ended: ErrorClass) -> str:
    """error.type by the conventions: what was raised, else the status, else our class."""
    if error is not None:
        kind = type(error)
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return str(status) if status is not None and status >= 500 else ended
