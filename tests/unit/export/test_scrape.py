"""The port that answers a scrape, with clients that behave and clients that do not."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from time import monotonic, sleep
from typing import Any

import pytest

from apivitals.export.prometheus import CONTENT_TYPE
from apivitals.export.scrape import ScrapeServer
from apivitals.exposition import OPENMETRICS, Exposition


class Rendering:
    text = "# HELP a a\n# TYPE a gauge\na 1\n"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.accepted: list[str] = []

    def __call__(self, accept: str) -> Exposition:
        self.accepted.append(accept)
        if self.error is not None:
            raise self.error
        return Exposition.of(self.text)


@pytest.fixture
def rendering() -> Rendering:
    return Rendering()


@pytest.fixture
def server(rendering: Rendering) -> Iterator[ScrapeServer]:
    server = ScrapeServer("127.0.0.1", 0, rendering)
    assert server.start()
    yield server
    server.stop()


def ask(
    port: int,
    path: str = "/metrics",
    method: str = "GET",
    host: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=a"])
def test_a_scrape(server: ScrapeServer, rendering: Rendering, path: str) -> None:
    assert server.port != 0
    response, body = ask(server.port, path)
    assert response.status == 200
    assert response.getheader("Content-Type") == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert body.decode() == rendering.text
    assert response.getheader("Content-Length") == str(len(body))


def test_a_head_has_no_body(server: ScrapeServer, rendering: Rendering) -> None:
    response, body = ask(server.port, method="HEAD")
    assert (response.status, body) == (200, b"")
    assert response.getheader("Content-Length") == str(len(rendering.text))


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/other?/metrics"])
def test_nothing_else_is_there(server: ScrapeServer, path: str) -> None:
    response, body = ask(server.port, path)
    assert (response.status, body) == (404, b"only /metrics is here\n")


def test_nothing_can_be_posted(server: ScrapeServer) -> None:
    assert ask(server.port, method="POST")[0].status == 501


def test_the_server_tells_neither_python_nor_its_version(server: ScrapeServer) -> None:
    assert "ython" not in str(ask(server.port)[0].headers)


def test_a_rendering_that_raises_is_a_500_and_the_server_lives(
    server: ScrapeServer, rendering: Rendering, caplog: Any
) -> None:
    rendering.error = RuntimeError("secret of the service")
    response, body = ask(server.port)
    assert response.status == 500
    assert b"see the service's log" in body
    assert b"secret" not in body
    assert "secret of the service" in caplog.text
    rendering.error = None
    assert ask(server.port)[0].status == 200


def test_text_that_is_no_unicode_is_served(server: ScrapeServer, rendering: Rendering) -> None:
    rendering.text = 'a{path="/caf\udce9"} 1\n'
    assert ask(server.port)[1] == b'a{path="/caf?"} 1\n'


def test_a_taken_port_is_a_warning_with_a_remedy(server: ScrapeServer, rendering: Rendering, caplog: Any) -> None:
    second = ScrapeServer("127.0.0.1", server.port, rendering)
    assert not second.start()
    (record,) = caplog.records
    assert f"/metrics is not served on 127.0.0.1:{server.port}" in record.getMessage()
    assert "set OTEL_EXPORTER_PROMETHEUS_PORT to a free port, or 0 for any" in record.getMessage()
    second.stop()
    assert ask(server.port)[0].status == 200


@pytest.mark.parametrize("host", ["256.1.1.1", "x" * 70 + ".invalid", "..", "192.0.2.1"])
def test_a_host_that_cannot_be_had_is_a_warning(host: str, caplog: Any) -> None:
    assert not ScrapeServer(host, 0, Rendering()).start()
    assert len(caplog.records) == 1
    assert f"/metrics is not served on {host}:0" in caplog.text


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_it_listens_on_ipv6(rendering: Rendering) -> None:
    server = ScrapeServer("::1", 0, rendering)
    assert server.start()
    try:
        assert ask(server.port, host="::1")[0].status == 200
    finally:
        server.stop()


def test_starting_asks_no_name_server(rendering: Rendering, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*names: str) -> str:
        raise AssertionError(f"looked up {names}")

    monkeypatch.setattr(socket, "getfqdn", look_up)
    monkeypatch.setattr(socket, "gethostbyaddr", look_up)
    server = ScrapeServer("127.0.0.1", 0, rendering)
    assert server.start()
    assert ask(server.port)[0].status == 200
    server.stop()


def test_a_slow_client_holds_up_no_other(server: ScrapeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow:")
        for _ in range(3):
            assert ask(server.port)[0].status == 200


def test_a_slow_rendering_holds_up_no_other_client() -> None:
    entered, release = threading.Event(), threading.Event()

    def render(accept: str) -> Exposition:
        if not entered.is_set():
            entered.set()
            assert release.wait(10)
        return Exposition.of("a 1\n")

    server = ScrapeServer("127.0.0.1", 0, render)
    assert server.start()
    try:
        first = threading.Thread(target=ask, args=(server.port,))
        first.start()
        assert entered.wait(10)
        assert ask(server.port)[1] == b"a 1\n"
        release.set()
        first.join(10)
    finally:
        server.stop()


def vanish(port: int) -> None:
    """Ask, and reset the connection without reading."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")


def nonsense(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        client.recv(1000)


@pytest.mark.parametrize("misbehave", [vanish, nonsense])
def test_a_client_that_misbehaves_is_no_event(
    misbehave: Callable[[int], None], capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    entered = threading.Semaphore(0)

    def render(accept: str) -> Exposition:
        entered.release()
        return Exposition.of("a 1\n" * 2_000_000)

    server = ScrapeServer("127.0.0.1", 0, render)
    assert server.start()
    try:
        misbehave(server.port)
        if misbehave is vanish:
            assert entered.acquire(timeout=10)
        assert ask(server.port, "/")[0].status == 404
    finally:
        server.stop()
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(10)
    assert capsys.readouterr().err == ""
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_stopping_frees_the_port(rendering: Rendering) -> None:
    server = ScrapeServer("127.0.0.1", 0, rendering)
    server.stop()
    assert server.start()
    port = server.port
    server.stop()
    server.stop()
    with pytest.raises(OSError):
        ask(port)
    again = ScrapeServer("127.0.0.1", port, rendering)
    assert again.start()
    again.stop()


# --- formats and codings


def test_the_accept_header_decides_the_format(server: ScrapeServer, rendering: Rendering) -> None:
    rendering.text = "# TYPE a gauge\na 1\n# EOF\n"
    response, body = ask(server.port, headers={"Accept": "application/openmetrics-text"})
    assert rendering.accepted == ["application/openmetrics-text"]
    assert response.getheader("Content-Type") == OPENMETRICS
    assert response.getheader("Vary") == "Accept, Accept-Encoding"
    assert body.decode() == rendering.text


def test_headers_that_come_in_parts_are_one(server: ScrapeServer, rendering: Rendering) -> None:
    rendering.text = "a 1\n" * 10_000
    answer = talk(
        server.port,
        b"GET /metrics HTTP/1.1\r\nAccept: text/plain\r\nAccept: a/b;q=0.5\r\n"
        b"Accept-Encoding: br\r\naccept-encoding: gzip\r\n\r\n",
    )
    assert rendering.accepted == ["text/plain, a/b;q=0.5"]
    assert b"\r\nContent-Encoding: gzip\r\n" in answer


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("text", ["a 1\n" * 100_000, 'a{k="ü🚀"} 1\n' * 100_000])
def test_a_large_text_is_compressed(server: ScrapeServer, rendering: Rendering, method: str, text: str) -> None:
    rendering.text = text
    response, body = ask(server.port, method=method, headers={"Accept-Encoding": "deflate, gzip;q=0.5"})
    assert response.getheader("Content-Encoding") == "gzip"
    if method == "HEAD":
        assert body == b""
        assert 0 < int(response.getheader("Content-Length") or 0) < len(text) / 10
    else:
        assert response.getheader("Content-Length") == str(len(body))
        assert gzip.decompress(body).decode() == text
    response, body = ask(server.port)
    assert response.getheader("Content-Encoding") is None
    assert body.decode() == text


# --- clients that are odd


def talk(port: int, question: bytes) -> bytes:
    """What a raw question is answered with, to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(question)
        answer = b""
        while piece := client.recv(65_536):
            answer += piece
        return answer


def test_http_1_0(server: ScrapeServer, rendering: Rendering) -> None:
    head, _, body = talk(server.port, b"GET /metrics HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 200 OK\r\n" in head
    assert body.decode() == rendering.text


def test_a_question_with_a_body_is_answered(server: ScrapeServer, rendering: Rendering) -> None:
    body = b"x" * 300_000
    question = b"GET /metrics HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert talk(server.port, question + body).endswith(rendering.text.encode())


LONG = b"x" * 1_000_000


@pytest.mark.parametrize(
    ("question", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX-Long: " + LONG + b"\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"X-Many: x\r\n" * 80_000 + b"\r\n", 431),
        (b"GET /metrics?" + LONG + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /metrics HTTP/one\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 505),
        (b"GET\r\n\r\n", 400),
        (b"BREW /metrics HTTP/1.1\r\n\r\n", 501),
        (b"GET /metrics HTTP/1.1\r\nAccept: " + b",".join([b"a/b;q=x"] * 8000) + b"\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nAccept: \xff;;=;q=,\r\nAccept-Encoding: ;q=,,gzip;q=9\r\n\r\n", 200),
    ],
)
def test_a_question_that_is_too_much_is_answered_and_the_server_lives(
    server: ScrapeServer, question: bytes, status: int, caplog: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # Read to the end without a reset, although the server has not read all of it.
    # A question without a version that is understood may be answered as HTTP/0.9: by a page without a status line.
    assert b"%d" % status in talk(server.port, question)
    assert ask(server.port)[0].status == 200
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
    assert capsys.readouterr().err == ""


def test_a_client_that_drips_is_cut_off(rendering: Rendering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apivitals.export.scrape._PATIENCE", 0.3)
    server = ScrapeServer("127.0.0.1", 0, rendering)
    assert server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
            deadline = monotonic() + 10
            # Each drop comes well within the patience; it is their sum that does not.
            while monotonic() < deadline:
                try:
                    client.sendall(b"x")
                    if client.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                pytest.fail("the server went on reading")
    finally:
        server.stop()
    assert rendering.accepted == []


def test_a_client_that_does_not_read_is_cut_off(rendering: Rendering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apivitals.export.scrape._PATIENCE", 1.0)
    rendering.text = "a 1\n" * 8_000_000
    wait_for_threads(0)
    server = ScrapeServer("127.0.0.1", 0, rendering)
    assert server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            (serving,) = wait_for_threads(1)
            serving.join(10)
            assert not serving.is_alive()
            # What is left in the buffers, and then the end.
            read = 0
            with suppress(ConnectionResetError):
                while piece := client.recv(1 << 20):
                    read += len(piece)
        assert read < len(rendering.text)
    finally:
        server.stop()


def serving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def wait_for_threads(count: int) -> list[threading.Thread]:
    deadline = monotonic() + 10
    while len(serving_threads()) != count:
        assert monotonic() < deadline, f"{len(serving_threads())} threads, not {count}"
        sleep(0.005)
    return serving_threads()


def test_no_more_clients_are_served_than_there_are_threads(rendering: Rendering) -> None:
    wait_for_threads(0)
    server = ScrapeServer("127.0.0.1", 0, rendering)
    assert server.start()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(32)]
    try:
        wait_for_threads(32)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as turned_away:
            assert turned_away.recv(100) == b""
        assert len(serving_threads()) == 32
    finally:
        for client in clients:
            client.close()
    try:
        # Whoever left makes room.
        wait_for_threads(0)
        assert ask(server.port)[0].status == 200
    finally:
        server.stop()
