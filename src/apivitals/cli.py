"""The command line: `apivitals analyze`, `report` and `demo`.

Everything heavy is imported by the command that needs it, so that `apivitals --help` answers at once.
Exit status: 0 fine, 1 an error of ours (one line on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apivitals.errors import ApiVitalsError, ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from apivitals.models import Report

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(min|[smhdw])")
_SUFFIXES = {"html": "html", "md": "md", "json": "json"}
_INTERRUPTED = 130
_PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended

_ANALYZE_EXAMPLES = """\
examples:
  apivitals analyze                          the service that wrote telemetry here last
  apivitals analyze --service shop --last 6h
  apivitals analyze /var/lib/otel/metrics.json --from 2026-11-23T08:00 --to 2026-11-23T18:00
  apivitals analyze --json | jq .findings

A SOURCE is a file or folder of OTLP JSON lines: ours, or those of the collector's file exporter.
"""
_REPORT_EXAMPLES = """\
examples:
  apivitals report                           writes apivitals-report-<service>.html
  apivitals report --period weekly -o week.html
  apivitals report --format md -o - | less
  apivitals report --format json -o report.json --last 1d
"""
_DEMO_EXAMPLES = """\
examples:
  apivitals demo                             two minutes of a small shop, and what went wrong in it
  apivitals demo --seconds 60 --out /tmp/shop
"""
_EXAMPLES = """\
examples:
  apivitals demo                             see it work, without a service of your own
  apivitals analyze                          what changed, since when, how sure, what to do
  apivitals report                           the same as one HTML file

Telemetry comes from a service started with:  opentelemetry-instrument uvicorn shop:app
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit status.

    Raises:
        SystemExit: from argparse, with 2 for wrong usage and 0 for `--help` and `--version`.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a block character shows a question mark instead of a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except ApiVitalsError as error:
        print(f"apivitals: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED


def duration(text: str) -> float:
    """Seconds from `30m`, `1h`, `7d` or `1h30m`.

    Raises:
        argparse.ArgumentTypeError: the text is no such length of time, or it is zero.
    """
    compact = text.replace(" ", "").lower()
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(compact))
    if _DURATION.sub("", compact) or not 0 < seconds < 1e10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time; write it as 30m, 1h, 7d or 1h30m")
    return seconds


def instant(text: str) -> datetime:
    """A moment from ISO 8601; without an offset it is local time.

    Raises:
        argparse.ArgumentTypeError: the text is no such moment.
    """
    try:
        # `Z` is understood by Python from 3.11 on only.
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a moment; write it as 2026-11-23T14:00, with Z or +01:00 if it is not local time"
        ) from None


def sensitivity(text: str) -> float:
    """The knob of the anomaly search; see `apivitals.analytics.sensitivity`.

    Raises:
        argparse.ArgumentTypeError: the text is no number, or one out of range.
        MissingExtraError: the analytics extra is not installed.
    """
    from apivitals.analytics.sensitivity import checked

    try:
        return checked(float(text))
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; 2.0 is usual, more finds less") from None


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"apivitals {version('apivitals')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _command(
        argparse.ArgumentParser, "apivitals", "Telemetry of a FastAPI service, explained.", _EXAMPLES
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    text = "Say what changed, since when, how sure that is, and what to do about it."
    analyze = _command(commands.add_parser, "analyze", text, _ANALYZE_EXAMPLES)
    _add_analysis(analyze)
    analyze.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    analyze.set_defaults(run=_analyze)

    text = "Write the analysis as a report: one HTML file that opens offline, Markdown, or JSON."
    report = _command(commands.add_parser, "report", text, _REPORT_EXAMPLES)
    _add_analysis(report)
    report.add_argument("--format", choices=tuple(_SUFFIXES), default="html", help="default: %(default)s")
    report.add_argument(
        "-o", "--output", metavar="FILE", help="where to write; - is standard output (apivitals-report-<service>.html)"
    )
    report.set_defaults(run=_report)

    text = "Run a small shop with load and faults for a while, then say what went wrong in it."
    demo = _command(commands.add_parser, "demo", text, _DEMO_EXAMPLES)
    demo.add_argument("--seconds", type=_demo_seconds, default=120.0, help="how long to send requests (120)")
    demo.add_argument("--out", metavar="DIR", type=Path, help="where to keep telemetry and report (apivitals-demo)")
    demo.set_defaults(run=_demo)
    return parser


def _command(make: Callable[..., argparse.ArgumentParser], name: str, text: str, examples: str) -> Any:
    title = {"prog": name} if make is argparse.ArgumentParser else {"name": name, "help": text}
    return make(**title, description=text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)


def _add_analysis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="*", metavar="SOURCE", type=Path, help="files or folders (the data directory)")
    parser.add_argument("--service", metavar="NAME", help="which service, where there are several")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="data directory (APIVITALS_DATA_DIR)")
    window = parser.add_argument_group("what time to look at")
    window.add_argument("--last", metavar="TIME", type=duration, help="until now: 30m, 1h, 7d")
    window.add_argument(
        "--from", dest="start", metavar="WHEN", type=instant, help="ISO 8601, local time if it names none"
    )
    window.add_argument("--to", dest="end", metavar="WHEN", type=instant, help="the same (now)")
    window.add_argument(
        "--period", choices=("hourly", "daily", "weekly"), help="length of the window before its end (daily)"
    )
    parser.add_argument(
        "--sensitivity", metavar="N", type=sensitivity, default=2.0, help="how far off counts; more finds less (2.0)"
    )
    # argparse knows no group of which one option excludes two that go together.
    parser.set_defaults(wrong=parser.error)


def _demo_seconds(text: str) -> float:
    return duration(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text)


def _analyze(arguments: argparse.Namespace) -> int:
    from apivitals import terminal

    if not arguments.json:
        terminal.console()  # a missing rich is said before the work and not after it
    report, source = _build(arguments)
    if arguments.json:
        import json

        from apivitals.models import as_dict

        print(json.dumps(as_dict(report), ensure_ascii=False, allow_nan=False))
    else:
        sys.stdout.write(terminal.text_of(report, source=source))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from apivitals.analytics.report import render

    report, _ = _build(arguments)
    text = render(report, arguments.format)
    if arguments.output == "-":
        sys.stdout.write(text)
        return 0
    name = re.sub(r"[^\w.-]+", "_", report.service).strip("._") or "service"
    path = Path(arguments.output or f"apivitals-report-{name}.{_SUFFIXES[arguments.format]}").expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; name another file with -o") from error
    print(f"Wrote {path.resolve()} ({max(1, len(text.encode()) // 1024):,} KiB).")
    if arguments.format == "html":
        opener = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
        print(f"Open it in a browser:  {opener} {_quoted(path)}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from apivitals.demo.run import main as run

    return int(run(arguments) or 0)


def _say(line: str) -> None:
    print(f"apivitals: {line}", file=sys.stderr)


def _quoted(path: Path) -> str:
    from shlex import quote

    return quote(str(path))


def _build(arguments: argparse.Namespace) -> tuple[Report, str]:
    """The report that the arguments ask for, and where its data came from."""
    window = _window(arguments)
    from apivitals.settings import Settings

    settings = Settings.load(os.environ, directory=Path.cwd())
    try:
        from apivitals.analytics.job import PerformanceAnalytics
        from apivitals.analytics.sources.otlp_json import OtlpJsonFiles
    except ModuleNotFoundError as error:
        if (error.name or "apivitals").startswith("apivitals"):
            raise
        raise MissingExtraError("the analysis", "analytics", str(error.name)) from error
    from apivitals import terminal
    from apivitals.discovery import telemetry_paths

    paths, service = telemetry_paths(
        arguments.source, service=arguments.service, data_dir=arguments.data_dir, configured=settings.data_dir, say=_say
    )
    analytics = PerformanceAnalytics(OtlpJsonFiles(*paths), thresholds=settings.thresholds, routes=settings.routes)
    with terminal.progress() as on_progress:
        report = analytics.build_report(
            sensitivity=arguments.sensitivity, service=service, on_progress=on_progress, **window
        )
    return report, ", ".join(map(str, paths))


def _window(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.last is not None and (arguments.start or arguments.end):
        arguments.wrong("--last goes until now; leave it out where --from or --to is given")
    if arguments.start and arguments.end and arguments.start >= arguments.end:
        arguments.wrong(f"--from is {arguments.start:%Y-%m-%dT%H:%MZ}, which is not before --to")
    if arguments.period and (arguments.last is not None or arguments.start):
        arguments.wrong("--period is the length of the window; leave it out where --last or --from is given")
    start, end = arguments.start, arguments.end
    if arguments.last is not None:
        end = datetime.now(timezone.utc)
        start = end - timedelta(seconds=arguments.last)
    window = {"period": arguments.period or "daily", "start_time": start, "end_time": end}
    return {name: value for name, value in window.items() if value is not None}
