"""What the demo can be told, and what it needs before it starts."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from apivitals.errors import ConfigurationError, MissingExtraError

_MARK = ".apivitals-demo"
_MIN_SECONDS = 30.0
_NEEDED = {
    "uvicorn": "uvicorn",
    "httpx": "httpx",
    "sqlalchemy": "sqlalchemy",
    "rich": "rich",
    "statsmodels": "statsmodels",
    "jinja2": "jinja2",
    "opentelemetry.instrumentation.httpx": "opentelemetry-instrumentation-httpx",
    "opentelemetry.instrumentation.sqlalchemy": "opentelemetry-instrumentation-sqlalchemy",
}


@dataclass(frozen=True)
class Options:
    """Length of the traffic in seconds, folder for everything, mean requests per second, and the traffic's seed.

    Raises:
        ConfigurationError: a value that cannot be used.
    """

    seconds: float = 120.0
    out: Path = Path("apivitals-demo")
    rps: float = 80.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not _MIN_SECONDS <= self.seconds < float("inf"):
            raise ConfigurationError(
                f"--seconds is {self.seconds:g}; give at least {_MIN_SECONDS:g}, or there is too little to analyse"
            )
        if not 0 < self.rps <= 1000:
            raise ConfigurationError(f"the rate is {self.rps:g} requests/s; give one above 0 and up to 1000")

    @classmethod
    def of(cls, args: argparse.Namespace | None) -> Options:
        """From parsed arguments; what is absent or None keeps its default."""
        given = vars(args) if args is not None else {}
        known = {name: given[name] for name in ("seconds", "out", "rps", "seed") if given.get(name) is not None}
        return cls(**known)

    @property
    def interval_seconds(self) -> float:
        """Whole seconds between two snapshots of the metrics: five, less where a short run would have too few."""
        return float(max(1, min(5, self.seconds // 24)))


def check_extra() -> None:
    """Raise `MissingExtraError` for the first package of the extra `demo` that is not there."""
    for module, package in _NEEDED.items():
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:  # a package above it is missing
            found = False
        if not found:
            raise MissingExtraError("the demo", "demo", package)


@contextmanager
def prepare(out: Path) -> Iterator[Path]:
    """The output folder as an absolute path, without what an earlier demo left in it; no other demo gets it meanwhile.

    Raises:
        ConfigurationError: it holds something that no demo made, another demo is using it, or it cannot be written.
    """
    folder = out.expanduser().resolve()
    mark = folder / _MARK
    try:
        if folder.exists() and not mark.exists() and any(folder.iterdir()):
            raise ConfigurationError(f"--out is {str(out)!r}, a folder that no demo made; give a new one")
        folder.mkdir(parents=True, exist_ok=True)
        lock = mark.open("ab")
    except OSError as error:
        raise ConfigurationError(f"--out is {str(out)!r}, which cannot be used: {error.strerror}") from error
    with lock:
        if not _locked(lock):
            raise ConfigurationError(f"--out is {str(out)!r}, where another demo is running; give another folder")
        if (folder / "data").exists():
            shutil.rmtree(folder / "data")
        yield folder


def _locked(file: BinaryIO) -> bool:
    """Whether the file is ours alone until it is closed; where the system has no such lock, it is assumed to be."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
