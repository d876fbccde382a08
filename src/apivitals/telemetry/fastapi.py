"""Where apivitals meets FastAPI: one wrapper around `FastAPI.__call__`.

The wrapper is the outermost point of an application, outside of FastAPI's own telemetry and of every
middleware, and it is there for applications made before and after it alike. A mounted application is reached
through the outer one's scope and is left alone, so that a request is one SERVER span and one duration point.
"""

from __future__ import annotations

import logging
from asyncio import to_thread
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.util.http import ExcludeList, parse_excluded_urls
from wrapt import register_post_import_hook

from apivitals.telemetry.instrumentations import NATIVE_KEY, ServerInstrumentation
from apivitals.telemetry.options import InstrumentationOptions
from apivitals.telemetry.server import SCOPE_KEY, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

Call = Callable[[Any, Scope, Receive, Send], Awaitable[None]]

#: Where it is kept at an application what to do with its events.
_APP_KEY = "_apivitals"


class FastAPIHook:
    """Routes the requests of instrumented applications through a server instrumentation.

    Args:
        instrumentation: makes it, when the first application gets its first event.
        excluded_urls: comma-separated regular expressions of URLs that are not measured.
        on_start: called before an application's first event, on its event loop; starts the exits.
        on_ready: called when an application's start-up is complete.
        on_stop: called in a thread when an application's lifespan ends; flushes, and raises nothing.
    """

    def __init__(
        self,
        instrumentation: Callable[[], ServerInstrumentation],
        excluded_urls: str,
        on_start: Callable[[], None],
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._everywhere = False
        self._make = instrumentation
        self._on_start = on_start
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._instrumentation: ServerInstrumentation | None = None
        self._options: InstrumentationOptions | None = None
        self._apps: WeakKeyDictionary[Any, InstrumentationOptions | None] = WeakKeyDictionary()
        self._left_out: WeakSet[Any] = WeakSet()
        self._excluded = _exclusions(excluded_urls)
        self._variants: dict[InstrumentationOptions, ServerInstrumentation] = {}
        # What is remembered at an application is of no use when this is another object.
        self._version = object()

    @property
    def everywhere(self) -> bool:
        """Whether every application is instrumented, and not only those handed to `add`."""
        return self._everywhere

    @everywhere.setter
    def everywhere(self, value: bool) -> None:
        self._everywhere = value
        self._version = object()

    def add(self, app: Any, options: InstrumentationOptions | None = None) -> None:
        """Instrument one application; a second time does nothing but to give it other options."""
        if app not in self._apps or options is not None:
            self._apps[app] = options
        self._left_out.discard(app)
        self._version = object()

    def add_all(self, options: InstrumentationOptions | None = None) -> None:
        """Instrument every application, with options for those that have none of their own."""
        self._options = options
        self.everywhere = True

    def remove(self, app: Any) -> None:
        """Leave one application alone from now on."""
        self._apps.pop(app, None)
        self._left_out.add(app)
        self._version = object()

    def remove_all(self) -> None:
        """Leave every application alone from now on."""
        self._apps.clear()
        self._left_out.clear()
        self._options = None
        self.everywhere = False

    def covers(self, app: Any) -> bool:
        """Whether this application is instrumented."""
        return app in self._apps or (self._everywhere and app not in self._left_out)

    def call(self, app: Any, original: Call, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one ASGI event of an application; not a coroutine function, to save a request one."""
        if SCOPE_KEY in scope:
            # A mounted application leaves the request to the outer one.
            return original(app, scope, receive, send)
        known: _Known | None = app.__dict__.get(_APP_KEY)
        if known is None or known.version is not self._version:
            known = self._known(app)
        if not known.covered:
            if known.silenced and scope["type"] != "lifespan":
                scope[NATIVE_KEY] = None
            return original(app, scope, receive, send)
        if scope["type"] == "lifespan":
            return original(app, scope, receive, self._around_lifespan(send))
        if known.instrumentation is None:
            return original(app, scope, receive, send)
        scope[SCOPE_KEY] = None
        if known.excluded is not None and known.excluded.url_disabled(_url(scope)):
            scope[NATIVE_KEY] = None
            return original(app, scope, receive, send)
        return known.instrumentation.serve(app, original, scope, receive, send)

    def _known(self, app: Any) -> _Known:
        """What to do with an application: looked up once, and again when anything was added or removed."""
        if self.covers(app):
            options = self._apps.get(app) or self._options
            excluded = self._excluded
            if options is not None and options.excluded_urls is not None:
                excluded = _exclusions(options.excluded_urls)
            known = _Known(self._version, True, False, self._prepared(app, options), excluded)
        else:
            known = _Known(self._version, False, app in self._left_out, None, None)
        app.__dict__[_APP_KEY] = known
        return known

    def _around_lifespan(self, send: Send) -> Send:
        """Flush before a server hears that the application is down: it may exit at once, by a signal."""

        async def hear_and_send(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await to_thread(self._on_stop)
            elif message["type"] == "lifespan.startup.complete":
                self._on_ready()
            await send(message)

        return hear_and_send

    def _prepared(self, app: Any, options: InstrumentationOptions | None) -> ServerInstrumentation | None:
        """Start the exits and let the instrumentation in."""
        try:
            if self._instrumentation is None:
                self._instrumentation = self._make()
            self._on_start()
            instrumentation = self._instrumentation
            if options is not None:
                variant = self._variants.get(options)
                if variant is None:
                    variant = self._variants[options] = instrumentation.with_options(options)
                instrumentation = variant
            instrumentation.prepare(app)
        except Exception:
            logger.warning("instrumenting %r failed; it runs without telemetry", app, exc_info=True)
            return None
        return instrumentation


@dataclass(frozen=True, slots=True)
class _Known:
    """What to do with the events of an application.

    Attributes:
        version: of the hook when this was looked up.
        covered: the application is instrumented.
        silenced: it was, and FastAPI's own telemetry must not take over.
        instrumentation: None where it could not be.
        excluded: URLs that are not measured.
    """

    version: object
    covered: bool
    silenced: bool
    instrumentation: ServerInstrumentation | None
    excluded: ExcludeList | None


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
        if _hook is None:
            await original(self, scope, receive, send)
        else:
            await _hook.call(self, original, scope, receive, send)

    call._apivitals = True  # type: ignore[attr-defined]
    module.FastAPI.__call__ = call


def _exclusions(urls: str) -> ExcludeList | None:
    return parse_excluded_urls(urls) if urls else None


def _url(scope: Scope) -> str:
    from opentelemetry.instrumentation.asgi import get_host_port_url_tuple

    url: str = get_host_port_url_tuple(scope)[2]
    return url
