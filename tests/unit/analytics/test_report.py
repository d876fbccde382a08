"""The report in its three formats: complete, escaped, well-formed, and loading nothing from anywhere."""

from __future__ import annotations

import json
import re
import sys
from base64 import b64encode
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from apivitals.analytics.markdown import code, text
from apivitals.analytics.report import render
from apivitals.errors import ConfigurationError, MissingExtraError
from apivitals.models import (
    Anomaly,
    ChartSeries,
    Correlation,
    Finding,
    Forecast,
    Report,
    RouteSummary,
    Trend,
    as_dict,
)

END = datetime(2026, 11, 23, 16, tzinfo=timezone.utc)
START = END - timedelta(hours=2)
VIENNA = timezone(timedelta(hours=1), "CET")
HOSTILE = "/<script>alert(1)</script>/`|\x1b[31m\u202e{id}"
VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


def route(method: str, name: str, count: int = 1000, **other: object) -> RouteSummary:
    values = {
        "rps": count / 7200,
        "mean_ms": 60.0,
        "p50_ms": 45.0,
        "p95_ms": 180.0,
        "p99_ms": 1410.0,
        "failures": count // 100,
        "error_rate_percent": 1.0,
        "latency_classes": {"excellent": count - 20, "good": 15, "critical": 5},
        "error_classes": {"none": count - 15, "client_error": 5, "timeout": 10},
        "latency_class": "good",
        "throughput_class": "critical",
        "error_rate_class": "acceptable",
    }
    return RouteSummary(method, name, count, **{**values, **other})  # type: ignore[arg-type]


def full() -> Report:
    hours = tuple(END.timestamp() - 7200 + 60 * step for step in range(120))
    values = tuple(None if 30 <= step < 40 else 100.0 + step for step in range(120))
    labels = {"http.route": "/checkout", "http.request.method": "POST"}
    return Report(
        "shop",
        "hourly",
        START,
        END,
        60.0,
        total=route("", "*", 12_345),
        routes=(route("POST", "/checkout", queries_per_request=11.2, cache_hit_percent=61.5), route("GET", HOSTILE)),
        findings=(
            Finding(
                kind="latency",
                severity="critical",
                title="POST /checkout became 4.1 times slower",
                detail="Calls to the payment provider make up 88 % of the added time.",
                metric="response_time_p95",
                start_time=END - timedelta(minutes=58),
                end_time=END - timedelta(minutes=10),
                route="/checkout",
                method="POST",
                confidence=0.998,
                impact=2904,
                evidence=("external_api_time rose by 1.1 s",),
                advice=("Set a timeout below 1 s.",),
            ),
            Finding("trend", "low", "Memory <b>grows</b>", "", "process_memory", confidence=0.85),
        ),
        trends=(
            Trend(
                "process_memory",
                "increasing",
                change=332.0,
                slope=14.1,
                confidence=0.9996,
                unit="MiB",
                message="may be the time of day",
            ),
            Trend("disk_usage", "not enough data", message="not enough data: 12 points; 60 are needed."),
        ),
        anomalies=(
            Anomaly(
                metric="response_time_p95",
                timestamp=END - timedelta(minutes=58),
                end_time=END - timedelta(minutes=10),
                peak_time=END - timedelta(minutes=30),
                value=1640.0,
                expected_value=390.0,
                lower=250.0,
                upper=560.0,
                severity="critical",
                confidence=0.998,
                direction="up",
                unit="ms",
                labels=labels,
            ),
        ),
        correlations=(
            Correlation(
                "active_requests", "event_loop_lag", 0.51, "moderate", "positive", lag_seconds=120.0, points=120
            ),
            Correlation("cpu_usage", "process_memory", 0.01, "none", "none", points=120),
            Correlation("cpu_usage", "disk_usage", 0.0, "not enough data", "none", message="12 points in common."),
        ),
        forecasts=(
            Forecast("throughput", (END + timedelta(hours=1),), (3.1,), (2.0,), (4.2,), "median", 0.86, 0.94, "rps"),
            Forecast("error_rate", message="two days of data are needed; there is one."),
        ),
        charts=(
            ChartSeries(
                "response_time_p95",
                "ms",
                hours,
                values,
                tuple(80.0 for _ in hours),
                tuple(230.0 for _ in hours),
                ((hours[60], hours[80]),),
                labels=labels,
            ),
        ),
        notes=("2,114 spans were lost; <metrics> are complete.",),
        generated_at=END,
    )


def empty() -> Report:
    return Report("", "hourly", None, None, 0.0, generated_at=END)


class Page(HTMLParser):
    """Collects what a page holds and fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def html() -> str:
    return render(full(), "html", tz=VIENNA)


@pytest.mark.parametrize("report", [full(), empty(), replace(full(), total=None, routes=())])
def test_html_is_balanced_and_asks_nobody_for_anything(report: Report) -> None:
    page = Page(render(report, "html", tz=VIENNA))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "style", "srcset", "action"), (tag, name)
        if name == "href":
            assert (value or "").startswith("#")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name in ("aria-labelledby", "href"):
            assert set((value or "").lstrip("#").split()) <= set(ids)


def test_the_stylesheet_loads_nothing_and_is_the_only_one_allowed(html: str) -> None:
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html
    assert re.findall(r"https?://[^\s\"<]+", html.replace("http://www.w3.org/2000/svg", "")) == []


def test_hostile_names_are_shown_and_not_run(html: str) -> None:
    assert "<script" not in html
    assert "<b>grows" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "/<script>alert(1)</script>/" in Page(html).text


def test_tables_and_headings_are_real(html: str) -> None:
    page = Page(html)
    assert page.tags.count("h1") == 1
    assert page.tags.count("th") == sum(name == "scope" for tag, name, _ in page.attributes if tag == "th")
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {"title", "desc"} <= set(page.tags[page.tags.index("svg") :])


@pytest.mark.parametrize("format", ["html", "md"])
def test_a_full_report_says_everything(format: str) -> None:
    report = full()
    shown = render(report, format, tz=VIENNA)  # type: ignore[arg-type]
    words = Page(shown).text if format == "html" else shown
    for expected in (
        "shop answered 12,345 requests in 2 h, 1.71 a second on average.",
        "Half took at most 45 ms and 95 of 100 at most 180 ms (good); 123 failed, which is 1.0 % (acceptable).",
        "2 things stand out, first of all: POST /checkout became 4.1 times slower (23 Nov 16:02 to 16:50).",
        "Look first at POST /checkout: Set a timeout below 1 s.",
        "15:00 to 17:00 CET (UTC+01:00)",
        "23 Nov 14:00 to 16:00 UTC",
        "almost certain (99.8 %)",
        "2,904 requests",
        "external_api_time rose by 1.1 s",
        "61.5 %",
        "1.41 s",
        "timeouts",
        "250 to 560 ms",
        "↑ 1.64 s",
        "+332 MiB",
        "event-loop lag (p95) follows 2 min later",
        "expected at 3.1 requests/s by 23 Nov 18:00; with 95 % certainty at 2 to 4.2 requests/s",
        "MASE 0.86",
        "94.0 % of held-out values",
        "Trend of disk use",
        "12 points; 60 are needed.",
        "Relation between CPU use of the host and disk use",
        "Forecast of failed requests",
        "two days of data are needed; there is one.",
        "2,114 spans were lost",
    ):
        assert expected in words, expected
    assert "and memory of the process" not in words
    assert "not enough data: 12" not in words


def test_a_trends_message_adds_to_its_sentence(html: str) -> None:
    assert (
        "Memory of the process rose by 332 MiB over the window (14.1 MiB an hour). May be the time of day."
        in Page(html).text
    )


def test_latency_classes_are_said_in_words_beside_the_bar(html: str) -> None:
    assert "excellent: 12,325 of 12,345 requests" in html
    assert "excellent 12,325, good 15, critical 5" in html


@pytest.mark.parametrize("format", ["html", "md"])
def test_an_empty_report_says_what_to_do(format: str) -> None:
    shown = render(empty(), format)  # type: ignore[arg-type]
    words = Page(shown).text if format == "html" else shown
    assert "unnamed service" in words
    assert "there is nothing to judge" in words
    assert "Widen the window" in words
    assert "Routes" not in words


def test_a_quiet_service_that_is_slow_is_not_called_fine() -> None:
    slow = route("GET", "/reports", latency_class="critical", p95_ms=2400.0)
    shown = render(replace(full(), findings=(), routes=(slow,)), "md")
    assert "Nothing unusual was found, though some questions need more data than there is" in shown
    assert "Still, GET /reports is slow: its p95 is 2.4 s (critical)." in shown


def test_markdown_takes_hostile_names_literally() -> None:
    shown = render(full(), "md", tz=VIENNA)
    assert "Memory &lt;b>grows&lt;/b>" in shown
    assert "``GET /<script>alert(1)</script>/`\\|\ufffd[31m\ufffd{id}``" in shown
    assert "\x1b" not in shown
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert tables
    blocks = re.findall(r"(?:^\|.*\n)+", shown, re.M)
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_markdown_text_starts_no_block_and_no_emphasis() -> None:
    assert text("# not a heading") == "\\# not a heading"
    assert text("1. not a list") == "\\1. not a list"
    assert text("*a* _b_ response_time_p95 [x](y)") == "\\*a\\* \\_b\\_ response_time_p95 \\[x\\](y)"
    assert code("a``b`") == "``` a``b` ```"


def test_json_is_the_report_with_its_schema_version() -> None:
    parsed = json.loads(render(full(), "json"))
    assert parsed == json.loads(json.dumps(as_dict(full())))
    assert parsed["schema_version"] == 1
    assert json.loads(render(empty(), "json"))["routes"] == []


def test_json_has_no_number_that_json_does_not_know() -> None:
    report = replace(full(), total=route("", "*", p99_ms=float("nan")))
    parsed = json.loads(render(report, "json"), parse_constant=lambda name: pytest.fail(name))
    assert parsed["total"]["p99_ms"] is None


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'pdf'; it can be html, md, json"):
        render(full(), "pdf")  # type: ignore[arg-type]


def test_without_jinja_the_html_report_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'apivitals\[analytics\]'"):
        render(full(), "html")
    assert render(full(), "md")
