"""The port that answers a Prometheus scrape."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore, Thread
from time import monotonic
from typing import Any

from apivitals.exposition import Exposition

logger = logging.getLogger(__name__)

#: Seconds that a client has to ask, and again to take the answer.
_PATIENCE = 10.0
#: Clients that are served at one time; each has a thread. The next ones are turned away.
_CLIENTS = 32
#: Seconds for which is read and thrown away what a client sends beside its question.
_LEFT_OVER_SECONDS = 1.0


class ScrapeServer:
    """Serves `GET /metrics` from a daemon thread.

    Args:
        host, port: where to listen; port 0 takes a free one, `port` then tells which.
        render: gives the exposition that an Accept header prefers; called in the server's threads.
    """

    def __init__(self, host: str, port: int, render: Callable[[str], Exposition]) -> None:
        self.host = host
        self.port = port
        self._render = render
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> bool:
        """Listen; False, with one warning that says what to do, when the port cannot be had."""
        handler = type("Handler", (_Handler,), {"render": staticmethod(self._render)})
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            self._server = type("Server", (_Server,), {"address_family": family})((self.host, self.port), handler)
        # A host that is no name at all is a UnicodeError.
        except (OSError, UnicodeError) as error:
            logger.warning(
                "/metrics is not served on %s:%s (%s); set OTEL_EXPORTER_PROMETHEUS_PORT to a free port, "
                "or 0 for any. Everything else works.",
                self.host,
                self.port,
                getattr(error, "strerror", None) or error,
            )
            return False
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, args=(0.1,), name="apivitals-scrape", daemon=True).start()
        return True

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Two services that share a port would each be scraped by turns; better one clear warning.
    allow_reuse_port = False
    # Those who wait to be accepted; with the base's 5, a sixth waits for a second.
    request_queue_size = _CLIENTS

    def __init__(self, *args: Any) -> None:
        self._free = BoundedSemaphore(_CLIENTS)
        super().__init__(*args)

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's name: the base asks the DNS, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a thread of its own, or turn it away."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone or sends nonsense is no event; the base prints a traceback."""
        logger.debug("serving /metrics to %s failed", client_address, exc_info=True)


class _Asked(io.RawIOBase):
    """What a client sends, until the time is up: one that drips bytes would never run into a socket's timeout."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = monotonic() + _PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(0.001, self._deadline - monotonic()))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server_version = "apivitals"
    sys_version = ""
    render: Callable[[str], Exposition]

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Asked(self.connection))

    def finish(self) -> None:
        super().finish()
        # To close while something is unread resets the connection, and takes the answer from the client with it.
        deadline = monotonic() + _LEFT_OVER_SECONDS
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (seconds := deadline - monotonic()) > 0:
                self.connection.settimeout(seconds)
                if not self.connection.recv(65_536):
                    break

    def do_GET(self) -> None:
        if self.path.split("?", 1)[0] != "/metrics":
            self._say(404, "only /metrics is here\n")
            return
        try:
            exposition = self.render(self._header("Accept"))
            body = exposition.encode(self._header("Accept-Encoding"))
        except Exception:
            logger.warning("rendering /metrics failed", exc_info=True)
            self._say(500, "rendering the metrics failed; see the service's log\n")
            return
        self._answer(200, {"Content-Type": exposition.content_type, **body.headers}, body.pieces)

    do_HEAD = do_GET

    def _header(self, name: str) -> str:
        return ", ".join(self.headers.get_all(name, ()))

    def _say(self, status: int, text: str) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text))}
        self._answer(status, headers, [text.encode()])

    def _answer(self, status: int, headers: dict[str, str], pieces: list[bytes]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        deadline = monotonic() + _PATIENCE
        for piece in pieces:
            self.connection.settimeout(max(0.001, deadline - monotonic()))
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
