"""The shop's partners: exchange rates, a warehouse and a payment provider, behind HTTP on a loopback port.

They stand in for services of others, so they are a server of their own and not routes of the shop.
"""

from __future__ import annotations

import asyncio
import json
import random

from .faults import faults

CATEGORIES = ("indoor", "outdoor", "office")
RATES = {"EUR": 1.0, "USD": 1.08, "GBP": 0.85, "JPY": 169.2}


class Partners:
    """Listens on a free loopback port; `url` says where."""

    def __init__(self) -> None:
        self.url = ""
        self._dice = random.Random(2)

    async def __aenter__(self) -> Partners:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                status, answer = await self._answer(path)
                body = json.dumps(answer).encode()
                headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
                writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str) -> tuple[str, object]:
        if path == "/rates":
            await asyncio.sleep(self._dice.uniform(0.004, 0.012))
            return "200 OK", RATES
        if path.startswith("/stock/"):
            await asyncio.sleep(self._dice.uniform(0.055, 0.085) * faults.report_slowdown)
            return "200 OK", {"stock": {category: self._dice.randint(10, 500) for category in CATEGORIES}}
        if path == "/payments":
            await asyncio.sleep(self._dice.uniform(0.002, 0.008))
            if self._dice.random() < faults.checkout_failures:
                return "503 Service Unavailable", {"paid": False}
            return "200 OK", {"paid": True}
        return "404 Not Found", {}
