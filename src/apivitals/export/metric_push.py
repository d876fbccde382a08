"""Pushes snapshots of the metrics over OTLP/HTTP, every so often."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from threading import Lock

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

from apivitals.export.delta import Baseline
from apivitals.export.otlp_metrics import metrics_request
from apivitals.export.otlp_settings import MetricPushSettings
from apivitals.export.push import OnDrop, breathe
from apivitals.export.reader import Periodic
from apivitals.export.sender import Sender, Verdict
from apivitals.export.snapshot import Snapshot

logger = logging.getLogger(__name__)


class MetricPusher:
    """Takes a snapshot every interval, on a thread of its own, and pushes it; once more when it is shut down.

    Of a cumulative push that does not arrive the next one says all but the values that gauges had; it is
    counted as dropped. Of a delta push nothing is lost: what did not arrive is in the next one.

    Args:
        snapshot: gives everything measured so far, cumulative.
        sender: sends the requests; nobody else may use it.
        settings: how often, for how long, in which temporality.
        on_drop: told about lost data points, with the reason `export` or `rejected`.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        sender: Sender,
        settings: MetricPushSettings,
        on_drop: OnDrop = lambda *_: None,
    ) -> None:
        self._snapshot = snapshot
        self._sender = sender
        # What is tried again for longer than the interval would hold up the next snapshot.
        self._budget = min(settings.timeout, settings.interval)
        self._on_drop = on_drop
        self._baseline = Baseline() if settings.temporality != "cumulative" else None
        self._busy = Lock()
        self._stopped = False
        self._periodic = Periodic("otlp-metrics", settings.interval, self._turn)
        if hasattr(os, "register_at_fork"):
            reference = weakref.WeakMethod(self._begin_again)
            os.register_at_fork(after_in_child=lambda: (begin := reference()) and begin())

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        self._periodic.start()

    def push(self, budget: float | None = None) -> bool:
        """Take a snapshot and push it now, within `budget` seconds; whether it arrived.

        Raises:
            Exception: whatever taking or encoding the snapshot raises.
        """
        limit = self._budget if budget is None else budget
        if not self._busy.acquire(timeout=limit):
            return False
        # An instrumented or patched HTTP client must not make spans of our own requests.
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            return self._pushed(limit)
        finally:
            detach(token)
            self._busy.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Push now; whether it arrived in time."""
        try:
            return self.push(timeout_millis / 1e3)
        except Exception:
            logger.warning("pushing metrics failed", exc_info=True)
            return False

    def shutdown(self, timeout: float = 5.0) -> None:
        """Push a last time and stop, within `timeout` seconds."""
        if self._stopped:
            return
        self._stopped = True
        self._sender.stop(timeout)
        self._periodic.stop(timeout + 0.1)
        # A thread that hangs in a request has the connection.
        if self._busy.acquire(blocking=False):
            self._sender.close()
            self._busy.release()

    def _begin_again(self) -> None:
        # A thread that is not in this process may have held it.
        self._busy = Lock()

    def _turn(self) -> None:
        self.push()

    def _pushed(self, budget: float) -> bool:
        snapshot = self._snapshot()
        said = snapshot if self._baseline is None else self._baseline.since(snapshot, breathe)
        if not said.scopes:
            return True
        outcome = self._sender.send(metrics_request(said, breathe), budget)
        if self._baseline is not None:
            if outcome.verdict is Verdict.RETRYABLE and not self._stopped:
                return False
            self._baseline.advance(snapshot)
        if outcome.verdict is Verdict.SUCCESS:
            self._drop("rejected", outcome.rejected)
        else:
            self._drop("export", sum(len(metric.points) for metric in said.metrics()))
        return outcome.verdict is Verdict.SUCCESS

    def _drop(self, reason: str, count: int) -> None:
        if count > 0:
            self._on_drop("metrics", reason, count)
