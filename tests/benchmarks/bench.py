"""What telemetry adds to a request: CPU time of a bare FastAPI application against each server instrumentation.

    python tests/benchmarks/bench.py [--rounds 5] [--requests 3000]

Every measurement has a process of its own, and the variants take turns within a round, so that a machine that
slows down slows all of them. Processor time of the whole process is counted, the exporting threads' with it and the
waiting without; telemetry goes to files, as it does without an OTLP endpoint. Requests enter at the ASGI interface:
there is no server and no socket in the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from statistics import median
from typing import Any

from fastapi import FastAPI

BARE = "bare"
WARM_UP = 500
HEADERS = [
    (b"host", b"shop.example:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"accept-language", b"en-GB,en;q=0.5"),
    (b"connection", b"keep-alive"),
    (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
]


def application() -> FastAPI:
    """A route with a path parameter behind a few others, and nothing to do in it."""
    app = FastAPI()
    for name in ("users", "orders", "carts", "payments", "reports"):
        app.add_api_route(f"/{name}/{{key}}", lambda key: {"key": key})

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, int]:
        return {"item_id": item_id}

    return app


async def serve(app: FastAPI, requests: int) -> None:
    """Send GET requests into the application one after the other; each must be answered with 200."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    for number in range(requests):
        path = f"/items/{number}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(HEADERS),
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await app(scope, receive, send)
    if statuses != [200] * requests:
        raise RuntimeError(f"{requests} requests gave {len(statuses)} responses of {sorted(set(statuses))}")


def measure(variant: str, requests: int) -> float:
    """Processor seconds per request of one variant in this process, exporting included."""
    import apivitals

    app = application()
    if variant != BARE:
        apivitals.configure(server_instrumentation=variant)
        apivitals.instrument(app)

    async def run() -> float:
        await serve(app, WARM_UP)
        gc.collect()
        started = time.process_time()
        await serve(app, requests)
        flush_spans()
        return (time.process_time() - started) / requests

    try:
        return asyncio.run(run())
    finally:
        apivitals.shutdown()


def flush_spans() -> None:
    """Spans that wait in a queue are part of the cost of the requests that made them."""
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush()


def measure_apart(variant: str, requests: int) -> float:
    """`measure` in a new process, with telemetry files in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "APIVITALS_"))},
            "APIVITALS_DATA_DIR": folder,
            "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
            "OTEL_SERVICE_NAME": "bench",
        }
        command = [sys.executable, __file__, "--measure", variant, "--requests", str(requests)]
        child = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"measuring {variant!r} failed:\n{child.stderr}")
    return float(child.stdout)


def main() -> None:
    """Measures the variants in turns and prints the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000, help="requests in one measurement")
    parser.add_argument("--measure", metavar="VARIANT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure, options.requests))
        return
    variants = [BARE, "apivitals", "contrib"]
    if find_spec("fastapi.telemetry"):
        variants.append("native")
    else:
        print("native: left out, this FastAPI has no telemetry of its own")
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(1, options.rounds + 1):
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for variant in variants:
            taken[variant].append(measure_apart(variant, options.requests))
    bare = median(taken[BARE])
    print(f"{'variant':<10} {'µs/request':>11} {'added µs':>9} {'of bare':>8}   (median of {options.rounds})")
    for variant in variants:
        # Compared within a round, where the machine was the same.
        added = median(one - base for one, base in zip(taken[variant], taken[BARE], strict=True))
        cost = median(taken[variant])
        print(f"{variant:<10} {cost * 1e6:>11.1f} {added * 1e6:>9.1f} {cost / bare:>7.2f}×")


if __name__ == "__main__":
    main()
