"""Whether the findings name what was injected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apivitals.demo.plan import Injection

#: A finding's start may be this far from the injection.
TOLERANCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One injection and what became of it; `offset` is the finding's start minus the injection's, in seconds."""

    injection: Injection
    found: bool
    text: str
    offset: float | None = None


def judge(started: Sequence[tuple[Injection, datetime]], findings: Iterable[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """A verdict on each injection.

    Args:
        started: the injections with the moments they really began.
        findings: of the analytics job, as in its JSON output.
    """
    listed = list(findings)
    return tuple(_judge_one(injection, moment, listed) for injection, moment in started)


def _judge_one(injection: Injection, moment: datetime, findings: Sequence[Mapping[str, Any]]) -> Verdict:
    what = f"{injection.kind} of {injection.method} {injection.route}"
    offsets = [
        (datetime.fromisoformat(finding["start_time"]) - moment).total_seconds()
        for finding in findings
        if finding.get("kind") == injection.kind
        and finding.get("route") == injection.route
        and finding.get("method") in (injection.method, None)
        and finding.get("start_time")
    ]
    if not offsets:
        named = ", ".join(sorted({f"{finding.get('kind')} of {finding.get('route')}" for finding in findings}))
        return Verdict(injection, False, f"{what} was not found; the findings are: {named or 'none'}")
    offset = min(offsets, key=abs)
    side = f"{abs(offset):.0f} s {'after' if offset >= 0 else 'before'} the injection at {moment.astimezone():%H:%M:%S}"
    if abs(offset) > TOLERANCE_SECONDS:
        return Verdict(
            injection, False, f"{what} was found, but {side}: more than {TOLERANCE_SECONDS:.0f} s off", offset
        )
    return Verdict(injection, True, f"{what} was found, {side}", offset)
