"""What is measured inside of one process, where requests enter at the ASGI interface."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Event, Thread

from tests.benchmarks import callgrind
from tests.benchmarks.configurations import SINK, Subject
from tests.benchmarks.processes import BenchError, Worker
from tests.benchmarks.task import Gathered, Record, Task, by_turns, started

#: Spans in an export request, unless OTEL_BSP_MAX_EXPORT_BATCH_SIZE says otherwise.
_BATCH = 512


def cpu(task: Task) -> Gathered:
    """Processor seconds per request in process, by turns, in new processes each round.

    `spans` is what the sink got for each request.
    """
    requests, turns = task.scaled(800), 3
    record = Record(task, "cpu", "spans")
    for number in range(task.rounds):
        task.say(f"cpu: round {number + 1} of {task.rounds}")
        with ExitStack() as stack:
            workers = started(task, record, stack, task.scaled(500))
            for _ in range(turns):
                for worker in workers:
                    try:
                        seconds = worker.ask("serve", requests=requests)
                    except BenchError as error:
                        record.leave_out(worker.subject, error)
                        continue
                    record.add("cpu", worker.subject, seconds / requests)
                    record.add("spans", worker.subject, task.place.received()["spans"] / requests)
    return record.gathered()


def instructions(task: Task) -> Gathered:
    """Instructions per request in process; each round has another seed of string hashes.

    Load does not change them, so two are counted at a time.
    """
    problem = callgrind.missing()
    if problem:
        raise BenchError(problem)
    record = Record(task, "instructions")

    def count(measured: Subject, seed: int) -> None:
        task.say(f"instructions: {measured.key}")
        requests, repeats = _counted(measured)
        try:
            counted = callgrind.count_instructions(task.place, measured, task.scaled(requests), repeats, seed)
            record.add("instructions", measured, counted)
        except BenchError as error:
            record.leave_out(measured, error)

    for number in range(task.rounds):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(partial(count, seed=number), record.left()))
    return record.gathered()


def _counted(measured: Subject) -> tuple[int, int]:
    """Requests in a count, and counts: with an exporter a batch of it, so that its sending is in every count."""
    if measured.application == "raising":
        return 32, 2
    if measured.application == "behind-routes":
        return 64, 3
    return (_BATCH, 1) if SINK in "".join(measured.configuration.environ.values()) else (128, 3)


def render(task: Task) -> Gathered:
    """Processor seconds for the text of a scrape with 1,000 series of a histogram, from the second scrape on."""
    record = Record(task, "render")
    with ExitStack() as stack:
        workers = started(task, record, stack)
        for worker in workers:
            worker.ask("fill", series=1000)
            worker.ask("render")
        for _ in range(task.rounds):
            for worker in workers:
                record.add("render", worker.subject, worker.ask("render")["seconds"])
    return record.gathered()


def stall(task: Task) -> Gathered:
    """The longest that the event loop was late, in seconds, while 2,000 series are scraped and exported twice a second.

    `stall` is what a ticker at 10 Hz saw, `stall-fine` what one at 1,000 Hz did, which misses nothing, and `stall-idle`
    what that one saw while nothing was scraped or exported: the machine's own share.
    """
    record = Record(task, "stall", "stall-fine", "stall-idle")

    def measure(measured: Subject, number: int) -> None:
        with Worker(task.place, measured, extra={"OTEL_METRIC_EXPORT_INTERVAL": "500"}) as worker:
            worker.ready()
            worker.warm_up(10)
            (idle,) = worker.ask("tick", seconds=2.0, rates=[1000.0])
            worker.ask("fill", series=2000)
            port = worker.ask("scrape_port")
            if port is None:
                raise BenchError("it has no port to scrape")
            task.place.received()
            with _Scraper(port) as scraper:
                coarse, fine = worker.ask("tick", seconds=max(3.0, 8 * task.size), rates=[10.0, 1000.0])
            exports = task.place.received()["requests"]
            if scraper.problem or not scraper.scrapes or not exports:
                raise BenchError(scraper.problem or f"there were {scraper.scrapes} scrapes and {exports} exports")
            for name, seconds in (("stall", coarse), ("stall-fine", fine), ("stall-idle", idle)):
                record.add(name, measured, seconds)

    by_turns(task, record, "stall", measure)
    return record.gathered()


def memory(task: Task) -> Gathered:
    """Bytes of resident memory that 200,000 requests on 50 routes add to a warm service, and the last half of them.

    `resident` is all there is at the end.
    """
    record = Record(task, "memory", "memory-late", "resident")
    part = task.scaled(20_000)

    def measure(measured: Subject, number: int) -> None:
        many = Subject(measured.configuration, "many-routes")
        # The queue has its usual size here: one that grows to what the others get would be measured instead.
        with Worker(task.place, many, extra={"OTEL_BSP_MAX_QUEUE_SIZE": "2048"}) as worker:
            worker.ready()
            worker.warm_up(2000)
            readings = [worker.ask("memory")]
            for _ in range(10):
                worker.ask("serve", requests=part)
                readings.append(worker.ask("memory"))
        task.say(f"memory: {measured.key}, MB: {' '.join(f'{reading / 1e6:.1f}' for reading in readings)}")
        record.add("memory", measured, readings[-1] - readings[0])
        record.add("memory-late", measured, readings[-1] - readings[5])
        record.add("resident", measured, readings[-1])

    by_turns(task, record, "memory", measure)
    return record.gathered()


class _Scraper:
    """Scrapes a port about three times a second, out of step with everything else, until it is left."""

    def __init__(self, port: int) -> None:
        self.scrapes = 0
        self.problem = ""
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._stop = Event()
        self._thread = Thread(target=self._scrape, daemon=True)

    def _scrape(self) -> None:
        while not self._stop.wait(0.37):
            try:
                with urllib.request.urlopen(self._url, timeout=30) as response:
                    response.read()
                self.scrapes += 1
            except OSError as error:
                self.problem = str(error)

    def __enter__(self) -> _Scraper:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()
