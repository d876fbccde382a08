from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from apivitals.analytics import PerformanceAnalytics
from apivitals.analytics.changes import find_changes

EPOCH = 1_760_000_000 // 86400 * 86400.0


def latency(seed: int, n: int = 576, phi: float = 0.6, pattern: float = 0.3) -> Any:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n) * 0.08 * np.sqrt(1 - phi**2)
    for i in range(1, n):
        noise[i] += phi * noise[i - 1]
    times = EPOCH + np.arange(n) * 300.0
    return times, noise + pattern * np.sin(times % 86400 / 86400 * 2 * np.pi)


def test_a_step_is_found_where_it_is() -> None:
    for seed in range(5):
        times, logs = latency(seed)
        logs[300:] += np.log(1.4)
        (change,) = find_changes(times, 80 * np.exp(logs), metric="m", unit="ms")
        assert abs(change.timestamp.timestamp() - times[300]) <= 3600
        assert change.after / change.before == pytest.approx(1.4, rel=0.15)
        assert change.confidence > 0.9


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_series_without_a_step_have_none(phi: float) -> None:
    found = 0
    for seed in range(15):
        times, logs = latency(100 + seed, phi=phi)
        logs[200:202] += 0.6  # a spike is no step
        found += bool(find_changes(times, np.exp(logs)))
    assert found <= 1


def test_little_data_and_flat_data() -> None:
    times = EPOCH + np.arange(200.0)
    assert find_changes(times[:30], np.arange(30.0)) == []
    assert find_changes(times, np.full(200, 2.0)) == []
    assert find_changes([], []) == []


def test_a_route_that_stays_slower_is_told(make_worker: Any) -> None:
    rng = np.random.default_rng(1)
    worker = make_worker(step=300.0)
    moments = np.sort(rng.uniform(EPOCH, EPOCH + 12 * 3600, 6000))
    worker.start = EPOCH
    spent = 0.05 * np.exp(rng.normal(size=6000) * 0.3)
    worker.serve(moments, np.where(moments > EPOCH + 7 * 3600, 1.4 * spent, spent), route="/a")
    worker.serve(moments[::2], 0.05 * np.exp(rng.normal(size=3000) * 0.3), route="/b")

    class Live:
        def requests(self, start: datetime | None, end: datetime | None) -> Any:
            return worker.exports(EPOCH + 12 * 3600)

    analytics = PerformanceAnalytics(Live())
    report = analytics.build_report("daily")
    (finding,) = report.findings
    assert finding.title.startswith("GET /a became 1.4× slower and stayed so (mean ")
    assert finding.start_time is not None
    assert abs(finding.start_time.timestamp() - EPOCH - 7 * 3600) <= 1800
    (change,) = asyncio.run(analytics.detect_changes("response_time", route="/a"))
    assert change.after > change.before
