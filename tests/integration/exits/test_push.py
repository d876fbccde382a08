"""The whole way of a push: providers of the SDK, our encoding, our sender, and a server on the loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from time import monotonic, perf_counter
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from apivitals.export.metric_push import MetricPusher
from apivitals.export.otlp_settings import BatchSettings, MetricPushSettings, OtlpSettings
from apivitals.export.push import SpanPusher
from apivitals.export.reader import FanOutReader
from apivitals.export.sender import Sender
from apivitals.export.snapshot import Metric, NumberPoint, Scope, Snapshot
from tests.scripted_server import ScriptedServer, answer, drip, hang
from tests.sinks import HttpSink

RESOURCE = Resource({"service.name": "shop"}, "https://schema")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class Drops(list[tuple[str, str, int]]):
    def __call__(self, signal: str, reason: str, count: int) -> None:
        self.append((signal, reason, count))


Make = Callable[..., SpanPusher]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SpanPusher] = []

    def build(environ: Mapping[str, str], on_drop: Any = lambda *_: None, **sending: Any) -> SpanPusher:
        sender = Sender(OtlpSettings.from_environ(environ, "traces"), **sending)
        pusher = SpanPusher(sender, BatchSettings.from_environ(environ), on_drop)
        made.append(pusher)
        return pusher

    yield build
    for pusher in made:
        pusher.shutdown(1)


def environ(endpoint: str, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "3600000", **more}


def base(server: ScriptedServer) -> str:
    return server.endpoint.removesuffix("/v1/traces")


def finished(name: str, **attributes: Any) -> ReadableSpan:
    context = SpanContext(7, 8, False, TraceFlags(1))
    return ReadableSpan(name, context, resource=RESOURCE, attributes=attributes, kind=SpanKind.SERVER)


def names(server: ScriptedServer) -> list[str]:
    found = []
    for request in server.requests:
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            found += [span.name for span in chain(*(scope.spans for scope in resource.scope_spans))]
    return found


def test_spans_of_the_sdk_arrive(make: Make) -> None:
    with HttpSink() as sink:
        provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        provider.add_span_processor(
            make(
                environ(
                    sink.endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="gzip", OTEL_EXPORTER_OTLP_TRACES_HEADERS="key=v%20w"
                )
            )
        )
        tracer = provider.get_tracer("t", "1")
        for place in range(1000):
            with tracer.start_as_current_span(f"GET /{place}", kind=SpanKind.SERVER, attributes={"n": place}):
                tracer.start_span("query").end()
        provider.shutdown()
        found = sink.spans()
        assert len(found) == 2000
        assert {span.name for span in found} == {"query", *(f"GET /{place}" for place in range(1000))}
        (resource,) = sink.requests["traces"][0].resource_spans
        assert resource.schema_url == "https://schema"
        assert resource.scope_spans[0].scope.name == "t"


@pytest.mark.parametrize("preference", ["cumulative", "delta"])
def test_metrics_of_the_sdk_arrive(preference: str) -> None:
    with HttpSink() as sink:
        said = environ(
            sink.endpoint,
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=preference,
            OTEL_METRIC_EXPORT_INTERVAL="3600000",
        )
        reader = FanOutReader()
        provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
        pusher = MetricPusher(
            reader.snapshot,
            Sender(OtlpSettings.from_environ(said, "metrics")),
            MetricPushSettings.from_environ(said),
        )
        counter = provider.get_meter("t").create_counter("requests")
        histogram = provider.get_meter("t").create_histogram("duration")
        pusher.start()
        for turn in (1, 2, 3):
            counter.add(turn, {"route": "/"})
            histogram.record(turn)
            if turn < 3:
                assert pusher.force_flush()
        pusher.shutdown()
        provider.shutdown()
        values = []
        for request in sink.requests["metrics"]:
            metrics = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
            values.append(
                (metrics["requests"].sum.data_points[0].as_int, metrics["duration"].histogram.data_points[0].sum)
            )
        assert values == ([(1, 1), (2, 2), (3, 3)] if preference == "delta" else [(1, 1), (3, 3), (6, 6)])


@pytest.mark.parametrize(
    "trouble",
    [answer(429, Retry_After="0"), answer(503, Retry_After="0"), b"garbage\r\n\r\n", None, hang, drip],
    ids=["429", "503", "garbage", "closed", "hang", "drip"],
)
def test_a_sink_in_trouble_gets_everything_when_it_is_well(make: Make, trouble: Any) -> None:
    drops = Drops()
    with ScriptedServer(trouble, trouble) as server:
        said = environ(base(server), OTEL_EXPORTER_OTLP_TIMEOUT="0.1")
        pusher = make(said, drops, jitter=lambda: -0.5)
        for place in range(100):
            pusher.push(finished(str(place)))
        assert pusher.force_flush(20_000)
        assert names(server)[-100:] == [str(place) for place in range(100)]
        assert len(server.requests) == 3
    assert drops == []


def test_a_sink_that_comes_up_later(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    drops = Drops()
    pusher = make(
        environ(f"http://127.0.0.1:{port}", OTEL_BSP_MAX_QUEUE_SIZE="50", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10"),
        drops,
        jitter=lambda: -0.49,
    )
    for place in range(10):
        pusher.push(finished(str(place)))
    deadline = monotonic() + 10
    while pusher._in_flight < 10 and monotonic() < deadline:  # the thread has taken the first batch
        assert not pusher.force_flush(10)
    for place in range(10, 500):
        pusher.push(finished(str(place)))
    with ScriptedServer(port=port) as server:
        assert pusher.force_flush(20_000)
        # The batch at hand and what the queue holds; the newest were dropped.
        assert names(server) == [str(place) for place in range(60)]
    assert sum(count for _, reason, count in drops if reason == "queue_full") == 440
    assert {reason for _, reason, _ in drops} == {"queue_full"}


def test_a_partial_success_is_counted(make: Make) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 2
    drops = Drops()
    with ScriptedServer(answer(200, response.SerializeToString())) as server:
        pusher = make(environ(base(server)), drops)
        for name in "abc":
            pusher.push(finished(name))
        assert pusher.force_flush()
    assert drops == [("traces", "rejected", 2)]


@pytest.mark.parametrize("trouble", [hang, drip], ids=["hang", "drip"])
def test_a_shutdown_is_bounded_whatever_the_sink_does(make: Make, trouble: Any) -> None:
    drops = Drops()
    with ScriptedServer(*[trouble] * 10) as server:
        pusher = make(environ(base(server), OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10"), drops)
        for place in range(35):
            pusher.push(finished(str(place)))
        server.wait(1)
        began = monotonic()
        pusher.shutdown(0.3)
        assert monotonic() - began < 3
    assert sum(count for *_, count in drops) == 35


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning" if sys.version_info >= (3, 12) else "error"
)
def test_a_forked_worker_has_a_connection_of_its_own(make: Make) -> None:
    with ScriptedServer() as server:
        pusher = make(environ(base(server)))
        pusher.push(finished("before"))
        assert pusher.force_flush()
        pusher.push(finished("parent"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                pusher.push(finished("child"))
                status = 0 if pusher.force_flush(5000) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pusher.force_flush()
        assert names(server) == ["before", "child", "parent"]
        assert [request.connection for request in server.requests] == [1, 2, 1]


# --- the event loop meanwhile


async def longest_stall(work: Callable[[], bool]) -> float:
    """The longest time that a timer of one millisecond was late, while something runs in another thread."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, work)
    longest = 0.0
    while not future.done():
        before = perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, perf_counter() - before - 0.001)
    assert await future
    return longest


def series(count: int) -> Snapshot:
    points = tuple(
        NumberPoint((("http.route", f"/{place}"), ("http.request.method", "GET")), 1, 2, place)
        for place in range(count)
    )
    return Snapshot(2, (), (Scope("s", "", "", (Metric("m", "1", "", "counter", points),)),))


def test_the_event_loop_hardly_notices(make: Make) -> None:
    snapshot = series(2000)
    with ScriptedServer() as server:
        pusher = make(environ(base(server)))
        metrics = MetricPusher(lambda: snapshot, Sender(OtlpSettings("metrics", server.endpoint)), MetricPushSettings())

        def work() -> bool:
            return pusher.force_flush() and metrics.force_flush()

        stalls = []
        for _ in range(5):
            for place in range(2000):
                pusher.push(finished(str(place), route="/items", status=200, path=f"/items/{place}"))
            stalls.append(asyncio.run(longest_stall(work)))
        metrics.shutdown()
        # The best of five, because the machine has other things to do as well.
        assert min(stalls) < 0.01, stalls
