"""The virtual environments of the benchmarks, under `.venv-bench/`, made from their locks when they are needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-bench"


def lock_of(environment: str) -> Path:
    """What an environment is made from."""
    return ROOT / "requirements" / ("bench.txt" if environment == "shared" else f"bench-{environment}.txt")


def program(environment: str, name: str) -> Path:
    """A program of an environment."""
    return FOLDER / environment / "bin" / name


def prepare(environment: str) -> str | None:
    """Make an environment unless it is current; what went wrong, None when nothing did."""
    lock = lock_of(environment)
    ours = environment == "shared"
    stamp = FOLDER / environment / ".stamp"
    made_from = lock.read_bytes() + ((ROOT / "pyproject.toml").read_bytes() if ours else b"")
    wanted = hashlib.sha256(made_from).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    FOLDER.mkdir(exist_ok=True)
    command = ["scripts/venv", sys.executable, str(stamp.parent), str(lock.relative_to(ROOT))]
    made = subprocess.run(
        [*command, *(["--editable"] if ours else [])],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
    )
    if made.returncode:
        return made.stderr.strip() or f"scripts/venv ended with {made.returncode}"
    stamp.write_text(wanted)
    return None


def versions(environment: str, names: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of those packages that are there."""
    code = (
        "import sys; from importlib.metadata import distributions;"
        "print(*(d.metadata['Name'] + '=' + d.version for d in distributions()), sep='\\n')"
    )
    done = subprocess.run([program(environment, "python"), "-c", code], capture_output=True, text=True, check=True)
    installed = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: installed[name] for name in names if name in installed}
