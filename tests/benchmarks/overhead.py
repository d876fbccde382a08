"""What telemetry costs: apivitals against a bare FastAPI service and against other instrumentations, in one run.

    python -m tests.benchmarks.overhead [--only cpu,requests] [--configurations bare,apivitals] [--rounds 9] …

Prints the figures that are promised with medians and ranges, and what each configuration costs. Everything stays on
loopback. `docs/performance.md` says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import machine, table
from tests.benchmarks.callgrind import TOLERANCE, Baseline, regressions
from tests.benchmarks.configurations import BARE, MODES, Configuration, Subject, configurations, subject
from tests.benchmarks.environments import ROOT, prepare, program, versions
from tests.benchmarks.measures import MEASURES
from tests.benchmarks.processes import BenchError, Place
from tests.benchmarks.task import Gathered, Task

PAGE = ROOT / "docs/performance.md"
#: Layouts of memory that the gate takes the median of.
GATE_ROUNDS = 5


def say(text: str) -> None:
    """Tell how far it is; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def names(text: str) -> list[str]:
    """Words with commas between them."""
    return [word for word in (part.strip() for part in text.split(",")) if word]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=…", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--only", type=names, default=list(MEASURES), metavar="NAMES", help=f"measures: {', '.join(MEASURES)}")
    add(
        "--configurations",
        type=names,
        metavar="NAMES",
        help=f"such as {', '.join(list(configurations())[:4])}; see --list",
    )
    add("--list", action="store_true", help="list the configurations and end")
    add("--rounds", type=int, metavar="N", help="rounds of each measure; each has its own default")
    add("--size", type=float, default=1.0, help="does that much more (2) or less (0.1) in each round")
    add(
        "--rate",
        type=float,
        metavar="N",
        help="requests/s of the paced load; by default 30 %% of a bare service's core",
    )
    add("--mode", choices=MODES, help="server instrumentation of apivitals; its best by default")
    add("--results", type=Path, metavar="FILE", help="read results from it, replace what is measured now, write it")
    add("--write-docs", action="store_true", help="write the tables into docs/performance.md")
    add(
        "--gate", type=Path, metavar="FILE", help=f"count instructions; fail where one is {TOLERANCE:.0%}% above FILE's"
    )
    add("--write-baseline", type=Path, metavar="FILE", help="count instructions and keep them in FILE")
    options = parser.parse_args(given)
    unknown = sorted({*options.only} - {*MEASURES})
    unknown += sorted({*(options.configurations or ())} - {*configurations()})
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    if options.size <= 0 or (options.rounds is not None and options.rounds < 1):
        parser.error("--size and --rounds must be above 0")
    if options.gate or options.write_baseline:
        options.only = ["instructions"]
        options.rounds = options.rounds or GATE_ROUNDS
        options.configurations = options.configurations or [
            BARE,
            *(n for n in configurations() if n.startswith("apivitals")),
        ]
    return options


def best_mode(wanted: str | None) -> str:
    """The server instrumentation to measure apivitals with: the wanted one, or the first that its settings accept.

    Raises:
        BenchError: they do not accept the wanted one, or none.
    """
    for mode in [wanted] if wanted else MODES:
        code = (
            f"from apivitals.settings import Settings; Settings.load({{'APIVITALS_SERVER_INSTRUMENTATION': {mode!r}}})"
        )
        done = subprocess.run([program("shared", "python"), "-c", code], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return mode
        say(f"server instrumentation {mode!r} is left out: {done.stderr.strip().splitlines()[-1]}")
    raise BenchError("apivitals cannot be measured")


def subjects_of(
    measure: str, known: Mapping[str, Configuration], wanted: Sequence[str] | None, broken: set[str]
) -> list[Subject]:
    """What a measure is made of: its own subjects, or those of the configurations that are asked for."""
    usual = [subject(key, known) for key in MEASURES[measure].subjects]
    if wanted:
        extra = [Subject(known[name]) for name in wanted]
        usual = [one for one in usual if one.configuration.name in wanted]
        usual += [one for one in extra if one.key not in {other.key for other in usual}]
    return [one for one in usual if one.configuration.environment not in broken]


def prepare_environments(subjects: Sequence[Subject]) -> set[str]:
    """Make what the subjects need; the environments that could not be made.

    Raises:
        BenchError: it is the one that everything needs.
    """
    broken = set()
    for environment in sorted({"shared", *(one.configuration.environment for one in subjects)}):
        problem = prepare(environment)
        if problem and environment == "shared":
            raise BenchError(f"the environment of the benchmarks cannot be made: {problem}")
        if problem:
            say(f"{environment} is left out, its environment cannot be made: {problem}")
            broken.add(environment)
    return broken


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run the measures that are asked for; results with the versions they were made with."""
    every = configurations()
    needed = [one for measure in options.only for one in subjects_of(measure, every, options.configurations, set())]
    broken = prepare_environments(needed)
    mode = best_mode(options.mode)
    known = configurations(mode)
    say(f"apivitals runs its server instrumentation {mode!r}")
    results: Gathered = {}
    with Place(mode) as place:
        for name in options.only:
            chosen = subjects_of(name, known, options.configurations, broken)
            task = Task(place, chosen, options.rounds or MEASURES[name].rounds, options.size, options.rate, say)
            started = time.monotonic()
            try:
                results.update(MEASURES[name].run(task))
                say(f"{name}: {time.monotonic() - started:.0f} s")
            except BenchError as error:
                say(f"{name} is not measured: {error}")
    installed = versions("shared", machine.PACKAGES)
    for environment in sorted({one.configuration.environment for one in needed} - {"shared"} - broken):
        installed.update(versions(environment, (*machine.PACKAGES,)))
    return {"mode": mode, "machine": machine.description(), "versions": installed, "results": results}


def merged(before: dict[str, Any], now: dict[str, Any], measures: Sequence[str]) -> dict[str, Any]:
    """Results of two runs; of the measures that the later one made, or could not make, only its own.

    Raises:
        BenchError: the two cannot stand in one table.
    """
    for name in ("mode", "machine"):
        if before[name] != now[name]:
            raise BenchError(
                f"the results have {name} {before[name]!r}, this run {now[name]!r}; give another --results"
            )
    anew = {name for measure in measures for name in MEASURES[measure].gives}
    kept = {name: values for name, values in before["results"].items() if name not in anew}
    return {
        **now,
        "versions": {**before["versions"], **now["versions"]},
        "results": {**kept, **now["results"]},
    }


def page_part(run: Mapping[str, Any]) -> str:
    """What is written into docs/performance.md."""
    mode = "" if run["mode"] == MODES[0] else f" apivitals ran its server instrumentation `{run['mode']}`."
    return "\n\n".join(
        (
            f"Measured on {run['machine']}.{mode}",
            table.markdown(table.promises(run["results"])),
            table.markdown(table.costs(run["results"], configurations(run["mode"]))),
            table.markdown(table.details(run["results"])),
            f"With {machine.version_list(run['versions'])}.",
        )
    )


def gate(options: argparse.Namespace, run: Mapping[str, Any]) -> int:
    """Compare instruction counts with the baseline, write it; the exit status."""
    counted = run["results"].get("instructions", {})
    if not counted:
        say("error: no instructions were counted")
        return 1
    now = Baseline(
        {"python": platform.python_version(), **run["versions"]},
        {key: median(values) for key, values in counted.items()},
    )
    if options.write_baseline:
        now.write(options.write_baseline)
        say(f"wrote {options.write_baseline}")
    if not options.gate:
        return 0
    worse = regressions(Baseline.read(options.gate), now)
    for sentence in worse:
        say(f"error: {sentence}")
    if not worse:
        say(f"no count is {TOLERANCE:.0%} above {options.gate}")
    return int(bool(worse))


def main(given: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes what is asked for."""
    options = arguments(given)
    if options.list:
        for name, configuration in configurations().items():
            print(f"{name:<34} {configuration.title}")
        return 0
    try:
        run = measure_all(options)
        if options.results and options.results.exists():
            run = merged(json.loads(options.results.read_text(encoding="utf-8")), run, options.only)
        if options.results:
            options.results.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        print(f"{run['machine']}\n")
        print(table.text(table.promises(run["results"])), end="\n\n")
        print(table.text(table.costs(run["results"], configurations(run["mode"]))), end="\n\n")
        print(table.text(table.details(run["results"])))
        if options.write_docs:
            PAGE.write_text(table.written(PAGE.read_text(encoding="utf-8"), page_part(run)), encoding="utf-8")
            say(f"wrote {PAGE.relative_to(ROOT)}")
        return gate(options, run) if options.gate or options.write_baseline else 0
    except BenchError as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
