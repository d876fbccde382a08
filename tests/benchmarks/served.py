"""What is measured through a server: one uvicorn on a core of its own, the load on the others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.configurations import BARE, Subject
from tests.benchmarks.drivers import HEADERS, traceparents
from tests.benchmarks.processes import BenchError, Server, pin
from tests.benchmarks.task import Gathered, Record, Task, by_turns, check_spans

#: A caller that sampled, beside the driver's headers.
_HEADERS = (*HEADERS, ("traceparent", traceparents(1, 1.0)[0]))
_REQUEST = "GET /items/1 HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in _HEADERS) + "\r\n"
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_COUNT = re.compile(r"(\d+) requests in ")
#: What the paced load says of latency; `generator` is how late it was itself, at the 99th percentile.
LATENCIES = ("p50", "p99", "p99.9", "max", "generator")
#: Share of their spans that peers, with the queues they come with, and ours must have sent.
_LEAST, _OUR_LEAST = 0.5, 0.98


def requests(task: Task) -> Gathered:
    """Requests per second through one uvicorn worker, with wrk.

    `delivered` is what the sink got for each of them once the server had ended.
    """
    _need_wrk()
    record = Record(task, "requests", "delivered")

    def measure(measured: Subject, number: int) -> None:
        task.place.received()
        with Server(task.place, measured) as server:
            _, before = _wrk(server, 1)
            rate, count = _wrk(server, 2 * task.size)
            server.stop()
        spans = task.place.received()["spans"]
        check_spans(measured, spans, before + count, _OUR_LEAST if measured.configuration.mode else _LEAST)
        record.add("requests", measured, rate)
        record.add("delivered", measured, spans / (before + count))

    by_turns(task, record, "requests", measure)
    return record.gathered()


def p99(task: Task) -> Gathered:
    """Latency in seconds at a paced load; without a rate, one that takes a bare service about 30 % of its core."""
    seconds = max(1.0, 6 * task.size)
    rate = task.rate or _rate_of_bare(task)
    task.say(f"p99: {rate:.0f} requests/s")
    record = Record(task, *LATENCIES)
    client = str(Path(__file__).with_name("paced.py"))

    def measure(measured: Subject, number: int) -> None:
        task.place.received()
        with Server(task.place, measured) as server:
            command = [sys.executable, client, str(server.port), str(rate), str(seconds)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            pin(process.pid, service=False)
            printed, _ = process.communicate(_REQUEST)
            server.stop()
        if process.returncode:
            raise BenchError("the paced load failed")
        latencies = json.loads(printed)
        if not latencies["unanswered"]:
            check_spans(
                measured,
                task.place.received()["spans"],
                latencies["sent"],
                _OUR_LEAST if measured.configuration.mode else _LEAST,
            )
        for name in LATENCIES:
            record.add(name, measured, latencies[name])

    by_turns(task, record, "p99", measure)
    return record.gathered()


def startup(task: Task) -> Gathered:
    """Seconds from the command until the first answer."""
    record = Record(task, "startup")

    def measure(measured: Subject, number: int) -> None:
        with Server(task.place, measured) as server:
            # The first start writes the byte code.
            if number >= 0:
                record.add("startup", measured, server.started_in)

    by_turns(task, record, "startup", measure, first=-1)
    return record.gathered()


def _rate_of_bare(task: Task) -> float:
    _need_wrk()
    bare = next((measured for measured in task.subjects if measured.key == BARE), None)
    if bare is None:
        raise BenchError("a paced load is paced by the bare service; add bare to --configurations, or give --rate")
    with Server(task.place, bare) as server:
        _wrk(server, 1)
        return max(100.0, round(0.3 * _wrk(server, 2)[0], -2))


def _need_wrk() -> None:
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed; on Debian and Ubuntu:  apt-get install wrk")


def _wrk(server: Server, seconds: float) -> tuple[float, int]:
    """Requests per second that wrk got through, and how many those were.

    Raises:
        BenchError: a response was not 2xx, or there was none.
    """
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
    rate, count = _RATE.search(printed), _COUNT.search(printed)
    if process.returncode or rate is None or count is None or "Non-2xx" in printed or "Socket errors" in printed:
        raise BenchError(f"wrk said: {printed.strip()}")
    return float(rate[1]), int(count[1])
