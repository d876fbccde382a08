from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from apivitals.demo.plan import injections
from apivitals.demo.verdict import judge
from apivitals.models import Finding, as_dict

MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
SLOW, FAILING = injections(120)


def finding(kind: Any, route: str | None, start: datetime | None, method: str | None = "GET") -> dict[str, Any]:
    plain: dict[str, Any] = as_dict(
        Finding(kind, "high", "title", "detail", "response_time", start_time=start, route=route, method=method)
    )
    return plain


def after(seconds: float) -> datetime:
    return MOMENT + timedelta(seconds=seconds)


@pytest.mark.parametrize(("offset", "found"), [(0, True), (60, True), (-60, True), (61, False), (-61, False)])
def test_a_finding_must_start_near_the_injection(offset: float, found: bool):
    (verdict,) = judge([(SLOW, MOMENT)], [finding("latency", SLOW.route, after(offset))])
    assert verdict.found is found
    assert verdict.offset == offset
    assert f"{abs(offset)} s {'before' if offset < 0 else 'after'} the injection" in verdict.text


@pytest.mark.parametrize(
    "other",
    [
        finding("errors", SLOW.route, MOMENT),
        finding("latency", "/rates", MOMENT),
        finding("latency", None, MOMENT),
        finding("latency", SLOW.route, MOMENT, method="POST"),
        finding("latency", SLOW.route, None),
    ],
)
def test_other_findings_do_not_count(other: dict[str, Any]):
    (verdict,) = judge([(SLOW, MOMENT)], [other])
    assert not verdict.found
    assert verdict.offset is None
    assert f"{other['kind']} of {other['route']}" in verdict.text


def test_the_nearest_of_several_findings_counts():
    findings = [finding("latency", SLOW.route, after(seconds)) for seconds in (-300, 5, 40)]
    (verdict,) = judge([(SLOW, MOMENT)], findings)
    assert verdict.found
    assert verdict.offset == 5


def test_each_injection_has_its_verdict():
    found, missed = judge([(SLOW, MOMENT), (FAILING, MOMENT)], [finding("latency", SLOW.route, MOMENT)])
    assert (found.injection, found.found) == (SLOW, True)
    assert (missed.injection, missed.found) == (FAILING, False)


def test_no_findings_at_all():
    (verdict,) = judge([(FAILING, MOMENT)], [])
    assert not verdict.found
    assert "errors of POST /checkout was not found; the findings are: none" in verdict.text
