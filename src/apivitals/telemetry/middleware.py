"""Serves a request and measures it: the server instrumentation `apivitals`.

Everything that a request costs is here, in `Request` and in `ServerAggregator.record`. Headers are read in one pass,
the route is read where the application's router left it, and what the span will say is worked out when it is
exported.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar, Token
from random import getrandbits
from time import perf_counter, time_ns
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.metrics import Meter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY

from apivitals import tally
from apivitals.classify import FAILURES, ErrorClass, error_class
from apivitals.settings import Settings
from apivitals.telemetry.aggregate import ServerAggregator
from apivitals.telemetry.background import watch_background_tasks
from apivitals.telemetry.extras import Extras, ExtrasRequest
from apivitals.telemetry.incoming import HEADERS, NOTHING, Incoming, IncomingReader
from apivitals.telemetry.instrumentations import NATIVE_KEY
from apivitals.telemetry.listeners import Listeners
from apivitals.telemetry.options import InstrumentationOptions
from apivitals.telemetry.peers import Peers
from apivitals.telemetry.rates import RateWindow
from apivitals.telemetry.recorder import InstrumentRecorder
from apivitals.telemetry.request import Request
from apivitals.telemetry.routing import RouteReader
from apivitals.telemetry.sampling import MASK, stock_rule
from apivitals.telemetry.spans import Origin, ServerSpan
from apivitals.telemetry.tracebacks import exception_type
from apivitals.telemetry.websocket import WebSocketTelemetry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_RANDOM = 2
_HEADERS_READ = frozenset({b"host", b"user-agent", b"content-length", b"traceparent", b"tracestate", b"baggage"})
#: What `http.request.method` may be, unless OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS says otherwise.
_METHODS = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
#: A body is smaller than this; a longer content-length is not one.
_LENGTH_DIGITS = 18

logger = logging.getLogger(__name__)


class TelemetryMiddleware:
    """Measures the requests of applications.

    Args:
        settings: decides the classes.
        provider: gives sampler, ids, limits and processors.
        aggregator: counts the requests.
        rates: counts them for the classes over a window.
        meter: for the instruments of WebSocket sessions.
        version: of apivitals, for the instrumentation scope.
        options: what an application wants beyond the settings.
    """

    def __init__(
        self,
        settings: Settings,
        provider: TracerProvider,
        aggregator: ServerAggregator,
        rates: RateWindow,
        meter: Meter,
        version: str,
        options: InstrumentationOptions | None = None,
    ) -> None:
        self.settings = settings
        self.aggregator = aggregator
        self.rates = rates
        self.routes = RouteReader()
        self.origin = Origin(provider, InstrumentationScope("apivitals", version))
        self._remake = (settings, provider, aggregator, rates, meter, version)
        tracer = provider.get_tracer("apivitals", version)
        self.extras = Extras.of(settings, options or InstrumentationOptions(), tracer)
        self._websockets = WebSocketTelemetry(tracer, meter, self.routes, Peers(), HEADERS, self.extras)
        self._incoming = IncomingReader()
        self._listeners = Listeners(provider)
        self._methods = frozenset(filter(None, map(str.strip, settings.http_known_methods.split(",")))) or _METHODS
        self._sampler = provider.sampler
        rule = stock_rule(provider.sampler)
        self._bound = rule.bound if rule is not None else 0
        self._parent_decides = rule is not None and rule.parent_decides
        self._asks = rule is None
        self._ids = None if type(provider.id_generator) is RandomIdGenerator else provider.id_generator
        self._random = _RANDOM if provider.id_generator.is_trace_id_random() else 0
        self._peers = Peers()
        self._context = _context_variable()
        self._complained: set[str] = set()
        aggregator.follow(rates)
        watch_background_tasks()

    def with_options(self, options: InstrumentationOptions) -> TelemetryMiddleware:
        """The same for an application that wants something of its own; it counts into the same points."""
        settings, provider, aggregator, rates, meter, version = self._remake
        provider = options.sdk_tracer_provider(provider)
        meters = options.own_meter_provider()
        if meters is not None:
            meter = meters.get_meter("apivitals", version)
            aggregator = InstrumentRecorder(settings, meter)
        return TelemetryMiddleware(settings, provider, aggregator, rates, meter, version, options)

    def prepare(self, app: Any) -> None:
        """Nothing to do: everything is outside of the application."""

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request by `call(app, scope, receive, send)`, measured."""
        # FastAPI's own telemetry stays out, also in mounted applications.
        scope[NATIVE_KEY] = None
        if scope["type"] != "http":
            await self._websockets.serve(app, call, scope, receive, send)
            return
        variable = self._context
        current = variable.get()
        try:
            request = self._begin(app, scope, receive, send, current)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain("measuring a request")
            await call(app, scope, receive, send)
            return
        span = request.span
        values = span.incoming.values
        if values:
            context = Context({**current, **values, _SPAN_KEY: span})
        else:
            context = Context({**current, _SPAN_KEY: span} if current else {_SPAN_KEY: span})
        token = variable.set(context)
        opened = tally._current.set(request)
        try:
            await call(app, scope, request.receive, request.send)
        except BaseException as error:
            request.error = error
            raise
        finally:
            request.close()
            try:
                tally._current.reset(opened)
                variable.reset(token)
            except ValueError:
                # A server that gave up on the request closes it in another context.
                pass

    def _begin(self, app: Any, scope: Scope, receive: Receive, send: Send, current: Context) -> Request:
        start_ns = time_ns()
        start = perf_counter()
        raw = scope["headers"]
        if type(raw) is not list:
            raw = scope["headers"] = list(raw)
        headers: dict[bytes, bytes] = {}
        repeated = False
        for name, value in raw:
            if name in _HEADERS_READ:
                if name in headers:
                    # The first counts.
                    repeated = True
                else:
                    headers[name] = value
        try:
            incoming = self._incoming.read(raw, headers, repeated, current)
        except Exception:  # noqa: BLE001 - a propagator is anybody's code
            self._complain("reading the headers with a propagator")
            incoming = NOTHING
        parent_id = incoming.span_id
        if self._ids is None:
            span_id = getrandbits(64) or 1
            trace_id = incoming.trace_id if parent_id else getrandbits(128) or 1
        else:
            trace_id, span_id = self._custom_ids(incoming)
        if parent_id:
            flags = incoming.flags & _RANDOM
            sampled = incoming.flags & 1 if self._parent_decides else (trace_id & MASK) < self._bound
        else:
            flags = self._random
            sampled = (trace_id & MASK) < self._bound
        original = scope["method"]
        method = original if original in self._methods else "_OTHER"
        client = scope.get("client")
        peer = self._peers.of(scope, headers)
        span = ServerSpan(
            self.origin,
            incoming,
            trace_id,
            span_id,
            flags | 1 if sampled else flags,
            method,
            original,
            scope["path"],
            scope.get("query_string", b""),
            client[1] if client else 0,
            peer,
            start_ns,
        )
        if self._asks:
            self._ask_sampler(span, current)
        if span.recording:
            listeners = self._listeners
            if listeners.multi._span_processors is not listeners.known:
                listeners.refresh()
            if listeners.starting:
                listeners.start(span, incoming.context(current))
        length = headers.get(b"content-length")
        size = int(length) if length is not None and length.isdigit() and len(length) <= _LENGTH_DIGITS else -1
        active = peer.active.get(method)
        if active is None:
            active = peer.active[method] = self.aggregator.active(method, peer.scheme)
        kind: type[Request] = Request
        if self.extras is not None:
            kind = ExtrasRequest
            self.extras.begin(span, scope)
        request = kind(self, app, scope, receive, send, span, active, size, start)
        active.add(span_id)
        return request

    def _custom_ids(self, incoming: Incoming) -> tuple[int, int]:
        """Trace id and span id of the configured generator."""
        assert self._ids is not None
        try:
            trace_id = incoming.trace_id if incoming.span_id else self._ids.generate_trace_id()
            return trace_id, self._ids.generate_span_id()
        except Exception:  # noqa: BLE001 - a generator is anybody's code
            self._complain("making an id")
            return incoming.trace_id or getrandbits(128) or 1, getrandbits(64) or 1

    def _ask_sampler(self, span: ServerSpan, current: Context) -> None:
        """What a sampler decides that has to see the span."""
        try:
            result = self._sampler.should_sample(
                span.incoming.context(current), span.trace_id, span.name, SpanKind.SERVER, dict(span.attributes), ()
            )
        except Exception:  # noqa: BLE001 - a sampler is anybody's code
            self._complain("asking the sampler")
            return
        span.recording = result.decision is not Decision.DROP
        if result.decision is Decision.RECORD_AND_SAMPLE:
            span.flags |= 1
        span.state = result.trace_state or None
        # The stock samplers return the attributes that they were given.
        given = dict(span.attributes)
        own = {key: value for key, value in result.attributes.items() if key not in given or given[key] != value}
        if span.recording and own:
            span.set_attributes(own)

    def finish(self, request: Request) -> None:
        """Record a request that has ended; raises nothing."""
        request.active.discard(request.span.span_id)
        try:
            self._record(request)
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain("recording a request")

    def _record(self, request: Request) -> None:
        span = request.span
        error, status = request.error, request.status
        if error is None and request.complete and status is not None and status < 400:
            ended: ErrorClass = "none"
            error_type = None
        else:
            ended = _ended(request)
            if status is None and ended in FAILURES and (error is None or isinstance(error, Exception)):
                # So servers answer when the application has not.
                status = 500
            error_type = _error_type(error, status, ended)
        seconds = request.seconds
        span.seconds = seconds
        span.ended_as = ended
        peer = span.peer
        method = span.first_method
        template = self.routes.template(request.app, request.scope, status)
        shape = self.aggregator.shape((method, peer.scheme, peer.version, template, status, error_type))
        span.shape = shape
        end_ns = span.start_ns + int(seconds * 1e9)
        flags = span.flags
        self.aggregator.record(
            shape,
            seconds,
            request.first_byte,
            ended,
            request.request_bytes,
            # The server keeps the body of the answer to a HEAD to itself.
            0 if method == "HEAD" and request.sent_bytes > 0 else request.sent_bytes,
            request,
            (end_ns, span.trace_id, span.span_id) if flags & 1 else None,
            ended in FAILURES,
        )
        if span.recording:
            if error is not None and isinstance(error, Exception):
                span.record_exception(error, timestamp=end_ns)
            span.finish(end_ns, request)
            listeners = self._listeners
            if listeners.ending:
                listeners.end(span)
        else:
            span.end_ns = end_ns

    def background_done(self, request: Request, seconds: float) -> None:
        """Record the time that an application took for background tasks, from the last byte of the response."""
        try:
            error = request.error
            shape = request.span.shape
            if shape is not None:
                self.aggregator.record_background(
                    request.span.first_method,
                    self.routes.template(request.app, request.scope, request.status),
                    seconds,
                    exception_type(error) if error is not None else None,
                )
        except Exception:  # noqa: BLE001 - telemetry raises nothing into the application
            self._complain("recording a background task")

    def _complain(self, what: str) -> None:
        if what not in self._complained:
            self._complained.add(what)
            logger.warning("%s failed; said once", what, exc_info=True)


class _RuntimeContext:
    """The current context where it is not kept in a context variable of OpenTelemetry's own."""

    def get(self) -> Context:
        return otel_context.get_current()

    def set(self, context: Context) -> Token[Context]:
        return otel_context.attach(context)

    def reset(self, token: Token[Context]) -> None:
        otel_context.detach(token)


def _context_variable() -> ContextVar[Context] | _RuntimeContext:
    """Where the current context is kept: to go there directly saves a request four calls."""
    runtime = otel_context._RUNTIME_CONTEXT
    variable = getattr(runtime, "_current_context", None)
    if type(runtime) is ContextVarsRuntimeContext and isinstance(variable, ContextVar):
        return variable
    return _RuntimeContext()


def _ended(request: Request) -> ErrorClass:
    error = request.error
    if isinstance(error, GeneratorExit) and not request.disconnected:
        # The server was taken down with the request in it.
        return "cancelled"
    return error_class(request.status, error, disconnected=request.disconnected, complete=request.complete)


def _error_type(error: BaseException | None, status: int | None, ended: ErrorClass) -> str | None:
    """error.type by the conventions: what was raised, else the status, else our class; None for a client's error."""
    if error is not None:
        return exception_type(error)
    if status is not None and status >= 500 and ended != "disconnected":
        return str(status)
    if ended == "exception":
        return "incomplete_response"
    return ended if ended in ("disconnected", "cancelled") else None
