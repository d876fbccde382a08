from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from apivitals.demo.interruption import Interruption

both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@both
def test_a_signal_cancels_what_runs_and_lets_it_clean_up(number: signal.Signals):
    cleaned = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        interruption.run(main())
    assert cleaned == [True]


@both
def test_outside_of_run_a_signal_interrupts(number: signal.Signals):
    with Interruption() as interruption:
        assert interruption.run(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_second_signal_does_not_wait_for_the_clean_up():
    async def main() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGINT)

    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        interruption.run(main())


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_only_runs():
    results: list[str] = []

    def work() -> None:
        with Interruption() as interruption:
            results.append(interruption.run(asyncio.sleep(0, "done")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["done"]
