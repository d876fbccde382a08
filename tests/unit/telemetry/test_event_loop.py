from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

from apivitals.telemetry.event_loop import EventLoopLag


class Loop:
    """Just enough of an event loop, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.closed = False

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
        callback(*args)

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.timers.append((self.now + delay, callback, args))

    def run_until(self, now: float) -> None:
        """Let time jump to `now`, as if something blocked until then, and run what is due."""
        self.now = now
        due, self.timers = [t for t in self.timers if t[0] <= now], [t for t in self.timers if t[0] > now]
        for _, callback, args in due:
            callback(*args)


def test_lag_is_how_late_a_timer_ran():
    lags: list[float] = []
    loop: Any = Loop()
    EventLoopLag(lags.append).start(loop)
    loop.run_until(0.25)
    loop.run_until(0.75)
    loop.run_until(1.0)
    assert lags == [0.0, 0.25, 0.0]


def test_starting_twice_measures_once_and_stopping_ends_it():
    lags: list[float] = []
    first, second = Loop(), Loop()
    lag = EventLoopLag(lags.append, interval=1.0)
    for loop in (first, first, second):
        lag.start(loop)  # type: ignore[arg-type]
    assert (len(first.timers), len(second.timers)) == (1, 1)
    lag.stop(first)  # type: ignore[arg-type]
    lag.stop(first)  # type: ignore[arg-type]
    first.run_until(1.0)
    second.run_until(1.0)
    assert (len(lags), len(first.timers), len(second.timers)) == (1, 0, 1)
    lag.stop()
    second.run_until(2.0)
    assert (len(lags), len(second.timers)) == (1, 0)
    lag.start(first)  # type: ignore[arg-type]
    first.run_until(2.0)
    assert len(lags) == 2


def test_a_recorder_that_fails_does_not_end_the_measurement():
    def fail(seconds: float) -> None:
        raise RuntimeError("broken")

    loop: Any = Loop()
    EventLoopLag(fail).start(loop)
    loop.run_until(0.25)
    assert len(loop.timers) == 1


def test_a_closed_loop_is_left_alone():
    lag = EventLoopLag(lambda seconds: None)
    loop: Any = Loop()
    lag.start(loop)
    loop.closed = True
    loop.run_until(0.25)
    assert loop.timers == []
    lag.start(loop)
    assert loop.timers == []


def test_a_loop_is_not_kept_alive():
    lag = EventLoopLag(lambda seconds: None)
    loop: Any = Loop()
    lag.start(loop)
    gone = weakref.ref(loop)
    gc.disable()
    try:
        del loop
        assert gone() is None
    finally:
        gc.enable()


def test_a_real_loop_in_another_thread():
    arrived = threading.Event()

    def record(seconds: float) -> None:
        assert seconds >= 0
        arrived.set()

    lag = EventLoopLag(record, interval=0.001)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        lag.start(loop)
        assert arrived.wait(timeout=10)
        lag.stop()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
