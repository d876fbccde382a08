"""Metrics of the process and its host, read with psutil.

Names, units and descriptions are those of `apivitals.semconv`; attribute values follow OpenTelemetry's
system and process conventions. What a platform does not have (macOS knows no I/O counters of a process,
Windows no file descriptors) gives no point there.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from apivitals import semconv

if TYPE_CHECKING:
    from psutil import Process

logger = logging.getLogger(__name__)

T = TypeVar("T")
Attributes = tuple[tuple[str, str | int], ...]
#: Values of one instrument by attributes; an instrument without attributes has the key `()`.
Values = Mapping[Attributes, float]

# Instruments that share a reading are collected within milliseconds; two collections are seconds apart.
_MAX_AGE = 0.5
# Listing connections reads every socket of the host: 9 ms measured with 50 sockets, where others take 0.05.
_CONNECTIONS_MAX_AGE = 15.0

# psutil's names of TCP states that are not the convention's in lower case.
_STATES = {
    "SYN_RECV": "syn_received",
    "FIN_WAIT1": "fin_wait_1",
    "FIN_WAIT2": "fin_wait_2",
    "CLOSE": "closed",
    "DELETE_TCB": "delete",
}
# Linux counts guests into user and nice; psutil's interrupt kinds are one mode in the convention.
_NOT_A_MODE = frozenset({"guest", "guest_nice"})
_MODES = {"irq": "interrupt", "softirq": "interrupt", "dpc": "interrupt"}


class Reading(Generic[T]):
    """One reading that several instruments share, and the one before it.

    Args:
        read: takes the reading.
        clock: monotonic seconds.
        max_age: a reading younger than this many seconds is given out again.
    """

    def __init__(self, read: Callable[[], T], clock: Callable[[], float], max_age: float = _MAX_AGE) -> None:
        self._read = read
        self._clock = clock
        self._max_age = max_age
        self._lock = Lock()
        self._latest: tuple[float, T] | None = None
        self._previous: tuple[float, T] | None = None

    def latest(self) -> T:
        """The reading of now."""
        return self._refresh()[0][1]

    def interval(self) -> tuple[float, T, T] | None:
        """Seconds since the reading before, that reading, and the one of now; None at the first reading."""
        (now, value), previous = self._refresh()
        if previous is None:
            return None
        then, before = previous
        return now - then, before, value

    def _refresh(self) -> tuple[tuple[float, T], tuple[float, T] | None]:
        with self._lock:
            now = self._clock()
            if self._latest is None or now - self._latest[0] >= self._max_age:
                latest = (now, self._read())
                self._previous, self._latest = self._latest, latest
            return self._latest, self._previous


def register(meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
    """Make the process, host and interpreter metrics of `semconv` on a meter.

    The utilisations are over the time since the collection before; the first one covers the time since
    this call. After a fork the child's points are its own.

    Args:
        meter: where to make the observable instruments.
        clock: monotonic seconds.
    """
    import psutil

    # AttributeError: psutil leaves out what a platform does not have.
    unavailable = (psutil.Error, OSError, NotImplementedError, AttributeError)
    for name, values in _sources(psutil, clock, unavailable).items():
        instrument = semconv.INSTRUMENTS[name]
        create: Callable[..., Any] = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }[instrument.kind]
        callback = _callback(values, unavailable)
        create(instrument.name, callbacks=[callback], unit=instrument.unit, description=instrument.description)


def _callback(
    values: Callable[[], Values], unavailable: tuple[type[Exception], ...]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        try:
            return [Observation(value, dict(attributes)) for attributes, value in values().items()]
        except unavailable:
            return []
        except Exception:
            # A surprise of psutil must cost its own metric and no other.
            logger.debug("a system metric cannot be read", exc_info=True)
            return []

    return observe


def _sources(
    psutil: Any, clock: Callable[[], float], unavailable: tuple[type[Exception], ...]
) -> dict[str, Callable[[], Values]]:
    process = _CurrentProcess(psutil)
    own_cpu = Reading(lambda: (os.getpid(), process().cpu_times()), clock)
    own_memory = Reading(lambda: process().memory_info(), clock)
    own_io = Reading(lambda: process().io_counters(), clock)
    connections = Reading(lambda: process().net_connections(kind="inet"), clock, _CONNECTIONS_MAX_AGE)
    host_cpu = Reading(psutil.cpu_times, clock)
    host_memory = Reading(psutil.virtual_memory, clock)
    cpus = os.cpu_count() or 1
    for baseline in (own_cpu, host_cpu):
        with suppress(*unavailable):
            baseline.latest()

    def own_cpu_utilization() -> Values:
        interval = own_cpu.interval()
        if interval is None:
            return {}
        seconds, (old_pid, before), (pid, now) = interval
        if pid != old_pid or seconds <= 0:
            return {}
        used = (now.user + now.system) - (before.user + before.system)
        return {(): max(0.0, used / (seconds * cpus))}

    def host_cpu_utilization() -> Values:
        interval = host_cpu.interval()
        if interval is None:
            return {}
        before, now = cpu_modes(interval[1]), cpu_modes(interval[2])
        # The kernel's idle and iowait can run backwards a little.
        spent = {mode: max(0.0, now[mode] - before.get(mode, 0.0)) for mode in now}
        total = sum(spent.values())
        if total <= 0:
            return {}
        return {(): 1 - (spent.get("idle", 0.0) + spent.get("iowait", 0.0)) / total}

    def filesystem_utilization() -> Values:
        usage = psutil.disk_usage(os.getcwd())
        # As df has it: what only root may use belongs to neither.
        return {(): usage.used / (usage.used + usage.free)}

    seen_connections: set[Attributes] = set()

    def connection_counts() -> Values:
        counts = count_connections(connections.latest())
        # A state that empties must fall to 0 and not keep its last value.
        counts = {**dict.fromkeys(seen_connections, 0), **counts}
        seen_connections.update(counts)
        return counts

    return {
        "process.cpu.time": lambda: {
            (("cpu.mode", mode),): getattr(own_cpu.latest()[1], mode) for mode in ("user", "system")
        },
        "process.cpu.utilization": own_cpu_utilization,
        "process.memory.usage": lambda: {(): own_memory.latest().rss},
        "process.memory.virtual": lambda: {(): own_memory.latest().vms},
        "process.thread.count": lambda: {(): process().num_threads()},
        "process.unix.file_descriptor.count": lambda: {(): process().num_fds()},
        "process.disk.io": lambda: {
            (("disk.io.direction", "read"),): own_io.latest().read_bytes,
            (("disk.io.direction", "write"),): own_io.latest().write_bytes,
        },
        "process.uptime": lambda: {(): max(0.0, time.time() - process().create_time())},
        "process.network.connection.count": connection_counts,
        "system.cpu.time": lambda: {
            (("cpu.mode", mode),): seconds for mode, seconds in cpu_modes(host_cpu.latest()).items()
        },
        "system.cpu.utilization": host_cpu_utilization,
        "system.memory.usage": lambda: memory_states(host_memory.latest()),
        "system.memory.utilization": lambda: {(): 1 - host_memory.latest().available / host_memory.latest().total},
        "system.disk.io": lambda: _directions(
            psutil.disk_io_counters(), "disk.io.direction", read="read_bytes", write="write_bytes"
        ),
        "system.filesystem.utilization": filesystem_utilization,
        "system.network.io": lambda: _directions(
            psutil.net_io_counters(), "network.io.direction", transmit="bytes_sent", receive="bytes_recv"
        ),
        "cpython.gc.collections": lambda: _garbage("collections"),
        "cpython.gc.collected_objects": lambda: _garbage("collected"),
    }


class _CurrentProcess:
    """This process as psutil sees it; after a fork, the child and not its parent."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._process: Process | None = None

    def __call__(self) -> Any:
        if self._process is None or self._process.pid != os.getpid():
            self._process = self._psutil.Process()
        return self._process


def cpu_modes(times: Any) -> dict[str, float]:
    """Seconds by `cpu.mode` from psutil's CPU times of the host; the modes add up to all CPU time."""
    modes: dict[str, float] = {}
    for field, seconds in times._asdict().items():
        if field not in _NOT_A_MODE:
            mode = _MODES.get(field, field)
            modes[mode] = modes.get(mode, 0.0) + seconds
    return modes


def memory_states(memory: Any) -> dict[Attributes, float]:
    """Bytes by `system.memory.state` from psutil's virtual memory; where Linux tells all, they add up to the total."""
    states: dict[str, float] = {"free": memory.free}
    for state in ("cached", "buffers"):
        if hasattr(memory, state):
            states[state] = getattr(memory, state)
    # psutil's own `used` overlaps with what is cached on Linux.
    states["used"] = memory.total - sum(states.values()) if "cached" in states else memory.used
    return {(("system.memory.state", state),): value for state, value in states.items()}


def count_connections(connections: Iterable[Any]) -> dict[Attributes, int]:
    """Number of a process's connections by `network.transport` and, for TCP, `network.connection.state`."""
    import socket

    counts: dict[Attributes, int] = {}
    for connection in connections:
        if connection.type == socket.SOCK_STREAM:
            state = _STATES.get(connection.status, connection.status.lower())
            key: Attributes = (("network.transport", "tcp"), ("network.connection.state", state))
        else:
            key = (("network.transport", "udp"),)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _directions(counters: Any, attribute: str, **fields: str) -> Values:
    # None: a host without disks or network interfaces.
    if counters is None:
        return {}
    return {((attribute, direction),): getattr(counters, field) for direction, field in fields.items()}


def _garbage(field: str) -> Values:
    return {(("cpython.gc.generation", generation),): stats[field] for generation, stats in enumerate(gc.get_stats())}
