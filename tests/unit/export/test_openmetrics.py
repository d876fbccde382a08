"""OpenMetrics 1.0: a strict checker of its grammar and its rules for everything rendered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from apivitals.export.naming import border
from apivitals.export.prometheus import PrometheusRenderer
from apivitals.export.snapshot import (
    Attributes,
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    NumberPoint,
    Point,
    Scope,
    Snapshot,
)

# --- a strict checker, by the ABNF and the chapters "Text format" and "Metric types" of the specification

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
NUMBER = r"NaN|[+-]Inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?"
ESCAPED = r"(?:[^\"\\\n]|\\[\\\"n])*"
LABELS = rf"(?:[a-zA-Z_][a-zA-Z0-9_]*=\"{ESCAPED}\"(?:,[a-zA-Z_][a-zA-Z0-9_]*=\"{ESCAPED}\")*)?"
SAMPLE = re.compile(
    rf"(?P<name>{NAME})(?:\{{(?P<labels>{LABELS})\}})? (?P<value>{NUMBER})"
    rf"(?: # \{{(?P<about>{LABELS})\}} (?P<exemplar>{NUMBER})(?: (?P<time>[0-9]+\.[0-9]+))?)?"
)
LABEL = re.compile(rf"([a-zA-Z_][a-zA-Z0-9_]*)=\"({ESCAPED})\"")
DESCRIPTOR = re.compile(rf"# (?P<what>TYPE|UNIT|HELP) (?P<name>{NAME}) (?P<text>.*)", re.DOTALL)
SUFFIXES: dict[str, tuple[str, ...]] = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "info": ("_info",),
    "unknown": ("",),
}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Marked:
    labels: dict[str, str]
    value: float
    seconds: float | None


@dataclass
class Family:
    kind: str = "unknown"
    unit: str = ""
    help: str = ""
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    exemplars: dict[tuple[str, Labels], Marked] = field(default_factory=dict)


def unescape(text: str) -> str:
    return re.sub(r'\\[\\n"]', lambda match: {"\\\\": "\\", "\\n": "\n", '\\"': '"'}[match.group()], text)


def labels_of(text: str) -> Labels:
    pairs = tuple((name, unescape(value)) for name, value in LABEL.findall(text))
    assert len({name for name, _ in pairs}) == len(pairs), f"a label twice: {text}"
    return pairs


def check(text: str) -> dict[str, Family]:
    """Families by name; anything that the specification forbids is an error."""
    assert text.endswith("# EOF\n")
    text.encode()
    families: dict[str, Family] = {}
    said: set[str] = set()
    current = ""
    for line in text.split("\n")[:-2]:
        described = DESCRIPTOR.fullmatch(line)
        if described is not None:
            what, name, about = described["what"], described["name"], described["text"]
            if name != current:
                assert name not in families, f"{name} is not in one piece"
                families[name], current = Family(), name
                said = set()
            family = families[name]
            assert what not in said, f"{what} of {name} twice"
            assert not family.samples, f"{what} after samples"
            said.add(what)
            if what == "TYPE":
                assert about in SUFFIXES
                family.kind = about
            elif what == "UNIT":
                assert re.fullmatch("[a-zA-Z0-9_:]+", about)
                assert name.endswith(f"_{about}")
                family.unit = about
            else:
                assert re.fullmatch(ESCAPED, about)
                family.help = unescape(about)
            continue
        matched = SAMPLE.fullmatch(line)
        assert matched is not None, line
        family = families[current]
        assert matched["name"].startswith(current)
        assert matched["name"].removeprefix(current) in SUFFIXES[family.kind], line
        key = (matched["name"], labels_of(matched["labels"] or ""))
        assert key not in family.samples, f"a series twice: {line}"
        family.samples[key] = float(matched["value"])
        if matched["exemplar"] is not None:
            assert key[0].endswith(("_bucket", "_total")), line
            assert family.kind in ("counter", "histogram")
            about = labels_of(matched["about"])
            assert sum(len(name) + len(value) for name, value in about) <= 128
            seconds = float(matched["time"]) if matched["time"] else None
            family.exemplars[key] = Marked(dict(about), float(matched["exemplar"]), seconds)
    check_names(families)
    for name, family in families.items():
        if family.kind == "histogram":
            check_histogram(name, family)
        elif family.kind == "counter":
            assert all(value >= 0 for value in family.samples.values())
        elif family.kind == "info":
            assert set(family.samples.values()) == {1}
    return families


def check_names(families: dict[str, Family]) -> None:
    """No name of a family, or of a series that it could have, is another's."""
    claimed = [name + suffix for name, family in families.items() for suffix in {"", *SUFFIXES[family.kind]}]
    assert len(claimed) == len(set(claimed))


def check_histogram(name: str, family: Family) -> None:
    series: dict[Labels, list[tuple[float, float]]] = {}
    order: list[Labels] = []
    for (sample, labels), value in family.samples.items():
        own = labels[:-1] if sample == f"{name}_bucket" else labels
        if not order or order[-1] != own:
            order.append(own)
        if sample == f"{name}_bucket":
            bound = labels[-1]
            assert bound[0] == "le"
            assert bound[1] == canonical(float(bound[1]))
            series.setdefault(own, []).append((float(bound[1]), value))
    assert len(order) == len(set(order)), "the lines of a series are not together"
    for labels, buckets in series.items():
        assert all(a < b and low <= high for (a, low), (b, high) in pairwise(buckets))
        assert buckets[-1][0] == math.inf
        total, count = (family.samples.get((name + part, labels)) for part in ("_sum", "_count"))
        assert (total is None) == (count is None)
        assert count is None or count == buckets[-1][1]
        assert total is None or (total >= 0 and buckets[0][0] >= 0)
        lower = [None, *(bound for bound, _ in buckets)]
        for below, (bound, _) in zip(lower, buckets, strict=False):
            marked = family.exemplars.get((f"{name}_bucket", (*labels, ("le", canonical(bound)))))
            assert marked is None or ((below is None or below < marked.value) and marked.value <= bound)


def canonical(value: float) -> str:
    """Go's `%g` of the shortest digits, by way of their decimal places."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    sign, digits, last = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(last, int)
    exponent = len(digits) - 1 + last if value else 0
    figures = "".join(map(str, digits))
    if not -4 <= exponent < 6:
        shown = f"{figures[0]}.{figures[1:]}".rstrip(".") + f"e{exponent:+03d}"
    elif exponent < 0:
        shown = "0." + "0" * (-exponent - 1) + figures
    else:
        figures = figures.ljust(exponent + 2, "0")
        shown = f"{figures[: exponent + 1]}.{figures[exponent + 1 :]}"
    return f"{'-' if sign else ''}{shown}"


# --- building


def number(value: float, *exemplars: Exemplar, **attributes: Any) -> NumberPoint:
    return NumberPoint(tuple(sorted(attributes.items())), 0, 1, value, exemplars)


def histogram(
    counts: Sequence[int],
    *exemplars: Exemplar,
    bounds: Sequence[float] = (0.1, 1.0),
    total: float = 2.5,
    **attributes: Any,
) -> HistogramPoint:
    pairs = tuple(sorted(attributes.items()))
    return HistogramPoint(pairs, 0, 1, sum(counts), total, tuple(bounds), tuple(counts), exemplars=exemplars)


def metric(name: str, kind: str, *points: Point, unit: str = "", description: str = "") -> Metric:
    return Metric(name, unit, description, kind, points)


def snapshot(*metrics: Metric, resource: Attributes = ()) -> Snapshot:
    return Snapshot(1, resource, (Scope("test", "", "", metrics),))


def render(*metrics: Metric, **options: Any) -> dict[str, Family]:
    return check(PrometheusRenderer().render(snapshot(*metrics, **options), openmetrics=True))


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def exemplar(value: float, *attributes: tuple[str, Any], seconds: float = 1.5, trace: str = TRACE) -> Exemplar:
    return Exemplar(int(seconds * 1e9), value, trace, SPAN if trace else "", attributes)


# --- text


def test_the_whole_text() -> None:
    taken = snapshot(
        metric("a", "counter", number(3, k="v"), unit="s", description='How "long"\nit \\ took.'),
        metric("b", "gauge", number(-1.5)),
        metric("c", "updowncounter", number(2), unit="By"),
        metric("d", "histogram", histogram([1, 2, 3], exemplar(0.05)), unit="s"),
        metric("thread.count", "updowncounter", number(4)),
        resource=(("service.name", "shop"),),
    )
    assert PrometheusRenderer().render(taken, openmetrics=True) == (
        "# TYPE target info\n# HELP target Attributes of the service that emits these metrics.\n"
        'target_info{service_name="shop"} 1\n'
        '# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds How \\"long\\"\\nit \\\\ took.\n'
        'a_seconds_total{k="v"} 3\n'
        "# TYPE b gauge\n# HELP b b\nb -1.5\n"
        "# TYPE c_bytes gauge\n# UNIT c_bytes bytes\n# HELP c_bytes c\nc_bytes 2\n"
        "# TYPE d_seconds histogram\n# UNIT d_seconds seconds\n# HELP d_seconds d\n"
        f'd_seconds_bucket{{le="0.1"}} 1 # {{trace_id="{TRACE}",span_id="{SPAN}"}} 0.05 1.500\n'
        'd_seconds_bucket{le="1.0"} 3\nd_seconds_bucket{le="+Inf"} 6\nd_seconds_sum 2.5\nd_seconds_count 6\n'
        "# TYPE thread_count unknown\n# HELP thread_count thread.count\nthread_count 4\n"
        "# EOF\n"
    )


def test_nothing_measured_is_only_an_end() -> None:
    assert PrometheusRenderer().render(Snapshot(1, (), ()), openmetrics=True) == "# EOF\n"
    assert PrometheusRenderer().render(snapshot(metric("a", "counter")), openmetrics=True) == "# EOF\n"


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("a", "s", "histogram", "seconds"),
        ("a", "s", "counter", "seconds"),
        ("a.seconds", "s", "gauge", "seconds"),
        ("a", "By/s", "gauge", "bytes_per_second"),
        ("a", "widgets", "gauge", "widgets"),
        ("a", "1", "gauge", "ratio"),
        ("a", "1", "counter", ""),
        ("a", "{request}", "counter", ""),
        ("a", "{request}/s", "gauge", ""),
        ("a", "", "gauge", ""),
        # Where the name does not end with the unit, and where there is nothing but the unit.
        ("memory.bytes.used", "By", "gauge", ""),
        ("seconds", "s", "gauge", ""),
    ],
)
def test_units(name: str, unit: str, kind: str, expected: str) -> None:
    point = histogram([1, 0, 0]) if kind == "histogram" else number(1)
    (family,) = render(metric(name, kind, point, unit=unit)).values()
    assert family.unit == expected


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (0, "0.0"),
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1, "1.0"),
        (0.005, "0.005"),
        (10.0, "10.0"),
        (100000.0, "100000.0"),
        (1e6, "1e+06"),
        (1234567.5, "1.2345675e+06"),
        (-1e7, "-1e+07"),
        (1e10, "1e+10"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1e-10, "1e-10"),
        (1e16, "1e+16"),
        (1.5e300, "1.5e+300"),
        (math.inf, "+Inf"),
    ],
)
def test_borders_are_canonical_in_both_formats(bound: float, text: str) -> None:
    # The first of them are the specification's own examples.
    assert border(bound) == canonical(bound) == text
    if bound > 0 and bound != math.inf:
        for openmetrics in (False, True):
            taken = snapshot(metric("a", "histogram", histogram([1, 1], bounds=[bound])))
            assert f'a_bucket{{le="{text}"}} 1\n' in PrometheusRenderer().render(taken, openmetrics=openmetrics)


@given(st.floats(allow_nan=False))
def test_any_border_is_canonical(bound: float) -> None:
    assert border(bound) == canonical(bound)
    assert float(border(bound)) == bound


def test_help_and_labels_are_escaped() -> None:
    said = 'a "quoted" \\ text\nof two lines \\n, ünïcödé 🚀'
    (family,) = render(metric("a", "gauge", number(1, k=said), description=said)).values()
    assert family.help == said
    assert list(family.samples) == [("a", (("k", said),))]


# --- names that could be another's


def test_a_gauge_and_a_counter_of_one_name_are_both_there() -> None:
    for pair in (("counter", "gauge"), ("gauge", "counter")):
        families = render(*(metric("a", kind, number(1)) for kind in pair))
        assert {name: family.kind for name, family in families.items()} == {"a": "gauge", "a_total": "unknown"}


def test_a_histogram_and_a_counter_of_one_name_are_both_there() -> None:
    families = render(metric("a", "counter", number(1)), metric("a", "histogram", histogram([1, 0, 0])))
    assert {name: family.kind for name, family in families.items()} == {"a": "histogram", "a_total": "unknown"}


@pytest.mark.parametrize("name", ["a.created", "a.count", "a.bucket"])
def test_a_gauge_that_is_called_like_part_of_a_histogram_is_left_out(name: str) -> None:
    families = render(metric(name, "gauge", number(1)), metric("a", "histogram", histogram([1, 0, 0])))
    assert families.keys() == {"a"}


def test_what_a_counter_was_created_at_is_no_gauge_of_that_name() -> None:
    families = render(metric("a", "counter", number(1)), metric("a.created", "gauge", number(2)))
    assert {name: family.kind for name, family in families.items()} == {"a_total": "unknown", "a_created": "gauge"}


def test_the_service_s_own_series_is_nobody_s() -> None:
    resource = (("service.name", "shop"),)
    families = render(
        metric("target", "counter", number(7)), metric("target.info", "gauge", number(8)), resource=resource
    )
    assert {name: family.kind for name, family in families.items()} == {"target": "info", "target_total": "unknown"}
    classic = PrometheusRenderer().render(snapshot(metric("target.info", "gauge", number(8)), resource=resource))
    assert classic.count("# TYPE target_info ") == 1
    assert "8" not in classic


def test_a_counter_that_is_called_total_is_unknown() -> None:
    assert {name: family.kind for name, family in render(metric("total", "counter", number(1))).items()} == {
        "total": "unknown"
    }


# --- values that a type cannot have


@pytest.mark.parametrize("value", [-1, math.nan, -math.inf])
def test_a_counter_that_is_none_is_left_out(value: float) -> None:
    (family,) = render(metric("a", "counter", number(value, k="bad"), number(2, k="good"))).values()
    assert list(family.samples.values()) == [2]


@pytest.mark.parametrize(("total", "bounds"), [(-1.0, (0.1, 1.0)), (math.nan, (0.1, 1.0)), (5.0, (-1.0, 1.0))])
def test_a_sum_that_could_fall_is_left_out_with_the_count(total: float, bounds: tuple[float, ...]) -> None:
    families = render(metric("a", "histogram", histogram([1, 2, 3], total=total, bounds=bounds)))
    assert [name for name, _ in families["a"].samples] == ["a_bucket"] * 3
    classic = PrometheusRenderer().render(
        snapshot(metric("a", "histogram", histogram([1, 2, 3], total=total, bounds=bounds)))
    )
    assert "a_sum " in classic
    assert "a_count 6\n" in classic


# --- exemplars


def marks(family: Family) -> dict[str, float]:
    return {labels[-1][1]: marked.value for (_, labels), marked in family.exemplars.items()}


def test_an_exemplar_stands_at_its_bucket() -> None:
    point = histogram([3, 1, 1], exemplar(0.1), exemplar(0.100001), exemplar(7.0))
    (family,) = render(metric("a", "histogram", point)).values()
    assert marks(family) == {"0.1": 0.1, "1.0": 0.100001, "+Inf": 7.0}
    assert {tuple(marked.labels.items()) for marked in family.exemplars.values()} == {
        (("trace_id", TRACE), ("span_id", SPAN))
    }


def test_the_newest_exemplar_of_a_bucket_is_shown() -> None:
    newest = exemplar(0.03, seconds=1760000000.123)
    point = histogram([3, 0, 0], exemplar(0.01, seconds=2), newest, exemplar(0.02, seconds=3))
    (family,) = render(metric("a", "histogram", point)).values()
    assert marks(family) == {"0.1": 0.03}
    assert [marked.seconds for marked in family.exemplars.values()] == [1760000000.123]


def test_an_exemplar_that_is_no_number_is_left_out() -> None:
    (family,) = render(metric("a", "histogram", histogram([1, 0, 0], exemplar(math.nan)))).values()
    assert family.exemplars == {}


def test_a_counter_shows_its_newest_exemplar() -> None:
    point = number(5, exemplar(1, seconds=5), exemplar(2, seconds=6), exemplar(3, seconds=4))
    (family,) = render(metric("a", "counter", point)).values()
    assert [marked.value for marked in family.exemplars.values()] == [2]


def test_no_other_type_has_exemplars() -> None:
    for name, kind in (("a", "gauge"), ("a", "updowncounter"), ("a.count", "gauge")):
        (family,) = render(metric(name, kind, number(5, exemplar(1)))).values()
        assert family.exemplars == {}
    # Nor has a counter that cannot be shown as one.
    families = render(metric("a", "counter", number(5, exemplar(1))), metric("a", "gauge", number(1)))
    assert families["a_total"].exemplars == {}


def test_the_classic_text_has_no_exemplars() -> None:
    taken = snapshot(metric("a", "histogram", histogram([1, 0, 0], exemplar(0.05))))
    assert "trace_id" not in PrometheusRenderer().render(taken)


def test_an_exemplar_keeps_its_attributes_where_they_fit() -> None:
    few = exemplar(0.05, ("user.id", 'a "b"'), ("trace_id", "spoofed"))
    (family,) = render(metric("a", "histogram", histogram([1, 0, 0], few))).values()
    (marked,) = family.exemplars.values()
    assert marked.labels == {"user_id": 'a "b"', "trace_id": TRACE, "span_id": SPAN}


@pytest.mark.parametrize(("length", "kept"), [(64, True), (65, False)])
def test_the_limit_counts_characters(length: int, kept: bool) -> None:
    # The ids take 8 + 32 + 7 + 16 of the 128, the name takes one; a quote is one character, though it is escaped.
    long = exemplar(0.05, ("k", '"' + "ü" * (length - 1)))
    (family,) = render(metric("a", "histogram", histogram([1, 0, 0], long))).values()
    (marked,) = family.exemplars.values()
    assert ("k" in marked.labels) is kept
    assert marked.labels["trace_id"] == TRACE


def test_an_exemplar_without_a_trace() -> None:
    (family,) = render(metric("a", "histogram", histogram([1, 0, 0], exemplar(0.05, trace="")))).values()
    assert [marked.labels for marked in family.exemplars.values()] == [{}]


def test_exponential_histograms_have_exemplars_too() -> None:
    point = ExponentialPoint((), 0, 1, 3, 9.0, 0, 0, 1, (1, 2), 0, (), exemplars=(exemplar(3.0), exemplar(8.0)))
    (family,) = render(metric("a", "exponential", point)).values()
    assert marks(family) == {"4.0": 3.0, "8.0": 8.0}


# --- both formats


def series(text: str) -> list[str]:
    return [line.partition(" # ")[0] for line in text.split("\n") if not line.startswith("#")]


KEYS = st.sampled_from(["a", "a.b", "a_b", "http.route", "le", "otel_scope_name", "1", "é", "", "trace_id"])
ATTRIBUTES = st.dictionaries(KEYS, st.text(max_size=6), max_size=3).map(lambda each: tuple(sorted(each.items())))
EXEMPLARS = st.lists(
    st.builds(
        Exemplar,
        st.integers(0, 2**62),
        st.floats(),
        st.sampled_from([TRACE, ""]),
        st.just(SPAN),
        st.dictionaries(KEYS, st.text(max_size=40), max_size=3).map(lambda each: tuple(each.items())),
    ),
    max_size=3,
).map(tuple)
NUMBERS = st.builds(NumberPoint, ATTRIBUTES, st.just(0), st.just(1), st.floats() | st.integers(-9, 2**62), EXEMPLARS)


@st.composite
def histograms(draw: Any) -> HistogramPoint:
    bounds = tuple(sorted(set(draw(st.lists(st.floats(-1e9, 1e9), max_size=4)))))
    counts = tuple(draw(st.lists(st.integers(0, 2**40), min_size=len(bounds) + 1, max_size=len(bounds) + 1)))
    total = draw(st.floats())
    return HistogramPoint(draw(ATTRIBUTES), 0, 1, sum(counts), total, bounds, counts, exemplars=draw(EXEMPLARS))


@st.composite
def metrics(draw: Any) -> Metric:
    kind = draw(st.sampled_from(["counter", "updowncounter", "gauge", "histogram"]))
    points = draw(st.lists(histograms() if kind == "histogram" else NUMBERS, max_size=3))
    # Names that meet one another, in every way that they can.
    parts = st.sampled_from(
        ["a", "b.c", "created", "count", "sum", "total", "bucket", "target", "info", "seconds", "ä"]
    )
    name = ".".join(draw(st.lists(parts, min_size=1, max_size=2)))
    unit = draw(st.sampled_from(["", "s", "1", "{x}", "By/s"]))
    return Metric(name, unit, draw(st.text(max_size=8)), kind, tuple(points))


SNAPSHOTS = st.builds(
    Snapshot,
    st.just(1),
    ATTRIBUTES,
    st.lists(
        st.builds(
            Scope, st.sampled_from(["one", "two"]), st.just(""), st.just(""), st.lists(metrics(), max_size=4).map(tuple)
        ),
        max_size=3,
    ).map(tuple),
)


@examples(max_examples=400, deadline=None)
@given(SNAPSHOTS)
def test_any_rendering_keeps_every_rule(taken: Snapshot) -> None:
    renderer = PrometheusRenderer()
    text = renderer.render(taken, openmetrics=True)
    check(text)
    # One renderer serves both formats, by turns.
    classic = renderer.render(taken)
    assert renderer.render(taken, openmetrics=True) == text
    assert PrometheusRenderer().render(taken) == classic
    # Whoever changes the format sees no other series.
    assert set(series(text)) <= set(series(classic))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 95, 96, 97, 1000])
@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_pieces_are_the_text(count: int, openmetrics: bool) -> None:
    points = [histogram([number, 1, 1], k=str(number)) for number in range(count)]
    taken = snapshot(metric("a", "histogram", *points), metric("b", "gauge", number(1)), resource=(("a", "b"),))
    renderer = PrometheusRenderer()
    text = renderer.render(taken, openmetrics=openmetrics)
    pieces = list(renderer.pieces(taken, openmetrics=openmetrics))
    assert "".join(pieces) == text
    assert len(pieces) == (count + 1) // 32 + 1
    assert [f'a_sum{{k="{number}"}} 2.5' in text for number in range(count)] == [True] * count
    assert text.count("\na_count") == count
    if openmetrics:
        check(text)


def test_other_threads_run_while_many_series_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("apivitals.export.prometheus.sleep", pauses.append)
    points = [replace(histogram([1, 0, 0]), attributes=(("k", str(number)),)) for number in range(2000)]
    PrometheusRenderer().render(snapshot(metric("a", "histogram", *points)), openmetrics=True)
    assert len(pauses) >= 2000 // 100
    assert all(0 < pause < 1e-3 for pause in pauses)
