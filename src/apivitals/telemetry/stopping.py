"""Runs what flushes and stops telemetry, for a bounded time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Thread
from time import monotonic

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0


def run_all(what: str, steps: Sequence[Callable[[], object]], last: Sequence[Callable[[], object]] = ()) -> None:
    """Run steps side by side, for a bounded time, and then the last ones: an exporter that hangs holds up nobody."""

    def run(step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            logger.warning("%s telemetry: %r failed", what, step, exc_info=True)

    threads = [Thread(target=run, args=(step,), name="apivitals-flush", daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    deadline = monotonic() + FLUSH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    if any(thread.is_alive() for thread in threads):
        logger.warning("%s telemetry took more than %g s and goes on without waiting", what, FLUSH_SECONDS)
    for step in last:
        run(step)
