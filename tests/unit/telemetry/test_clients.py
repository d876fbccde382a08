from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio
import requests
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from apivitals import tally
from apivitals.telemetry import clients


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    clients.install()
    yield
    clients.uninstall()


@contextmanager
def request() -> Iterator[tally.Tally]:
    record, token = tally.open_tally()
    try:
        yield record
    finally:
        tally.close_tally(token)


# --- SQLAlchemy


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)"))
    yield engine
    engine.dispose()


def test_each_statement_is_a_query(engine: sa.Engine):
    with request() as record, engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        connection.execute(sa.text("SELECT 2"))
    assert record.queries == 2
    assert 0 < record.query_seconds < 5
    assert (record.outbound_calls, record.cache_hits, record.cache_misses) == (0, 0, 0)


def test_executemany_is_one_query(engine: sa.Engine):
    rows = [{"name": str(number)} for number in range(50)]
    with request() as record, engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO item (name) VALUES (:name)"), rows)
    assert record.queries == 1


def test_sessions_count(engine: sa.Engine):
    with request() as record, Session(engine) as session:
        session.execute(sa.text("SELECT 1"))
        session.commit()
    assert record.queries == 1


def test_a_failing_statement_counts_and_the_next_one_too(engine: sa.Engine):
    with request() as record, engine.connect() as connection:
        with pytest.raises(sa.exc.OperationalError, match="no such table"):
            connection.execute(sa.text("SELECT * FROM nowhere"))
        connection.execute(sa.text("SELECT 1"))
    assert record.queries == 2


def test_an_error_while_fetching_counts_nothing_more(engine: sa.Engine):
    def broken(value: object) -> object:
        raise RuntimeError("broken function")

    with engine.connect() as connection:
        connection.connection.driver_connection.create_function("broken", 1, broken)
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('a'), ('b')"))
        with request() as record, pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("SELECT CASE id WHEN 2 THEN broken(id) ELSE 1 END FROM item")).all()
    assert record.queries == 1


def test_a_query_that_the_application_counts_itself_counts_once(engine: sa.Engine):
    with request() as record, engine.connect() as connection, tally.query():
        connection.execute(sa.text("SELECT 1"))
    assert record.queries == 1


def test_queries_outside_a_request_are_not_counted(engine: sa.Engine):
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert tally.current() is None


def test_an_async_engine_counts():
    pytest.importorskip("greenlet", reason="SQLAlchemy's async engines need greenlet")
    pytest.importorskip("aiosqlite", reason="an async engine needs an async driver")
    from sqlalchemy.ext.asyncio import create_async_engine

    async def main() -> tuple[tally.Tally, tally.Tally]:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            with request() as record:
                await connection.execute(sa.text("SELECT 1"))
                with pytest.raises(sa.exc.OperationalError):
                    await connection.execute(sa.text("SELECT * FROM nowhere"))
            with request() as other:
                await asyncio.gather(connection.execute(sa.text("SELECT 1")))
        await engine.dispose()
        return record, other

    record, other = asyncio.run(main())
    assert (record.queries, other.queries) == (2, 1)


# --- httpx and requests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/old":
            self.send_response(302)
            self.send_header("Location", "/new")
        else:
            self.send_response(200 if self.path == "/new" else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_httpx_counts_each_hop(url: str):
    with request() as record, httpx.Client(follow_redirects=True) as client:
        assert client.get(f"{url}/old").status_code == 200
        assert client.get(f"{url}/broken").status_code == 503
    assert record.outbound_calls == 3
    assert 0 < record.outbound_seconds < 5


def test_async_httpx_counts_concurrent_calls(url: str):
    async def main() -> tally.Tally:
        with request() as record:
            async with httpx.AsyncClient() as client:
                await asyncio.gather(*(client.get(f"{url}/new") for _ in range(3)))
        return record

    assert asyncio.run(main()).outbound_calls == 3


def test_a_refused_connection_counts_and_raises_its_own_error(url: str):
    with request() as record, httpx.Client(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("http://127.0.0.1:1/")
        client.get(f"{url}/new")
    assert record.outbound_calls == 2


def test_transports_in_the_process_do_not_count():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> tally.Tally:
        with request() as record:
            transport = httpx.MockTransport(lambda message: httpx.Response(200))
            with httpx.Client(transport=transport) as client:
                client.get("http://shop/")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
                await client.get("/")
        return record

    assert asyncio.run(main()).outbound_calls == 0


def test_requests_counts_each_hop(url: str):
    with request() as record, requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{url}/old").status_code == 200
    assert record.outbound_calls == 2


def test_a_call_that_the_application_counts_itself_counts_once(url: str):
    with request() as record, tally.outbound():
        httpx.get(f"{url}/old", follow_redirects=True)
    assert record.outbound_calls == 1


def test_calls_outside_a_request_are_not_counted(url: str):
    assert httpx.get(f"{url}/new").status_code == 200
    assert requests.get(f"{url}/new", timeout=5).status_code == 200
    assert tally.current() is None


# --- redis


@pytest.mark.service
def test_redis_look_ups_hit_or_miss(redis_port: int):
    with redis.Redis(port=redis_port) as client:
        client.flushdb()
        client.set("here", "1")
        client.hset("hash", "field", "1")
        with request() as record:
            client.get("here")  # hit
            client.get("gone")  # miss
            client.mget("here", "gone", "here")  # 2 hits, 1 miss
            client.hget("hash", "gone")  # miss
            client.hmget("hash", ["field", "gone"])  # 1 hit, 1 miss
            client.hgetall("hash")  # hit
            client.hgetall("gone")  # miss
            client.getex("here", ex=10)  # hit
    assert (record.cache_hits, record.cache_misses) == (6, 5)
    assert 0 < record.cache_seconds < 5
    assert record.queries == record.outbound_calls == 0


@pytest.mark.service
def test_other_redis_commands_add_time_only(redis_port: int):
    with redis.Redis(port=redis_port) as client, request() as record:
        client.set("key", "value")
        client.incr("counter")
    assert (record.cache_hits, record.cache_misses) == (0, 0)
    assert record.cache_seconds > 0


@pytest.mark.service
def test_a_redis_error_passes_through(redis_port: int):
    with redis.Redis(port=redis_port) as client, request() as record:
        client.delete("list")
        client.rpush("list", "value")
        before = record.cache_seconds
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.get("list")
        assert record.cache_seconds > before
        client.mget("list")
    assert (record.cache_hits, record.cache_misses) == (0, 1)


@pytest.mark.service
@pytest.mark.parametrize("transaction", [True, False])
def test_look_ups_in_a_redis_pipeline(redis_port: int, transaction: bool):
    with redis.Redis(port=redis_port) as client:
        client.flushdb()
        client.set("here", "1")
        client.rpush("list", "value")
        with request() as record, client.pipeline(transaction=transaction) as pipeline:
            pipeline.get("here")
            pipeline.incr("counter")
            pipeline.mget("here", "gone")
            pipeline.get("list")
            assert len(pipeline.execute(raise_on_error=False)) == 4
            assert pipeline.execute() == []
    assert (record.cache_hits, record.cache_misses) == (2, 1)


@pytest.mark.service
def test_a_watching_redis_pipeline(redis_port: int):
    with redis.Redis(port=redis_port) as client, request() as record, client.pipeline() as pipeline:
        pipeline.watch("watched")
        pipeline.delete("watched")
        assert pipeline.get("watched") is None
        pipeline.multi()
        pipeline.set("watched", "1")
        pipeline.get("watched")
        assert pipeline.execute() == [True, b"1"]
    assert (record.cache_hits, record.cache_misses) == (1, 1)


@pytest.mark.service
def test_async_redis(redis_port: int):
    async def main() -> tally.Tally:
        async with redis.asyncio.Redis(port=redis_port) as client:
            await client.flushdb()
            await client.set("here", "1")
            with request() as record:
                await asyncio.gather(client.get("here"), client.get("gone"))
                async with client.pipeline() as pipeline:
                    await pipeline.get("here").get("gone").set("other", "1").execute()
                await client.get("here")
            return record

    record = asyncio.run(main())
    assert (record.cache_hits, record.cache_misses) == (3, 2)
    assert record.cache_seconds > 0


# --- installing


def test_installing_twice_counts_once(engine: sa.Engine, url: str):
    clients.install()
    with request() as record, engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        httpx.get(f"{url}/new")
    assert (record.queries, record.outbound_calls) == (1, 1)


def test_uninstalling_puts_everything_back(engine: sa.Engine, url: str):
    clients.uninstall()
    methods = (httpx.HTTPTransport.handle_request, requests.adapters.HTTPAdapter.send, redis.Redis.execute_command)
    assert all(method.__module__.split(".")[0] in ("httpx", "requests", "redis") for method in methods)
    assert not any(hasattr(method, "__wrapped__") for method in methods)
    with request() as record, engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        httpx.get(f"{url}/new")
    assert (record.queries, record.outbound_calls) == (0, 0)
    clients.install()
    with request() as record, engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        httpx.get(f"{url}/new")
    assert (record.queries, record.outbound_calls) == (1, 1)


def test_a_hook_below_another_wrapper_is_silenced(url: str, monkeypatch: pytest.MonkeyPatch):
    ours = httpx.HTTPTransport.handle_request
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda *args: ours(*args))
    clients.uninstall()
    with request() as record:
        assert httpx.get(f"{url}/new").status_code == 200
    assert record.outbound_calls == 0


def test_above_the_contrib_instrumentation_both_see_the_call(url: str):
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    clients.uninstall()
    hops: list[str] = []
    HTTPXClientInstrumentor().instrument(request_hook=lambda span, message: hops.append(str(message.url)))
    try:
        clients.install()
        with request() as record:
            assert httpx.get(f"{url}/old", follow_redirects=True).status_code == 200
        clients.uninstall()
    finally:
        HTTPXClientInstrumentor().uninstrument()
    assert len(hops) == 2
    assert record.outbound_calls == 2


def test_a_library_without_the_expected_parts_still_imports(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    clients.uninstall()
    stranger = ModuleType("httpx")
    monkeypatch.setitem(sys.modules, "httpx", stranger)
    with caplog.at_level(logging.WARNING):
        clients.install()
    assert "cannot count the calls of httpx" in caplog.text


def test_a_broken_reply_does_not_reach_the_application(monkeypatch: pytest.MonkeyPatch):
    class Odd:
        def __len__(self) -> int:
            raise RuntimeError("no length")

        def __iter__(self) -> Iterator[None]:
            raise RuntimeError("no items")

    odd = Odd()
    monkeypatch.setattr(redis.Redis, "_execute_command", lambda self, *args, **options: odd)
    with request() as record:
        assert redis.Redis().mget("a") is odd
    assert record.cache_hits == record.cache_misses == 0
