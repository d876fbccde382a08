"""How subjects take turns, and what is not believed."""

from __future__ import annotations

from typing import cast

import pytest

from tests.benchmarks.configurations import configurations, subject
from tests.benchmarks.measures import MEASURES
from tests.benchmarks.processes import BenchError, Place
from tests.benchmarks.task import Record, Task, by_turns, check_spans

KNOWN = configurations()
A, B, C = (subject(name, KNOWN) for name in ("bare", "native", "apivitals"))


def task(said: list[str]) -> Task:
    # Nothing here starts a process.
    return Task(cast("Place", None), [A, B, C], 2, 0.5, None, said.append)


def test_subjects_take_turns_and_one_that_fails_once_has_no_values() -> None:
    said: list[str] = []
    seen: list[tuple[int, str]] = []
    given = task(said)
    record = Record(given, "cpu")

    def measure(measured: object, number: int) -> None:
        assert measured in (A, B, C)
        if measured is B and number == 1:
            raise BenchError("it is gone")
        seen.append((number, measured.key))  # type: ignore[attr-defined]
        record.add("cpu", measured, float(number))  # type: ignore[arg-type]

    by_turns(given, record, "cpu", measure)
    assert seen == [(0, "bare"), (0, "native"), (0, "apivitals"), (1, "bare"), (1, "apivitals")]
    assert record.gathered() == {"cpu": {"bare": [0.0, 1.0], "apivitals": [0.0, 1.0]}}
    assert "native is left out: it is gone" in said


def test_a_number_of_requests_is_scaled_and_never_nothing() -> None:
    assert [task([]).scaled(count) for count in (800, 1)] == [400, 1]


@pytest.mark.parametrize(
    ("key", "spans", "least"),
    [
        ("apivitals", 99, 1.0),
        ("apivitals", 101, 1.0),
        ("apivitals", 97, 0.98),
        ("apivitals", 400, 0.98),
        ("native", 49, 0.5),
    ],
)
def test_telemetry_that_does_not_run_or_runs_twice_is_not_believed(key: str, spans: int, least: float) -> None:
    with pytest.raises(BenchError, match=f"sent {spans} spans for 100 requests"):
        check_spans(subject(key, KNOWN), spans, 100, least)


@pytest.mark.parametrize(
    ("key", "spans", "least"),
    [
        ("apivitals", 100, 1.0),
        ("apivitals", 101, 0.98),
        ("launcher", 300, 1.0),
        ("bare", 0, 1.0),
        ("apivitals-sampled", 5, 1.0),
    ],
)
def test_what_sends_what_it_ought_to_is_believed(key: str, spans: int, least: float) -> None:
    check_spans(subject(key, KNOWN), spans, 100, least)


def test_no_two_measures_give_the_same() -> None:
    given = [name for measure in MEASURES.values() for name in measure.gives]
    assert len(given) == len(set(given))
