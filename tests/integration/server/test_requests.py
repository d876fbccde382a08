"""One SERVER span and one duration point a request, with the right classes, in every server instrumentation."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from starlette.responses import StreamingResponse
from starlette.routing import Host, Router

from apivitals import PerformanceThresholds, semconv, tally
from apivitals.classify import CLASSES

pytestmark = pytest.mark.anyio


def shop() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: int) -> dict[str, int]:
        return {"item": item}

    @app.get("/threaded")
    def threaded() -> str:
        return "from a thread"

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("the handler failed")

    @app.get("/late")
    async def late() -> None:
        raise TimeoutError("a call took too long")

    @app.get("/teapot/{status}")
    async def teapot(status: int) -> None:
        raise HTTPException(status)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"part"
                await asyncio.sleep(0.05)

        return StreamingResponse(body())

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(asyncio.sleep, 0.4)
        return "soon"

    inner = APIRouter(prefix="/inner")

    @inner.get("/{name}")
    def name(name: str) -> str:
        return name

    outer = APIRouter(prefix="/outer")
    outer.include_router(inner)
    app.include_router(outer, prefix="/v1")
    mounted = FastAPI()

    @mounted.get("/deep/{name}")
    def deep(name: str) -> str:
        return name

    app.mount("/mounted", mounted)
    return app


async def test_each_outcome_is_one_span_and_one_point(telemetry: Any, connect: Any) -> None:
    telemetry.start()
    expected = {
        "/items/1": ("/items/{item}", 200, "none"),
        "/items/2": ("/items/{item}", 200, "none"),
        "/threaded": ("/threaded", 200, "none"),
        "/items/word": ("/items/{item}", 422, "client_error"),
        "/boom": ("/boom", 500, "exception"),
        "/late": ("/late", 500, "timeout"),
        "/teapot/418": ("/teapot/{status}", 418, "client_error"),
        "/teapot/503": ("/teapot/{status}", 503, "server_error"),
        "/teapot/504": ("/teapot/{status}", 504, "timeout"),
        "/teapot/408": ("/teapot/{status}", 408, "timeout"),
        "/v1/outer/inner/x": ("/v1/outer/inner/{name}", 200, "none"),
        "/stream": ("/stream", 200, "none"),
        "/nowhere/at/all": (None, 404, "client_error"),
    }
    async with connect(shop()) as http:
        for path, (_, status, _) in expected.items():
            assert (await http.get(path)).status_code == status
    spans = {span.attributes["url.path"]: span for span in telemetry.server_spans()}
    assert len(telemetry.server_spans()) == len(expected)
    counts: dict[Any, int] = {}
    errors: dict[Any, int] = {}
    for path, (route, status, ended) in expected.items():
        attributes = spans[path].attributes
        assert attributes.get(semconv.HTTP_ROUTE) == route, path
        assert attributes[semconv.HTTP_STATUS] == status
        assert attributes[semconv.ERROR_CLASS] == ended
        assert attributes[semconv.LATENCY_CLASS] in ("excellent", "good")
        counts[route, status] = counts.get((route, status), 0) + 1
        if ended != "none":
            errors[route, ended] = errors.get((route, ended), 0) + 1
    assert telemetry.counts() == counts
    assert telemetry.errors() == errors


async def test_a_mounted_application_is_counted_once(telemetry: Any, connect: Any) -> None:
    telemetry.start()
    async with connect(shop()) as http:
        assert (await http.get("/mounted/deep/x")).status_code == 200
        assert (await http.get("/mounted/nowhere")).status_code == 404
    assert len(telemetry.server_spans()) == 2
    assert sum(telemetry.counts().values()) == 2
    for span in telemetry.server_spans():
        # Upstream's middleware knows no more than the mount; in no case is it the raw path.
        assert span.attributes.get(semconv.HTTP_ROUTE) in (
            "/mounted",
            "/mounted/deep/{name}",
            "/mounted/{path}",
        )


async def test_an_unmatched_path_never_becomes_a_label(telemetry: Any, connect: Any) -> None:
    app = shop()
    app.router.routes.insert(0, Host("{tenant}.service", app=Router()))
    telemetry.start()
    async with connect(app) as http:
        for number in range(50):
            await http.get(f"/scan/{number}.php")
            await http.get(f"/hosted/{number}", headers={"host": "a.service"})
            await http.request(f"ODD{number}", f"/scan/{number}")
    for name in semconv.INSTRUMENTS:
        for point in telemetry.points(name):
            for _, value in point.attributes:
                assert "scan" not in str(value)
                assert "hosted" not in str(value)
                assert "ODD" not in str(value)
    assert telemetry.total() == 150


async def test_background_work_is_not_part_of_the_class(telemetry: Any, connect: Any) -> None:
    telemetry.start()
    async with connect(shop()) as http:
        await http.get("/background")
    (span,) = telemetry.server_spans()
    assert span.attributes[semconv.LATENCY_CLASS] in ("excellent", "good")
    (first_byte,) = telemetry.points(semconv.TIME_TO_FIRST_BYTE.name)
    assert first_byte.sum < 0.3


async def test_the_first_byte_of_a_stream_comes_before_its_last(telemetry: Any, connect: Any) -> None:
    telemetry.start()
    async with connect(shop()) as http:
        await http.get("/stream")
    (first_byte,) = telemetry.points(semconv.TIME_TO_FIRST_BYTE.name)
    (duration,) = telemetry.durations().values()
    assert duration.sum - first_byte.sum > 0.09


async def test_ten_thousand_requests_are_ten_thousand(telemetry: Any, connect: Any, clock: Any) -> None:
    app = FastAPI()

    @app.get("/take/{microseconds}")
    async def take(microseconds: int) -> None:
        clock.pass_(microseconds / 1e6)

    @app.get("/fail")
    async def fail() -> None:
        raise HTTPException(500)

    telemetry.start()
    known = {0: 9300, 99_000: 300, 101_000: 150, 299_000: 25, 301_000: 75, 499_000: 25, 700_000: 50}
    known |= {999_000: 5, 1_001_000: 10, 30_000_000: 5}
    failing = 10_000 - sum(known.values())
    sent = [f"/take/{microseconds}" for microseconds, count in known.items() for _ in range(count)]
    sent += ["/fail"] * failing
    random.Random(7).shuffle(sent)
    for path in sent:
        await serve(app, path)
    assert failing == 55
    assert telemetry.counts() == {("/take/{microseconds}", 200): 10_000 - failing, ("/fail", 500): failing}
    assert len(telemetry.server_spans()) == 10_000
    point = telemetry.durations()["/take/{microseconds}", 200]
    assert point.sum == pytest.approx(sum(microseconds * count for microseconds, count in known.items()) / 1e6)

    def below(bound: float) -> int:
        return sum(point.counts[: point.bounds.index(bound) + 1])

    edges = [0, *(below(bound) for bound in (0.1, 0.3, 0.5, 1.0)), sum(point.counts)]
    shares = dict(zip(CLASSES, (after - before for before, after in pairwise(edges)), strict=True))
    assert shares == {"excellent": 9600, "good": 175, "acceptable": 100, "poor": 55, "critical": 15}
    classes = Counter(span.attributes[semconv.LATENCY_CLASS] for span in telemetry.server_spans())
    assert classes == {**shares, "excellent": 9600 + failing}
    assert telemetry.errors() == {("/fail", "server_error"): failing}
    (first_bytes, _) = telemetry.points(semconv.TIME_TO_FIRST_BYTE.name)
    assert first_bytes.count == 10_000 - failing or first_bytes.count == failing
    levels = {point.attributes: point.value for point in telemetry.points(semconv.ERROR_RATE_CLASS.name)}
    # 55 of 10,000 is good (below 1 %), all of /fail critical.
    assert levels[()] == 1
    assert levels[((semconv.HTTP_METHOD, "GET"), (semconv.HTTP_ROUTE, "/fail"))] == 4


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"service")],
        "server": ("service", 80),
        "client": ("127.0.0.1", 1),
    }


async def serve(app: Any, path: str) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def drop(message: Any) -> None:
        pass

    await app(scope_of(path), receive, drop)


async def test_a_client_that_leaves_and_a_request_that_is_cancelled(telemetry: Any) -> None:
    app = FastAPI()
    waiting = asyncio.Event()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            while True:
                yield b"more"
                await asyncio.sleep(0.01)

        return StreamingResponse(body())

    @app.get("/wait")
    async def wait() -> None:
        waiting.set()
        await asyncio.sleep(60)

    telemetry.start()

    sent = 0
    left = asyncio.Event()

    async def receive() -> Any:
        if sent >= 3:
            return {"type": "http.disconnect"}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent >= 3:
            left.set()

    await app(scope_of("/endless"), receive, send)

    async def never() -> Any:
        await asyncio.sleep(60)

    async def drop(message: Any) -> None:
        pass

    task = asyncio.create_task(app(scope_of("/wait"), never, drop))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    spans = {span.attributes["url.path"]: span.attributes[semconv.ERROR_CLASS] for span in telemetry.server_spans()}
    assert spans == {"/endless": "disconnected", "/wait": "cancelled"}
    assert telemetry.errors() == {("/endless", "disconnected"): 1, ("/wait", "cancelled"): 1}


@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
async def test_tallies_do_not_depend_on_sampling_and_do_not_mix(
    telemetry: Any, connect: Any, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FastAPI()

    @app.get("/work/{count}")
    async def work(count: int) -> None:
        for _ in range(count):
            tally.add_query(0.001)
            await asyncio.sleep(0)
        tally.add_cache(hit=True)
        tally.add_cache(hit=False, count=2)

    @app.get("/thread/{count}")
    def thread(count: int) -> None:
        for _ in range(count):
            tally.add_outbound(0.002)

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    telemetry.start({"OTEL_TRACES_SAMPLER": sampler})
    async with connect(app) as http:
        await asyncio.gather(*(http.get(f"/work/{count}") for count in range(1, 21)))
        await asyncio.gather(*(http.get(f"/thread/{count}") for count in range(1, 11)))
    (queries,) = telemetry.points(semconv.REQUEST_QUERIES.name)
    assert (queries.count, queries.sum, queries.min, queries.max) == (20, 210, 1, 20)
    (seconds,) = telemetry.points(semconv.REQUEST_QUERY_TIME.name)
    assert seconds.sum == pytest.approx(0.210)
    (misses,) = telemetry.points(semconv.REQUEST_CACHE_MISSES.name)
    assert (misses.count, misses.sum) == (20, 40)
    (calls,) = telemetry.points(semconv.REQUEST_OUTBOUND.name)
    assert (calls.count, calls.sum, calls.max) == (10, 55, 10)
    spans = telemetry.server_spans()
    assert len(spans) == (30 if sampler == "always_on" else 0)
    for span in spans:
        kind, _, count = span.attributes["url.path"].strip("/").partition("/")
        key = semconv.DB_QUERIES if kind == "work" else semconv.OUTBOUND_CALLS
        assert span.attributes[key] == int(count)


async def test_excluded_urls_give_nothing(telemetry: Any, connect: Any) -> None:
    telemetry.start({"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "threaded,/late$"})
    async with connect(shop()) as http:
        await http.get("/threaded")
        await http.get("/items/1")
    assert telemetry.counts() == {("/items/{item}", 200): 1}
    assert len(telemetry.server_spans()) == 1


async def test_an_application_instrumented_twice_counts_once(telemetry: Any, connect: Any) -> None:
    from apivitals.telemetry import setup

    telemetry.start()
    app = shop()
    assert setup.instrument(setup.instrument(app)) is app
    async with connect(app) as http:
        await http.get("/items/1")
    assert sum(telemetry.counts().values()) == 1
    assert len(telemetry.server_spans()) == 1


async def test_per_route_thresholds_cut_the_histogram_and_class_the_span(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    @app.get("/report/{number}")
    async def report(number: int) -> None:
        clock.pass_(0.2)

    strict = PerformanceThresholds(response_time_ms={"excellent": 20, "good": 40, "acceptable": 60, "poor": 80})
    telemetry.start(routes={"/report/{number}": strict})
    await serve(app, "/report/1")
    (span,) = telemetry.server_spans()
    assert span.attributes[semconv.LATENCY_CLASS] == "critical"
    (point,) = telemetry.durations().values()
    assert {0.02, 0.04, 0.06, 0.08, 0.1, 0.3, 0.5, 1.0, 2.0} <= set(point.bounds)
