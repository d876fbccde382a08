"""An HTTP server for tests that answers as it is told: with statuses, with garbage, late, in part or not at all."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Event, Thread
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

#: Something to send, or something to do with the connection; after None it is closed.
Reply = bytes | Callable[[socket.socket, Event], object] | None


class Request(NamedTuple):
    """What came, and as the how manyeth connection."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def hang(connection: socket.socket, stopped: Event) -> None:
    """Say nothing until the test is over."""
    stopped.wait(30)


def drip(connection: socket.socket, stopped: Event) -> None:
    """Send a header that never ends, a byte at a time, each well within any timeout."""
    with suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not stopped.wait(0.02):
            connection.sendall(b"x")


class ScriptedServer:
    """Answers each request with the next reply, and with 200 when there are no more."""

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.replies = deque(replies)
        self._tls = tls
        self._wanted_port = port
        self._stopped = Event()
        self._changed = Condition()
        self._open: list[socket.socket] = []

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", self._wanted_port))
        self.port = self._listener.getsockname()[1]
        self.endpoint = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/traces"
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def wait(self, count: int, timeout: float = 10.0) -> list[Request]:
        """The requests, once there are so many."""
        deadline = monotonic() + timeout
        with self._changed:
            while len(self.requests) < count:
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(f"{len(self.requests)} requests after {timeout} s, not {count}")
            return list(self.requests)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self.connections += 1
                Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            stream: Any = connection.makefile("rb")
            with stream, connection:
                while self._request(stream, number) and self._reply(connection):
                    pass

    def _request(self, stream: Any, number: int) -> bool:
        line = stream.readline().decode(errors="replace").strip()
        headers = {}
        while header := stream.readline().decode(errors="replace").strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        if not line:
            return False
        body = stream.read(int(headers.get("content-length", 0)))
        with self._changed:
            self.requests.append(Request(line, headers, body, number))
            self._changed.notify_all()
        return True

    def _reply(self, connection: socket.socket) -> bool:
        reply = self.replies.popleft() if self.replies else answer()
        if isinstance(reply, bytes):
            connection.sendall(reply)
            # Half an answer is followed by nothing.
            return reply.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in reply
        if reply is not None:
            reply(connection, self._stopped)
        return False
