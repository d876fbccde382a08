"""Telemetry files: OTLP JSON lines, rotated, compressed when rotated, bounded by age and size.

A process appends to files of its own, `<signal>-<UTC time>-<instance>.jsonl`, and holds a lock on each while
it does; a file without a holder belonged to a process that is gone and is compressed by the next one. A
reader may follow a file while it is written: a line is complete when it ends with a newline.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from apivitals.export.otlp import traces_request

try:
    import fcntl
except ImportError:  # Windows has no flock: files of dead processes stay uncompressed there until they age out
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

#: What is removed first when the folder is full: spans are the bulk, metrics feed the analytics job.
_EXPENDABLE = ("traces", "metrics")
#: A file is rotated at this size even within its time, so that the size bound stays meaningful.
_ROTATE_BYTES = 64 * 1024 * 1024
#: A file younger than this may be one whose owner is about to lock it.
_SETTLED = 120.0


def service_folder(root: Path, service: str) -> Path:
    """The folder of one service: its name with everything that a file name cannot hold replaced."""
    return root / (re.sub(r"[^\w.-]+", "_", service).strip("._") or "unknown_service")


def default_data_dir() -> Path:
    """`apivitals` in the user's state directory, as the platform has it."""
    from platformdirs import user_state_path

    return user_state_path("apivitals")


class TelemetryFiles:
    """The files of one process in one service's folder. Thread-safe; never raises.

    Args:
        folder: where to write; made when the first line is written.
        instance: tells this process's files from those of other workers.
        rotate_seconds, max_age_seconds, max_bytes: see `Settings`.
        on_drop: called with the signal and a reason for every request that could not be written.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        instance: str,
        *,
        rotate_seconds: float = 3600.0,
        max_age_seconds: float = 7 * 86400.0,
        max_bytes: float = 512 * 1024 * 1024,
        on_drop: Callable[[str, str], None] = lambda signal, reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._instance = instance
        self._rotate_seconds = rotate_seconds
        self._max_age = max_age_seconds
        self._max_bytes = max_bytes
        # A file that is written to is never removed, so it must stay a small part of what there may be.
        self._rotate_bytes = min(_ROTATE_BYTES, max_bytes / 8)
        self._on_drop = on_drop
        self._clock = clock
        self._lock = Lock()
        self._open: dict[str, _OpenFile] = {}
        self._warned = False
        self._checked = float("-inf")

    def writable(self) -> bool:
        """Make the folder and say whether it can be written; warns once when it cannot."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if os.access(self.folder, os.W_OK | os.X_OK):
                return True
            reason = "not writable by this user"
        except OSError as error:
            reason = error.strerror or str(error)
        self._warn(f"no telemetry files: {self.folder} is {reason}; set APIVITALS_DATA_DIR to a folder that is yours")
        return False

    def write(self, signal: str, request: Mapping[str, Any]) -> bool:
        """Append one export request as one line to the file of its signal; False when it was dropped."""
        line = json.dumps(request, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            try:
                self._file(signal).append(line)
            except OSError as error:
                reason = error.strerror or str(error)
                self._warn(f"telemetry file in {self.folder}: {reason}; dropping {signal} until it works again")
                self._on_drop(signal, "file")
                return False
            self._warned = False
            if not 0 <= self._clock() - self._checked < min(60.0, self._rotate_seconds):
                self._checked = self._clock()
                self._tidy()
            return True

    def close(self) -> None:
        """Close and compress this process's files."""
        with self._lock:
            for signal in list(self._open):
                self._rotate(signal)

    def _file(self, signal: str) -> _OpenFile:
        file = self._open.get(signal)
        now = self._clock()
        # A clock that was set back must not keep a file open for hours.
        if file is not None and (not 0 <= now - file.opened < self._rotate_seconds or file.size >= self._rotate_bytes):
            self._rotate(signal)
            file = None
        if file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self._open[signal] = _OpenFile(self._path(signal, now), now)
        return file

    def _path(self, signal: str, now: float) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        name = f"{signal}-{stamp}-{self._instance}"
        path = self.folder / f"{name}.jsonl"
        attempt = 0
        # Two rotations within a second would meet in one name.
        while path.exists() or path.with_suffix(".jsonl.zst").exists():
            attempt += 1
            path = self.folder / f"{name}.{attempt}.jsonl"
        return path

    def _rotate(self, signal: str) -> None:
        file = self._open.pop(signal)
        file.close()
        try:
            compress(file.path)
        except OSError as error:
            self._warn(f"cannot compress {file.path}: {error.strerror or error}")

    def _tidy(self) -> None:
        """Compress what dead processes left, and remove what is too old or too much."""
        try:
            for path, modified, _ in self._listed("*.jsonl"):
                if not self._is_live(path, modified):
                    compress(path)
            for path, modified, _ in self._listed(".*.partial"):
                if not self._is_fresh(modified):
                    path.unlink(missing_ok=True)
            self._prune()
        except OSError as error:
            self._warn(f"cannot tidy {self.folder}: {error.strerror or error}")

    def _prune(self) -> None:
        entries = self._listed("*.jsonl", "*.jsonl.zst")
        total = sum(size for _, _, size in entries)
        order = {signal: place for place, signal in enumerate(_EXPENDABLE)}
        entries.sort(key=lambda entry: (order.get(entry[0].name.split("-", 1)[0], 0), entry[1]))
        for path, modified, size in entries:
            unwanted = self._clock() - modified > self._max_age or total > self._max_bytes
            if unwanted and not self._is_live(path, modified):
                path.unlink(missing_ok=True)
                total -= size

    def _listed(self, *patterns: str) -> list[tuple[Path, float, int]]:
        """Files of the folder with the time of their last change and their size."""
        entries = []
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            try:
                status = path.stat()
            except FileNotFoundError:  # another worker was quicker
                continue
            entries.append((path, status.st_mtime, status.st_size))
        return entries

    def _is_fresh(self, modified: float) -> bool:
        return self._clock() - modified <= _SETTLED

    def _is_live(self, path: Path, modified: float) -> bool:
        """Whether this process or another one writes to it."""
        if any(path == file.path for file in self._open.values()):
            return True
        if path.suffix != ".jsonl":
            return False
        # Without locks only the age tells.
        return self._clock() - modified <= self._max_age if fcntl is None else (self._is_fresh(modified) or _held(path))

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(text)


class _OpenFile:
    """A file being appended to, locked for as long as this process lives."""

    def __init__(self, path: Path, opened: float) -> None:
        self.path = path
        self.opened = opened
        self.size = 0
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o640)
        if fcntl is not None:
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def append(self, line: bytes) -> None:
        """Append the whole line or nothing of it."""
        written = 0
        try:
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            # A full disk leaves half a line, which would spoil the next one.
            os.ftruncate(self._handle, self.size)
            raise
        self.size += written

    def close(self) -> None:
        os.close(self._handle)


def _held(path: Path) -> bool:
    """Whether a process holds the file's lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def compress(path: Path) -> Path | None:
    """Replace a `.jsonl` file by its `.jsonl.zst`; an empty one is removed. Returns the new path."""
    import zstandard

    target = path.with_name(f"{path.name}.zst")
    # The process is in the name, so two workers tidying at once write different temporary files.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.stat().st_size == 0:
            path.unlink()
            return None
        with path.open("rb") as source, partial.open("wb") as sink:
            zstandard.ZstdCompressor(level=3).copy_stream(source, sink)
        partial.replace(target)
        path.unlink(missing_ok=True)
    except FileNotFoundError:  # another worker was quicker
        return None
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return target


class FileSpanExporter(SpanExporter):
    """Writes finished spans to the traces file."""

    def __init__(self, files: TelemetryFiles) -> None:
        self._files = files

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one batch as one line."""
        written = self._files.write("traces", traces_request(spans))
        return SpanExportResult.SUCCESS if written else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing to do: the files are closed by whoever opened them."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True
