"""The drivers, the paced load and the sink, without a service."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.benchmarks import paced
from tests.benchmarks.apps import APPLICATIONS
from tests.benchmarks.drivers import AsgiDriver, traceparents
from tests.benchmarks.sink import TRACES, Counts, count_spans, decompressed


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_answers_its_paths_with_its_status(name: str) -> None:
    application = APPLICATIONS[name]
    asyncio.run(AsgiDriver(application.make(), application.paths, application.status).serve(60))


def test_an_answer_with_another_status_is_an_error() -> None:
    application = APPLICATIONS["items"]
    with pytest.raises(RuntimeError, match=r"2 requests gave 2 responses of \[404\]"):
        asyncio.run(AsgiDriver(application.make(), ["/nowhere"]).serve(2))


def test_a_driver_goes_on_where_it_stopped() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def drive() -> None:
        driver = AsgiDriver(app, ["/a", "/b", "/c"])
        await driver.serve(2)
        await driver.serve(2)

    asyncio.run(drive())
    assert seen == ["/a", "/b", "/c", "/a"]


def test_traceparents_differ_and_are_the_same_each_time() -> None:
    parents = traceparents(2000, 0.05)
    assert len(set(parents)) == 2000
    assert parents == traceparents(2000, 0.05)
    assert 60 <= sum(parent.endswith("-01") for parent in parents) <= 140
    assert all(parent.endswith("-01") for parent in traceparents(100, 1.0))


# --- the paced load


@pytest.mark.parametrize(
    ("response", "complete"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: y\r\n\r\n{}", True),
    ],
)
def test_a_response_is_complete_when_all_of_it_is_there(response: bytes, complete: bool) -> None:
    assert paced.is_complete(response) is complete


def test_another_status_stops_the_load() -> None:
    with pytest.raises(RuntimeError, match=r"answered HTTP/1\.1 500 Oh"):
        paced.is_complete(b"HTTP/1.1 500 Oh\r\n\r\n")


def test_quantiles_are_values_that_were_measured() -> None:
    ordered = [float(number) for number in range(100)]
    assert [paced.quantile(ordered, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 99.0]
    assert paced.quantile([], 0.5) == 0.0


class Service:
    """Answers each request on each connection, except that the first answers wait until `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(paced.CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while connection.recv(65536):
                self.release.wait()
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
        self._listener.close()


def test_who_has_to_wait_for_a_stalled_service_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections hang for 0.3 s; a client that waits for answers before it asks again would see 32 slow ones."""
    monkeypatch.setattr(paced, "WARM_UP", 0.0)
    service = Service()
    threading.Timer(0.3, service.release.set).start()
    latencies, lateness, unanswered = paced.run(service.port, 500, 0.5, b"GET / HTTP/1.1\r\n\r\n")
    service.close()
    assert (len(latencies), len(lateness), unanswered) == (250, 250, 0)
    assert min(lateness) >= 0
    assert sum(latency > 0.05 for latency in latencies) >= 100
    assert max(latencies) > 0.2


def test_what_is_never_answered_counts_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced, "WARM_UP", 0.0)
    monkeypatch.setattr(paced, "GRACE", 0.2)
    service = Service()
    latencies, lateness, unanswered = paced.run(service.port, 500, 0.2, b"GET / HTTP/1.1\r\n\r\n")
    service.release.set()
    service.close()
    assert (latencies, len(lateness), unanswered) == ([0.2] * 100, 100, 100)


# --- the sink


@given(st.lists(st.lists(st.lists(st.text(max_size=200), max_size=4), max_size=3), max_size=3))
def test_spans_are_counted_without_decoding_them(names: list[list[list[str]]]) -> None:
    request = ExportTraceServiceRequest()
    for scopes in names:
        resource = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.44.0")
        resource.resource.dropped_attributes_count = 300
        for spans in scopes:
            scope = resource.scope_spans.add(schema_url="x")
            scope.scope.name = "bench"
            for name in spans:
                scope.spans.add(name=name, start_time_unix_nano=2**63, flags=257, trace_id=b"t" * 16)
    wanted = sum(len(spans) for scopes in names for spans in scopes)
    assert count_spans(request.SerializeToString()) == wanted


def test_what_is_no_otlp_is_refused() -> None:
    with pytest.raises(ValueError, match="wire type 3"):
        count_spans(b"\x0b")


def test_counts_are_since_the_last_time() -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="one")
    body = request.SerializeToString()
    counts = Counts()
    counts.add(TRACES, "", body)
    counts.add(TRACES, "gzip", gzip.compress(body))
    counts.add("/v1/metrics", "", b"abc")
    assert counts.take() == {"requests": 3, "bytes": len(body) + len(gzip.compress(body)) + 3, "spans": 2}
    assert counts.take() == {"requests": 0, "bytes": 0, "spans": 0}
    assert decompressed("deflate", zlib.compress(body)) == body
