"""WebSocket sessions, measured by the server instrumentation `apivitals`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket, WebSocketException
from opentelemetry import baggage, trace
from starlette.websockets import WebSocketDisconnect

from apivitals import semconv, tally

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("telemetry", ["apivitals"], indirect=True)]

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
DURATION, MESSAGES = semconv.WEBSOCKET_DURATION.name, semconv.WEBSOCKET_MESSAGES.name


async def connect(app: Any, path: str, *received: Any, headers: Any = (), **fields: Any) -> tuple[list[Any], Any]:
    """Serve one session; what was sent, and what was raised. After the last message the client is silent."""
    path, _, query = path.partition("?")
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"service.example:8000"), (b"user-agent", b"agent"), *headers],
        "server": ("10.0.0.1", 8000),
        "client": ("192.0.2.7", 50123),
        "subprotocols": [],
        "state": {},
        **fields,
    }
    messages = iter([{"type": "websocket.connect"}, *received])
    sent: list[Any] = []

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await asyncio.get_running_loop().create_future()
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except Exception as error:  # noqa: BLE001 - a server takes whatever an application raises
        return sent, error
    return sent, None


def text(value: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": value}


def gone(code: int) -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code}


def echoing(app: FastAPI) -> None:
    @app.websocket("/rooms/{room}")
    async def room(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        while True:
            word = await websocket.receive_text()
            tally.add_query()
            trace.get_current_span().set_attribute("room", room)
            if word == "boom":
                raise ValueError("no such word")
            if word == "bye":
                await websocket.close(1000)
                return
            await websocket.send_text(word)
            await websocket.send_text(word)


def only(telemetry: Any) -> Any:
    (span,) = telemetry.server_spans()
    return span


async def test_a_session(telemetry: Any, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import apivitals.telemetry.websocket

    monkeypatch.setattr(apivitals.telemetry.websocket, "perf_counter", clock)
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def room(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        assert baggage.get_baggage("user") == "7"
        with trace.get_tracer("mine").start_as_current_span("child"):
            clock.pass_(90)
        tally.add_query(0.5)
        while await websocket.receive_text() != "bye":
            await websocket.send_text("again")
        await websocket.close(1000)

    telemetry.start()
    headers = [(b"traceparent", f"00-{TRACE:032x}-{SPAN:016x}-01".encode()), (b"baggage", b"user=7")]
    sent, error = await connect(app, "/rooms/a?sig=secret", text("x"), text("y"), text("bye"), headers=headers)
    assert error is None
    assert [message["type"] for message in sent] == ["websocket.accept", *["websocket.send"] * 2, "websocket.close"]
    span = only(telemetry)
    assert span.name == "WS /rooms/{room}"
    assert (span.context.trace_id, span.parent.span_id) == (TRACE, SPAN)
    assert span.status.status_code is trace.StatusCode.UNSET
    assert dict(span.attributes) == {
        "apivitals.db.duration": 0.5,
        "apivitals.db.queries": 1,
        "apivitals.websocket.close_code": 1000,
        "apivitals.websocket.messages.received": 3,
        "apivitals.websocket.messages.sent": 2,
        "client.address": "192.0.2.7",
        "client.port": 50123,
        "http.response.status_code": 101,
        "http.route": "/rooms/{room}",
        "network.protocol.name": "websocket",
        "network.protocol.version": "1.1",
        "server.address": "service.example",
        "server.port": 8000,
        "url.path": "/rooms/a",
        "url.query": "sig=REDACTED",
        "url.scheme": "ws",
        "user_agent.original": "agent",
    }
    (child,) = [one for one in telemetry.spans() if one.name == "child"]
    assert child.parent.span_id == span.context.span_id
    (duration,) = telemetry.points(DURATION)
    assert (duration.sum, duration.count) == (90, 1)
    assert dict(duration.attributes) == {semconv.HTTP_ROUTE: "/rooms/{room}"}
    counts = {dict(point.attributes)[semconv.NETWORK_DIRECTION]: point.value for point in telemetry.points(MESSAGES)}
    assert counts == {"receive": 3, "transmit": 2}
    # A session is no request.
    assert telemetry.total() == 0
    assert telemetry.points(semconv.ACTIVE_REQUESTS.name) == []


@pytest.mark.parametrize(("code", "failed"), [(1000, False), (1001, False), (None, False), (1006, True), (1011, True)])
async def test_a_client_that_leaves(telemetry: Any, code: Any, failed: bool) -> None:
    app = FastAPI()
    echoing(app)
    telemetry.start()
    _, error = await connect(app, "/rooms/a", text("x"), gone(code))
    assert error is None or isinstance(error, WebSocketDisconnect)
    span = only(telemetry)
    assert span.attributes[semconv.WEBSOCKET_CLOSE_CODE] == (code or 1005)
    assert (span.status.status_code is trace.StatusCode.ERROR) is failed
    (duration,) = telemetry.points(DURATION)
    assert (semconv.ERROR_TYPE in dict(duration.attributes)) is failed


async def test_a_handler_that_fails(telemetry: Any) -> None:
    app = FastAPI()
    echoing(app)
    telemetry.start()
    _, error = await connect(app, "/rooms/a", text("boom"))
    assert isinstance(error, ValueError)
    span = only(telemetry)
    assert span.attributes[semconv.ERROR_TYPE] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]
    (duration,) = telemetry.points(DURATION)
    assert dict(duration.attributes) == {semconv.HTTP_ROUTE: "/rooms/{room}", semconv.ERROR_TYPE: "ValueError"}


async def test_a_failure_after_a_polite_goodbye_is_a_failure(telemetry: Any) -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def handle(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(1000)
        raise RuntimeError("while cleaning up")

    telemetry.start()
    await connect(app, "/ws")
    assert only(telemetry).attributes[semconv.ERROR_TYPE] == "RuntimeError"


async def test_a_session_that_is_refused(telemetry: Any) -> None:
    app = FastAPI()

    async def guard() -> None:
        raise WebSocketException(1008)

    @app.websocket("/guarded/{name}")
    async def guarded(websocket: WebSocket, name: str, passed: None = Depends(guard)) -> None:
        raise AssertionError("not reached")

    @app.websocket("/denied")
    async def denied(websocket: WebSocket) -> None:
        await websocket.send({"type": "websocket.http.response.start", "status": 429, "headers": []})
        await websocket.send({"type": "websocket.http.response.body", "body": b"later"})

    telemetry.start()
    await connect(app, "/guarded/x")
    await connect(app, "/nowhere")
    await connect(app, "/denied", extensions={"websocket.http.response": {}})
    found = [(s.name, s.attributes[semconv.HTTP_STATUS], s.status.status_code) for s in telemetry.server_spans()]
    unset = trace.StatusCode.UNSET
    assert found == [("WS /guarded/{name}", 403, unset), ("WS", 403, unset), ("WS /denied", 429, unset)]
    labels = [dict(point.attributes) for point in telemetry.points(DURATION)]
    assert labels == [
        {semconv.HTTP_ROUTE: "/guarded/{name}", semconv.ERROR_TYPE: "403"},
        {semconv.ERROR_TYPE: "403"},
        {semconv.HTTP_ROUTE: "/denied", semconv.ERROR_TYPE: "429"},
    ]
    assert all(semconv.WEBSOCKET_CLOSE_CODE not in span.attributes for span in telemetry.server_spans())


async def test_a_cancelled_session(telemetry: Any) -> None:
    app = FastAPI()
    echoing(app)
    telemetry.start()
    task = asyncio.create_task(connect(app, "/rooms/a", text("x")))
    while not trace_started(telemetry):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = only(telemetry)
    assert span.attributes[semconv.ERROR_TYPE] == "asyncio.exceptions.CancelledError"
    assert span.events == ()
    assert span.attributes[semconv.WEBSOCKET_SENT] == 2
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert tally.current() is None


def trace_started(telemetry: Any) -> bool:
    """Whether the session waits for its second message."""
    task = next((one for one in asyncio.all_tasks() if one.get_coro().__name__ == "connect"), None)  # type: ignore[union-attr]
    waiting = getattr(task, "_fut_waiter", None)
    return waiting is not None


async def test_sessions_in_mounted_applications_are_one_session(telemetry: Any) -> None:
    sub = FastAPI()
    echoing(sub)
    app = FastAPI()
    app.mount("/sub/{key}", sub)
    telemetry.start()
    await connect(app, "/sub/1/rooms/a", text("bye"))
    assert only(telemetry).attributes[semconv.HTTP_ROUTE] == "/sub/{key}/rooms/{room}"
    assert only(telemetry).attributes["room"] == "a"


async def test_headers_that_make_no_sense_do_no_harm(telemetry: Any) -> None:
    app = FastAPI()
    echoing(app)
    telemetry.start()
    for name in (b"traceparent", b"tracestate", b"baggage", b"host", b"user-agent"):
        for value in (b"", b"\xff\x00", b"x" * 100_000):
            _, error = await connect(app, "/rooms/a", text("bye"), headers=[(name, value)])
            assert error is None
    assert len(telemetry.server_spans()) == 15


async def test_excluded_sessions_give_nothing(telemetry: Any) -> None:
    app = FastAPI()
    echoing(app)
    telemetry.start({"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "rooms"})
    await connect(app, "/rooms/a", text("bye"))
    assert telemetry.spans() == []
    assert telemetry.points(DURATION) == []


async def test_a_fault_of_our_own_is_no_fault_of_the_session(telemetry: Any, monkeypatch: Any, caplog: Any) -> None:
    from apivitals.telemetry.websocket import WebSocketTelemetry

    app = FastAPI()
    echoing(app)
    telemetry.start()
    monkeypatch.setattr(WebSocketTelemetry, "_record", None)
    for _ in range(2):
        sent, error = await connect(app, "/rooms/a", text("hello"), text("bye"))
        assert error is None
        assert len(sent) == 4
    assert [record.getMessage() for record in caplog.records] == ["measuring a WebSocket session failed; said once"]
