"""The options of the upstream instrumentor and of the environment, on the server instrumentation `apivitals`."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from apivitals import ApiVitalsInstrumentor, ConfigurationError, semconv, tally
from apivitals.telemetry import fastapi as adapter
from apivitals.telemetry import setup
from tests.integration.server.driver import exchange
from tests.integration.server.test_websocket import connect as connect_websocket

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("telemetry", ["apivitals"], indirect=True)]


def service() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    @app.post("/items")
    async def create(request: Request, response: Response) -> int:
        response.headers["x-answer"] = "forty-two"
        response.headers.append("x-twice", "one")
        response.headers.append("x-twice", "two")
        response.headers["set-session"] = "secret"
        return len(await request.body())

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    return app


def started(telemetry: Any, environ: dict[str, str] | None = None, **settings: Any) -> None:
    """As `telemetry.start`, and no application instrumented yet."""
    telemetry.start(environ, **settings)
    hook = adapter.installed()
    assert hook is not None
    hook.everywhere = False


def only(telemetry: Any) -> Any:
    (span,) = telemetry.server_spans()
    return span


# --- the instrumentor


async def test_it_is_an_instrumentor_like_upstreams(telemetry: Any) -> None:
    assert issubclass(ApiVitalsInstrumentor, FastAPIInstrumentor)
    # One instance, which is not upstream's.
    assert ApiVitalsInstrumentor() is ApiVitalsInstrumentor()
    assert type(FastAPIInstrumentor()) is FastAPIInstrumentor
    assert type(ApiVitalsInstrumentor()) is ApiVitalsInstrumentor
    assert (
        ApiVitalsInstrumentor().instrumentation_dependencies() == FastAPIInstrumentor().instrumentation_dependencies()
    )


@pytest.mark.parametrize("before", [True, False])
async def test_one_application_is_instrumented_and_no_longer(telemetry: Any, before: bool) -> None:
    started(telemetry)
    app = service()
    if before:
        ApiVitalsInstrumentor.instrument_app(app)
    await exchange(app, "/items/1")
    if not before:
        ApiVitalsInstrumentor().instrument_app(app)
    await exchange(app, "/items/2")
    ApiVitalsInstrumentor.instrument_app(app)
    await exchange(app, "/items/3")
    ApiVitalsInstrumentor.uninstrument_app(app)
    await exchange(app, "/items/4")
    paths = [s.attributes["url.path"] for s in telemetry.server_spans() if s.instrumentation_scope.name == "apivitals"]
    assert paths == (["/items/1"] if before else []) + ["/items/2", "/items/3"]
    # Not ours, and not FastAPI's own in our place either.
    assert "/items/4" not in [span.attributes["url.path"] for span in telemetry.server_spans()]


async def test_all_applications_are_instrumented_and_no_longer(telemetry: Any) -> None:
    started(telemetry)
    early = service()
    instrumentor = ApiVitalsInstrumentor()
    seen: list[str] = []
    instrumentor.instrument(server_request_hook=lambda span, scope: seen.append(scope["path"]))
    try:
        late = service()
        await exchange(early, "/items/1")
        await exchange(late, "/items/2")
        instrumentor.uninstrument_app(late)
        await exchange(late, "/items/3")
        assert instrumentor.is_instrumented_by_opentelemetry
        assert not FastAPIInstrumentor().is_instrumented_by_opentelemetry
    finally:
        instrumentor.uninstrument()
    await exchange(early, "/items/4")
    ours = [span for span in telemetry.server_spans() if span.instrumentation_scope.name == "apivitals"]
    assert [span.attributes["url.path"] for span in ours] == seen == ["/items/1", "/items/2"]


async def test_it_configures_when_nobody_has(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for signal in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    monkeypatch.setenv("APIVITALS_SERVER_INSTRUMENTATION", "apivitals")
    monkeypatch.setenv("APIVITALS_SYSTEM_METRICS", "false")
    app = service()
    ApiVitalsInstrumentor.instrument_app(app)
    await exchange(app, "/items/1")
    assert telemetry.counts() == {("/items/{number}", 200): 1}


async def test_a_disabled_sdk_stays_disabled(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    app = service()
    ApiVitalsInstrumentor.instrument_app(app)
    ApiVitalsInstrumentor.uninstrument_app(app)
    assert (await exchange(app, "/items/1")).status == 200
    assert setup.current_pipeline() is None


# --- hooks


async def test_the_hooks_are_called_as_upstream_calls_them(telemetry: Any) -> None:
    calls: list[tuple[str, str, str]] = []

    def server(span: Any, scope: dict[str, Any]) -> None:
        calls.append(("server", span.name, scope["path"]))
        span.set_attribute("from.hook", scope["method"])

    def request(span: Any, scope: dict[str, Any], message: dict[str, Any]) -> None:
        calls.append(("request", message["type"], scope["path"]))
        span.set_attribute("from.hook", "request")

    def response(span: Any, scope: dict[str, Any], message: dict[str, Any]) -> None:
        calls.append(("response", message["type"], scope["path"]))

    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(
        app, server_request_hook=server, client_request_hook=request, client_response_hook=response
    )
    await exchange(app, "/items", "POST", body=b"abc")
    assert calls == [
        ("server", "POST", "/items"),
        ("request", "http.request", "/items"),
        ("response", "http.response.start", "/items"),
        ("response", "http.response.body", "/items"),
    ]
    span = only(telemetry)
    assert span.attributes["from.hook"] == "POST"
    messages = [one for one in telemetry.spans() if one.kind is SpanKind.INTERNAL]
    assert [one.name for one in messages] == ["POST http receive", "POST http send", "POST http send"]
    assert all(one.parent.span_id == span.context.span_id for one in messages)
    assert messages[0].attributes == {"asgi.event.type": "http.request", "from.hook": "request"}


@pytest.mark.parametrize("excluded", [["receive"], ["send"], ["receive", "send"]])
async def test_excluded_spans_are_not_made(telemetry: Any, excluded: list[str]) -> None:
    calls: list[str] = []
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(
        app,
        client_request_hook=lambda *arguments: calls.append("receive"),
        client_response_hook=lambda *arguments: calls.append("send"),
        exclude_spans=excluded,
    )
    await exchange(app, "/items", "POST", body=b"abc")
    assert not set(calls) & set(excluded)
    assert {one.name.rpartition(" ")[2] for one in telemetry.spans() if one.kind is SpanKind.INTERNAL} == set(calls)


async def test_without_hooks_there_is_one_span(telemetry: Any) -> None:
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(app)
    await exchange(app, "/items", "POST", body=b"abc")
    assert len(telemetry.spans()) == 1


async def test_a_hook_that_fails_is_noted_in_the_span(telemetry: Any, caplog: Any) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("the hook's own fault")

    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(
        app, server_request_hook=fail, client_request_hook=fail, client_response_hook=fail
    )
    for _ in range(2):
        assert (await exchange(app, "/items", "POST", body=b"abc")).body == b"3"
    for span in telemetry.spans():
        assert [event.attributes["exception.message"] for event in span.events] == ["the hook's own fault"]
        assert span.status.status_code is StatusCode.UNSET
    assert len(caplog.records) == 1


async def test_hooks_of_a_session(telemetry: Any) -> None:
    calls: list[str] = []
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(
        app,
        server_request_hook=lambda span, scope: calls.append(scope["type"]),
        client_request_hook=lambda span, scope, message: calls.append(message["type"]),
        client_response_hook=lambda span, scope, message: calls.append(message["type"]),
        http_capture_headers_server_request=["user-agent"],
    )
    await connect_websocket(app, "/ws")
    assert calls == ["websocket", "websocket.connect", "websocket.accept", "websocket.close"]
    assert only(telemetry).attributes["http.request.header.user_agent"] == ("agent",)


# --- providers


async def test_an_application_with_providers_of_its_own(telemetry: Any) -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    started(telemetry)
    app = service()

    @app.get("/busy")
    async def busy() -> int:
        tally.add_query(0.5)
        tally.add_cache(hit=True)
        tally.add_outbound(0.25)
        (one,) = numbers(reader)[semconv.ACTIVE_REQUESTS.name]
        return int(one.value)

    ApiVitalsInstrumentor.instrument_app(app, tracer_provider=tracers, meter_provider=meters)
    assert (await exchange(app, "/busy", headers=[(b"content-length", b"0")])).body == b"1"
    await exchange(app, "/items/none")
    assert [span.name for span in spans.get_finished_spans()] == ["GET /busy", "GET /items/{number}"]
    found = numbers(reader)
    durations = {point.attributes[semconv.HTTP_ROUTE]: point for point in found[semconv.REQUEST_DURATION.name]}
    assert durations.keys() == {"/busy", "/items/{number}"}
    assert durations["/busy"].explicit_bounds[:2] == (0.005, 0.01)
    (exemplar,) = durations["/busy"].exemplars
    assert exemplar.span_id == spans.get_finished_spans()[0].context.span_id
    assert [point.value for point in found[semconv.ACTIVE_REQUESTS.name]] == [0]
    assert [point.sum for point in found[semconv.REQUEST_BODY_SIZE.name]] == [0]
    assert [point.sum for point in found[semconv.REQUEST_QUERY_TIME.name]] == [0.5]
    assert [point.sum for point in found[semconv.REQUEST_OUTBOUND_TIME.name]] == [0.25]
    assert [point.sum for point in found[semconv.REQUEST_CACHE_HITS.name]] == [1]
    assert [point.attributes[semconv.ERROR_CLASS] for point in found[semconv.ERRORS.name]] == ["client_error"]
    assert len(found[semconv.TIME_TO_FIRST_BYTE.name]) == 2
    # And nothing in the process's own.
    assert telemetry.spans() == []
    assert telemetry.total() == 0
    tracers.shutdown()
    meters.shutdown()


def numbers(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_the_global_meter_provider_by_name_is_the_same_as_none(telemetry: Any) -> None:
    from opentelemetry import metrics

    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(
        app, tracer_provider=trace.get_tracer_provider(), meter_provider=metrics.get_meter_provider()
    )
    await exchange(app, "/items/1")
    assert telemetry.counts() == {("/items/{number}", 200): 1}
    assert len(telemetry.server_spans()) == 1


async def test_no_op_tracers_make_no_spans(telemetry: Any) -> None:
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(app, tracer_provider=trace.NoOpTracerProvider())
    await exchange(app, "/items/1")
    assert telemetry.spans() == []
    assert telemetry.counts() == {("/items/{number}", 200): 1}


async def test_a_provider_that_is_none_of_the_sdk_is_told_so(telemetry: Any, caplog: Any) -> None:
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(app, tracer_provider=object())  # type: ignore[arg-type]
    assert (await exchange(app, "/items/1")).status == 200
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], ConfigurationError)
    assert "'contrib'" in str(record.exc_info[1])


# --- URLs


async def test_excluded_urls_of_an_application_take_the_place_of_the_environments(telemetry: Any) -> None:
    started(telemetry, {"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "items"})
    usual, own, none = service(), service(), service()
    ApiVitalsInstrumentor.instrument_app(usual)
    ApiVitalsInstrumentor.instrument_app(own, excluded_urls="health, /nothing$")
    ApiVitalsInstrumentor.instrument_app(none, excluded_urls="")
    for app in (usual, own, none):
        await exchange(app, "/items/1")
        await exchange(app, "/health")
    assert telemetry.counts() == {("/health", 200): 2, ("/items/{number}", 200): 2}


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"a=1&sig=abc&b=2", "a=1&sig=REDACTED&b=2"),
        (b"AWSAccessKeyId=k&Signature=s", "AWSAccessKeyId=REDACTED&Signature=REDACTED"),
        (b"X-Goog-Signature=g&X-Amz-Signature=1", "X-Goog-Signature=REDACTED&X-Amz-Signature=REDACTED"),
        (b"X-Amz-Credential=2&X-Amz-Security-Token=3", "X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED"),
        (b"sig=a=b&sig=", "sig=REDACTED&sig=REDACTED"),
        (b"s%69g=abc", "s%69g=REDACTED"),
        (b"SIG=abc&signal=1&xsig=2", "SIG=abc&signal=1&xsig=2"),
        (b"a=%20+b&&=&%zz=\xff", "a=%20+b&&=&%zz=\xff"),
        (b"sig", "sig"),
    ],
)
async def test_credentials_in_a_query_are_replaced_and_nothing_else(telemetry: Any, query: bytes, shown: str) -> None:
    telemetry.start()
    await exchange(service(), "/items/1", query_string=query)
    assert only(telemetry).attributes["url.query"] == shown


# --- headers


ASKED = [(b"x-name", b"value"), (b"x-name", b"second"), (b"x-session-id", b"secret"), (b"other", b"\xc5\xbe\xff")]


@pytest.mark.parametrize("by", ["environment", "options"])
async def test_captured_headers(telemetry: Any, by: str) -> None:
    names = {
        "http_capture_headers_server_request": "X-Name, x-session.*,OTHER,absent",
        "http_capture_headers_server_response": "X-.*,set-session",
        "http_capture_headers_sanitize_fields": ".*session.*",
    }
    prefix = "OTEL_INSTRUMENTATION_"
    if by == "environment":
        started(telemetry, {f"{prefix}{name.upper()}": value for name, value in names.items()})
    else:
        # What the application says wins.
        started(telemetry, {f"{prefix}{name.upper()}": "host" for name in names})
    app = service()
    options: Any = {name: value.split(",") for name, value in names.items()} if by == "options" else {}
    ApiVitalsInstrumentor.instrument_app(app, **options)
    await exchange(app, "/items", "POST", ASKED, body=b"abc")
    found = {key: value for key, value in only(telemetry).attributes.items() if ".header." in key}
    assert found == {
        "http.request.header.x_name": ("value", "second"),
        "http.request.header.x_session_id": ("[REDACTED]",),
        "http.request.header.other": ("ž\\xff",),
        "http.response.header.x_answer": ("forty-two",),
        "http.response.header.x_twice": ("one", "two"),
        "http.response.header.set_session": ("[REDACTED]",),
    }


async def test_headers_are_not_captured_by_default_nor_from_unsampled_requests(telemetry: Any) -> None:
    started(telemetry)
    app = service()
    ApiVitalsInstrumentor.instrument_app(app)
    await exchange(app, "/items", "POST", ASKED)
    assert not [key for key in only(telemetry).attributes if ".header." in key]
    ApiVitalsInstrumentor.instrument_app(app, http_capture_headers_server_request=[".*"])
    unsampled = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
    await exchange(app, "/items", "POST", [*ASKED, unsampled])
    assert len(telemetry.server_spans()) == 1


# --- methods


async def test_known_methods_are_those_of_the_setting(telemetry: Any) -> None:
    telemetry.start({"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "PURGE, GET"})
    app = service()
    for method in ("PURGE", "GET", "POST"):
        await exchange(app, "/items/1", method)
    attributes = [span.attributes for span in telemetry.server_spans()]
    found = [(one[semconv.HTTP_METHOD], one.get("http.request.method_original")) for one in attributes]
    assert found == [("PURGE", None), ("GET", None), ("_OTHER", "POST")]
