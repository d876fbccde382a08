"""What is measured: each function runs its subjects by turns and gives results by measure and subject.

Subjects take turns within a round, A B C A B C …, so that a machine that slows down slows all of them; see `figures` for what
is made of it. `size` shrinks or stretches what is done in a round.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from tests.benchmarks import callgrind
from tests.benchmarks.configurations import BARE, SINK, Subject
from tests.benchmarks.drivers import HEADERS, traceparents
from tests.benchmarks.figures import PROMETHEUS
from tests.benchmarks.processes import BenchError, Place, Server, Worker, pin

Gathered = dict[str, dict[str, list[float]]]

#: A served request's first lines, for the load generators: the driver's headers and a caller that sampled.
_HEADERS = (*HEADERS, ("traceparent", traceparents(1, 1.0)[0]))
_REQUEST = "GET /items/1 HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in _HEADERS) + "\r\n"
#: Spans in an export request, unless OTEL_BSP_MAX_EXPORT_BATCH_SIZE says otherwise.
_BATCH = 512
_WRK = {"rate": re.compile(r"Requests/sec:\s+([\d.]+)"), "count": re.compile(r"(\d+) requests in ")}


@dataclass(frozen=True, slots=True)
class Task:
    """What a measure is asked to do: `say` is told about everything that happens on the way."""

    place: Place
    subjects: Sequence[Subject]
    rounds: int
    size: float
    say: Callable[[str], None]

    def scaled(self, count: int) -> int:
        """A number of requests, made larger or smaller."""
        return max(1, round(count * self.size))


def cpu(task: Task) -> Gathered:
    """Processor seconds per request in process, by turns in new processes each round; and spans the sink got for each."""
    requests, turns = task.scaled(800), 3
    results: Gathered = {"cpu": {}, "spans": {}}
    for number in range(task.rounds):
        task.say(f"cpu: round {number + 1} of {task.rounds}")
        with ExitStack() as stack:
            workers = _started(task, stack)
            for worker in workers:
                worker.ask("serve", requests=task.scaled(500))
            task.place.received()
            for _ in range(turns):
                for worker in workers:
                    seconds = worker.ask("serve", requests=requests)
                    _add(results, "cpu", worker.subject, seconds / requests)
                    _add(results, "spans", worker.subject, task.place.received()["spans"] / requests)
    return results


def instructions(task: Task) -> Gathered:
    """Instructions per request in process. Load does not change them, so two are counted at a time."""
    problem = callgrind.missing()
    if problem:
        raise BenchError(problem)
    results: Gathered = {"instructions": {}}

    def count(measured: Subject) -> float | BenchError:
        task.say(f"instructions: {measured.key}")
        try:
            return callgrind.count_instructions(task.place, measured, task.scaled(_counted(measured)))
        except BenchError as error:
            return error

    for _ in range(task.rounds):
        with ThreadPoolExecutor(2) as pool:
            for measured, counted in zip(task.subjects, pool.map(count, task.subjects), strict=True):
                if isinstance(counted, BenchError):
                    task.say(f"left out: {counted}")
                else:
                    _add(results, "instructions", measured, counted)
    return results


def _counted(measured: Subject) -> int:
    """Requests whose instructions are counted: a batch of the exporter where there is one, so that its requests count."""
    if measured.application == "raising":
        return 32
    return _BATCH if SINK in "".join(measured.configuration.environ.values()) else 128


def requests(task: Task) -> Gathered:
    """Requests per second through one uvicorn worker, and spans that came out of it for each; both with wrk."""
    results: Gathered = {"requests": {}, "delivered": {}}
    for _, measured in _turns(task, "requests"):
        with Server(task.place, measured) as server:
            task.place.received()
            _, before = _wrk(server, 0.5 + 0.5 * task.size)
            rate, count = _wrk(server, max(1.0, 3 * task.size))
            server.stop()
            _add(results, "requests", measured, rate)
            _add(results, "delivered", measured, task.place.received()["spans"] / (before + count))
    return results


def p99(task: Task) -> Gathered:
    """Latency in seconds at a paced load that takes a bare service about 30 % of its core."""
    seconds = max(1.0, 6 * task.size)
    bare = next((measured for measured in task.subjects if measured.key == BARE), None)
    if bare is None:
        raise BenchError("a paced load is paced by the bare service; add bare to --configurations")
    with Server(task.place, bare) as server:
        _wrk(server, 1.0)
        rate = round(0.3 * _wrk(server, 2.0)[0], -2)
    task.say(f"p99: {rate:.0f} requests/s")
    results: Gathered = {name: {} for name in ("p50", "p99", "p99.9", "max")}
    client = Path(__file__).with_name("paced.py")
    for _, measured in _turns(task, "p99"):
        with Server(task.place, measured) as server:
            command = [sys.executable, str(client), str(server.port), str(rate), str(seconds)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            pin(process.pid, service=False)
            printed, _ = process.communicate(_REQUEST)
            if process.returncode:
                raise BenchError(f"the paced load on {measured.key} failed")
            for name in results:
                _add(results, name, measured, json.loads(printed)[name])
    return results


def startup(task: Task) -> Gathered:
    """Seconds from the command until the first answer."""
    results: Gathered = {"startup": {}}
    for number, measured in _turns(task, "startup", first=-1):
        with Server(task.place, measured) as server:
            # The first start writes the byte code.
            if number >= 0:
                _add(results, "startup", measured, server.started_in)
    return results


def render(task: Task) -> Gathered:
    """Processor seconds for the text of a scrape with 1,000 series of a histogram, from the second scrape on."""
    results: Gathered = {"render": {}}
    with ExitStack() as stack:
        workers = _started(task, stack)
        for worker in workers:
            worker.ask("fill", series=1000)
            worker.ask("render")
        for _ in range(task.rounds):
            for worker in workers:
                _add(results, "render", worker.subject, worker.ask("render")["seconds"])
    return results


def stall(task: Task) -> Gathered:
    """The longest that the event loop was late, in seconds, while 2,000 series are scraped and exported twice a second.

    `stall` is what a ticker at 10 Hz saw, `stall-fine` what one at 1,000 Hz did, which misses nothing.
    """
    results: Gathered = {"stall": {}, "stall-fine": {}}
    for _, measured in _turns(task, "stall"):
        with Worker(task.place, measured, extra={"OTEL_METRIC_EXPORT_INTERVAL": "500"}) as worker:
            worker.ready()
            worker.ask("serve", requests=10)
            worker.ask("fill", series=2000)
            port = worker.ask("scrape_port")
            if port is None:
                raise BenchError(f"{measured.key} has no port to scrape")
            with _Scraper(port) as scraper:
                coarse, fine = worker.ask("tick", seconds=max(3.0, 8 * task.size), rates=[10.0, 1000.0])
            received = task.place.received()["requests"]
            if not scraper.scrapes or not received:
                raise BenchError(f"{measured.key} was scraped {scraper.scrapes} times and exported {received} times")
            _add(results, "stall", measured, coarse)
            _add(results, "stall-fine", measured, fine)
    return results


def memory(task: Task) -> Gathered:
    """Bytes of resident memory that 200,000 requests on 50 routes add to a warm service, and the last half of them.

    `resident` is all there is at the end.
    """
    results: Gathered = {"memory": {}, "memory-late": {}, "resident": {}}
    part = task.scaled(20_000)
    for _, measured in _turns(task, "memory"):
        # The queue has its usual size here: one that grows to what the others get would be measured instead.
        with Worker(task.place, measured, extra={"OTEL_BSP_MAX_QUEUE_SIZE": "2048"}) as worker:
            worker.ready()
            worker.ask("serve", requests=2000)
            readings = [worker.ask("memory")]
            for _ in range(10):
                worker.ask("serve", requests=part)
                readings.append(worker.ask("memory"))
            task.say(f"memory: {measured.key}, MB: {' '.join(f'{reading / 1e6:.1f}' for reading in readings)}")
            _add(results, "memory", measured, readings[-1] - readings[0])
            _add(results, "memory-late", measured, readings[-1] - readings[5])
            _add(results, "resident", measured, readings[-1])
    return results


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure with the subjects and the number of rounds that it has unless others are asked for."""

    run: Callable[[Task], Gathered]
    rounds: int
    subjects: tuple[str, ...]


_OURS = ("apivitals", "apivitals-sampled", "apivitals-unexported", "apivitals-metrics", "apivitals-processor")
_ROUTES = ("behind-routes", "alone")

MEASURES: dict[str, Measure] = {
    "cpu": Measure(
        cpu,
        3,
        (
            *(BARE, "launcher", "contrib", "contrib-otlp", "contrib-metrics", "contrib-processor", "native"),
            *("native-metrics", PROMETHEUS, "starlette_exporter", "logfire", "ddtrace", "sentry"),
            *(*_OURS, "apivitals-native", "apivitals-contrib"),
        ),
    ),
    "instructions": Measure(
        instructions,
        1,
        (
            # The longest ones first, since two are counted at a time.
            *("launcher", "native", "apivitals", *(f"{name}@raising" for name in ("contrib-otlp", "apivitals", BARE))),
            *(f"{name}@{routes}" for name in (BARE, "apivitals-unexported") for routes in _ROUTES),
            *(BARE, "contrib-metrics", "contrib-processor", "apivitals-metrics", "apivitals-processor"),
        ),
    ),
    "requests": Measure(requests, 3, (BARE, "apivitals", "launcher", "native", PROMETHEUS)),
    "p99": Measure(p99, 3, (BARE, "apivitals")),
    "startup": Measure(startup, 5, (BARE, "launcher", "apivitals")),
    "render": Measure(render, 7, ("otel-prometheus", "prometheus-client", "apivitals")),
    "stall": Measure(stall, 1, ("apivitals", "otel-prometheus")),
    "memory": Measure(memory, 1, (BARE, "apivitals")),
}


def _add(results: Gathered, measure: str, measured: Subject, value: float) -> None:
    results[measure].setdefault(measured.key, []).append(value)


def _turns(task: Task, name: str, first: int = 0) -> Iterable[tuple[int, Subject]]:
    """Rounds, counted from `first`, and within each of them the subjects."""
    for number in range(first, task.rounds):
        task.say(f"{name}: round {number + 1} of {task.rounds}")
        for measured in task.subjects:
            yield number, measured


def _started(task: Task, stack: ExitStack) -> list[Worker]:
    """A worker of each subject, set up; one that cannot be is told about and left out."""
    workers = [stack.enter_context(Worker(task.place, measured)) for measured in task.subjects]
    ready = []
    for worker in workers:
        try:
            ready.append(worker.ready())
        except BenchError as error:
            task.say(f"left out: {error}")
    return ready


def _wrk(server: Server, seconds: float) -> tuple[float, int]:
    """Requests per second that wrk got through, and how many those were.

    Raises:
        BenchError: wrk is missing, or a response was not 2xx.
    """
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed; on Debian and Ubuntu:  apt-get install wrk")
    headers = [word for name, value in _HEADERS for word in ("-H", f"{name}: {value}")]
    # wrk takes whole seconds.
    command = ["wrk", "-t1", "-c16", f"-d{max(1, round(seconds))}s", *headers]
    process = subprocess.Popen(
        [*command, f"http://127.0.0.1:{server.port}/items/1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pin(process.pid, service=False)
    printed, _ = process.communicate()
    found = {name: pattern.search(printed) for name, pattern in _WRK.items()}
    rate, count = found["rate"], found["count"]
    if process.returncode or rate is None or count is None or "Non-2xx" in printed or "Socket errors" in printed:
        raise BenchError(f"wrk on {server.subject.key} said: {printed.strip()}")
    return float(rate[1]), int(count[1])


class _Scraper:
    """Scrapes a port about three times a second, out of step with everything else, until it is left."""

    def __init__(self, port: int) -> None:
        self.scrapes = 0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._stop = Event()
        self._thread = Thread(target=self._scrape, daemon=True)

    def _scrape(self) -> None:
        while not self._stop.wait(0.37):
            with urllib.request.urlopen(self._url, timeout=30) as response:
                response.read()
            self.scrapes += 1

    def __enter__(self) -> _Scraper:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()
