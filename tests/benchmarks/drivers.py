"""Sends requests into an application at the ASGI interface: there is no server and no socket in the numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import cycle, islice
from random import Random
from typing import Any

App = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]

#: What a browser sends through a proxy that traces; `wrk` sends the same.
HEADERS = (
    ("host", "shop.example:8000"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("accept-language", "en-GB,en;q=0.5"),
)


def traceparents(count: int, sampled: float) -> list[str]:
    """That many different `traceparent` values, the same ones every time; a share of them is sampled."""
    random = Random(7)
    return [
        f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-{'01' if random.random() < sampled else '00'}"
        for _ in range(count)
    ]


class AsgiDriver:
    """Sends GET requests one after the other; goes on with the paths where it stopped.

    Args:
        app: the application.
        paths: asked for in turn.
        status: what each response must have.
        sampled: share of the requests that the caller sampled.
    """

    def __init__(self, app: App, paths: Sequence[str], status: int = 200, sampled: float = 1.0) -> None:
        self._app = app
        self._status = status
        fixed = [(name.encode(), value.encode()) for name, value in HEADERS]
        parents = [(b"traceparent", parent.encode()) for parent in traceparents(1000, sampled)]
        self._requests = [(path, path.encode(), [*fixed, parent]) for path, parent in zip(cycle(paths), parents)]
        self._next = 0

    async def serve(self, requests: int) -> None:
        """Send that many.

        Raises:
            RuntimeError: a response had another status, or there was none.
        """
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            # A client that waits: nobody asks for more than the body.
            if asked:
                await asyncio.Event().wait()
            asked.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        asked: list[bool] = []
        for path, raw_path, headers in islice(cycle(self._requests), self._next, self._next + requests):
            asked.clear()
            scope = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": path,
                "raw_path": raw_path,
                "query_string": b"",
                "root_path": "",
                "headers": list(headers),
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 8000),
                "state": {},
            }
            try:
                await self._app(scope, receive, send)
            except LookupError:
                # Starlette answers, and then raises on for the server to log.
                if self._status != 500:
                    raise
        self._next = (self._next + requests) % len(self._requests)
        if statuses != [self._status] * requests:
            raise RuntimeError(f"{requests} requests gave {len(statuses)} responses of {sorted(set(statuses))}")
