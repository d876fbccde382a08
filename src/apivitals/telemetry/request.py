"""One HTTP request while it is served: what stands between the server and the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from apivitals.tally import Tally
from apivitals.telemetry.spans import ServerSpan

if TYPE_CHECKING:
    from apivitals.telemetry.middleware import TelemetryMiddleware

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Request(Tally):
    """Sees the messages of one request, and says when it is over. It is also the request's tally.

    A request is over with the last byte of its response. Behind a response of 500 and above an exception may be
    on its way, so such a request is over when the application is done with it, or begins a background task.

    Attributes:
        status: of the response; None when none began while the client was there.
        error: what the application raised.
        first_byte: seconds until the response began, None when it did not.
        seconds: to the last byte of the body, negative until then.
        request_bytes, sent_bytes: sizes of the bodies, negative where they are not known.
        complete: the last byte was sent to a client that was there.
        disconnected: the client left.
        background: a background task has begun.
        active: the ids of the spans of requests that are being served.
    """

    __slots__ = (
        "_headers",
        "_middleware",
        "_receive",
        "_send",
        "_start",
        "_trailers",
        "active",
        "app",
        "background",
        "complete",
        "disconnected",
        "error",
        "finished",
        "first_byte",
        "request_bytes",
        "scope",
        "seconds",
        "sent_bytes",
        "span",
        "status",
    )

    def __init__(
        self,
        middleware: TelemetryMiddleware,
        app: Any,
        scope: Scope,
        receive: Receive,
        send: Send,
        span: ServerSpan,
        active: set[int],
        request_bytes: int,
        start: float,
    ) -> None:
        # A tally's own fields; calling its constructor costs more than they do.
        self.queries = 0
        self.query_seconds = 0.0
        self.cache_hits = 0
        self.cache_misses = 0
        self.cache_seconds = 0.0
        self.outbound_calls = 0
        self.outbound_seconds = 0.0
        self._middleware = middleware
        self._receive = receive
        self._send = send
        self._start = start
        self._trailers = False
        self._headers: Any = None
        self.app = app
        self.scope = scope
        self.span = span
        self.active = active
        self.status: int | None = None
        self.error: BaseException | None = None
        self.first_byte: float | None = None
        self.seconds = -1.0
        self.request_bytes = request_bytes
        self.sent_bytes = -1
        self.complete = False
        self.disconnected = False
        self.finished = False
        self.background = False

    async def receive(self) -> Message:
        """Hand on what the client sent, and notice when it leaves."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Hand on what the application sends, and notice the last byte."""
        kind = message["type"]
        if kind == "http.response.body":
            size = self.sent_bytes
            self.sent_bytes = (0 if size < 0 else size) + len(message.get("body", b""))
            last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.start":
            last = False
            status = message["status"]
            # Early hints and other interim responses only announce the response.
            if status >= 200 and not self.disconnected:
                self.first_byte = perf_counter() - self._start
                self.status = status
                self._trailers = message.get("trailers", False)
                self._headers = message.get("headers")
        else:
            last = self._other(kind, message)
        try:
            await self._send(message)
        except OSError:
            # So servers say that the client is gone.
            self.disconnected = True
            raise
        if last and self.seconds < 0:
            self.seconds = perf_counter() - self._start
            # A server takes messages for a client that has left, and drops them.
            self.complete = not self.disconnected
            if self.status is not None and self.status < 500:
                self._finish()

    def _other(self, kind: str, message: Message) -> bool:
        """Whether a message that is neither start nor body is the last of the response."""
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        if kind == "http.response.zerocopysend":
            self.sent_bytes = max(0, self.sent_bytes) + (message.get("count") or 0)
            return not message.get("more_body", False) and not self._trailers
        if kind == "http.response.pathsend":
            # The server sends a file that we do not see; the response has announced its size.
            length = dict(self._headers or ()).get(b"content-length", b"")
            self.sent_bytes = int(length) if length.isdigit() else -1
            return not self._trailers
        return False

    def background_begins(self) -> None:
        """A background task begins; with the response out, the request is over."""
        if self.status is not None:
            self.background = True
            if self.seconds >= 0 and not self.finished:
                self._finish()

    def close(self) -> None:
        """The application is done with the request."""
        if not self.finished:
            if self.seconds < 0:
                self.seconds = perf_counter() - self._start
            self._finish()
        if self.background:
            self._middleware.background_done(self, perf_counter() - self._start - self.seconds)
        # An exception leads back to us through its frames.
        self.error = None

    def _finish(self) -> None:
        self.finished = True
        self._middleware.finish(self)
