"""Delta temporality from cumulative snapshots, held against the SDK's own deltas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from apivitals.export.delta import Baseline, downscaled
from apivitals.export.snapshot import (
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    NumberPoint,
    Point,
    Scope,
    Snapshot,
    from_sdk,
)

A, B = (("k", "a"),), (("k", "b"),)


def number(value: float, start: int = 1, time: int = 10, attributes: Any = A, **rest: Any) -> NumberPoint:
    return NumberPoint(attributes, start, time, value, **rest)


def taken(time: int, *points: Point, kind: str = "counter", name: str = "m", delta: bool = False) -> Snapshot:
    return Snapshot(time, (), (Scope("s", "", "", (Metric(name, "1", "", kind, points, delta),)),))


def only(snapshot: Snapshot) -> Any:
    (metric,) = snapshot.metrics()
    (point,) = metric.points
    return point


def test_the_first_snapshot_is_all_new() -> None:
    first = taken(10, number(5), number(7, attributes=B))
    said = Baseline().since(first)
    (metric,) = said.metrics()
    assert metric.delta
    assert metric.points == first.scopes[0].metrics[0].points


def test_a_counter_says_what_was_added_since() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5)))
    point = only(baseline.since(taken(20, number(8, time=20))))
    assert (point.value, point.start_ns, point.time_ns) == (3, 10, 20)


def test_what_did_not_change_is_not_said() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5), number(1, attributes=B)))
    assert baseline.since(taken(20, number(5, time=20), number(1, time=20, attributes=B))).scopes == ()
    assert only(baseline.since(taken(20, number(5), number(2, time=20, attributes=B)))).attributes == B


def test_what_did_not_arrive_is_in_the_next() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5)))
    assert only(baseline.since(taken(20, number(8, time=20)))).value == 3
    point = only(baseline.since(taken(30, number(9, time=30))))
    assert (point.value, point.start_ns) == (4, 10)


def test_a_point_that_is_new_counts_from_the_baseline_on() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5)))
    point = only(baseline.since(taken(20, number(5), number(2, time=20, attributes=B))))
    assert (point.value, point.start_ns) == (2, 10)


@pytest.mark.parametrize(
    "now",
    [number(3, start=15, time=20), number(9, start=15, time=20), number(3, time=20)],
    ids=["both", "start", "fall"],
)
def test_a_reset_counts_in_full(now: NumberPoint) -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5)))
    point = only(baseline.since(taken(20, now)))
    assert point.value == now.value
    assert point.start_ns == max(now.start_ns, 10)


@pytest.mark.parametrize("kind", ["gauge", "updowncounter"])
def test_gauges_and_up_down_counters_stay_what_they_are(kind: str) -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5), kind=kind))
    now = taken(20, number(5, time=20), kind=kind)
    assert baseline.since(now) == now


def test_what_is_a_delta_already_stays_one() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5), delta=True))
    now = taken(20, number(5, time=20), delta=True)
    assert baseline.since(now) == now


def test_points_of_another_scope_are_others() -> None:
    baseline = Baseline()
    baseline.advance(taken(10, number(5)))
    now = taken(20, number(6, time=20))
    other = replace(now, scopes=(replace(now.scopes[0], attributes=(("x", 1),)),))
    assert only(baseline.since(other)).value == 6


def histogram(counts: tuple[int, ...], total: float, time: int, **changes: Any) -> HistogramPoint:
    point = HistogramPoint(A, 1, time, sum(counts), total, (1.0, 2.0), counts, 0.5, 9.0)
    return replace(point, **changes)


def test_a_histogram_says_what_was_added_since() -> None:
    baseline = Baseline()
    old = Exemplar(9, 0.5, "00" * 16, "00" * 8)
    new = Exemplar(15, 2.5)
    baseline.advance(taken(10, histogram((1, 0, 2), 7.0, 10, exemplars=(old,)), kind="histogram"))
    point = only(baseline.since(taken(20, histogram((1, 3, 4), 17.0, 20, exemplars=(old, new)), kind="histogram")))
    assert (point.counts, point.count, point.sum, point.start_ns) == ((0, 3, 2), 5, 10.0, 10)
    # The extremes of all time are not those of the interval.
    assert (point.min, point.max) == (None, None)
    assert point.exemplars == (new,)


@pytest.mark.parametrize(
    "now",
    [
        histogram((0, 5, 5), 20.0, 20),
        histogram((1, 0, 0), 1.0, 20),
        histogram((5, 5, 5), 20.0, 20, bounds=(1.0, 3.0)),
        histogram((5, 5, 5), 20.0, 20, start_ns=15),
    ],
    ids=["bucket", "all", "bounds", "start"],
)
def test_a_histogram_that_was_reset_counts_in_full(now: HistogramPoint) -> None:
    baseline = Baseline()
    baseline.advance(taken(10, histogram((1, 0, 2), 7.0, 10), kind="histogram"))
    point = only(baseline.since(taken(20, now, kind="histogram")))
    assert (point.counts, point.count, point.min) == (now.counts, now.count, now.min)


# --- exponential histograms


@given(st.integers(-50, 50), st.lists(st.integers(0, 5), max_size=20), st.integers(0, 6))
def test_downscaling_puts_each_bucket_where_its_values_belong(offset: int, counts: list[int], shift: int) -> None:
    first, merged = downscaled(offset, counts, shift)
    assert sum(merged) == sum(counts)
    expected: dict[int, int] = {}
    for place, count in enumerate(counts, offset):
        # Bucket i covers (base^i, base^(i+1)]; with base squared, floor(i / 2) does.
        index = place // 2**shift
        expected[index] = expected.get(index, 0) + count
    assert {first + place: count for place, count in enumerate(merged)} == (expected or {})


def mirror(data: Any, time: int) -> Snapshot:
    snapshot = from_sdk(data, time)
    points = [
        replace(
            point,
            negative_offset=point.positive_offset,
            negative=point.positive,
            positive_offset=point.negative_offset,
            positive=point.negative,
        )
        for metric in snapshot.metrics()
        for point in metric.points
        if isinstance(point, ExponentialPoint)
    ]
    return taken(time, *points, kind="exponential") if points else snapshot


VALUES = st.lists(st.floats(1e-6, 1e9) | st.just(0.0), max_size=15)


def spread(offset: int, counts: tuple[int, ...]) -> dict[int, int]:
    return {place: count for place, count in enumerate(counts, offset) if count}


@examples(max_examples=60, deadline=None)
@given(st.just([]) | VALUES.map(lambda values: [1.0, *values]), VALUES, st.booleans())
def test_exponential_deltas_are_what_came_in_between(before: list[float], after: list[float], mirrored: bool) -> None:
    # The SDK fails to merge what follows a collection of nothing but zeros, so there is something else.
    # It records nothing that is negative; the buckets on that side are the same the other way round.
    turn = mirror if mirrored else from_sdk
    reader = InMemoryMetricReader()
    view = View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation(max_size=8))
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    recorded = provider.get_meter("t").create_histogram("h")
    baseline = Baseline()
    for value in before:
        recorded.record(value)
    first = turn(reader.get_metrics_data(), 1)
    baseline.advance(first)
    for value in after:
        recorded.record(value)
    now = turn(reader.get_metrics_data(), 2)
    provider.shutdown()
    said = [point for metric in baseline.since(now).metrics() for point in metric.points]
    if not after:
        assert said == []
        return
    (delta,), point = said, only(now)
    assert isinstance(delta, ExponentialPoint)
    assert delta.count == len(after)
    assert delta.sum == pytest.approx(sum(after), abs=1e-3)
    assert delta.zero_count == after.count(0.0)
    assert delta.scale == point.scale
    for sign in ("positive", "negative"):
        sum_of = spread(getattr(delta, f"{sign}_offset"), getattr(delta, sign))
        if before:
            old = only(first)
            for place, count in spread(
                *downscaled(getattr(old, f"{sign}_offset"), getattr(old, sign), old.scale - point.scale)
            ).items():
                sum_of[place] = sum_of.get(place, 0) + count
        assert sum_of == spread(getattr(point, f"{sign}_offset"), getattr(point, sign))


def test_an_exponential_histogram_that_was_reset_counts_in_full() -> None:
    def point(scale: int, positive: tuple[int, ...], offset: int = 0) -> ExponentialPoint:
        return ExponentialPoint(A, 1, 10, sum(positive), 1.0, scale, 0, offset, positive, 0, ())

    baseline = Baseline()
    baseline.advance(taken(10, point(3, (1, 2)), kind="exponential"))
    for now in (point(4, (5, 5)), point(3, (0, 9)), point(3, (1,)), point(3, (9, 9), offset=5)):
        assert only(baseline.since(taken(20, now, kind="exponential"))).count == now.count
    # Nothing in the first bucket is new, so the delta begins with the second.
    said = only(baseline.since(taken(20, point(3, (1, 3, 1)), kind="exponential")))
    assert (said.positive_offset, said.positive) == (1, (1, 1))


# --- against the SDK


STEPS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["counter", "histogram"]), st.sampled_from("abc"), st.integers(1, 9)), max_size=6
    ),
    min_size=1,
    max_size=5,
)
DELTA = dict.fromkeys((Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA)


@examples(max_examples=40, deadline=None)
@given(STEPS, st.sets(st.integers(0, 4)))
def test_deltas_are_the_sdk_s(steps: list[list[tuple[str, str, int]]], lost: set[int]) -> None:
    ours, theirs = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
    provider = MeterProvider([ours, theirs], shutdown_on_exit=False)
    meter = provider.get_meter("t")
    instruments = {
        "counter": meter.create_counter("counter").add,
        "histogram": meter.create_histogram("histogram").record,
    }
    baseline = Baseline()
    # What the SDK said since something of ours last arrived.
    pending: dict[Any, list[float]] = {}
    for place, step in enumerate(steps):
        for name, key, value in step:
            instruments[name](value, {"k": key})
        for metric in from_sdk(theirs.get_metrics_data(), 1).metrics():
            for point in metric.points:
                add(pending, metric.name, point)
        now = from_sdk(ours.get_metrics_data(), place)
        said: dict[Any, list[float]] = {}
        for metric in baseline.since(now).metrics():
            for point in metric.points:
                add(said, metric.name, point)
        assert said == pending
        if place not in lost:
            baseline.advance(now)
            pending = {}
    provider.shutdown()


def add(totals: dict[Any, list[float]], name: str, point: Any) -> None:
    row = [point.value] if isinstance(point, NumberPoint) else [point.count, point.sum, *point.counts]
    known = totals.setdefault((name, point.attributes), [0.0] * len(row))
    known[:] = [a + b for a, b in zip(known, row, strict=True)]


def test_pauses_come_every_64_points() -> None:
    pauses: list[int] = []
    points = [number(1, attributes=(("n", place),)) for place in range(200)]
    Baseline().since(taken(10, *points), lambda: pauses.append(1))
    assert len(pauses) == 3
