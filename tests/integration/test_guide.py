"""The user's guide as one small service: its snippets as they stand there, with imports from `apivitals`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse

import apivitals
from apivitals import (
    EndpointMetrics,
    PerformanceAnalytics,
    PerformanceMiddleware,
    PerformanceMonitor,
    PerformanceThresholds,
    RequestMetrics,
    SystemMetrics,
    TimeWindow,
    monitor_endpoint,
)
from tests.telemetry_reset import reset_opentelemetry

pytestmark = pytest.mark.anyio

# "Performance Alerts"
alert_config = {
    "response_time_ms": 1000,
    "error_rate_percent": 5.0,
    "cpu_usage_percent": 80.0,
    "memory_usage_percent": 85.0,
    "throughput_rps": 50,
}

# "Performance Issues"
performance_issues = {
    "high_response_time": {"solutions": ["Optimize queries", "Add caching", "Use background processing"]},
    "high_error_rate": {"solutions": ["Add retry logic", "Implement circuit breakers", "Scale resources"]},
}


def make_thresholds() -> PerformanceThresholds:
    """The guide's Performance Monitor Setup."""
    return PerformanceThresholds(
        response_time_ms={"excellent": 100, "good": 300, "acceptable": 500, "poor": 1000, "critical": 2000},
        throughput_rps={"excellent": 1000, "good": 500, "acceptable": 100, "poor": 50, "critical": 10},
        error_rate_percent={"excellent": 0.1, "good": 1.0, "acceptable": 5.0, "poor": 10.0, "critical": 25.0},
    )


def make_app(monitor: PerformanceMonitor, analytics: PerformanceAnalytics) -> FastAPI:
    # "FastAPI Integration"
    app = FastAPI(title="HeyGen AI API")
    app.add_middleware(PerformanceMiddleware, monitor=monitor)

    @app.get("/health/performance")
    async def performance_health() -> Any:
        return monitor.get_health_status()

    # "Performance Summary"
    @app.get("/performance/summary")
    async def get_performance_summary() -> Any:
        return monitor.get_performance_summary()

    # "Complete Integration"
    @app.get("/performance/analytics")
    async def get_performance_analytics() -> Any:
        return await analytics.generate_report("hourly")

    # "Prometheus Metrics"
    @app.get("/metrics")
    async def get_metrics() -> Response:
        return Response(content=monitor.get_prometheus_metrics(), media_type="text/plain")

    # "Alert Notifications"
    @app.get("/alerts")
    async def get_alerts() -> Any:
        return monitor.performance_alerts

    # "Error Handling"
    @app.exception_handler(Exception)
    async def performance_aware_exception_handler(request: Request, exc: Exception) -> JSONResponse:
        monitor.record_error(request, exc)
        return JSONResponse(
            status_code=500,
            content={"error": "Internal server error"},
            headers={"X-Error-Type": type(exc).__name__},
        )

    # "Performance Issues"
    @app.get("/troubleshoot/performance")
    async def troubleshoot_performance() -> Any:
        summary = monitor.get_performance_summary()
        issues = []
        if summary["system"]["avg_response_time_ms"] > 1000:
            issues.append(
                {
                    "issue": "high_response_time",
                    "severity": "high",
                    "suggestions": performance_issues["high_response_time"]["solutions"],
                }
            )
        if summary["system"]["error_rate_percent"] > 5:
            issues.append(
                {
                    "issue": "high_error_rate",
                    "severity": "critical",
                    "suggestions": performance_issues["high_error_rate"]["solutions"],
                }
            )
        return {"issues": issues}

    # "Monitoring Issues"
    @app.get("/monitoring/health")
    async def monitoring_health() -> Any:
        return {"monitor_status": monitor._is_running, "analytics_status": analytics is not None}

    # "Custom Performance Decorators"
    @app.get("/custom-endpoint")
    @monitor_endpoint("custom_endpoint")
    async def custom_endpoint() -> Any:
        return {"message": "Custom endpoint with monitoring"}

    @app.get("/videos")
    async def get_videos(page: int = Query(1, ge=1), per_page: int = Query(20, ge=1, le=100)) -> Any:
        return {"page": page, "per_page": per_page}

    @app.get("/broken")
    async def broken() -> Any:
        raise ValueError("no such video")

    return app


def add_request_level_monitoring(app: FastAPI, monitor: PerformanceMonitor) -> None:
    """The guide's Request-Level Monitoring."""

    @app.middleware("http")
    async def performance_middleware(request: Request, call_next: Callable[..., Any]) -> Any:
        start_time = time.time()

        # Start monitoring
        request_id = monitor.start_request(request)

        try:
            response = await call_next(request)

            # Calculate duration
            duration_ms = (time.time() - start_time) * 1000

            # End monitoring
            monitor.end_request(request_id, response, duration_ms)

            return response

        except Exception:
            # Handle errors
            duration_ms = (time.time() - start_time) * 1000
            error_response = Response(status_code=500, content="Internal server error")
            monitor.end_request(request_id, error_response, duration_ms)
            raise


async def check_performance_alerts(monitor: PerformanceMonitor) -> list[dict[str, Any]]:
    """The guide's Performance Alerts."""
    summary = monitor.get_performance_summary()

    alerts = []

    # Check response time
    if summary["system"]["avg_response_time_ms"] > alert_config["response_time_ms"]:
        alerts.append(
            {
                "type": "high_response_time",
                "message": f"Average response time is {summary['system']['avg_response_time_ms']:.2f}ms",
                "severity": "warning",
            }
        )

    # Check error rate
    if summary["system"]["error_rate_percent"] > alert_config["error_rate_percent"]:
        alerts.append(
            {
                "type": "high_error_rate",
                "message": f"Error rate is {summary['system']['error_rate_percent']:.2f}%",
                "severity": "error",
            }
        )

    return alerts


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Any]:
    monkeypatch.chdir(tmp_path)
    for signal in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    reset_opentelemetry()
    monitor = PerformanceMonitor(make_thresholds())
    await monitor.start_monitoring()
    analytics = PerformanceAnalytics(monitor)
    app = make_app(monitor, analytics)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield SimpleNamespace(app=app, monitor=monitor, analytics=analytics, client=client)
    await monitor.stop_monitoring()
    apivitals.shutdown()
    reset_opentelemetry()


async def test_the_service_of_the_guide(guide: Any) -> None:
    client = guide.client
    assert (await client.get("/health/performance")).json()["status"] == "unknown"
    for page in range(1, 21):
        assert (await client.get("/videos", params={"page": page})).json() == {"page": page, "per_page": 20}
    assert (await client.get("/videos", params={"page": 0})).status_code == 422
    assert (await client.get("/custom-endpoint")).json() == {"message": "Custom endpoint with monitoring"}
    health = (await client.get("/health/performance")).json()
    assert (health["status"], health["errors"]) == ("healthy", "excellent")
    assert await check_performance_alerts(guide.monitor) == []
    assert (await client.get("/troubleshoot/performance")).json() == {"issues": []}
    assert (await client.get("/monitoring/health")).json() == {"monitor_status": True, "analytics_status": True}
    for _ in range(5):
        answer = await client.get("/broken")
        assert answer.status_code == 500
        assert answer.headers["x-error-type"] == "ValueError"
    summary = (await client.get("/performance/summary")).json()
    assert summary["system"].keys() >= {
        "cpu_usage_percent",
        "memory_usage_percent",
        "throughput_rps",
        "avg_response_time_ms",
        "error_rate_percent",
    }
    assert summary["response_time"].keys() == {"avg_ms", "p50_ms", "p95_ms", "p99_ms"}
    assert summary["requests"]["failed"] == 5
    found = {row["path"]: row["total_requests"] for row in summary["endpoints"]}
    assert found["/videos"] == 21
    assert found["/broken"] == 5
    assert summary["errors"]["ValueError"] >= 5
    (alert,) = await check_performance_alerts(guide.monitor)
    assert (alert["type"], alert["severity"]) == ("high_error_rate", "error")
    ((issue,),) = (await client.get("/troubleshoot/performance")).json().values()
    assert (issue["issue"], issue["severity"]) == ("high_error_rate", "critical")


async def test_the_text_for_prometheus(guide: Any) -> None:
    for _ in range(3):
        await guide.client.get("/videos")
    await guide.client.get("/custom-endpoint")
    answer = await guide.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    counts = [
        line for line in answer.text.splitlines() if line.startswith("http_server_request_duration_seconds_count")
    ]
    assert sum(int(line.rpartition(" ")[2]) for line in counts if '"/videos"' in line) == 3
    assert 'apivitals_operation_duration_seconds_count{apivitals_operation_name="custom_endpoint"} 1' in answer.text


async def test_comprehensive_monitoring_and_the_alerts(guide: Any) -> None:
    monitor = guide.monitor
    # "Best Practices: Performance Monitoring"
    for endpoint in guide.app.routes:
        if hasattr(endpoint, "path"):
            monitor.add_endpoint_monitoring(endpoint.path)
    monitor.setup_alerts(alert_config)
    await monitor.start_background_monitoring()
    for _ in range(3):
        await guide.client.get("/broken")
    found = {alert["type"]: alert for alert in (await guide.client.get("/alerts")).json()}
    assert found["high_error_rate"]["severity"] == "critical"
    assert found["low_throughput"]["threshold"] == 50
    assert {"title", "message", "severity", "timestamp"} <= found["high_error_rate"].keys()
    paths = {row["path"] for row in monitor.get_performance_summary()["endpoints"]}
    assert {"/videos", "/broken", "/metrics"} <= paths


async def test_request_level_monitoring(guide: Any) -> None:
    add_request_level_monitoring(guide.app, guide.monitor)
    for _ in range(2):
        assert (await guide.client.get("/videos")).status_code == 200
    assert (await guide.client.get("/broken")).status_code == 500
    # The middleware and the guide's own each keep the request; the telemetry counts it once.
    assert [each.path for each in guide.monitor._recent] == ["/videos"] * 4 + ["/broken"] * 2
    assert {each.status_code for each in guide.monitor._recent} == {200, 500}
    found = {row.path: row.total_requests for row in guide.monitor.get_endpoint_metrics()}
    assert found == {"/videos": 2, "/broken": 1}


async def test_analytics_of_a_young_service_say_that_there_is_too_little(guide: Any) -> None:
    analytics = guide.analytics
    for _ in range(10):
        await guide.client.get("/videos")
    # "Analytics System Setup"
    trends = await analytics.analyze_trends(metric="response_time", time_window=TimeWindow.HOUR)
    assert trends.trend_direction == "not enough data"
    anomalies = await analytics.detect_anomalies(metric="response_time", time_window=TimeWindow.HOUR, sensitivity=2.0)
    assert list(anomalies) == []
    correlations = await analytics.analyze_correlations(
        metrics=["response_time", "cpu_usage", "memory_usage"], time_window=TimeWindow.DAY
    )
    assert {correlation.significance for correlation in correlations} <= {"not enough data"}
    # "Trend Analysis"
    response_time_trend = await analytics.analyze_trends(
        metric="response_time",
        time_window=TimeWindow.DAY,
        start_time=datetime.now(timezone.utc) - timedelta(days=7),
        end_time=datetime.now(timezone.utc),
    )
    assert f"{response_time_trend.trend_strength:.2f} {response_time_trend.r_squared:.2f}" == "0.00 0.00"


class Recorded:
    """A service whose latency steps up, as a monitor would give it: `requests(start, end)`."""

    def __init__(self, hours: int, step_at: float) -> None:
        self._hours, self._step_at = hours, step_at
        self._begin = datetime(2026, 3, 2, tzinfo=timezone.utc)

    def requests(self, start: datetime | None = None, end: datetime | None = None) -> Any:
        bounds = [0.1, 0.2, 0.4, 0.8]
        counts = [0] * 5
        total = 0.0
        start_ns = int(self._begin.timestamp() * 1e9)
        for minute in range(0, self._hours * 60, 5):
            slow = minute >= self._step_at * 60
            spread = (minute * 7919) % 11
            for place, count in enumerate((60 - spread, 40, spread, 0, 0)):
                shift = 2 if slow else 0
                counts[min(place + shift, 4)] += count
                total += count * (bounds[min(place + shift, 3)] * 0.75)
            at = int((self._begin + timedelta(minutes=minute)).timestamp() * 1e9)
            point = {
                "attributes": [
                    {"key": "http.request.method", "value": {"stringValue": "GET"}},
                    {"key": "http.route", "value": {"stringValue": "/videos"}},
                    {"key": "http.response.status_code", "value": {"intValue": "200"}},
                ],
                "startTimeUnixNano": str(start_ns),
                "timeUnixNano": str(at),
                "count": str(sum(counts)),
                "sum": total,
                "bucketCounts": [str(count) for count in counts],
                "explicitBounds": bounds,
            }
            metric = {
                "name": "http.server.request.duration",
                "unit": "s",
                "histogram": {"dataPoints": [point], "aggregationTemporality": 2},
            }
            yield {"resourceMetrics": [{"resource": {"attributes": []}, "scopeMetrics": [{"metrics": [metric]}]}]}


async def test_anomalies_are_described_as_the_guide_prints_them() -> None:
    analytics = PerformanceAnalytics(Recorded(hours=72, step_at=71.5))
    anomalies = await analytics.detect_anomalies(metric="response_time", time_window=TimeWindow.HOUR, sensitivity=2.5)
    assert anomalies
    for anomaly in anomalies:
        printed = (
            f"Anomaly detected at {anomaly.timestamp}\n"
            f"Value: {anomaly.value:.2f} (expected: {anomaly.expected_value:.2f})\n"
            f"Severity: {anomaly.severity}\n"
            f"Confidence: {anomaly.confidence:.2f}"
        )
        assert "Severity: " in printed
        assert anomaly.value > anomaly.expected_value
        assert anomaly.severity in ("low", "medium", "high", "critical")
        assert 0 < anomaly.confidence <= 1


async def test_the_report_of_the_analytics_endpoint(guide: Any) -> None:
    await guide.client.get("/videos")
    answer = await guide.client.get("/performance/analytics")
    assert answer.status_code == 200
    assert answer.json()["period"] == "hourly"
    json.dumps(answer.json(), allow_nan=False)


def test_the_data_classes_of_the_guide() -> None:
    # "Request Metrics"
    request_metrics = RequestMetrics(
        request_id="req_123",
        method="GET",
        path="/api/videos",
        status_code=200,
        start_time=datetime.now(timezone.utc),
        duration_ms=150.5,
        request_size_bytes=1024,
        response_size_bytes=2048,
        user_agent="Mozilla/5.0...",
        ip_address="192.168.1.1",
        user_id="user_123",
        database_queries=3,
        cache_hits=2,
        cache_misses=1,
        external_api_calls=1,
    )
    assert request_metrics.duration_ms == 150.5
    # "Endpoint Metrics"
    endpoint_metrics = EndpointMetrics(
        method="GET",
        path="/api/videos",
        total_requests=1000,
        successful_requests=950,
        failed_requests=50,
        total_duration_ms=150000,
        avg_duration_ms=150.0,
        p95_duration_ms=300.0,
        p99_duration_ms=500.0,
        total_database_queries=3000,
        total_cache_hits=2000,
        total_cache_misses=1000,
    )
    assert endpoint_metrics.failed_requests == 50
    # "System Metrics"
    system_metrics = SystemMetrics(
        timestamp=datetime.now(timezone.utc),
        cpu_usage_percent=45.2,
        memory_usage_percent=67.8,
        memory_available_mb=2048,
        disk_usage_percent=23.4,
        network_bytes_sent=1024000,
        network_bytes_received=2048000,
        active_connections=150,
        total_requests_per_second=25.5,
        avg_response_time_ms=180.3,
        error_rate_percent=2.1,
        throughput_rps=25.5,
    )
    assert system_metrics.throughput_rps == 25.5


async def test_the_guide_s_own_decorator_has_what_it_calls(guide: Any) -> None:
    monitor = guide.monitor

    async def work() -> str:
        start_time = time.time()
        try:
            await asyncio.sleep(0)
            return "done"
        finally:
            monitor.record_endpoint_metrics("work", (time.time() - start_time) * 1000, True)

    assert await work() == "done"
    assert 'apivitals_operation_name="work"' in monitor.get_prometheus_metrics()
