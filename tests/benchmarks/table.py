"""Results as tables: plain text for the terminal, Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from tests.benchmarks.configurations import BARE, Configuration
from tests.benchmarks.figures import FIGURES, Compute, Outcome, Results, added, outcome, ratio, value

Rows = list[list[str]]

#: What stands behind the figures: a measure, what it says, its factor, unit and form.
DETAILS = (
    ("requests", "requests/s through uvicorn", 1.0, "", ",.0f"),
    ("delivered", "spans that reached the sink per request, uvicorn", 1.0, "", ".3f"),
    ("spans", "spans that reached the sink per request, in process", 1.0, "", ".3f"),
    ("p50", "p50 of a paced load", 1e3, " ms", ".3f"),
    ("p99", "p99 of a paced load", 1e3, " ms", ".3f"),
    ("p99.9", "p99.9 of a paced load", 1e3, " ms", ".3f"),
    ("max", "slowest of a paced load", 1e3, " ms", ".3f"),
    ("generator", "of that, p99 of the load generator's own delay", 1e3, " ms", ".3f"),
    ("startup", "start-up", 1e3, " ms", ".0f"),
    ("render", "/metrics of 1,000 histogram series, CPU", 1e3, " ms", ".1f"),
    ("stall", "longest event-loop stall, 10 Hz ticker", 1e3, " ms", ".1f"),
    ("stall-fine", "longest event-loop stall, 1,000 Hz ticker", 1e3, " ms", ".1f"),
    ("stall-idle", "the same with nothing scraped or exported", 1e3, " ms", ".1f"),
    ("memory", "resident memory added by 200,000 requests", 1e-6, " MB", ".1f"),
    ("memory-late", "added by the second 100,000 of them", 1e-6, " MB", ".1f"),
    ("resident", "resident memory at the end", 1e-6, " MB", ".1f"),
)

VERDICTS = {"aim": "met, aim too", "must": "met", "missed": "**missed**", "noise": "lost in noise"}
NOT_MEASURED = "not measured"
#: Between these lines of a page the script writes, and nowhere else.
BEGIN, END = "<!-- written by make bench: begin -->", "<!-- written by make bench: end -->"


def promises(results: Results) -> Rows:
    """A header and a row for each figure that is promised."""
    rows = [["figure", "must", "aim", "measured", "range", "verdict"]]
    for figure in FIGURES:
        found = outcome(figure, results)
        unit = f" {figure.unit}" if figure.unit else ""
        row = [figure.text, *(f"{figure.sign} {bound:g}{unit}" for bound in (figure.must, figure.aim))]
        if found is None:
            rows.append([*row, "", "", NOT_MEASURED])
        else:
            rows.append([*row, _number(found.median) + unit, _range(found), VERDICTS[found.verdict]])
    return rows


def costs(results: Results, known: Mapping[str, Configuration]) -> Rows:
    """A header and a row for each configuration of which something was measured, the bare one first."""
    header = ["configuration", "µs/request", "added µs", "range", "added instructions", "requests/s ÷ bare"]
    rows = [[*header, "p99 ÷ bare", "start-up ÷ bare"]]
    for name, configuration in known.items():
        cells = [_median(results, "cpu", value(name, 1e6), ".1f")]
        if name != BARE:
            cells += [
                _median(results, "cpu", added(name, BARE, 1e6), ".1f"),
                _spread(results, "cpu", added(name, BARE, 1e6), ".1f"),
                _median(results, "instructions", added(name, BARE), ",.0f"),
                *(_median(results, measure, ratio(name, BARE), ".2f") for measure in ("requests", "p99", "startup")),
            ]
        if any(cells):
            rows.append([configuration.title, *cells, *[""] * (len(rows[0]) - 1 - len(cells))])
    return rows


def details(results: Results) -> Rows:
    """A header and a row for each measure and subject behind the figures; values that are always zero are left out."""
    rows = [["measured", "configuration", "median", "range"]]
    for measure, says, scale, unit, form in DETAILS:
        for key in results.get(measure, {}):
            compute = value(key, scale)
            if any(results[measure][key]):
                median_, spread = _median(results, measure, compute, form), _spread(results, measure, compute, form)
                rows.append([says, key, median_ + unit, spread])
    return rows


def text(rows: Rows) -> str:
    """Aligned columns, the first one to the left."""
    plain = [[cell.replace("*", "") for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in plain) for place in range(len(plain[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in plain
    )


def markdown(rows: Rows) -> str:
    """A Markdown table."""
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def written(page: str, tables: str) -> str:
    """A page with what is between its two markers replaced.

    Raises:
        ValueError: the page has not one marker of each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs one line {BEGIN} and one {END}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"


def _median(results: Results, measure: str, compute: Compute, form: str) -> str:
    values = _computed(results, measure, compute)
    return format(median(values), form) if values else ""


def _spread(results: Results, measure: str, compute: Compute, form: str) -> str:
    values = _computed(results, measure, compute)
    return f"{min(values):{form}} – {max(values):{form}}" if values else ""


def _computed(results: Results, measure: str, compute: Compute) -> list[float]:
    """Nothing where something that it needs was not measured."""
    try:
        return compute(results[measure])
    except KeyError:
        return []


def _number(one: float) -> str:
    """Three digits after the point where they say something: the verdict is on what is shown."""
    return f"{one:.3f}" if abs(one) < 10 else f"{one:.1f}"


def _range(found: Outcome) -> str:
    return f"{_number(found.low)} – {_number(found.high)}"
