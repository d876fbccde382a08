"""The table of configurations, the command line, and what is merged and gated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import overhead, setups
from tests.benchmarks.apps import APPLICATIONS
from tests.benchmarks.callgrind import Baseline, regressions
from tests.benchmarks.configurations import MODES, SINK, configurations, subject
from tests.benchmarks.environments import lock_of
from tests.benchmarks.measures import MEASURES
from tests.benchmarks.processes import BenchError

KNOWN = configurations()


@pytest.mark.parametrize("mode", MODES)
def test_every_configuration_has_a_function_a_lock_and_a_title_of_its_own(mode: str) -> None:
    known = configurations(mode)
    assert list(known) == list(KNOWN)
    assert len({configuration.title for configuration in known.values()}) == len(known)
    for configuration in known.values():
        assert callable(getattr(setups, configuration.setup))
        assert lock_of(configuration.environment).exists()
    assert known["apivitals"].environ["APIVITALS_SERVER_INSTRUMENTATION"] == mode
    assert known["apivitals-contrib"].environ["APIVITALS_SERVER_INSTRUMENTATION"] == "contrib"


def test_nothing_is_sent_anywhere_but_to_the_sink() -> None:
    addresses = [
        value
        for configuration in KNOWN.values()
        for name, value in configuration.environ.items()
        if "ENDPOINT" in name or "URL" in name or "://" in value
    ]
    assert set(addresses) == {SINK}


def test_who_must_send_a_span_for_each_request() -> None:
    assert [name for name, configuration in KNOWN.items() if configuration.exports_every_span] == [
        *("launcher", "contrib-otlp", "native", "logfire", "apivitals", "apivitals-native", "apivitals-contrib")
    ]


@pytest.mark.parametrize("key", sorted({key for measure in MEASURES.values() for key in measure.subjects}))
def test_every_subject_of_a_measure_is_there(key: str) -> None:
    found = subject(key, KNOWN)
    assert found.key == key
    assert found.application in APPLICATIONS


def test_a_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    options = overhead.arguments(["--only", "cpu, memory", "--configurations", "bare,apivitals"])
    assert (options.only, options.configurations) == (["cpu", "memory"], ["bare", "apivitals"])
    for wrong in (["--only", "speed"], ["--configurations", "bear"], ["--rounds", "0"], ["--size", "0"]):
        with pytest.raises(SystemExit):
            overhead.arguments(wrong)
    assert "there is no speed" in capsys.readouterr().err


def test_a_gate_counts_instructions_of_ours_alone(tmp_path: Path) -> None:
    options = overhead.arguments(["--gate", str(tmp_path)])
    assert options.only == ["instructions"]
    assert {name.partition("-")[0] for name in options.configurations} == {"bare", "apivitals"}


def test_subjects_can_be_narrowed_and_added() -> None:
    def keys(wanted: list[str] | None, broken: set[str]) -> list[str]:
        return [one.key for one in overhead.subjects_of("startup", KNOWN, wanted, broken)]

    assert keys(None, set()) == ["bare", "launcher", "apivitals"]
    assert keys(["bare", "native"], set()) == ["bare", "native"]
    assert keys(["logfire", "bare"], {"logfire"}) == ["bare"]


def test_of_two_runs_the_later_measure_stays_also_when_it_failed() -> None:
    before = {
        "mode": "a",
        "machine": "b",
        "versions": {"x": "1"},
        "results": {"cpu": 1, "spans": 1, "p50": 2, "memory": 3},
    }
    now = {"mode": "a", "machine": "b", "versions": {"y": "2"}, "results": {"cpu": 4}}
    assert overhead.merged(before, now, ["cpu", "p99"]) == {
        "mode": "a",
        "machine": "b",
        "versions": {"x": "1", "y": "2"},
        "results": {"memory": 3, "cpu": 4},
    }
    with pytest.raises(BenchError, match="mode 'a', this run 'c'"):
        overhead.merged(before, {**now, "mode": "c"}, ["cpu"])


# --- the gate

COUNTED = Baseline({"fastapi": "1"}, {"bare": 400_000.0, "apivitals": 460_000.0, "bare@raising": 500_000.0})


def counted(**changed: float) -> Baseline:
    return Baseline(COUNTED.versions, {**COUNTED.instructions, **changed})


def test_what_is_added_to_the_bare_request_may_grow_by_two_percent() -> None:
    assert regressions(COUNTED, COUNTED) == []
    assert regressions(COUNTED, counted(apivitals=461_200.0)) == []
    assert regressions(COUNTED, counted(apivitals=461_300.0)) == ["apivitals: 61,300 instructions, +2.2% on 60,000"]
    assert regressions(COUNTED, counted(apivitals=410_000.0)) == []


def test_an_application_has_a_bare_request_of_its_own() -> None:
    before = counted(**{"apivitals@raising": 600_000.0})
    assert regressions(before, counted(**{"apivitals@raising": 600_000.0, "bare@raising": 400_000.0})) == [
        "apivitals@raising: 200,000 instructions, +100.0% on 100,000"
    ]


def test_counts_of_other_versions_are_not_compared() -> None:
    with pytest.raises(BenchError, match="another fastapi, starlette"):
        regressions(COUNTED, Baseline({"fastapi": "2", "starlette": "1"}, COUNTED.instructions))


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    COUNTED.write(tmp_path / "baseline.json")
    assert Baseline.read(tmp_path / "baseline.json") == COUNTED


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"versions": {}}'])
def test_what_is_no_baseline_is_named_with_a_remedy(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchError, match=r"baseline\.json is no baseline .* --write-baseline"):
        Baseline.read(path)
