"""Ctrl-C and SIGTERM (of `timeout`, of a CI runner) both end the demo, and the shop is not left behind."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, the two signals raise KeyboardInterrupt; while `run` runs, they cancel what it runs."""

    def __init__(self) -> None:
        self._cancel: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        # Python lets only the main thread have signal handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run` that raises KeyboardInterrupt after everything in it was cancelled."""

        async def cancellable() -> T:
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            if task is not None:
                self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            return await main

        try:
            result = asyncio.run(cancellable())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            cancelled, self._cancel = self._cancel is None, None
        if cancelled:  # at its last moment, with nothing left to cancel
            raise KeyboardInterrupt
        return result

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        # An exception out of a handler can strike anywhere in the event loop and leave it hanging, a
        # cancellation cannot. Who presses Ctrl-C again wants out at any price.
        cancel, self._cancel = self._cancel, None
        if cancel is None:
            raise KeyboardInterrupt
        cancel()
