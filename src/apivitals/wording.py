"""How numbers, times and names are written for a person: shared by the report and the terminal.

Everything that comes from telemetry (routes, service names, notes) may have been written by somebody
hostile, so it passes through `printable` before it is shown anywhere; escaping for a format is the format's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from math import ceil, floor, isfinite, log10

from apivitals.models import RouteSummary

#: What a metric is called in a sentence; a metric that is not listed keeps its name.
METRIC_TITLES: dict[str, str] = {
    "response_time": "mean latency",
    "response_time_p50": "median latency",
    "response_time_p95": "p95 latency",
    "response_time_p99": "p99 latency",
    "latency": "p95 latency",
    "throughput": "throughput",
    "error_rate": "failed requests",
    "cpu_usage": "CPU use of the host",
    "process_cpu_usage": "CPU use of the process",
    "memory_usage": "memory use of the host",
    "process_memory": "memory of the process",
    "disk_usage": "disk use",
    "network_sent": "network sent",
    "network_received": "network received",
    "active_connections": "open connections",
    "active_requests": "requests being served",
    "event_loop_lag": "event-loop lag (p95)",
    "database_queries": "database queries per request",
    "database_time": "database time per request",
    "cache_hits": "cache hits per request",
    "cache_misses": "cache misses per request",
    "external_api_calls": "outbound calls per request",
    "external_api_time": "outbound time per request",
}

#: Error classes as a person says them.
ERROR_TITLES: dict[str, str] = {
    "client_error": "client errors",
    "server_error": "server errors",
    "timeout": "timeouts",
    "disconnected": "disconnects",
    "cancelled": "cancelled",
    "exception": "exceptions",
}

_NO_VALUE = "–"
_BLOCKS = "▁▂▃▄▅▆▇█"
_CERTAINTY = ((99, "almost certain"), (95, "very likely"), (80, "likely"), (0, "possible"))
# From where a prefix is used, and what it stands for: 9,999.6 is shown as 10k, and 1,234 in full.
_PREFIXES = ((999.95e9, 1e12, "T"), (999.95e6, 1e9, "G"), (999.95e3, 1e6, "M"), (9999.5, 1e3, "k"))
_SECONDS = ((86_400, "day"), (3_600, "h"), (60, "min"), (1, "s"))


def printable(text: str) -> str:
    """Text on one line without control characters, terminal escapes and direction overrides."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text).strip()


def number(value: float | None) -> str:
    """A number with three significant digits at most: `1,234`, `12.3`, `0.0123`, `56.8k`, `1.2e+18`."""
    if value is None or not isfinite(value):
        return _NO_VALUE
    size = abs(value)
    if size >= 1e15:
        return f"{value:.2g}"
    for bound, factor, prefix in _PREFIXES:
        if size >= bound:
            return f"{_digits(value / factor)}{prefix}"
    return _digits(value)


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size == 0:
        return "0"
    if size < 1e-4:
        return f"{value:.1e}"
    decimals = 2 - floor(log10(size))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int) -> str:
    """A count in full, with thousands separated."""
    return f"{value:,}"


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit, in the size of unit that reads well: 2,500 ms is `2.5 s`."""
    if value is None or not isfinite(value):
        return _NO_VALUE
    if unit == "ms" and abs(value) >= 999.5:
        return f"{number(value / 1e3)} s"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{number(value * 1e3)} ms"
    if unit == "rps":
        return f"{number(value)} requests/s"
    return f"{number(value)} {printable(unit).strip('{}')}".rstrip()


def extent(low: float, high: float, unit: str) -> str:
    """From a number to a number, with the unit said once if it is one: `250 to 560 ms`."""
    first, last = quantity(low, unit), quantity(high, unit)
    number_only, _, shown = first.partition(" ")
    same = shown and last.partition(" ")[2] == shown
    return f"{number_only if same else first} to {last}"


def share(percent: float | None) -> str:
    """A percentage that never claims 0 or 100 when it is not: `<0.01 %`, `>99.9 %`."""
    if percent is None or not isfinite(percent):
        return _NO_VALUE
    if 0 < percent < 0.01:
        return "<0.01 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.{0 if percent >= 99.95 or percent == 0 else 1 if percent >= 1 else 2}f} %"


def span(seconds: float) -> str:
    """A length of time in its two largest parts: `45 s`, `12 min`, `1 h 30 min`, `2 days 3 h`."""
    if not isfinite(seconds):
        return _NO_VALUE
    rest = round(abs(seconds))
    if rest == 0:
        return f"{abs(seconds) * 1e3:.0f} ms" if seconds else "0 s"
    parts: list[str] = []
    for size, unit in _SECONDS:
        if rest >= size or parts:
            whole, rest = divmod(rest, size)
            plural = "s" if unit == "day" and whole != 1 else ""
            parts.append(f"{whole} {unit}{plural}" if whole else "")
    return " ".join(part for part in parts[:2] if part)


def moment(when: datetime | None, tz: tzinfo | None = None, *, seconds: bool = False) -> str:
    """A moment in a time zone (None: this machine's): `24 Nov 14:03`."""
    if when is None:
        return _NO_VALUE
    local = when.astimezone(tz)
    return f"{local.day} {local:%b} {local.strftime('%H:%M:%S' if seconds else '%H:%M')}"


def zone(when: datetime, tz: tzinfo | None = None) -> str:
    """A time zone at a moment, by name and offset: `CET (UTC+01:00)`; just `UTC` where it is that."""
    local = when.astimezone(tz)
    offset = local.strftime("%z")
    name = local.tzname() or ""
    if offset in ("+0000", "-0000"):
        return "UTC"
    shown = f"UTC{offset[:3]}:{offset[3:5]}"
    return f"{name} ({shown})" if name.isalpha() else shown


def between(start: datetime | None, end: datetime | None, tz: tzinfo | None = None) -> str:
    """A stretch of time with the day said once if it is one day: `24 Nov 14:03 to 14:20`."""
    if start is None and end is None:
        return _NO_VALUE
    if start is None:
        return f"until {moment(end, tz)}"
    if end is None:
        return f"since {moment(start, tz)}"
    first, last = start.astimezone(tz), end.astimezone(tz)
    if first == last:
        return moment(start, tz)
    precise = (end - start).total_seconds() < 300
    clock = "%H:%M:%S" if precise else "%H:%M"
    if first.date() == last.date():
        return f"{moment(start, tz, seconds=precise)} to {last.strftime(clock)}"
    return f"{moment(start, tz, seconds=precise)} to {moment(end, tz, seconds=precise)}"


def metric_title(metric: str, labels: Mapping[str, str] | None = None) -> str:
    """What a metric of a route (if the labels name one) is called: `p95 latency of GET /items/{id}`."""
    title = METRIC_TITLES.get(metric) or printable(metric)
    where = place((labels or {}).get("http.request.method"), (labels or {}).get("http.route"))
    if not where:
        where = place((labels or {}).get("method"), (labels or {}).get("route"))
    return f"{title} of {where}" if where else title


def sentence_case(text: str) -> str:
    """The text with its first letter large, unless its first word is a name such as `p95` or `http.server`."""
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.replace("-", "").isalpha() else text


def place(method: str | None, route: str | None) -> str:
    """A route as it is shown; empty for the whole service."""
    if route is None or route == "*":
        return ""
    return printable(f"{method or ''} {route or '(no route)'}")


def route_title(summary: RouteSummary) -> str:
    """A route summary's name in a table."""
    return place(summary.method, summary.route) or "whole service"


def work(summary: RouteSummary) -> tuple[str, ...]:
    """What a request of a route does besides computing: `3.4 queries`, `81.2 % cache hits`, `2 outbound calls`."""
    parts = []
    if summary.queries_per_request is not None:
        parts.append(_amount(summary.queries_per_request, "query", "queries"))
    if summary.cache_hit_percent is not None:
        parts.append(f"{share(summary.cache_hit_percent)} cache hits")
    if summary.outbound_per_request is not None:
        parts.append(_amount(summary.outbound_per_request, "outbound call", "outbound calls"))
    return tuple(parts)


def _amount(value: float, one: str, many: str) -> str:
    return f"{number(value)} {one if number(value) == '1' else many}"


def certainty(confidence: float) -> str:
    """How sure a verdict is, in words and as a percentage."""
    if not isfinite(confidence) or confidence <= 0:
        return "not rated"
    percent = min(confidence, 1.0) * 100
    words = next(words for bound, words in _CERTAINTY if percent >= bound)
    return f"{words} ({'>99.9 %' if percent > 99.9 else share(percent).replace('.0 %', ' %')})"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Values as block characters, highest of each stretch; a space is a gap."""
    shown = [value if value is not None and isfinite(value) else None for value in values]
    if not any(value is not None for value in shown):
        return ""
    size = max(1, ceil(len(shown) / width))
    tops: list[float | None] = [
        max((value for value in shown[at : at + size] if value is not None), default=None)
        for at in range(0, len(shown), size)
    ]
    known = [top for top in tops if top is not None]
    low, high = min(known), max(known)
    low = 0.0 if low >= 0 and high / 2 - low / 2 >= high * 0.125 else low
    height = (high / 2 - low / 2) or 1.0
    return "".join(
        " " if top is None else _BLOCKS[min(7, int((top / 2 - low / 2) / height * 7.999))] for top in tops
    ).rstrip()
