"""The command line: what it reads, what it prints where, and how it ends."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apivitals import cli, terminal
from apivitals.errors import NoDataError
from apivitals.models import ChartSeries, Correlation, Finding, Forecast, Report, RouteSummary, Trend, as_dict

END = datetime(2026, 11, 23, 16, tzinfo=timezone.utc)


def route(method: str, name: str, count: int) -> RouteSummary:
    return RouteSummary(
        method,
        name,
        count,
        rps=count / 3600,
        mean_ms=60.0,
        p50_ms=45.0,
        p95_ms=180.0,
        p99_ms=1410.0,
        failures=count // 100,
        error_rate_percent=1.0,
        latency_classes={"excellent": count},
        error_classes={"none": count},
        latency_class="acceptable",
        throughput_class="critical",
        error_rate_class="acceptable",
        queries_per_request=3.4,
    )


REPORT = Report(
    "shop",
    "hourly",
    END - timedelta(hours=1),
    END,
    15.0,
    total=route("", "*", 12_345_678),
    routes=(route("POST", "/checkout", 20_345), route("GET", "/a/very/long/route/{with}/many/parts/[bold]x[/]", 12)),
    findings=(
        Finding(
            "latency",
            "critical",
            "POST /checkout became 4.1 times slower\x1b[2J",
            "Calls to [red]payment[/] take longer.",
            "response_time_p95",
            END - timedelta(minutes=30),
            END - timedelta(minutes=10),
            "/checkout",
            "POST",
            confidence=0.998,
            impact=2904,
            evidence=("external_api_time rose by 1.1 s",),
            advice=("Set a timeout below 1 s.",),
        ),
    ),
    trends=(
        Trend("process_memory", "increasing", change=332.0, slope=14.1, confidence=0.97, unit="MiB"),
        Trend("throughput", "stable", confidence=0.9),
        Trend("disk_usage", "not enough data", message="12 points; 60 are needed."),
    ),
    correlations=(Correlation("active_requests", "event_loop_lag", 0.51, "moderate", "positive", points=120),),
    forecasts=(Forecast("throughput", (END + timedelta(hours=1),), (3.1,), (2.0,), (4.2,), "median", unit="rps"),),
    charts=(ChartSeries("throughput", "rps", tuple(map(float, range(60))), tuple(map(float, range(60)))),),
    notes=("3 lines are not OTLP JSON.",),
    generated_at=END,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Stands in for the analytics job, and keeps what it was asked."""
    asked: dict[str, Any] = {"report": REPORT}

    class PerformanceAnalytics:
        def __init__(self, source: Any, **options: Any) -> None:
            asked.update(options, paths=source.paths)

        def build_report(self, **window: Any) -> Report:
            asked.update(window=window)
            if isinstance(asked["report"], BaseException):
                raise asked["report"]
            report: Report = asked["report"]
            return report

    job = ModuleType("apivitals.analytics.job")
    job.PerformanceAnalytics = PerformanceAnalytics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apivitals.analytics.job", job)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("APIVITALS_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("APIVITALS_DATA_DIR", str(tmp_path / "data"))
    return asked


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(service: str, age: float = 0.0) -> Path:
        folder = tmp_path / "data" / service
        folder.mkdir(parents=True)
        file = folder / "metrics-20261123T150000-a.jsonl"
        file.write_text('{"resourceMetrics":[]}\n')
        os.utime(file, (END.timestamp() - age,) * 2)
        return folder

    return write


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1h", 3600), ("7d", 604_800), ("1h30m", 5400), ("90 s", 90), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert cli.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10x", "h", "-1h", "0m", "1h x", "1e9d"])
def test_a_bad_duration_says_how_to_write_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write it as 30m, 1h, 7d or 1h30m"):
        cli.duration(text)


def test_moments() -> None:
    assert cli.instant("2026-11-23T14:00Z") == datetime(2026, 11, 23, 14, tzinfo=timezone.utc)
    assert cli.instant("2026-11-23T14:00+02:00") == datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
    assert cli.instant("2026-11-23") == datetime(2026, 11, 23).astimezone(timezone.utc)
    with pytest.raises(argparse.ArgumentTypeError, match="'noon' is not a moment"):
        cli.instant("noon")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["analyse"], "invalid choice"),
        (["analyze", "--last", "10x"], "'10x' is not a length of time"),
        (["analyze", "--sensitivity", "0"], "sensitivity is 0.0; give a number from"),
        (["analyze", "--sensitivity", "much"], "'much' is not a number"),
        (["analyze", "--sensitivity", "inf"], "sensitivity is inf; give a number from"),
        (["analyze", "--from", "noon"], "'noon' is not a moment"),
        (["analyze", "--last", "1h", "--to", "2026-11-23"], "--last goes until now"),
        (["analyze", "--from", "2026-11-23", "--to", "2026-11-22"], "not before --to"),
        (["analyze", "--period", "daily", "--last", "1h"], "--period is the length of the window"),
        (["report", "--format", "pdf"], "invalid choice"),
        (["demo", "--seconds", "soon"], "'soon"),
    ],
)
def test_wrong_usage_ends_with_2(
    words: list[str], said: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", ["analyze", "report", "demo"])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"  apivitals {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("apivitals 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom apivitals import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'scipy', 'statsmodels', 'rich', 'jinja2', 'orjson', 'opentelemetry', 'platformdirs'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_one_service_is_found_without_asking(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("shop")
    assert cli.main(["analyze"]) == 0
    assert asked["paths"] == (folder,)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "POST /checkout became 4.1 times slower" in shown.out


def test_of_several_the_one_written_last_is_read_and_one_line_says_so(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("billing", age=500)
    newest = write("shop")
    write("zoo", age=100)
    assert cli.main(["analyze"]) == 0
    assert asked["paths"] == (newest,)
    said = capsys.readouterr().err
    assert said == ("apivitals: reading shop, the service written last; for billing, zoo use --service NAME\n")


def test_a_service_is_chosen_by_name_also_by_one_that_no_folder_can_have(
    asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    write("shop")
    folder = write("team_shop")
    assert cli.main(["analyze", "--service", "team/shop"]) == 0
    assert asked["paths"] == (folder,)
    assert cli.main(["analyze", str(tmp_path / "data"), "--service", "shop"]) == 0
    assert asked["paths"] == (tmp_path / "data" / "shop",)


def test_an_unknown_service_lists_the_known_ones(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("billing")
    write("shop")
    assert cli.main(["analyze", "--service", "shpo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("apivitals: no service 'shpo' in ")
    assert said.endswith("there are: billing, shop\n")


@pytest.mark.parametrize("made", [True, False])
def test_an_empty_data_directory_says_how_to_begin(
    made: bool, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if made:
        (tmp_path / "data").mkdir()
    assert cli.main(["analyze"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"apivitals: no telemetry in {tmp_path / 'data'}: start a service")
    assert said.count("\n") == 1
    assert "apivitals demo" in said


def test_without_a_data_directory_the_users_state_directory_is_read(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import platformdirs

    monkeypatch.delenv("APIVITALS_DATA_DIR")
    monkeypatch.setattr(platformdirs, "user_state_path", lambda name: tmp_path / "state" / name)
    folder = tmp_path / "state" / "apivitals" / "shop"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    assert cli.main(["analyze"]) == 0
    assert asked["paths"] == (folder,)


def test_files_can_be_named_and_hold_several_services(asked: dict[str, Any], tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.json"]
    assert cli.main(["analyze", *map(str, files)]) == 0
    assert asked["paths"] == tuple(files)
    assert asked["window"]["service"] is None
    assert cli.main(["analyze", *map(str, files), "--service", "team/shop"]) == 0
    assert asked["window"]["service"] == "team/shop"


def test_an_address_is_not_a_source(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", "http://localhost:9090"]) == 1
    assert "not an address" in capsys.readouterr().err


def test_the_window_reaches_the_job(asked: dict[str, Any], write: Callable[..., Path]) -> None:
    write("shop")
    before = datetime.now(timezone.utc)
    assert cli.main(["analyze", "--last", "30m", "--sensitivity", "3"]) == 0
    window = asked["window"]
    assert window["end_time"] - window["start_time"] == timedelta(minutes=30)
    assert before <= window["end_time"] <= datetime.now(timezone.utc)
    assert window["sensitivity"] == 3.0
    assert cli.main(["report", "-o", "-"]) == 0
    assert asked["window"]["period"] == "daily"
    assert cli.main(["report", "--period", "weekly", "-o", "-"]) == 0
    assert asked["window"]["period"] == "weekly"
    assert "start_time" not in asked["window"]
    assert cli.main(["analyze", "--from", "2026-11-23T08:00Z"]) == 0
    assert asked["window"]["start_time"] == datetime(2026, 11, 23, 8, tzinfo=timezone.utc)
    assert "end_time" not in asked["window"]


def test_thresholds_come_from_the_settings(asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path) -> None:
    write("shop")
    (tmp_path / "apivitals.toml").write_text(
        "[thresholds.response_time_ms]\nexcellent = 50\n[routes.'/slow'.response_time_ms]\nexcellent = 200\n"
    )
    assert cli.main(["analyze"]) == 0
    assert asked["thresholds"].response_time_ms["excellent"] == 50
    assert asked["routes"]["/slow"].response_time_ms["excellent"] == 200


def test_a_bad_setting_is_one_line(
    asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    (tmp_path / "apivitals.toml").write_text("prometheus_port = 'high'\n")
    assert cli.main(["analyze"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("apivitals: ")
    assert "'high'; give a number" in said
    assert said.count("\n") == 1


def test_json_is_the_report_and_nothing_else(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a")
    write("b", age=9)
    assert cli.main(["analyze", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(as_dict(REPORT)))


def test_piped_output_is_plain_and_complete(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("shop")
    assert cli.main(["analyze"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for expected in (
        "shop answered 12,345,678 requests in 1 h",
        "1. POST /checkout became 4.1 times slower",
        "almost certain (99.8 %), 2,904 requests affected",
        "Calls to [red]payment[/] take longer.",
        "- external_api_time rose by 1.1 s",
        "→ Set a timeout below 1 s.",
        "20,345 45 ms 180 ms 1.41 s 1.0 % acceptable acceptable",
        "Memory of the process rose by 332 MiB over the window (14.1 MiB an hour). Very likely (97 %).",
        "stable: throughput",
        "event-loop lag (p95) move together. (moderate, r = 0.51)",
        "expected at 3.1 requests/s",
        "Trend of disk use: 12 points; 60 are needed.",
        "3 lines are not OTLP JSON.",
    ):
        assert expected in words, expected
    assert str(folder) in shown.replace("\n", "")
    # The long route is folded and not cut.
    table = shown[shown.index("Routes") : shown.index("Over time")]
    assert "/a/very/long/route/{with}/many/parts/[bold]x[/]" in "".join(
        line[:20].strip() for line in table.splitlines()
    ).replace("GET", "")


def test_a_terminal_gets_colour_and_no_control_sequence_of_the_data() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system="standard", highlight=False)
    shown = terminal.text_of(REPORT, to=console, tz=timezone.utc)
    assert "\x1b[1;31mcritical" in shown
    assert "\x1b[2J" not in shown
    assert "Traffic" in shown
    assert "3.4 queries" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, highlight=False)
    shown = terminal.text_of(REPORT, to=console, tz=timezone.utc)
    assert max(map(len, shown.splitlines())) <= width
    assert "acceptable" in shown


def test_an_old_encoding_loses_nothing(tmp_path: Path) -> None:
    from rich.console import Console

    with (tmp_path / "out").open("w", encoding="ascii") as file:
        shown = terminal.text_of(REPORT, to=Console(file=file, width=80, highlight=False), tz=timezone.utc)
    assert shown.encode("ascii", errors="replace").decode().count("?") == 2  # the escape character of the title
    assert "> Set a timeout below 1 s." in shown
    assert "_" in shown[shown.index("Over time") : shown.index("Trends")]


def test_a_long_report_is_cut_with_a_word_about_it() -> None:
    many = replace(
        REPORT,
        routes=tuple(route("GET", f"/r{index}", 10) for index in range(40)),
        findings=REPORT.findings * 12,
    )
    shown = terminal.text_of(many, tz=timezone.utc)
    assert "15 more routes; see them all with  apivitals report" in shown
    assert "2 more; see them all with  apivitals report" in shown
    assert "GET /r24 " in shown
    assert "GET /r25 " not in shown


def test_not_enough_data_is_an_answer(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    asked["report"] = Report("shop", "hourly", None, None, 0.0, notes=("not enough data: 3 points, 20 are needed",))
    assert cli.main(["analyze"]) == 0
    assert "3 points, 20 are needed" in capsys.readouterr().out


def test_an_error_of_ours_is_one_line_and_status_1(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    asked["report"] = NoDataError("nothing there\nat all")
    assert cli.main(["analyze"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "apivitals: nothing there at all\n"
    assert shown.out == ""


def test_an_interrupt_is_quiet_and_130(
    asked: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    asked["report"] = KeyboardInterrupt()
    assert cli.main(["analyze"]) == 130
    assert capsys.readouterr() == ("", "")


def test_without_rich_it_says_what_to_install_before_it_works(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["analyze"]) == 1
    assert "pip install 'apivitals[analytics]'" in capsys.readouterr().err
    assert "window" not in asked


@pytest.mark.parametrize(("format", "start"), [("html", "<!doctype html>"), ("md", "# shop"), ("json", "{")])
def test_report_writes_a_file_and_says_where(
    format: str,
    start: str,
    asked: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("shop")
    assert cli.main(["report", "--format", format]) == 0
    path = tmp_path / f"apivitals-report-shop.{format}"
    assert path.read_text(encoding="utf-8").startswith(start)
    said = capsys.readouterr().out
    assert str(path) in said
    assert ("Open it in a browser:" in said) == (format == "html")


def test_report_to_standard_output_is_the_report_alone(
    asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    assert cli.main(["report", "--format", "json", "-o", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "shop"
    assert list(tmp_path.glob("apivitals-report*")) == []


def test_a_service_name_cannot_lead_the_report_elsewhere(
    asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    write("shop")
    asked["report"] = Report("../../etc/x", "hourly", None, None, 0.0)
    assert cli.main(["report", "--format", "md"]) == 0
    assert [path.name for path in tmp_path.glob("*.md")] == ["apivitals-report-etc_x.md"]


def test_a_file_that_cannot_be_written_is_one_line(
    asked: dict[str, Any], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop")
    assert cli.main(["report", "-o", str(tmp_path / "no" / "such" / "folder.html")]) == 1
    assert "name another file with -o" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom apivitals import cli\n"
        "def endless(arguments):\n"
        "    while True: print('x' * 10_000)\n"
        "cli._analyze = endless\n"
        "sys.exit(cli.main(['analyze']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


def test_demo_is_handed_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[argparse.Namespace] = []
    run = ModuleType("apivitals.demo.run")
    run.main = lambda arguments: got.append(arguments) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apivitals.demo.run", run)
    assert cli.main(["demo", "--seconds", "2m", "--out", "here"]) == 3
    assert got[0].seconds == 120.0
    assert got[0].out == Path("here")


def otlp_line(at: float, count: int) -> str:
    """One cumulative snapshot in which `count` requests took 30 ms each."""
    point = {
        "attributes": [
            {"key": "http.route", "value": {"stringValue": "/items/{id}"}},
            {"key": "http.request.method", "value": {"stringValue": "GET"}},
            {"key": "http.response.status_code", "value": {"intValue": "200"}},
        ],
        "startTimeUnixNano": f"{int(END.timestamp()) - 3600}000000000",
        "timeUnixNano": f"{int(at)}000000000",
        "count": str(count),
        "sum": 0.03 * count,
        "bucketCounts": ["0", str(count), "0", "0", "0", "0", "0"],
        "explicitBounds": [0.01, 0.1, 0.3, 0.5, 1.0, 2.0],
    }
    metric = {
        "name": "http.server.request.duration",
        "unit": "s",
        "histogram": {"dataPoints": [point], "aggregationTemporality": 2},
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return json.dumps({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]})


def test_the_real_job_reads_files_and_every_command_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APIVITALS_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    lines = [otlp_line(END.timestamp() - 900 + 15 * step, 100 + 10 * step) for step in range(60)]
    (folder / "metrics-20261123T154500-a.jsonl").write_text("\n".join(lines) + "\n")
    assert cli.main(["analyze", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["service"] == "shop"
    assert [(found["method"], found["route"]) for found in report["routes"]] == [("GET", "/items/{id}")]
    assert report["routes"][0]["latency_class"] == "excellent"
    assert cli.main(["analyze"]) == 0
    assert "GET /items/{id}" in capsys.readouterr().out
    assert cli.main(["report"]) == 0
    page = (tmp_path / "apivitals-report-shop.html").read_text(encoding="utf-8")
    assert "/items/<wbr>{id}" in page
