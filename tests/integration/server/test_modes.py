"""One script of requests through every server instrumentation: the same spans and points, but for upstream's faults.

Each fault is told apart in a test of its own, which shows what upstream says and what is true.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode

from apivitals import semconv
from apivitals.export.snapshot import HistogramPoint
from apivitals.telemetry import setup
from tests.integration.server.conftest import Clock, Telemetry
from tests.integration.server.driver import exchange
from tests.telemetry_reset import reset_opentelemetry

pytestmark = pytest.mark.anyio

OTHERS = ["contrib"] + (["native"] if find_spec("fastapi.telemetry") else [])
TRACEPARENT = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
REQUESTS: list[tuple[str, str, list[tuple[bytes, bytes]]]] = [
    ("GET", "/items/1?a=b", []),
    ("GET", "/items/2", []),
    ("GET", "/items/word", []),
    ("POST", "/items", [(b"content-length", b"3")]),
    ("DELETE", "/items/1", []),
    ("PURGE", "/items/1", []),
    ("GET", "/boom", []),
    ("GET", "/late", []),
    ("GET", "/status/404", []),
    ("GET", "/status/408", []),
    ("GET", "/status/503", []),
    ("GET", "/status/504", []),
    ("GET", "/v1/inner/x/y", []),
    ("GET", "/sync", []),
    ("GET", "/openapi.json", []),
    ("GET", "/nowhere/at/all", []),
]
POINTS = (
    semconv.REQUEST_DURATION,
    semconv.REQUEST_BODY_SIZE,
    semconv.RESPONSE_BODY_SIZE,
    semconv.TIME_TO_FIRST_BYTE,
    semconv.ERRORS,
    semconv.ACTIVE_REQUESTS,
    semconv.THROUGHPUT,
    semconv.THROUGHPUT_CLASS,
    semconv.ERROR_RATE_CLASS,
)


def service(clock: Clock) -> FastAPI:
    app = FastAPI()

    @app.get("/items/{number}")
    async def item(number: int) -> int:
        clock.pass_(0.125)
        return number

    @app.post("/items")
    async def create() -> dict[str, int]:
        return {"a": 1}

    @app.get("/boom")
    async def boom() -> None:
        clock.pass_(0.5)
        raise ValueError("no")

    @app.get("/late")
    async def late() -> None:
        raise TimeoutError("no")

    @app.get("/status/{status}")
    async def answer(status: int) -> None:
        raise HTTPException(status)

    @app.get("/sync")
    def sync() -> str:
        return "from a thread"

    inner = APIRouter(prefix="/inner/{group}")
    inner.get("/{name}")(lambda name: name)
    app.include_router(inner, prefix="/v1")
    return app


class Seen:
    """What one instrumentation says: spans in order, and points by instrument and attributes."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.spans: list[dict[str, Any]] = [
            {
                "name": span.name,
                "kind": span.kind,
                "parent": span.parent,
                "trace": span.context.trace_id,
                "flags": span.context.trace_flags.sampled,
                "status": span.status.status_code,
                "events": [event.name for event in span.events],
                **dict(span.attributes or {}),
            }
            for span in telemetry.server_spans()
        ]
        self.points: dict[tuple[str, Any], Any] = {
            (instrument.name, tuple(sorted(point.attributes, key=str))): _numbers(point)
            for instrument in POINTS
            for point in telemetry.points(instrument.name)
        }


def _numbers(point: Any) -> Any:
    if isinstance(point, HistogramPoint):
        return point.count, pytest.approx(point.sum), point.bounds, point.counts
    return point.value


async def observe(mode: str, clock: Clock, app: FastAPI, requests: Any) -> Seen:
    telemetry = Telemetry(mode).start()
    try:
        for method, path, headers in requests:
            await exchange(app, path, method, [*headers, TRACEPARENT])
        return Seen(telemetry)
    finally:
        setup.shutdown()
        reset_opentelemetry()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    reset_opentelemetry()
    yield
    setup.shutdown()
    reset_opentelemetry()


def attributes_of(key: tuple[str, Any]) -> dict[str, Any]:
    return dict(key[1])


@pytest.mark.parametrize("other", OTHERS)
async def test_the_same_traffic_gives_the_same_spans(clock: Clock, other: str) -> None:
    ours = await observe("apivitals", clock, service(clock), REQUESTS)
    theirs = await observe(other, clock, service(clock), REQUESTS)
    assert len(ours.spans) == len(theirs.spans) == len(REQUESTS)
    for mine, foreign in zip(ours.spans, theirs.spans, strict=True):
        raised = "exception" in mine["events"]
        if other == "contrib":
            # Address and port are one text; the status stands for what was raised.
            assert foreign.pop("server.address") == "10.0.0.1:8000"
            assert mine.pop("server.address") == "service.example"
            if raised:
                assert (mine.pop(semconv.ERROR_TYPE), foreign.pop(semconv.ERROR_TYPE)) != ("500", "500")
        else:
            # FastAPI leaves out the client, and writes exceptions to the log only.
            assert mine.pop("client.address") == "192.0.2.7"
            assert mine.pop("client.port") == 50123
            assert foreign.pop("events") == []
            assert mine.pop("events") == (["exception"] if raised else [])
        assert mine == foreign


@pytest.mark.parametrize("other", OTHERS)
async def test_the_same_traffic_gives_the_same_points(clock: Clock, other: str) -> None:
    ours = await observe("apivitals", clock, service(clock), REQUESTS)
    theirs = await observe(other, clock, service(clock), REQUESTS)
    mine, foreign = dict(ours.points), dict(theirs.points)
    if other == "contrib":
        # The status stands for what was raised.
        mine = {_with_status(key): value for key, value in mine.items()}
    else:
        # FastAPI measures no sizes.
        sizes = (semconv.REQUEST_BODY_SIZE.name, semconv.RESPONSE_BODY_SIZE.name)
        assert any(key[0] in sizes for key in mine)
        mine = {key: value for key, value in mine.items() if key[0] not in sizes}
    assert mine.keys() == foreign.keys()
    for key, value in mine.items():
        assert foreign[key] == value, key
    durations = [value[0] for key, value in mine.items() if key[0] == semconv.REQUEST_DURATION.name]
    assert sum(durations) == len(REQUESTS)


def _with_status(key: tuple[str, Any]) -> tuple[str, Any]:
    name, pairs = key
    attributes = dict(pairs)
    if attributes.get(semconv.ERROR_TYPE) in ("ValueError", "TimeoutError"):
        attributes[semconv.ERROR_TYPE] = "500"
    return name, tuple(sorted(attributes.items(), key=str))


# --- upstream's faults, and the truth


def duration_of(seen: Seen, route: str | None) -> Any:
    """Count and sum of the duration of one route."""
    found = [
        value
        for key, value in seen.points.items()
        if key[0] == semconv.REQUEST_DURATION.name and attributes_of(key).get(semconv.HTTP_ROUTE) == route
    ]
    assert len(found) == 1
    return found[0][0], found[0][1]


async def test_contrib_counts_background_tasks_into_the_request(clock: Clock) -> None:
    def app() -> FastAPI:
        made = FastAPI()

        @made.get("/report")
        async def report(tasks: BackgroundTasks) -> str:
            tasks.add_task(clock.pass_, 5.0)
            return "soon"

        return made

    requests = [("GET", "/report", [])]
    assert duration_of(await observe("contrib", clock, app(), requests), "/report") == (1, 5.0)
    assert duration_of(await observe("apivitals", clock, app(), requests), "/report") == (1, 0.0)


async def test_contrib_gives_one_response_the_size_of_another(clock: Clock) -> None:
    def app() -> FastAPI:
        made = FastAPI()

        @made.get("/small")
        async def small() -> JSONResponse:
            return JSONResponse("x")

        @made.get("/stream")
        async def stream() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                yield b"x" * 1000

            return StreamingResponse(parts())

        return made

    requests = [("GET", "/small", []), ("GET", "/stream", [])]

    def sizes(seen: Seen) -> dict[Any, Any]:
        return {
            attributes_of(key)[semconv.HTTP_ROUTE]: value[1]
            for key, value in seen.points.items()
            if key[0] == semconv.RESPONSE_BODY_SIZE.name
        }

    assert sizes(await observe("contrib", clock, app(), requests)) == {"/small": 3, "/stream": 3}
    assert sizes(await observe("apivitals", clock, app(), requests)) == {"/small": 3, "/stream": 1000}


async def test_contrib_measures_no_empty_responses(clock: Clock) -> None:
    def app() -> FastAPI:
        made = FastAPI()
        made.get("/slash/")(lambda: "x")
        return made

    def sizes(seen: Seen) -> list[Any]:
        return [value[:2] for key, value in seen.points.items() if key[0] == semconv.RESPONSE_BODY_SIZE.name]

    requests = [("GET", "/slash", [])]
    assert sizes(await observe("contrib", clock, app(), requests)) == []
    assert sizes(await observe("apivitals", clock, app(), requests)) == [(1, 0)]


async def test_upstream_counts_a_mounted_application_twice(clock: Clock) -> None:
    def apps() -> tuple[FastAPI, FastAPI]:
        sub, app = FastAPI(), FastAPI()
        sub.get("/deep/{name}")(lambda name: name)
        app.mount("/sub", sub)
        return app, sub

    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    app, sub = apps()
    for one in (app, sub):
        FastAPIInstrumentor.instrument_app(one, meter_provider=meters, tracer_provider=trace.NoOpTracerProvider())
    try:
        await exchange(app, "/sub/deep/x")
        data = reader.get_metrics_data()
        assert data is not None
        counted = [
            point.count
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            if metric.name == semconv.REQUEST_DURATION.name
            for point in metric.data.data_points
        ]
        assert sum(counted) == 2
    finally:
        for one in (app, sub):
            FastAPIInstrumentor.uninstrument_app(one)
        meters.shutdown()
    seen = await observe("apivitals", clock, apps()[0], [("GET", "/sub/deep/x", [])])
    assert duration_of(seen, "/sub/deep/{name}") == (1, 0.0)


async def test_contrib_knows_no_more_than_the_mount(clock: Clock) -> None:
    def app() -> FastAPI:
        sub, made = FastAPI(), FastAPI()
        sub.get("/deep/{name}")(lambda name: name)
        made.mount("/sub/{key}", sub)
        return made

    requests = [("GET", "/sub/1/deep/x", [])]
    (theirs,) = (await observe("contrib", clock, app(), requests)).spans
    (ours,) = (await observe("apivitals", clock, app(), requests)).spans
    assert theirs[semconv.HTTP_ROUTE] == "/sub/{key}"
    assert ours[semconv.HTTP_ROUTE] == "/sub/{key}/deep/{name}"


async def test_contrib_makes_a_nested_request_an_internal_span(clock: Clock) -> None:
    inner, kinds = FastAPI(), {}
    inner.get("/inner")(lambda: "x")

    def app() -> FastAPI:
        made = FastAPI()

        @made.get("/outer")
        async def outer() -> None:
            await exchange(inner, "/inner")

        return made

    for mode in ("contrib", "apivitals"):
        telemetry = Telemetry(mode).start()
        await exchange(app(), "/outer")
        kinds[mode] = {span.attributes["url.path"]: span.kind.name for span in telemetry.spans() if span.attributes}
        setup.shutdown()
        reset_opentelemetry()
    assert kinds["contrib"] == {"/outer": "SERVER", "/inner": "INTERNAL"}
    assert kinds["apivitals"] == {"/outer": "SERVER", "/inner": "SERVER"}


async def test_contrib_has_no_metrics_of_sessions(clock: Clock) -> None:
    from tests.integration.server.test_websocket import connect, echoing, text

    found = {}
    for mode in ("contrib", "apivitals"):
        app = FastAPI()
        echoing(app)
        telemetry = Telemetry(mode).start()
        await connect(app, "/rooms/a", text("hello"), text("bye"))
        found[mode] = sum(point.value for point in telemetry.points(semconv.WEBSOCKET_MESSAGES.name))  # type: ignore[union-attr]
        setup.shutdown()
        reset_opentelemetry()
    assert found == {"contrib": 0, "apivitals": 4}


@pytest.mark.parametrize("other", OTHERS)
async def test_an_exception_that_the_application_answers_itself(clock: Clock, other: str) -> None:
    """Upstream calls a request failed that was answered with 418 by the application's handler for any exception."""

    def app() -> FastAPI:
        made = FastAPI()

        @made.exception_handler(Exception)
        async def answer(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({}, 418)

        @made.get("/boom")
        async def boom() -> None:
            raise ValueError("no")

        return made

    requests = [("GET", "/boom", [])]
    (theirs,) = (await observe(other, clock, app(), requests)).spans
    (ours,) = (await observe("apivitals", clock, app(), requests)).spans
    assert ours["status"] is StatusCode.UNSET
    assert ours[semconv.HTTP_STATUS] == theirs[semconv.HTTP_STATUS] == 418
    assert ours[semconv.ERROR_CLASS] == "client_error"
    assert theirs["status"] is (StatusCode.ERROR if other == "contrib" else StatusCode.UNSET)
    assert theirs[semconv.ERROR_CLASS] == "exception"


@pytest.mark.skipif("native" not in OTHERS, reason="this FastAPI has no telemetry of its own")
async def test_native_gives_a_redirect_the_route_that_it_leads_to(clock: Clock) -> None:
    def app() -> FastAPI:
        made = FastAPI()
        made.get("/slash/")(lambda: "x")
        return made

    requests = [("GET", "/slash", [])]
    (theirs,) = (await observe("native", clock, app(), requests)).spans
    (ours,) = (await observe("apivitals", clock, app(), requests)).spans
    assert theirs.get(semconv.HTTP_ROUTE) in ("/slash/", None)
    # No route was matched.
    assert semconv.HTTP_ROUTE not in ours
    assert ours[semconv.HTTP_STATUS] == theirs[semconv.HTTP_STATUS] == 307


@pytest.mark.skipif("native" not in OTHERS, reason="this FastAPI has no telemetry of its own")
async def test_native_writes_a_query_anew(clock: Clock) -> None:
    requests = [("GET", "/items/1?b=%7E&a", [])]
    (theirs,) = (await observe("native", clock, service(clock), requests)).spans
    (ours,) = (await observe("apivitals", clock, service(clock), requests)).spans
    assert theirs["url.query"] == "b=~&a="
    assert ours["url.query"] == "b=%7E&a"
