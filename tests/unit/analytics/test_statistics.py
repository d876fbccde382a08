"""Each method on seeded series: it finds what is there, and keeps quiet where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apivitals.analytics.anomalies import find_episodes
from apivitals.analytics.correlations import find_correlations
from apivitals.analytics.forecasts import find_forecast
from apivitals.analytics.incidents import scan_drop, scan_failures, scan_latency
from apivitals.analytics.scan import scan_levels, scan_shares
from apivitals.analytics.sensitivity import alpha_of, checked, margin_of
from apivitals.analytics.series import HistogramCells
from apivitals.analytics.trends import find_trend
from apivitals.errors import ConfigurationError

EPOCH = 1_760_000_000 // 86400 * 86400.0
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0)


def remembering(n: int, phi: float, rng: np.random.Generator) -> Any:
    noise = rng.normal(size=n + 100) * np.sqrt(1 - phi**2)
    for i in range(1, n + 100):
        noise[i] += phi * noise[i - 1]
    return noise[100:]


def daily(times: Any) -> Any:
    return np.sin(times % 86400 / 86400 * 2 * np.pi)


def cells(
    rng: np.random.Generator, factors: Any, rate: float = 40.0, middle: float = 0.08, scatter: float = 0.1
) -> Any:
    n = len(factors)
    counts, sums, buckets = np.zeros(n), np.zeros(n), np.zeros((n, len(BOUNDS) + 1))
    for i, factor in enumerate(factors):
        spent = middle * factor * np.exp(rng.normal(size=rng.poisson(rate)) * 0.4 + rng.normal() * scatter)
        counts[i], sums[i] = len(spent), spent.sum()
        buckets[i] = np.bincount(np.searchsorted(BOUNDS, spent), minlength=len(BOUNDS) + 1)
    return HistogramCells(counts, sums, buckets, BOUNDS)


# --- trends


@pytest.mark.parametrize(("phi", "pattern"), [(0.0, 0.0), (0.8, 0.0), (0.95, 0.0), (0.8, 2.0)])
def test_a_series_without_a_drift_is_rarely_called_one(phi: float, pattern: float) -> None:
    rng = np.random.default_rng(11)
    times = EPOCH + np.arange(576) * 300.0
    verdicts = [
        find_trend(times, 100 + 5 * (remembering(576, phi, rng) + pattern * daily(times))).trend_direction
        for _ in range(60)
    ]
    assert sum(verdict != "stable" for verdict in verdicts) <= 9  # 5 % nominal; 12 % is the bound that is kept


def test_a_drift_is_found_with_its_slope() -> None:
    rng = np.random.default_rng(12)
    times = EPOCH + np.arange(576) * 300.0
    drift = 20.0 * np.arange(576) / 576
    trend = find_trend(times, 100 + 5 * (remembering(576, 0.5, rng) + 2 * daily(times)) + drift, metric="m", unit="ms")
    assert trend.trend_direction == "increasing"
    assert trend.slope == pytest.approx(20 / 48, rel=0.15)
    assert trend.change == pytest.approx(20.0, rel=0.15)
    assert trend.p_value < 0.01
    assert 0 < trend.trend_strength <= 1
    falling = find_trend(times, 100 - drift + rng.normal(size=576))
    assert falling.trend_direction == "decreasing"


def test_a_trend_of_little_or_nothing() -> None:
    short = find_trend(EPOCH + np.arange(5.0), np.arange(5.0), metric="m")
    assert short.trend_direction == "not enough data"
    assert short.message == "not enough data: 5 values, a trend needs at least 20"
    assert find_trend([], []).trend_direction == "not enough data"
    assert find_trend(EPOCH + np.arange(50.0), np.full(50, 3.0)).trend_direction == "stable"
    assert find_trend(EPOCH + np.arange(50.0), np.full(50, np.nan)).trend_direction == "not enough data"


def test_a_significant_but_tiny_drift_is_stable() -> None:
    rng = np.random.default_rng(13)
    values = 1000 + rng.normal(size=4000) * 5 + np.linspace(0, 1.0, 4000)
    assert find_trend(EPOCH + np.arange(4000) * 60.0, values).trend_direction == "stable"


# --- correlations


def test_metrics_that_share_only_the_clock_do_not_correlate() -> None:
    rng = np.random.default_rng(21)
    times = EPOCH + np.arange(2016) * 300.0
    named = 0
    for _ in range(6):
        series = {f"m{k}": (times, 50 + 5 * (remembering(2016, 0.9, rng) + 1.5 * daily(times))) for k in range(5)}
        named += any(pair.relationship != "none" for pair in find_correlations(series))
    assert named <= 1


def test_a_metric_that_follows_another_is_found_with_its_lag() -> None:
    rng = np.random.default_rng(22)
    times = EPOCH + np.arange(1000) * 60.0
    first = remembering(1000, 0.8, rng)
    second = 0.8 * np.concatenate([np.zeros(3), first[:-3]]) + 0.6 * remembering(1000, 0.8, rng)
    (pair,) = find_correlations({"a": (times, first), "b": (times, -second)})
    assert (pair.metric1, pair.metric2, pair.relationship) == ("a", "b", "negative")
    assert pair.significance == "strong"
    assert pair.lag_seconds == 180.0
    (turned,) = find_correlations({"b": (times, -second), "a": (times, first)})
    assert turned.lag_seconds == -180.0


def test_correlations_need_data_and_variation() -> None:
    times = EPOCH + np.arange(30.0)
    (pair,) = find_correlations({"a": (times, times), "b": (times, times)})
    assert pair.significance == "not enough data"
    assert "30 moments" in pair.message
    long = EPOCH + np.arange(200.0)
    (flat,) = find_correlations({"a": (long, np.full(200, 1.0)), "b": (long, np.sin(long))})
    assert flat.relationship == "none"
    (nothing,) = find_correlations({"a": ([], []), "b": (long, long)})
    assert nothing.significance == "not enough data"


# --- anomalies


def week(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    times = EPOCH + np.arange(2016) * 300.0
    return times, 100 * np.exp(0.4 * daily(times) + 0.05 * remembering(2016, 0.7, rng))


def test_clean_weeks_have_few_episodes() -> None:
    found = sum(len(find_episodes(*week(seed)).episodes) for seed in range(20))
    assert found <= 7  # 140 series-days at 0.05 each


def test_a_surge_is_found_where_it_is() -> None:
    times, values = week(31)
    values[1200:1212] *= 2.5
    (episode,) = find_episodes(times, values).episodes
    assert abs(episode.start - times[1200]) <= 600
    assert abs(episode.end - times[1212]) <= 1800
    assert episode.direction == "up"
    assert episode.value > episode.upper > episode.expected > episode.lower
    assert episode.severity in ("high", "critical")


def test_the_past_is_not_judged_anew_when_data_come_in() -> None:
    times, values = week(32)
    values[1200:1212] *= 2.5
    before = [episode.start for episode in find_episodes(times[:1500], values[:1500]).episodes]
    after = [episode.start for episode in find_episodes(times, values).episodes]
    assert before == after != []


def test_more_sensitivity_finds_less() -> None:
    times, values = week(33)
    rng = np.random.default_rng(33)
    for at in rng.integers(400, 2000, 12):
        values[at : at + 3] *= rng.uniform(1.1, 1.8)
    numbers = [len(find_episodes(times, values, sensitivity=s).episodes) for s in (0.5, 1.0, 2.0, 3.0, 6.0)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1]


def test_the_sensitivity_is_checked() -> None:
    for wrong in (0, 0.4, 11, -1, float("nan"), True, "2"):
        with pytest.raises(ConfigurationError, match="sensitivity"):
            checked(wrong)  # type: ignore[arg-type]
    assert alpha_of(2.0) == pytest.approx(1e-4)
    assert alpha_of(2.5) == pytest.approx(1e-5)
    assert margin_of(2.0) == 1.0 < margin_of(2.5)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_values_have_no_episodes_and_say_so(n: int) -> None:
    found = find_episodes(EPOCH + np.arange(float(n)), np.arange(float(n)))
    assert found.episodes == ()
    assert f"{n} values" in found.message


def test_odd_series_are_survived() -> None:
    times, values = week(34)
    order = np.random.default_rng(0).permutation(2016)
    holes = np.where(np.random.default_rng(1).random(2016) < 0.3, np.nan, values)
    for t, v in ((times, np.full(2016, 5.0)), (times, np.full(2016, np.nan)), (times[order], values[order])):
        assert find_episodes(t, v).episodes == ()
    assert len(find_episodes(times, holes).episodes) <= 1


# --- forecasts


def test_a_forecast_beats_repeating_the_last_day_and_its_band_holds() -> None:
    inside, better = [], []
    for seed in range(4):
        times, values = week(40 + seed)
        found = find_forecast(times[:-288], values[:-288], 288, metric="m")
        mean, lower, upper = map(np.array, (found.mean, found.lower, found.upper))
        actual = values[-288:]
        inside.append(np.mean((actual >= lower) & (actual <= upper)))
        better.append(np.abs(actual - mean).mean() / np.abs(actual - values[-576:-288]).mean())
        assert found.mase is not None
        assert found.timestamps[0].timestamp() == times[-288]
    assert np.mean(inside) > 0.85
    assert np.mean(better) < 1.0


def test_a_forecast_needs_three_days() -> None:
    times, values = week(50)
    found = find_forecast(times[:600], values[:600], 10)
    assert found.timestamps == ()
    assert "3 days" in found.message


# --- short data


def test_a_burst_of_failures_is_found_to_the_cell() -> None:
    rng = np.random.default_rng(61)
    for _ in range(30):
        totals = rng.poisson(40, 26)
        share = np.full(26, 0.005)
        share[12:18] = 0.5
        failures = rng.binomial(totals, share)
        (stretch,) = scan_failures(failures.astype(float), totals.astype(float))
        assert abs(stretch.first - 12) <= 1
        assert abs(stretch.last - 18) <= 1
        assert stretch.inside > 0.3 > 0.05 > stretch.outside


def test_a_slow_stretch_is_found_to_the_cell() -> None:
    rng = np.random.default_rng(62)
    for factor in (3.0, 6.0, 10.0):
        factors = np.ones(26)
        factors[10:16] = factor
        (slow,) = scan_latency(cells(rng, factors))
        assert abs(slow.stretch.first - 10) <= 1
        assert abs(slow.stretch.last - 16) <= 1
        assert slow.ratio == pytest.approx(factor, rel=0.25)


def test_a_slowdown_inside_one_bucket_is_found() -> None:
    factors = np.ones(40)
    factors[20:28] = 1.9
    (slow,) = scan_latency(cells(np.random.default_rng(63), factors, rate=200.0, middle=0.12, scatter=0.02))
    assert abs(slow.stretch.first - 20) <= 1


def test_two_episodes_are_told_apart() -> None:
    factors = np.ones(60)
    factors[10:16] = 5.0
    factors[40:46] = 8.0
    found = scan_latency(cells(np.random.default_rng(64), factors))
    assert [(slow.stretch.first, slow.stretch.last) for slow in found] == [(10, 16), (40, 46)]


def test_steady_routes_are_left_alone() -> None:
    """The false-alarm rate of the docstrings: at most 1 in 100 at a scatter of 20 % from cell to cell."""
    rng = np.random.default_rng(65)
    slow = failing = 0
    for _ in range(200):
        n = int(rng.integers(20, 60))
        rate = 10 ** rng.uniform(0.7, 2.3)
        slow += bool(scan_latency(cells(rng, np.ones(n), rate, 10 ** rng.uniform(-2.3, -0.3), 0.2)))
        totals = rng.poisson(rate, n)
        failing += bool(scan_failures(rng.binomial(totals, rng.choice([0.0, 0.01, 0.1])).astype(float), totals * 1.0))
    assert slow <= 4
    assert failing <= 1


def test_a_small_wiggle_is_never_an_episode() -> None:
    rng = np.random.default_rng(66)
    factors = np.ones(40)
    factors[15:25] = 1.05
    assert scan_latency(cells(rng, factors, rate=3000.0, scatter=0.0)) == []
    totals = np.full(40, 100_000.0)
    failures = np.where((np.arange(40) > 15) & (np.arange(40) < 25), 1_050.0, 1_000.0)
    assert scan_failures(failures, totals) == []


def test_the_time_of_day_is_no_episode_in_a_window_of_hours() -> None:
    rng = np.random.default_rng(69)
    times = EPOCH + np.arange(1200) * 60.0
    for _ in range(4):
        found = scan_latency(cells(rng, np.exp(0.3 * daily(times)), rate=60.0, scatter=0.05), longest=120)
        counts = rng.poisson(60 * np.exp(daily(times))).astype(float)
        assert (found, scan_drop(counts, np.full(1200, 60.0), longest=120)) == ([], [])
    factors = np.exp(0.3 * daily(times))
    factors[600:630] *= 3
    (slow,) = scan_latency(cells(rng, factors, rate=60.0, scatter=0.05), longest=120)
    assert abs(slow.stretch.first - 600) <= 2
    assert abs(slow.stretch.last - 630) <= 2


def test_a_gap_in_traffic_is_found_and_the_ends_are_none() -> None:
    rng = np.random.default_rng(67)
    counts = rng.poisson(100, 40).astype(float)
    seconds = np.full(40, 5.0)
    counts[:3] = 0
    counts[-3:] = 0
    assert scan_drop(counts, seconds) == []
    counts[20:25] = 5
    (stretch,) = scan_drop(counts, seconds)
    assert (stretch.first, stretch.last) == (20, 25)


def test_levels_of_gauges() -> None:
    rng = np.random.default_rng(68)
    values = 50 + rng.normal(size=40)
    values[20:28] -= 30
    (stretch,) = scan_levels(values)
    assert (stretch.first, stretch.last) == (20, 28)
    assert stretch.inside < stretch.outside
    assert scan_levels(values, both=False) == []
    assert scan_levels(np.full(40, 2.0)) == []
    assert scan_shares(np.zeros(5), np.ones(5)) == []


def test_a_burst_that_begins_faintly_has_the_share_of_all_of_it() -> None:
    counts = np.full(24, 50.0)
    failures = np.full(24, 0.0)
    failures[[3, 17]] = 1.0
    # The burst begins at the end of cell 8, so that cell alone looks faint, and may be found apart from the rest.
    failures[8], failures[9:14] = 6.0, 31.0
    (burst,) = scan_failures(failures, counts)
    assert burst.last == 14
    inside = slice(burst.first, burst.last)
    assert burst.inside == pytest.approx(failures[inside].sum() / counts[inside].sum())
    assert burst.inside > 0.5
    assert burst.outside == pytest.approx(
        np.delete(failures, np.r_[inside]).sum() / (50 * (24 - len(failures[inside])))
    )
