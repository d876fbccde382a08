"""The server instrumentations that are not ours: who makes the SERVER span and the duration point of a request."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any, Protocol

from apivitals.settings import Settings
from apivitals.telemetry.options import InstrumentationOptions, names
from apivitals.telemetry.server import SCOPE_KEY, InnerObserver, Receive, Scope, Send, ServerObserver

logger = logging.getLogger(__name__)

#: FastAPI's own telemetry looks for this key; None in it means: not for this request.
NATIVE_KEY = "fastapi.telemetry"


class ServerInstrumentation(Protocol):
    """Measures the requests of applications."""

    def prepare(self, app: Any) -> None:
        """Called once for each application, before its first request."""

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket session by `call(app, scope, receive, send)`, measured."""

    def with_options(self, options: InstrumentationOptions) -> ServerInstrumentation:
        """The same for applications that want something of their own."""


class Contrib:
    """opentelemetry-instrumentation-fastapi as it is, less its span per ASGI message."""

    def __init__(self, observer: ServerObserver, options: InstrumentationOptions | None = None) -> None:
        self._observer = observer
        self._options = options or InstrumentationOptions()

    def with_options(self, options: InstrumentationOptions) -> Contrib:
        """The same; the options are its own."""
        return Contrib(self._observer, options)

    def prepare(self, app: Any) -> None:
        """Put its middleware into the application, unless somebody has."""
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        if not getattr(app, "_is_instrumented_by_opentelemetry", False):
            _guard_route()
            settings, options = self._observer.settings, self._options
            spans = [name for name in ("receive", "send") if name in _excluded_spans(settings)]
            if options.client_request_hook is not None:
                spans = [name for name in spans if name != "receive"]
            if options.client_response_hook is not None:
                spans = [name for name in spans if name != "send"]
            FastAPIInstrumentor.instrument_app(
                app,
                server_request_hook=options.server_request_hook,
                client_request_hook=options.client_request_hook,
                client_response_hook=options.client_response_hook,
                tracer_provider=options.tracer_provider,
                meter_provider=options.meter_provider,
                excluded_urls=settings.excluded_urls or None
                if options.excluded_urls is None
                else options.excluded_urls,
                http_capture_headers_server_request=names(
                    options.http_capture_headers_server_request, settings.http_capture_headers_server_request
                )
                or None,
                http_capture_headers_server_response=names(
                    options.http_capture_headers_server_response, settings.http_capture_headers_server_response
                )
                or None,
                http_capture_headers_sanitize_fields=names(
                    options.http_capture_headers_sanitize_fields, settings.http_capture_headers_sanitize_fields
                )
                or None,
                exclude_spans=[*spans, *(options.exclude_spans or ())] or None,
            )
            # A stack that was built before is built again, now with the middleware in it.
            app.middleware_stack = None
        _stand_inside(app)

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own telemetry stays out, also in mounted applications."""
        scope[NATIVE_KEY] = None
        await self._observer.serve(app, call, scope, receive, send, _route_of_contrib)


class Native:
    """FastAPI's own telemetry, in 0.142 and later, less its spans of single operations."""

    def __init__(self, observer: ServerObserver) -> None:
        self._observer = observer

    def with_options(self, options: InstrumentationOptions) -> Native:
        """The same: it takes none but the URLs to leave out, which are left out before it."""
        logger.warning(
            "FastAPI's own telemetry has no hooks and captures no headers; server_instrumentation 'apivitals' has"
        )
        return self

    def prepare(self, app: Any) -> None:
        """It runs as soon as there are providers."""
        if "operations" in _excluded_spans(self._observer.settings):
            app._telemetry["operation_spans"] = False
        _stand_inside(app)

    async def serve(self, app: Any, call: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """The application measures itself; we look on."""
        await self._observer.serve(app, call, scope, receive, send, _route_of_native)


def upstream(observer: ServerObserver) -> ServerInstrumentation:
    """The server instrumentation that the settings name; `contrib` where FastAPI has none of its own."""
    if observer.settings.server_instrumentation == "native":
        try:
            import fastapi.telemetry
        except ImportError:
            import fastapi

            logger.warning(
                "server_instrumentation is 'native', but FastAPI %s has no telemetry of its own (0.142 and later do); "
                "using 'contrib'",
                fastapi.__version__,
            )
        else:
            return Native(observer)
    return Contrib(observer)


def _excluded_spans(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.exclude_spans.split(",")]


def _route_of_contrib(scope: Scope) -> str | None:
    """What its middleware found."""
    request = scope.get(SCOPE_KEY)
    return request.matched if request is not None else None


def _route_of_native(scope: Scope) -> str | None:
    """What the application's router told it."""
    return getattr(scope.get(NATIVE_KEY), "route", None)


def _stand_inside(app: Any) -> None:
    """Put an InnerObserver within the innermost ServerErrorMiddleware of the application's stack."""
    from starlette.middleware.errors import ServerErrorMiddleware

    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    layer, innermost = app.middleware_stack, None
    while layer is not None:
        if isinstance(layer, InnerObserver):
            return
        if isinstance(layer, ServerErrorMiddleware):
            innermost = layer
        layer = getattr(layer, "app", None)
    if innermost is not None:
        innermost.app = InnerObserver(innermost.app)


def _guard_route() -> None:
    """Keep raw paths out of contrib's `http.route`, and note the route it found with the request.

    For a route that has no template (host routing) upstream falls back on the path of the request, which
    would make a label of whatever a client asks for.
    """
    from opentelemetry.instrumentation import fastapi as contrib

    original = contrib._get_route_details
    if hasattr(original, "_apivitals"):
        return

    @wraps(original)
    def guarded(scope: Scope) -> str | None:
        route: str | None = original(scope)
        if route is not None and route == scope.get("path") and not _is_template(scope["app"], route):
            route = None
        request = scope.get(SCOPE_KEY)
        if request is not None and request.matched is None:
            request.matched = route
        return route

    guarded._apivitals = True  # type: ignore[attr-defined]
    contrib._get_route_details = guarded


def _is_template(app: Any, path: str) -> bool:
    """Whether a route of the application has this very path as its template."""
    from opentelemetry.instrumentation.fastapi import _flatten_routes

    return any(getattr(route, "path", None) == path for route in _flatten_routes(app.routes))
