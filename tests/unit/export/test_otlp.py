"""OTLP JSON, decoded by protobuf and held against what the stock encoder makes of the same SDK data."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from enum import Enum, IntEnum
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
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

from apivitals.export.otlp import any_value, metrics_request, traces_request
from apivitals.export.snapshot import NumberPoint, from_sdk

# --- decoding

_IDS = {"traceId", "spanId", "parentSpanId"}


def base64_ids(value: Any) -> Any:
    """OTLP has ids in hex where protobuf's JSON has base64."""
    if isinstance(value, dict):
        return {
            key: b64encode(bytes.fromhex(item)).decode() if key in _IDS else base64_ids(item)
            for key, item in value.items()
        }
    return [base64_ids(item) for item in value] if isinstance(value, list) else value


def decoded(request: Any, kind: Any) -> Any:
    """The message that the written line stands for; an unknown field or a wrong type is an error."""
    line = json.dumps(request, allow_nan=False)
    return json_format.ParseDict(base64_ids(json.loads(line)), kind())


def comparable(message: Any) -> Any:
    """Field by field, with NaN equal to itself and empty submessages as none."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            # Buckets without counts say nothing, and the stock encoder leaves them out.
            kept = {key: plain(item) for key, item in value.items()}
            return {
                key: item
                for key, item in kept.items()
                if key not in ("positive", "negative") or "bucket_counts" in item
            }
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    return plain(json_format.MessageToDict(message, preserving_proto_field_name=True))


def assert_metrics_equal(data: MetricsData) -> None:
    ours = comparable(decoded(metrics_request(from_sdk(data, 7)), ExportMetricsServiceRequest))
    stock = comparable(encode_metrics(data))
    for message in (ours, stock):
        for resource in message.get("resource_metrics", []):
            sort_attributes(resource)
            for scope in resource.get("scope_metrics", []):
                for metric in scope.get("metrics", []):
                    # The start of a gauge means nothing; the stock encoder leaves it out.
                    for point in metric.get("gauge", {}).get("data_points", []):
                        point.pop("start_time_unix_nano", None)
                    for shape in ("histogram", "exponential_histogram"):
                        for point in metric.get(shape, {}).get("data_points", []):
                            if "count" not in point:
                                point.pop("min", None)
                                point.pop("max", None)
    assert ours == stock


def sort_attributes(value: Any) -> None:
    """Order among attributes means nothing, and a snapshot sorts them."""
    if isinstance(value, dict):
        for key in ("attributes", "filtered_attributes"):
            if key in value:
                value[key].sort(key=lambda pair: pair.get("key", ""))
        for item in value.values():
            sort_attributes(item)
    elif isinstance(value, list):
        for item in value:
            sort_attributes(item)


def assert_spans_equal(spans: list[ReadableSpan]) -> None:
    ours = decoded(traces_request(spans), ExportTraceServiceRequest)
    assert comparable(ours) == comparable(with_link_states(encode_spans(spans), spans))


def with_link_states(message: Any, spans: list[ReadableSpan]) -> Any:
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
    SCALAR | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
SIMPLE = SCALAR | st.one_of(*(st.lists(each, max_size=3) for each in (TEXT, st.booleans(), INT64, st.floats())))
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), SIMPLE, max_size=4)
RICH = st.dictionaries(TEXT.filter(bool), VALUE, max_size=3)
TIME = st.integers(1, 2**63 - 1)
COUNTS = st.integers(0, 2**63 - 1)
EXEMPLARS = st.lists(
    st.builds(
        Exemplar,
        ATTRIBUTES,
        st.floats() | INT64,
        TIME,
        *(st.integers(1, 2**bits - 1) for bits in (64, 128)),
    )
    | st.builds(Exemplar, ATTRIBUTES, st.floats(), TIME, st.none(), st.none()),
    max_size=2,
)
NUMBER = st.builds(sdk.NumberDataPoint, ATTRIBUTES, TIME, TIME, INT64 | st.floats(), EXEMPLARS)
BUCKETS = st.builds(sdk.Buckets, st.integers(-1000, 1000), st.lists(COUNTS, max_size=4))
TEMPORALITY = st.sampled_from([AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])


@st.composite
def histogram_points(draw: Any) -> Any:
    bounds = draw(st.lists(st.floats(allow_nan=False), max_size=4))
    counts = draw(st.lists(COUNTS, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    values = [draw(st.floats()) for _ in range(3)]
    return sdk.HistogramDataPoint(
        draw(ATTRIBUTES), draw(TIME), draw(TIME), draw(COUNTS), values[0], counts, bounds, *values[1:], draw(EXEMPLARS)
    )


@st.composite
def exponential_points(draw: Any) -> Any:
    values = [draw(st.floats()) for _ in range(3)]
    return sdk.ExponentialHistogramDataPoint(
        draw(ATTRIBUTES),
        draw(TIME),
        draw(TIME),
        draw(COUNTS),
        values[0],
        draw(st.integers(-10, 20)),
        draw(COUNTS),
        draw(BUCKETS),
        draw(BUCKETS),
        0,
        *values[1:],
        draw(EXEMPLARS),
    )


DATA = st.one_of(
    st.builds(sdk.Sum, st.lists(NUMBER, min_size=1, max_size=2), TEMPORALITY, st.booleans()),
    st.builds(sdk.Gauge, st.lists(NUMBER, min_size=1, max_size=2)),
    st.builds(sdk.Histogram, st.lists(histogram_points(), min_size=1, max_size=2), TEMPORALITY),
    st.builds(sdk.ExponentialHistogram, st.lists(exponential_points(), min_size=1, max_size=2), TEMPORALITY),
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


@examples(max_examples=60, deadline=None)
@given(metrics_data())
def test_any_metrics_equal_the_stock_encoder_s(data: MetricsData) -> None:
    assert_metrics_equal(data)


def contexts() -> Any:
    states = st.dictionaries(
        st.from_regex("[a-z]{1,5}", fullmatch=True), st.from_regex("[a-z0-9]{1,5}", fullmatch=True)
    )
    return st.builds(
        SpanContext,
        st.integers(1, 2**128 - 1),
        st.integers(1, 2**64 - 1),
        st.booleans(),
        st.sampled_from([TraceFlags(0), TraceFlags(1)]),
        states.map(lambda pairs: TraceState(list(pairs.items()))),
    )


SPANS = st.builds(
    ReadableSpan,
    name=TEXT,
    context=contexts(),
    parent=st.none() | contexts(),
    resource=st.sampled_from(
        [Resource({"service.name": "a"}), Resource({"service.name": "b"}, "schema"), Resource({})]
    ),
    attributes=st.none() | RICH,
    events=st.lists(st.builds(Event, TEXT, ATTRIBUTES, TIME), max_size=2),
    links=st.lists(st.builds(Link, contexts(), ATTRIBUTES), max_size=2),
    kind=st.sampled_from(SpanKind),
    status=st.just(Status(StatusCode.UNSET))
    | st.just(Status(StatusCode.OK))
    | st.builds(Status, st.just(StatusCode.ERROR), st.none() | TEXT),
    start_time=TIME,
    end_time=TIME,
    instrumentation_scope=st.none()
    | st.sampled_from([InstrumentationScope("one"), InstrumentationScope("two", "1.0", "schema", {"k": 1})]),
)


@examples(max_examples=60, deadline=None)
@given(st.lists(SPANS, max_size=4, unique_by=lambda span: span.get_span_context().span_id))
def test_any_spans_equal_the_stock_encoder_s(spans: list[ReadableSpan]) -> None:
    assert_spans_equal(spans)


@given(VALUE)
def test_any_value_is_the_protocol_s(value: Any) -> None:
    from opentelemetry.exporter.otlp.proto.common._internal import _encode_value
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

    assert comparable(decoded(any_value(value), AnyValue)) == comparable(_encode_value(value))


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
        (Colour.RED, {"stringValue": "red"}),
        (Level.HIGH, {"intValue": "3"}),
        (Seconds(1.5), {"doubleValue": 1.5}),
        (True, {"boolValue": True}),
        (None, {}),
        (math.nan, {"doubleValue": "NaN"}),
        (-math.inf, {"doubleValue": "-Infinity"}),
        (2**63 - 1, {"intValue": str(2**63 - 1)}),
        # No reader takes an integer beyond the protocol's; the whole line would be lost.
        (2**63, {"stringValue": str(2**63)}),
        (-(2**63) - 1, {"stringValue": str(-(2**63) - 1)}),
        (b"\x00\xff", {"bytesValue": "AP8="}),
        ([1, None, "a"], {"arrayValue": {"values": [{"intValue": "1"}, {}, {"stringValue": "a"}]}}),
        ((), {"arrayValue": {"values": []}}),
        ({"k": 1}, {"kvlistValue": {"values": [{"key": "k", "value": {"intValue": "1"}}]}}),
        (1 + 2j, {"stringValue": "(1+2j)"}),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    assert json.loads(json.dumps(any_value(value), allow_nan=False)) == expected


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
    one.create_gauge("integral").set(5)
    two.create_observable_gauge("observed", [lambda options: [Observation(1), Observation(2.5, {"x": 1})]])
    two.create_observable_counter("total", [lambda options: [Observation(9)]])
    histogram = one.create_histogram("histogram", "s", explicit_bucket_boundaries_advisory=[1, 2.5])
    for value in (0.5, 1, 2, 99):
        histogram.record(value, {"route": "/a"})
    one.create_histogram("exponential").record(3.25)
    one.create_histogram("exponential").record(0)


def test_a_real_provider_s_metrics_equal_the_stock_encoder_s() -> None:
    view = View(instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation())
    data = collected(record_everything, views=[view])
    names = {metric.name for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics}
    assert len(names) == 9
    assert_metrics_equal(data)


def test_deltas_stay_deltas() -> None:
    delta = dict.fromkeys(
        (Counter, UpDownCounter, Histogram, ObservableCounter, ObservableUpDownCounter), AggregationTemporality.DELTA
    )
    data = collected(record_everything, reader={"preferred_temporality": delta})
    assert all(metric.delta for metric in from_sdk(data, 1).metrics() if metric.kind not in ("gauge",))
    assert_metrics_equal(data)


def test_exemplars_of_a_sampled_request_point_to_it() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    span = tracer.start_span("request")

    def record(one: Any, two: Any) -> None:
        one.create_histogram("duration").record(0.3, {"route": "/a"}, context=set_span_in_context(span))

    data = collected(record)
    assert_metrics_equal(data)
    (metric,) = from_sdk(data, 1).find("duration")
    (exemplar,) = metric.points[0].exemplars
    assert exemplar.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert exemplar.span_id == f"{span.get_span_context().span_id:016x}"
    assert exemplar.value == 0.3


def test_nothing_measured_is_an_empty_snapshot() -> None:
    assert from_sdk(None, 5).scopes == ()
    assert from_sdk(MetricsData([]), 5).time_ns == 5
    assert (
        decoded(metrics_request(from_sdk(None, 5)), ExportMetricsServiceRequest).resource_metrics[0].scope_metrics == []
    )


def test_finding_a_metric_of_several_scopes() -> None:
    def record(one: Any, two: Any) -> None:
        one.create_counter("same").add(1)
        two.create_counter("same").add(2)

    found = from_sdk(collected(record), 1).find("same")
    assert [metric.points[0].value for metric in found] == [1, 2]


def test_numbers_of_other_kinds_are_what_they_are() -> None:
    numpy = pytest.importorskip("numpy")

    def record(one: Any, two: Any) -> None:
        one.create_gauge("a").set(numpy.float64(1.5))
        one.create_gauge("b").set(numpy.float32(0.5))
        one.create_gauge("c").set(numpy.int64(7))
        one.create_gauge("d").set(True)
        one.create_histogram("e").record(numpy.float64(2.5))
        one.create_counter("f").add(numpy.int32(3))

    taken = from_sdk(collected(record), 1)
    values = {metric.name: metric.points[0] for metric in taken.metrics()}
    plain = {name: point.value for name, point in values.items() if isinstance(point, NumberPoint)}
    assert plain == {"a": 1.5, "b": 0.5, "c": 7, "d": 1, "f": 3}
    assert {type(value) for value in plain.values()} == {int, float}
    message = decoded(metrics_request(taken), ExportMetricsServiceRequest)
    assert message.resource_metrics[0].scope_metrics[0].metrics[2].gauge.data_points[0].as_int == 7
    from apivitals.export.prometheus import PrometheusRenderer

    assert {"a 1.5", "c 7", "d 1", "e_sum 2.5", "f_total 3"} <= set(PrometheusRenderer().render(taken).split("\n"))


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
    spans = list(exporter.get_finished_spans())
    provider.shutdown()
    assert [span.name for span in spans] == ["child", "parent", "alone"]
    assert_spans_equal(spans)
    request = traces_request(spans)
    child, served = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert served["parentSpanId"] == "0000000000000002"
    assert served["flags"] == 0x300
    assert served["traceState"] == "vendor=x-y"
    assert served["droppedAttributesCount"] == 2
    assert (served["droppedEventsCount"], served["droppedLinksCount"]) == (2, 1)
    assert child["parentSpanId"] == served["spanId"]
    assert child["flags"] == 0x100


def test_an_odd_span_does_not_stop_the_batch() -> None:
    odd = ReadableSpan("odd", context=None, attributes={"k": object()})
    usual = ReadableSpan("usual", SpanContext(1, 2, False))
    encoded = traces_request([odd, usual])["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [span["name"] for span in encoded] == ["odd", "usual"]
    assert "traceId" not in encoded[0]
    json.dumps(encoded, allow_nan=False)
