"""The figures that are promised, and how each is computed from measurements.

A measurement gives each subject one value per round, and a ratio pairs values of the same round, in which the machine
was the same. Only then the median is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

#: Values by subject, one per round; and those by measure.
Samples = Mapping[str, Sequence[float]]
Results = Mapping[str, Samples]
Compute = Callable[[Samples], list[float]]


def value(of: str, scale: float = 1.0) -> Compute:
    """The values themselves, times `scale`."""
    return lambda samples: [scale * one for one in samples[of]]


def ratio(of: str, to: str) -> Compute:
    """`of` ÷ `to`."""
    return lambda samples: [one / other for one, other in zip(samples[of], samples[to], strict=True)]


def added(of: str, bare: str, scale: float = 1.0) -> Compute:
    """What `of` has more than `bare`, times `scale`."""
    return lambda samples: [scale * (one - base) for one, base in zip(samples[of], samples[bare], strict=True)]


def added_ratio(of: str, to: str, bare: str, bare_of_to: str | None = None) -> Compute:
    """What `of` adds to its bare request ÷ what `to` adds to its own, which is the same unless another is named."""

    def compute(samples: Samples) -> list[float]:
        ours = added(of, bare)(samples)
        theirs = added(to, bare_of_to or bare)(samples)
        return [one / other for one, other in zip(ours, theirs, strict=True)]

    return compute


def added_share(of: str, bare: str) -> Compute:
    """What `of` adds to a bare request ÷ the bare request."""
    return lambda samples: [share - 1 for share in ratio(of, bare)(samples)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One promise: `must` is what it takes to ship, `aim` what we want; the sense of both is `sign` (≤ or ≥)."""

    text: str
    measure: str
    compute: Compute
    must: float
    aim: float
    sign: str = "≤"
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure's median and range, and how it stands: `aim`, `must`, `missed`; `noise` for a ratio below 0."""

    figure: Figure
    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Which of the bounds the median keeps, as it is shown."""
        if self.median < 0 and not self.figure.unit:
            return "noise"
        shown = round(self.median, 3)
        keeps = (lambda bound: shown <= bound) if self.figure.sign == "≤" else (lambda bound: shown >= bound)
        return "aim" if keeps(self.figure.aim) else "must" if keeps(self.figure.must) else "missed"


def outcome(figure: Figure, results: Results) -> Outcome | None:
    """What was measured for a figure; None when something that it needs was not."""
    try:
        values = figure.compute(results[figure.measure])
    except (KeyError, ZeroDivisionError):
        return None
    return Outcome(figure, median(values), min(values), max(values)) if values else None


PROMETHEUS = "prometheus-fastapi-instrumentator"

FIGURES = (
    Figure("added CPU/request ÷ launcher's", "cpu", added_ratio("apivitals", "launcher", "bare"), 0.08, 0.05),
    Figure("added CPU/request ÷ FastAPI native's", "cpu", added_ratio("apivitals", "native", "bare"), 0.25, 0.15),
    Figure(f"added CPU/request ÷ {PROMETHEUS}'s", "cpu", added_ratio("apivitals", PROMETHEUS, "bare"), 0.8, 0.5),
    Figure("added CPU/request at 5 % sampling ÷ bare", "cpu", added_share("apivitals-sampled", "bare"), 0.25, 0.17),
    Figure("requests/s through uvicorn ÷ bare", "requests", ratio("apivitals", "bare"), 0.84, 0.91, "≥"),
    Figure("p99 of a paced load ÷ bare", "p99", ratio("apivitals", "bare"), 1.4, 1.1),
    Figure(
        "raising route: added instructions ÷ contrib's",
        "instructions",
        added_ratio("apivitals@raising", "contrib-otlp@raising", "bare@raising"),
        0.15,
        0.05,
    ),
    Figure("start-up ÷ opentelemetry-distro's", "startup", ratio("apivitals", "launcher"), 0.85, 0.7),
    Figure(
        "/metrics of 1,000 histogram series ÷ OTel exporter's",
        "render",
        ratio("apivitals", "otel-prometheus"),
        0.05,
        0.02,
    ),
    Figure("longest event-loop stall, 2,000 series, 10 Hz ticker", "stall", value("apivitals", 1e3), 10, 4, unit="ms"),
    Figure("resident memory added by 200,000 requests", "memory", added("apivitals", "bare", 1e-6), 15, 8, unit="MB"),
    Figure(
        # Telemetry adds a fiftieth of what the routing itself takes, less than what memory layout does: so this way.
        "what 200 routes ahead add in instructions ÷ to bare",
        "instructions",
        added_ratio(
            "apivitals-unexported@behind-routes", "bare@behind-routes", "apivitals-unexported@alone", "bare@alone"
        ),
        1.1,
        1.0,
    ),
    Figure(
        "metrics only: added instructions ÷ contrib's",
        "instructions",
        added_ratio("apivitals-metrics", "contrib-metrics", "bare"),
        0.12,
        0.06,
    ),
    Figure(
        "user's span processor: added instructions ÷ contrib's",
        "instructions",
        added_ratio("apivitals-processor", "contrib-processor", "bare"),
        0.17,
        0.1,
    ),
)
