"""The report as Markdown: reads in a terminal, and on a forge that knows tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import tzinfo

from apivitals import sentences, wording
from apivitals.analytics import charts
from apivitals.analytics.report import MOST_ROWS, all_routes, error_names, forecast_quality, mostly, signed
from apivitals.models import Finding, Report, RouteSummary

# An underscore inside a word (`response_time`) starts no emphasis, so it stays readable as it is.
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")
_BLOCK = re.compile(r"^(#|[-+>=]|\d+[.)])")


def text(words: str) -> str:
    """Words that Markdown and HTML take literally, on one line."""
    plain = _SPECIAL.sub(r"\\\g<0>", wording.printable(words)).replace("&", "&amp;").replace("<", "&lt;")
    return _BLOCK.sub(r"\\\1", plain)


def code(words: str) -> str:
    """A code span, also where the words hold backticks or a pipe; a table splits cells even inside a span."""
    plain = wording.printable(words).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}" if plain else ""


def markdown(report: Report, *, tz: tzinfo | None = None) -> str:
    """The report as GitHub-flavoured Markdown; times in `tz`, None for this machine's zone."""
    return "\n".join(_lines(report, tz)).rstrip() + "\n"


def _lines(report: Report, tz: tzinfo | None) -> Iterator[str]:
    local, utc = sentences.window(report, tz)
    yield from (f"# {text(report.service) or 'unnamed service'}: performance report", "")
    yield from (f"{text(local)}{f', which is {utc}' if utc else ''}", "")
    yield from (" ".join(text(sentence) for sentence in sentences.summary(report, tz)), "")
    yield from ("## Findings", "")
    if not report.findings:
        yield from ("Nothing unusual was found.", "")
    for rank, finding in enumerate(report.findings, 1):
        yield from _finding(rank, finding, tz)
    yield from _charts(report, tz)
    yield from _routes(report)
    yield from _errors(report)
    yield from _episodes(report, tz)
    yield from _verdicts(report, tz)
    undecided = sentences.undecided(report)
    if undecided:
        yield from ("## Not enough data", "")
        yield from (f"- **{text(question)}**: {text(message) or 'not enough data'}" for question, message in undecided)
        yield ""
    if report.notes:
        yield from ("## Notes", "", *(f"- {text(note)}" for note in report.notes), "")
    yield f"Made {wording.moment(report.generated_at, tz)} by apivitals. Schema version {report.schema_version}."


def _finding(rank: int, finding: Finding, tz: tzinfo | None) -> Iterator[str]:
    yield from (f"### {rank}. {text(finding.title)}", "")
    facts = [f"severity {finding.severity}"]
    if finding.start_time or finding.end_time:
        facts.append(wording.between(finding.start_time, finding.end_time, tz))
    if finding.confidence:
        facts.append(wording.certainty(finding.confidence))
    if finding.impact:
        facts.append(f"{wording.count(finding.impact)} request{'' if finding.impact == 1 else 's'} affected")
    where = wording.place(finding.method, finding.route)
    if where:
        facts.append(code(where))
    yield from (f"*{'* · *'.join(facts)}*".replace("*`", "`").replace("`*", "`"), "")
    if finding.detail:
        yield from (text(finding.detail), "")
    for heading, lines in (("Evidence", finding.evidence), ("What to do", finding.advice)):
        if lines:
            yield from (f"{heading}:", "", *(f"- {text(line)}" for line in lines), "")


def _charts(report: Report, tz: tzinfo | None) -> Iterator[str]:
    if not report.charts:
        return
    yield from ("## Over time", "")
    rows = []
    for chart in report.charts:
        line = wording.sparkline(chart.values)
        rows.append((text(charts.title(chart)), code(line), text(charts.extremes(chart, tz)) or "no measurements"))
    yield from _table(("Metric", "Shape", "Values"), rows, "lll")


def _routes(report: Report) -> Iterator[str]:
    routes = all_routes(report)
    if not routes:
        return
    yield from ("## Routes", "")
    columns: tuple[tuple[str, Callable[[RouteSummary], str]], ...] = (
        ("Queries", lambda route: wording.number(route.queries_per_request)),
        ("Cache hits", lambda route: wording.share(route.cache_hit_percent)),
        ("Outbound", lambda route: wording.number(route.outbound_per_request)),
    )
    extra = [(title, read) for title, read in columns if any(read(route) != wording.number(None) for route in routes)]
    rows = [
        (
            code(wording.route_title(route)),
            wording.count(route.count),
            wording.number(route.rps),
            *(wording.quantity(value, "ms") for value in (route.p50_ms, route.p95_ms, route.p99_ms)),
            wording.share(route.error_rate_percent),
            mostly(route.latency_classes),
            f"{route.latency_class} latency, {route.error_rate_class} errors, {route.throughput_class} traffic",
            *(read(route) for _, read in extra),
        )
        for route in routes
    ]
    heads = ("Route", "Requests", "per second", "p50", "p95", "p99", "Failed", "Latency classes", "Rating")
    yield from _table((*heads, *(title for title, _ in extra)), rows, "lrrrrrrll" + "r" * len(extra))


def _errors(report: Report) -> Iterator[str]:
    names = error_names(report)
    routes = [route for route in all_routes(report) if any(route.error_classes.get(name) for name in names)]
    if not routes:
        return
    yield from ("## Errors by class", "")
    rows = [
        (code(wording.route_title(route)), *(wording.count(route.error_classes.get(name, 0)) for name in names))
        for route in routes
    ]
    heads = ("Route", *(text(wording.ERROR_TITLES.get(name, name)) for name in names))
    yield from _table(heads, rows, "l" + "r" * len(names))


def _episodes(report: Report, tz: tzinfo | None) -> Iterator[str]:
    if not report.anomalies:
        return
    yield from ("## Unusual episodes", "")
    rows = [
        (
            text(wording.sentence_case(wording.metric_title(episode.metric, episode.labels))),
            wording.between(episode.timestamp, episode.end_time, tz),
            f"{'↑' if episode.direction == 'up' else '↓'} {wording.quantity(episode.value, episode.unit)}",
            wording.extent(episode.lower, episode.upper, episode.unit),
            episode.severity,
            wording.certainty(episode.confidence),
        )
        for episode in report.anomalies[:MOST_ROWS]
    ]
    yield from _table(("Metric", "When", "Peak", "Expected range", "Severity", "How sure"), rows, "llrrll")
    if len(report.anomalies) > MOST_ROWS:
        yield from (f"{len(report.anomalies) - MOST_ROWS} more are in the JSON report.", "")


def _verdicts(report: Report, tz: tzinfo | None) -> Iterator[str]:
    trends = [trend for trend in report.trends if not sentences.is_undecided(trend)]
    if trends:
        yield from ("## Trends", "")
        rows = [
            (
                text(wording.sentence_case(wording.metric_title(trend.metric, trend.labels))),
                trend.trend_direction,
                signed(trend.change, trend.unit),
                signed(trend.slope, trend.unit),
                wording.certainty(trend.confidence),
            )
            for trend in trends
        ]
        yield from _table(("Metric", "Direction", "Over the window", "An hour", "How sure"), rows, "llrrl")
    pairs = [pair for pair in report.correlations if sentences.moves_together(pair)]
    if pairs:
        yield from ("## What moves together", "")
        for pair in pairs:
            grade = f"{pair.significance}, r = {pair.correlation_coefficient:.2f}, {wording.count(pair.points)} points"
            yield f"- {text(sentences.correlation_sentence(pair))} ({grade})"
        yield ""
    forecasts = [forecast for forecast in report.forecasts if not sentences.is_undecided(forecast)]
    if forecasts:
        yield from ("## What to expect", "")
        for forecast in forecasts:
            yield f"- {text(sentences.forecast_sentence(forecast, tz))} ({text(forecast_quality(forecast))})"
        yield ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> Iterator[str]:
    """A table whose columns also line up where nobody renders it."""
    widths = [max(3, *(len(row[column]) for row in (heads, *rows))) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(cells, widths, align, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    yield line(heads)
    rules = ("-" * (width - 1) + ":" if side == "r" else "-" * width for width, side in zip(widths, align, strict=True))
    yield f"| {' | '.join(rules)} |"
    yield from (line(row) for row in rows)
    yield ""
