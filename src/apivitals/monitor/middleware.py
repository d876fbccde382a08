"""PerformanceMiddleware, and the decorator for operations with a name of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from opentelemetry.metrics import get_meter

from apivitals import semconv

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from apivitals.monitor.monitor import PerformanceMonitor

P = ParamSpec("P")
R = TypeVar("R")


class PerformanceMiddleware:
    """Pure ASGI middleware that keeps the recent and the slowest requests of a monitor.

    Counting and timing is the telemetry's, which the monitor sets up; this adds the single requests to it.
    """

    def __init__(self, app: ASGIApp, monitor: PerformanceMonitor) -> None:
        self.app = app
        self.monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI event."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import Response

        start = perf_counter()
        identity = self.monitor.start_request(Request(scope))
        # An application that raises before it answers is answered for with this.
        status, headers = 500, []

        async def observe(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], message.get("headers", [])
            await send(message)

        try:
            await self.app(scope, receive, observe)
        except Exception as error:
            self.monitor.record_error(scope, error)
            raise
        finally:
            response = Response(status_code=status)
            response.raw_headers = list(headers)
            self.monitor.end_request(identity, response, (perf_counter() - start) * 1e3)


def monitor_endpoint(endpoint_name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Record every call of a function as `apivitals.operation.duration` under a name.

    Works on plain and on `async` functions and keeps the signature, so FastAPI sees through it. A call that
    raises is recorded with the type of what it raised.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
                start = perf_counter()
                try:
                    result = await function(*args, **kwargs)
                except BaseException as error:
                    _record(endpoint_name, start, error)
                    raise
                _record(endpoint_name, start)
                return result

            return awaited  # type: ignore[return-value]

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            start = perf_counter()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                _record(endpoint_name, start, error)
                raise
            _record(endpoint_name, start)
            return result

        return called

    return decorate


def _record(name: str, start: float, error: BaseException | None = None) -> None:
    attributes = {semconv.OPERATION_NAME: name}
    if error is not None:
        attributes[semconv.ERROR_TYPE] = type(error).__qualname__
    # Looked up each time because the provider may be set after the decorator ran; the SDK keeps instruments.
    histogram = get_meter("apivitals").create_histogram(
        semconv.OPERATION_DURATION.name,
        semconv.OPERATION_DURATION.unit,
        semconv.OPERATION_DURATION.description,
        explicit_bucket_boundaries_advisory=semconv.OPERATION_DURATION.bounds,
    )
    histogram.record(perf_counter() - start, attributes)
