"""Sending over OTLP/HTTP: to real servers on the loopback that answer as they are told."""

from __future__ import annotations

import gzip
import logging
import os
import socket
import ssl
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from apivitals.errors import ConfigurationError
from apivitals.export.otlp_settings import OtlpSettings
from apivitals.export.sender import Outcome, Sender, Verdict, _partial_success
from tests.scripted_server import ScriptedServer, answer, drip, hang
from tests.sinks import HttpSink

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc).timestamp()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class Clock:
    """Time passes when somebody waits, and not otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(round(seconds, 3))
        self.now += seconds


def sender_to(endpoint: str, clock: Clock | None = None, **options: Any) -> Sender:
    given_ = {"timeout": 5.0, **options}
    settings = replace(OtlpSettings("traces", endpoint), **given_)
    if clock is None:
        return Sender(settings)
    return Sender(settings, clock=clock, wait=clock.wait, jitter=lambda: 0.5, wall_clock=lambda: NOW + clock.now - 1000)


def closed_port() -> str:
    with ScriptedServer() as server:
        return server.endpoint


def test_a_request_as_it_arrives() -> None:
    with ScriptedServer() as server:
        sender = sender_to(server.endpoint + "?a=b", headers=(("api-key", "süß"), ("user-agent", "mine")))
        assert sender.send(b"\x0a\x00") == Outcome(Verdict.SUCCESS)
        (request,) = server.requests
    assert request.line == "POST /v1/traces?a=b HTTP/1.1"
    assert request.body == b"\x0a\x00"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["api-key"] == "süß"
    assert request.headers["user-agent"] == "mine"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert "content-encoding" not in request.headers
    sender.close()


def test_an_empty_request_reaches_the_sink_of_the_stock_exporters() -> None:
    with HttpSink() as sink:
        sender = sender_to(f"{sink.endpoint}/v1/traces", compression="gzip")
        assert sender.send(b"").verdict is Verdict.SUCCESS
        assert len(sink.wait("traces")) == 1
        sender.close()


@pytest.mark.parametrize(("name", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_compression(name: str, undo: Callable[[bytes], bytes]) -> None:
    body = b"telemetry " * 500
    with ScriptedServer() as server:
        sender = sender_to(server.endpoint, compression=name)
        assert sender.send(body).verdict is Verdict.SUCCESS
        (request,) = server.requests
    assert request.headers["content-encoding"] == name
    assert undo(request.body) == body
    assert len(request.body) < 500
    sender.close()


def test_one_connection_is_kept() -> None:
    with ScriptedServer() as server:
        sender = sender_to(server.endpoint)
        for _ in range(5):
            assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert (len(server.requests), server.connections) == (5, 1)
        sender.close()


def test_a_connection_that_the_server_closed_is_made_anew_without_a_wait() -> None:
    clock = Clock()

    def leave(connection: Any, stopped: Any) -> None:
        connection.sendall(answer())

    with ScriptedServer(leave, leave) as server:
        sender = sender_to(server.endpoint, clock)
        for _ in range(3):
            assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert (len(server.requests), server.connections, clock.waits) == (3, 3, [])
        sender.close()


def test_an_answer_that_asks_to_close() -> None:
    with ScriptedServer(answer(Connection="close"), answer(200, b"x" * 200_000)) as server:
        sender = sender_to(server.endpoint)
        assert [sender.send(b"x").verdict for _ in range(3)] == [Verdict.SUCCESS] * 3
        # After an answer too long to be read to its end the connection is of no use either.
        assert server.connections == 3
        sender.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_be_tried_again_is(status: int) -> None:
    clock = Clock()
    with ScriptedServer(*[answer(status)] * 3) as server:
        sender = sender_to(server.endpoint, clock)
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert len(server.requests) == 4
        assert clock.waits == [1, 2, 4]
        # A success begins anew.
        server.replies.append(answer(status))
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert clock.waits == [1, 2, 4, 1]
        sender.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 418, 500, 501, 101, 301, 307])
def test_what_may_not_be_tried_again_is_fatal(status: int, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with ScriptedServer(answer(status, b"no", Location="http://127.0.0.1:1/")) as server:
        sender = sender_to(server.endpoint, clock)
        outcome = sender.send(b"x")
        assert outcome.verdict is Verdict.FATAL
        assert str(status) in outcome.reason
        assert (len(server.requests), clock.waits) == (1, [])
        sender.close()
    assert len(caplog.records) == 1
    assert ("which is not followed" in caplog.text) == (300 <= status < 400)


def test_the_wait_grows_to_half_a_minute_and_over_several_requests() -> None:
    clock = Clock()
    sender = sender_to(closed_port(), clock)
    outcome = sender.send(b"x", 30)
    assert outcome.verdict is Verdict.RETRYABLE
    assert "ConnectionRefusedError" in outcome.reason
    assert clock.waits == [1, 2, 4, 8, 15]  # the last wait is cut off by the budget
    assert clock.now == 1030
    sender.send(b"x", 100)
    assert clock.waits[5:] == [1, 30, 30, 30, 9]
    assert clock.now == 1130


@given(st.floats(0, 1), st.integers(0, 40))
def test_jitter_is_between_half_and_one_and_a_half(drawn: float, failures: int) -> None:
    clock = Clock()
    sender = Sender(OtlpSettings("traces", "http://127.0.0.1:1/"), clock=clock, wait=clock.wait, jitter=lambda: drawn)
    sender._failures = failures
    sender._connection.post = refused  # type: ignore[method-assign]
    sender.send(b"", 0.001)
    nominal = min(2.0**failures, 30)
    assert nominal / 2 <= sender._not_before - 1000 <= nominal * 1.5


def refused(*_: Any) -> Any:
    raise ConnectionRefusedError


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("7", 7),
        ("0", 1),
        ("2.5", 2.5),
        (format_datetime(datetime.fromtimestamp(NOW + 9, timezone.utc), usegmt=True), 9),
        (format_datetime(datetime.fromtimestamp(NOW - 99, timezone.utc), usegmt=True), 1),
        ("soon", 1),
        ("", 1),
        ("99999999999999999999", 300),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 1),
        ("1e999", 300),
    ],
)
def test_retry_after(said: str, waited: float) -> None:
    clock = Clock()
    with ScriptedServer(answer(503, Retry_After=said)) as server:
        sender = sender_to(server.endpoint, clock)
        assert sender.send(b"x", 1000).verdict is Verdict.SUCCESS
        assert clock.waits == [waited]
        sender.close()


def test_a_retry_after_beyond_the_budget_holds_for_the_next_request() -> None:
    clock = Clock()
    with ScriptedServer(answer(429, Retry_After="50")) as server:
        sender = sender_to(server.endpoint, clock)
        assert sender.send(b"x", 20) == Outcome(Verdict.RETRYABLE, reason="the server answered 429")
        assert sender.send(b"x", 20) == Outcome(Verdict.RETRYABLE, reason="the server asked us to wait")
        assert len(server.requests) == 1
        assert sender.send(b"x", 20).verdict is Verdict.SUCCESS
        assert clock.waits == [20, 20, 10]
        sender.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"garbage\r\n\r\n",
        b"\x00\xff" * 100,
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        None,
    ],
    ids=["text", "bytes", "status", "half", "long", "many", "chunks", "closed"],
)
def test_garbage_and_a_closed_connection_are_tried_again(reply: Any) -> None:
    clock = Clock()
    with ScriptedServer(reply, reply) as server:
        sender = sender_to(server.endpoint, clock)
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert clock.waits == [1, 2]
        assert server.connections == 3
        sender.close()


@examples(max_examples=25, deadline=None)
@given(st.binary(max_size=80))
def test_no_answer_raises(reply: bytes) -> None:
    with ScriptedServer(b"HTTP/1.1 200 OK\r\n" + reply, lambda connection, _: connection.sendall(reply)) as server:
        clock = Clock()
        sender = sender_to(server.endpoint, clock, timeout=0.3)
        assert sender.send(b"x").verdict in Verdict
        sender.close()


@pytest.mark.parametrize("behaviour", [hang, drip])
def test_a_request_takes_no_longer_than_its_timeout(behaviour: Any) -> None:
    clock = Clock()
    with ScriptedServer(behaviour) as server:
        sender = sender_to(server.endpoint, clock, timeout=0.2)
        began = monotonic()
        outcome = sender.send(b"x", 0.5)
        assert 0.15 < monotonic() - began < 3
        assert outcome.verdict is Verdict.RETRYABLE
        assert "timed out" in outcome.reason
        sender.close()


def test_a_server_that_does_not_read_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = sender_to(f"http://127.0.0.1:{listener.getsockname()[1]}/", Clock(), timeout=0.3)
        began = monotonic()
        # More than the system takes in for a program that does not read.
        outcome = sender.send(b"x" * 50_000_000, 0.5)
        assert outcome.verdict is Verdict.RETRYABLE
        assert "timed out" in outcome.reason
        assert monotonic() - began < 3


def test_partial_success_is_counted_and_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 7
    response.partial_success.error_message = "too ölд"
    clock = Clock()
    reply = answer(200, response.SerializeToString())
    with ScriptedServer(reply, reply, reply) as server:
        sender = sender_to(server.endpoint, clock)
        assert sender.send(b"x") == Outcome(Verdict.SUCCESS, 7, "too ölд")
        sender.send(b"x")
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "rejected 7 items: too ölд" in caplog.text
        clock.now += 61
        sender.send(b"x")
        assert len(caplog.records) == 2
        sender.close()


@given(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
def test_partial_success_of_protobuf_is_read(rejected: int, message: str) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = message
    assert _partial_success(response.SerializeToString()) == (max(0, rejected), message)


@given(st.binary(max_size=60))
def test_no_body_of_an_answer_raises(body: bytes) -> None:
    rejected, message = _partial_success(body)
    assert 0 <= rejected < 2**63
    assert isinstance(message, str)


def test_a_sink_that_is_down_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sender = sender_to(closed_port(), clock)
    sender.send(b"x", 50)
    assert len(caplog.records) == 1
    assert "sending traces to http://127.0.0.1" in caplog.text
    sender.send(b"x", 50)
    assert len(caplog.records) == 2


def test_stopping_ends_a_wait_with_one_more_try() -> None:
    with ScriptedServer(answer(503, Retry_After="60")) as server:
        sender = sender_to(server.endpoint)
        outcomes: list[Outcome] = []
        thread = Thread(target=lambda: outcomes.append(sender.send(b"x", 100)))
        thread.start()
        server.wait(1)
        began = monotonic()
        sender.stop(5)
        thread.join(10)
        assert monotonic() - began < 4
        assert outcomes == [Outcome(Verdict.SUCCESS)]
        assert len(server.requests) == 2
        sender.close()


def test_after_stopping_there_is_one_try_within_the_time() -> None:
    with ScriptedServer(answer(503), hang) as server:
        sender = sender_to(server.endpoint)
        sender.stop(0.3)
        assert sender.send(b"x").reason == "the server answered 503"
        began = monotonic()
        assert "timed out" in sender.send(b"x").reason
        assert sender.send(b"x").reason == "there was no time left"
        assert monotonic() - began < 2
        assert len(server.requests) == 2
        sender.close()


# --- TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own authority for 127.0.0.1, and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


def server_context(pem: Path, *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if clients:
        context.load_verify_locations(pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_tls_with_a_certificate_of_one_s_own(pem: Path) -> None:
    with ScriptedServer(tls=server_context(pem)) as server:
        sender = sender_to(server.endpoint, certificate=str(pem))
        assert [sender.send(b"x" * 100_000).verdict for _ in range(2)] == [Verdict.SUCCESS] * 2
        assert server.connections == 1
        assert len(server.requests[0].body) == 100_000
        assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"
        sender.close()


def test_a_server_that_nobody_vouches_for_gets_nothing(pem: Path) -> None:
    clock = Clock()
    with ScriptedServer(tls=server_context(pem)) as server:
        sender = sender_to(server.endpoint, clock)
        outcome = sender.send(b"x", 0.5)
        assert outcome.verdict is Verdict.RETRYABLE
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.reason
        assert server.requests == []


def test_a_client_certificate(pem: Path) -> None:
    with ScriptedServer(tls=server_context(pem, clients=True)) as server:
        sender = sender_to(server.endpoint, certificate=str(pem), client_certificate=str(pem))
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        sender.close()
        nobody = sender_to(server.endpoint, Clock(), certificate=str(pem))
        assert nobody.send(b"x", 0.5).verdict is Verdict.RETRYABLE
        assert len(server.requests) == 1


def test_certificates_that_cannot_be_used(tmp_path: Path, pem: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"bad\.pem.*give a PEM file"):
        sender_to("https://c/", certificate=str(bad))
    with pytest.raises(ConfigurationError, match=r"bad\.pem.*not encrypted"):
        sender_to("https://c/", certificate=str(pem), client_certificate=str(bad))
    sender_to("http://c/", certificate=str(bad))  # of no interest without TLS


# --- proxies


def test_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        sender = sender_to("http://collector.example:4318/v1/traces")
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert proxy.requests[0].line == "POST http://collector.example:4318/v1/traces HTTP/1.1"
        assert proxy.requests[0].headers["host"] == "collector.example:4318"
        sender.close()


def test_a_host_that_is_not_proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        monkeypatch.setenv("http_proxy", closed_port())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        sender = sender_to(server.endpoint)
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        sender.close()


def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch, pem: Path) -> None:
    def connect(connection: Any, stopped: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with server_context(pem).wrap_socket(connection, server_side=True) as inside:
            received = b""
            while not received.endswith(b"\r\n\r\nx"):
                received += inside.recv(65536)
            inside.sendall(answer())

    with ScriptedServer(connect, answer(407)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://us%65r:pw@127.0.0.1:{proxy.port}")
        sender = sender_to("https://127.0.0.1:4318/v1/traces", Clock(), certificate=str(pem))
        assert sender.send(b"x").verdict is Verdict.SUCCESS
        assert proxy.requests[0].line == "CONNECT 127.0.0.1:4318 HTTP/1.1"
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwdw=="
        sender.close()
        assert "the proxy 127.0.0.1 answered 407" in sender.send(b"x", 0.5).reason


def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigurationError, match="give a URL like"):
        sender_to("http://collector.example/")
