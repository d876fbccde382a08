"""The measures by name, with the subjects and the number of rounds that each has unless others are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks import in_process, served
from tests.benchmarks.configurations import BARE
from tests.benchmarks.figures import PROMETHEUS
from tests.benchmarks.task import Gathered, Task


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure; `gives` are the names that its results have."""

    run: Callable[[Task], Gathered]
    gives: tuple[str, ...]
    rounds: int
    subjects: tuple[str, ...]


_OURS = ("apivitals", "apivitals-sampled", "apivitals-unexported", "apivitals-metrics", "apivitals-processor")
_ROUTES = ("behind-routes", "alone")

MEASURES: dict[str, Measure] = {
    "cpu": Measure(
        in_process.cpu,
        ("cpu", "spans"),
        3,
        (
            *(BARE, "launcher", "contrib", "contrib-otlp", "contrib-metrics", "contrib-processor", "native"),
            *("native-metrics", PROMETHEUS, "starlette_exporter", "logfire", "ddtrace", "sentry"),
            *(*_OURS, "apivitals-native", "apivitals-contrib"),
        ),
    ),
    "instructions": Measure(
        in_process.instructions,
        ("instructions",),
        1,
        (
            # The longest ones first, since two are counted at a time.
            *("launcher", "native", "apivitals", *(f"{name}@raising" for name in ("contrib-otlp", "apivitals", BARE))),
            *(f"{name}@{routes}" for name in (BARE, "apivitals-unexported") for routes in _ROUTES),
            *(BARE, "contrib-metrics", "contrib-processor", "apivitals-metrics", "apivitals-processor"),
        ),
    ),
    "requests": Measure(
        served.requests, ("requests", "delivered"), 3, (BARE, "apivitals", "launcher", "native", PROMETHEUS)
    ),
    "p99": Measure(served.p99, served.LATENCIES, 3, (BARE, "apivitals")),
    "startup": Measure(served.startup, ("startup",), 5, (BARE, "launcher", "apivitals")),
    "render": Measure(in_process.render, ("render",), 7, ("otel-prometheus", "prometheus-client", "apivitals")),
    "stall": Measure(in_process.stall, ("stall", "stall-fine", "stall-idle"), 1, ("apivitals", "otel-prometheus")),
    "memory": Measure(in_process.memory, ("memory", "memory-late", "resident"), 1, (BARE, "apivitals")),
}
