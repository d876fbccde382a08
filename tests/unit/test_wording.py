"""Numbers, times and names as a person reads them."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals import wording
from apivitals.models import RouteSummary

AT = datetime(2026, 11, 23, 14, 2, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (12.34, "12.3"),
        (999.4, "999"),
        (1234, "1,234"),
        (9999.6, "10k"),
        (56_780, "56.8k"),
        (2_500_000, "2.5M"),
        (-1234, "-1,234"),
        (1.2e18, "1.2e+18"),
        (1e-9, "1.0e-09"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert wording.number(value) == shown


@given(st.floats(-1e300, 1e300))
def test_a_number_is_short_and_close(value: float) -> None:
    shown = wording.number(value)
    assert len(shown) <= 9
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(shown[-1], 1.0)
    read = float(shown.rstrip("kMGT").replace(",", "")) * factor
    assert read == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(2500, "ms", "2.5 s"), (45.2, "ms", "45.2 ms"), (0.2, "s", "200 ms"), (1.5, "{query}", "1.5 query"), (3, "", "3")],
)
def test_quantity(value: float, unit: str, shown: str) -> None:
    assert wording.quantity(value, unit) == shown


@pytest.mark.parametrize(
    ("percent", "shown"),
    [(0, "0 %"), (0.001, "<0.01 %"), (0.25, "0.25 %"), (4.21, "4.2 %"), (99.99, ">99.9 %"), (100, "100 %")],
)
def test_share_never_rounds_to_none_or_all(percent: float, shown: str) -> None:
    assert wording.share(percent) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.25, "250 ms"),
        (45, "45 s"),
        (720, "12 min"),
        (5400, "1 h 30 min"),
        (86_400, "1 day"),
        (183_600, "2 days 3 h"),
        (3600, "1 h"),
    ],
)
def test_span(seconds: float, shown: str) -> None:
    assert wording.span(seconds) == shown


def test_between_says_the_day_once() -> None:
    utc = timezone.utc
    assert wording.between(AT, AT + timedelta(minutes=48), utc) == "23 Nov 14:02 to 14:50"
    assert wording.between(AT, AT + timedelta(seconds=40), utc) == "23 Nov 14:02:05 to 14:02:45"
    assert wording.between(AT, AT + timedelta(days=1), utc) == "23 Nov 14:02 to 24 Nov 14:02"
    assert wording.between(AT, AT, utc) == "23 Nov 14:02"
    assert wording.between(AT, None, utc) == "since 23 Nov 14:02"


def test_extent_says_the_unit_once_if_it_is_one() -> None:
    assert wording.extent(250, 560, "ms") == "250 to 560 ms"
    assert wording.extent(250, 1560, "ms") == "250 ms to 1.56 s"
    assert wording.extent(1, 2, "") == "1 to 2"


@pytest.mark.parametrize(
    ("confidence", "shown"),
    [(0, "not rated"), (0.5, "possible (50 %)"), (0.95, "very likely (95 %)"), (0.9999, "almost certain (>99.9 %)")],
)
def test_certainty(confidence: float, shown: str) -> None:
    assert wording.certainty(confidence) == shown


@given(st.text())
def test_printable_is_one_line_without_controls(words: str) -> None:
    shown = wording.printable(words)
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]


def test_work_of_a_route() -> None:
    counts = {"latency_classes": {}, "error_classes": {}, "latency_class": "good", "throughput_class": "good"}
    zeros = dict.fromkeys(("rps", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "failures", "error_rate_percent"), 0)
    some = RouteSummary("GET", "/", 1, **zeros, **counts, error_rate_class="good", queries_per_request=1.0)  # type: ignore[arg-type]
    assert wording.work(some) == ("1 query",)
    more = replace(some, queries_per_request=2.5, cache_hit_percent=80.0, outbound_per_request=0.2)
    assert wording.work(more) == ("2.5 queries", "80.0 % cache hits", "0.2 outbound calls")


def test_sparkline_keeps_peaks_and_gaps() -> None:
    line = wording.sparkline([1.0] * 50 + [None] * 50 + [9.0] + [1.0] * 49, 15)
    assert len(line) == 15
    assert line[5:10] == "     "
    assert line[10] == "█"
    assert wording.sparkline([None, float("nan")]) == ""
