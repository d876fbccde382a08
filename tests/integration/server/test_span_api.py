"""The SERVER span of `apivitals` is a span like the SDK's: for handlers, processors, samplers and propagators."""

from __future__ import annotations

import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, TextMapPropagator, default_getter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from apivitals import semconv
from tests.integration.server.driver import exchange

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("telemetry", ["apivitals"], indirect=True)]

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{SPAN:016x}"


def only(telemetry: Any) -> Any:
    (span,) = telemetry.server_spans()
    return span


def app_with(handler: Any, path: str = "/items/{number}") -> FastAPI:
    app = FastAPI()
    app.get(path)(handler)
    return app


# --- what user code writes


async def test_what_a_handler_writes_is_in_the_span(telemetry: Any) -> None:
    linked = SpanContext(1, 2, True)

    async def handler(number: int) -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("number", number)
        span.set_attributes({"list": [1, 2], semconv.HTTP_ROUTE: "mine", "url.path": "hidden"})
        span.add_event("seen", {"k": "v"}, timestamp=5)
        span.add_link(linked, {"why": "test"})
        span.set_status(StatusCode.ERROR, "said so")
        span.update_name("my name")
        try:
            raise ValueError("caught")
        except ValueError as error:
            span.record_exception(error, {"extra": 1}, timestamp=6, escaped=True)

    telemetry.start()
    await exchange(app_with(handler), "/items/7")
    span = only(telemetry)
    assert span.name == "my name"
    assert (span.attributes["number"], span.attributes["list"]) == (7, (1, 2))
    # What user code says wins over what we find out.
    assert (span.attributes[semconv.HTTP_ROUTE], span.attributes["url.path"]) == ("mine", "hidden")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "said so")
    (link,) = span.links
    assert (link.context, dict(link.attributes)) == (linked, {"why": "test"})
    seen, caught = span.events
    assert (seen.name, seen.timestamp, dict(seen.attributes)) == ("seen", 5, {"k": "v"})
    assert (caught.name, caught.timestamp) == ("exception", 6)
    assert caught.attributes["exception.escaped"] == "True"
    assert caught.attributes["extra"] == 1
    assert caught.attributes["exception.stacktrace"].startswith("Traceback (most recent call last):\n")
    # None of it is a label.
    assert telemetry.counts() == {("/items/{number}", 200): 1}


async def test_an_ok_is_final_as_with_the_sdk(telemetry: Any) -> None:
    async def handler(number: int) -> None:
        span = trace.get_current_span()
        span.set_status(Status(StatusCode.OK))
        span.set_status(StatusCode.ERROR, "too late")
        raise RuntimeError("fails nevertheless")

    telemetry.start()
    await exchange(app_with(handler), "/items/7")
    assert only(telemetry).status.status_code is StatusCode.OK
    assert only(telemetry).attributes[semconv.ERROR_CLASS] == "exception"


@pytest.mark.parametrize("written", [False, True])
async def test_after_the_end_nothing_is_written(telemetry: Any, caplog: Any, written: bool) -> None:
    kept: list[Any] = []

    async def handler(number: int) -> None:
        kept.append(trace.get_current_span())
        if written:
            kept[0].set_attribute("before", 1)

    telemetry.start()
    await exchange(app_with(handler), "/items/7")
    (span,) = kept
    before = dict(span.attributes)
    assert not span.is_recording()
    with caplog.at_level(logging.WARNING, "opentelemetry.sdk.trace"):
        span.set_attribute("a", 1)
        span.set_attributes({"b": 1})
        span.add_event("c")
        span.add_link(SpanContext(1, 2, True))
        span.update_name("d")
        span.set_status(StatusCode.ERROR)
        span.record_exception(ValueError("e"))
    assert len(caplog.records) == 7
    assert all("ended span" in record.getMessage() for record in caplog.records)
    assert dict(span.attributes) == before
    assert (span.events, span.links, span.name) == ((), (), "GET /items/{number}")
    assert span.status.status_code is StatusCode.UNSET
    assert ("before" in before) is written


async def test_user_code_cannot_end_the_request(telemetry: Any) -> None:
    async def handler(number: int) -> None:
        with trace.get_current_span() as span:
            pass
        span.end()
        span.set_attribute("after", 1)

    telemetry.start()
    await exchange(app_with(handler), "/items/7")
    assert only(telemetry).attributes["after"] == 1


async def test_threads_may_write_to_one_span(telemetry: Any) -> None:
    def handler(number: int) -> None:
        span = trace.get_current_span()

        def write(worker: int) -> None:
            for step in range(20):
                span.set_attribute(f"{worker}", step)
                span.add_event(f"{worker}.{step}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(5)))

    telemetry.start()
    await exchange(app_with(handler), "/items/7")
    span = only(telemetry)
    assert [span.attributes[str(worker)] for worker in range(5)] == [19] * 5
    assert len(span.events) == 100


# --- limits


def many(number: int) -> None:
    span = trace.get_current_span()
    for index in range(number):
        span.set_attribute(f"key{index:03}", "x" * 50)
    for index in range(4):
        span.add_event(f"event{index}", {f"k{n}": "y" * 50 for n in range(4)})
        span.add_link(SpanContext(1, index + 1, True), {f"k{n}": "y" * 50 for n in range(4)})


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(f"OTEL_{name}", str(value))


@pytest.mark.parametrize("limit", [0, 3, 10, 64, 128])
async def test_the_limit_of_attributes_holds_for_all_of_them(
    telemetry: Any, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    limited(monkeypatch, SPAN_ATTRIBUTE_COUNT_LIMIT=limit)
    telemetry.start()
    await exchange(app_with(many), "/items/150?q=1")
    span = only(telemetry)
    assert len(span.attributes) <= limit
    assert span.dropped_attributes >= 150 - limit
    assert telemetry.counts() == {("/items/{number}", 200): 1}
    (request,) = encode_spans([span]).resource_spans[0].scope_spans[0].spans
    assert len(request.attributes) == len(span.attributes)
    assert request.dropped_attributes_count == span.dropped_attributes


async def test_the_other_limits(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(
        monkeypatch,
        SPAN_EVENT_COUNT_LIMIT=2,
        SPAN_LINK_COUNT_LIMIT=3,
        EVENT_ATTRIBUTE_COUNT_LIMIT=1,
        LINK_ATTRIBUTE_COUNT_LIMIT=2,
        ATTRIBUTE_VALUE_LENGTH_LIMIT=12,
    )
    telemetry.start()
    await exchange(app_with(many), "/items/3")
    span = only(telemetry)
    assert [event.name for event in span.events] == ["event2", "event3"]
    assert (len(span.links), span.dropped_events, span.dropped_links) == (3, 2, 1)
    assert dict(span.events[0].attributes) == {"k3": "y" * 12}
    assert dict(span.links[0].attributes) == {"k2": "y" * 12, "k3": "y" * 12}
    assert span.attributes["key000"] == "x" * 12
    # Our own as well, and the labels of the point not.
    assert span.attributes[semconv.HTTP_ROUTE] == "/items/{number}"[:12]
    assert span.name == "GET /items/{number}"
    assert all(len(value) <= 12 for value in span.attributes.values() if isinstance(value, str))
    assert telemetry.counts() == {("/items/{number}", 200): 1}


async def test_without_a_limit_everything_is_kept(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, SPAN_ATTRIBUTE_COUNT_LIMIT="")  # type: ignore[arg-type]
    telemetry.start()
    await exchange(app_with(many), "/items/150")
    assert only(telemetry).attributes["key149"] == only(telemetry).attributes["key000"] == "x" * 50


# --- the trace


async def test_child_spans_logs_and_baggage(telemetry: Any) -> None:
    seen: dict[str, Any] = {}

    async def handler(number: int) -> None:
        span = trace.get_current_span()
        with trace.get_tracer("mine").start_as_current_span("child") as child:
            assert trace.get_current_span() is child
        assert trace.get_current_span() is span
        seen["baggage"] = dict(baggage.get_all())
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        seen["carrier"] = carrier

    telemetry.start()
    headers = [
        (b"traceparent", f"{TRACEPARENT}-01".encode()),
        (b"tracestate", b"vendor=1"),
        (b"tracestate", b"other=2"),
        (b"baggage", b"user=7"),
        (b"baggage", b"tenant=a"),
    ]
    await exchange(app_with(handler), "/items/7", headers=headers)
    span = only(telemetry)
    (child,) = [one for one in telemetry.spans() if one.name == "child"]
    assert (child.parent.span_id, child.context.trace_id) == (span.context.span_id, TRACE)
    assert (span.parent.span_id, span.parent.is_remote, span.parent.trace_flags) == (SPAN, True, 1)
    assert dict(span.parent.trace_state) == dict(span.context.trace_state) == {"vendor": "1", "other": "2"}
    assert dict(child.context.trace_state) == {"vendor": "1", "other": "2"}
    assert seen["baggage"] == {"user": "7", "tenant": "a"}
    assert seen["carrier"] == {
        "traceparent": f"00-{TRACE:032x}-{span.context.span_id:016x}-01",
        "tracestate": "vendor=1,other=2",
        "baggage": "user=7,tenant=a",
    }


async def test_a_log_record_of_a_request_knows_its_span(telemetry: Any) -> None:
    from opentelemetry.instrumentation.logging.handler import LoggingHandler
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    log = logging.getLogger("tested")
    handler = LoggingHandler(logger_provider=provider)
    log.addHandler(handler)

    def handle(number: int) -> None:
        log.warning("in the handler")

    telemetry.start()
    try:
        await exchange(app_with(handle), "/items/7")
    finally:
        log.removeHandler(handler)
        provider.shutdown()
    (record,) = exporter.get_finished_logs()
    context = only(telemetry).context
    assert (record.log_record.trace_id, record.log_record.span_id) == (context.trace_id, context.span_id)


W3C = [
    (f"{TRACEPARENT}-01", True),
    (f"{TRACEPARENT}-00", True),
    (f"{TRACEPARENT}-ff", True),
    (f"{TRACEPARENT}-03", True),
    (f" {TRACEPARENT}-01\t", True),
    (f"cc-{TRACE:032x}-{SPAN:016x}-01-what-comes-later", True),
    (f"cc-{TRACE:032x}-{SPAN:016x}-01", True),
    (f"{TRACEPARENT}-01-more", False),
    (f"ff-{TRACE:032x}-{SPAN:016x}-01", False),
    (f"00-{'0' * 32}-{SPAN:016x}-01", False),
    (f"00-{TRACE:032x}-{'0' * 16}-01", False),
    (f"{TRACEPARENT}-01".upper(), False),
    (f"00-{TRACE:031x}G-{SPAN:016x}-01", False),
    (f"{TRACEPARENT}-1", False),
    (f"{TRACEPARENT}", False),
    (f"0-{TRACE:032x}-{SPAN:016x}-01", False),
    (f"00_{TRACE:032x}_{SPAN:016x}_01", False),
    (f"{TRACEPARENT}-0١", False),
    ("", False),
]


@pytest.mark.parametrize("beside", ["alone", "tracestate"])
@pytest.mark.parametrize(("header", "valid"), W3C)
async def test_a_traceparent_is_read_as_the_stock_propagator_reads_it(
    telemetry: Any, header: str, valid: bool, beside: str
) -> None:
    async def handler(number: int) -> dict[str, Any]:
        context = trace.get_current_span().get_span_context()
        return {"flags": int(context.trace_flags), "trace": context.trace_id, "span": context.span_id}

    telemetry.start()
    headers = [(b"traceparent", header.encode())]
    if beside == "tracestate":
        headers.append((b"tracestate", b"a=1"))
    found = json.loads((await exchange(app_with(handler), "/items/7", headers=headers)).body)
    carrier = {key.decode(): value.decode("latin-1") for key, value in headers}
    stock = trace.get_current_span(propagate.extract(carrier, context=Context())).get_span_context()
    assert stock.is_valid is valid
    # What a child of the SDK's would have of this parent.
    expected = trace.get_tracer("x").start_span("x", set_span_in_context(NonRecordingSpan(stock), Context()))
    flags = int(expected.get_span_context().trace_flags)
    assert found["flags"] == flags
    assert (found["trace"] == TRACE) is valid
    for span in telemetry.server_spans():
        assert span.parent == (stock if valid else None)
        assert span.context.trace_state == expected.get_span_context().trace_state
        assert (span.context.trace_id, span.context.span_id) == (found["trace"], found["span"])
    assert len(telemetry.server_spans()) == flags & 1


async def test_of_two_traceparents_the_first_counts(telemetry: Any) -> None:
    telemetry.start()
    headers = [(b"traceparent", f"{TRACEPARENT}-01".encode()), (b"traceparent", f"00-{1:032x}-{1:016x}-01".encode())]
    await exchange(app_with(lambda number: number), "/items/7", headers=headers)
    assert only(telemetry).parent.span_id == SPAN


async def test_an_unsampled_request_records_nothing_and_passes_that_on(telemetry: Any) -> None:
    seen: list[Any] = []

    async def handler(number: int) -> None:
        span = trace.get_current_span()
        span.set_attribute("a", 1)
        span.add_event("b")
        span.record_exception(ValueError("c"))
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        child = trace.get_tracer("mine").start_span("child")
        seen.extend([span, child, carrier["traceparent"]])

    telemetry.start()
    await exchange(app_with(handler), "/items/7", headers=[(b"traceparent", f"{TRACEPARENT}-00".encode())])
    span, child, header = seen
    assert telemetry.spans() == []
    assert not span.is_recording()
    assert not child.is_recording()
    assert (dict(span.events), child.get_span_context().trace_id) == ({}, TRACE)
    assert header == f"00-{TRACE:032x}-{span.get_span_context().span_id:016x}-00"
    assert telemetry.counts() == {("/items/{number}", 200): 1}
    assert telemetry.durations()["/items/{number}", 200].exemplars == ()


# --- processors and exporters


class Keeping(SpanProcessor):
    """Looks at everything that a processor may look at."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.ending: list[Any] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        self.started.append(
            {
                "name": span.name,
                "kind": span.kind,
                "parent": span.parent,
                "attributes": dict(span.attributes),
                "recording": span.is_recording(),
                "end": span.end_time,
                "baggage": dict(baggage.get_all(parent_context)),
                "parent_span": trace.get_current_span(parent_context).get_span_context(),
            }
        )
        span.set_attribute("by.processor", "yes")

    def _on_ending(self, span: Any) -> None:
        self.ending.append(span.end_time)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


async def test_a_processor_sees_a_readable_span(telemetry: Any) -> None:
    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    app = app_with(lambda number: number)
    await exchange(app, "/items/1")
    # Processors that come later are heard too.
    keeping = Keeping()
    provider.add_span_processor(keeping)
    headers = [(b"traceparent", f"{TRACEPARENT}-01".encode()), (b"baggage", b"user=7")]
    await exchange(app, "/items/2?a=b", headers=headers)
    (started,), (span,) = keeping.started, keeping.ended
    assert started["name"] == "GET"
    assert started["kind"] is SpanKind.SERVER
    assert started["recording"] is True
    assert started["end"] is None
    assert started["baggage"] == {"user": "7"}
    assert started["parent"] == started["parent_span"] == span.parent
    assert started["attributes"] == {
        "client.address": "192.0.2.7",
        "client.port": 50123,
        "http.request.method": "GET",
        "network.protocol.version": "1.1",
        "server.address": "service.example",
        "server.port": 8000,
        "url.path": "/items/2",
        "url.query": "a=b",
        "url.scheme": "http",
    }
    assert keeping.ending == [span.end_time]
    assert isinstance(span, ReadableSpan)
    assert span.attributes is not None
    assert span.attributes["by.processor"] == "yes"
    assert span.attributes[semconv.HTTP_ROUTE] == "/items/{number}"
    assert span.resource is provider.resource
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "apivitals"
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < 5e9
    with pytest.raises(TypeError):
        span.attributes["more"] = 1  # type: ignore[index]
    # Fields that are read although they are nobody's business.
    assert span._name == span.name
    assert dict(span._attributes or {}) == dict(span.attributes)
    assert (span._start_time, span._end_time, span._context) == (span.start_time, span.end_time, span.context)
    assert repr(span).startswith('ServerSpan(name="GET /items/{number}"')
    with pytest.raises(AttributeError, match="_nothing_of_the_kind"):
        span._nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: B018


async def test_stock_exporters_take_it(telemetry: Any) -> None:
    def handler(number: int) -> None:
        span = trace.get_current_span()
        span.add_event("e", {"k": 1})
        span.add_link(SpanContext(3, 4, True))
        raise ValueError("no")

    out = io.StringIO()
    telemetry.start()
    console = SimpleSpanProcessor(ConsoleSpanExporter(out=out))
    trace.get_tracer_provider().add_span_processor(console)  # type: ignore[attr-defined]
    await exchange(app_with(handler), "/items/2", headers=[(b"traceparent", f"{TRACEPARENT}-01".encode())])
    span = only(telemetry)
    shown = json.loads(out.getvalue())
    assert shown == json.loads(span.to_json())
    assert shown["name"] == "GET /items/{number}"
    assert shown["context"]["span_id"] == f"0x{span.context.span_id:016x}"
    assert shown["parent_id"] == f"0x{SPAN:016x}"
    assert shown["kind"] == "SpanKind.SERVER"
    assert shown["status"] == {"status_code": "ERROR"}
    assert shown["attributes"] == dict(span.attributes)
    assert [event["name"] for event in shown["events"]] == ["e", "exception"]
    assert shown["links"][0]["context"]["span_id"] == f"0x{4:016x}"
    (encoded,) = encode_spans([span]).resource_spans[0].scope_spans[0].spans
    assert encoded.name == span.name
    assert encoded.trace_id.hex() == f"{TRACE:032x}"
    assert encoded.parent_span_id.hex() == f"{SPAN:016x}"
    assert (encoded.start_time_unix_nano, encoded.end_time_unix_nano) == (span.start_time, span.end_time)
    assert {pair.key for pair in encoded.attributes} == set(span.attributes)
    assert len(encoded.events) == 2
    assert len(encoded.links) == 1


async def test_a_processor_with_push_gets_sampled_spans_only(telemetry: Any) -> None:
    pushed: list[Any] = []

    class Pushing(SpanProcessor):
        def push(self, span: Any) -> None:
            pushed.append(span)

        def on_end(self, span: Any) -> None:
            raise AssertionError("push is there")

    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    provider.sampler = Custom(Decision.RECORD_ONLY)
    provider.add_span_processor(Pushing())
    app = app_with(lambda number: number)
    await exchange(app, "/items/1")
    assert pushed == []
    assert len(telemetry._spans.get_finished_spans()) == 0  # a simple processor leaves out what is not sampled


# --- samplers, ids, propagators


class Custom(Sampler):
    """Says what it was told to, and keeps what it was asked."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[dict[str, Any]] = []

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        self.asked.append(
            {"parent": trace.get_current_span(parent_context), "id": trace_id, "name": name, "kind": kind}
            | {"attributes": dict(attributes or {})}
        )
        return SamplingResult(self.decision, {"sampled.by": "me"}, TraceState([("mine", "1")]))

    def get_description(self) -> str:
        return "custom"


@pytest.mark.parametrize("decision", list(Decision))
async def test_a_custom_sampler_is_asked(telemetry: Any, decision: Decision) -> None:
    seen: list[Any] = []

    async def handler(number: int) -> None:
        seen.append(trace.get_current_span())

    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    sampler = provider.sampler = Custom(decision)
    keeping = Keeping()
    provider.add_span_processor(keeping)
    app = app_with(handler)
    await exchange(app, "/items/2", headers=[(b"traceparent", f"{TRACEPARENT}-00".encode())])
    (asked,), (span,) = sampler.asked, seen
    assert asked["parent"].get_span_context().span_id == SPAN
    assert asked["parent"].get_span_context().is_remote
    assert (asked["id"], asked["name"], asked["kind"]) == (TRACE, "GET", SpanKind.SERVER)
    assert asked["attributes"]["url.path"] == "/items/2"
    context = span.get_span_context()
    assert context.trace_flags.sampled is (decision is Decision.RECORD_AND_SAMPLE)
    assert dict(context.trace_state) == {"mine": "1"}
    assert len(keeping.ended) == (decision is not Decision.DROP)
    for ended in keeping.ended:
        assert ended.attributes is not None
        assert ended.attributes["sampled.by"] == "me"
    assert len(telemetry.server_spans()) == (decision is Decision.RECORD_AND_SAMPLE)
    exemplars = telemetry.durations()["/items/{number}", 200].exemplars
    assert len(exemplars) == (decision is Decision.RECORD_AND_SAMPLE)


class Stubborn(ParentBased):
    """A subclass with a mind of its own."""

    def should_sample(self, *arguments: Any, **more: Any) -> SamplingResult:
        return SamplingResult(Decision.DROP)


SAMPLERS: list[Sampler] = [
    ALWAYS_ON,
    ALWAYS_OFF,
    DEFAULT_ON,
    ParentBased(ALWAYS_OFF),
    TraceIdRatioBased(0.5),
    ParentBasedTraceIdRatio(0.5),
    ParentBased(TraceIdRatioBased(0.05)),
    ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON),
    ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF, remote_parent_sampled=TraceIdRatioBased(0.5)),
    ParentBased(Custom(Decision.RECORD_AND_SAMPLE)),
    Stubborn(ALWAYS_ON),
]


@pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=[f"{place}-{type(one).__name__}" for place, one in enumerate(SAMPLERS)]
)
async def test_the_decision_is_the_samplers_whatever_the_parent(telemetry: Any, sampler: Sampler) -> None:
    async def handler(number: int) -> list[int]:
        context = trace.get_current_span().get_span_context()
        return [context.trace_id, int(context.trace_flags)]

    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    provider.sampler = sampler
    reference = TracerProvider(sampler=sampler, shutdown_on_exit=False)

    class Same(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return current

    current = 0
    reference.id_generator = Same()
    app = app_with(handler)
    tracer = reference.get_tracer("reference")
    for number in range(30):
        flags = number % 3
        trace_id = f"{number + 1:016x}{number * 10**18 % 2**64:016x}"
        headers = [] if flags == 2 else [(b"traceparent", f"00-{trace_id}-{SPAN:016x}-0{flags}".encode())]
        answer = json.loads((await exchange(app, f"/items/{number}", headers=headers)).body)
        current = answer[0]
        carrier = {key.decode(): value.decode() for key, value in headers}
        parent = propagate.extract(carrier, context=Context())
        expected = tracer.start_span("GET", parent, SpanKind.SERVER).get_span_context()
        assert answer == [expected.trace_id, int(expected.trace_flags)], number


async def test_a_share_of_the_roots_is_sampled_and_all_are_counted(telemetry: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.05")
    telemetry.start()
    app = app_with(lambda number: number)
    for number in range(1000):
        await exchange(app, f"/items/{number}")
    # Binomial: outside of this once in ten million runs.
    assert 15 <= len(telemetry.server_spans()) <= 95
    assert telemetry.total() == 1000


class Counting(IdGenerator):
    def __init__(self) -> None:
        self.last = 0

    def generate_trace_id(self) -> int:
        self.last += 1
        return self.last

    def generate_span_id(self) -> int:
        self.last += 1
        return self.last


async def test_a_custom_id_generator_makes_the_ids(telemetry: Any) -> None:
    telemetry.start()
    provider: Any = trace.get_tracer_provider()
    provider.id_generator = Counting()
    app = app_with(lambda number: number)
    await exchange(app, "/items/1")
    await exchange(app, "/items/2", headers=[(b"traceparent", f"{TRACEPARENT}-01".encode())])
    ids = [(span.context.trace_id, span.context.span_id) for span in telemetry.server_spans()]
    assert ids == [(1, 2), (TRACE, 3)]
    # Its trace ids are not said to be random; the stock generator's are.
    assert [int(span.context.trace_flags) for span in telemetry.server_spans()] == [1, 1]


class B3(TextMapPropagator):
    """Reads `b3: {trace}-{span}-{sampled}`."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Getter[Any] = default_getter) -> Context:
        context = Context() if context is None else context
        values = getter.get(carrier, "B3")
        assert "host" in getter.keys(carrier)
        if not values:
            return context
        trace_id, span_id, sampled = values[0].split("-")
        parent = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(sampled)))
        return set_span_in_context(NonRecordingSpan(parent), baggage.set_baggage("from", "b3", context))

    def inject(self, *arguments: Any, **more: Any) -> None:
        raise NotImplementedError

    @property
    def fields(self) -> set[str]:
        return {"traceparent", "baggage"}


@pytest.mark.parametrize("composite", [False, True])
async def test_a_custom_propagator_reads_the_headers(telemetry: Any, composite: bool) -> None:
    seen: list[Any] = []

    async def handler(number: int) -> None:
        seen.append(baggage.get_baggage("from"))

    telemetry.start()
    app = app_with(handler)
    before = propagate.get_global_textmap()
    # Its `fields` are those of the stock ones, which says nothing about what it reads.
    propagate.set_global_textmap(CompositePropagator([B3()]) if composite else B3())
    try:
        await exchange(app, "/items/1", headers=[(b"b3", b"00000000000000aa-00000000000000bb-1")])
        await exchange(app, "/items/2", headers=[(b"b3", b"00000000000000aa-00000000000000bb-0")])
        await exchange(app, "/items/3", headers=[(b"traceparent", f"{TRACEPARENT}-01".encode())])
    finally:
        propagate.set_global_textmap(before)
    await exchange(app, "/items/4", headers=[(b"traceparent", f"{TRACEPARENT}-01".encode())])
    first, third, fourth = telemetry.server_spans()
    assert (first.parent.trace_id, first.parent.span_id) == (0xAA, 0xBB)
    assert third.parent is None
    assert fourth.parent.span_id == SPAN
    assert seen == ["b3", "b3", None, None]


async def test_without_propagators_no_header_is_read(telemetry: Any) -> None:
    telemetry.start()
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([]))
    try:
        await exchange(
            app_with(lambda number: number), "/items/1", headers=[(b"traceparent", f"{TRACEPARENT}-01".encode())]
        )
    finally:
        propagate.set_global_textmap(before)
    assert only(telemetry).parent is None


async def test_a_link_is_what_the_api_makes_of_it(telemetry: Any) -> None:
    async def handler(number: int) -> None:
        trace.get_current_span().add_link(SpanContext(0, 0, False))

    telemetry.start()
    await exchange(app_with(handler), "/items/1")
    assert only(telemetry).links == ()
    assert Link(SpanContext(0, 0, False)).context.is_valid is False
