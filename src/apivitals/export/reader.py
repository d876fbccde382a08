"""The one metric reader, and the thread that carries its collections to an exit.

The SDK aggregates every measurement once per reader, so there is one, cumulative, and everything else
subtracts from what it yields. See also `snapshot`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from threading import Event, RLock, Thread
from time import monotonic, time_ns
from typing import Any

from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation

from apivitals.export.snapshot import Snapshot, from_sdk, with_measured
from apivitals.models import Measured

logger = logging.getLogger(__name__)


class FanOutReader(MetricReader):
    """Collects on demand and hands the result back, once as the SDK made it and once as a Snapshot.

    Args:
        clock_ns: nanoseconds since the epoch.
        exponential: histograms that have no boundaries of their own are exponential.
    """

    def __init__(self, clock_ns: Callable[[], int] = time_ns, *, exponential: bool = False) -> None:
        super().__init__(
            preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()} if exponential else None
        )
        self._lock = RLock()
        self._clock_ns = clock_ns
        self._received: MetricsData | None = None
        self._sources: list[Callable[[], Iterable[Measured]]] = []

    def add_source(self, source: Callable[[], Iterable[Measured]]) -> None:
        """Collect from a source outside of the SDK too; its metrics are in a scope of their own."""
        self._sources.append(source)

    def collect_data(self) -> MetricsData | None:
        """Everything measured so far, in the SDK's form; None before anything was measured."""
        with self._lock:
            self._received = None
            self.collect()
            return self._received

    def snapshot(self) -> Snapshot:
        """Everything measured so far, in the SDK and outside of it."""
        now = self._clock_ns()
        snapshot = from_sdk(self.collect_data(), now)
        measured = [entry for source in self._sources for entry in source()]
        return with_measured(snapshot, measured) if measured else snapshot

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._received = metrics_data

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing to do: the exits are shut down by whoever started them."""


_current: FanOutReader | None = None


def current_reader() -> FanOutReader | None:
    """The reader of this process's telemetry, None before it was configured."""
    return _current


def set_current_reader(reader: FanOutReader | None) -> None:
    """Make a reader the one that `current_reader` gives."""
    global _current
    _current = reader


class Periodic:
    """Runs an action every `interval` seconds on a daemon thread, and once more when stopped.

    An action that raises is logged once a minute at the most and run again next time. A forked child gets a
    thread of its own, because threads do not survive a fork.
    """

    def __init__(self, name: str, interval: float, action: Callable[[], object]) -> None:
        self._name = name
        self._interval = interval
        self._action = action
        self._stop = Event()
        self._thread: Thread | None = None
        self._complained = float("-inf")

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is not None:
            return
        self._start_thread()
        if hasattr(os, "register_at_fork"):
            reference = weakref.WeakMethod(self._restart)
            os.register_at_fork(after_in_child=lambda: (restart := reference()) and restart())

    def stop(self, timeout: float = 5.0) -> None:
        """Stop the thread and run the action a last time; returns after `timeout` seconds at the latest."""
        if self._thread is None:
            return
        self._stop.set()
        # The last run is the thread's own: an action that hangs must not hang the shutdown.
        self._thread.join(timeout)
        self._thread = None

    def run(self) -> None:
        """Run the action now, in the caller's thread; what it raises is logged."""
        try:
            self._action()
        except Exception:
            if monotonic() - self._complained >= 60:
                self._complained = monotonic()
                logger.warning("%s failed; it is tried again in %g s", self._name, self._interval, exc_info=True)

    def _restart(self) -> None:
        if self._thread is not None and not self._stop.is_set():
            self._stop = Event()
            self._start_thread()

    def _start_thread(self) -> None:
        self._thread = Thread(target=self._loop, args=(self._stop,), name=f"apivitals-{self._name}", daemon=True)
        self._thread.start()

    def _loop(self, stop: Event) -> None:
        due = monotonic() + self._interval
        while not stop.wait(max(0.0, due - monotonic())):
            self.run()
            # After a stall the missed turns are skipped, not caught up with.
            due = max(due + self._interval, monotonic())
        self.run()
