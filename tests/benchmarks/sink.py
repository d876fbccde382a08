"""Receives what exporters send, in a process of its own, and answers 200 at once.

    python sink.py          prints the port, runs until its input ends

Everything is answered: OTLP over HTTP, Datadog's traces, Sentry's envelopes. `GET /counts` says what came: requests and
bytes, and for OTLP traces the spans, which are counted only then. Standard library only.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import Iterator

TRACES = "/v1/traces"


class Counts:
    """Requests, bytes and spans since the last `take`."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self._traces: list[tuple[str, bytes]] = []

    def add(self, path: str, encoding: str, body: bytes) -> None:
        """Count one request; a body with spans is kept to be looked into later."""
        self.requests += 1
        self.bytes += len(body)
        if path == TRACES:
            self._traces.append((encoding, body))

    def take(self) -> dict[str, int]:
        """What came since the last time."""
        spans = sum(count_spans(decompressed(encoding, body)) for encoding, body in self._traces)
        taken = {"requests": self.requests, "bytes": self.bytes, "spans": spans}
        self.requests, self.bytes, self._traces = 0, 0, []
        return taken


def decompressed(encoding: str, body: bytes) -> bytes:
    """A body without its `Content-Encoding`."""
    if encoding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if encoding == "deflate" else body


def count_spans(request: bytes) -> int:
    """How many spans an ExportTraceServiceRequest has: resource_spans (1), scope_spans (2), spans (2)."""
    return sum(
        1
        for resource in _submessages(memoryview(request), 1)
        for scope in _submessages(resource, 2)
        for _ in _submessages(scope, 2)
    )


def _submessages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields of a protobuf message that have that number.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            if tag >> 3 == wanted:
                yield message[place : place + length]
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place} is not used by OTLP")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


async def _serve(counts: Counts, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
            }
            if method == "GET" and path == "/counts":
                answer = json.dumps(counts.take()).encode()
            else:
                counts.add(path, headers.get("content-encoding", ""), await _body(reader, headers))
                # OTLP's answer is a protobuf message, and the empty one is the good one; the others want JSON.
                answer = b"" if path.startswith("/v1/") else b"{}"
            kind = "application/x-protobuf" if path.startswith("/v1/") else "application/json"
            writer.write(
                f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while length := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(length))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


async def _main() -> None:
    counts = Counts()
    server = await asyncio.start_server(
        lambda reader, writer: _serve(counts, reader, writer), "127.0.0.1", 0, limit=2**26
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    # Ends with whoever started it, also when that was killed.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
