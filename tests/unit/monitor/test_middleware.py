"""The middleware that keeps single requests, and the decorator that times operations."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

import apivitals
from apivitals import PerformanceMiddleware, PerformanceMonitor, monitor_endpoint, semconv, tally
from apivitals.telemetry.setup import current_pipeline

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fresh")]


def connect(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


def points(name: str) -> list[Any]:
    pipeline = current_pipeline()
    assert pipeline is not None
    return [point for metric in pipeline.snapshot().find(name) for point in metric.points]


# --- PerformanceMiddleware


async def test_it_keeps_single_requests_and_counts_nothing_twice() -> None:
    monitor = PerformanceMonitor()
    app = FastAPI()
    app.add_middleware(PerformanceMiddleware, monitor=monitor)

    @app.post("/items/{item}")
    async def item(item: int) -> dict[str, int]:
        tally.add_query(0.1, count=3)
        return {"item": item}

    @app.get("/boom")
    async def boom() -> None:
        raise LookupError("the handler failed")

    async with connect(app) as client:
        for number in range(3):
            assert (await client.post(f"/items/{number}", json={"n": number})).status_code == 200
        assert (await client.get("/boom")).status_code == 500
        assert (await client.get("/nowhere")).status_code == 404
    assert sum(point.count for point in points(semconv.REQUEST_DURATION.name)) == 5
    assert sum(point.count for point in points(semconv.TIME_TO_FIRST_BYTE.name)) == 5
    recent = list(monitor._recent)
    assert [(each.method, each.path, each.status_code) for each in recent] == [
        ("POST", "/items/0", 200),
        ("POST", "/items/1", 200),
        ("POST", "/items/2", 200),
        ("GET", "/boom", 500),
        ("GET", "/nowhere", 404),
    ]
    assert recent[0].request_size_bytes == len('{"n":0}')
    assert recent[0].response_size_bytes == len('{"item":0}')
    assert [each.database_queries for each in recent] == [3, 3, 3, 0, 0]
    assert all(0 < each.duration_ms < 10_000 for each in recent)
    assert monitor._open == {}
    assert monitor.get_performance_summary()["errors"] == {"LookupError": 1}


async def test_the_duration_of_a_stream_is_that_of_all_of_it() -> None:
    monitor = PerformanceMonitor()
    app = FastAPI()
    app.add_middleware(PerformanceMiddleware, monitor=monitor)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> Any:
            for _ in range(3):
                await asyncio.sleep(0.02)
                yield b"part"

        return StreamingResponse(body())

    async with connect(app) as client:
        assert (await client.get("/stream")).text == "partpartpart"
    (ended,) = monitor._recent
    assert ended.duration_ms >= 55


@pytest.mark.parametrize("host", [b"[x", b"\xff", b"", b"a b", b"service:port"])
async def test_a_strange_host_is_no_reason_to_fail(host: bytes) -> None:
    monitor = PerformanceMonitor()
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/a",
        "query_string": b"q=1",
        "root_path": "",
        "headers": [(b"host", host)],
        "server": ("service", 80),
        "client": None,
    }
    await PerformanceMiddleware(app, monitor)(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    (ended,) = monitor._recent
    assert (ended.path, ended.status_code) == ("/a", 204)


async def test_a_cancelled_request_is_ended_too() -> None:
    monitor = PerformanceMonitor()
    waiting = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.set()
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "path": "/a", "headers": [], "query_string": b"", "server": ("s", 80)}
    task = asyncio.create_task(PerformanceMiddleware(app, monitor)(scope, None, None))  # type: ignore[arg-type]
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert monitor._open == {}
    assert len(monitor._recent) == 1


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_events_are_handed_on(kind: str) -> None:
    monitor = PerformanceMonitor()
    seen: list[Any] = []

    async def app(*event: Any) -> None:
        seen.append(event)

    event: Any = ({"type": kind}, object(), object())
    await PerformanceMiddleware(app, monitor)(*event)
    assert seen == [event]
    assert not monitor._recent


# --- monitor_endpoint


def recorded() -> dict[tuple[Any, Any], int]:
    return {
        (dict(point.attributes)[semconv.OPERATION_NAME], dict(point.attributes).get(semconv.ERROR_TYPE)): point.count
        for point in points(semconv.OPERATION_DURATION.name)
    }


class Mishap(Exception):
    pass


async def test_async_and_plain_functions_are_timed() -> None:
    apivitals.configure()

    @monitor_endpoint("awaited")
    async def awaited(x: int, *, y: int = 1) -> int:
        await asyncio.sleep(0)
        return x + y

    @monitor_endpoint("called")
    def called(x: int) -> int:
        return x * 2

    assert await awaited(1, y=5) == 6
    assert await awaited(1) == 2
    assert called(4) == 8
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(called)
    assert recorded() == {("awaited", None): 2, ("called", None): 1}


async def test_what_is_raised_is_recorded_and_raised() -> None:
    apivitals.configure()

    @monitor_endpoint("awaited")
    async def awaited() -> None:
        raise Mishap

    @monitor_endpoint("called")
    def called() -> None:
        raise Mishap

    @monitor_endpoint("waits")
    async def waits() -> None:
        await asyncio.sleep(60)

    with pytest.raises(Mishap):
        await awaited()
    with pytest.raises(Mishap):
        called()
    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded() == {("awaited", "Mishap"): 1, ("called", "Mishap"): 1, ("waits", "CancelledError"): 1}


async def test_fastapi_sees_through_it() -> None:
    apivitals.configure()

    async def route(request: Request, item: int, q: str = "none") -> dict[str, Any]:
        """What the documentation says."""
        return {"item": item, "q": q, "path": request.url.path}

    decorated = monitor_endpoint("route")(route)
    assert inspect.signature(decorated) == inspect.signature(route)
    assert (decorated.__name__, decorated.__doc__) == ("route", "What the documentation says.")
    app = FastAPI()
    app.get("/items/{item}")(decorated)
    app.get("/threaded/{item}")(monitor_endpoint("threaded")(lambda item: item))
    async with connect(app) as client:
        assert (await client.get("/items/5?q=x")).json() == {"item": 5, "q": "x", "path": "/items/5"}
        assert (await client.get("/items/word")).status_code == 422
        assert (await client.get("/threaded/7")).status_code == 200
    assert recorded() == {("route", None): 1, ("threaded", None): 1}


async def test_decorating_before_the_telemetry_is_set_up() -> None:
    @monitor_endpoint("early")
    def early() -> int:
        return 1

    assert early() == 1
    apivitals.configure()
    early()
    assert recorded() == {("early", None): 1}
    (point,) = points(semconv.OPERATION_DURATION.name)
    assert point.bounds == semconv.OPERATION_DURATION.bounds
