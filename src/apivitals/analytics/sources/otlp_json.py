"""OTLP JSON lines from files: ours, and those of the OpenTelemetry collector's file exporter.

A line is one ExportMetricsServiceRequest. Files may be growing (`.jsonl`, read up to the last newline) or
compressed (`.zst`, one frame or several). Bad content never raises: it is counted, and said once in `notes`.
Source: https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from apivitals.errors import MissingExtraError, NoDataError

_SUFFIXES = (".jsonl", ".json", ".jsonl.zst", ".json.zst")
#: Our own names: `<signal>-<UTC stamp>-<instance>.jsonl`.
_OWN = re.compile(r"^(?P<signal>metrics|traces|logs)-(?P<stamp>\d{8}T\d{6})-.*\.jsonl(\.zst)?$")
_OTHER_SIGNALS = ("resourceSpans", "resourceLogs", "resourceProfiles")
_CHUNK = 1 << 20
_TAIL = 1 << 23
_TIME = re.compile(rb'"timeUnixNano"\s*:\s*"?(\d{10,20})')


def _is_telemetry(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES) and not path.name.startswith(".") and path.is_file()


def list_services(root: str | Path) -> list[str]:
    """Names of the folders under a data root that hold telemetry files, in alphabetical order.

    A root that does not exist or holds none gives an empty list.
    """
    folder = Path(root)
    if not folder.is_dir():
        return []
    try:
        return sorted(
            entry.name for entry in folder.iterdir() if entry.is_dir() and any(map(_is_telemetry, entry.iterdir()))
        )
    except OSError:
        return []


class OtlpJsonFiles:
    """The metrics in some files and folders; a `MetricsSource`.

    A folder stands for the telemetry files directly in it; a data root with one service below it stands for
    that service.

    Attributes:
        notes: what could not be used in the last read, a sentence each.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.notes: list[str] = []
        self._garbage: list[tuple[Path, int]] = []
        self._others: set[Path] = set()

    def files(self) -> list[Path]:
        """The files to read, oldest name first; spans of our own layout are left out.

        Raises:
            NoDataError: a path that does not exist, or a folder without telemetry files.
        """
        found: dict[Path, None] = {}
        for path in self.paths:
            for file in _files_of(path):
                found[file] = None
        # While a file is being compressed both it and its .zst exist for a moment: the .zst is complete.
        return [file for file in found if file.with_name(file.name + ".zst") not in found]

    def requests(self, start: datetime | None, end: datetime | None) -> Iterator[dict[str, Any]]:
        """Every metrics request in the files, as decoded JSON, in file order.

        Files of our own layout that were closed before `start` or begun after `end` are not opened.
        """
        self.notes = []
        self._garbage = []
        self._others = set()
        first, last = (moment.timestamp() if moment is not None else None for moment in (start, end))
        for file in self.files():
            if not _outside(file, first, last):
                yield from self._requests_of(file)
        if self._garbage:
            path, line = self._garbage[0]
            lines = "1 line is" if len(self._garbage) == 1 else f"{len(self._garbage)} lines are"
            self.notes.append(f"{lines} not OTLP JSON and left out; the first is line {line} of {path}")
        if self._others:
            names = sorted(path.name for path in self._others)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.notes.append(f"spans or logs left out: {names[0]}{more}; this analysis reads metrics")

    def newest(self) -> float | None:
        """Time of the newest point in the last complete lines of the files that are being written, in seconds since
        the epoch; None where there is no such file or its end cannot be read."""
        times = [time for file in self.files() if file.suffix != ".zst" and (time := _last_time(file)) is not None]
        return max(times, default=None)

    def _requests_of(self, file: Path) -> Iterator[dict[str, Any]]:
        for line_number, line in enumerate(self._lines(file), start=1):
            if not line.strip():
                continue
            try:
                request = orjson.loads(line)
            except orjson.JSONDecodeError:
                request = None
            if not isinstance(request, dict):
                self._garbage.append((file, line_number))
            elif isinstance(request.get("resourceMetrics"), list):
                yield request
            elif any(key in request for key in _OTHER_SIGNALS):
                self._others.add(file)
            elif request:
                self._garbage.append((file, line_number))

    def _lines(self, file: Path) -> Iterator[bytes]:
        """Complete lines of a file; a last line without its newline is still being written."""
        try:
            if file.suffix == ".zst":
                yield from self._compressed_lines(file)
                return
            with file.open("rb") as stream:
                for line in stream:
                    # A single JSON document that somebody saved without a newline is complete all the same.
                    if line.endswith(b"\n") or (file.suffix == ".json" and line.rstrip().endswith(b"}")):
                        yield line
        except FileNotFoundError:
            # Between listing and opening it was compressed, or aged out.
            compressed = file.with_name(file.name + ".zst")
            if file.suffix != ".zst" and compressed.exists():
                yield from self._lines(compressed)
        except OSError as error:
            self.notes.append(f"{file} cannot be read: {error.strerror or error}")

    def _compressed_lines(self, file: Path) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("reading compressed telemetry files", "analytics", "zstandard") from None
        rest = b""
        damage = ""
        with file.open("rb") as raw:
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            while True:
                try:
                    chunk = reader.read(_CHUNK)
                except zstandard.ZstdError as error:
                    damage = str(error)
                    break
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest.strip() or damage:
            self.notes.append(
                f"{file} is truncated or damaged{f' ({damage})' if damage else ''}; what came before was used"
            )


def _last_time(file: Path) -> float | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return None
    if not lines:
        return None
    # The text of the times is enough; a line may hold thousands of points.
    found = [int(match) for match in _TIME.findall(lines[-1])]
    return max(found) / 1e9 if found else None


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise NoDataError(
            f"no telemetry at {path}: it does not exist; start the service with apivitals so that it writes there, "
            "or name the folder that it writes to (APIVITALS_DATA_DIR)"
        )
    files = sorted(filter(_is_telemetry, path.iterdir()))
    if not files:
        services = list_services(path)
        if len(services) == 1:
            files = sorted(filter(_is_telemetry, (path / services[0]).iterdir()))
        elif services:
            raise NoDataError(f"{path} holds several services: {', '.join(services)}; name the folder of one of them")
    metrics = [file for file in files if not ((own := _OWN.match(file.name)) and own["signal"] != "metrics")]
    if not metrics:
        found = "holds spans or logs but no metrics" if files else "holds no telemetry files (*.jsonl, *.jsonl.zst)"
        raise NoDataError(
            f"{path} {found}; start the service with apivitals and send it some requests, "
            "or name the folder that it writes to (APIVITALS_DATA_DIR)"
        )
    return metrics


def _outside(file: Path, start: float | None, end: float | None) -> bool:
    own = _OWN.match(file.name)
    if own is None:
        return False
    opened = datetime.strptime(own["stamp"], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc).timestamp()
    if end is not None and opened > end + 60.0:
        return True
    if start is None:
        return False
    try:
        modified = file.stat().st_mtime
    except OSError:
        return False
    # A file written before the moment in its name has a clock that cannot be trusted.
    return opened <= modified < start - 60.0
