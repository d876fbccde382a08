"""When a request is over and what it was, told in plain ASGI messages, whoever makes the span."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apivitals import semconv, tally
from apivitals.settings import SERVER_INSTRUMENTATIONS, Settings
from apivitals.telemetry import setup
from apivitals.telemetry.processors import ClassifyingProcessor
from tests.telemetry_reset import reset_opentelemetry

pytestmark = pytest.mark.anyio
SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
END: dict[str, Any] = {"type": "http.response.body", "body": b"done"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Served:
    """An application of one raw ASGI route, and what was emitted about its requests."""

    def __init__(self, mode: str) -> None:
        setup.configure(
            environ={**SILENT, "OTEL_SERVICE_NAME": "tested"}, server_instrumentation=mode, system_metrics=False
        )
        self._spans = InMemorySpanExporter()
        provider: Any = trace.get_tracer_provider()
        # As it stands before every exporter: contrib ends a span before the trailers are out.
        provider.add_span_processor(ClassifyingProcessor(SimpleSpanProcessor(self._spans), Settings()))
        self.sent: list[Any] = []

    async def __call__(
        self,
        endpoint: Callable[[Any, Any, Any], Awaitable[None]],
        *,
        receive: Callable[[], Awaitable[Any]] | None = None,
        send: Callable[[Any], Awaitable[None]] | None = None,
        method: str = "GET",
    ) -> None:
        app = FastAPI()

        class Endpoint:
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await endpoint(scope, receive, send)

        app.router.add_route("/raw", Endpoint(), methods=None)  # type: ignore[arg-type]
        setup.instrument(app)

        async def request() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def keep(message: Any) -> None:
            self.sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/raw",
            "raw_path": b"/raw",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"service")],
            "server": ("service", 80),
            "client": ("127.0.0.1", 1),
            "extensions": {"http.response.trailers": {}, "http.response.pathsend": {}},
        }
        await app(scope, receive or request, send or keep)

    def classes(self) -> list[Any]:
        """The error class of each SERVER span."""
        return [
            (span.attributes or {}).get(semconv.ERROR_CLASS)
            for span in self._spans.get_finished_spans()
            if span.kind is trace.SpanKind.SERVER
        ]

    def points(self, name: str) -> list[Any]:
        pipeline = setup.current_pipeline()
        assert pipeline is not None
        return [point for metric in pipeline.snapshot().find(name) for point in metric.points]

    def requests(self) -> int:
        return sum(point.count for point in self.points(semconv.REQUEST_DURATION.name))

    def errors(self) -> dict[str, int]:
        return {dict(point.attributes)[semconv.ERROR_CLASS]: point.value for point in self.points(semconv.ERRORS.name)}


@pytest.fixture(params=SERVER_INSTRUMENTATIONS)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    monkeypatch.chdir(tmp_path)
    reset_opentelemetry()
    yield Served(request.param)
    setup.shutdown()
    reset_opentelemetry()


TRAILERS = {"type": "http.response.trailers", "headers": []}


@pytest.mark.parametrize(
    "messages",
    [
        [START, END],
        [START, {"type": "http.response.body"}],
        [START, {**END, "more_body": True}, {**END, "more_body": True}, {**END, "more_body": False}],
        [{**START, "trailers": True}, END, TRAILERS],
        [{**START, "trailers": True}, END, {**TRAILERS, "more_trailers": True}, TRAILERS],
        [START, {"type": "http.response.pathsend", "path": "/a/file"}],
    ],
)
async def test_a_complete_answer(served: Served, messages: list[Any]) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    await served(endpoint)
    assert [message["type"] for message in served.sent] == [message["type"] for message in messages]
    assert served.classes() == ["none"]
    assert served.requests() == 1
    assert served.errors() == {}


@pytest.mark.parametrize("messages", [[], [START], [START, {**END, "more_body": True}]])
async def test_an_answer_that_is_never_completed_is_an_exception(served: Served, messages: list[Any]) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    await served(endpoint)
    assert served.errors() == {"exception": 1}


async def test_what_is_raised_after_the_last_byte_changes_nothing(served: Served) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send(dict(END))
        raise RuntimeError("a background task failed")

    with pytest.raises(RuntimeError, match="a background task failed"):
        await served(endpoint)
    # The client has its answer.
    assert served.classes() == ["none"]
    assert served.requests() == 1
    assert served.errors() == {}


@pytest.mark.parametrize(("error", "ended"), [(RuntimeError, "exception"), (TimeoutError, "timeout")])
async def test_what_is_raised_half_way_is_its_own_class(served: Served, error: type[Exception], ended: str) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send({**END, "more_body": True})
        raise error("half way")

    with pytest.raises(error, match="half way"):
        await served(endpoint)
    assert served.classes() == [ended]
    assert served.errors() == {ended: 1}
    assert served.requests() == 1


async def test_a_client_that_left_before_the_answer(served: Served) -> None:
    async def leave() -> Any:
        return {"type": "http.disconnect"}

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message["type"] == "http.disconnect"

    await served(endpoint, receive=leave)
    assert served.classes() == ["disconnected"]
    assert served.errors() == {"disconnected": 1}


async def test_a_server_that_says_so_by_an_oserror(served: Served) -> None:
    async def refuse(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the connection is closed")

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send(dict(END))

    with pytest.raises(OSError):
        await served(endpoint, send=refuse)
    assert served.classes() == ["disconnected"]
    assert served.errors() == {"disconnected": 1}


async def test_a_client_that_leaves_after_the_last_byte_had_its_answer(served: Served) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send(dict(END))
        await receive()

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    await served(endpoint, receive=leave)
    assert served.classes() == ["none"]


async def test_a_tally_ends_with_its_request(served: Served) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        tally.add_query(0.5)
        await send(dict(START))
        await send(dict(END))

    assert tally.current() is None
    await served(endpoint)
    assert tally.current() is None
    tally.add_query(9)
    (point,) = served.points(semconv.REQUEST_QUERY_TIME.name)
    assert (point.count, point.sum) == (1, 0.5)


async def test_requests_at_once_do_not_mix(served: Served) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            tally.add_query(1)
        await send(dict(START))
        await send(dict(END))

    await asyncio.gather(*(served(endpoint) for _ in range(10)))
    (point,) = served.points(semconv.REQUEST_QUERIES.name)
    assert (point.count, point.sum, point.min, point.max) == (10, 30, 3, 3)
    assert served.requests() == 10


@pytest.mark.parametrize("method", ["GET", "get", "BREW", "X" * 500])
async def test_an_odd_method_is_no_label(served: Served, method: str) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send(dict(END))

    await served(endpoint, method=method)
    pipeline = setup.current_pipeline()
    assert pipeline is not None
    said = {
        dict(point.attributes).get(semconv.HTTP_METHOD)
        for metric in pipeline.snapshot().metrics()
        for point in metric.points
    }
    assert said - {None} <= {"GET", "_OTHER"}


async def test_the_classes_of_the_window_are_exported(served: Served) -> None:
    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send(dict(END))

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "status": 503})
        await send(dict(END))

    for endpoint in (fine, fine, fine, broken):
        await served(endpoint)
    whole = {point.attributes: point.value for point in served.points(semconv.THROUGHPUT.name)}
    assert whole[()] == 4
    assert sum(value for attributes, value in whole.items() if attributes) == 4
    levels = {point.attributes: point.value for point in served.points(semconv.ERROR_RATE_CLASS.name)}
    # One of four fails.
    assert levels[()] == 4
    assert {point.value for point in served.points(semconv.THROUGHPUT_CLASS.name)} == {4}
