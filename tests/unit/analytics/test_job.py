from __future__ import annotations

import asyncio
import json
import pickle
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from apivitals.analytics import PerformanceAnalytics
from apivitals.analytics.analysis import analyse
from apivitals.analytics.telemetry import read_telemetry
from apivitals.errors import ConfigurationError, NoDataError, UnknownMetricError
from apivitals.models import Report, TimeWindow, as_dict
from apivitals.settings import PerformanceThresholds

EPOCH = 1_760_000_000.0
SLOW, FAILING = ("GET", "/reports/{id}"), ("POST", "/orders")


def write(folder: Path, worker: Any, seconds: float = 130.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(request).encode() + b"\n" for request in worker.exports(EPOCH + seconds)]
    half = len(lines) // 2
    packed = folder / "metrics-20251009T085320-one.jsonl.zst"
    packed.write_bytes(zstandard.compress(b"".join(lines[:half])))
    (folder / "metrics-20251009T085425-one.jsonl").write_bytes(b"".join(lines[half:]) + b'{"resourceMe')
    return folder


class Live:
    """A monitor's live window: export requests in memory."""

    def __init__(self, worker: Any, seconds: float = 130.0) -> None:
        self.kept = list(worker.exports(EPOCH + seconds))
        self.thresholds = PerformanceThresholds(response_time_ms={"excellent": 50})

    def requests(self, start: datetime | None, end: datetime | None) -> Any:
        return iter(self.kept)


def about(report: Report) -> list[tuple[str, str | None, str | None]]:
    return sorted((finding.kind, finding.method, finding.route) for finding in report.findings)


@pytest.mark.parametrize("seed", range(6))
def test_the_injected_faults_are_found_and_nothing_else(make_demo: Any, tmp_path: Path, seed: int) -> None:
    report = PerformanceAnalytics(write(tmp_path, make_demo(seed))).build_report()
    assert about(report) == [("errors", *FAILING), ("latency", *SLOW)]
    for finding in report.findings:
        start, end = (50, 80) if finding.kind == "latency" else (60, 90)
        assert finding.start_time is not None
        assert finding.end_time is not None
        assert abs(finding.start_time.timestamp() - EPOCH - start) <= 10
        assert abs(finding.end_time.timestamp() - EPOCH - end) <= 10
        assert finding.confidence > 0.99
        assert finding.impact > 50
        assert finding.advice
        assert finding.severity in ("high", "critical")
    titles = {finding.kind: finding.title for finding in report.findings}
    assert titles["latency"].startswith("GET /reports/{id} slowed down ")
    assert titles["errors"].startswith("POST /orders failed for ")
    assert report.notes[-1].startswith("relations between metrics need")


@pytest.mark.parametrize("seed", range(100, 108))
def test_a_steady_service_has_no_findings(make_demo: Any, seed: int) -> None:
    report = PerformanceAnalytics(Live(make_demo(seed, slow=False, failing=False))).build_report()
    assert report.findings == ()
    assert report.total is not None


def test_a_report_is_complete(make_demo: Any, tmp_path: Path) -> None:
    worker = make_demo(1)
    worker.exemplars = [(EPOCH + 65, "/reports/{id}", "ab" * 16), (EPOCH + 10, "/reports/{id}", "cd" * 16)]
    steps = []
    report = PerformanceAnalytics(write(tmp_path, worker)).build_report(
        "hourly", on_progress=lambda done, total, what: steps.append((done, total, what))
    )
    made = {}
    for (method, route, _, _), served in worker.requests.items():
        made[method, route] = made.get((method, route), 0) + len(served)
    assert {(route.method, route.route): route.count for route in report.routes} == made
    assert report.total is not None
    assert report.total.count == sum(made.values())
    assert (report.service, report.period, report.step_seconds) == ("shop", "hourly", 5.0)
    assert steps[0] == (0, 7, "reading")
    assert steps[-1][0] == steps[-1][1]
    (slow,) = [finding for finding in report.findings if finding.kind == "latency"]
    assert f"traces of it: {'ab' * 16}" in slow.evidence
    named = {(chart.name, chart.labels.get("http.route")) for chart in report.charts}
    assert {
        (name, route) for name in ("response_time_p95", "throughput", "error_rate") for route in (None, "/orders")
    } <= named
    marked = [chart for chart in report.charts if chart.episodes]
    # On the charts of the whole service the episodes of its routes are marked too, and left out of the band.
    assert {chart.labels.get("http.route") for chart in marked} == {None, "/orders", "/reports/{id}"}
    whole = next(chart for chart in marked if chart.name == "error_rate" and not chart.labels)
    assert max(value for value in whole.values if value is not None) > max(whole.upper) * 2
    assert report.trends[0].trend_direction == "not enough data"
    assert len(report.anomalies) == 2


def test_evidence_refines_the_advice(make_demo: Any) -> None:
    worker = make_demo(2)
    for t in np.arange(EPOCH + 3.2, EPOCH + 120, 0.5):
        slow = EPOCH + 50 <= t < EPOCH + 80
        worker.extra.append(("apivitals.request.db.queries", *SLOW, t, 40.0 if slow else 2.0))
    report = PerformanceAnalytics(Live(worker)).build_report()
    (finding,) = [finding for finding in report.findings if finding.kind == "latency"]
    assert any("queries per request rose from 2 to 40" in line for line in finding.evidence)
    assert "N+1" in finding.advice[0]


def test_a_service_that_slows_down_as_a_whole_is_told_once(make_worker: Any) -> None:
    rng = np.random.default_rng(3)
    worker = make_worker()
    for route in ("/a", "/b", "/c", "/d"):
        when = np.sort(rng.uniform(EPOCH + 1, EPOCH + 124, 1500))
        spent = 0.05 * np.exp(rng.normal(size=1500) * 0.3)
        worker.serve(when, np.where((when > EPOCH + 50) & (when < EPOCH + 80), 5 * spent, spent), route=route)
    report = PerformanceAnalytics(Live(worker)).build_report()
    (finding,) = report.findings
    assert finding.route is None
    assert finding.title.startswith("The whole service slowed down")


def test_a_change_of_the_mix_is_no_slowdown(make_worker: Any) -> None:
    rng = np.random.default_rng(4)
    worker = make_worker()
    for route, spent, rate in (("/fast", 0.005, 3000), ("/slow", 0.4, 300)):
        when = np.sort(rng.uniform(EPOCH + 1, EPOCH + 124, rate))
        worker.serve(when, spent * np.exp(rng.normal(size=rate) * 0.2), route=route)
    burst = np.sort(rng.uniform(EPOCH + 50, EPOCH + 80, 2000))
    worker.serve(burst, 0.4 * np.exp(rng.normal(size=2000) * 0.2), route="/slow")
    assert PerformanceAnalytics(Live(worker)).build_report().findings == ()


def test_the_snippets_of_the_guide(make_demo: Any) -> None:
    async def snippets() -> None:
        analytics = PerformanceAnalytics(Live(make_demo(5)))
        trend = await analytics.analyze_trends(metric="response_time", time_window=TimeWindow.HOUR)
        f"{trend.trend_direction} {trend.trend_strength:.2f} {trend.r_squared:.2f}"
        now = datetime.now(timezone.utc)
        far = await analytics.analyze_trends(
            metric="response_time", time_window=TimeWindow.DAY, start_time=now - timedelta(days=7), end_time=now
        )
        assert far.trend_direction == "not enough data"
        anomalies = await analytics.detect_anomalies("response_time", TimeWindow.HOUR, sensitivity=2.5)
        for anomaly in anomalies:
            f"{anomaly.timestamp} {anomaly.value:.2f} (expected: {anomaly.expected_value:.2f})"
            f"{anomaly.severity} {anomaly.confidence:.2f}"
        correlations = await analytics.analyze_correlations(
            metrics=["response_time", "cpu_usage", "memory_usage"], time_window=TimeWindow.DAY
        )
        assert {pair.significance for pair in correlations} == {"not enough data"}
        report = await analytics.generate_report("hourly")
        assert json.loads(json.dumps(report))["service"] == "shop"
        charts = await analytics._generate_charts(["response_time"])
        assert json.loads(json.dumps(charts[0]))["name"] == "response_time"
        forecast = await analytics.forecast("throughput", timedelta(hours=1))
        assert "not enough data" in forecast.message

    asyncio.run(snippets())


def test_anomalies_of_one_route(make_demo: Any) -> None:
    analytics = PerformanceAnalytics(Live(make_demo(6)))

    async def ask(metric: str, place: tuple[str, str] | None) -> Any:
        method, route = place or (None, None)
        return await analytics.detect_anomalies(metric, route=route, method=method)

    (slow,) = asyncio.run(ask("response_time", SLOW))
    assert (slow.metric, slow.unit, slow.direction) == ("response_time", "ms", "up")
    assert slow.value > 3 * slow.expected_value
    assert abs(slow.timestamp.timestamp() - EPOCH - 50) <= 10
    (failing,) = asyncio.run(ask("error_rate", FAILING))
    assert failing.value > 25 > failing.expected_value
    assert asyncio.run(ask("response_time", ("GET", "/"))) == []
    assert asyncio.run(ask("cpu_usage", None)) == []


def test_the_event_loop_is_not_held_up(make_demo: Any) -> None:
    class Slow(Live):
        def requests(self, start: datetime | None, end: datetime | None) -> Any:
            time.sleep(0.2)  # stands for the reading of large files
            return iter(self.kept)

    async def main() -> int:
        task = asyncio.create_task(PerformanceAnalytics(Slow(make_demo(7))).generate_report())
        turns = 0
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        return turns

    assert asyncio.run(main()) >= 10


def test_what_cannot_be_asked(make_demo: Any, tmp_path: Path) -> None:
    analytics = PerformanceAnalytics(Live(make_demo(8)))
    with pytest.raises(UnknownMetricError, match="response_time"):
        asyncio.run(analytics.analyze_trends("respons_time"))
    with pytest.raises(ConfigurationError, match="sensitivity"):
        asyncio.run(analytics.detect_anomalies("response_time", sensitivity=0.1))
    with pytest.raises(ConfigurationError, match="two names"):
        asyncio.run(analytics.analyze_correlations(["response_time"]))
    with pytest.raises(ConfigurationError, match="period is 'monthly'"):
        analytics.build_report("monthly")
    with pytest.raises(ConfigurationError, match="horizon is -1"):
        asyncio.run(analytics.forecast("response_time", -1))
    with pytest.raises(NoDataError):
        PerformanceAnalytics(tmp_path).build_report()


def test_a_source_of_garbage_gives_a_report_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics-20251009T085320-one.jsonl").write_bytes(b"garbage\n" * 3)
    report = PerformanceAnalytics(tmp_path).build_report()
    assert report.total is None
    assert "3 lines are not OTLP JSON" in report.notes[0]
    assert "no metrics were found" in report.notes[-1]


NUMBERS = st.integers(-5, 10**6) | st.sampled_from([2**63, -1, 0]) | st.floats(-10, 1e9, allow_nan=False)
POINTS = st.fixed_dictionaries(
    {"timeUnixNano": st.integers(0, 200).map(lambda second: str(int((EPOCH + second) * 1e9)))},
    optional={
        "startTimeUnixNano": st.integers(-200, 200).map(lambda second: str(int((EPOCH + second) * 1e9))),
        "asDouble": NUMBERS,
        "count": NUMBERS.map(str),
        "sum": NUMBERS,
        "bucketCounts": st.lists(st.integers(0, 50).map(str), max_size=4),
        "explicitBounds": st.lists(st.floats(-1, 10), max_size=3, unique=True).map(sorted),
        "attributes": st.lists(
            st.sampled_from(
                [
                    {"key": "http.route", "value": {"stringValue": "/a"}},
                    {"key": "http.request.method", "value": {"stringValue": "GET"}},
                    {"key": "http.response.status_code", "value": {"intValue": "500"}},
                    {"key": "error.type", "value": {}},
                ]
            ),
            max_size=3,
        ),
    },
)
METRICS = st.builds(
    lambda name, kind, temporality, points: {
        "name": name,
        kind: {"dataPoints": points, "aggregationTemporality": temporality, "isMonotonic": True},
    },
    st.sampled_from(["http.server.request.duration", "apivitals.server.errors", "system.cpu.utilization", "x"]),
    st.sampled_from(["histogram", "sum", "gauge", "exponentialHistogram"]),
    st.sampled_from([1, 2]),
    st.lists(POINTS, max_size=40),
)


@given(metrics=st.lists(METRICS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_no_content_makes_a_report_fail(metrics: list[Any]) -> None:
    class Odd:
        def requests(self, start: datetime | None, end: datetime | None) -> Any:
            return [{"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}]

    json.dumps(as_dict(PerformanceAnalytics(Odd()).build_report()), allow_nan=False)


def test_a_window_in_the_middle(make_demo: Any, tmp_path: Path) -> None:
    worker = make_demo(9)
    begin, end = (datetime.fromtimestamp(EPOCH + second, timezone.utc) for second in (20, 60))
    report = PerformanceAnalytics(write(tmp_path, worker)).build_report(start_time=begin, end_time=end)
    made = sum(EPOCH + 20 < t <= EPOCH + 60 for served in worker.requests.values() for t, _ in served)
    assert report.total is not None
    assert report.total.count == made
    assert (report.start_time, report.end_time) == (begin, end)


def test_a_live_window_that_is_coarser_in_the_past(make_worker: Any) -> None:
    rng = np.random.default_rng(13)
    worker = make_worker()
    when = np.sort(rng.uniform(EPOCH, EPOCH + 3600, 36_000))
    worker.serve(when, 0.05 * np.exp(rng.normal(size=36_000) * 0.3))
    live = Live(worker, 3600.0)
    live.kept = [*live.kept[11:660:12], *live.kept[660:]]
    report = PerformanceAnalytics(live).build_report()
    assert report.step_seconds == 60.0
    assert report.findings == ()
    assert report.total is not None
    assert report.total.count == 36_000
    assert report.total.rps == pytest.approx(10.0, rel=0.01)


def test_thresholds_come_from_the_monitor_unless_given(make_demo: Any) -> None:
    live = Live(make_demo(10))
    assert PerformanceAnalytics(live).thresholds is live.thresholds
    own = PerformanceThresholds()
    assert PerformanceAnalytics(live, thresholds=own).thresholds is own


def test_processes_give_the_same_report(make_demo: Any) -> None:
    telemetry = read_telemetry(Live(make_demo(11)).kept)
    assert pickle.loads(pickle.dumps(telemetry)).service == "shop"
    one, two = (analyse(telemetry, n_jobs=jobs) for jobs in (1, 2))
    assert one.findings == two.findings


def test_a_long_window_compares_with_the_days_before(make_worker: Any) -> None:
    rng = np.random.default_rng(12)
    worker = make_worker(step=600.0)
    moments = np.arange(300.0, 4 * 86400.0, 600.0)
    load = 8 + 4 * np.sin(moments % 86400 / 86400 * 2 * np.pi)
    for moment, rate in zip(moments, load, strict=True):
        n = rng.poisson(rate)
        slow = 3 * 86400 + 7200 <= moment < 3 * 86400 + 14400
        worker.serve(
            EPOCH + moment + rng.uniform(-200, 200, n), 0.06 * np.exp(rng.normal(size=n) * 0.3) * (6 if slow else 1)
        )
    telemetry = read_telemetry(worker.exports(EPOCH + 4 * 86400.0))
    report = analyse(telemetry)
    assert [finding.kind for finding in report.findings] == ["latency"]
    assert report.findings[0].start_time is not None
    assert abs(report.findings[0].start_time.timestamp() - EPOCH - 3 * 86400 - 7200) <= 1200
    assert any(forecast.timestamps for forecast in report.forecasts)
    assert {trend.trend_direction for trend in report.trends} <= {"stable", "increasing", "decreasing"}
