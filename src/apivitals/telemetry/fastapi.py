"""Where apivitals meets FastAPI: one wrapper around `FastAPI.__call__`.

The wrapper is the outermost point of an application, outside of FastAPI's own telemetry and of every
middleware, and it is there for applications made before and after it alike. A mounted application is reached
through the outer one's scope and is left alone, so that a request is one SERVER span and one duration point.
"""

from __future__ import annotations

import logging
from asyncio import to_thread
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakSet

from opentelemetry.util.http import ExcludeList, parse_excluded_urls
from wrapt import register_post_import_hook

from apivitals.telemetry.instrumentations import NATIVE_KEY, ServerInstrumentation
from apivitals.telemetry.server import SCOPE_KEY, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class FastAPIHook:
    """Routes the requests of instrumented applications through a server instrumentation.

    Args:
        instrumentation: makes it, when the first application gets its first event.
        excluded_urls: comma-separated regular expressions of URLs that are not measured.
        on_start: called before an application's first event, on its event loop; starts the exits.
        on_ready: called when an application's start-up is complete.
        on_stop: called in a thread when an application's lifespan ends; flushes, and raises nothing.

    Attributes:
        everywhere: instrument every application of the process, not only those handed to `add`.
    """

    def __init__(
        self,
        instrumentation: Callable[[], ServerInstrumentation],
        excluded_urls: str,
        on_start: Callable[[], None],
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.everywhere = False
        self._make = instrumentation
        self._on_start = on_start
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._instrumentation: ServerInstrumentation | None = None
        self._apps: WeakSet[Any] = WeakSet()
        self._prepared: WeakSet[Any] = WeakSet()
        self._excluded: ExcludeList | None = parse_excluded_urls(excluded_urls) if excluded_urls else None

    def add(self, app: Any) -> None:
        """Instrument one application; a second time does nothing."""
        self._apps.add(app)

    def covers(self, app: Any) -> bool:
        """Whether this application is instrumented."""
        return self.everywhere or app in self._apps

    async def call(self, app: Any, original: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI event of an instrumented application."""
        if SCOPE_KEY in scope:
            await original(app, scope, receive, send)
            return
        if app not in self._prepared:
            self._prepare(app)
        instrumentation = self._instrumentation
        if scope["type"] == "lifespan":
            await original(app, scope, receive, self._around_lifespan(send))
        elif instrumentation is None:
            await original(app, scope, receive, send)
        else:
            # A mounted application sees this and leaves the request to the outer one.
            scope[SCOPE_KEY] = None
            if self._excluded is not None and self._excluded.url_disabled(_url(scope)):
                scope[NATIVE_KEY] = None
                await original(app, scope, receive, send)
            else:
                await instrumentation.serve(app, original, scope, receive, send)

    def _around_lifespan(self, send: Send) -> Send:
        """Flush before a server hears that the application is down: it may exit at once, by a signal."""

        async def hear_and_send(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await to_thread(self._on_stop)
            elif message["type"] == "lifespan.startup.complete":
                self._on_ready()
            await send(message)

        return hear_and_send

    def _prepare(self, app: Any) -> None:
        """Once an application: start the exits and let the instrumentation in."""
        self._prepared.add(app)
        try:
            if self._instrumentation is None:
                self._instrumentation = self._make()
            self._on_start()
            self._instrumentation.prepare(app)
        except Exception:
            logger.warning("instrumenting %r failed; it runs without telemetry", app, exc_info=True)


_hook: FastAPIHook | None = None


def installed() -> FastAPIHook | None:
    """The hook in force."""
    return _hook


def install(hook: FastAPIHook | None) -> None:
    """Put a hook in force, at once where FastAPI is imported and when it is where not; None takes it out again.

    A process that never imports FastAPI must not pay for the import of it.
    """
    global _hook
    _hook = hook
    if hook is not None:
        register_post_import_hook(_wrap, "fastapi.applications")


def _wrap(module: Any) -> None:
    """Wrap `FastAPI.__call__`, once a process."""
    original = module.FastAPI.__call__
    if hasattr(original, "_apivitals"):
        return

    @wraps(original)
    async def call(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if _hook is None or not _hook.covers(self):
            await original(self, scope, receive, send)
        else:
            await _hook.call(self, original, scope, receive, send)

    call._apivitals = True  # type: ignore[attr-defined]
    module.FastAPI.__call__ = call


def _url(scope: Scope) -> str:
    from opentelemetry.instrumentation.asgi import get_host_port_url_tuple

    url: str = get_host_port_url_tuple(scope)[2]
    return url
