"""The port that answers a Prometheus scrape."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import Any

from apivitals.export.prometheus import CONTENT_TYPE

logger = logging.getLogger(__name__)


class ScrapeServer:
    """Serves `GET /metrics` from a daemon thread.

    Args:
        host, port: where to listen; port 0 takes a free one, `port` then tells which.
        render: gives the exposition text; called in the server's threads.
    """

    def __init__(self, host: str, port: int, render: Callable[[], str]) -> None:
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

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's name: the base asks the DNS, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone or sends nonsense is no event; the base prints a traceback."""
        logger.debug("serving /metrics to %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    # Slow clients are cut off; each has only a thread of its own to hold.
    timeout = 10
    server_version = "apivitals"
    sys_version = ""
    render: Callable[[], str]

    def do_GET(self) -> None:
        if self.path.split("?", 1)[0] != "/metrics":
            self._answer(404, "text/plain; charset=utf-8", "only /metrics is here\n")
            return
        try:
            body = self.render()
        except Exception:
            logger.warning("rendering /metrics failed", exc_info=True)
            self._answer(500, "text/plain; charset=utf-8", "rendering the metrics failed; see the service's log\n")
            return
        self._answer(200, CONTENT_TYPE, body)

    do_HEAD = do_GET

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
