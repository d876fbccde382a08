"""A service that names no propagator serves requests all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import propagate
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apivitals.telemetry.propagation import NoPropagator, mend_empty_propagator

CARRIER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "k=v"}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = propagate.get_global_textmap()
    yield
    propagate.set_global_textmap(before)


def test_it_carries_nothing() -> None:
    nothing = NoPropagator()
    context = Context({"k": "v"})
    assert nothing.extract(CARRIER, context) is context
    assert nothing.extract(CARRIER) is get_current()
    carrier: dict[str, str] = {}
    nothing.inject(carrier, context)
    assert carrier == {}
    assert nothing.fields == set()


def test_an_empty_composite_is_mended() -> None:
    propagate.set_global_textmap(CompositePropagator([]))
    mend_empty_propagator()
    assert isinstance(propagate.get_global_textmap(), NoPropagator)
    assert propagate.extract(CARRIER) == get_current()


@pytest.mark.parametrize(
    "propagator",
    [CompositePropagator([TraceContextTextMapPropagator()]), TraceContextTextMapPropagator(), NoPropagator()],
)
def test_any_other_is_left_alone(propagator: CompositePropagator) -> None:
    propagate.set_global_textmap(propagator)
    mend_empty_propagator()
    assert propagate.get_global_textmap() is propagator


SERVE = """
import asyncio, json, sys
import httpx
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import apivitals

app = FastAPI()

@app.get("/items/{item}")
async def item(item: int):
    return item

apivitals.configure(server_instrumentation=sys.argv[1], system_metrics=False)
spans = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
apivitals.instrument(app)

async def ask():
    transport = httpx.ASGITransport(app=app)
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
        return (await client.get("/items/1")).status_code

status = asyncio.run(ask())
servers = [span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
apivitals.shutdown()
print(json.dumps([status, len(servers), f"{servers[0].context.trace_id:032x}", servers[0].parent is not None]))
"""


@pytest.mark.parametrize("mode", ["contrib", "native"])
@pytest.mark.parametrize("named", ["none", "tracecontext"])
def test_a_request_is_served_and_traced(mode: str, named: str, tmp_path: Path) -> None:
    silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, mode],
        env={**os.environ, **silent, "OTEL_PROPAGATORS": named},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, servers, trace_id, has_parent = json.loads(done.stdout)
    assert (status, servers) == (200, 1)
    followed = named == "tracecontext"
    assert (trace_id == "0af7651916cd43dd8448eb211c80319c") is followed
    assert has_parent is followed
