"""The one reader, and the thread that carries its collections away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from time import monotonic
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider

from apivitals.export import reader as module
from apivitals.export.reader import FanOutReader, Periodic, current_reader, set_current_reader

HOUR = 3600.0


def test_the_reader_gives_both_forms() -> None:
    reader = FanOutReader(clock_ns=lambda: 42)
    assert reader.snapshot().scopes == ()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    assert reader.collect_data() is None
    counter = provider.get_meter("t").create_counter("a")
    counter.add(1)
    data = reader.collect_data()
    assert data is not None
    taken = reader.snapshot()
    assert taken.time_ns == 42
    counter.add(4)
    # Cumulative, however often it is read.
    assert [metric.points[0].value for metric in reader.snapshot().find("a")] == [5]
    assert [metric.points[0].value for metric in taken.find("a")] == [1]
    provider.shutdown()
    assert reader.snapshot() is not None


def test_collections_at_once_each_get_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FanOutReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    provider.get_meter("t").create_counter("a").add(1)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: [found.append(len(reader.snapshot().find("a"))) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    provider.shutdown()
    assert found == [1] * 80


def test_the_current_reader() -> None:
    assert current_reader() is None
    reader = FanOutReader()
    set_current_reader(reader)
    assert current_reader() is reader
    set_current_reader(None)
    assert current_reader() is None


class Action:
    """Counts its runs, and lets a test wait for them."""

    def __init__(self) -> None:
        self.runs = 0
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.runs += 1
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, runs: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.runs >= runs, 10)


def test_it_runs_again_and_again_on_a_thread_of_its_own() -> None:
    action = Action()
    periodic = Periodic("test", 0.01, action)
    periodic.start()
    periodic.start()
    action.wait(3)
    periodic.stop()
    assert action.threads == {"apivitals-test"}
    stopped = action.runs
    assert "apivitals-test" not in {thread.name for thread in threading.enumerate()}
    periodic.stop()
    assert action.runs == stopped


def test_stopping_runs_it_once_more() -> None:
    action = Action()
    periodic = Periodic("test", HOUR, action)
    periodic.start()
    assert action.runs == 0
    periodic.stop()
    assert action.runs == 1


def test_what_was_never_started_stops_without_a_run() -> None:
    action = Action()
    Periodic("test", HOUR, action).stop()
    assert action.runs == 0


def test_an_action_that_raises_is_run_again_and_said_once(caplog: Any) -> None:
    action = Action()

    def fail() -> None:
        action()
        raise OSError("no route to host")

    periodic = Periodic("push", 0.001, fail)
    periodic.start()
    action.wait(5)
    periodic.stop()
    assert len(caplog.records) == 1
    assert "push failed; it is tried again in 0.001 s" in caplog.text
    assert "no route to host" in caplog.text


def test_a_failure_is_said_again_after_a_minute(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)

    def fail() -> None:
        raise OSError("down")

    periodic = Periodic("push", HOUR, fail)
    for later, said in ((0, 1), (59, 1), (60, 2), (90, 2), (121, 3)):
        now = 1000.0 + later
        periodic.run()
        assert len(caplog.records) == said


def test_stopping_an_action_that_hangs_returns_in_time() -> None:
    release, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(30)

    periodic = Periodic("test", 0.001, hang)
    periodic.start()
    assert entered.wait(10)
    began = monotonic()
    periodic.stop(timeout=0.1)
    assert monotonic() - began < 2
    release.set()


def test_missed_turns_are_not_caught_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    waited: list[float] = []
    runs: list[float] = []

    class Stop:
        def wait(self, seconds: float) -> bool:
            nonlocal now
            waited.append(seconds)
            now += seconds
            return len(waited) > 4

    def action() -> None:
        nonlocal now
        runs.append(now)
        if len(runs) == 1:
            # A laptop that slept.
            now += 100.0

    monkeypatch.setattr(module, "monotonic", lambda: now)
    Periodic("test", 10.0, action)._loop(Stop())  # type: ignore[arg-type]
    assert runs[:3] == [10.0, 110.0, 120.0]


FORK = """
import os, sys, threading
from apivitals.export.reader import Periodic

turn = threading.Event()
periodic = Periodic("test", 0.01, turn.set)
periodic.start()
stopped = Periodic("stopped", 0.01, lambda: None)
stopped.start()
stopped.stop()
gone = Periodic("gone", 0.01, lambda: None)
gone.start()
gone.stop()
del gone
child = os.fork()
if child == 0:
    turn.clear()
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("apivitals"))
    ran = turn.wait(10)
    periodic.stop()
    os._exit(0 if ran and names == ["apivitals-test"] else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
turn.clear()
assert turn.wait(10)
periodic.stop()
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_gets_a_thread_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
