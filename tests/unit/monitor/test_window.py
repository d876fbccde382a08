"""The live window: what is kept, what it costs, and what happened between two snapshots."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from apivitals.export.snapshot import HistogramPoint, Metric, NumberPoint, Point, Scope, Snapshot
from apivitals.monitor.window import Delta, LiveWindow, percentile

BOUNDS = (0.1, 0.3, 1.0)
SECOND = 1_000_000_000


class Source:
    """A process whose clock and whose metrics a test turns by hand."""

    def __init__(self) -> None:
        self.start = 1_000_000 * SECOND
        self.now = self.start
        self.values: dict[str, list[float]] = {}
        self.gauge = 0.0
        self.scopes = ("http",)

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def serve(self, *seconds: float, route: str = "/a") -> None:
        self.values.setdefault(route, []).extend(seconds)

    def restart(self) -> None:
        self.start = self.now
        self.values = {}

    def __call__(self) -> Snapshot:
        points = tuple(self._point(route, values) for route, values in self.values.items())
        gauge = NumberPoint((), 0, self.now, self.gauge)
        metrics = (Metric("duration", "s", "", "histogram", points), Metric("gauge", "", "", "gauge", (gauge,)))
        return Snapshot(self.now, (), tuple(Scope(name, "", "", metrics) for name in self.scopes))

    def _point(self, route: str, values: list[float]) -> HistogramPoint:
        places = np.searchsorted(BOUNDS, values, side="left")
        counts = tuple(int(count) for count in np.bincount(places, minlength=4))
        extremes = (min(values), max(values))
        return HistogramPoint(
            (("http.route", route),), self.start, self.now, len(values), sum(values), BOUNDS, counts, *extremes
        )


@pytest.fixture
def source() -> Source:
    return Source()


def only(points: list[HistogramPoint]) -> HistogramPoint:
    (point,) = points
    return point


# --- what is kept


def test_it_is_thinned_with_age(source: Source) -> None:
    window = LiveWindow(source)
    for _ in range(2 * 3600 // 5):
        window.sample()
        source.pass_(5)
    kept = [snapshot.time_ns / SECOND for snapshot in window.snapshots()]
    newest = kept[-1]
    ages = [newest - time for time in kept]
    assert ages == sorted(ages, reverse=True)
    assert max(ages) <= 3600
    # An hour back there is something, at most a step short of it.
    assert max(ages) >= 3600 - 60
    fine = [time for time in kept if newest - time <= 300]
    assert {b - a for a, b in pairwise(fine)} == {5.0}
    coarse = [time for time in kept if newest - time > 300]
    assert all(60 <= b - a <= 65 for a, b in pairwise(coarse))
    assert len(kept) <= 61 + 56


def test_a_process_that_slept_keeps_what_it_has(source: Source) -> None:
    window = LiveWindow(source)
    window.sample()
    source.pass_(3000)
    window.sample()
    assert len(window.snapshots()) == 2
    source.pass_(3000)
    window.sample()
    assert len(window.snapshots()) == 2


def test_what_did_not_change_is_shared(source: Source) -> None:
    window = LiveWindow(source)
    source.serve(0.2, route="/idle")
    source.serve(0.2, route="/busy")
    window.sample()
    source.pass_(5)
    source.serve(0.2, route="/busy")
    window.sample()

    def points(snapshot: Snapshot) -> dict[Any, Any]:
        return {point.attributes[0][1]: point for metric in snapshot.find("duration") for point in metric.points}

    before, after = map(points, window.snapshots())
    for field in ("attributes", "bounds", "counts"):
        assert getattr(before["/idle"], field) is getattr(after["/idle"], field)
    assert after["/busy"].count == 2
    # It is the value of now, though, also where it is the one of before.
    assert after["/idle"].time_ns == before["/idle"].time_ns + 5 * SECOND


def test_sharing_changes_no_value(source: Source) -> None:
    window = LiveWindow(source)
    taken = []
    for step in range(20):
        source.pass_(5)
        source.serve(0.05 * step, route=f"/{step % 3}")
        taken.append(source())
        assert window.sample() == taken[-1]
    assert window.snapshots() == taken


# --- what happened


def test_the_last_seconds(source: Source) -> None:
    window = LiveWindow(source)
    source.serve(0.05, 0.05, 0.05)
    window.sample()
    source.pass_(60)
    source.serve(0.2, 5.0)
    window.sample()
    source.pass_(60)
    source.serve(0.7)
    delta = window.since(60)
    point = only(delta.histograms("duration"))
    assert (point.count, point.counts, delta.seconds) == (1, (0, 0, 1, 0), 60)
    assert point.sum == pytest.approx(0.7)
    delta = window.since(120)
    point = only(delta.histograms("duration"))
    assert (point.count, point.counts, delta.seconds) == (3, (0, 1, 1, 1), 120)
    # Older than what is kept: since the counters began, which is honest about its length.
    delta = window.since(121)
    assert only(delta.histograms("duration")).count == 6
    assert delta.seconds == 120


def test_the_snapshot_that_is_at_least_as_old_is_the_beginning(source: Source) -> None:
    window = LiveWindow(source)
    for _ in range(10):
        source.serve(0.2)
        window.sample()
        source.pass_(5)
    delta = window.since(12)
    assert delta.seconds == 15
    assert only(delta.histograms("duration")).count == 2


def test_nothing_kept_is_since_the_start(source: Source) -> None:
    source.serve(0.2, 0.2)
    source.pass_(30)
    delta = LiveWindow(source).since(60)
    assert (delta.seconds, only(delta.histograms("duration")).count) == (30, 2)


def test_a_quiet_window_has_no_points(source: Source) -> None:
    window = LiveWindow(source)
    source.serve(0.2)
    window.sample()
    source.pass_(60)
    delta = window.since(60)
    assert delta.histograms("duration") == []
    assert delta.histograms("unknown") == []
    assert delta.values("duration") == []


def test_a_gauge_is_its_present_value(source: Source) -> None:
    window = LiveWindow(source)
    window.sample()
    source.pass_(60)
    source.gauge = 7
    assert [point.value for point in window.since(60).values("gauge")] == [7]


def test_counters_that_began_again_are_not_subtracted(source: Source) -> None:
    window = LiveWindow(source)
    source.serve(*[0.2] * 50)
    window.sample()
    source.pass_(60)
    source.restart()
    source.serve(0.2, 0.2)
    assert only(window.since(60).histograms("duration")).count == 2


def test_new_bounds_are_not_subtracted(source: Source) -> None:
    source.serve(0.2)
    before = source()
    source.pass_(1)
    after = source()

    def widened(point: Point) -> HistogramPoint:
        assert isinstance(point, HistogramPoint)
        return replace(point, bounds=(9.0,), counts=(1, 0))

    metrics = tuple(
        replace(metric, points=tuple(map(widened, metric.points))) if metric.name == "duration" else metric
        for metric in after.scopes[0].metrics
    )
    after = replace(after, scopes=(replace(after.scopes[0], metrics=metrics),))
    assert only(Delta(before, after).histograms("duration")).counts == (1, 0)


def test_two_scopes_are_subtracted_each_from_its_own(source: Source) -> None:
    source.scopes = ("one", "two")
    window = LiveWindow(source)
    source.serve(0.2)
    window.sample()
    source.pass_(60)
    source.serve(0.2, 0.2)
    assert [point.count for point in window.since(60).histograms("duration")] == [2, 2]


def test_the_largest_of_the_window_is_not_that_of_the_whole_life(source: Source) -> None:
    window = LiveWindow(source)
    source.serve(0.001, 30.0)
    window.sample()
    source.pass_(60)
    source.serve(0.15, 0.2)
    point = only(window.since(60).histograms("duration"))
    # All that is known: they lie in the bucket from 0.1 to 0.3.
    assert (point.min, point.max) == (0.1, 0.3)
    source.serve(60.0)
    assert only(window.since(60).histograms("duration")).max == 60.0
    source.serve(0.0005)
    assert only(window.since(60).histograms("duration")).min == 0.0005


@examples(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=20),
    st.lists(st.floats(0, 5), max_size=20),
)
def test_a_delta_is_what_was_served_in_between(before: list[float], between: list[float]) -> None:
    source = Source()
    source.serve(*before)
    earlier = source()
    source.pass_(10)
    source.serve(*between)
    found = Delta(earlier, source()).histograms("duration")
    alone = Source()
    alone.serve(*between)
    if not between:
        assert found == []
        return
    point, expected = only(found), only(Delta(None, alone()).histograms("duration"))
    assert (point.count, point.counts) == (expected.count, expected.counts)
    assert point.sum == pytest.approx(expected.sum, abs=1e-9)
    assert point.min is not None
    assert point.max is not None
    assert point.min <= min(between) <= max(between) <= point.max


# --- percentiles


def test_percentiles_inside_a_bucket_are_interpolated() -> None:
    assert percentile((1.0, 2.0), (0, 10, 0), 0.5) == 1.5
    assert percentile((1.0, 2.0), (10, 0, 0), 0.25) == 0.25
    assert percentile((1.0, 2.0), (5, 5, 0), 0.5) == 1.0
    assert percentile((1.0, 2.0), (5, 5, 0), 1.0) == 2.0


def test_nothing_has_no_percentile() -> None:
    assert percentile((1.0,), (0, 0), 0.5) == 0.0
    assert percentile((), (), 0.5) == 0.0


def test_the_last_bucket_ends_at_the_largest_value() -> None:
    assert percentile((1.0,), (0, 4), 0.5, largest=3.0) == 2.0
    assert percentile((1.0,), (0, 4), 0.5) == 1.0
    assert percentile((), (4,), 0.5, largest=3.0) == 1.5


def test_no_percentile_is_above_the_largest_value() -> None:
    # One request of a millisecond: its 99th percentile is not the five milliseconds of the bucket.
    assert percentile((0.005, 0.01), (1, 0, 0), 0.99, largest=0.001) <= 0.001


@examples(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_a_percentile_is_in_the_bucket_of_numpy_s(values: list[float], share: float) -> None:
    bounds = (0.1, 0.3, 0.5, 1.0, 2.0)
    counts = [int(count) for count in np.bincount(np.searchsorted(bounds, values, side="left"), minlength=6)]
    found = percentile(bounds, counts, share, largest=max(values))
    true = float(np.percentile(values, share * 100, method="inverted_cdf"))
    edges = [0.0, *bounds, max(max(values), bounds[-1])]
    place = int(np.searchsorted(bounds, true, side="left"))
    assert edges[place] <= found <= edges[place + 1] + 1e-12
    assert found <= max(values) or max(values) == 0


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_percentiles_do_not_fall(counts: list[int], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert percentile(BOUNDS, counts, low, 2.0) <= percentile(BOUNDS, counts, high, 2.0)
