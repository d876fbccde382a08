"""The process that is measured: sets one configuration up, then does what it is told on its standard input.

    python -m tests.benchmarks.worker CONFIGURATION APPLICATION

A command is a line `{"do": name, ...}`, the answer a line of JSON; see `processes.Worker`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
import time
from typing import Any, TextIO

from tests.benchmarks import setups
from tests.benchmarks.apps import APPLICATIONS
from tests.benchmarks.configurations import Subject
from tests.benchmarks.drivers import AsgiDriver
from tests.benchmarks.processes import subject_of

_COUNTED = re.compile(r"^http_server_request_duration_seconds_count\S* (\d+)", re.MULTILINE)


class Work:
    """What a worker can be told to do; each method's result is the answer."""

    def __init__(self, measured: Subject) -> None:
        application = APPLICATIONS[measured.application]
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._instrumented = getattr(setups, measured.configuration.setup)(application.make)
        self._driver = AsgiDriver(
            self._instrumented.app, application.paths, application.status, measured.configuration.sampled
        )

    def serve(self, requests: int) -> float:
        """Processor seconds of this whole process for that many requests, their spans sent."""
        if gc.isenabled():
            gc.collect()
        started = time.process_time()
        self._loop.run_until_complete(self._driver.serve(requests))
        # Spans that wait in a queue are part of the cost of the requests that made them.
        self._instrumented.flush()
        return time.process_time() - started

    def freeze(self) -> None:
        """Collect garbage now and not again: when it would run depends on everything that ran before."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def memory(self) -> float:
        """Resident memory in bytes, after a garbage collection."""
        import psutil

        gc.collect()
        return float(psutil.Process().memory_info().rss)

    def fill(self, series: int) -> None:
        """Make that many series of a histogram."""
        self._instrumented.fill(series)

    def render(self) -> dict[str, float]:
        """Processor seconds of one scrape's text, and its length in bytes."""
        if self._instrumented.render is None:
            raise RuntimeError("this configuration renders nothing")
        gc.collect()
        started = time.process_time()
        text = self._instrumented.render()
        return {"seconds": time.process_time() - started, "bytes": len(text)}

    def counted(self) -> int | None:
        """Requests that the scrape's text has counted; None for a configuration that counts none there."""
        if self._instrumented.render is None or not self._instrumented.counts:
            return None
        return sum(map(int, _COUNTED.findall(str(self._instrumented.render()))))

    def scrape_port(self) -> int | None:
        """The port of /metrics, None when there is none."""
        return self._instrumented.scrape_port()

    def tick(self, seconds: float, rates: list[float]) -> list[float]:
        """The longest that a ticker on the event loop was late, in seconds, for each of the rates in hertz."""

        async def ticker(rate: float) -> float:
            longest, due, end = 0.0, self._loop.time(), self._loop.time() + seconds
            while due < end:
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                late = self._loop.time() - due
                longest = max(longest, late)
                # A tick that was missed is one stall, not as many as there were ticks in it.
                due += max(0.0, late)
            return longest

        async def all_tickers() -> list[float]:
            return await asyncio.gather(*(ticker(rate) for rate in rates))

        return self._loop.run_until_complete(all_tickers())


def main() -> None:
    """Says `null` when it is ready, and answers commands until its input ends."""
    # Whatever prints must not be taken for an answer.
    answers: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = Work(subject_of(os.environ))

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer(None)
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(work, command.pop("do"))(**command))


if __name__ == "__main__":
    main()
