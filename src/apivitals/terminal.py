"""A report in a terminal: tables and sentences for 80 columns and more, the same words without colour in a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import tzinfo
from typing import TYPE_CHECKING

from apivitals import sentences, wording
from apivitals.errors import MissingExtraError
from apivitals.models import ChartSeries, Finding, Report, RouteSummary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

Progress = Callable[[int, int, str], None]

# Beside each colour stands its word; bold and dim also tell them apart where two colours look alike.
_CLASS_STYLES = {
    "excellent": "green",
    "good": "cyan",
    "acceptable": "yellow",
    "poor": "bold yellow",
    "critical": "bold red",
}
_SEVERITY_STYLES = {"low": "cyan", "medium": "yellow", "high": "bold yellow", "critical": "bold red"}
# For an encoding that knows no others; each stands for one character, so that columns stay in line.
_PLAIN = str.maketrans("→↗↘×–−─▁▂▃▄▅▆▇█", ">/\\x---_.-:=+*#")
_MOST_FINDINGS = 10
_MOST_ROUTES = 25
_WIDE_ENOUGH_FOR_WORK = 150
_MOST_CHARTS = 6


def console() -> Console:
    """The console of standard output; plain, and 80 columns wide unless COLUMNS says else, when that is a pipe.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError("output in the terminal", "analytics", "rich") from error
    return Console(highlight=False, markup=False, emoji=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on standard error while the block runs; nothing when nobody looks at it there."""
    if not sys.stderr.isatty():
        yield _unseen
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar
    except ImportError:
        # A progress bar is not worth an error: JSON needs no rich.
        yield _unseen
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=wording.printable(what))

        yield show


def _unseen(done: int, total: int, what: str) -> None:
    pass


def text_of(report: Report, *, source: str = "", tz: tzinfo | None = None, to: Console | None = None) -> str:
    """The report as text for a console: its colours and its width, or neither.

    Args:
        report: what the analytics job said.
        source: where the data came from, for the first lines.
        tz: time zone of the times; None is this machine's.
        to: the console that the text is for; None is standard output's.
    """
    screen = to or console()
    with screen.capture() as captured:
        for part in _parts(report, source, tz, screen.width):
            screen.print(part)
    # Cells are padded to their column: spaces at a line's end are of no use to anybody.
    text = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    return text if screen.encoding.lower().startswith("utf") else text.translate(_PLAIN)


def _parts(report: Report, source: str, tz: tzinfo | None, width: int) -> Iterator[RenderableType]:
    yield from _head(report, source, tz)
    yield from _findings(report, tz)
    yield from _routes(report, width)
    yield from _charts(report.charts, width)
    yield from _verdicts(report, tz)
    undecided = sentences.undecided(report)
    if undecided:
        yield _heading("Not enough data")
        for question, message in undecided:
            yield _item("-", f"{question}: {message or 'not enough data'}", "dim")
    if report.notes:
        yield _heading("Notes")
        for note in report.notes:
            yield _item("-", wording.printable(note), "dim")


def _head(report: Report, source: str, tz: tzinfo | None) -> Iterator[RenderableType]:
    from rich.text import Text

    local, utc = sentences.window(report, tz)
    yield Text(wording.printable(report.service) or "unnamed service", style="bold")
    yield Text(local + (f"\n{utc}" if utc else ""))
    step = f"one point stands for {wording.span(report.step_seconds)}" if report.step_seconds else ""
    where = f"source {wording.printable(source)}" if source else ""
    if step or where:
        yield Text("; ".join(filter(None, (where, step))), style="dim", overflow="fold")
    yield Text("\n" + " ".join(sentences.summary(report, tz)))


def _findings(report: Report, tz: tzinfo | None) -> Iterator[RenderableType]:
    if not report.findings:
        return
    yield _heading("Findings")
    for rank, finding in enumerate(report.findings[:_MOST_FINDINGS], 1):
        yield from _finding(rank, finding, tz)
    hidden = len(report.findings) - _MOST_FINDINGS
    if hidden > 0:
        yield _item("", f"{hidden} more; see them all with  apivitals report", "dim")


def _finding(rank: int, finding: Finding, tz: tzinfo | None) -> Iterator[RenderableType]:
    from rich.text import Text

    yield _item(f"{rank}.", wording.printable(finding.title), "bold")
    facts = [wording.between(finding.start_time, finding.end_time, tz)] if finding.start_time else []
    if finding.confidence:
        facts.append(wording.certainty(finding.confidence))
    if finding.impact:
        facts.append(f"{wording.count(finding.impact)} request{'' if finding.impact == 1 else 's'} affected")
    line = Text(finding.severity, style=_SEVERITY_STYLES.get(finding.severity, ""))
    for fact in facts:
        line.append(f", {fact}", style="not bold default")
    yield _item("", line)
    if finding.detail:
        yield _item("", wording.printable(finding.detail))
    for evidence in finding.evidence:
        yield _item("", _bullet("-", wording.printable(evidence), "dim"))
    for advice in finding.advice:
        yield _item("", _bullet("→", wording.printable(advice)))


def _routes(report: Report, width: int) -> Iterator[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    known = [route for route in report.routes if route.route != "*"]
    routes = [*([report.total] if report.total else []), *known[:_MOST_ROUTES]]
    if not routes:
        return
    yield _heading("Routes")
    narrow, wide = width < 76, width >= 96
    percentiles = ("p95",) if narrow else ("p50", "p95", "p99")
    numbers = ("Requests", *(("per s",) if wide else ()), *percentiles, "Failed")
    ratings = ("Latency", *(() if narrow else ("Errors",)), *(("Traffic",) if wide else ()))
    rows = [
        (
            wording.count(route.count),
            *((wording.number(route.rps),) if wide else ()),
            *(wording.quantity(getattr(route, f"{name}_ms"), "ms") for name in percentiles),
            wording.share(route.error_rate_percent),
            *_ratings(route)[: len(ratings)],
            *((", ".join(wording.work(route)),) if width >= _WIDE_ENOUGH_FOR_WORK else ()),
        )
        for route in routes
    ]
    work = len(rows[0]) > len(numbers) + len(ratings) and any(row[-1] for row in rows)
    heads = (*numbers, *ratings, *(("Work per request",) if work else ()))
    gap = 2 if wide else 1
    taken = sum(gap + max(len(head), *(len(row[at]) for row in rows)) for at, head in enumerate(heads))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False, expand=False)
    # A route is folded, never cut: nothing else in the row says which one it is.
    table.add_column("Route", overflow="fold", min_width=12)
    for head in heads:
        table.add_column(head, justify="right" if head in numbers else "left", no_wrap=True)
    for route, row in zip(routes, rows, strict=True):
        title = "\n".join(_folded(wording.route_title(route), max(12, width - taken)))
        table.add_row(Text(title, style="bold" if route.route == "*" else ""), *row[: len(heads)])
    yield table
    if len(known) > _MOST_ROUTES:
        yield Text(f"{len(known) - _MOST_ROUTES} more routes; see them all with  apivitals report", style="dim")


def _folded(route: str, width: int) -> list[str]:
    """A route in lines of some width, broken after slashes; a part that is longer stays whole."""
    lines = [""]
    for part in re.split(r"(?<=/)", route):
        if lines[-1].strip() and len(lines[-1]) + len(part) > width:
            lines.append("  ")
        lines[-1] += part
    return lines


def _ratings(route: RouteSummary) -> list[Text]:
    from rich.text import Text

    cells = [Text(name, style=_CLASS_STYLES.get(name, "")) for name in (route.latency_class, route.error_rate_class)]
    # Little traffic is no fault, so its class has no colour.
    return [*cells, Text(route.throughput_class, style="dim")]


def _charts(charts: tuple[ChartSeries, ...], width: int) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", min_width=12, max_width=30)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for chart in charts[:_MOST_CHARTS]:
        measured = [
            value if chart.forecast_from is None or at < chart.forecast_from else None
            for at, value in zip(chart.timestamps, chart.values, strict=False)
        ]
        line = wording.sparkline(measured, 12 if width < 76 else 24 if width < 96 else 48)
        known = [value for value in measured if value is not None and value - value == 0]
        if known:
            title = wording.sentence_case(wording.metric_title(chart.name, chart.labels))
            table.add_row(Text(title), line, wording.extent(min(known), max(known), chart.unit))
    if table.row_count:
        yield _heading("Over time")
        yield table


def _verdicts(report: Report, tz: tzinfo | None) -> Iterator[RenderableType]:
    trends = [trend for trend in report.trends if not sentences.is_undecided(trend)]
    moving = [trend for trend in trends if trend.trend_direction != "stable"]
    if trends:
        yield _heading("Trends")
        for trend in moving:
            mark = "↗" if trend.trend_direction == "increasing" else "↘"
            sure = wording.sentence_case(wording.certainty(trend.confidence))
            yield _item(mark, f"{sentences.trend_sentence(trend)} {sure}.")
        stable = [wording.metric_title(trend.metric, trend.labels) for trend in trends if trend not in moving]
        if stable:
            yield _item("→", f"stable: {', '.join(stable)}", "dim")
    pairs = [pair for pair in report.correlations if sentences.moves_together(pair)]
    if pairs:
        yield _heading("What moves together")
        for pair in pairs:
            grade = f"({pair.significance}, r = {pair.correlation_coefficient:.2f})"
            yield _item("-", f"{sentences.correlation_sentence(pair)} {grade}")
    forecasts = [forecast for forecast in report.forecasts if not sentences.is_undecided(forecast)]
    if forecasts:
        yield _heading("What to expect")
        for forecast in forecasts:
            yield _item("-", sentences.forecast_sentence(forecast, tz))


def _heading(words: str) -> Text:
    from rich.text import Text

    return Text(f"\n{words}", style="bold underline")


def _item(mark: str, words: str | RenderableType, style: str = "") -> RenderableType:
    """A line with a mark in the margin and its continuation indented."""
    return _grid(3, mark, words, style)


def _bullet(mark: str, words: str, style: str = "") -> RenderableType:
    return _grid(2, mark, words, style)


def _grid(margin: int, mark: str, words: str | RenderableType, style: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=0)
    grid.add_column(width=margin)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(words, style=style) if isinstance(words, str) else words)
    return grid
