"""The tables, and the page that they are written into."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks import overhead, table
from tests.benchmarks.configurations import configurations
from tests.benchmarks.figures import FIGURES
from tests.benchmarks.machine import description, processor, version_list

RESULTS = {
    "cpu": {
        "bare": [50e-6, 60e-6, 50e-6],
        "launcher": [350e-6, 460e-6, 350e-6],
        "apivitals": [65e-6, 78e-6, 66e-6],
    },
    "instructions": {"bare": [450_000.0], "launcher": [3_012_345.0]},
    "spans": {"bare": [0.0], "launcher": [3.0]},
}


def test_a_figure_that_was_not_measured_says_so_and_one_that_was_has_its_range() -> None:
    header, first, *rest = table.promises(RESULTS)
    assert header == ["figure", "must", "aim", "measured", "range", "verdict"]
    assert first[1:] == ["≤ 0.08", "≤ 0.05", "0.050", "0.045 – 0.053", "met, aim too"]
    assert {row[-1] for row in rest} == {table.NOT_MEASURED}
    assert len(rest) + 1 == len(FIGURES)


def test_costs_are_of_what_was_measured_and_against_bare() -> None:
    header, *rows = table.costs(RESULTS, configurations())
    assert [row[0] for row in rows] == [configurations()[name].title for name in ("bare", "launcher", "apivitals")]
    assert rows[0][1:] == ["50.0", *[""] * (len(header) - 2)]
    assert rows[1][1:] == ["350.0", "300.0", "300.0 – 400.0", "2,562,345", "", "", ""]
    assert {len(row) for row in rows} == {len(header)}


def test_details_leave_out_zeros() -> None:
    _, *rows = table.details(RESULTS)
    assert rows == [["spans that reached the sink per request, in process", "launcher", "3.000", "3.000 – 3.000"]]


def test_text_is_aligned_and_has_no_emphasis() -> None:
    assert table.text([["a", "verdict"], ["long one", "**missed**"]]) == "a         verdict\nlong one   missed"


def test_markdown_has_as_many_columns_in_each_line() -> None:
    lines = table.markdown(table.promises(RESULTS)).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert {line.count("|") for line in lines} == {7}


def test_only_what_is_between_the_markers_is_written() -> None:
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    assert table.written(page, "new") == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    assert table.written(table.written(page, "new"), "new") == table.written(page, "new")


@pytest.mark.parametrize("page", ["", table.BEGIN, table.BEGIN * 2 + table.END])
def test_a_page_without_its_markers_is_not_written(page: str) -> None:
    with pytest.raises(ValueError, match="needs one line"):
        table.written(page, "new")


def test_the_page_of_the_project_has_its_markers_and_names_every_option() -> None:
    page = overhead.PAGE.read_text(encoding="utf-8")
    assert table.written(page, "new") != page
    for option in ("--only", "--rounds", "--results", "--write-docs", "--gate", "--write-baseline"):
        assert option in page


def test_what_is_written_names_versions_and_the_machine_and_no_path() -> None:
    run = {"mode": "native", "machine": description(), "versions": {"fastapi": "1.2"}, "results": RESULTS}
    part = overhead.page_part(run)
    assert part.endswith("With fastapi 1.2.")
    assert "server instrumentation `native`" in part
    assert str(Path.cwd()) not in part


def test_the_processor_is_the_first_that_the_system_names(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 3000\nprocessor\t: 1\nmodel name\t: Abacus 3001\n")
    assert processor(cpuinfo) == "Abacus 3000"
    assert processor(tmp_path / "none")
    assert re.search(r"\d+ cores?, ", description())
    assert version_list({"a": "1", "b": "2"}) == "a 1, b 2"
