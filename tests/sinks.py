"""OTLP receivers for tests: they keep what arrives, decoded by opentelemetry-proto."""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, Any] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}


class Received:
    """Export requests by signal, in order of arrival."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = {signal: [] for signal in REQUESTS}
        self.raw: dict[str, list[bytes]] = {signal: [] for signal in REQUESTS}
        self._changed = Condition()

    def add(self, signal: str, body: bytes) -> None:
        decoded = REQUESTS[signal].FromString(body)
        with self._changed:
            self.requests[signal].append(decoded)
            self.raw[signal].append(body)
            self._changed.notify_all()

    def wait(self, signal: str, count: int = 1, timeout: float = 20.0) -> list[Any]:
        deadline = monotonic() + timeout
        with self._changed:
            while len(self.requests[signal]) < count:
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(
                        f"{len(self.requests[signal])} {signal} requests after {timeout} s, not {count}"
                    )
        return self.requests[signal]

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests["traces"]
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """The metrics of the last request that arrived, by name."""
        return {
            metric.name: metric
            for resource in self.requests["metrics"][-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def log_records(self) -> list[Any]:
        return [
            record
            for request in self.requests["logs"]
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class HttpSink(Received):
    """Receives OTLP over http/protobuf."""

    def __enter__(self) -> HttpSink:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.add(self.path.rpartition("/")[2], body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class GrpcSink(Received):
    """Receives OTLP over gRPC."""

    def __enter__(self) -> GrpcSink:
        import grpc

        services = {
            "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
            "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
            "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
        }
        self._server = grpc.server(ThreadPoolExecutor(4))
        for signal, service in services.items():
            # Bodies are taken as bytes, so that what is kept is what was sent.
            handler = grpc.unary_unary_rpc_method_handler(self._receiver(signal))
            generic = grpc.method_handlers_generic_handler(service, {"Export": handler})
            self._server.add_generic_rpc_handlers((generic,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()
        return self

    def _receiver(self, signal: str) -> Any:
        def receive(body: bytes, context: Any) -> bytes:
            self.add(signal, body)
            return b""

        return receive

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0)
