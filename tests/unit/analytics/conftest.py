"""Telemetry made to order: requests with known times, exported as a service would export them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0)
EPOCH = 1_760_000_000.0


def attributes(**pairs: Any) -> list[dict[str, Any]]:
    def value(item: Any) -> dict[str, Any]:
        return {"intValue": str(item)} if isinstance(item, int) else {"stringValue": item}

    return [{"key": key.replace("__", "."), "value": value(item)} for key, item in pairs.items()]


def request_of(metrics: list[dict[str, Any]], service: str = "shop", instance: str = "one") -> dict[str, Any]:
    resource = {"attributes": attributes(service__name=service, service__instance__id=instance)}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": {}, "metrics": metrics}]}]}


class Worker:
    """One process: `serve` takes requests in, `exports` gives what it sends every `step` seconds, cumulative."""

    def __init__(self, start: float = EPOCH, step: float = 5.0, instance: str = "one", service: str = "shop") -> None:
        self.start, self.step, self.instance, self.service = start, step, instance, service
        self.requests: dict[tuple[str, str, int, str], list[tuple[float, float]]] = defaultdict(list)
        self.extra: list[tuple[str, str, str, float, float]] = []
        self.gauges: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.exemplars: list[tuple[float, str, str]] = []

    def serve(self, when: Any, seconds: Any, method: str = "GET", route: str = "/", status: Any = 200) -> None:
        status = np.broadcast_to(status, np.shape(when))
        for t, s, code in zip(np.atleast_1d(when), np.atleast_1d(seconds), np.atleast_1d(status), strict=True):
            self.requests[method, route, int(code), ""].append((float(t), float(s)))

    def exports(self, end: float) -> Iterator[dict[str, Any]]:
        for moment in np.arange(self.start + self.step, end + 1e-6, self.step):
            points = []
            for (method, route, status, _), served in self.requests.items():
                done = np.array([s for t, s in served if t <= moment])
                if not len(done):
                    continue
                counts = np.bincount(np.searchsorted(BOUNDS, done), minlength=len(BOUNDS) + 1)
                point = {
                    "attributes": attributes(
                        http__request__method=method, http__route=route, http__response__status_code=status
                    ),
                    "startTimeUnixNano": str(int(self.start * 1e9)),
                    "timeUnixNano": str(int(moment * 1e9)),
                    "count": str(len(done)),
                    "sum": float(done.sum()),
                    "bucketCounts": list(map(str, counts)),
                    "explicitBounds": list(BOUNDS),
                }
                traces = [(t, i) for t, r, i in self.exemplars if r == route and moment - self.step < t <= moment]
                if traces:
                    point["exemplars"] = [
                        {"timeUnixNano": str(int(t * 1e9)), "asDouble": 1.0, "traceId": i} for t, i in traces
                    ]
                points.append(point)
            metrics = [
                {
                    "name": "http.server.request.duration",
                    "unit": "s",
                    "histogram": {"dataPoints": points, "aggregationTemporality": 2},
                }
            ]
            for name, readings in self.gauges.items():
                past = [value for t, value in readings if t <= moment]
                if past:
                    point = {"timeUnixNano": str(int(moment * 1e9)), "asDouble": past[-1]}
                    metrics.append({"name": name, "unit": "1", "gauge": {"dataPoints": [point]}})
            for name in {row[0] for row in self.extra}:
                rows: dict[tuple[str, str], list[float]] = defaultdict(list)
                for metric, method, route, t, value in self.extra:
                    if metric == name and t <= moment:
                        rows[method, route].append(value)
                metrics.append(
                    {
                        "name": name,
                        "histogram": {
                            "aggregationTemporality": 2,
                            "dataPoints": [
                                {
                                    "attributes": attributes(http__request__method=m, http__route=r),
                                    "startTimeUnixNano": str(int(self.start * 1e9)),
                                    "timeUnixNano": str(int(moment * 1e9)),
                                    "count": str(len(values)),
                                    "sum": sum(values),
                                    "bucketCounts": [str(len(values)), "0"],
                                    "explicitBounds": [1e9],
                                }
                                for (m, r), values in rows.items()
                            ],
                        },
                    }
                )
            yield request_of(metrics, self.service, self.instance)


def demo(seed: int = 0, *, seconds: float = 130.0, slow: bool = True, failing: bool = True) -> Worker:
    """Two minutes of a shop: steady routes, one that is slow from 50 to 80 s, one that fails from 60 to 90 s."""
    rng = np.random.default_rng(seed)
    worker = Worker()

    def times(rate: float) -> Any:
        return np.sort(rng.uniform(EPOCH + 2.0, EPOCH + seconds - 6.0, rng.poisson(rate * (seconds - 8.0))))

    def latency(count: int, middle: float) -> Any:
        return middle * np.exp(rng.normal(size=count) * 0.4)

    for route, rate, middle in (("/", 20.0, 0.003), ("/items/{id}", 15.0, 0.012), ("/search", 6.0, 0.06)):
        when = times(rate)
        worker.serve(when, latency(len(when), middle), "GET", route)
    when = times(5.0)
    spent = latency(len(when), 0.08)
    inside = (when >= EPOCH + 50) & (when < EPOCH + 80) & slow
    worker.serve(when, np.where(inside, spent * 7.0, spent), "GET", "/reports/{id}")
    when = times(6.0)
    inside = (when >= EPOCH + 60) & (when < EPOCH + 90) & failing
    failed = inside & (rng.random(len(when)) < 0.5)
    worker.serve(when, latency(len(when), 0.03), "POST", "/orders", np.where(failed, 500, 201))
    return worker


@pytest.fixture
def make_worker() -> type[Worker]:
    return Worker


@pytest.fixture
def make_demo() -> Any:
    return demo


@pytest.fixture
def make_request() -> Any:
    return request_of
