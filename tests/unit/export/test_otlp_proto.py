"""Our OTLP protobuf, decoded by protobuf and held against what the stock encoder makes of the same SDK data."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._internal import _encode_value
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.metrics import (
    Counter,
    Exemplar,
    Histogram,
    MeterProvider,
    ObservableCounter,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricsData
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from apivitals.export import otlp_values
from apivitals.export.otlp_metrics import metrics_request
from apivitals.export.otlp_spans import encode_server_span, encode_span
from apivitals.export.otlp_values import any_value, key_value
from apivitals.export.protobuf import varint
from apivitals.export.snapshot import from_sdk
from apivitals.export.trace_batch import TraceBatch, traces_request

# --- comparing


def comparable(message: Any) -> Any:
    """Every field, with NaN as text, so that it is equal to itself."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def without_order(value: Any) -> Any:
    """Order among attributes means nothing, and a snapshot sorts them."""
    if isinstance(value, dict):
        for key in ("attributes", "filtered_attributes"):
            if key in value:
                value[key].sort(key=lambda pair: pair.get("key", ""))
        for item in value.values():
            without_order(item)
    elif isinstance(value, list):
        for item in value:
            without_order(item)
    return value


def assert_metrics_equal(data: MetricsData) -> None:
    ours = comparable(ExportMetricsServiceRequest.FromString(metrics_request(from_sdk(data, 7))))
    stock = encode_metrics(data)
    for resource in stock.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in (*metric.histogram.data_points, *metric.exponential_histogram.data_points):
                    # The stock encoder says inf and -inf of a histogram without any value.
                    if not point.count:
                        point.ClearField("min")
                        point.ClearField("max")
    assert without_order(ours) == without_order(comparable(stock))


def batched(spans: Sequence[Any]) -> bytes:
    batch = TraceBatch()
    for span in spans:
        batch.add(span)
    assert batch.count == len(spans)
    return batch.encode()


def assert_spans_equal(spans: Sequence[ReadableSpan]) -> None:
    ours = ExportTraceServiceRequest.FromString(batched(spans))
    assert comparable(ours) == comparable(with_link_states(encode_spans(spans), spans))


def with_link_states(message: Any, spans: Sequence[ReadableSpan]) -> Any:
    """The stock encoder forgets the trace state of links; the protocol has a field for it."""
    by_id = {span.get_span_context().span_id.to_bytes(8, "big"): span for span in spans}
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for encoded in scope.spans:
                for link, said in zip(encoded.links, by_id[encoded.span_id].links, strict=True):
                    link.trace_state = said.context.trace_state.to_header()
    return message


# --- any data

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
SCALAR = TEXT | st.booleans() | INT64 | st.floats()
VALUE = st.recursive(
    SCALAR | st.binary(max_size=5) | st.none(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
SIMPLE = SCALAR | st.one_of(*(st.lists(each, max_size=3) for each in (TEXT, st.booleans(), INT64, st.floats())))
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), SIMPLE, max_size=4)
RICH = st.dictionaries(TEXT.filter(bool), VALUE, max_size=3)
TIME = st.integers(1, 2**64 - 1)
COUNTS = st.integers(0, 2**64 - 1)
EXEMPLARS = st.lists(
    st.builds(Exemplar, ATTRIBUTES, st.floats() | INT64, TIME, *(st.integers(1, 2**bits - 1) for bits in (64, 128)))
    | st.builds(Exemplar, ATTRIBUTES, st.floats(), TIME, st.none(), st.none()),
    max_size=2,
)
NUMBER = st.builds(sdk.NumberDataPoint, ATTRIBUTES, TIME, TIME, INT64 | st.floats(), EXEMPLARS)
BUCKETS = st.builds(sdk.Buckets, st.integers(-(2**31), 2**31 - 1), st.lists(COUNTS, max_size=4))
TEMPORALITY = st.sampled_from([AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])


@st.composite
def histogram_points(draw: Any) -> Any:
    bounds = draw(st.lists(st.floats(allow_nan=False), max_size=4))
    counts = draw(st.lists(COUNTS, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    total, least, most = (draw(st.floats()) for _ in range(3))
    return sdk.HistogramDataPoint(
        draw(ATTRIBUTES), draw(TIME), draw(TIME), draw(COUNTS), total, counts, bounds, least, most, draw(EXEMPLARS)
    )


@st.composite
def exponential_points(draw: Any) -> Any:
    total, least, most = (draw(st.floats()) for _ in range(3))
    return sdk.ExponentialHistogramDataPoint(
        draw(ATTRIBUTES),
        draw(TIME),
        draw(TIME),
        draw(COUNTS),
        total,
        draw(st.integers(-10, 20)),
        draw(COUNTS),
        draw(BUCKETS),
        draw(BUCKETS),
        0,
        least,
        most,
        draw(EXEMPLARS),
    )


DATA = st.one_of(
    st.builds(sdk.Sum, st.lists(NUMBER, max_size=2), TEMPORALITY, st.booleans()),
    st.builds(sdk.Gauge, st.lists(NUMBER, max_size=2)),
    st.builds(sdk.Histogram, st.lists(histogram_points(), max_size=2), TEMPORALITY),
    st.builds(sdk.ExponentialHistogram, st.lists(exponential_points(), max_size=2), TEMPORALITY),
)
METRIC = st.builds(sdk.Metric, TEXT, TEXT, TEXT, DATA)
SCOPES = st.builds(InstrumentationScope, TEXT, st.none() | TEXT, st.none() | TEXT, ATTRIBUTES)
RESOURCES = st.builds(Resource, ATTRIBUTES, st.none() | TEXT)


@st.composite
def metrics_data(draw: Any) -> MetricsData:
    scopes = draw(st.lists(SCOPES, max_size=2, unique_by=lambda scope: scope.name))
    resource = draw(RESOURCES)
    entries = [sdk.ScopeMetrics(scope, draw(st.lists(METRIC, max_size=2)), scope.schema_url or "") for scope in scopes]
    return MetricsData([sdk.ResourceMetrics(resource, entries, resource.schema_url)])


@examples(max_examples=80, deadline=None)
@given(metrics_data())
def test_any_metrics_equal_the_stock_encoder_s(data: MetricsData) -> None:
    assert_metrics_equal(data)


STATES = st.dictionaries(
    st.from_regex("[a-z]{1,5}", fullmatch=True), st.from_regex("[a-z0-9]{1,5}", fullmatch=True), max_size=2
).map(lambda pairs: TraceState(list(pairs.items())))
FLAGS = st.sampled_from([TraceFlags(0), TraceFlags(1)])
IDS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
CONTEXTS = st.builds(SpanContext, *IDS, st.booleans(), FLAGS, STATES)
STATUS = (
    st.just(Status(StatusCode.UNSET))
    | st.just(Status(StatusCode.OK))
    | st.builds(Status, st.just(StatusCode.ERROR), st.none() | TEXT)
)
EVENTS = st.lists(st.builds(Event, TEXT, ATTRIBUTES, TIME), max_size=2)
LINKS = st.lists(st.builds(Link, CONTEXTS, ATTRIBUTES), max_size=2)
SPANS = st.builds(
    ReadableSpan,
    name=TEXT,
    context=CONTEXTS,
    parent=st.none() | CONTEXTS,
    # Equal resources and scopes that are two objects belong together all the same.
    resource=st.sampled_from([{"service.name": "a"}, {"service.name": "b", "n": [1, 2]}, {}]).map(Resource)
    | st.just(Resource({"service.name": "a"}, "schema")),
    attributes=st.none() | RICH,
    events=EVENTS,
    links=LINKS,
    kind=st.sampled_from(SpanKind),
    status=STATUS,
    start_time=TIME,
    end_time=TIME,
    instrumentation_scope=st.none()
    | st.sampled_from(["one", "two"]).map(InstrumentationScope)
    | st.just(InstrumentationScope("two", "1.0", "schema", {"k": 1})),
)


@examples(max_examples=80, deadline=None)
@given(st.lists(SPANS, max_size=5, unique_by=lambda span: span.get_span_context().span_id))
def test_any_spans_equal_the_stock_encoder_s(spans: list[ReadableSpan]) -> None:
    assert_spans_equal(spans)


@given(VALUE)
def test_any_value_is_the_protocol_s(value: Any) -> None:
    assert comparable(AnyValue.FromString(any_value(value))) == comparable(_encode_value(value))


# --- our own server span against the same span encoded in full


@dataclass
class OneShape:
    name: str
    attributes: tuple[tuple[str, Any], ...]
    status_code: int = 0
    status_description: str = ""
    encoded: bytes | None = None


@dataclass
class OnePeer:
    attributes: tuple[tuple[str, Any], ...]
    encoded: bytes | None = None


@dataclass
class OneSpan:
    shape: OneShape
    peer: OnePeer
    own: list[tuple[str, Any]]
    name: str
    trace_id: int = 1
    span_id: int = 2
    parent_id: int = 0
    remote_parent: bool = False
    state: TraceState = field(default_factory=TraceState)
    start_ns: int = 3
    end_ns: int = 4
    status_override: tuple[int, str] | None = None
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()
    dropped_attributes: int = 0
    dropped_events: int = 0
    dropped_links: int = 0
    touched: bool = True
    resource: Resource = field(default_factory=lambda: RESOURCE)
    instrumentation_scope: InstrumentationScope = field(default_factory=lambda: InstrumentationScope("ours"))

    @property
    def trace_state(self) -> str:
        return self.state.to_header()

    def own_attributes(self) -> list[tuple[str, Any]]:
        return self.own

    def stock(self) -> Any:
        """What the stock encoder makes of the same."""
        code, description = self.status_override or (self.shape.status_code, self.shape.status_description)
        parent = SpanContext(self.trace_id, self.parent_id, self.remote_parent) if self.parent_id else None
        span = ReadableSpan(
            name=self.name,
            context=SpanContext(self.trace_id, self.span_id, False, TraceFlags(1), self.state),
            parent=parent,
            resource=self.resource,
            attributes={**dict(self.peer.attributes), **dict(self.shape.attributes), **dict(self.own)},
            events=self.events,
            links=self.links,
            kind=SpanKind.SERVER,
            status=Status(StatusCode(code), (description or None) if code == 2 else None),
            start_time=self.start_ns,
            end_time=self.end_ns,
            instrumentation_scope=self.instrumentation_scope,
        )
        message = with_link_states(encode_spans([span]), [span]).resource_spans[0].scope_spans[0].spans[0]
        message.dropped_attributes_count = self.dropped_attributes
        message.dropped_events_count = self.dropped_events
        message.dropped_links_count = self.dropped_links
        return message


RESOURCE = Resource({"service.name": "a"})
# Few keys, so that own attributes meet shared ones now and then.
SHAPE_KEYS = st.sampled_from(["http.route", "http.response.status_code", "a", "b"])
PEER_KEYS = st.sampled_from(["client.address", "server.port", "c"])
KEYS = SHAPE_KEYS | PEER_KEYS | st.sampled_from(["url.path", "client.port"])
FROZEN = SIMPLE.map(lambda value: tuple(value) if isinstance(value, list) else value)
FEW = st.just(0) | st.integers(0, 2**32 - 1)


def pairs(keys: Any) -> Any:
    return st.dictionaries(keys, FROZEN, max_size=3).map(lambda found: tuple(found.items()))


@st.composite
def statuses(draw: Any) -> tuple[int, str]:
    code = draw(st.integers(0, 2))
    return code, draw(TEXT) if code == 2 else ""


@st.composite
def shapes(draw: Any) -> OneShape:
    code, description = draw(statuses())
    return OneShape(draw(TEXT), draw(pairs(SHAPE_KEYS)), code, description)


@st.composite
def server_spans(draw: Any) -> OneSpan:
    shape = draw(shapes())
    return OneSpan(
        shape,
        OnePeer(draw(pairs(PEER_KEYS))),
        draw(st.lists(st.tuples(KEYS, SCALAR), max_size=4)),
        draw(st.just(shape.name) | TEXT),
        *(draw(each) for each in IDS),
        parent_id=draw(st.just(0) | IDS[1]),
        remote_parent=draw(st.booleans()),
        state=draw(STATES),
        start_ns=draw(TIME),
        end_ns=draw(TIME),
        status_override=draw(st.none() | statuses()),
        events=draw(EVENTS),
        links=draw(LINKS),
        dropped_attributes=draw(FEW),
        dropped_events=draw(FEW),
        dropped_links=draw(FEW),
    )


@examples(max_examples=150, deadline=None)
@given(server_spans())
def test_any_server_span_equals_the_same_span_in_full(span: OneSpan) -> None:
    for _ in range(2):  # the second time with what the first has kept
        assert comparable(SpanMessage.FromString(encode_span(span))) == comparable(span.stock())  # type: ignore[arg-type]


def served(**changes: Any) -> OneSpan:
    shape = OneShape("GET /items/{id}", (("http.route", "/items/{id}"), ("http.response.status_code", 200)))
    peer = OnePeer((("client.address", "10.0.0.1"),))
    return OneSpan(shape, peer, [("url.path", "/items/7")], **{"name": shape.name, **changes})


def test_what_spans_share_is_encoded_once() -> None:
    first = served()
    assert SpanMessage.FromString(encode_server_span(first)) == first.stock()
    assert first.shape.encoded
    assert first.peer.encoded
    # What stands there is used as it is: nothing of the shape is encoded again.
    first.shape.name = first.name = "changed"
    assert SpanMessage.FromString(encode_server_span(first)).name == "GET /items/{id}"


def test_a_name_and_a_status_of_the_user_s_leave_the_shared_parts_alone() -> None:
    span = served()
    encode_server_span(span)
    kept = span.shape.encoded
    renamed = OneSpan(span.shape, span.peer, span.own, name="mine", status_override=(2, "broken"))
    message = SpanMessage.FromString(encode_server_span(renamed))
    assert (message.name, message.status.code, message.status.message) == ("mine", 2, "broken")
    assert span.shape.encoded == kept
    assert SpanMessage.FromString(encode_server_span(span)).name == "GET /items/{id}"


def test_an_attribute_of_the_user_s_stands_for_the_shared_one() -> None:
    span = served()
    span.own += [("http.route", "/mine"), ("url.path", "/hidden")]
    found = SpanMessage.FromString(encode_server_span(span)).attributes
    assert [(pair.key, pair.value.string_value) for pair in found if pair.value.HasField("string_value")] == [
        ("client.address", "10.0.0.1"),
        ("http.route", "/mine"),
        ("url.path", "/hidden"),
    ]


@examples(max_examples=60, deadline=None)
@given(server_spans())
def test_a_span_that_nobody_wrote_to_is_the_same_by_the_shorter_way(drawn: OneSpan) -> None:
    span = replace(drawn, name=drawn.shape.name, status_override=None, events=(), links=())
    span.dropped_attributes = span.dropped_events = span.dropped_links = 0
    span.own = [(key, value) for key, value in dict(span.own).items() if key in ("url.path", "client.port")]
    span.touched = False
    assert comparable(SpanMessage.FromString(encode_server_span(span))) == comparable(span.stock())


def test_of_a_span_that_nobody_wrote_to_little_is_asked() -> None:
    class Untouched(OneSpan):
        touched = False
        events = links = status_override = dropped_events = property(lambda self: pytest.fail("asked"))  # type: ignore[assignment]

        def __init__(self, like: OneSpan) -> None:
            for name in ("shape", "peer", "own", "trace_id", "span_id", "parent_id", "remote_parent", "state"):
                setattr(self, name, getattr(like, name))
            self.start_ns, self.end_ns = like.start_ns, like.end_ns

    assert encode_server_span(Untouched(served())) == encode_server_span(served())


def test_spans_of_both_kinds_in_one_batch() -> None:
    ours = served()
    child = ReadableSpan("child", SpanContext(1, 9, False), resource=Resource({"service.name": "a"}))
    message = ExportTraceServiceRequest.FromString(batched([ours, child, ours]))
    (resource,) = message.resource_spans
    assert [[span.name for span in scope.spans] for scope in resource.scope_spans] == [[ours.name] * 2, ["child"]]


def test_a_span_that_cannot_be_encoded_leaves_the_batch_as_it_was() -> None:
    batch = TraceBatch()
    batch.add(served())
    before = batch.encode()
    with pytest.raises(OverflowError):
        batch.add(served(trace_id=2**128))
    assert (batch.encode(), batch.count) == (before, 1)


def test_a_request_of_no_spans_is_empty() -> None:
    assert TraceBatch().encode() == b""
    assert traces_request([(RESOURCE, None, [])]) != b""


# --- values that are not of the plain types


class Colour(str, Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Seconds(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, {"string_value": "red"}),
        (Level.HIGH, {"int_value": "3"}),
        (Seconds(1.5), {"double_value": 1.5}),
        (True, {"bool_value": True}),
        (False, {"bool_value": False}),
        (-1, {"int_value": "-1"}),
        (0, {"int_value": "0"}),
        ("", {"string_value": ""}),
        (None, {}),
        ("a\ud800", {"string_value": "a?"}),
        (math.nan, {"double_value": "NaN"}),
        (-math.inf, {"double_value": "-Infinity"}),
        (2**63, {"string_value": str(2**63)}),
        (-(2**63) - 1, {"string_value": str(-(2**63) - 1)}),
        (b"\x00\xff", {"bytes_value": "AP8="}),
        ([1, None, "a"], {"array_value": {"values": [{"int_value": "1"}, {}, {"string_value": "a"}]}}),
        ((), {"array_value": {}}),
        ({1: True}, {"kvlist_value": {"values": [{"key": "1", "value": {"bool_value": True}}]}}),
        (1 + 2j, {"string_value": "(1+2j)"}),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    assert comparable(AnyValue.FromString(any_value(value))) == expected


def decoded_pair(key: str, value: Any) -> Any:
    encoded = key_value(key, value)
    body = encoded[len(varint(len(encoded))) :] if len(encoded) < 128 else encoded[2:]
    return KeyValue.FromString(body)


def test_equal_values_of_different_types_are_not_taken_for_one_another() -> None:
    for _ in range(2):
        assert decoded_pair("k", 1).value.WhichOneof("value") == "int_value"
        assert decoded_pair("k", True).value.WhichOneof("value") == "bool_value"
        assert decoded_pair("k", 1.0).value.WhichOneof("value") == "double_value"
        assert decoded_pair("k", 0).value.WhichOneof("value") == "int_value"
        assert decoded_pair("k", False).value.WhichOneof("value") == "bool_value"
        assert math.copysign(1, decoded_pair("k", -0.0).value.double_value) == -1


def test_half_a_character_in_a_key() -> None:
    assert decoded_pair("k\udfff", "x").key == "k?"


def test_what_is_kept_is_bounded() -> None:
    for place in range(3 * otlp_values._CACHE_SIZE):
        key_value("url.path", f"/{place}")
    for place in range(3 * otlp_values._CACHE_SIZE // 16):
        otlp_values.sdk_resource_field(Resource({"n": place}))
    key_value("long", "x" * 1000)
    assert len(otlp_values._key_values) <= otlp_values._CACHE_SIZE
    assert not any(key == "long" for key, _, _ in otlp_values._key_values)
    assert len(otlp_values._by_identity) <= otlp_values._CACHE_SIZE // 16
    assert decoded_pair("url.path", "/1").value.string_value == "/1"


# --- through the SDK


def collected(record: Any, **options: Any) -> MetricsData:
    reader = InMemoryMetricReader(**options.pop("reader", {}))
    resource = Resource({"service.name": "süß", "n": 1, "list": ["a", "b"]}, "https://schema")
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False, **options)
    record(provider.get_meter("one", "1.0", "https://scope", {"scope": True}), provider.get_meter("two"))
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    return data


def record_everything(one: Any, two: Any) -> None:
    from opentelemetry.metrics import Observation

    one.create_counter("counter", "{x}", "Counts.").add(3, {"a": "1", "b": True})
    one.create_counter("counter", "{x}", "Counts.").add(4, {"c": 1.5})
    two.create_counter("seconds", "s").add(0.25)
    two.create_up_down_counter("updown").add(-7)
    one.create_gauge("gauge").set(2.5, {"k": "v"})
    two.create_observable_gauge("observed", [lambda options: [Observation(1), Observation(2.5, {"x": 1})]])
    two.create_observable_counter("total", [lambda options: [Observation(9)]])
    span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("request")
    histogram = one.create_histogram("histogram", "s", explicit_bucket_boundaries_advisory=[1, 2.5])
    for value in (0.5, 1, 2, 99):
        histogram.record(value, {"route": "/a"}, context=set_span_in_context(span))
    for value in (3.25, 0, 1e-9, 1e9):
        one.create_histogram("exponential").record(value)


EXPONENTIAL = View(instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation())
DELTA = dict.fromkeys(
    (Counter, UpDownCounter, Histogram, ObservableCounter, ObservableUpDownCounter), AggregationTemporality.DELTA
)


@pytest.mark.parametrize("reader", [{}, {"preferred_temporality": DELTA}], ids=["cumulative", "delta"])
def test_a_real_provider_s_metrics_equal_the_stock_encoder_s(reader: Any) -> None:
    data = collected(record_everything, views=[EXPONENTIAL], reader=reader)
    names = {metric.name for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics}
    assert len(names) == 8
    assert_metrics_equal(data)
    message = ExportMetricsServiceRequest.FromString(metrics_request(from_sdk(data, 7)))
    points = {metric.name: metric for scope in message.resource_metrics[0].scope_metrics for metric in scope.metrics}
    assert points["histogram"].histogram.data_points[0].exemplars[0].trace_id
    assert points["histogram"].histogram.aggregation_temporality == (1 if reader else 2)


def test_pauses_come_every_64_points() -> None:
    def record(one: Any, two: Any) -> None:
        for place in range(200):
            one.create_counter("c").add(1, {"n": place})

    pauses: list[int] = []
    snapshot = from_sdk(collected(record), 1)
    with_pauses = metrics_request(snapshot, lambda: pauses.append(1))
    assert len(pauses) == 3
    assert with_pauses == metrics_request(snapshot)


def test_nothing_measured_is_a_resource_without_metrics() -> None:
    message = ExportMetricsServiceRequest.FromString(metrics_request(from_sdk(None, 5)))
    assert not message.resource_metrics[0].scope_metrics


def test_real_spans_equal_the_stock_encoder_s() -> None:
    exporter = InMemorySpanExporter()
    limits = SpanLimits(max_span_attributes=3, max_events=2, max_links=1, max_event_attributes=1)
    provider = TracerProvider(resource=Resource({"service.name": "a"}), span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("süß", "1", "https://schema", {"k": "v"})
    remote = SpanContext(1, 2, True, TraceFlags(1), TraceState([("vendor", "x-y")]))
    parent = set_span_in_context(NonRecordingSpan(remote))
    with tracer.start_as_current_span("parent", parent, SpanKind.SERVER, links=[Link(remote), Link(remote)]) as span:
        span.set_attributes({f"k{place}": place for place in range(5)})
        for place in range(4):
            span.add_event(f"e{place}", {"a": 1, "b": [True, False]})
        with pytest.raises(ValueError), tracer.start_as_current_span("child", kind=SpanKind.CLIENT):
            raise ValueError("ünexpected")
    with provider.get_tracer("other").start_as_current_span("alone") as span:
        span.set_status(Status(StatusCode.OK))
    spans = exporter.get_finished_spans()
    provider.shutdown()
    assert [span.name for span in spans] == ["child", "parent", "alone"]
    assert_spans_equal(spans)
    child, served = ExportTraceServiceRequest.FromString(batched(spans)).resource_spans[0].scope_spans[0].spans
    assert (served.parent_span_id.hex(), served.flags, served.trace_state) == ("0000000000000002", 0x300, "vendor=x-y")
    counts = (served.dropped_attributes_count, served.dropped_events_count, served.dropped_links_count)
    assert counts == (2, 2, 1)
    assert (child.parent_span_id, child.flags) == (served.span_id, 0x100)


def test_odd_spans_are_encoded_all_the_same() -> None:
    odd = ReadableSpan("odd\ud800", context=None, attributes={"k": object})
    message = SpanMessage.FromString(encode_span(odd))
    assert message.name == "odd?"
    assert message.attributes[0].value.string_value == "<class 'object'>"
    assert (message.trace_id, message.start_time_unix_nano) == (b"", 0)


def test_encoding_needs_no_protobuf_runtime() -> None:
    code = (
        "import sys; from apivitals.export import otlp_spans, otlp_metrics, sender, push, metric_push; "
        "print([name for name in sys.modules if name.startswith(('google', 'opentelemetry.proto'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
