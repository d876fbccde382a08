"""The exposition text: names by the compatibility specification, and a strict parser for everything rendered."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from apivitals.export.prometheus import PrometheusRenderer, metric_name
from apivitals.export.reader import FanOutReader
from apivitals.export.snapshot import (
    Attributes,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    NumberPoint,
    Point,
    Scope,
    Snapshot,
)

# --- a strict parser of the format


@dataclass
class Family:
    kind: str
    help: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?:\{(?P<labels>(?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\",?)*)\})?"
    r" (?P<value>NaN|[+-]Inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?)"
)
LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)=\"((?:[^\"\\\n]|\\[\\\"n])*)\"")
ESCAPED = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",), "untyped": ("",)}


def unescape(text: str) -> str:
    return re.sub(r'\\[\\n"]', lambda match: ESCAPED[match.group()], text)


def parse(text: str) -> dict[str, Family]:
    """Families by name; anything that is not in the grammar, or said twice, is an error."""
    families: dict[str, Family] = {}
    current = ""
    assert not text or text.endswith("\n")
    lines = iter(text.split("\n")[:-1])
    for line in lines:
        if line.startswith("# HELP "):
            _, _, current, about = line.split(" ", 3)
            kind_line = next(lines)
            assert kind_line.startswith(f"# TYPE {current} ")
            assert current not in families, f"{current} is not in one piece"
            assert re.fullmatch(r"(?:[^\\]|\\[\\n])*", about)
            families[current] = Family(kind_line.rpartition(" ")[2], unescape(about))
            continue
        matched = SAMPLE.fullmatch(line)
        assert matched is not None, line
        family = families[current]
        assert matched["name"].startswith(current)
        assert matched["name"].removeprefix(current) in PARTS[family.kind], line
        labels = LABEL.findall(matched["labels"] or "")
        assert len({name for name, _ in labels}) == len(labels), f"a label twice: {line}"
        key = (matched["name"], tuple((name, unescape(value)) for name, value in labels))
        assert key not in family.samples, f"a series twice: {line}"
        family.samples[key] = float(matched["value"])
    for name, family in families.items():
        if family.kind == "histogram":
            check_histogram(name, family)
    return families


def check_histogram(name: str, family: Family) -> None:
    """Buckets of each series run up, do not fall, and end in the count."""
    series: dict[Any, list[tuple[float, float]]] = {}
    for (sample, labels), value in family.samples.items():
        if sample == f"{name}_bucket":
            assert labels[-1][0] == "le"
            series.setdefault(labels[:-1], []).append((float(labels[-1][1]), value))
    counted = {labels for sample, labels in family.samples if sample == f"{name}_count"}
    assert counted == {labels for sample, labels in family.samples if sample == f"{name}_sum"} == series.keys()
    for labels, buckets in series.items():
        assert all(a < b and low <= high for (a, low), (b, high) in pairwise(buckets))
        assert buckets[-1] == (math.inf, family.samples[f"{name}_count", labels])


# --- building


def number(value: float, **attributes: Any) -> NumberPoint:
    return NumberPoint(tuple(sorted(attributes.items())), 0, 1, value)


def histogram(counts: Sequence[int], bounds: Sequence[float] = (0.1, 1.0), **attributes: Any) -> HistogramPoint:
    return HistogramPoint(tuple(sorted(attributes.items())), 0, 1, sum(counts), 2.5, tuple(bounds), tuple(counts))


def metric(name: str, kind: str, *points: Point, unit: str = "", description: str = "") -> Metric:
    return Metric(name, unit, description, kind, points)


def snapshot(*metrics: Metric, scope: str = "test", version: str = "", resource: Attributes = ()) -> Snapshot:
    return Snapshot(1, resource, (Scope(scope, version, "", metrics),))


def render(*metrics: Metric, **options: Any) -> dict[str, Family]:
    return parse(PrometheusRenderer().render(snapshot(*metrics, **options)))


def samples(families: dict[str, Family]) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    for family in families.values():
        for (name, labels), value in family.samples.items():
            yield name, labels, value


# --- names


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("http.server.request.duration", "s", "histogram", "http_server_request_duration_seconds"),
        ("http.server.active_requests", "{request}", "updowncounter", "http_server_active_requests"),
        ("http.server.request.body.size", "By", "histogram", "http_server_request_body_size_bytes"),
        ("process.cpu.time", "s", "counter", "process_cpu_time_seconds_total"),
        ("system.cpu.utilization", "1", "gauge", "system_cpu_utilization_ratio"),
        ("a.ratio", "1", "gauge", "a_ratio"),
        ("a.ratio.of.b", "1", "gauge", "a_of_b_ratio"),
        ("a", "1", "counter", "a_total"),
        ("a", "1", "updowncounter", "a"),
        ("a", "1", "histogram", "a"),
        ("a", "", "gauge", "a"),
        ("a", "", "counter", "a_total"),
        # `_total` once, whatever the name says already.
        ("a.total", "", "counter", "a_total"),
        ("a_total", "s", "counter", "a_seconds_total"),
        ("total.requests", "", "counter", "requests_total"),
        ("a.total", "", "gauge", "a_total"),
        # A unit that the name says is not said again.
        ("a.seconds", "s", "gauge", "a_seconds"),
        ("a.seconds.total", "s", "counter", "a_seconds_total"),
        ("memory.bytes.used", "By", "gauge", "memory_bytes_used"),
        ("seconds", "s", "gauge", "seconds"),
        ("a", "%", "gauge", "a_percent"),
        ("a", "ms", "gauge", "a_milliseconds"),
        ("a", "min", "gauge", "a_minutes"),
        ("a", "Cel", "gauge", "a_celsius"),
        ("a", "KiBy", "gauge", "a_kibibytes"),
        ("a", "MBy", "gauge", "a_megabytes"),
        # An annotation in braces is no unit.
        ("a", "{request}", "counter", "a_total"),
        ("a", "By{resident}", "gauge", "a_bytes"),
        ("a", "{request}/s", "gauge", "a_per_second"),
        ("a", "1/s", "gauge", "a_per_second"),
        ("a", "{a}/{b}", "gauge", "a"),
        ("a", "m/s", "gauge", "a_meters_per_second"),
        ("a", "By/s", "counter", "a_bytes_per_second_total"),
        ("a", "By/min", "gauge", "a_bytes_per_minute"),
        ("a", "widgets/{line}", "gauge", "a_widgets"),
        ("a.per.second", "{request}/s", "gauge", "a_per_second"),
        ("a", "widgets", "gauge", "a_widgets"),
        # What the units of UCUM may hold and a name may not.
        ("a", "10*3/s", "gauge", "a_10_3_per_second"),
        ("a", "[iU]/m3", "gauge", "a_iU_per_m3"),
        ("a", "µs", "gauge", "a_s"),
        ("a", "x/y/z", "gauge", "a_x_per_y_z"),
        ("a", " s ", "gauge", "a_seconds"),
        # Characters and runs of them.
        ("a.b-c/d", "", "gauge", "a_b_c_d"),
        ("a..__b", "", "gauge", "a_b"),
        ("__a__", "", "gauge", "a"),
        ("job:a:rate", "", "gauge", "job:a:rate"),
        ("1st.a", "", "gauge", "_1st_a"),
        ("größe", "", "gauge", "gr_e"),
        ("§", "", "gauge", "_"),
    ],
)
def test_names(name: str, unit: str, kind: str, expected: str) -> None:
    assert metric_name(name, unit, kind) == expected


@given(st.text(max_size=20), st.text(max_size=12), st.sampled_from(["counter", "updowncounter", "gauge", "histogram"]))
def test_any_name_and_unit_give_a_valid_name(name: str, unit: str, kind: str) -> None:
    made = metric_name(name, unit, kind)
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", made)
    assert "__" not in made
    assert made.endswith("total") or kind != "counter"


# --- text


def test_help_type_and_values() -> None:
    text = PrometheusRenderer().render(
        snapshot(
            metric("a", "counter", number(3, k="v"), unit="s", description="How long\nit \\ took."),
            metric("b", "gauge", number(-1.5)),
            metric("c", "updowncounter", number(2)),
            metric("d", "histogram", histogram([1, 2, 3])),
        )
    )
    assert text == (
        "# HELP a_seconds_total How long\\nit \\\\ took.\n"
        "# TYPE a_seconds_total counter\n"
        'a_seconds_total{k="v"} 3\n'
        "# HELP b b\n# TYPE b gauge\nb -1.5\n"
        "# HELP c c\n# TYPE c gauge\nc 2\n"
        "# HELP d d\n# TYPE d histogram\n"
        'd_bucket{le="0.1"} 1\nd_bucket{le="1.0"} 3\nd_bucket{le="+Inf"} 6\nd_sum 2.5\nd_count 6\n'
    )


def test_nothing_measured_is_nothing() -> None:
    assert PrometheusRenderer().render(Snapshot(1, (), ())) == ""
    assert PrometheusRenderer().render(snapshot(metric("a", "counter"))) == ""


def test_the_service_is_described_by_target_info() -> None:
    families = render(resource=(("service.name", 'a "shop"'), ("service.version", "1.0")))
    ((name, labels, value),) = samples(families)
    assert (name, value) == ("target_info", 1)
    assert dict(labels) == {"service_name": 'a "shop"', "service_version": "1.0"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ('a "quoted" \\ text\nof two lines', 'a "quoted" \\ text\nof two lines'),
        ("100 %s %(x)s %%", "100 %s %(x)s %%"),
        ("ünïcödé 🚀", "ünïcödé 🚀"),
        ("", ""),
        ("a\rb\u2028c", "a\rb\u2028c"),
        ("/caf\udce9", "/caf?"),
        (True, "true"),
        (False, "false"),
        (5, "5"),
        (1.5, "1.5"),
        (("a", 1, True), "[a,1,true]"),
    ],
)
@pytest.mark.parametrize("kind", ["gauge", "histogram"])
def test_label_values(value: Any, text: str, kind: str) -> None:
    point = number(1, k=value) if kind == "gauge" else histogram([1, 0, 0], k=value)
    families = render(metric("a", kind, point))
    assert {dict(labels)["k"] for _, labels, _ in samples(families)} == {text}
    PrometheusRenderer().render(snapshot(metric("a", kind, point))).encode()


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("http.route", "http_route"),
        ("a-b c", "a_b_c"),
        ("a..b", "a_b"),
        ("1st", "key_1st"),
        ("", "key_"),
        ("§", "_"),
        ("__name__", "_name_"),
    ],
)
def test_label_names(key: str, label: str) -> None:
    families = render(metric("a", "gauge", NumberPoint(((key, "v"),), 0, 1, 1)))
    assert [labels for _, labels, _ in samples(families)] == [((label, "v"),)]


def test_attributes_that_meet_in_one_label_are_joined() -> None:
    families = render(metric("a", "gauge", NumberPoint((("a.b", "x"), ("a/b", "y"), ("a_b", "z")), 0, 1, 1)))
    assert [labels for _, labels, _ in samples(families)] == [(("a_b", "x;y;z"),)]


def test_points_that_meet_in_one_series_are_said_once() -> None:
    first, second = NumberPoint((("a.b", "x"),), 0, 1, 1), NumberPoint((("a_b", "x"),), 0, 1, 2)
    assert [value for *_, value in samples(render(metric("a", "gauge", first, second)))] == [1]
    wide = histogram([1, 0, 0, 0], (1, 2, 3), a_b="x")
    narrow = replace(histogram([1, 0]), bounds=(1,), counts=(1, 0), attributes=(("a.b", "x"),))
    assert len(list(samples(render(metric("a", "histogram", wide, narrow))))) == 6


def test_an_attribute_called_le_is_no_bucket() -> None:
    families = render(metric("a", "histogram", histogram([1, 0, 0], le="mine")))
    assert all(("exported_le", "mine") in labels for _, labels, _ in samples(families))
    # Where there are no buckets it is a label like any other.
    assert [labels for _, labels, _ in samples(render(metric("a", "gauge", number(1, le="x"))))] == [(("le", "x"),)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 5e-324, 0.1, -0.0, 2**80, 0])
def test_numbers(value: float) -> None:
    ((*_, read),) = samples(render(metric("a", "gauge", number(value))))
    assert read == value or math.isnan(value)


@pytest.mark.parametrize("name", ["thread.count", "a.sum", "a.bucket"])
def test_a_gauge_that_ends_like_part_of_a_histogram_is_untyped(name: str) -> None:
    (family,) = render(metric(name, "updowncounter", number(4))).values()
    assert family.kind == "untyped"
    assert list(family.samples.values()) == [4]
    (family,) = render(metric(name, "counter", number(4))).values()
    assert family.kind == "counter"


# --- scopes


def two(first: tuple[str, str], second: tuple[str, str], *metrics: Metric) -> Snapshot:
    return Snapshot(1, (), tuple(Scope(name, version, "", metrics) for name, version in (first, second)))


def test_one_scope_is_no_label() -> None:
    assert [labels for _, labels, _ in samples(render(metric("a", "gauge", number(1))))] == [()]


@pytest.mark.parametrize("kind", ["counter", "histogram"])
def test_two_scopes_with_one_metric_are_told_apart(kind: str) -> None:
    point = number(1, k="v") if kind == "counter" else histogram([1, 0, 0], k="v")
    families = parse(PrometheusRenderer().render(two(("one", ""), ("other", ""), metric("a", kind, point))))
    assert {dict(labels)["otel_scope_name"] for _, labels, _ in samples(families)} == {"one", "other"}


def test_two_versions_of_a_scope_are_told_apart() -> None:
    families = parse(PrometheusRenderer().render(two(("one", ""), ("one", "2"), metric("a", "gauge", number(1)))))
    assert {labels for _, labels, _ in samples(families)} == {
        (("otel_scope_name", "one"),),
        (("otel_scope_name", "one"), ("otel_scope_version", "2")),
    }


def test_a_type_that_contradicts_the_first_is_left_out() -> None:
    families = render(
        metric("a", "counter", number(1, k="counter")),
        metric("a.total", "gauge", number(2, k="gauge")),
        metric("a.total", "counter", number(3, k="too")),
    )
    assert families["a_total"].kind == "counter"
    assert sorted(families["a_total"].samples.values()) == [1, 3]


def test_an_up_down_counter_and_a_gauge_are_one_type() -> None:
    families = render(metric("a", "updowncounter", number(1, k="1")), metric("a", "gauge", number(2, k="2")))
    assert sorted(families["a"].samples.values()) == [1, 2]


def test_deltas_are_left_out() -> None:
    families = render(replace(metric("a", "counter", number(1)), delta=True), metric("b", "counter", number(1)))
    assert families.keys() == {"b_total"}


# --- exponential histograms


def exponential(positive: Sequence[int] = (), negative: Sequence[int] = (), **fields: Any) -> ExponentialPoint:
    given = {"scale": 0, "zero_count": 0, "positive_offset": 0, "negative_offset": 0, **fields}
    count = sum(positive) + sum(negative) + given["zero_count"]
    return ExponentialPoint((), 0, 1, count, 1.0, positive=tuple(positive), negative=tuple(negative), **given)


def test_the_borders_of_exponential_buckets() -> None:
    families = render(metric("a", "exponential", exponential([1, 2], [3], zero_count=4, scale=0, positive_offset=1)))
    buckets = {
        dict(labels)["le"]: value for (name, labels), value in families["a"].samples.items() if name == "a_bucket"
    }
    # (2, 4] and (4, 8]; [-2, -1).
    assert buckets == {"-1.0": 3, "0.0": 7, "4.0": 8, "8.0": 10, "+Inf": 10}


@given(
    st.integers(-10, 20),
    st.integers(-3000, 3000),
    st.integers(-3000, 3000),
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.integers(0, 5), max_size=8),
    st.integers(0, 3),
)
def test_any_exponential_histogram_renders(
    scale: int, up: int, down: int, positive: list[int], negative: list[int], zero: int
) -> None:
    point = exponential(positive, negative, scale=scale, positive_offset=up, negative_offset=down, zero_count=zero)
    families = render(metric("a", "exponential", point))
    assert families["a"].samples["a_count", ()] == sum(positive) + sum(negative) + zero


@examples(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_the_sdk_s_exponential_histograms_hold_their_values(values: list[float]) -> None:
    reader = FanOutReader()
    view = View(instrument_name="a", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider(metric_readers=[reader], views=[view], shutdown_on_exit=False)
    recorder = provider.get_meter("test").create_histogram("a")
    positive = [abs(value) for value in values]
    for value in positive:
        recorder.record(value)
    families = parse(PrometheusRenderer().render(reader.snapshot()))
    provider.shutdown()
    for (name, labels), cumulative in families["a"].samples.items():
        if name == "a_bucket":
            bound = float(dict(labels)["le"])
            # Borders are powers that a double holds nearly.
            low = sum(value <= bound * (1 - 1e-9) for value in positive)
            high = sum(value <= bound * (1 + 1e-9) for value in positive)
            assert low <= cumulative <= high or bound >= 2.0**1023


# --- any snapshot

KEYS = st.sampled_from(["a", "a.b", "a_b", "http.route", "le", "otel_scope_name", "1", "é", ""])
ATTRIBUTE = st.text(max_size=6) | st.integers(-9, 9).map(str) | st.tuples(st.text(max_size=2)) | st.floats(0.5, 0.6)
ATTRIBUTES = st.dictionaries(KEYS, ATTRIBUTE, max_size=3).map(lambda each: tuple(sorted(each.items())))
FLOATS = st.floats() | st.integers(-(2**62), 2**62)
NUMBERS = st.builds(NumberPoint, ATTRIBUTES, st.just(0), st.just(1), FLOATS)


@st.composite
def histograms(draw: Any) -> HistogramPoint:
    bounds = tuple(sorted(set(draw(st.lists(st.floats(-1e9, 1e9), max_size=4)))))
    counts = tuple(draw(st.lists(st.integers(0, 2**40), min_size=len(bounds) + 1, max_size=len(bounds) + 1)))
    return HistogramPoint(draw(ATTRIBUTES), 0, 1, sum(counts), draw(st.floats()), bounds, counts)


@st.composite
def metrics(draw: Any) -> Metric:
    kind = draw(st.sampled_from(["counter", "updowncounter", "gauge", "histogram"]))
    points = draw(st.lists(histograms() if kind == "histogram" else NUMBERS, max_size=3))
    # Names of their own for each kind: what happens where they meet is tested above.
    name = f"{draw(st.sampled_from(['a', 'b.c', 'ä.ß', '9']))}.{kind}"
    return Metric(name, draw(st.sampled_from(["", "s", "1", "{x}"])), draw(st.text(max_size=8)), kind, tuple(points))


SNAPSHOTS = st.builds(
    Snapshot,
    st.just(1),
    ATTRIBUTES,
    st.lists(
        st.builds(
            Scope,
            st.sampled_from(["one", "two"]),
            st.sampled_from(["", "1"]),
            st.just(""),
            st.lists(metrics(), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)


@examples(max_examples=300, deadline=None)
@given(SNAPSHOTS)
def test_every_line_of_any_rendering_is_in_the_grammar(taken: Snapshot) -> None:
    renderer = PrometheusRenderer()
    text = renderer.render(taken)
    parse(text)
    # From the cached templates, and across a change of everything, it is the same.
    assert renderer.render(taken) == text
    renderer.render(Snapshot(1, (), ()))
    assert renderer.render(taken) == text


@examples(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=4), FLOATS), max_size=5, unique_by=lambda pair: pair[0]),
    st.lists(st.tuples(st.text(max_size=4), histograms()), max_size=3, unique_by=lambda pair: pair[0]),
)
def test_the_values_read_back(numbers: list[tuple[str, float]], shapes: list[tuple[str, HistogramPoint]]) -> None:
    families = render(
        metric("n", "gauge", *(number(value, k=key) for key, value in numbers)),
        metric("h", "histogram", *(replace(point, attributes=(("k", key),)) for key, point in shapes)),
    )
    read = {dict(labels)["k"]: value for name, labels, value in samples(families) if name == "n"}
    assert read == pytest.approx(dict(numbers), rel=1e-15, abs=0, nan_ok=True)
    for key, point in shapes:
        own = families["h"].samples
        label = ("k", key)
        assert own["h_count", (label,)] == point.count
        assert own["h_sum", (label,)] == pytest.approx(point.sum, nan_ok=True)
        buckets = {float(labels[-1][1]): value for (name, labels), value in own.items() if label in labels[:-1]}
        assert list(buckets) == [*point.bounds, math.inf]
        assert list(buckets.values()) == list(accumulate(point.counts))


# --- the cache


def test_series_that_are_gone_are_forgotten() -> None:
    renderer = PrometheusRenderer()
    for start in range(0, 1000, 100):
        points = [number(1, k=str(value)) for value in range(start, start + 100)]
        renderer.render(snapshot(metric("a", "counter", *points)))
        assert len(renderer._templates) == 100
    renderer.render(Snapshot(1, (), ()))
    assert renderer._templates == {}


def test_a_series_is_formatted_once() -> None:
    renderer = PrometheusRenderer()
    renderer.render(snapshot(metric("a", "counter", number(1, k="v"))))
    before = dict(renderer._templates)
    assert 'a_total{k="v"} 2\n' in renderer.render(snapshot(metric("a", "counter", number(2, k="v"))))
    assert all(renderer._templates[key] is text for key, text in before.items())


def test_new_bounds_are_new_buckets() -> None:
    renderer = PrometheusRenderer()
    renderer.render(snapshot(metric("a", "histogram", histogram([1, 0, 0]))))
    families = parse(renderer.render(snapshot(metric("a", "histogram", histogram([1, 2], (7.0,))))))
    assert families["a"].samples["a_bucket", (("le", "7.0"),)] == 1
    assert len(families["a"].samples) == 4
