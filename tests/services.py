"""Real servers that some tests need, started on free loopback ports and stopped after the session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTUP_SECONDS = 10.0


def find_server(name: str) -> str:
    """Path of a server's program. Without it the test is skipped, or fails where services are required."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed: run `make services`"
        if os.environ.get("APIVITALS_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{reason} (APIVITALS_REQUIRE_SERVICES=1)", pytrace=False)
        pytest.skip(reason)
    return path


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the process accepts connections; fail with its log when it ends or takes too long."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail(f"{process.args!r} does not listen on {port}:\n{log.read_text(errors='replace')}", pytrace=False)


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a redis-server that persists nothing."""
    program = find_server("redis-server")
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    log = folder / "redis.log"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for_port(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)
