"""The arithmetic from values per round to verdicts."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import (
    FIGURES,
    PROMETHEUS,
    Figure,
    added,
    added_ratio,
    added_share,
    outcome,
    ratio,
    value,
)
from tests.benchmarks.measures import MEASURES

# Three rounds, on a machine that is twice as slow in the second.
SAMPLES = {"bare": [10.0, 20.0, 10.0], "ours": [11.0, 22.0, 12.0], "theirs": [20.0, 40.0, 20.0]}


def test_values_are_paired_within_their_round() -> None:
    assert value("ours", 10)(SAMPLES) == [110, 220, 120]
    assert ratio("ours", "bare")(SAMPLES) == [1.1, 1.1, 1.2]
    assert added("ours", "bare", 2)(SAMPLES) == [2, 4, 4]
    assert added_ratio("ours", "theirs", "bare")(SAMPLES) == [0.1, 0.1, 0.2]
    assert added_share("theirs", "bare")(SAMPLES) == [1, 1, 1]


def test_each_side_can_have_a_bare_request_of_its_own() -> None:
    samples = {"a": [9.0], "bare-a": [7.0], "b": [5.0], "bare-b": [1.0]}
    assert added_ratio("a", "b", "bare-a", "bare-b")(samples) == [0.5]


def test_rounds_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError):
        ratio("ours", "bare")({"ours": [1.0, 2.0], "bare": [1.0]})


def test_an_outcome_is_the_median_of_the_ratios_and_not_the_ratio_of_the_medians() -> None:
    figure = Figure("", "cpu", ratio("a", "b"), 1, 1)
    found = outcome(figure, {"cpu": {"a": [1.0, 8.0, 3.0], "b": [1.0, 2.0, 9.0]}})
    assert found is not None
    assert (found.median, found.low, found.high) == (1.0, pytest.approx(1 / 3), 4.0)


@pytest.mark.parametrize("results", [{}, {"cpu": {}}, {"cpu": {"a": [1.0]}}, {"cpu": {"a": [1.0], "b": [0.0]}}])
def test_what_was_not_measured_has_no_outcome(results: dict[str, dict[str, list[float]]]) -> None:
    assert outcome(Figure("", "cpu", ratio("a", "b"), 1, 1), results) is None


@pytest.mark.parametrize(
    ("sign", "measured", "verdict"),
    [
        ("≤", 0.05, "aim"),
        ("≤", 0.0504, "aim"),  # shown as 0.050
        ("≤", 0.051, "must"),
        ("≤", 0.08, "must"),
        ("≤", 0.081, "missed"),
        ("≥", 0.05, "missed"),
        ("≥", 0.08, "must"),
        ("≥", 0.09, "aim"),
    ],
)
def test_a_verdict_is_on_what_is_shown(sign: str, measured: float, verdict: str) -> None:
    aim = 0.05 if sign == "≤" else 0.09
    figure = Figure("", "cpu", value("a"), 0.08, aim, sign)
    found = outcome(figure, {"cpu": {"a": [measured]}})
    assert found is not None
    assert found.verdict == verdict


def test_a_ratio_below_zero_is_noise_and_a_difference_below_zero_is_none() -> None:
    samples = {"a": [1.0], "b": [2.0], "c": [5.0]}
    ratio_figure = Figure("", "cpu", added_ratio("a", "c", "b"), 0.1, 0.1)
    difference = Figure("", "cpu", added("a", "b"), 0.1, 0.1, unit="MB")
    found = [outcome(figure, {"cpu": samples}) for figure in (ratio_figure, difference)]
    assert [one.verdict for one in found if one is not None] == ["noise", "aim"]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.text)
def test_every_figure_can_be_computed_from_what_its_measure_measures_by_default(figure: Figure) -> None:
    values = {key: [float(place), float(place)] for place, key in enumerate(MEASURES[figure.measure].subjects, start=1)}
    found = outcome(figure, {figure.measure: values})
    assert found is not None
    harder = figure.aim <= figure.must if figure.sign == "≤" else figure.aim >= figure.must
    assert harder


def test_a_figure_that_names_nobody_is_noticed() -> None:
    wrong = Figure("", "cpu", ratio("apivitals", "prometheus"), 1, 1)
    assert outcome(wrong, {"cpu": {key: [1.0] for key in MEASURES["cpu"].subjects}}) is None
    assert PROMETHEUS in MEASURES["cpu"].subjects
