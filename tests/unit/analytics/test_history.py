from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from apivitals.analytics import PerformanceAnalytics
from apivitals.analytics.telemetry import read_telemetry
from apivitals.models import Anomaly, TimeWindow

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0)
EPOCH = 1_760_000_000.0
HOUR, DAY = 3_600.0, 86_400.0


class Service:
    """Days of one service with a daily rhythm; the times of an incident are seconds before the end of the data."""

    def __init__(
        self,
        seconds: float,
        *,
        slow: tuple[float, float] = (0.0, 0.0),
        failing: tuple[float, float] = (0.0, 0.0),
        silent: tuple[float, float] = (0.0, 0.0),
        step: float = 60.0,
        rps: float = 1.0,
        routes: tuple[str, ...] = ("/a",),
        seed: int = 0,
        name: str = "shop",
    ) -> None:
        self.end = EPOCH + seconds
        self.name = name
        rng = np.random.default_rng(seed)
        self.times = np.arange(EPOCH + step, self.end + 1.0, step)
        before = self.end - self.times
        rate = step * rps * (1 + 0.5 * np.sin(self.times / DAY * 2 * np.pi))

        def during(span: tuple[float, float]) -> Any:
            return (before < span[0]) & (before >= span[1])

        self.streams: list[tuple[str, int, Any, Any]] = []
        for route in routes:
            counts = rng.poisson(np.where(during(silent), 0.05, 1.0) * rate)
            failed = rng.binomial(counts, np.where(during(failing), 0.4, 0.005))
            for status, amount in ((200, counts - failed), (500, failed)):
                cell = np.repeat(np.arange(len(counts)), amount)
                spent = 0.05 * np.exp(rng.normal(size=len(cell)) * 0.3) * np.where(during(slow), 3.0, 1.0)[cell]
                buckets = np.zeros((len(counts), len(BOUNDS) + 1), np.int64)
                np.add.at(buckets, (cell, np.searchsorted(BOUNDS, spent)), 1)
                sums = np.bincount(cell, weights=spent, minlength=len(counts))
                self.streams.append((route, status, buckets.cumsum(axis=0), sums.cumsum()))

    def newest(self) -> float:
        return float(self.times[-1])

    def requests(self, start: datetime | None, end: datetime | None) -> Iterator[dict[str, Any]]:
        first = start.timestamp() if start is not None else -np.inf
        for i in np.flatnonzero(self.times >= first).tolist():
            points = [
                {
                    "attributes": [
                        {"key": "http.route", "value": {"stringValue": route}},
                        {"key": "http.request.method", "value": {"stringValue": "GET"}},
                        {"key": "http.response.status_code", "value": {"intValue": str(status)}},
                    ],
                    "startTimeUnixNano": str(int(EPOCH * 1e9)),
                    "timeUnixNano": str(int(self.times[i] * 1e9)),
                    "count": str(buckets[i].sum()),
                    "sum": float(sums[i]),
                    "bucketCounts": buckets[i].tolist(),
                    "explicitBounds": BOUNDS,
                }
                for route, status, buckets, sums in self.streams
            ]
            histogram = {"aggregationTemporality": 2, "dataPoints": points}
            metrics = [{"name": "http.server.request.duration", "unit": "s", "histogram": histogram}]
            resource = {"attributes": [{"key": "service.name", "value": {"stringValue": self.name}}]}
            yield {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": metrics}]}]}


def detect(source: Service, window: TimeWindow, metric: str = "response_time", **where: Any) -> list[Anomaly]:
    return asyncio.run(PerformanceAnalytics(source).detect_anomalies(metric, window, **where))


def found(source: Service, period: str | float) -> list[tuple[str, float, float]]:
    """Kind, start and end of each finding, the times as seconds before the end of the data."""
    out = []
    for finding in PerformanceAnalytics(source).build_report(period).findings:
        assert finding.start_time is not None
        assert finding.end_time is not None
        out.append(
            (finding.kind, source.end - finding.start_time.timestamp(), source.end - finding.end_time.timestamp())
        )
    return sorted(out)


@pytest.mark.parametrize("hours", [1.0, 2.0, 5.0])
def test_a_slowdown_that_fills_the_window_is_told_with_its_true_start(hours: float) -> None:
    source = Service(3 * DAY + HOUR, slow=(hours * HOUR, 0.0))
    for period in ("hourly", "daily"):
        ((kind, start, end),) = found(source, period)
        assert kind == "latency"
        assert abs(start - hours * HOUR) <= 600.0
        assert end == pytest.approx(0.0, abs=1.0)
    for window in (TimeWindow.HOUR, TimeWindow.DAY):
        for metric in ("response_time", "response_time_p95"):
            (slow,) = detect(source, window, metric)
            assert abs(source.end - slow.timestamp.timestamp() - hours * HOUR) <= 600.0
            assert slow.end_time is not None
            assert slow.end_time.timestamp() <= source.end + 1.0
            assert slow.value > 2.5 * slow.expected_value


def test_errors_and_silence_that_fill_the_window_are_told() -> None:
    failing = Service(3 * DAY, failing=(2 * HOUR, 0.0), seed=1)
    ((kind, start, _),) = found(failing, "hourly")
    assert kind == "errors"
    assert abs(start - 2 * HOUR) <= 600.0
    (anomaly,) = detect(failing, TimeWindow.HOUR, "error_rate")
    assert anomaly.value > 25
    silent = Service(3 * DAY, silent=(1.5 * HOUR, 0.0), seed=2)
    ((kind, start, _),) = found(silent, "hourly")
    assert kind == "traffic"
    assert abs(start - 1.5 * HOUR) <= 600.0


def test_what_was_over_before_the_window_is_not_told() -> None:
    for incident in ({"slow": (5 * HOUR, 4 * HOUR)}, {"failing": (5 * HOUR, 4 * HOUR)}, {"slow": (2 * HOUR, HOUR)}):
        source = Service(3 * DAY, seed=3, **incident)  # type: ignore[arg-type]
        assert found(source, "hourly") == []
        assert detect(source, TimeWindow.HOUR) == []
        assert len(found(source, "daily")) == 1


def test_what_began_before_the_window_and_ended_in_it_is_told_whole() -> None:
    source = Service(3 * DAY, slow=(2 * HOUR, 0.5 * HOUR), seed=4)
    ((kind, start, end),) = found(source, "hourly")
    assert kind == "latency"
    assert abs(start - 2 * HOUR) <= 600.0
    assert abs(end - 0.5 * HOUR) <= 600.0
    report = PerformanceAnalytics(source).build_report("hourly")
    assert report.start_time is not None
    begin = report.start_time.timestamp()
    assert source.end - begin == pytest.approx(HOUR, abs=60.0)
    assert report.total is not None
    assert report.total.count < 1.6 * 3_600
    assert all(chart.timestamps[0] >= begin for chart in report.charts)
    assert all(first >= begin for chart in report.charts for first, _ in chart.episodes)
    (anomaly,) = report.anomalies
    assert source.end - anomaly.timestamp.timestamp() == pytest.approx(2 * HOUR, abs=600.0)


def test_short_data_are_judged_with_what_lies_before_the_window() -> None:
    source = Service(6 * HOUR, slow=(HOUR + 600.0, 0.0), step=15.0, seed=5)
    ((kind, start, _),) = found(source, "hourly")
    assert kind == "latency"
    assert abs(start - HOUR - 600.0) <= 180.0
    (slow,) = detect(source, TimeWindow.HOUR)
    assert abs(source.end - slow.timestamp.timestamp() - HOUR - 600.0) <= 180.0
    over = Service(6 * HOUR, slow=(2 * HOUR, HOUR + 300.0), step=15.0, seed=5)
    assert "latency" not in {kind for kind, _, _ in found(over, "hourly")}


@pytest.mark.parametrize(("days", "seed"), [(3, 10), (3, 11), (7, 12)])
def test_steady_days_with_a_rhythm_are_quiet(days: int, seed: int) -> None:
    source = Service(days * DAY, routes=("/a", "/b"), step=120.0, rps=0.5, seed=seed)
    for period in ("hourly", "daily"):
        assert found(source, period) == []
    for window in (TimeWindow.HOUR, TimeWindow.DAY):
        for metric in ("response_time", "response_time_p95", "error_rate", "throughput"):
            assert detect(source, window, metric) == []


def test_the_history_is_thinned_out_and_the_window_is_not() -> None:
    source = Service(8 * DAY, step=30.0, rps=0.02, seed=6)
    start = source.end - HOUR
    every = list(source.requests(None, None))
    whole = read_telemetry(every, start=start)
    thin = read_telemetry(every, start=start, end=source.end)
    for full, kept in zip(whole.histograms, thin.histograms, strict=True):
        assert len(kept.ends) < 0.6 * len(full.ends)
        assert kept.buckets.sum() == full.buckets.sum()
        recent = full.ends > start - HOUR + 1
        assert np.array_equal(kept.ends[kept.ends > start - HOUR + 1], full.ends[recent])
    assert (thin.start, thin.end, thin.interval) == (whole.start, whole.end, whole.interval)
    for one, other in zip(whole.exports.values(), thin.exports.values(), strict=True):
        assert np.array_equal(one[1], other[1])


def test_increments_of_the_history_are_all_kept() -> None:
    point = {"startTimeUnixNano": str(int(EPOCH * 1e9)), "asDouble": 2.0}

    def request(seconds: float) -> dict[str, Any]:
        own = {**point, "timeUnixNano": str(int((EPOCH + seconds) * 1e9))}
        data = {"aggregationTemporality": 1, "isMonotonic": True, "dataPoints": [own]}
        return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "jobs", "sum": data}]}]}]}

    telemetry = read_telemetry(
        [request(t) for t in np.arange(10.0, DAY, 10.0)], start=EPOCH + DAY - HOUR, end=EPOCH + DAY
    )
    (flow,) = telemetry.counters
    assert flow.amounts.sum() == 2.0 * (DAY / 10 - 1)


def test_a_service_of_the_history_alone_is_not_what_the_window_is_about() -> None:
    old = Service(2 * DAY, name="old", seed=7)
    new = Service(2 * DAY + HOUR, name="new", seed=8)
    recent = new.requests(datetime.fromtimestamp(old.end, timezone.utc), None)
    telemetry = read_telemetry([*old.requests(None, None), *recent], start=old.end + 60.0, end=new.end)
    assert telemetry.service == "new"
    assert telemetry.notes == ()
