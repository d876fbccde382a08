"""The lateness of the event loop: what blocks it delays every request it serves."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Chain:
    """The timers of one loop, each of which sets up the next."""

    loop: weakref.ref[asyncio.AbstractEventLoop]
    stopped: bool = False


class EventLoopLag:
    """Measures how late event loops run a timer that was due: what blocks the loop delays everything in it.

    Args:
        record: takes the lateness in seconds, in the loop's thread, every `interval` seconds.
        interval: seconds between two timers.
    """

    def __init__(self, record: Callable[[float], None], interval: float = 0.25) -> None:
        self._record = record
        self._interval = interval
        self._lock = Lock()
        self._chains: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Chain] = weakref.WeakKeyDictionary()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to measure a loop, from any thread. A loop that is measured already stays as it is."""
        with self._lock:
            if loop in self._chains or loop.is_closed():
                return
            chain = self._chains[loop] = _Chain(weakref.ref(loop))
        loop.call_soon_threadsafe(self._schedule, chain)

    def stop(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Measure a loop no longer, all loops when None; from any thread."""
        with self._lock:
            if loop is None:
                chains = list(self._chains.values())
                self._chains.clear()
            else:
                chains = [chain] if (chain := self._chains.pop(loop, None)) else []
        for chain in chains:
            # Cancelling a timer is for the loop's own thread; it finds this at its next turn.
            chain.stopped = True

    def _schedule(self, chain: _Chain) -> None:
        loop = chain.loop()
        if loop is None or chain.stopped:
            return
        due = loop.time() + self._interval
        try:
            loop.call_later(self._interval, self._tick, chain, due)
        except RuntimeError:
            # The loop was closed within this very turn.
            self.stop(loop)

    def _tick(self, chain: _Chain, due: float) -> None:
        loop = chain.loop()
        if loop is None or chain.stopped:
            return
        try:
            self._record(max(0.0, loop.time() - due))
        except Exception:
            logger.debug("the lag of the event loop cannot be recorded", exc_info=True)
        self._schedule(chain)
