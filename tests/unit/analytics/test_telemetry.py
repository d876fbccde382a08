from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apivitals.analytics.buckets import ExponentialBuckets, common_bounds, count_below, explicit, merge, percentile
from apivitals.analytics.differencing import difference
from apivitals.analytics.grid import Grid, choose_step, covered, make_grid, spread, spread_histogram
from apivitals.analytics.telemetry import read_telemetry

EPOCH = 1_760_000_000.0


def nanos(second: float) -> str:
    return str(int((EPOCH + second) * 1e9))


def counter(second: float, value: int, *, start: float | None = 0, instance: str = "one", temporality: Any = 2) -> Any:
    point = {"timeUnixNano": nanos(second), "asInt": str(value)}
    if start is not None:
        point["startTimeUnixNano"] = nanos(start)
    data = {"dataPoints": [point], "aggregationTemporality": temporality, "isMonotonic": True}
    resource = {"attributes": [{"key": "service.instance.id", "value": {"stringValue": instance}}]}
    return {
        "resourceMetrics": [
            {"resource": resource, "scopeMetrics": [{"metrics": [{"name": "c", "unit": "{x}", "sum": data}]}]}
        ]
    }


def amounts(*requests: Any, start: float | None = None) -> list[list[float]]:
    telemetry = read_telemetry(requests, start=start)
    return [flow.amounts.tolist() for flow in telemetry.counters]


def test_a_process_that_started_in_the_window_counts_from_zero() -> None:
    assert amounts(counter(5, 3), counter(10, 7)) == [[3.0, 4.0]]


def test_the_first_total_of_an_old_process_is_a_baseline() -> None:
    assert amounts(counter(5, 300, start=-9e5), counter(10, 307, start=-9e5)) == [[7.0]]


def test_a_total_without_a_start_time_is_a_baseline() -> None:
    assert amounts(counter(5, 300, start=None), counter(10, 307, start=None)) == [[7.0]]


def test_a_fall_is_a_restart_from_zero() -> None:
    assert amounts(counter(5, 10), counter(10, 15), counter(15, 4), counter(20, 6)) == [[10.0, 5.0, 4.0, 2.0]]


def test_a_new_start_time_is_a_restart_even_when_the_total_is_higher() -> None:
    assert amounts(counter(5, 10), counter(10, 15), counter(15, 40, start=11)) == [[10.0, 5.0, 40.0]]


def test_points_out_of_order_and_doubled_are_put_in_order() -> None:
    assert amounts(counter(15, 9), counter(5, 3), counter(10, 7), counter(10, 7)) == [[3.0, 4.0, 2.0]]


@pytest.mark.parametrize("temporality", [1, "1", "AGGREGATION_TEMPORALITY_DELTA"])
def test_deltas_are_taken_as_they_are(temporality: Any) -> None:
    got = amounts(counter(5, 3, temporality=temporality), counter(10, 7, start=5, temporality=temporality))
    assert got == [[3.0, 7.0]]


def test_instances_are_differenced_apart() -> None:
    got = amounts(counter(5, 3), counter(5, 100, instance="two"), counter(10, 4), counter(10, 101, instance="two"))
    assert got == [[3.0, 1.0], [100.0, 1.0]]


def test_a_stream_that_appears_late_counts_from_the_export_before() -> None:
    """A status that was never seen before: its requests happened since the last export, not since the start."""
    other = counter(50, 1)
    other["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] = "late"
    telemetry = read_telemetry([*(counter(t, t) for t in range(5, 60, 5)), other])
    (late,) = [flow for flow in telemetry.counters if flow.metric == "late"]
    assert late.begins.tolist() == [EPOCH + 45]
    assert late.amounts.tolist() == [1.0]


def test_the_service_with_most_points_is_kept_and_the_others_named() -> None:
    def of(service: str, second: float) -> Any:
        request = counter(second, 1)
        request["resourceMetrics"][0]["resource"]["attributes"].append(
            {"key": "service.name", "value": {"stringValue": service}}
        )
        return request

    requests = [of("shop", 5), of("shop", 10), of("billing", 5)]
    telemetry = read_telemetry(requests)
    assert telemetry.service == "shop"
    assert "billing" in telemetry.notes[0]
    assert read_telemetry(requests, service="billing").service == "billing"


def histogram(second: float, **point: Any) -> Any:
    data = {"dataPoints": [{"timeUnixNano": nanos(second), "startTimeUnixNano": nanos(0), **point}]}
    return {
        "resourceMetrics": [
            {"scopeMetrics": [{"metrics": [{"name": "h", "histogram": {**data, "aggregationTemporality": 2}}]}]}
        ]
    }


def test_a_histogram_without_buckets_keeps_its_count_and_sum() -> None:
    telemetry = read_telemetry([histogram(5, count="4", sum=2.0), histogram(10, count="6", sum=5.0, bucketCounts=[])])
    (flow,) = telemetry.histograms
    assert flow.bounds == ()
    assert flow.buckets.tolist() == [[4.0], [2.0]]
    assert flow.sums.tolist() == [2.0, 3.0]


def test_zero_fields_may_be_missing() -> None:
    requests = [
        histogram(5, explicitBounds=[1.0]),
        histogram(10, count="2", sum=1.0, explicitBounds=[1.0], bucketCounts=["2", "0"]),
    ]
    (flow,) = read_telemetry(requests).histograms
    assert flow.buckets.sum() == 2


def test_a_sum_may_fall_without_a_restart() -> None:
    requests = [
        histogram(5, count="1", sum=5.0, explicitBounds=[1.0], bucketCounts=["0", "1"]),
        histogram(10, count="2", sum=1.0, explicitBounds=[1.0], bucketCounts=["1", "1"]),
    ]
    (flow,) = read_telemetry(requests).histograms
    assert flow.sums.tolist() == [5.0, -4.0]
    assert flow.buckets.sum(axis=1).tolist() == [1.0, 1.0]


def test_exponential_histograms_become_explicit_ones() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1, 2000)
    scale = 3
    index = np.ceil(np.log2(values) * 2**scale).astype(int) - 1
    offset = int(index.min())
    counts = np.bincount(index - offset)
    point = {
        "timeUnixNano": nanos(5),
        "startTimeUnixNano": nanos(0),
        "count": "2000",
        "sum": float(values.sum()),
        "scale": scale,
        "positive": {"offset": offset, "bucketCounts": list(map(str, counts))},
    }
    metric = {"name": "e", "exponentialHistogram": {"dataPoints": [point], "aggregationTemporality": 2}}
    (flow,) = read_telemetry([{"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}]).histograms
    assert flow.buckets.sum() == 2000
    got = float(percentile(flow.buckets[0], flow.bounds, 0.95))
    assert got == pytest.approx(float(np.quantile(values, 0.95)), rel=2 ** (2**-scale) - 1)


def test_exponential_points_of_two_scales_meet_at_the_coarser() -> None:
    fine = ExponentialBuckets(1, 2, 0, (3, 4))  # (1, 1.41], (1.41, 2]
    coarse = ExponentialBuckets(0, 0, 0, (5, 1))  # (1, 2], (2, 4]
    bounds, counts = explicit([fine, coarse])
    assert bounds == pytest.approx((1.0, 2.0, 4.0))
    assert counts.tolist() == [[2.0, 7.0, 0.0, 0.0], [0.0, 5.0, 1.0, 0.0]]


def test_percentiles_lie_in_the_bucket_that_holds_them() -> None:
    bounds = (0.1, 0.2, 0.5, 1.0)
    values = np.random.default_rng(1).gamma(2.0, 0.1, 5000)
    counts = np.bincount(np.searchsorted(bounds, values), minlength=5).astype(float)
    for q in (0.01, 0.5, 0.95, 0.99):
        true = float(np.quantile(values, q))
        got = float(percentile(counts, bounds, q))
        width = np.diff([0.0, *bounds])[np.searchsorted(bounds, true)]
        assert abs(got - true) <= width
    assert np.isnan(percentile(np.zeros(5), bounds, 0.5))
    assert float(percentile(np.array([0.0, 0, 0, 0, 3]), bounds, 0.5)) == 1.0


def test_counts_below_a_boundary_are_exact_and_elsewhere_not() -> None:
    counts = np.array([4.0, 6.0, 2.0])
    assert count_below(counts, (0.1, 0.3), 0.1) == (4.0, True)
    assert count_below(counts, (0.1, 0.3), 0.2) == (pytest.approx(7.0), False)


def test_merging_keeps_what_the_common_boundaries_say() -> None:
    assert common_bounds([(1.0, 2.0, 3.0), (), (1.0, 3.0)]) == (1.0, 3.0)
    assert merge(np.array([[1.0, 2, 3, 4]]), (1.0, 2.0, 3.0), (1.0, 3.0)).tolist() == [[1.0, 5.0, 4.0]]


@given(
    gaps=st.lists(
        st.tuples(st.floats(0.0, 40.0), st.floats(0.001, 40.0), st.integers(0, 500)), min_size=1, max_size=30
    ),
    step=st.sampled_from([1.0, 5.0, 7.5, 60.0]),
)
@settings(max_examples=150, deadline=None)
def test_no_request_is_lost_or_made_on_the_grid(gaps: list[tuple[float, float, int]], step: float) -> None:
    begins, ends, counts = [], [], []
    now = EPOCH
    for pause, length, count in gaps:
        begins.append(now + pause)
        now = now + pause + length
        ends.append(now)
        counts.append(float(count))
    grid = make_grid(EPOCH, now, step, np.array(ends))
    cells = spread(grid.edges, np.array(begins), np.array(ends), np.array(counts), whole=True)
    assert cells.sum() == sum(counts)
    assert (cells >= 0).all()
    assert (cells == np.round(cells)).all()
    seconds = covered(grid.edges, np.array(begins), np.array(ends))
    assert seconds.sum() == pytest.approx(sum(length for _, length, _ in gaps), abs=1e-3)
    buckets, sums = spread_histogram(
        grid.edges, np.array(begins), np.array(ends), np.array(counts)[:, None], 0.5 * np.array(counts)
    )
    assert buckets.sum() == sum(counts)
    assert sums == pytest.approx(0.5 * buckets[:, 0])


def test_overlapping_intervals_are_covered_once() -> None:
    edges = np.arange(0.0, 31.0, 10.0)
    assert covered(edges, np.array([0.0, 5.0, 5.0]), np.array([10.0, 15.0, 12.0])).tolist() == [10.0, 5.0, 0.0]


def test_an_export_falls_into_one_cell() -> None:
    exports = EPOCH + 3.2 + 5.0 * np.arange(20)
    grid = make_grid(EPOCH, float(exports[-1]), 5.0, exports)
    cells = spread(grid.edges, exports - 5.0, exports, np.full(20, 100.0), whole=True)
    assert set(cells.tolist()) <= {0.0, 100.0}


def test_steps_follow_the_export_interval_and_stay_few() -> None:
    assert choose_step(5.02, 120.0) == 5.0
    assert choose_step(15.0, 3600.0) == 15.0
    assert choose_step(12.0, 3600.0) == 12.0
    week = choose_step(15.0, 7 * 86400.0)
    assert 7 * 86400 / week <= 2000
    assert Grid(0.0, 5.0, 3).edges.tolist() == [0.0, 5.0, 10.0, 15.0]


def test_an_unknown_first_total_with_an_earlier_export_counts_from_there() -> None:
    got = difference(np.array([20.0]), np.array([0.0]), np.array([[7.0]]), delta=False, previous=15.0, horizon=100.0)
    assert (got.begins.tolist(), got.amounts.tolist()) == ([15.0], [[7.0]])
