from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from apivitals import semconv
from apivitals.telemetry import system

SYSTEM_NAMES = {name for name in semconv.INSTRUMENTS if name.startswith(("process.", "system.", "cpython."))}
Points = dict[str, dict[tuple[tuple[str, Any], ...], float]]


class Clock:
    """Monotonic seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collect(clock: Clock) -> Callable[[], Points]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    system.register(provider.get_meter("test"), clock)

    def collected() -> Points:
        data = reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
        }

    return collected


def later(clock: Clock, seconds: float = 10.0) -> None:
    clock.now += seconds


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms leave some metrics out")
def test_every_system_metric_of_the_table_is_emitted(collect: Callable[[], Points], clock: Clock):
    sum(range(2_000_000))  # some CPU time between the baseline and the collection
    later(clock)
    points = collect()
    # A host without disks has no disk counters.
    optional = set() if psutil.disk_io_counters() else {"system.disk.io"}
    assert points.keys() >= SYSTEM_NAMES - optional - {"process.network.connection.count"}
    assert points.keys() <= SYSTEM_NAMES
    for name, values in points.items():
        allowed = set(semconv.INSTRUMENTS[name].attributes)
        assert all({key for key, _ in attributes} <= allowed for attributes in values), name
        assert all(value >= 0 for value in values.values()), name
    for name in ("process.cpu.utilization", "system.cpu.utilization", "system.memory.utilization"):
        assert 0 <= points[name][()] <= 1
    assert points["process.memory.usage"][()] > 1e6
    assert points["process.thread.count"][()] >= 1
    assert points["cpython.gc.collections"].keys() == {(("cpython.gc.generation", number),) for number in range(3)}
    gc.collect()
    assert (
        collect()["cpython.gc.collections"][(("cpython.gc.generation", 2),)]
        > (points["cpython.gc.collections"][(("cpython.gc.generation", 2),)])
    )


def test_memory_states_add_up_to_the_total(collect: Callable[[], Points]):
    if sys.platform != "linux":
        pytest.skip("other platforms have states that the convention does not name")
    assert sum(collect()["system.memory.usage"].values()) == psutil.virtual_memory().total


def test_utilisations_have_no_point_until_time_has_passed(collect: Callable[[], Points], clock: Clock):
    first = collect()
    assert "process.cpu.utilization" not in first
    assert "system.cpu.utilization" not in first
    assert first["process.cpu.time"]


def test_process_utilisation_is_over_the_time_since_the_collection_before(
    collect: Callable[[], Points], clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    seconds = SimpleNamespace(user=0.0, system=0.0)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: SimpleNamespace(**vars(seconds)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    # Registered again, so that the baseline is taken from the patched process.
    reading = system._sources(psutil, clock, ())["process.cpu.utilization"]
    later(clock, 10)
    seconds.user, seconds.system = 15.0, 5.0
    assert reading() == {(): 0.5}
    later(clock, 20)
    seconds.user = 35.0
    assert reading() == {(): 0.25}
    later(clock, 0.1)
    assert reading() == {(): 0.25}, "a collection at the same moment sees the same reading"


def test_host_utilisation_counts_what_is_not_idle(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    Times = namedtuple("Times", "user system idle iowait irq softirq guest")
    now = Times(10, 10, 100, 5, 1, 1, 3)
    monkeypatch.setattr(psutil, "cpu_times", lambda: now)
    sources = system._sources(psutil, clock, ())
    assert sources["system.cpu.time"]() == {
        (("cpu.mode", "user"),): 10,
        (("cpu.mode", "system"),): 10,
        (("cpu.mode", "idle"),): 100,
        (("cpu.mode", "iowait"),): 5,
        (("cpu.mode", "interrupt"),): 2,
    }
    later(clock)
    now = Times(12, 11, 115, 4, 1, 2, 5)
    # 4 busy of 19; iowait ran backwards by one.
    assert sources["system.cpu.utilization"]() == {(): pytest.approx(4 / 19)}


def test_a_forked_child_reports_itself(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    source = system._sources(psutil, clock, ())["process.cpu.utilization"]
    later(clock)
    assert source()
    # Not a real fork: test processes have threads. Process(pid) is psutil's own check of who we are.
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setattr(os, "getpid", lambda: other.pid)
        later(clock)
        assert source() == {}, "the child has no reading before its first"
        later(clock)
        assert source()
    finally:
        other.communicate(b"\n")


@pytest.mark.parametrize(
    "error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), OSError("no"), NotImplementedError, ValueError("odd")]
)
def test_a_reading_that_fails_gives_no_point_and_no_error(
    error: Exception, collect: Callable[[], Points], clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    for name in ("memory_info", "num_threads", "cpu_times", "net_connections"):
        monkeypatch.setattr(psutil.Process, name, fail)
    later(clock)
    points = collect()
    assert "process.memory.usage" not in points
    assert "process.thread.count" not in points
    assert "process.cpu.time" not in points
    assert points["system.memory.utilization"]


def test_what_a_platform_does_not_have_gives_no_point(
    collect: Callable[[], Points], clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(psutil.Process, "io_counters", raising=False)  # macOS
    monkeypatch.delattr(psutil.Process, "num_fds", raising=False)  # Windows
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    points = collect()
    assert not {"process.disk.io", "process.unix.file_descriptor.count", "system.disk.io"} & points.keys()
    assert points["process.memory.usage"]


def test_registering_survives_a_host_that_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any) -> Any:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil, "Process", fail)
    monkeypatch.setattr(psutil, "cpu_times", fail)
    reader = InMemoryMetricReader()
    system.register(MeterProvider([reader], shutdown_on_exit=False).get_meter("test"))
    assert reader.get_metrics_data() is not None


def test_one_collection_reads_psutil_once(collect: Callable[[], Points], clock: Clock, monkeypatch: pytest.MonkeyPatch):
    calls = []
    real = psutil.Process.memory_info
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: calls.append(1) or real(self))
    collect()
    assert len(calls) == 1
    later(clock)
    collect()
    assert len(calls) == 2


def test_connections_by_transport_and_state(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    import socket

    def connection(kind: int, status: str) -> SimpleNamespace:
        return SimpleNamespace(type=kind, status=status)

    found = [
        connection(socket.SOCK_STREAM, psutil.CONN_ESTABLISHED),
        connection(socket.SOCK_STREAM, psutil.CONN_ESTABLISHED),
        connection(socket.SOCK_STREAM, psutil.CONN_FIN_WAIT1),
        connection(socket.SOCK_DGRAM, psutil.CONN_NONE),
    ]
    monkeypatch.setattr(psutil.Process, "net_connections", lambda self, kind: found)
    source = system._sources(psutil, clock, ())["process.network.connection.count"]

    def tcp(state: str) -> tuple[tuple[str, str], ...]:
        return (("network.transport", "tcp"), ("network.connection.state", state))

    udp = (("network.transport", "udp"),)
    assert source() == {tcp("established"): 2, tcp("fin_wait_1"): 1, udp: 1}
    found = found[:1]
    later(clock, 5)
    assert source()[udp] == 1, "the list is too dear to be taken at every collection"
    later(clock, 15)
    assert source() == {tcp("established"): 1, tcp("fin_wait_1"): 0, udp: 0}


def test_importing_does_not_import_psutil():
    code = "import sys, apivitals.telemetry.system; sys.exit('psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
