"""What the demo breaks, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: The shop without faults, in the terms of its control route.
NORMAL = {"report_slowdown": 1.0, "checkout_failures": 0.01}


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault.

    Attributes:
        kind: the kind of finding that has to come of it.
        method: of the route that suffers.
        route: the template of that route.
        fault: what the shop's control route calls it, with the `value` it takes.
        begin: seconds after the traffic starts; `end` likewise.
        text: the same for a person.
    """

    kind: Literal["latency", "errors"]
    method: str
    route: str
    fault: str
    value: float
    begin: float
    end: float
    text: str


def injections(seconds: float) -> tuple[Injection, ...]:
    """The faults of a run of that many seconds: quiet first, then a slowdown, then errors that overlap with it."""
    return (
        Injection(
            "latency",
            "GET",
            "/reports/{report_id}",
            "report_slowdown",
            8.0,
            0.42 * seconds,
            0.67 * seconds,
            "the warehouse answers 8 times slower, so GET /reports/{report_id} does",
        ),
        Injection(
            "errors",
            "POST",
            "/checkout",
            "checkout_failures",
            0.6,
            0.58 * seconds,
            0.80 * seconds,
            "60 % of payments fail, so POST /checkout does",
        ),
    )


def changes(faults: Iterable[Injection]) -> tuple[float, ...]:
    """The moments, in seconds, at which the faults in force change."""
    return tuple(sorted({moment for fault in faults for moment in (fault.begin, fault.end)}))


def faults_at(faults: Iterable[Injection], moment: float) -> dict[str, float]:
    """What the shop's control route has to be told at a moment: the faults in force, and normal for the rest."""
    return {**NORMAL, **{fault.fault: fault.value for fault in faults if fault.begin <= moment < fault.end}}
