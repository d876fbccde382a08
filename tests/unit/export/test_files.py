"""Telemetry files: whole lines, rotation, compression, bounds, and what happens when the disk does not want to."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from apivitals.export import files as module
from apivitals.export.files import FileSpanExporter, TelemetryFiles, compress, default_data_dir, service_folder

DAY = 86400.0
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
posix = pytest.mark.skipif(module.fcntl is None, reason="liveness is told by flock")


class Clock:
    """The present moment and what a test adds to it: ages are held against the times of real files."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dropped() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def make(tmp_path: Path, clock: Clock, dropped: list[tuple[str, str]]) -> Iterator[Any]:
    made: list[TelemetryFiles] = []

    def make(instance: str = "one", **options: Any) -> TelemetryFiles:
        given = {"on_drop": lambda *what: dropped.append(what), "clock": clock, **options}
        files = TelemetryFiles(tmp_path / "shop", instance, **given)
        made.append(files)
        return files

    yield make
    for files in made:
        files.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(path: Path) -> bytes:
    if path.suffix == ".zst":
        with path.open("rb") as source:
            return zstandard.ZstdDecompressor().stream_reader(source).read()
    return path.read_bytes()


def lines(folder: Path, signal: str = "") -> list[Any]:
    """Every line of every file, in the order of the names; each must be whole."""
    found = []
    for path in sorted(folder.glob(f"{signal}*.jsonl*")):
        text = content(path)
        assert text.endswith(b"\n")
        found += [json.loads(line) for line in text.split(b"\n")[:-1]]
    return found


def leave(folder: Path, name: str, age: float, size: int = 100) -> Path:
    """A file that a process left behind, that long ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"x" * (size - 1) + b"\n")
    os.utime(path, (time.time() - age,) * 2)
    return path


# --- lines


def test_a_request_is_a_line(make: Any, tmp_path: Path) -> None:
    files = make()
    assert not (tmp_path / "shop").exists()
    for number in range(3):
        assert files.write("metrics", {"n": number, "text": "ü\n\u2028"})
    files.write("traces", {"t": 1})
    assert lines(tmp_path / "shop", "metrics") == [{"n": n, "text": "ü\n\u2028"} for n in range(3)]
    assert lines(tmp_path / "shop", "traces") == [{"t": 1}]
    (path,) = (tmp_path / "shop").glob("metrics-*")
    assert path.name.startswith("metrics-20")
    assert path.name.endswith("-one.jsonl")


def test_text_that_is_no_unicode_does_not_lose_the_line(make: Any, tmp_path: Path) -> None:
    assert make().write("traces", {"path": "/caf\udce9"})
    assert lines(tmp_path / "shop") == [{"path": "/caf?"}]


@posix
def test_others_may_not_read_it(make: Any, tmp_path: Path) -> None:
    make().write("traces", {})
    (path,) = (tmp_path / "shop").iterdir()
    assert path.stat().st_mode & 0o007 == 0


@examples(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(TEXT, TEXT | st.integers(), max_size=3), max_size=6))
def test_any_requests_come_back(tmp_path_factory: pytest.TempPathFactory, requests: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("files")
    files = TelemetryFiles(folder, "one")
    for request in requests:
        assert files.write("metrics", request)
    before = lines(folder)
    files.close()
    assert before == lines(folder) == requests
    assert not list(folder.glob("*.jsonl"))


def test_a_reader_sees_whole_lines_while_they_are_written(make: Any, tmp_path: Path) -> None:
    files = make()
    files.write("metrics", {"n": 0})
    (path,) = (tmp_path / "shop").iterdir()
    done = threading.Event()

    def write() -> None:
        for number in range(1, 400):
            files.write("metrics", {"n": number, "pad": "x" * 2000})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    count, unread = 0, b""
    with path.open("rb") as source:
        while True:
            last = done.is_set()
            *whole, unread = (unread + source.read()).split(b"\n")
            for line in whole:
                assert json.loads(line)["n"] == count
                count += 1
            if last:
                break
    writer.join()
    assert (count, unread) == (400, b"")


def test_threads_do_not_mix_their_lines(make: Any, tmp_path: Path) -> None:
    files = make()
    threads = [
        threading.Thread(target=lambda who=who: [files.write("traces", {"w": who, "p": "y" * 500}) for _ in range(50)])
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["w"] for line in lines(tmp_path / "shop")) == [who for who in range(4) for _ in range(50)]


# --- rotation


def test_rotation_by_time_compresses_the_same_content(make: Any, tmp_path: Path, clock: Clock) -> None:
    files = make(rotate_seconds=60)
    files.write("metrics", {"n": 0})
    clock.now += 59
    files.write("metrics", {"n": 1})
    (first,) = (tmp_path / "shop").iterdir()
    before = content(first)
    clock.now += 1
    files.write("metrics", {"n": 2})
    assert not first.exists()
    assert content(first.with_name(f"{first.name}.zst")) == before
    assert [line["n"] for line in lines(tmp_path / "shop")] == [0, 1, 2]
    assert len(names(tmp_path / "shop")) == 2


def test_rotation_by_size(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROTATE_BYTES", 1000)
    files = make()
    for number in range(10):
        files.write("metrics", {"n": number, "pad": "x" * 400})
    assert len(list((tmp_path / "shop").glob("*.zst"))) == 3
    assert sorted(line["n"] for line in lines(tmp_path / "shop")) == list(range(10))


def test_a_small_bound_makes_small_files(make: Any, tmp_path: Path, clock: Clock) -> None:
    # A live file is never removed: one of 64 MB would break a bound of 10 KB.
    files = make(max_bytes=10_000, rotate_seconds=1e6)
    for number in range(200):
        clock.now += 61
        files.write("metrics", {"n": number, "pad": os.urandom(200).hex()})
    assert sum(path.stat().st_size for path in (tmp_path / "shop").iterdir()) <= 11_500
    kept = [line["n"] for line in lines(tmp_path / "shop")]
    assert max(kept) == 199
    assert len(kept) >= 15


def test_a_clock_that_is_set_back_rotates(make: Any, tmp_path: Path, clock: Clock) -> None:
    files = make(rotate_seconds=3600)
    files.write("metrics", {"n": 0})
    clock.now -= 2 * DAY
    files.write("metrics", {"n": 1})
    clock.now += 3601
    files.write("metrics", {"n": 2})
    assert len(names(tmp_path / "shop")) == 3
    assert len(list((tmp_path / "shop").glob("*.zst"))) == 2


def test_a_clock_that_is_set_back_does_not_stop_the_tidying(make: Any, tmp_path: Path, clock: Clock) -> None:
    files = make(max_age_seconds=7 * DAY)
    clock.now += 20 * DAY
    files.write("metrics", {})
    clock.now -= 20 * DAY
    old = leave(tmp_path / "shop", "traces-old-x.jsonl.zst", 8 * DAY)
    files.write("metrics", {})
    assert not old.exists()


def test_two_rotations_within_a_second_do_not_meet(make: Any, tmp_path: Path) -> None:
    for number in range(4):
        files = make()
        files.write("metrics", {"n": number})
        files.close()
    assert len(names(tmp_path / "shop")) == 4
    assert sorted(line["n"] for line in lines(tmp_path / "shop")) == [0, 1, 2, 3]


def test_signals_rotate_each_on_its_own(make: Any, tmp_path: Path, clock: Clock) -> None:
    files = make(rotate_seconds=60)
    files.write("metrics", {})
    clock.now += 40
    files.write("traces", {})
    clock.now += 30
    files.write("traces", {})
    files.write("metrics", {})
    assert len(list((tmp_path / "shop").glob("metrics*.zst"))) == 1
    assert not list((tmp_path / "shop").glob("traces*.zst"))


def test_closing_compresses_and_writing_goes_on(make: Any, tmp_path: Path) -> None:
    files = make()
    files.close()
    files.write("metrics", {"n": 0})
    files.close()
    files.close()
    assert all(name.endswith(".zst") for name in names(tmp_path / "shop"))
    files.write("metrics", {"n": 1})
    assert [line["n"] for line in lines(tmp_path / "shop")] in ([0, 1], [1, 0])


def test_a_compressed_file_is_one_plain_stream(tmp_path: Path) -> None:
    path = tmp_path / "metrics-a.jsonl"
    text = b'{"n":1}\n' * 10_000
    path.write_bytes(text)
    target = compress(path)
    assert target == tmp_path / "metrics-a.jsonl.zst"
    assert content(target) == text
    assert target.stat().st_size < len(text) / 50
    assert names(tmp_path) == ["metrics-a.jsonl.zst"]


def test_an_empty_file_is_removed_and_a_gone_one_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert compress(tmp_path / "a.jsonl") is None
    assert compress(tmp_path / "b.jsonl") is None
    assert names(tmp_path) == []


# --- several processes in one folder


def test_two_writers_keep_files_of_their_own(make: Any, tmp_path: Path) -> None:
    one, two = make("one"), make("two")
    for number in range(20):
        one.write("metrics", {"w": 1, "n": number})
        two.write("metrics", {"w": 2, "n": number})
    assert len(names(tmp_path / "shop")) == 2
    one.close()
    assert len(list((tmp_path / "shop").glob("*.jsonl"))) == 1
    assert two.write("metrics", {"w": 2, "n": 20})
    two.close()
    assert sorted((line["w"], line["n"]) for line in lines(tmp_path / "shop")) == [
        *((1, n) for n in range(20)),
        *((2, n) for n in range(21)),
    ]


@posix
def test_what_a_dead_process_left_is_compressed(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    old = leave(folder, "metrics-20260101T000000-dead.jsonl", 300)
    text = old.read_bytes()
    young = leave(folder, "metrics-20260101T000001-new.jsonl", 60)
    empty = leave(folder, "traces-20260101T000000-dead.jsonl", 300)
    empty.write_bytes(b"")
    os.utime(empty, (time.time() - 300,) * 2)
    half = leave(folder, ".metrics-a.jsonl.77.partial", 300)
    at_work = leave(folder, ".metrics-b.jsonl.78.partial", 3)
    make().write("metrics", {})
    assert not old.exists()
    assert content(old.with_name(f"{old.name}.zst")) == text
    assert young.exists()
    assert not empty.exists()
    assert not half.exists()
    assert at_work.exists()


HOLD = """
import sys
from pathlib import Path
from apivitals.export.files import TelemetryFiles
files = TelemetryFiles(Path(sys.argv[1]), "other")
files.write("traces", {"w": 0, "pad": "x" * 5000})
print("ready", flush=True)
for line in sys.stdin:
    files.write("traces", {"w": int(line)})
    print("written", flush=True)
"""


@posix
def test_the_file_of_a_living_process_is_left_alone(make: Any, tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "shop"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "ready\n"
        (live,) = folder.iterdir()
        # A quiet night: nothing was written to it for hours, it is too old, and there is too much.
        os.utime(live, (time.time() - 9 * DAY,) * 2)
        files = make(max_age_seconds=7 * DAY, max_bytes=1000)
        files.write("metrics", {"n": 1})
        assert live.exists()
        other.stdin.write("1\n")
        other.stdin.flush()
        assert other.stdout.readline() == "written\n"
        assert [line["w"] for line in lines(folder, "traces")] == [0, 1]
        # Its process is gone, as after kill -9: the next to tidy has it compressed and, being too old, removed.
        other.kill()
        other.wait()
        os.utime(live, (time.time() - 300,) * 2)
        clock.now += 61
        make("third", max_bytes=1e9).write("metrics", {"n": 2})
        assert not live.exists()
        assert content(live.with_name(f"{live.name}.zst")).count(b"\n") == 2
    finally:
        other.kill()
        other.communicate()


@posix
def test_two_that_tidy_at_once_do_not_harm_each_other(make: Any, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "shop"
    texts = {}
    for number in range(20):
        path = leave(folder, f"metrics-2026010{number % 10}T0000{number:02}-dead.jsonl", 300, size=20_000)
        texts[path.name] = path.read_bytes()
    workers = [make(str(number)) for number in range(4)]
    threads = [threading.Thread(target=worker.write, args=("traces", {})) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name.removesuffix(".zst"): content(path) for path in folder.glob("metrics*.zst")} == texts
    assert not list(folder.glob("metrics*.jsonl"))
    assert not list(folder.glob(".*"))
    assert caplog.records == []


# --- bounds


def test_what_is_too_old_is_removed(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    old = leave(folder, "metrics-a-x.jsonl.zst", 8 * DAY)
    kept = leave(folder, "traces-a-x.jsonl.zst", 6 * DAY)
    foreign = leave(folder, "notes.txt", 80 * DAY)
    make(max_age_seconds=7 * DAY).write("metrics", {})
    assert (old.exists(), kept.exists(), foreign.exists()) == (False, True, True)


def test_spans_go_before_metrics_and_the_oldest_first(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    for signal in ("traces", "metrics"):
        for age in range(1, 6):
            leave(folder, f"{signal}-{age}-x.jsonl.zst", age * 1000, size=1000)
    make(max_bytes=7500).write("metrics", {})
    assert sorted(path.name for path in folder.glob("*-x.jsonl.zst")) == [
        *(f"metrics-{age}-x.jsonl.zst" for age in range(1, 6)),
        "traces-1-x.jsonl.zst",
        "traces-2-x.jsonl.zst",
    ]
    make("two", max_bytes=2500).write("metrics", {})
    assert sorted(path.name for path in folder.glob("*-x.jsonl.zst")) == [
        "metrics-1-x.jsonl.zst",
        "metrics-2-x.jsonl.zst",
    ]


def test_tidying_is_not_done_at_every_line(make: Any, tmp_path: Path, clock: Clock) -> None:
    files = make()
    files.write("metrics", {})
    old = leave(tmp_path / "shop", "traces-a-x.jsonl.zst", 8 * DAY)
    clock.now += 59
    files.write("metrics", {})
    assert old.exists()
    clock.now += 1
    files.write("metrics", {})
    assert not old.exists()


# --- a disk that does not want to


class Disk:
    """Stands in for `os.write`: takes so many bytes more, and then it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**9
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, handle: int, data: bytes) -> int:
        if self.free <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(handle, data[: self.free])
        self.free -= taken
        return taken


def test_a_full_disk_leaves_no_torn_line(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: list[Any], caplog: Any
) -> None:
    disk = Disk(monkeypatch)
    files = make()
    assert files.write("metrics", {"n": 0})
    disk.free = 5
    for number in range(1, 4):
        assert not files.write("metrics", {"n": number})
        disk.free = number
    assert lines(tmp_path / "shop") == [{"n": 0}]
    assert dropped == [("metrics", "file")] * 3
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert str(tmp_path / "shop") in warnings[0]
    disk.free = 10**9
    assert files.write("metrics", {"n": 4})
    assert lines(tmp_path / "shop") == [{"n": 0}, {"n": 4}]
    disk.free = 2
    assert not files.write("metrics", {"n": 5})
    # It had recovered, so this is worth a second warning.
    assert len(caplog.records) == 2


def test_a_write_in_pieces_is_a_line(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    make().write("metrics", {"text": "in pieces"})
    assert lines(tmp_path / "shop") == [{"text": "in pieces"}]


def test_a_compression_that_fails_leaves_the_file_and_nothing_else(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Full:
        def __init__(self, level: int) -> None:
            pass

        def copy_stream(self, source: Any, sink: Any) -> None:
            sink.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    files = make()
    files.write("metrics", {"n": 0})
    monkeypatch.setattr(zstandard, "ZstdCompressor", Full)
    files.close()
    (left,) = (tmp_path / "shop").iterdir()
    assert left.suffix == ".jsonl"
    assert lines(tmp_path / "shop") == [{"n": 0}]
    assert "cannot compress" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, caplog: Any, dropped: list[tuple[str, str]]
) -> None:
    (tmp_path / "shop").write_text("a file where the folder should be")
    files = TelemetryFiles(tmp_path / "shop" / "inner", "one", on_drop=lambda *what: dropped.append(what))
    assert not files.writable()
    assert not files.write("metrics", {})
    assert not files.write("traces", {})
    assert len(caplog.records) == 1
    assert "set APIVITALS_DATA_DIR to a folder that is yours" in caplog.text
    assert dropped == [("metrics", "file"), ("traces", "file")]
    files.close()


def test_a_read_only_folder_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    # Root may write anywhere, so what the system says is made up here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    files = TelemetryFiles(tmp_path / "shop", "one")
    assert not files.writable()
    assert not files.writable()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "not writable by this user" in caplog.text


def test_a_folder_of_one_s_own_is_writable(tmp_path: Path, caplog: Any) -> None:
    assert TelemetryFiles(tmp_path / "a" / "b", "one").writable()
    assert (tmp_path / "a" / "b").is_dir()
    assert caplog.records == []


# --- names


@pytest.mark.parametrize(
    ("service", "folder"),
    [
        ("shop", "shop"),
        ("my shop/v2", "my_shop_v2"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "unknown_service"),
        ("", "unknown_service"),
        ("süß.Shop-1", "süß.Shop-1"),
        (".hidden", "hidden"),
    ],
)
def test_a_service_s_folder_stays_below_the_root(tmp_path: Path, service: str, folder: str) -> None:
    assert service_folder(tmp_path, service) == tmp_path / folder


@given(st.text(max_size=20))
def test_any_service_name_is_one_folder_below_the_root(service: str) -> None:
    folder = service_folder(Path("/root"), service)
    assert folder.parent == Path("/root")
    assert folder.name not in ("", ".", "..")


def test_the_default_folder_is_the_platform_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = default_data_dir()
    assert folder.name == "apivitals" or "apivitals" in folder.parts
    if sys.platform == "linux":
        assert folder == tmp_path / "apivitals"


# --- spans


def test_spans_are_written_by_the_batch(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = FileSpanExporter(make())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name in ("a", "b"):
        with provider.get_tracer("t").start_as_current_span(name):
            pass
    written = [
        line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for line in lines(tmp_path / "shop", "traces")
    ]
    assert written == ["a", "b"]
    assert exporter.force_flush()
    assert exporter.export([]) is SpanExportResult.SUCCESS
    Disk(monkeypatch).free = 0
    assert exporter.export([]) is SpanExportResult.FAILURE
    exporter.shutdown()
    provider.shutdown()
