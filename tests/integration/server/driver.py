"""An ASGI server of the smallest kind: hands one request to an application and keeps what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Headers = Iterable[tuple[bytes, bytes]]


@dataclass
class Exchange:
    """One request: what the application sent, and what it raised."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), None)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")


def scope_of(path: str, method: str = "GET", headers: Headers = (), **fields: Any) -> dict[str, Any]:
    """An HTTP scope; a field that is None is left out."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"service.example:8000"), *headers],
        "server": ("10.0.0.1", 8000),
        "client": ("192.0.2.7", 50123),
        "state": {},
        **fields,
    }
    return {name: value for name, value in scope.items() if value is not None}


async def exchange(
    app: Any,
    path: str,
    method: str = "GET",
    headers: Headers = (),
    *,
    body: bytes = b"",
    receive: Callable[[], Any] | None = None,
    send: Callable[[dict[str, Any]], Any] | None = None,
    **fields: Any,
) -> Exchange:
    """Serve one request; `send` is called with each message and may raise, `receive` takes the place of the client."""
    found = Exchange()
    sent = False
    answered = asyncio.Event()

    async def client() -> Any:
        nonlocal sent
        if sent:
            await answered.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def answer(message: dict[str, Any]) -> None:
        if send is not None:
            send(message)
        found.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            answered.set()

    try:
        await app(scope_of(path, method, headers, **fields), receive or client, answer)
    except Exception as error:  # noqa: BLE001 - a server takes whatever an application raises
        found.error = error
    return found
