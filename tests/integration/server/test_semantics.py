"""What the server instrumentation `apivitals` says of a request, however it goes."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from opentelemetry import baggage, propagate, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Host, Route, Router
from starlette.staticfiles import StaticFiles

from apivitals import semconv, tally
from apivitals.telemetry.request import Request as MeasuredRequest
from tests.integration.server.driver import Exchange, exchange, scope_of

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("telemetry", ["apivitals"], indirect=True)]

BACKGROUND = semconv.BACKGROUND_DURATION.name


def only(telemetry: Any) -> Any:
    (span,) = telemetry.server_spans()
    return span


def ended(telemetry: Any) -> tuple[Any, Any, Any]:
    """Status, error class and error type of the only request, which span and point must agree on."""
    attributes = only(telemetry).attributes
    (point,) = telemetry.points(semconv.REQUEST_DURATION.name)
    labels = dict(point.attributes)
    for name in (semconv.HTTP_STATUS, semconv.ERROR_TYPE, semconv.HTTP_ROUTE, semconv.HTTP_METHOD):
        assert labels.get(name) == attributes.get(name), name
    assert point.count == 1
    assert active(telemetry) == 0
    return attributes.get(semconv.HTTP_STATUS), attributes[semconv.ERROR_CLASS], attributes.get(semconv.ERROR_TYPE)


def active(telemetry: Any) -> int:
    return sum(point.value for point in telemetry.points(semconv.ACTIVE_REQUESTS.name))


def response_size(telemetry: Any) -> float:
    (point,) = telemetry.points(semconv.RESPONSE_BODY_SIZE.name)
    return float(point.sum)


# --- how the response is made


async def test_an_answer_to_a_head_has_no_body(telemetry: Any) -> None:
    app = FastAPI()

    @app.api_route("/items", methods=["GET", "HEAD"])
    async def items() -> str:
        return "twelve bytes"

    telemetry.start()
    await exchange(app, "/items", "HEAD")
    assert only(telemetry).name == "HEAD /items"
    assert ended(telemetry) == (200, "none", None)
    assert response_size(telemetry) == 0


async def test_a_streamed_body_is_measured_to_its_last_byte(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            clock.pass_(0.25)
            yield b"part"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(parts())

    telemetry.start()
    await exchange(app, "/stream")
    (duration,) = telemetry.durations().values()
    (first,) = telemetry.points(semconv.TIME_TO_FIRST_BYTE.name)
    assert duration.sum == pytest.approx(0.75)
    assert first.sum == pytest.approx(0.0)
    assert response_size(telemetry) == 12
    span = only(telemetry)
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(0.75)


async def test_trailers_belong_to_the_response(telemetry: Any, clock: Any) -> None:
    async def trailing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"body"})
        clock.pass_(0.5)
        await send({"type": "http.response.trailers", "headers": [(b"a", b"1")], "more_trailers": True})
        clock.pass_(0.5)
        await send({"type": "http.response.trailers", "headers": [(b"b", b"2")]})
        clock.pass_(5)

    app = FastAPI()
    app.mount("/", trailing)
    telemetry.start()
    await exchange(app, "/x")
    (duration,) = telemetry.durations().values()
    assert duration.sum == pytest.approx(1.0)
    assert ended(telemetry) == (200, "none", None)


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_a_file_that_the_server_sends_by_itself(telemetry: Any, kind: str) -> None:
    async def sending(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4321")]})
        if kind == "pathsend":
            await send({"type": "http.response.pathsend", "path": "/srv/file"})
        else:
            await send({"type": "http.response.zerocopysend", "file": 1, "count": 4000, "more_body": True})
            await send({"type": "http.response.zerocopysend", "file": 1, "count": 321})

    app = FastAPI()
    app.mount("/", sending)
    telemetry.start()
    await exchange(app, "/x")
    assert ended(telemetry) == (200, "none", None)
    assert response_size(telemetry) == 4321


async def test_early_hints_are_not_the_response(telemetry: Any, clock: Any) -> None:
    async def hinting(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.early_hint", "links": [b"</style.css>"]})
        await send({"type": "http.response.start", "status": 103, "headers": []})
        clock.pass_(0.5)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = FastAPI()
    app.mount("/", hinting)
    telemetry.start()
    await exchange(app, "/x")
    assert ended(telemetry) == (201, "none", None)
    (first,) = telemetry.points(semconv.TIME_TO_FIRST_BYTE.name)
    assert first.sum == pytest.approx(0.5)


async def test_an_application_that_answers_nothing(telemetry: Any) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    app = FastAPI()
    app.mount("/", silent)
    telemetry.start()
    await exchange(app, "/nothing")
    await exchange(app, "/half")
    found = {span.attributes["url.path"]: span.attributes for span in telemetry.server_spans()}
    # Servers answer 500 in its place.
    assert found["/nothing"][semconv.HTTP_STATUS] == 500
    assert found["/nothing"][semconv.ERROR_TYPE] == "500"
    assert found["/half"][semconv.HTTP_STATUS] == 200
    assert found["/half"][semconv.ERROR_TYPE] == "incomplete_response"
    assert {attributes[semconv.ERROR_CLASS] for attributes in found.values()} == {"exception"}


# --- clients that leave


async def test_a_client_that_leaves_before_the_response(telemetry: Any) -> None:
    app = FastAPI()

    @app.post("/upload")
    async def upload(request: Request) -> str:
        await request.body()
        return "never"

    telemetry.start()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    await exchange(app, "/upload", "POST", receive=gone)
    # Starlette answers 500, to nobody.
    status, error_class, error_type = ended(telemetry)
    assert (status, error_class) == (None, "disconnected")
    assert error_type == "starlette.requests.ClientDisconnect"
    assert only(telemetry).status.status_code is trace.StatusCode.ERROR


async def test_a_handler_that_sees_the_client_gone_and_returns(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/poll")
    async def poll(request: Request) -> str:
        assert await request.is_disconnected()
        return "to nobody"

    telemetry.start()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    await exchange(app, "/poll", receive=gone)
    assert ended(telemetry) == (None, "disconnected", "disconnected")


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_leaves_during_the_body(telemetry: Any, spec: str) -> None:
    app = FastAPI()
    left = asyncio.Event()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"more"
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    def send(message: Any) -> None:
        if message.get("body") and len(found) >= 3:
            left.set()
            if spec == "2.4":
                raise OSError("the client is gone")
        found.append(message)

    found: list[Any] = []
    telemetry.start()
    await exchange(app, "/endless", receive=receive, send=send, asgi={"version": "3.0", "spec_version": spec})
    status, error_class, error_type = ended(telemetry)
    assert (status, error_class) == (200, "disconnected")
    assert error_type == ("disconnected" if spec == "2.3" else "starlette.requests.ClientDisconnect")


async def test_a_client_that_leaves_after_the_body_is_like_any_other(telemetry: Any) -> None:
    app = FastAPI()
    seen: list[bool] = []

    @app.get("/items")
    async def items(request: Request, tasks: BackgroundTasks) -> str:
        async def later() -> None:
            seen.append(await request.is_disconnected())

        tasks.add_task(later)
        return "all of it"

    telemetry.start()
    messages = iter([{"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    await exchange(app, "/items", receive=receive)
    assert seen == [True]
    assert ended(telemetry) == (200, "none", None)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_request(telemetry: Any, begun: bool) -> None:
    app = FastAPI()
    waiting = asyncio.Event()

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waiting.set()
        await asyncio.sleep(60)

    app.mount("/", hang)
    telemetry.start()
    task = asyncio.create_task(exchange(app, "/x"))
    await waiting.wait()
    assert active(telemetry) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(telemetry) == (200 if begun else None, "cancelled", "asyncio.exceptions.CancelledError")
    # That somebody was cancelled is no exception to look into.
    assert only(telemetry).events == ()


async def test_a_request_whose_coroutine_is_thrown_away(telemetry: Any, caplog: Any) -> None:
    app = FastAPI()

    @app.get("/wait")
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def drop(message: Any) -> None:
        raise AssertionError(message)

    telemetry.start()
    coroutine = app(scope_of("/wait"), drop, drop)
    coroutine.send(None)
    coroutine.close()
    assert ended(telemetry) == (None, "cancelled", "GeneratorExit")
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert not caplog.records


# --- exceptions


async def test_an_exception_before_the_response(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/boom/{number}")
    async def boom(number: int) -> None:
        raise LookupError("no such thing")

    telemetry.start()
    found = await exchange(app, "/boom/1")
    assert isinstance(found.error, LookupError)
    assert ended(telemetry) == (500, "exception", "LookupError")
    span = only(telemetry)
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "LookupError"
    assert event.attributes["exception.message"] == "no such thing"
    assert event.attributes["exception.stacktrace"].endswith("LookupError: no such thing\n")
    assert "in boom" in event.attributes["exception.stacktrace"]
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes[semconv.HTTP_ROUTE] == "/boom/{number}"


async def test_an_exception_after_the_response_has_begun(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/torn")
    async def torn() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise KeyError("the rest")

        return StreamingResponse(parts())

    telemetry.start()
    found = await exchange(app, "/torn")
    assert found.error is not None
    status, error_class, error_type = ended(telemetry)
    assert (status, error_class) == (200, "exception")
    # A task group wraps what its tasks raise in some versions of Starlette.
    assert error_type in ("KeyError", "ExceptionGroup", "exceptiongroup.ExceptionGroup")
    assert len(only(telemetry).events) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(500, (500, "exception", "ValueError")), (418, (418, "client_error", None))]
)
async def test_an_exception_that_the_application_has_an_answer_for(telemetry: Any, status: int, expected: Any) -> None:
    app = FastAPI()

    @app.exception_handler(Exception)
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"sorry": str(error)}, status)

    @app.get("/boom")
    async def boom() -> None:
        raise ValueError("no")

    telemetry.start()
    assert (await exchange(app, "/boom")).status == status
    # Below 500 the answer decides: the application took care of it.
    assert ended(telemetry) == expected


async def test_an_exception_with_a_handler_of_its_own_is_none(telemetry: Any) -> None:
    app = FastAPI()

    @app.exception_handler(KeyError)
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 404)

    @app.get("/boom")
    async def boom() -> None:
        raise KeyError("no")

    telemetry.start()
    await exchange(app, "/boom")
    assert ended(telemetry) == (404, "client_error", None)
    assert only(telemetry).attributes[semconv.HTTP_ROUTE] == "/boom"


async def test_a_status_of_500_without_an_exception(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/teapot/{status}")
    async def teapot(status: int) -> Response:
        return Response(status_code=status)

    telemetry.start()
    for status in (503, 504, 408, 404):
        await exchange(app, f"/teapot/{status}")
    found = {}
    for span in telemetry.server_spans():
        attributes = span.attributes
        found[attributes[semconv.HTTP_STATUS]] = (attributes.get(semconv.ERROR_TYPE), attributes[semconv.ERROR_CLASS])
        failed = attributes[semconv.HTTP_STATUS] >= 500
        assert span.status.status_code is (trace.StatusCode.ERROR if failed else trace.StatusCode.UNSET)
    assert found == {
        503: ("503", "server_error"),
        504: ("504", "timeout"),
        408: (None, "timeout"),
        404: (None, "client_error"),
    }


# --- what runs after the response


async def test_background_tasks_are_measured_apart(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    @app.get("/report/{number}")
    async def report(number: int, tasks: BackgroundTasks) -> str:
        tasks.add_task(clock.pass_, 2.0)
        tasks.add_task(clock.pass_, 3.0)
        clock.pass_(0.125)
        return "soon"

    telemetry.start()
    await exchange(app, "/report/1")
    (duration,) = telemetry.durations().values()
    assert duration.sum == pytest.approx(0.125)
    (point,) = telemetry.points(BACKGROUND)
    assert point.sum == pytest.approx(5.0)
    assert dict(point.attributes) == {semconv.HTTP_METHOD: "GET", semconv.HTTP_ROUTE: "/report/{number}"}


async def test_without_a_task_that_ran_there_is_no_background_time(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    def closing() -> Iterator[None]:
        yield
        clock.pass_(1.0)

    @app.get("/none")
    async def none(tasks: BackgroundTasks, closed: None = Depends(closing)) -> str:
        await BackgroundTask(clock.pass_, 1.0)()
        return "no task was added; the one above ran before the response"

    telemetry.start()
    await exchange(app, "/none")
    assert telemetry.points(BACKGROUND) == []
    assert telemetry.total() == 1


async def test_a_background_task_that_fails(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    def fail() -> None:
        clock.pass_(1.5)
        raise RuntimeError("later")

    @app.get("/fail")
    async def failing(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail)
        return "fine"

    telemetry.start()
    assert isinstance((await exchange(app, "/fail")).error, RuntimeError)
    assert ended(telemetry) == (200, "none", None)
    (point,) = telemetry.points(BACKGROUND)
    assert point.sum == pytest.approx(1.5)
    assert dict(point.attributes)[semconv.ERROR_TYPE] == "RuntimeError"


@pytest.mark.parametrize("status", [200, 503])
async def test_a_request_is_over_when_its_background_task_begins(telemetry: Any, status: int) -> None:
    app = FastAPI()
    seen: list[Any] = []

    @app.get("/work")
    async def work() -> PlainTextResponse:
        def look() -> None:
            seen.append((active(telemetry), telemetry.total(), len(telemetry.server_spans())))

        return PlainTextResponse("answer", status, background=BackgroundTask(look))

    telemetry.start()
    await exchange(app, "/work")
    assert seen == [(0, 1, 1)]
    assert telemetry.total() == 1


async def test_what_a_background_task_counts_is_not_the_requests(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/work")
    async def work(tasks: BackgroundTasks) -> str:
        tally.add_query(1.0, count=100)
        tasks.add_task(tally.add_query, 1.0, 900)
        return "done"

    telemetry.start()
    await exchange(app, "/work")
    (queries,) = telemetry.points(semconv.REQUEST_QUERIES.name)
    assert queries.sum == 100
    assert only(telemetry).attributes[semconv.DB_QUERIES] == 100


async def test_dependencies_that_close_after_the_response(telemetry: Any, clock: Any) -> None:
    app = FastAPI()

    async def session() -> AsyncIterator[str]:
        yield "session"
        clock.pass_(1.0)

    @app.get("/rows")
    async def rows(opened: str = Depends(session)) -> str:
        clock.pass_(0.25)
        return opened

    telemetry.start()
    assert (await exchange(app, "/rows")).status == 200
    (duration,) = telemetry.durations().values()
    # Between 0.106 and 0.117 FastAPI closed them before it sent the response.
    assert duration.sum in (pytest.approx(0.25), pytest.approx(1.25))
    assert telemetry.points(BACKGROUND) == []


async def test_lifespan_is_left_alone(telemetry: Any) -> None:
    app = FastAPI()
    telemetry.start()
    sent: list[str] = []
    events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(events)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    await app(dict(scope), receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert telemetry.spans() == []
    assert telemetry.total() == 0


# --- routes


async def routes_of(telemetry: Any, app: Any, *paths: str, **fields: Any) -> dict[str, tuple[Any, Any]]:
    """Route and status by path; the name of each span must agree."""
    for path in paths:
        await exchange(app, path, **fields)
    found = {}
    for span in telemetry.server_spans():
        route = span.attributes.get(semconv.HTTP_ROUTE)
        assert span.name == (f"GET {route}" if route else "GET")
        found[span.attributes["url.path"]] = (route, span.attributes.get(semconv.HTTP_STATUS))
    assert telemetry.total() == len(paths)
    return found


def echo(name: str) -> str:
    return name


def test_app() -> FastAPI:
    deep = FastAPI()
    deep.get("/items/{name}")(echo)
    middle = FastAPI()
    middle.mount("/deep/{level}", deep)
    plain = Starlette(routes=[Route("/plain/{name}", lambda request: PlainTextResponse("x"))])
    app = FastAPI()
    inner = APIRouter(prefix="/inner/{group}")
    inner.get("/{name}")(echo)
    outer = APIRouter(prefix="/outer")
    outer.include_router(inner, prefix="/between")
    app.include_router(outer, prefix="/v1")
    app.mount("/tenants/{tenant}", middle)
    app.mount("/starlette", plain)
    app.get("/items/{name}")(echo)
    app.add_route("/raw/{name}", lambda request: PlainTextResponse("x"))
    return app


test_app.__test__ = False  # type: ignore[attr-defined]

EXPECTED = {
    "/items/1": ("/items/{name}", 200),
    "/raw/1": ("/raw/{name}", 200),
    "/v1/outer/between/inner/a/b": ("/v1/outer/between/inner/{group}/{name}", 200),
    "/tenants/acme/deep/3/items/x": ("/tenants/{tenant}/deep/{level}/items/{name}", 200),
    "/tenants/acme/deep/3/nowhere": ("/tenants/{tenant}/deep/{level}/{path}", 404),
    "/tenants/acme/nowhere": ("/tenants/{tenant}/{path}", 404),
    "/starlette/plain/1": ("/starlette/plain/{name}", 200),
    "/nowhere": (None, 404),
    "/openapi.json": ("/openapi.json", 200),
}


async def test_routers_mounts_and_plain_routes_give_the_whole_template(telemetry: Any) -> None:
    telemetry.start()
    assert await routes_of(telemetry, test_app(), *EXPECTED) == EXPECTED


class Copying:
    """A middleware that hands a copy of the scope on, so that what the router writes is not seen outside."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


async def passing(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


@pytest.mark.parametrize("kind", ["copying", "base", "both"])
async def test_the_route_is_found_behind_any_middleware(telemetry: Any, kind: str) -> None:
    app = test_app()
    if kind != "copying":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    if kind != "base":
        app.add_middleware(Copying)
    telemetry.start()
    found = await routes_of(telemetry, app, *EXPECTED)
    assert found["/tenants/acme/deep/3/nowhere"][0] in ("/tenants/{tenant}/deep/{level}/{path}", None)
    assert {path: found[path] for path in EXPECTED if "acme" not in path or "items" in path} == {
        path: route for path, route in EXPECTED.items() if "acme" not in path or "items" in path
    }


async def test_a_404_of_a_handler_has_its_route_behind_a_middleware_that_copies(telemetry: Any) -> None:
    app = FastAPI()
    app.add_middleware(Copying)

    @app.get("/items/{name}")
    async def item(name: str) -> str:
        if name == "none":
            raise HTTPException(404)
        return name

    telemetry.start()
    found = await routes_of(telemetry, app, "/items/some", "/items/none", "/elsewhere")
    assert found["/items/none"] == ("/items/{name}", 404)
    assert found["/elsewhere"] == (None, 404)


async def test_a_middleware_that_answers_itself_is_counted_under_the_route_it_guards(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/items/{name}")(echo)

    @app.middleware("http")
    async def deny(request: Request, call_next: Any) -> Response:
        return PlainTextResponse("no", 401)

    telemetry.start()
    assert await routes_of(telemetry, app, "/items/x") == {"/items/x": ("/items/{name}", 401)}


async def test_405_and_redirected_slashes(telemetry: Any) -> None:
    app = FastAPI()
    app.post("/items/{name}")(echo)
    app.get("/slash/")(lambda: "x")
    telemetry.start()
    assert await routes_of(telemetry, app, "/items/x", "/slash") == {
        "/items/x": ("/items/{name}", 405),
        "/slash": (None, 307),
    }


async def test_host_routing(telemetry: Any) -> None:
    tenant = FastAPI()
    tenant.get("/mine/{name}")(echo)
    app = FastAPI()
    app.router.routes.insert(0, Host("{tenant}.example", app=tenant))
    app.router.routes.insert(0, Host("plain.example", app=Router([Route("/p/{x}", lambda r: PlainTextResponse("x"))])))
    telemetry.start()
    await exchange(app, "/mine/1")
    for host, path in ((b"a.example", "/mine/1"), (b"b.example", "/none"), (b"plain.example", "/p/1")):
        scope = scope_of(path)
        scope["headers"] = [(b"host", host)]

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            pass

        await app(scope, receive, send)
    found = [(s.attributes["server.address"], s.attributes.get(semconv.HTTP_ROUTE)) for s in telemetry.server_spans()]
    assert found == [
        ("service.example", "/mine/{name}"),
        ("a.example", "/mine/{name}"),
        ("b.example", None),
        ("plain.example", "/p/{x}"),
    ]


@pytest.mark.parametrize("by", ["setting", "server", "both"])
async def test_a_root_path_is_no_part_of_the_route(telemetry: Any, by: str) -> None:
    with warnings.catch_warnings():
        # Deprecated in new versions, and in use.
        warnings.simplefilter("ignore")
        app = FastAPI(root_path="" if by == "server" else "/api")
    app.get("/items/{name}")(echo)
    sub = FastAPI()
    sub.get("/deep/{name}")(echo)
    app.mount("/sub/{key}", sub)
    telemetry.start()
    fields = {} if by == "setting" else {"root_path": "/api"}
    found = await routes_of(telemetry, app, "/api/items/x", "/api/sub/1/deep/y", "/api/nowhere", **fields)
    assert found == {
        "/api/items/x": ("/items/{name}", 200),
        "/api/sub/1/deep/y": ("/sub/{key}/deep/{name}", 200),
        "/api/nowhere": (None, 404),
    }


async def test_static_files_are_one_route(telemetry: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=tmp_path))
    telemetry.start()
    assert await routes_of(telemetry, app, "/static/a.txt", "/static/none.txt") == {
        "/static/a.txt": ("/static/{path}", 200),
        "/static/none.txt": ("/static/{path}", 404),
    }
    (point,) = [
        p for p in telemetry.points(semconv.RESPONSE_BODY_SIZE.name) if dict(p.attributes)[semconv.HTTP_STATUS] == 200
    ]
    assert point.sum == 5


# --- requests beside and within each other


async def test_requests_inside_requests(telemetry: Any, connect: Any) -> None:
    inner = FastAPI()

    @inner.get("/inner")
    async def answer() -> str:
        tally.add_query()
        return "inner"

    outer = FastAPI()

    @outer.get("/outer")
    async def ask() -> str:
        with trace.get_tracer("mine").start_as_current_span("asking"):
            async with connect(inner) as http:
                await http.get("/inner")
        tally.add_query(count=2)
        return "outer"

    telemetry.start()
    async with connect(outer) as http:
        await http.get("/outer")
    assert telemetry.counts() == {("/outer", 200): 1, ("/inner", 200): 1}
    spans = {span.name: span for span in telemetry.spans()}
    asking = spans["asking"]
    assert spans["GET /inner"].kind is trace.SpanKind.SERVER
    assert spans["GET /inner"].parent.span_id == asking.context.span_id
    assert not spans["GET /inner"].parent.is_remote
    assert asking.parent.span_id == spans["GET /outer"].context.span_id
    assert spans["GET /outer"].parent is None
    assert {span.context.trace_id for span in spans.values()} == {asking.context.trace_id}
    assert spans["GET /inner"].attributes[semconv.DB_QUERIES] == 1
    assert spans["GET /outer"].attributes[semconv.DB_QUERIES] == 2


async def test_many_requests_at_once_do_not_mix(telemetry: Any, connect: Any) -> None:
    app = FastAPI()

    @app.post("/work/{number}")
    async def work(number: int, request: Request) -> dict[str, int]:
        span = trace.get_current_span()
        span.set_attribute("mine", number)
        for _ in range(number % 7):
            await asyncio.sleep(0)
            assert trace.get_current_span() is span
            tally.add_query()
        assert baggage.get_baggage("number") == str(number)
        return {"size": len(await request.body())}

    @app.post("/thread/{number}")
    def thread(number: int) -> None:
        trace.get_current_span().set_attribute("mine", number)
        for _ in range(number % 7):
            tally.add_query()

    telemetry.start()
    async with connect(app) as http:
        for kind in ("work", "thread"):
            await asyncio.gather(
                *(http.post(f"/{kind}/{n}", content=b"x" * n, headers={"baggage": f"number={n}"}) for n in range(60))
            )
    spans = telemetry.server_spans()
    assert len(spans) == 120
    for span in spans:
        number = int(span.attributes["url.path"].rpartition("/")[2])
        assert span.attributes["mine"] == number
        assert span.attributes.get(semconv.DB_QUERIES, 0) == number % 7
        assert span.status.status_code is trace.StatusCode.UNSET, span.events
    assert len({span.context.span_id for span in spans}) == 120
    sizes = telemetry.points(semconv.REQUEST_BODY_SIZE.name)
    assert sum(point.sum for point in sizes) == 2 * sum(range(60))


async def test_several_applications_in_one_process(telemetry: Any) -> None:
    telemetry.start()
    for name in ("one", "two"):
        app = FastAPI()
        app.get(f"/{name}/{{key}}")(lambda key: key)
        sub = FastAPI()
        sub.get("/x")(lambda: "x")
        app.mount(f"/mount-{name}/{{key}}", sub)
        await exchange(app, f"/{name}/1")
        await exchange(app, f"/mount-{name}/1/x")
        assert (await exchange(app, "/neither")).status == 404
    assert telemetry.counts() == {
        ("/one/{key}", 200): 1,
        ("/two/{key}", 200): 1,
        ("/mount-one/{key}/x", 200): 1,
        ("/mount-two/{key}/x", 200): 1,
        (None, 404): 2,
    }


async def test_sync_handlers_see_the_span_in_their_thread(telemetry: Any) -> None:
    app = FastAPI()
    seen: list[Any] = []

    def dependency() -> None:
        seen.append(trace.get_current_span())

    @app.get("/sync")
    def sync(needed: None = Depends(dependency)) -> None:
        seen.append(trace.get_current_span())
        with trace.get_tracer("mine").start_as_current_span("child"):
            pass

    telemetry.start()
    await exchange(app, "/sync")
    span = only(telemetry)
    assert [one.get_span_context() for one in seen] == [span.context] * 2
    (child,) = [one for one in telemetry.spans() if one.name == "child"]
    assert child.parent.span_id == span.context.span_id


async def test_the_state_of_a_request_is_its_own(telemetry: Any) -> None:
    app = FastAPI()

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        request.state.mine = "x"
        return {"given": request.state.given, "mine": request.state.mine}

    telemetry.start()
    assert (await exchange(app, "/state", state={"given": 1})).body == b'{"given":1,"mine":"x"}'


# --- odd requests


async def test_http_1_0_without_a_host(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    scope = scope_of("/x", http_version="1.0")
    scope["headers"] = []
    found = Exchange()

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        found.messages.append(message)

    await app(scope, receive, send)
    assert found.status == 200
    attributes = only(telemetry).attributes
    assert (attributes["server.address"], attributes["server.port"]) == ("10.0.0.1", 8000)
    assert attributes[semconv.PROTOCOL_VERSION] == "1.0"
    assert "user_agent.original" not in attributes


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        (b"shop.example", "shop.example", 80),
        (b"shop.example:8080", "shop.example", 8080),
        (b"shop.example:", "shop.example", 80),
        (b"[::1]:8443", "::1", 8443),
        (b"[2001:db8::1]", "2001:db8::1", 80),
        (b"user@shop.example", None, None),
        (b"shop.example:99999", None, None),
        (b"shop.example:http", None, None),
        (b"a b", None, None),
        (b"", None, None),
        (b"\xff\xfe\x00", None, None),
        (b"::::", None, None),
    ],
)
async def test_hosts(telemetry: Any, host: bytes, address: str | None, port: int | None) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    scope = scope_of("/x")
    scope["headers"] = [(b"host", host)]

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    await app(scope, receive, send)
    attributes = only(telemetry).attributes
    assert (attributes.get("server.address"), attributes.get("server.port")) == (address, port)


@pytest.mark.parametrize("length", [b"", b"-1", b"1e3", b" 12", b"12,12", b"\xb2", b"9" * 400])
async def test_a_content_length_that_is_none(telemetry: Any, length: bytes) -> None:
    app = FastAPI()
    app.post("/x")(lambda: "x")
    telemetry.start()
    assert (await exchange(app, "/x", "POST", [(b"content-length", length)])).status == 200
    assert telemetry.points(semconv.REQUEST_BODY_SIZE.name) == []


async def test_headers_of_any_size_and_kind_do_no_harm(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    huge = b"x" * 1_000_000
    headers = [
        (name, value)
        for name in (b"user-agent", b"tracestate", b"baggage", b"traceparent", b"x-other", b"cookie", b"\xff")
        for value in (huge, b"\x00\xff", b"", b"=,;=")
    ]
    for repeated in (headers, headers[::-1], *([one] for one in headers)):
        assert (await exchange(app, "/x", headers=repeated)).status == 200
    assert telemetry.total() == len(headers) + 2
    assert len(telemetry.server_spans()) == len(headers) + 2
    for span in telemetry.server_spans():
        span.to_json()


async def test_paths_that_are_not_ascii(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/{name}")(echo)
    telemetry.start()
    for path in ("/žluťoučký", "/%F0", "/a b", "/\udce9"):
        assert (await exchange(app, path)).status in (200, 500)
    paths = [span.attributes["url.path"] for span in telemetry.server_spans()]
    assert paths == ["/žluťoučký", "/%F0", "/a b", "/?"]
    encode_spans(telemetry.server_spans())


async def test_a_method_nobody_knows(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    for method in ("PURGE", "get", "QUERY"):
        await exchange(app, "/x", method)
    found = [
        (s.name, s.attributes[semconv.HTTP_METHOD], s.attributes.get("http.request.method_original"))
        for s in telemetry.server_spans()
    ]
    assert found == [
        ("HTTP /x", "_OTHER", "PURGE"),
        ("HTTP /x", "_OTHER", "get"),
        ("QUERY /x", "QUERY", None),
    ]


async def test_the_connection_is_described(telemetry: Any) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    await exchange(app, "/x?a=1", headers=[(b"user-agent", b"Googlebot/2.1"), (b"user-agent", b"second")])
    await exchange(app, "/x", client=None, server=None)
    first, second = (dict(span.attributes) for span in telemetry.server_spans())
    for attributes in (first, second):
        for name in (semconv.LATENCY_CLASS, semconv.ERROR_CLASS):
            del attributes[name]
    assert first == {
        "client.address": "192.0.2.7",
        "client.port": 50123,
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/x",
        "network.protocol.version": "1.1",
        "server.address": "service.example",
        "server.port": 8000,
        "url.path": "/x",
        "url.query": "a=1",
        "url.scheme": "http",
        "user_agent.original": "Googlebot/2.1",
        "user_agent.synthetic.type": "bot",
    }
    assert "client.address" not in second


# --- faults of others


FAULT = RuntimeError("a fault of somebody's")


def faulty(*arguments: Any, **more: Any) -> Any:
    raise FAULT


class FaultyProcessor(SpanProcessor):
    on_start = _on_ending = on_end = faulty


class FaultyPropagator(TextMapPropagator):
    extract = inject = faulty
    fields = property(faulty)  # type: ignore[assignment]


class FaultySampler(Sampler):
    should_sample = faulty
    get_description = faulty


class FaultyIds(IdGenerator):
    generate_trace_id = generate_span_id = faulty


@pytest.mark.parametrize(("who", "spans"), [("processor", 3), ("propagator", 3), ("ids", 3), ("sampler", 0)])
async def test_nothing_that_others_raise_reaches_the_application(
    telemetry: Any, who: str, spans: int, caplog: Any
) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    before = propagate.get_global_textmap()
    if who == "processor":
        multi = provider._active_span_processor
        multi._span_processors = (FaultyProcessor(), *multi._span_processors)
    elif who == "propagator":
        propagate.set_global_textmap(FaultyPropagator())
    elif who == "ids":
        provider.id_generator = FaultyIds()
    else:
        provider.sampler = FaultySampler()
    try:
        for _ in range(3):
            assert (await exchange(app, "/x")).status == 200
    finally:
        propagate.set_global_textmap(before)
    assert len(telemetry.server_spans()) == spans
    assert telemetry.total() == 3
    # Each fault is reported, once, with what was raised.
    (reported,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert reported.exc_info is not None
    assert reported.exc_info[1] is FAULT


async def test_a_fault_of_our_own_is_no_fault_of_the_application(telemetry: Any, monkeypatch: Any, caplog: Any) -> None:
    from apivitals.telemetry.middleware import TelemetryMiddleware

    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    assert (await exchange(app, "/x")).status == 200
    for method in ("_begin", "_record"):
        with monkeypatch.context() as patch:
            patch.setattr(TelemetryMiddleware, method, None)
            for _ in range(2):
                assert (await exchange(app, "/x")).status == 200
        assert active(telemetry) == 0
    assert sum("said once" in record.getMessage() for record in caplog.records) == 2
    assert (await exchange(app, "/x")).status == 200
    assert telemetry.total() == 2


async def test_a_request_leaves_nothing_behind_for_the_garbage_collector(telemetry: Any) -> None:
    app = FastAPI()
    kept: list[Any] = []

    class Marker:
        pass

    @app.get("/x")
    async def x(request: Request) -> str:
        request.state.marker = Marker()
        kept.append(weakref.ref(request.state.marker))
        return "x"

    telemetry.start()
    await exchange(app, "/x")
    gc.collect()
    gc.disable()
    try:
        await exchange(app, "/x")
        # The span waits to be exported, and must not keep the request's objects until then.
        assert len(telemetry.server_spans()) == 2
        assert [one for one in gc.get_objects() if isinstance(one, MeasuredRequest) and one.app is app] == []
    finally:
        gc.enable()
    gc.collect()
    assert [one() for one in kept] == [None, None]


async def test_httpx_sees_the_same_service(telemetry: Any, connect: Any) -> None:
    app = FastAPI()
    app.get("/x")(lambda: "x")
    telemetry.start()
    async with connect(app) as http:
        assert isinstance(http, httpx.AsyncClient)
        assert (await http.get("/x")).json() == "x"
    assert ended(telemetry) == (200, "none", None)
