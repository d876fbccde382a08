"""Counts instructions with valgrind's callgrind, and compares them with counts that were kept.

A count does not depend on the machine's load or speed, so it is what can be gated on. It does depend on the build of
the interpreter and on every library, so a baseline names both, and is not compared with counts of others.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.configurations import Subject
from tests.benchmarks.processes import BenchError, Place, Worker

#: A count that grew by more than this fails the gate.
TOLERANCE = 0.02

_COLLECTED = re.compile(r"^summary: (\d+)$", re.MULTILINE)


def missing() -> str | None:
    """What must be installed first, None when all is there."""
    wanted = [name for name in ("valgrind", "callgrind_control") if shutil.which(name) is None]
    return f"{wanted[0]} is not installed; on Debian and Ubuntu:  apt-get install valgrind" if wanted else None


def count_instructions(place: Place, measured: Subject, requests: int, repeats: int, seed: int = 0) -> float:
    """Instructions of the whole process per request, exporting included and garbage collection not.

    Counted are `requests` and then twice as many; the difference is free of what is spent once per count. What waiting
    threads do in between only adds, so that of several counts the least is the truest. Two runs with the same seed of
    string hashes agree to 0.1 %; another seed gives another layout of memory, and counts up to 0.5 % apart.

    Raises:
        BenchError: the process failed, or callgrind could not be told what to do.
    """
    output = place.folder / f"callgrind-{measured.key}-{seed}"
    options = ("--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}", "--log-file=/dev/null")
    extra = {**_steady(place), "PYTHONHASHSEED": str(seed)}
    with Worker(place, measured, prefix=("valgrind", *options), extra=extra) as worker:
        worker.ready()
        # The interpreter specialises its code, and caches fill, while nobody counts, which is ten times faster.
        worker.warm_up(1000)
        worker.ask("freeze")
        _control(worker, "--instr=on")
        counts: dict[int, list[int]] = {requests: [], 2 * requests: []}
        for number, part in enumerate([*counts] * repeats, start=1):
            worker.ask("serve", requests=part)
            _control(worker, "--dump")
            counts[part].append(_total(Path(f"{output}.{number}")))
    return (min(counts[2 * requests]) - min(counts[requests])) / requests


def _steady(place: Place) -> dict[str, str]:
    """Variables for a service in which nothing happens by the clock: under valgrind much more of it falls on a request.

    The port of /metrics is the sink's: it cannot be had, and so nothing waits on it.
    """
    return {
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
        "OTEL_EXPORTER_PROMETHEUS_PORT": place.sink.rpartition(":")[2],
        "APIVITALS_SYSTEM_METRICS": "false",
    }


def _control(worker: Worker, command: str) -> None:
    done = subprocess.run(
        ["callgrind_control", command, str(worker.process.pid)], capture_output=True, text=True, timeout=120
    )
    if done.returncode or "OK" not in done.stdout:
        raise BenchError(f"callgrind_control {command} failed: {done.stdout}{done.stderr}")


def _total(dump: Path) -> int:
    found = _COLLECTED.search(dump.read_text(errors="replace"))
    if found is None:
        raise BenchError(f"{dump.name} has no summary line")
    return int(found[1])


@dataclass(frozen=True, slots=True)
class Baseline:
    """Instructions per request by subject, and the versions of everything that they were counted with."""

    versions: Mapping[str, str]
    instructions: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """What `write` wrote.

        Raises:
            BenchError: there is no such file, or it is something else.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["versions"], content["instructions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} is no baseline ({error}); write one with --write-baseline {path}") from None

    def write(self, path: Path) -> None:
        """As JSON, with whole numbers."""
        content = {
            "versions": dict(self.versions),
            "instructions": {key: round(value) for key, value in self.instructions.items()},
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def regressions(baseline: Baseline, now: Baseline) -> list[str]:
    """What got worse by more than the tolerance, a sentence each; subjects that only one of them has are left out.

    Compared is what is added to the bare request of the same application, where that was counted too.

    Raises:
        BenchError: the two were made with other versions.
    """
    if baseline.versions != now.versions:
        other = sorted(
            name
            for name in {*baseline.versions, *now.versions}
            if baseline.versions.get(name) != now.versions.get(name)
        )
        raise BenchError(
            f"the baseline was counted with another {', '.join(other)}; count both sides with the same versions, "
            "or write it anew with --write-baseline"
        )
    found = []
    for key in baseline.instructions.keys() & now.instructions.keys():
        before, after = _added(baseline, key), _added(now, key)
        if after > before * (1 + TOLERANCE):
            found.append(f"{key}: {after:,.0f} instructions, {after / before - 1:+.1%} on {before:,.0f}")
    return sorted(found)


def _added(counted: Baseline, key: str) -> float:
    name, separator, application = key.partition("@")
    bare = counted.instructions.get(f"bare{separator}{application}", 0.0)
    return counted.instructions[key] - (bare if name != "bare" else 0.0)
