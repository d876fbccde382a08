"""The processes of a benchmark: the sink, workers that are told what to do, and servers. Everything is on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from tests.benchmarks.configurations import MODES, SINK, Subject, configurations, subject
from tests.benchmarks.environments import ROOT, program

_SUBJECT, _MODE = "BENCH_SUBJECT", "BENCH_MODE"
_DROPPED = ("OTEL_", "APIVITALS_", "BENCH_", "DD_", "SENTRY_", "LOGFIRE_", "PYTHON", "VIRTUAL_ENV")
#: With two cores or more the service has the first and everybody else the rest.
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def subject_of(environ: Mapping[str, str]) -> Subject:
    """The subject that a child process was started for."""
    return subject(environ[_SUBJECT], configurations(environ.get(_MODE, MODES[0])))


def pin(pid: int, *, service: bool) -> None:
    """Give a process its cores; nothing where there is only one, or no way to do it."""
    if len(_CORES) > 1:
        os.sched_setaffinity(pid, _CORES[:1] if service else _CORES[1:])


def request_json(url: str) -> Any:
    """The JSON that is at an address."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.loads(response.read())


class BenchError(Exception):
    """A measurement could not be made."""


class Place:
    """Where children run: a folder that is gone afterwards, a sink, and the mode of apivitals."""

    def __init__(self, mode: str = MODES[0]) -> None:
        self.mode = mode
        self._folder = TemporaryDirectory(prefix="bench-")
        self.folder = Path(self._folder.name)
        self._sink = subprocess.Popen(
            [program("shared", "python"), ROOT / "tests/benchmarks/sink.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pin(self._sink.pid, service=False)
        assert self._sink.stdout is not None
        self.sink = f"http://127.0.0.1:{self._sink.stdout.readline().strip()}"

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.kill()
        self._sink.communicate()
        self._folder.cleanup()

    def received(self) -> dict[str, int]:
        """What the sink got since the last call: requests, bytes, spans."""
        counts: dict[str, int] = request_json(f"{self.sink}/counts")
        return counts

    def environ(self, measured: Subject, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of a child: none of the caller's telemetry settings, and those of the configuration."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        bin_folder = program(measured.configuration.environment, "python").parent
        return {
            **kept,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "APIVITALS_DATA_DIR": str(self.folder / "data"),
            "OTEL_SERVICE_NAME": "bench",
            **{name: value.replace(SINK, self.sink) for name, value in measured.configuration.environ.items()},
            **extra,
            _SUBJECT: measured.key,
            _MODE: self.mode,
        }


class Worker:
    """A process that has set a configuration up and serves requests in process when it is told to.

    Args:
        prefix: put before the command, as in `("valgrind", …)`.
        extra: environment variables beside those of the configuration.

    Raises:
        BenchError: the process ended instead of answering; with the end of what it printed.
    """

    def __init__(
        self, place: Place, measured: Subject, *, prefix: Sequence[str] = (), extra: Mapping[str, str] | None = None
    ) -> None:
        self.subject = measured
        self._log = (place.folder / f"worker-{measured.key}-{time.monotonic_ns()}.log").open("w+b")
        self.process = subprocess.Popen(
            [*prefix, str(program(measured.configuration.environment, "python")), "-m", "tests.benchmarks.worker"],
            cwd=place.folder,
            # Nothing of the OpenTelemetry queues is dropped: what is not sent costs nothing, and would flatter.
            env=place.environ(measured, {"OTEL_BSP_MAX_QUEUE_SIZE": "65536", **(extra or {})}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ready(self) -> Worker:
        """Wait until it is set up."""
        self._answer()
        return self

    def warm_up(self, requests: int) -> None:
        """Serve the first requests, and see that they were counted where the worker can tell.

        Raises:
            BenchError: they were not. Telemetry that does not run costs nothing.
        """
        self.ask("serve", requests=requests)
        counted = self.ask("counted")
        if counted is not None and counted != requests:
            raise BenchError(f"{self.subject.key} counted {counted} of {requests} requests; see:\n{_end_of(self._log)}")

    def ask(self, do: str, **arguments: Any) -> Any:
        """Tell it to do something of `worker.Work`; the result."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"{self.subject.key} ended:\n{_end_of(self._log)}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What it would do on its way out is of no interest.
        self.process.kill()
        self.process.communicate()
        self._log.close()


class Server:
    """A uvicorn with one worker, on the first core; `started_in` are the seconds until it answered.

    Raises:
        BenchError: it ended instead of answering, or did not answer within a minute.
    """

    def __init__(self, place: Place, measured: Subject, extra: Mapping[str, str] | None = None) -> None:
        configuration = measured.configuration
        self.subject = measured
        self.port = _free_port()
        launcher = (
            [str(program(configuration.environment, "opentelemetry-instrument"))] if configuration.launched else []
        )
        command = [*launcher, str(program(configuration.environment, "uvicorn")), "tests.benchmarks.service:app"]
        self._log = (place.folder / f"server-{measured.key}-{self.port}.log").open("w+b")
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--no-access-log", "--log-level", "warning"],
            cwd=place.folder,
            env=place.environ(measured, extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        pin(self.process.pid, service=True)
        try:
            self._wait(started + 60)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.started_in = time.perf_counter() - started

    def _wait(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise BenchError(f"the server of {self.subject.key} ended:\n{_end_of(self._log)}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"GET /items/1 HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")
                if probe.recv(64).startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.002)
        raise BenchError(f"the server of {self.subject.key} did not answer:\n{_end_of(self._log)}")

    def stop(self) -> None:
        """Ask it to end, so that it sends what it has, and wait for that."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_of(log: Any) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-15:])
