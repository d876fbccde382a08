"""PerformanceMonitor over a real application: its numbers are those of what was sent."""

from __future__ import annotations

import json
import math
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Response

import apivitals
from apivitals import PerformanceMiddleware, PerformanceMonitor, PerformanceThresholds, tally
from apivitals.errors import ConfigurationError
from apivitals.export.reader import current_reader
from apivitals.monitor import monitor as module

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fresh")]


def service(monitor: PerformanceMonitor | None = None) -> FastAPI:
    app = FastAPI()
    if monitor is not None:
        app.add_middleware(PerformanceMiddleware, monitor=monitor)

    @app.get("/items/{item}")
    async def item(item: int) -> Response:
        tally.add_query(0.001, count=2)
        tally.add_cache(hit=True)
        tally.add_cache(hit=False)
        tally.add_outbound(0.001)
        return Response("x" * item)

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("the handler failed")

    return app


def connect(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers={"user-agent": "tester"})


async def send(app: Any, *paths: str) -> None:
    async with connect(app) as client:
        for path in paths:
            await client.get(path)


# --- numbers


async def test_the_summary_is_the_guide_s_and_its_numbers_are_what_was_sent() -> None:
    monitor = PerformanceMonitor()
    app = service(monitor)
    await send(app, *["/items/3"] * 40, *["/teapot"] * 6, *["/boom"] * 4, "/nowhere")
    summary = monitor.get_performance_summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {
        "cpu_usage_percent",
        "memory_usage_percent",
        "throughput_rps",
        "avg_response_time_ms",
        "error_rate_percent",
    } <= summary["system"].keys()
    assert summary["response_time"].keys() == {"avg_ms", "p50_ms", "p95_ms", "p99_ms"}
    requests = summary["requests"]
    assert (requests["total"], requests["successful"], requests["failed"]) == (51, 47, 4)
    assert requests["error_rate_percent"] == pytest.approx(400 / 51)
    assert summary["system"]["error_rate_percent"] == requests["error_rate_percent"]
    assert requests["error_rate_class"] == "poor"
    assert summary["throughput"]["rps"] == summary["system"]["throughput_rps"] > 0
    assert sum(summary["latency_classes"].values()) == 51
    found = {(row["method"], row["path"]): row for row in summary["endpoints"]}
    assert {key: row["total_requests"] for key, row in found.items()} == {
        ("GET", "/items/{item}"): 40,
        ("GET", "/teapot"): 6,
        ("GET", "/boom"): 4,
        ("GET", ""): 1,
    }
    items = found["GET", "/items/{item}"]
    assert (items["total_database_queries"], items["total_cache_hits"]) == (80, 40)
    assert (items["total_cache_misses"], items["total_external_api_calls"]) == (40, 40)
    assert summary["errors"] == {"RuntimeError": 4}
    assert summary["alerts"] == []
    times = summary["response_time"]
    assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"]
    mean = sum(row["total_duration_ms"] for row in summary["endpoints"]) / 51
    assert times["avg_ms"] == pytest.approx(mean)


async def test_endpoints_and_the_summary_agree() -> None:
    monitor = PerformanceMonitor()
    await send(service(), *["/items/1"] * 5)
    (row,) = monitor.get_endpoint_metrics()
    assert (row.method, row.path, row.total_requests) == ("GET", "/items/{item}", 5)
    assert row.min_duration_ms <= row.avg_duration_ms <= row.max_duration_ms
    assert monitor.get_system_metrics().throughput_rps == pytest.approx(row.requests_per_second, rel=0.5)


async def test_an_idle_endpoint_is_shown_where_that_was_asked_for() -> None:
    monitor = PerformanceMonitor()
    app = service()
    for route in app.routes:
        monitor.add_endpoint_monitoring(route.path)  # type: ignore[attr-defined]
    await send(app, "/teapot")
    rows = monitor.get_performance_summary()["endpoints"]
    assert rows[0]["path"] == "/teapot"
    assert {row["path"]: row["total_requests"] for row in rows[1:]} == {
        "/boom": 0,
        "/docs": 0,
        "/docs/oauth2-redirect": 0,
        "/items/{item}": 0,
        "/openapi.json": 0,
        "/redoc": 0,
    }


async def test_health_by_the_thresholds_of_the_monitor() -> None:
    strict = PerformanceThresholds(
        response_time_ms={"excellent": 1e-5, "good": 2e-5, "acceptable": 3e-5, "poor": 4e-5, "critical": 1e-4}
    )
    monitor = PerformanceMonitor(strict)
    assert monitor.get_health_status()["status"] == "unknown"
    await send(service(), *["/items/1"] * 5)
    status = monitor.get_health_status()
    assert (status["status"], status["latency"], status["errors"]) == ("unhealthy", "critical", "excellent")
    assert "slowest is GET /items/{item}" in status["reasons"][0]
    json.dumps(status)


async def test_the_prometheus_text_is_the_exported_one() -> None:
    monitor = PerformanceMonitor()
    await send(service(), "/items/1")
    text = monitor.get_prometheus_metrics()
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    assert "http_server_request_duration_seconds_count" in names
    assert names == {line.partition("{")[0].partition(" ")[0] for line in apivitals.render_metrics().splitlines()}


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_window_of_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"window_seconds is .*; give a number above 0"):
        PerformanceMonitor(window_seconds=seconds)


async def test_without_telemetry_everything_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monitor = PerformanceMonitor()
    assert current_reader() is None
    app = service(monitor)
    await send(app, "/items/1", "/boom")
    monitor.setup_alerts({"response_time_ms": 1, "error_rate_percent": 1})
    summary = monitor.get_performance_summary()
    assert summary["requests"]["total"] == 0
    assert len(summary["recent_requests"]) == 2
    assert monitor.get_health_status()["status"] == "unknown"
    assert monitor.get_prometheus_metrics() == ""
    assert monitor.performance_alerts == []
    assert list(monitor.requests())


# --- running


async def test_starting_twice_is_one_thread_and_stopping_ends_it() -> None:
    monitor = PerformanceMonitor()
    assert not monitor._is_running
    await monitor.start_monitoring()
    await monitor.start_background_monitoring()
    assert monitor._is_running
    assert [thread.name for thread in threading.enumerate()].count("apivitals-window") == 1
    await monitor.stop_monitoring()
    await monitor.stop_monitoring()
    assert not monitor._is_running
    assert "apivitals-window" not in [thread.name for thread in threading.enumerate()]
    # The first state and the last were kept.
    assert len(monitor._window.snapshots()) == 2
    await monitor.start_monitoring()
    assert monitor._is_running
    await monitor.stop_monitoring()


# --- single requests


async def test_the_recent_and_the_slowest_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = PerformanceMonitor()
    request = Asked("/a")
    for number in range(1000):
        identity = monitor.start_request(request)
        monitor.end_request(identity, Response(), duration_ms=float((number * 37) % 1000))
    assert len(monitor._recent) == 200
    assert [each.duration_ms for each in monitor._slowest] == [float(value) for value in range(999, 949, -1)]
    summary = monitor.get_performance_summary()
    assert len(summary["recent_requests"]) == len(summary["slowest_requests"]) == 20
    assert summary["slowest_requests"][0]["duration_ms"] == 999.0
    assert summary["recent_requests"][-1]["duration_ms"] == float((999 * 37) % 1000)


class Asked:
    """What the guide hands to `start_request`: a request with a method, an URL, headers and a client."""

    def __init__(self, path: str, **headers: str) -> None:
        self.method = "GET"
        self.url = httpx.URL(f"http://service{path}")
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.client = type("Client", (), {"host": "192.0.2.7"})()


async def test_requests_whose_end_is_never_told_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPEN", 10)
    monitor = PerformanceMonitor()
    identities = [monitor.start_request(Asked("/a")) for _ in range(25)]
    assert len(set(identities)) == 25
    assert len(monitor._open) == 10
    assert monitor.end_request(identities[0], Response()) is None
    assert monitor.end_request(identities[-1], Response()) is not None
    assert monitor.end_request(identities[-1], Response()) is None
    assert monitor.end_request("unknown", Response()) is None


async def test_kinds_of_errors_do_not_pile_up() -> None:
    monitor = PerformanceMonitor()
    for number in range(500):
        monitor.record_error(None, type(f"Error{number}", (Exception,), {})())
    monitor.record_error(None, type("Error3", (Exception,), {})())
    errors = monitor.get_performance_summary()["errors"]
    assert len(errors) == 100
    assert errors["Error3"] == 2


@pytest.mark.parametrize("capture", [False, True])
async def test_who_asked_is_kept_only_where_that_was_asked_for(capture: bool) -> None:
    monitor = PerformanceMonitor(capture_client=capture)
    request = Asked("/a?token=secret", user_agent="Mozilla", content_length="12")
    ended = monitor.end_request(monitor.start_request(request), Response("four"), 1.5)
    assert ended is not None
    assert (ended.path, ended.request_size_bytes, ended.response_size_bytes) == ("/a", 12, 4)
    assert (ended.status_code, ended.duration_ms) == (200, 1.5)
    assert ended.ip_address == ("192.0.2.7" if capture else None)
    assert ended.user_agent == ("Mozilla" if capture else None)


@pytest.mark.parametrize("length", ["", "-5", "many", "١٢", "1e3"])
async def test_a_length_that_is_none_is_nothing(length: str) -> None:
    monitor = PerformanceMonitor()
    ended = monitor.end_request(monitor.start_request(Asked("/a", content_length=length)), Response())
    assert ended is not None
    assert ended.request_size_bytes == 0
    assert ended.duration_ms > 0


# --- operations and alerts


async def test_operations_are_recorded() -> None:
    monitor = PerformanceMonitor()
    monitor.record_endpoint_metrics("resize", 250.0)
    monitor.record_endpoint_metrics("resize", 750.0, success=False)
    text = monitor.get_prometheus_metrics()
    assert 'apivitals_operation_duration_seconds_sum{apivitals_operation_name="resize"} 0.25\n' in text
    failed = 'apivitals_operation_duration_seconds_count{apivitals_operation_name="resize",error_type="_OTHER"} 1\n'
    assert failed in text


async def test_alerts_that_hold_now() -> None:
    monitor = PerformanceMonitor()
    assert monitor.performance_alerts == []
    monitor.setup_alerts({"error_rate_percent": 5.0, "response_time_ms": 60_000, "throughput_rps": 1e9})
    # Without a request there is no error rate; that nobody asks is below any throughput.
    assert [alert["type"] for alert in monitor.performance_alerts] == ["low_throughput"]
    await send(service(), *["/items/1"] * 9, "/boom")
    (error, throughput) = monitor.performance_alerts
    assert (error["type"], error["severity"], error["title"]) == ("high_error_rate", "error", "Error rate")
    assert error["message"] == "Error rate is 10.00 %, above 5 %"
    assert throughput["type"] == "low_throughput"
    assert monitor.get_performance_summary()["alerts"][0]["type"] == "high_error_rate"
    json.dumps(monitor.performance_alerts)


async def test_the_guide_s_alert_config_is_taken_and_a_wrong_one_is_not() -> None:
    monitor = PerformanceMonitor()
    guide = {
        "response_time_ms": 1000,
        "error_rate_percent": 5.0,
        "cpu_usage_percent": 80.0,
        "memory_usage_percent": 85.0,
        "throughput_rps": 50,
    }
    monitor.setup_alerts(guide)
    with pytest.raises(ConfigurationError, match="the keys are"):
        monitor.setup_alerts({"latency": 1})
    assert monitor._alert_config == guide


# --- what the analytics read


async def test_the_kept_snapshots_are_export_requests() -> None:
    monitor = PerformanceMonitor()
    app = service()
    await send(app, "/items/1")
    monitor._window.sample()
    await send(app, "/items/1")
    requests = list(monitor.requests())
    assert len(requests) == 2
    json.dumps(requests, allow_nan=False)

    def count(request: Any) -> int:
        return sum(
            int(point["count"])
            for scope in request["resourceMetrics"][0]["scopeMetrics"]
            for metric in scope["metrics"]
            if metric["name"] == "http.server.request.duration"
            for point in metric["histogram"]["dataPoints"]
        )

    assert [count(request) for request in requests] == [1, 2]
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    assert list(monitor.requests(start=later)) == []
    assert list(monitor.requests(end=later - timedelta(hours=2))) == []
    assert len(list(monitor.requests(end=later))) == 2


async def test_an_idle_route_goes_on_having_a_value_over_time() -> None:
    monitor = PerformanceMonitor()
    await send(service(), "/items/1")
    for _ in range(3):
        monitor._window.sample()
    times = [
        point["timeUnixNano"]
        for request in monitor.requests()
        for scope in request["resourceMetrics"][0]["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == "http.server.request.duration"
        for point in metric["histogram"]["dataPoints"]
    ]
    assert len(times) == len(set(times)) == 4


async def test_the_analytics_read_a_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    from apivitals import PerformanceAnalytics

    monitor = PerformanceMonitor()
    app = service()
    for _ in range(3):
        await send(app, "/items/1", "/boom")
        monitor._window.sample()
    analytics = PerformanceAnalytics(monitor)
    assert analytics.thresholds is monitor.thresholds
    trend = await analytics.analyze_trends("response_time", apivitals.TimeWindow.HOUR)
    # Seconds of data carry no trend, and it says so.
    assert trend.trend_direction == "not enough data"
    assert trend.message
