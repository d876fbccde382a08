"""What a report says in sentences: the summary, and each verdict in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timezone, tzinfo

from apivitals.classify import CLASSES, Class
from apivitals.models import Correlation, Forecast, Report, Trend
from apivitals.wording import (
    between,
    count,
    extent,
    metric_title,
    moment,
    number,
    place,
    printable,
    quantity,
    route_title,
    sentence_case,
    share,
    span,
    zone,
)


def window(report: Report, tz: tzinfo | None = None) -> tuple[str, str]:
    """The analysed window in local time and, where that differs, in UTC (else an empty text)."""
    start, end = report.start_time, report.end_time
    if start is None or end is None:
        return "no window: nothing was read", ""
    first, last = start.astimezone(tz), end.astimezone(tz)
    short = (end - start).total_seconds() < 600
    clock = "%H:%M:%S" if short else "%H:%M"
    until = last.strftime(clock) if first.date() == last.date() else moment(end, tz, seconds=short)
    local = f"{first:%a} {first.day} {first:%b %Y}, {first.strftime(clock)} to {until} {zone(end, tz)}"
    if zone(end, tz) == "UTC":
        return local, ""
    return local, f"{between(start, end, timezone.utc)} UTC"


def classes_in_words(classes: Mapping[Class, int]) -> str:
    """Latency classes with their counts, best first: `excellent 1,200, good 34`."""
    return ", ".join(f"{name} {count(classes[name])}" for name in CLASSES if classes.get(name)) or "no requests"


def is_undecided(record: Trend | Correlation | Forecast) -> bool:
    """Whether a verdict is `not enough data`."""
    if isinstance(record, Trend):
        return record.trend_direction == "not enough data"
    if isinstance(record, Correlation):
        return record.significance == "not enough data"
    return not record.timestamps


def undecided(report: Report) -> tuple[tuple[str, str], ...]:
    """What could not be answered, and what that needs: pairs of question and message, without repetition."""
    found: dict[tuple[str, str], None] = {}
    for trend in filter(is_undecided, report.trends):
        found[f"Trend of {metric_title(trend.metric, trend.labels)}", _needed(trend.message)] = None
    for pair in filter(is_undecided, report.correlations):
        names = f"{metric_title(pair.metric1)} and {metric_title(pair.metric2)}"
        found[f"Relation between {names}", _needed(pair.message)] = None
    for forecast in filter(is_undecided, report.forecasts):
        found[f"Forecast of {metric_title(forecast.metric, forecast.labels)}", _needed(forecast.message)] = None
    return tuple(found)


def _needed(message: str) -> str:
    """What a message says beyond `not enough data`, which the heading above it has said already."""
    return re.sub(r"^not enough data[:;,]?\s*", "", printable(message), flags=re.IGNORECASE)


def moves_together(pair: Correlation) -> bool:
    """Whether a correlation was found, as against none or not enough data."""
    return pair.significance not in ("none", "not enough data") and pair.relationship != "none"


def trend_sentence(trend: Trend) -> str:
    """A trend in a sentence, and what its message adds."""
    title = sentence_case(metric_title(trend.metric, trend.labels))
    if trend.trend_direction == "stable":
        return f"{title} is stable.{_addition(trend.message)}"
    if trend.trend_direction == "not enough data":
        return f"{title}: {printable(trend.message) or 'not enough data'}"
    moved = "rose" if trend.trend_direction == "increasing" else "fell"
    return (
        f"{title} {moved} by {quantity(abs(trend.change), trend.unit)} over the window "
        f"({quantity(abs(trend.slope), trend.unit)} an hour).{_addition(trend.message)}"
    )


def _addition(message: str) -> str:
    words = printable(message).rstrip(".")
    return f" {words[0].upper()}{words[1:]}." if words else ""


def correlation_sentence(pair: Correlation) -> str:
    """A correlation in a sentence, and what its message adds."""
    first, second = metric_title(pair.metric1), metric_title(pair.metric2)
    if not moves_together(pair):
        return f"{sentence_case(first)} and {second}: {printable(pair.message) or pair.significance}"
    way = "together" if pair.relationship == "positive" else "in opposite directions"
    if not pair.lag_seconds:
        return f"{sentence_case(first)} and {second} move {way}.{_addition(pair.message)}"
    leader, follower = (first, second) if pair.lag_seconds > 0 else (second, first)
    later = span(pair.lag_seconds)
    return (
        f"{sentence_case(leader)} and {follower} move {way}; {follower} follows {later} later.{_addition(pair.message)}"
    )


def forecast_sentence(forecast: Forecast, tz: tzinfo | None = None) -> str:
    """A forecast in one sentence: where it ends and how wide the band is there."""
    title = sentence_case(metric_title(forecast.metric, forecast.labels))
    if not forecast.timestamps:
        return f"{title}: {printable(forecast.message) or 'not enough data'}"
    band = extent(forecast.lower[-1], forecast.upper[-1], forecast.unit)
    value = quantity(forecast.mean[-1], forecast.unit)
    return f"{title} is expected at {value} by {moment(forecast.timestamps[-1], tz)}; with 95 % certainty at {band}."


def summary(report: Report, tz: tzinfo | None = None) -> tuple[str, ...]:
    """Two to four sentences for somebody who reads nothing else.

    How many requests, how fast, how many failed, what happened, what to look at first.
    """
    name = printable(report.service)
    total = report.total
    if total is None or total.count == 0:
        missing = f"No requests of {name or 'the service'} were found in this window, so there is nothing to judge."
        return (missing, "Widen the window, or check that the service is running and writes its telemetry here.")
    seconds = (report.end_time - report.start_time).total_seconds() if report.start_time and report.end_time else 0.0
    over = f" in {span(seconds)}" if seconds else ""
    requests = "one request" if total.count == 1 else f"{count(total.count)} requests"
    sentences = [f"{name or 'The service'} answered {requests}{over}, {number(total.rps)} a second on average."]
    failed = (
        "none failed"
        if total.failures == 0
        else f"{count(total.failures)} failed, which is {share(total.error_rate_percent)} ({total.error_rate_class})"
    )
    sentences.append(
        f"Half took at most {quantity(total.p50_ms, 'ms')} and 95 of 100 at most {quantity(total.p95_ms, 'ms')} "
        f"({total.latency_class}); {failed}."
    )
    return (*sentences, *_what_stands_out(report, tz))


def _what_stands_out(report: Report, tz: tzinfo | None) -> tuple[str, ...]:
    if not report.findings:
        suspect = max(report.routes, key=lambda route: (CLASSES.index(route.latency_class), route.count), default=None)
        quiet = "Nothing unusual was found"
        if undecided(report):
            quiet += ", though some questions need more data than there is (listed below)"
        if suspect is not None and suspect.latency_class in ("poor", "critical"):
            slow = f"Still, {route_title(suspect)} is slow: its p95 is {quantity(suspect.p95_ms, 'ms')}"
            return (f"{quiet}.", f"{slow} ({suspect.latency_class}).")
        return (f"{quiet}.",)
    first, *others = report.findings
    title = printable(first.title).rstrip(".")
    since = f" ({between(first.start_time, first.end_time, tz)})" if first.start_time else ""
    lead = "One thing stands out" if not others else f"{len(report.findings)} things stand out, first of all"
    sentences = [f"{lead}: {title}{since}."]
    where = place(first.method, first.route)
    if first.advice:
        start = f"Look first at {where}: " if where else "What to do first: "
        sentences.append(start + printable(first.advice[0]).rstrip(".") + ".")
    elif where:
        sentences.append(f"Look first at {where}.")
    return tuple(sentences)
