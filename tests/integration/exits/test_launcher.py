"""The launcher with a real server: what is emitted with nothing configured, and how each exit behaves."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import zstandard
from google.protobuf.unknown_fields import UnknownFieldSet

from tests.launched import Launched
from tests.services import find_server
from tests.sinks import GrpcSink, HttpSink

pytestmark = pytest.mark.parametrize("mode", ["apivitals", "contrib", "native"])


def lines(folder: Path, signal: str) -> Iterator[Any]:
    for path in sorted(folder.glob(f"{signal}-*.jsonl.zst")):
        with path.open("rb") as source:
            text = zstandard.ZstdDecompressor().stream_reader(source).read()
        yield from map(json.loads, text.splitlines())
    for path in sorted(folder.glob(f"{signal}-*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


def spans(folder: Path) -> list[Any]:
    return [
        span
        for request in lines(folder, "traces")
        for resource in request["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def attributes(entry: Any) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in entry["attributes"]}


def unknown_fields(message: Any) -> list[int]:
    """Numbers of the fields, at any depth, that opentelemetry-proto does not know."""
    found = [field.field_number for field in UnknownFieldSet(message)]
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else [value]:
                found += unknown_fields(inner)
    return found


def test_nothing_configured_gives_files_and_metrics(mode: str, tmp_path: Path) -> None:
    with Launched(tmp_path, {"APIVITALS_SERVER_INSTRUMENTATION": mode}) as service:
        for number in range(20):
            assert service.get(f"/items/{number}") == 200
        assert service.get("/boom") == 500
        assert service.get("/nowhere") == 404
        text = service.metrics()
        service.stop()
    announced = [line for line in service.log.splitlines() if "apivitals" in line and "service 'shopping'" in line]
    assert len(announced) == 1
    folder = tmp_path / "data" / "shopping"
    assert str(folder) in announced[0]
    assert f":{service.metrics_port}/metrics" in announced[0]
    counted = re.findall(r"^http_server_request_duration_seconds_count\{(.*)\} (\d+)$", text, re.M)
    assert sorted(int(count) for _, count in counted) == [1, 1, 20]
    assert "nowhere" not in text
    # A graceful end loses nothing and leaves compressed files.
    assert not list(folder.glob("*.jsonl"))
    servers = [span for span in spans(folder) if span["kind"] == 2]
    assert len(servers) == 22
    assert all("apivitals.latency.class" in attributes(span) for span in servers)
    (last,) = list(lines(folder, "metrics"))[-1]["resourceMetrics"]
    resource = attributes(last["resource"])
    assert resource["service.name"] == "shopping"
    assert resource["service.instance.id"]
    names = {metric["name"] for scope in last["scopeMetrics"] for metric in scope["metrics"]}
    assert {"http.server.request.duration", "process.cpu.time", "system.memory.utilization"} <= names
    total = sum(
        int(point["count"])
        for scope in last["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == "http.server.request.duration"
        for point in metric["histogram"]["dataPoints"]
    )
    assert total == 22


def test_promtool_accepts_the_exposition(mode: str, tmp_path: Path) -> None:
    promtool = find_server("promtool")
    with Launched(tmp_path, {"APIVITALS_SERVER_INSTRUMENTATION": mode}) as service:
        for path in ("/items/1", "/boom", "/nowhere", "/items/word"):
            service.get(path)
        # The event loop's lag is first told a quarter of a second after the start.
        deadline = monotonic() + 10
        while "apivitals_event_loop_lag_seconds_bucket" not in (text := service.metrics()):
            assert monotonic() < deadline
            sleep(0.05)
    checked = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()
    assert checked.stderr == b""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_otlp_is_received_and_decoded(mode: str, protocol: str, tmp_path: Path) -> None:
    with HttpSink() if protocol == "http/protobuf" else GrpcSink() as sink:
        environ = {
            "APIVITALS_SERVER_INSTRUMENTATION": mode,
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BLRP_SCHEDULE_DELAY": "200",
            "OTEL_SERVICE_NAME": "by-name",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.version=7",
        }
        with Launched(tmp_path, environ) as service:
            for number in range(10):
                service.get(f"/items/{number}")
            sink.wait("traces")
            sink.wait("metrics", 2)
            sink.wait("logs")
            assert "http_server_request_duration_seconds_count" in service.metrics()
            service.stop()
    assert not (tmp_path / "data").exists()
    servers = [span for span in sink.spans() if span.kind == 2]
    assert len(servers) == 10
    duration = sink.metrics()["http.server.request.duration"]
    assert sum(point.count for point in duration.histogram.data_points) == 10
    assert duration.histogram.aggregation_temporality == 2
    for signal, requests in sink.requests.items():
        for request, raw in zip(requests, sink.raw[signal], strict=True):
            # What was sent is what opentelemetry-proto writes, but for the order of fields, which is free.
            assert sorted(request.SerializeToString()) == sorted(raw)
            assert not unknown_fields(request)
    resource = sink.requests["metrics"][-1].resource_metrics[0].resource
    said = {pair.key: pair.value.string_value for pair in resource.attributes}
    assert said["service.name"] == "by-name"
    assert said["service.version"] == "7"
    assert said["deployment.environment.name"] == "test"
    looked = [record for record in sink.log_records() if "looking at item" in record.body.string_value]
    traces = {span.trace_id for span in servers}
    assert len(looked) == 10
    assert {record.trace_id for record in looked} == traces


def test_a_taken_port_is_a_warning(mode: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = {"APIVITALS_SERVER_INSTRUMENTATION": mode, "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
        with Launched(tmp_path, environ) as service:
            assert service.get("/items/1") == 200
            service.stop()
    assert f"/metrics is not served on 127.0.0.1:{port}" in service.log
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in service.log
    assert len(spans(tmp_path / "data" / "shopping")) >= 1


def test_a_folder_that_cannot_be_written_is_one_warning(mode: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with Launched(tmp_path, {"APIVITALS_SERVER_INSTRUMENTATION": mode}) as service:
        assert service.get("/items/1") == 200
        assert "http_server_request_duration_seconds_count" in service.metrics()
        service.stop()
    assert service.log.count("no telemetry files") == 1
    assert "APIVITALS_DATA_DIR" in service.log


def test_bad_settings_are_named_and_the_service_runs(mode: str, tmp_path: Path) -> None:
    environ = {
        "APIVITALS_SERVER_INSTRUMENTATION": mode,
        "APIVITALS_RESPONSE_TIME_MS": "excellent=500,good=300",
        "APIVITALS_FILES_MAX_AGE_DAYS": "soon",
    }
    with Launched(tmp_path, environ) as service:
        assert service.get("/items/1") == 200
        assert 'le="0.3"' in service.metrics()
    assert "response_time_ms must increase" in service.log
    assert "files_max_age_days is 'soon'" in service.log


def test_a_failing_instrumentor_stops_no_other(mode: str, tmp_path: Path) -> None:
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[opentelemetry_instrumentor]\naaa_broken = broken:Instrumentor\n")
    (tmp_path / "broken.py").write_text(
        "class Instrumentor:\n    def instrument(self, **kwargs):\n        raise ValueError('out of order')\n"
    )
    environ = {"APIVITALS_SERVER_INSTRUMENTATION": mode, "PYTHONPATH": str(tmp_path)}
    with Launched(tmp_path, environ) as service:
        assert service.get("/items/1") == 200
        assert "http_server_request_duration_seconds_count" in service.metrics()
    assert "instrumentor 'aaa_broken' failed and is left out: out of order" in service.log


def test_the_sdk_can_be_disabled(mode: str, tmp_path: Path) -> None:
    environ = {"APIVITALS_SERVER_INSTRUMENTATION": mode, "OTEL_SDK_DISABLED": "true"}
    with Launched(tmp_path, environ) as service:
        assert service.get("/items/1") == 200
        with pytest.raises(OSError):
            service.metrics()
    assert not (tmp_path / "data").exists()


def test_a_configuration_file_governs(mode: str, tmp_path: Path) -> None:
    with HttpSink() as sink:
        (tmp_path / "otel.yaml").write_text(
            f"""
file_format: "1.0"
resource:
  attributes:
    - name: service.name
      value: from-the-file
tracer_provider:
  processors:
    - batch:
        schedule_delay: 200
        exporter:
          otlp_http:
            endpoint: {sink.endpoint}/v1/traces
meter_provider:
  readers:
    - periodic:
        interval: 500
        exporter:
          otlp_http:
            endpoint: {sink.endpoint}/v1/metrics
"""
        )
        environ = {
            "APIVITALS_SERVER_INSTRUMENTATION": mode,
            "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml"),
        }
        with Launched(tmp_path, environ) as service:
            assert service.get("/items/1") == 200
            sink.wait("traces")
            sink.wait("metrics", 2)
            service.stop()
    (span,) = [span for span in sink.spans() if span.kind == 2]
    assert {pair.key: pair.value.string_value for pair in span.attributes}["apivitals.latency.class"] == "excellent"
    resource = sink.requests["metrics"][-1].resource_metrics[0].resource
    assert {pair.key: pair.value.string_value for pair in resource.attributes}["service.name"] == "from-the-file"
    assert not (tmp_path / "data").exists()


def test_log_records_carry_the_trace(mode: str, tmp_path: Path) -> None:
    extra = (
        "logging.basicConfig(format='%(message)s trace=%(otelTraceID)s', level=logging.INFO,"
        " handlers=[logging.FileHandler('app.log')])\n"
        "logging.getLogger('shopping').setLevel(logging.INFO)"
    )
    with Launched(tmp_path, {"APIVITALS_SERVER_INSTRUMENTATION": mode}, extra=extra) as service:
        service.get("/items/5")
        service.stop()
    (traced,) = re.findall(r"looking at item 5 trace=([0-9a-f]{32})", (tmp_path / "app.log").read_text())
    (span,) = [span for span in spans(tmp_path / "data" / "shopping") if span["kind"] == 2]
    assert span["traceId"] == traced


def test_sampling_and_propagation_are_the_environments(mode: str, tmp_path: Path) -> None:
    import urllib.request

    with Launched(
        tmp_path, {"APIVITALS_SERVER_INSTRUMENTATION": mode, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    ) as service:
        service.get("/items/1")
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        request = urllib.request.Request(
            f"http://127.0.0.1:{service.port}/items/2",
            headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            response.read()
        assert re.search(r"^http_server_request_duration_seconds_count\{.*\} 2$", service.metrics(), re.M)
        service.stop()
    (span,) = [span for span in spans(tmp_path / "data" / "shopping") if span["kind"] == 2]
    assert span["traceId"] == trace_id
    assert span["parentSpanId"] == "b7ad6b7169203331"


def test_a_supervisor_opens_nothing(mode: str, tmp_path: Path) -> None:
    # The supervisor of --reload imports the same hooks; were it to listen, the worker could not.
    environ = {"APIVITALS_SERVER_INSTRUMENTATION": mode}
    with Launched(tmp_path, environ, arguments=("--workers", "2")) as service:
        for number in range(10):
            assert service.get(f"/items/{number}") == 200
        assert "http_server_request_duration_seconds_count" in service.metrics()
        service.stop()
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"shopping"}
    assert len([span for span in spans(tmp_path / "data" / "shopping") if span["kind"] == 2]) == 10
