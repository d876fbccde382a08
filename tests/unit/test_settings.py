"""Where a setting comes from, what is wrong with a bad one, and that no text brings a service down."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from apivitals import semconv
from apivitals.errors import ConfigurationError
from apivitals.settings import SERVER_INSTRUMENTATIONS, PerformanceThresholds, Settings

LEVELS = ("excellent", "good", "acceptable", "poor", "critical")
VARIABLES = sorted(
    {
        "APIVITALS_RESPONSE_TIME_MS",
        "APIVITALS_THROUGHPUT_RPS",
        "APIVITALS_ERROR_RATE_PERCENT",
        *(f"APIVITALS_{entry.name.upper()}" for entry in fields(Settings)),
        *(name for entry in fields(Settings) for name in entry.metadata["otel"]),
    }
)
#: Text as it may stand in an environment variable.
ODD = ["nan", "inf", "-inf", "1e400", "-1", "0", "65536", "1e3", " 5 ", "1_0", "²", "٣", "true", "none", "(", "["]
BOUNDS = ["excellent=", "=5", "excellent=1,good=2", "excellent=nan", "good=1e999", "excellent=50=60", ",,,", "poor=1"]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [*ODD, *BOUNDS]
)


def load(environ: Mapping[str, str] | None = None, directory: Path | None = None, **arguments: Any) -> Settings:
    return Settings.load(environ or {}, directory=directory, **arguments)


def refused(environ: Mapping[str, str] | None = None, directory: Path | None = None, **arguments: Any) -> str:
    """The message of the refusal; the same is said, and a default used, where `problems` are collected."""
    with pytest.raises(ConfigurationError) as caught:
        load(environ, directory, **arguments)
    problems: list[str] = []
    load(environ, directory, problems=problems, **arguments)
    assert problems[0] == str(caught.value)
    return problems[0]


# --- where a value comes from


def test_the_order_of_sources(tmp_path: Path) -> None:
    sources: list[tuple[str, Any]] = [
        ("pyproject", lambda: (tmp_path / "pyproject.toml").write_text("[tool.apivitals]\nprometheus_port = 1\n")),
        ("toml", lambda: (tmp_path / "apivitals.toml").write_text("prometheus_port = 2\n")),
    ]
    assert load(directory=tmp_path).prometheus_port == 9464
    for expected, (_, write) in enumerate(sources, 1):
        write()
        assert load(directory=tmp_path).prometheus_port == expected
    assert load(directory=tmp_path, prometheus_port=3).prometheus_port == 3
    environ = {"APIVITALS_PROMETHEUS_PORT": "4"}
    assert load(environ, tmp_path, prometheus_port=3).prometheus_port == 4
    environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = "5"
    assert load(environ, tmp_path, prometheus_port=3).prometheus_port == 5


@pytest.mark.parametrize(
    ("variable", "field"),
    [(name, entry.name) for entry in fields(Settings) for name in entry.metadata["otel"] if "INTERVAL" not in name],
)
def test_the_standard_variable_wins_over_ours(variable: str, field: str) -> None:
    environ = {variable: "11", f"APIVITALS_{field.upper()}": "12"}
    assert str(getattr(load(environ), field)) == "11"
    # An empty variable counts as not set.
    assert str(getattr(load({**environ, variable: ""}), field)) == "12"


def test_the_fastapi_exclusion_wins_over_the_general_one() -> None:
    both = {"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "one", "OTEL_PYTHON_EXCLUDED_URLS": "other"}
    assert load(both).excluded_urls == "one"
    assert load({"OTEL_PYTHON_EXCLUDED_URLS": "other"}).excluded_urls == "other"


def test_files_are_found_above_and_the_nearest_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "apivitals.toml").write_text('service_name = "far"\nprometheus_port = 1\n')
    assert load(directory=inner).service_name == "far"
    (tmp_path / "a" / "pyproject.toml").write_text('[tool.apivitals]\nservice_name = "near"\n')
    assert load(directory=inner).service_name == "near"
    # The files are not merged.
    assert load(directory=inner).prometheus_port == 9464
    # A pyproject.toml without our table is passed by.
    (inner / "pyproject.toml").write_text('[tool.other]\nservice_name = "no"\n')
    assert load(directory=inner).service_name == "near"


def test_no_directory_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apivitals.toml").write_text('service_name = "here"\n')
    monkeypatch.chdir(tmp_path)
    assert load().service_name == ""


def test_an_argument_of_none_is_not_given() -> None:
    assert load({"APIVITALS_PROMETHEUS_PORT": "1"}, prometheus_port=None).prometheus_port == 1
    assert load(prometheus_port=None).prometheus_port == 9464


@pytest.mark.parametrize(
    ("text", "seconds"), [("15000", 15.0), ("500", 0.5), ("1", 0.001), ("1e3", 1.0), (" 250 ", 0.25), ("2.5", 0.0025)]
)
def test_the_export_interval_is_in_milliseconds(text: str, seconds: float) -> None:
    assert load({"OTEL_METRIC_EXPORT_INTERVAL": text}).files_interval_seconds == pytest.approx(seconds)


def test_our_interval_is_in_seconds() -> None:
    assert load({"APIVITALS_FILES_INTERVAL_SECONDS": "2"}).files_interval_seconds == 2.0


@pytest.mark.parametrize("text", ["true", "1", "YES", " on "])
def test_flags_that_are_set(text: str) -> None:
    assert load({"APIVITALS_THROUGHPUT_OBJECTIVE": text}).throughput_objective is True


@pytest.mark.parametrize("text", ["false", "0", "No", "off"])
def test_flags_that_are_not(text: str) -> None:
    assert load({"APIVITALS_SYSTEM_METRICS": text}).system_metrics is False


def test_a_list_in_a_file_is_text_with_commas(tmp_path: Path) -> None:
    (tmp_path / "apivitals.toml").write_text('excluded_urls = ["health", "metrics"]\n')
    assert load(directory=tmp_path).excluded_urls == "health,metrics"


def test_a_path_may_be_given_as_one(tmp_path: Path) -> None:
    assert load(data_dir=tmp_path).data_dir == str(tmp_path)


# --- thresholds


def test_thresholds_through_variables() -> None:
    loaded = load(
        {
            "APIVITALS_RESPONSE_TIME_MS": "excellent=50, good=200",
            "APIVITALS_THROUGHPUT_RPS": "critical=1",
            "APIVITALS_ERROR_RATE_PERCENT": "poor=7.5",
        }
    ).thresholds
    assert loaded.latency_bounds == (0.05, 0.2, 0.5, 1.0)
    assert loaded.all_latency_bounds == (0.05, 0.2, 0.5, 1.0, 2.0)
    assert loaded.throughput_rps["critical"] == 1.0
    assert loaded.throughput_bounds == (1000.0, 500.0, 100.0, 50.0)
    assert loaded.error_rate_bounds == pytest.approx((0.001, 0.01, 0.05, 0.075))


def test_thresholds_through_tables_and_routes(tmp_path: Path) -> None:
    (tmp_path / "apivitals.toml").write_text(
        """
[thresholds.response_time_ms]
excellent = 10
good = 20.5

[routes."/reports/{id}".response_time_ms]
excellent = 1000
good = 2000
acceptable = 3000
poor = 4000
critical = 8000
"""
    )
    loaded = load(directory=tmp_path)
    assert loaded.thresholds.latency_bounds == (0.01, 0.0205, 0.5, 1.0)
    assert loaded.thresholds_for("/reports/{id}").latency_bounds == (1.0, 2.0, 3.0, 4.0)
    assert loaded.thresholds_for("/other") is loaded.thresholds
    assert loaded.thresholds_for(None) is loaded.thresholds
    assert loaded.thresholds_for("") is loaded.thresholds


def test_what_a_route_leaves_out_is_the_service_s(tmp_path: Path) -> None:
    (tmp_path / "apivitals.toml").write_text("[routes.'/a'.response_time_ms]\ngood = 250\n")
    environ = {
        "APIVITALS_RESPONSE_TIME_MS": "excellent=50,poor=2000,critical=9000",
        "APIVITALS_THROUGHPUT_RPS": "poor=20",
    }
    route = load(environ, tmp_path).thresholds_for("/a")
    assert route.all_latency_bounds == (0.05, 0.25, 0.5, 2.0, 9.0)
    assert route.throughput_rps["poor"] == 20


def test_the_histogram_is_cut_at_every_threshold() -> None:
    route = PerformanceThresholds(response_time_ms={"excellent": 77})
    loaded = load(
        {"APIVITALS_RESPONSE_TIME_MS": "excellent=42"},
        routes={"/a": route},
    )
    bounds = loaded.duration_bounds(semconv.DURATION_BOUNDS)
    assert list(bounds) == sorted(set(bounds))
    assert {0.042, 0.077, *loaded.thresholds.all_latency_bounds, *route.all_latency_bounds} <= set(bounds)
    assert set(semconv.DURATION_BOUNDS) <= set(bounds)


def test_the_guide_s_thresholds_are_the_defaults() -> None:
    guide = PerformanceThresholds(
        response_time_ms={"excellent": 100, "good": 300, "acceptable": 500, "poor": 1000, "critical": 2000},
        throughput_rps={"excellent": 1000, "good": 500, "acceptable": 100, "poor": 50, "critical": 10},
        error_rate_percent={"excellent": 0.1, "good": 1.0, "acceptable": 5.0, "poor": 10.0, "critical": 25.0},
    )
    assert guide == PerformanceThresholds()


@pytest.mark.parametrize("name", ["response_time_ms", "error_rate_percent", "throughput_rps"])
@pytest.mark.parametrize("place", range(4))
def test_bounds_that_do_not_run_one_way(name: str, place: int) -> None:
    usual = getattr(PerformanceThresholds(), name)
    swapped = {**usual, LEVELS[place]: usual[LEVELS[place + 1]], LEVELS[place + 1]: usual[LEVELS[place]]}
    equal = {**usual, LEVELS[place]: usual[LEVELS[place + 1]]}
    direction = "decrease" if name == "throughput_rps" else "increase"
    for bounds in (swapped, equal):
        with pytest.raises(ConfigurationError, match=f"{name} must {direction} from excellent to critical") as caught:
            PerformanceThresholds(**{name: bounds})
        assert f"{LEVELS[place]} {bounds[LEVELS[place]]:g}" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, True, "5", None, [], 10**400])
def test_a_bound_that_is_no_positive_number(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"response_time_ms\['good'\] is .*; give a positive number"):
        PerformanceThresholds(response_time_ms={"good": value})


def test_an_unknown_level_is_answered_with_the_levels() -> None:
    with pytest.raises(ConfigurationError, match=f"throughput_rps has a level 'superb'.*{', '.join(LEVELS)}"):
        PerformanceThresholds(throughput_rps={"superb": 5000})


@pytest.mark.parametrize("value", [5, "fast", ["excellent", 5], None])
def test_thresholds_that_are_no_mapping(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"response_time_ms is .*; give a table of excellent, good"):
        PerformanceThresholds(response_time_ms=value)


@given(st.lists(st.floats(1e-3, 1e9), min_size=5, max_size=5, unique=True))
def test_increasing_bounds_are_taken_as_they_are(values: list[float]) -> None:
    values.sort()
    thresholds = PerformanceThresholds(
        response_time_ms=dict(zip(LEVELS, values, strict=True)),
        throughput_rps=dict(zip(LEVELS, reversed(values), strict=True)),
    )
    assert list(thresholds.response_time_ms.values()) == values
    assert list(thresholds.throughput_rps.values()) == values[::-1]


# --- what is wrong with a bad value


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"APIVITALS_PROMETHEUS_PORT": "http"}, "prometheus_port is 'http'; give a number"),
        ({"APIVITALS_PROMETHEUS_PORT": "9464.5"}, "prometheus_port is '9464.5'; give a whole number"),
        ({"APIVITALS_PROMETHEUS_PORT": "nan"}, "prometheus_port is 'nan'; give a whole number"),
        ({"APIVITALS_PROMETHEUS_PORT": "inf"}, "prometheus_port is 'inf'; give a whole number"),
        ({"APIVITALS_PROMETHEUS_PORT": "70000"}, "prometheus_port is 70000; a port is a number from 0 to 65535"),
        ({"APIVITALS_PROMETHEUS_PORT": "-1"}, "prometheus_port is -1; a port"),
        ({"OTEL_EXPORTER_PROMETHEUS_PORT": "x"}, "OTEL_EXPORTER_PROMETHEUS_PORT: prometheus_port is 'x'"),
        ({"APIVITALS_FILES_MAX_SIZE_MB": "0"}, "files_max_size_mb is 0.0; give a number above 0"),
        ({"APIVITALS_CLASS_WINDOW_SECONDS": "nan"}, "class_window_seconds is nan; give a number above 0"),
        ({"APIVITALS_FILES_ROTATE_SECONDS": "inf"}, "files_rotate_seconds is inf; give a number above 0"),
        ({"APIVITALS_FILES_MAX_AGE_DAYS": "-3"}, "files_max_age_days is -3.0; give a number above 0"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "OTEL_METRIC_EXPORT_INTERVAL: files_interval_seconds is 'soon'"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "-5"}, "OTEL_METRIC_EXPORT_INTERVAL: "),
        ({"APIVITALS_THROUGHPUT_OBJECTIVE": "maybe"}, "throughput_objective is 'maybe'; give true or false"),
        ({"APIVITALS_SERVER_INSTRUMENTATION": "magic"}, f"'magic'; it can be {' or '.join(SERVER_INSTRUMENTATIONS)}"),
        ({"APIVITALS_RESPONSE_TIME_MS": "50"}, "response_time_ms has '50'; write it as excellent=100,good=300"),
        ({"APIVITALS_RESPONSE_TIME_MS": "good=fast"}, "response_time_ms['good'] is 'fast'; give a number"),
        ({"APIVITALS_RESPONSE_TIME_MS": "best=5"}, "response_time_ms has a level 'best'"),
        ({"APIVITALS_ERROR_RATE_PERCENT": "good=50"}, "error_rate_percent must increase"),
        ({"APIVITALS_THRESHOLDS": "excellent=5"}, "thresholds is 'excellent=5'; give tables response_time_ms"),
        ({"APIVITALS_EXCLUDED_URLS": "health, (open"}, "excluded_urls has '(open', which is no regular expression"),
        ({"OTEL_PYTHON_EXCLUDED_URLS": "["}, "excluded_urls has '[', which is no regular expression"),
        ({"APIVITALS_ROUTES": "/a"}, "routes is '/a'; give a table of routes"),
    ],
)
def test_a_bad_variable_is_named_with_its_remedy(environ: dict[str, str], said: str) -> None:
    message = refused(environ)
    assert said in message
    assert next(iter(environ)) in message


def test_the_next_source_is_used_in_place_of_a_bad_one() -> None:
    problems: list[str] = []
    environ = {"OTEL_EXPORTER_PROMETHEUS_PORT": "x", "APIVITALS_PROMETHEUS_PORT": "12"}
    loaded = Settings.load(environ, problems=problems, service_name="kept")
    assert (loaded.prometheus_port, loaded.service_name, len(problems)) == (12, "kept", 1)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'servicename'; the settings are .*service_name"):
        load(servicename="shop")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("servicename = 'x'", "unknown setting 'servicename' in "),
        ("service_name = 5", "service_name is 5; give text"),
        ("prometheus_port = true", "prometheus_port is True; give a number"),
        ("prometheus_port = []", "prometheus_port is []; give a number"),
        (f"prometheus_port = {'9' * 400}", "give a"),
        ("system_metrics = 1.5", "system_metrics is 1.5; give true or false"),
        ("thresholds = 5", "thresholds is 5; give tables"),
        ("[thresholds.latency]\ngood = 1", "thresholds has a table 'latency'; the tables are response_time_ms"),
        ("thresholds.response_time_ms = 5", "response_time_ms is 5; give a table of excellent, good"),
        ("thresholds.response_time_ms.good = '5'", "response_time_ms['good'] is '5'; give a positive number"),
        ("thresholds.response_time_ms.good = nan", "response_time_ms['good'] is nan; give a positive number"),
        ("routes = []", "routes is []; give a table of routes"),
        ("[routes]\n'/a' = 5", "routes['/a'] is 5; give tables"),
        ("[routes.'/a']\nresponse_time_ms = [1]", "response_time_ms is [1]; give a table of excellent, good"),
        ("this is no TOML", "apivitals.toml is not valid TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_remedy(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "apivitals.toml").write_text(text)
    message = refused(directory=tmp_path)
    assert said in message
    assert str(tmp_path / "apivitals.toml") in message


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "apivitals.toml").write_bytes(b'service_name = "caf\xe9"\n')
    assert "is not valid TOML" in refused(directory=tmp_path)


@pytest.mark.parametrize("text", ["no TOML", "tool = 5", "[tool]\napivitals = 5", "[tool]\nx = 1", ""])
def test_somebody_else_s_pyproject_is_not_complained_about(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    problems: list[str] = []
    Settings.load({}, directory=tmp_path, problems=problems)
    # A value where our table belongs is ours to complain about.
    assert bool(problems) == ("apivitals" in text)


def test_a_folder_where_the_file_belongs(tmp_path: Path) -> None:
    (tmp_path / "apivitals.toml").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.apivitals]\nservice_name = 'found'\n")
    assert load(directory=tmp_path).service_name == "found"


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "apivitals.toml").write_text("service_name = 'hidden'\n")
    folder.chmod(0)
    try:
        assert load(directory=folder).service_name == ""
    finally:
        folder.chmod(0o700)


def test_what_the_system_refuses_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert load(directory=tmp_path).service_name == ""


# --- no text brings a service down


@examples(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), TEXT, max_size=6))
@example({"APIVITALS_PROMETHEUS_PORT": "nan"})
@example({"OTEL_EXPORTER_PROMETHEUS_PORT": "1e999"})
def test_no_variable_raises_anything_else(environ: dict[str, str]) -> None:
    problems: list[str] = []
    tolerant = Settings.load(environ, problems=problems)
    assert 0 <= tolerant.prometheus_port <= 65535
    assert 0 < tolerant.files_interval_seconds < float("inf")
    if problems:
        with pytest.raises(ConfigurationError) as caught:
            Settings.load(environ)
        assert str(caught.value) == problems[0]
    else:
        assert Settings.load(environ) == tolerant


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCALARS: Any = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LEVELS, "response_time_ms", "/a"]), inner)
    ),
    max_leaves=6,
)


@examples(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([entry.name for entry in fields(Settings)]), VALUES, max_size=4))
def test_no_argument_raises_anything_else(arguments: dict[str, Any]) -> None:
    problems: list[str] = []
    Settings.load({}, problems=problems, **arguments)
    if problems:
        with pytest.raises(ConfigurationError):
            Settings.load({}, **arguments)


@examples(max_examples=100, deadline=None)
@given(TEXT)
def test_no_file_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "apivitals.toml").write_text(text, encoding="utf-8")
    problems: list[str] = []
    Settings.load({}, directory=folder, problems=problems)
    try:
        valid = bool(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        valid = True
    assert bool(problems) == valid
