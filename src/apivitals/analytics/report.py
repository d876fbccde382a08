"""The report a person reads: one HTML file that needs nothing else, Markdown, or JSON.

All three are made from a `models.Report` and nothing more. The HTML runs no script and requests nothing, and
says so in a Content-Security-Policy; text from telemetry is escaped by Jinja and stripped of control characters.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import tzinfo
from functools import partial
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from apivitals import sentences, wording
from apivitals.analytics import charts
from apivitals.analytics.axes import value_axis
from apivitals.classify import CLASSES, ERROR_CLASSES, Class
from apivitals.errors import ConfigurationError, MissingExtraError
from apivitals.models import ChartSeries, Forecast, Report, RouteSummary, as_dict

if TYPE_CHECKING:
    from jinja2 import Environment

Format = Literal["html", "md", "json"]
FORMATS: tuple[Format, ...] = ("html", "md", "json")

#: Rows of a table of episodes; the rest is in the JSON.
MOST_ROWS = 25


def render(report: Report, format: Format = "html", *, tz: tzinfo | None = None) -> str:
    """A report as text.

    Args:
        report: what the analytics job said.
        format: `html` (one file, works offline), `md` (reads in a terminal and on a forge) or `json`
            (`models.as_dict`, with `schema_version`).
        tz: time zone of the times; None is this machine's. JSON is always in UTC.

    Raises:
        ConfigurationError: another format.
        MissingExtraError: `html`, and Jinja is not installed.
    """
    if format == "html":
        return _html(report, tz)
    if format == "md":
        from apivitals.analytics.markdown import markdown

        return markdown(report, tz=tz)
    if format == "json":
        return json.dumps(as_dict(report), ensure_ascii=False, allow_nan=False) + "\n"
    raise ConfigurationError(f"report format is {format!r}; it can be {', '.join(FORMATS)}")


def error_names(report: Report) -> tuple[str, ...]:
    """The error classes that occurred, without `none`, in the order in which they are defined."""
    seen = {name for route in all_routes(report) for name, hits in route.error_classes.items() if hits}
    known = [name for name in ERROR_CLASSES if name in seen and name != "none"]
    return (*known, *sorted(seen - {*known, "none"}))


def all_routes(report: Report) -> tuple[RouteSummary, ...]:
    """The whole service first, then its routes in the order of the report."""
    routes = tuple(route for route in report.routes if route.route != "*")
    return (report.total, *routes) if report.total else routes


def mostly(classes: Mapping[Class, int]) -> str:
    """The share of the best and the worst class that occurred: `92 % excellent, 0.4 % critical`."""
    total = sum(classes.values())
    present = [name for name in CLASSES if classes.get(name)]
    if not present or total <= 0:
        return "no requests"
    ends = present if len(present) <= 2 else [present[0], present[-1]]
    return ", ".join(f"{wording.share(100 * classes[name] / total)} {name}" for name in ends)


def forecast_quality(forecast: Forecast) -> str:
    """How good the forecast's method was on data it had not seen, in words."""
    parts = [wording.printable(forecast.method)] if forecast.method else []
    if forecast.mase is None and forecast.coverage is None:
        parts.append("not checked on held-out data: the series is too short")
    if forecast.mase is not None:
        verdict = "better" if forecast.mase < 1 else "no better"
        parts.append(f"{verdict} than repeating the last period (MASE {forecast.mase:.2f})")
    if forecast.coverage is not None:
        parts.append(f"{wording.share(100 * forecast.coverage)} of held-out values fell into the band")
    return "; ".join(parts)


def signed(value: float, unit: str) -> str:
    """A change with its sign."""
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{wording.quantity(abs(value), unit)}"


def _html(report: Report, tz: tzinfo | None) -> str:
    environment = _environment()
    from markupsafe import Markup

    folder = files("apivitals.analytics") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    routes = all_routes(report)
    names = error_names(report)
    when = report.end_time or report.generated_at
    environment.filters.update(
        say=wording.printable,
        count=wording.count,
        number=wording.number,
        quantity=wording.quantity,
        share=wording.share,
        span=wording.span,
        sentence=wording.sentence_case,
        fixed="{:.2f}".format,
        # A long route may break after a slash within it, and only there.
        breakable=lambda text: Markup(re.sub(r"(?<=[^\s/])/", "/<wbr>", escape(text))),
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        style=Markup(style),
        style_hash=f"sha256-{digest}",
        window=sentences.window(report, tz),
        zone=wording.zone(when, tz),
        made=f"{wording.moment(report.generated_at, tz)} {report.generated_at.astimezone(tz):%Y}",
        summary=sentences.summary(report, tz),
        undecided=sentences.undecided(report),
        charts=[_chart(chart, report, index, tz) for index, chart in enumerate(report.charts)],
        routes=routes,
        classes=CLASSES,
        has_work=any(map(wording.work, routes)),
        work=wording.work,
        errors=[route for route in routes if any(route.error_classes.get(name) for name in names)],
        error_names=names,
        error_title=lambda name: wording.ERROR_TITLES.get(name, wording.printable(name)),
        trends=[trend for trend in report.trends if not sentences.is_undecided(trend)],
        correlations=[pair for pair in report.correlations if sentences.moves_together(pair)],
        forecasts=[forecast for forecast in report.forecasts if not sentences.is_undecided(forecast)],
        most_rows=MOST_ROWS,
        between=partial(wording.between, tz=tz),
        certainty=wording.certainty,
        place=wording.place,
        route_title=wording.route_title,
        metric_title=wording.metric_title,
        extent=wording.extent,
        classes_in_words=sentences.classes_in_words,
        trend_sentence=sentences.trend_sentence,
        correlation_sentence=sentences.correlation_sentence,
        forecast_sentence=partial(sentences.forecast_sentence, tz=tz),
        quality=forecast_quality,
        signed=signed,
        mostly=mostly,
        class_bar=lambda classes: Markup(charts.class_bar(classes)),
        rated=lambda name: Markup(f'<span class="rated {escape(name)}">{escape(name)}</span>'),
    )


def _chart(chart: ChartSeries, report: Report, index: int, tz: tzinfo | None) -> dict[str, Any]:
    from markupsafe import Markup

    full = charts.with_forecast(chart, report.forecasts)
    finite = [value for value in full.values if value is not None and value - value == 0]
    return {
        "title": charts.title(full),
        "unit": value_axis(finite, full.unit).unit,
        "svg": Markup(charts.line_chart(full, tz=tz, chart_id=f"chart-{index}")),
        "extremes": charts.extremes(full, tz),
        "legend": charts.legend(full),
    }


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the HTML report", "analytics", "jinja2") from error
    return Environment(
        loader=PackageLoader("apivitals.analytics"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
