"""Line charts, class and class bars as SVG, without a plotting library.

A chart fills whatever width it is given while its text keeps its size: positions along the time axis are
percentages, and the curve lives in a nested `<svg>` that is stretched (`preserveAspectRatio="none"`) under
strokes that are not (`vector-effect`). Colours come from the CSS classes of the page; a chart carries none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import tzinfo
from html import escape
from itertools import groupby
from math import ceil, isfinite

from apivitals.analytics.axes import Axis, at_epoch, time_ticks, value_axis
from apivitals.classify import CLASSES, Class
from apivitals.models import ChartSeries, Forecast
from apivitals.wording import between, count, metric_title, moment, number, quantity, sentence_case

_HEIGHT = 190
_TOP, _BOTTOM = 10, 26
_PLOT = _HEIGHT - _TOP - _BOTTOM
_WIDE = 1000.0
_MOST_POINTS = 900
_MOST_HINTS = 96
_MOST_EPISODES = 60

Point = tuple[float, float | None]
_Position = Callable[[float], float]


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` points that draw the same line.

    The first, the lowest, the highest and the last point of each stretch stay (M4: Jugel et al., VLDB 2014),
    and a gap stays a gap.
    """
    if len(points) <= most:
        return list(points)
    per_stretch = ceil(len(points) / (most / 4))
    kept: list[Point] = []
    for at in range(0, len(points), per_stretch):
        part = points[at : at + per_stretch]
        measured = [(value, index) for index, (_, value) in enumerate(part) if value is not None]
        chosen = {0, len(part) - 1}
        chosen.update(index for index, (_, value) in enumerate(part) if value is None and index == len(part) // 2)
        if measured:
            chosen |= {min(measured)[1], max(measured)[1]}
        kept.extend(part[index] for index in sorted(chosen))
    return kept


def with_forecast(chart: ChartSeries, forecasts: Sequence[Forecast]) -> ChartSeries:
    """The chart with the forecast of the same metric and labels appended, if there is one and it has none yet."""
    if chart.forecast_from is not None or not chart.timestamps:
        return chart
    for forecast in forecasts:
        if forecast.metric != chart.name or dict(forecast.labels) != dict(chart.labels) or not forecast.timestamps:
            continue
        ahead = [at.timestamp() for at in forecast.timestamps]
        later = [index for index, at in enumerate(ahead) if at > chart.timestamps[-1]]
        none: tuple[float | None, ...] = (None,) * len(chart.timestamps)
        return replace(
            chart,
            timestamps=(*chart.timestamps, *(ahead[index] for index in later)),
            values=(*chart.values, *(forecast.mean[index] for index in later)),
            lower=(*(chart.lower or none), *(forecast.lower[index] for index in later)),
            upper=(*(chart.upper or none), *(forecast.upper[index] for index in later)),
            forecast_from=ahead[later[0]] if later else None,
        )
    return chart


def legend(chart: ChartSeries) -> tuple[tuple[str, str], ...]:
    """What the chart shows: pairs of a CSS class and its words."""
    ahead = chart.forecast_from
    items = [("line", "measured")]
    if any(value is not None for value in chart.lower):
        items.append(("band", "usual range"))
    if chart.episodes:
        items.append(("episode", "unusual episode"))
    if ahead is not None and any(at >= ahead for at in chart.timestamps):
        items.append(("ahead", "forecast"))
    return tuple(items)


def extremes(chart: ChartSeries, tz: tzinfo | None = None) -> str:
    """The latest, highest and lowest measured value in words; empty when nothing was measured."""
    points = [(at, value) for at, value in _points(chart, chart.values) if value is not None and not _ahead(chart, at)]
    if not points:
        return ""
    top = max(points, key=lambda point: point[1])
    bottom = min(points, key=lambda point: point[1])
    if top[1] == bottom[1]:
        return f"{quantity(top[1], chart.unit)} throughout"
    return (
        f"highest {quantity(top[1], chart.unit)} ({_clock(chart, top[0], tz)}), "
        f"lowest {quantity(bottom[1], chart.unit)}, latest {quantity(points[-1][1], chart.unit)}"
    )


def title(chart: ChartSeries) -> str:
    """The chart's heading: the metric in words, and its route."""
    return sentence_case(metric_title(chart.name, chart.labels))


def line_chart(chart: ChartSeries, *, tz: tzinfo | None = None, chart_id: str = "chart") -> str:
    """The chart as an `<svg>` element of fixed height and any width; the text lies partly outside its left edge.

    Args:
        chart: the series; gaps are None or not finite.
        tz: time zone of the labels, None for this machine's.
        chart_id: unique on the page, for the title and description.
    """
    values = _points(chart, chart.values)
    lower, upper = _points(chart, chart.lower), _points(chart, chart.upper)
    finite = [value for _, value in (*values, *lower, *upper) if value is not None]
    start, end = (chart.timestamps[0], chart.timestamps[-1]) if chart.timestamps else (0.0, 0.0)
    if not finite:
        return _frame(chart, chart_id, tz, '<text class="empty" x="50%" y="50%">no measurements</text>')
    if end <= start:
        start, end = start - 30, end + 30
    axis = value_axis(finite, chart.unit, _PLOT)
    scale = _WIDE / (end - start)

    def x(at: float) -> float:
        return round((min(max(at, start), end) - start) * scale, 2)

    parts = [_grid(axis), _time_axis(start, end, tz), f'<svg class="plot" y="{_TOP}" height="{_PLOT}" ']
    parts.append(f'width="100%" viewBox="0 0 {_WIDE:.0f} {_PLOT}" preserveAspectRatio="none">')
    parts.extend(_episodes(chart, x))
    parts.extend(f'<path class="band" d="{path}"/>' for path in _band(lower, upper, axis, x))
    past = [point for point in values if not _ahead(chart, point[0])]
    parts.append(_line("line", past, axis, x))
    ahead = [point for point in values if _ahead(chart, point[0])]
    if ahead:
        joined = [past[-1]] if past and past[-1][1] is not None else []
        parts.append(_line("ahead", [*joined, *ahead], axis, x))
    parts.extend(_hints(values, chart, x, tz))
    parts.append("</svg>")
    return _frame(chart, chart_id, tz, "".join(parts))


def class_bar(classes: Mapping[Class, int]) -> str:
    """A stacked bar of the latency classes, best first, every part with its count in a title; empty for no requests."""
    total = sum(classes.values())
    if total <= 0:
        return ""
    parts, at = [], 0.0
    for name in CLASSES:
        width = 100.0 * classes.get(name, 0) / total
        if width:
            words = f"{name}: {count(classes[name])} of {count(total)} requests"
            box = f'x="{at:.3f}%" y="0" width="{width:.3f}%" height="10"'
            parts.append(f'<rect class="{name}" {box}><title>{words}</title></rect>')
        at += width
    return f'<svg class="bar" width="100%" height="10" aria-hidden="true">{"".join(parts)}</svg>'


def _points(chart: ChartSeries, values: Sequence[float | None]) -> list[Point]:
    return [
        (at, float(value) if value is not None and isfinite(value) else None)
        for at, value in zip(chart.timestamps, values, strict=False)
    ]


def _ahead(chart: ChartSeries, at: float) -> bool:
    return chart.forecast_from is not None and at >= chart.forecast_from


def _clock(chart: ChartSeries, at: float, tz: tzinfo | None) -> str:
    """A moment, with its seconds where the chart is so short that they tell points apart."""
    return moment(at_epoch(at, tz), tz, seconds=chart.timestamps[-1] - chart.timestamps[0] < 1_200)


def _frame(chart: ChartSeries, chart_id: str, tz: tzinfo | None, inside: str) -> str:
    ids = f"{chart_id}-title {chart_id}-desc"
    words = [extremes(chart, tz) or "no measurements"]
    if chart.timestamps:
        words.append(between(at_epoch(chart.timestamps[0], tz), at_epoch(chart.timestamps[-1], tz), tz))
    if chart.episodes:
        words.append(
            "unusual: "
            + "; ".join(between(at_epoch(a, tz), at_epoch(b, tz), tz) for a, b in chart.episodes[:_MOST_EPISODES])
        )
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="100%" height="{_HEIGHT}" role="img" '
        f'aria-labelledby="{ids}"><title id="{chart_id}-title">{escape(title(chart))}</title>'
        f'<desc id="{chart_id}-desc">{escape(". ".join(words))}</desc>{inside}</svg>'
    )


def _grid(axis: Axis) -> str:
    parts = []
    for tick in axis.ticks:
        y = _TOP + axis.y(tick)
        style = "base" if tick == axis.low else "grid"
        parts.append(f'<line class="{style}" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text class="y" x="-8" y="{y + 4:g}">{escape(number(tick / axis.divisor))}</text>')
    return "".join(parts)


def _time_axis(start: float, end: float, tz: tzinfo | None) -> str:
    parts = []
    ticks = time_ticks(start, end, tz)
    # Where there is little room every second label goes, and the one that names the day stays.
    day = next((index for index, (_, label) in enumerate(ticks) if " " in label), 0)
    for index, (at, label) in enumerate(ticks):
        share = f"{100 * (at - start) / (end - start):.3f}%"
        style = "x odd" if (index - day) % 2 else "x"
        base = _TOP + _PLOT
        parts.append(f'<line class="tick" x1="{share}" x2="{share}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="{style}" x="{share}" y="{_HEIGHT - 6}">{escape(label)}</text>')
    return "".join(parts)


def _episodes(chart: ChartSeries, x: _Position) -> list[str]:
    parts = []
    for first, last in chart.episodes[:_MOST_EPISODES]:
        left, right = x(first), x(last)
        # An episode of one point would be a hair's breadth: show it at least as wide as a stroke.
        width = max(right - left, 4.0)
        box = f'x="{left:g}" y="0" width="{width:g}" height="{_PLOT}"'
        mark = f'x="{left:g}" y="0" width="{width:g}" height="3"'
        parts.append(f'<rect class="episode" {box}/><rect class="episode-mark" {mark}/>')
    return parts


def _band(lower: Sequence[Point], upper: Sequence[Point], axis: Axis, x: _Position) -> list[str]:
    both = [
        (at, low, high) if low is not None and high is not None else (at, None, None)
        for (at, low), (_, high) in zip(lower, upper, strict=False)
    ]
    step = max(1, ceil(len(both) / (_MOST_POINTS / 2)))
    paths = []
    for known, group in groupby(both, key=lambda point: point[1] is not None):
        if not known:
            continue
        run = list(group)
        run = run if len(run) <= 2 else [*run[:-1:step], run[-1]]
        there = [f"{x(at):g} {axis.y(high):g}" for at, _, high in run if high is not None]
        back = [f"{x(at):g} {axis.y(low):g}" for at, low, _ in reversed(run) if low is not None]
        paths.append(f"M{'L'.join((*there, *back))}Z")
    return paths


def _line(style: str, points: Sequence[Point], axis: Axis, x: _Position) -> str:
    lines, dots = [], []
    for known, group in groupby(thin(points), key=lambda point: point[1] is not None):
        run = [f"{x(at):g} {axis.y(value):g}" for at, value in group if value is not None]
        if known and len(run) > 1:
            lines.append(f"M{'L'.join(run)}")
        elif known:
            # A lone point between two gaps is a line of no length with round ends.
            dots.append(f"M{run[0]}h0.01")
    return "".join(f'<path class="{name}" d="{"".join(d)}"/>' for name, d in ((style, lines), ("dot", dots)) if d)


def _hints(points: Sequence[Point], chart: ChartSeries, x: _Position, tz: tzinfo | None) -> list[str]:
    """Invisible columns whose titles the browser shows under the pointer: reading a value needs no script."""
    size = max(1, ceil(len(points) / _MOST_HINTS))
    stretches = [points[at : at + size] for at in range(0, len(points), size)]
    parts = []
    for index, stretch in enumerate(stretches):
        known = [(value, at) for at, value in stretch if value is not None]
        left = x(stretch[0][0])
        right = x(stretches[index + 1][0][0]) if index + 1 < len(stretches) else _WIDE
        if known and right > left:
            value, at = max(known)
            words = f"{_clock(chart, at, tz)}: {quantity(value, chart.unit)}"
            words += " (forecast)" if _ahead(chart, at) else ""
            box = f'x="{left:g}" y="0" width="{right - left:g}" height="{_PLOT}"'
            parts.append(f'<rect class="hint" {box}><title>{escape(words)}</title></rect>')
    return parts
