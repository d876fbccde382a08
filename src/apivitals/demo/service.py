"""The shop as a process of its own, started the way a user starts a service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from apivitals.errors import ApiVitalsError

_READY_SECONDS = 30.0
_STOP_SECONDS = 15.0
_LOG_LINES = 30


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def shop_folder() -> Path:
    """The folder that holds the package `shop`: inside the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_examples", package.parents[1] / "examples"):
        if (folder / "shop" / "__init__.py").is_file():
            return folder
    raise ApiVitalsError(
        f"the example shop is neither in {package / '_examples'} nor in a checkout: reinstall apivitals"
    )


def program(name: str) -> str:
    """Path of a command that is installed beside this Python, or else on the PATH.

    Raises:
        ApiVitalsError: there is none.
    """
    beside = str(Path(sys.executable).parent)
    path = shutil.which(name, path=beside) or shutil.which(name)
    if path is None:
        raise ApiVitalsError(f"the command {name!r} is neither in {beside} nor on the PATH: reinstall apivitals")
    return path


def environment(environ: Mapping[str, str], data: Path, scrape_port: int, interval_seconds: float) -> dict[str, str]:
    """The shop's environment: the user's without settings of telemetry, which would send the demo's elsewhere."""
    kept = {key: value for key, value in environ.items() if not key.startswith(("OTEL_", "APIVITALS_"))}
    return {
        **kept,
        "PATH": os.pathsep.join(filter(None, (str(Path(sys.executable).parent), environ.get("PATH")))),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_METRIC_EXPORT_INTERVAL": f"{interval_seconds * 1000:.0f}",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(scrape_port),
        # The demo's own control route is no customer's.
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "/_demo/",
        "APIVITALS_DATA_DIR": str(data),
        "SHOP_FAULTS": "1",
    }


class Shop:
    """The running shop, which keeps everything in one folder.

    Attributes:
        url: where it serves.
        scrape_url: where its metrics are.
        data: the folder of its telemetry, with a snapshot of the metrics every `interval_seconds`.
        log: the file with its output.
        command: what started it, as a user would type it.
    """

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        port, scrape_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.scrape_url = f"http://127.0.0.1:{scrape_port}/metrics"
        self.data = folder / "data"
        self.log = folder / "shop.log"
        self.command = ("opentelemetry-instrument", "uvicorn", "shop:app", "--port", str(port))
        launcher, *words = self.command
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [program(launcher), *words, "--no-access-log", "--app-dir", str(shop_folder())],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment(os.environ, self.data, scrape_port, interval_seconds),
                # Ctrl-C must reach it through us, once, after the traffic has stopped.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            ApiVitalsError: it ended, or did not answer in time; the message has the end of its log.
        """
        # A proxy of the user's has no business on loopback.
        opener = build_opener(ProxyHandler({}))
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            self.check()
            try:
                with opener.open(self.url, timeout=2):
                    return
            except HTTPError as error:
                raise ApiVitalsError(f"the shop answers {error.code} on {self.url}:\n{self._log_end()}") from error
            except (URLError, OSError):
                time.sleep(0.05)
        raise ApiVitalsError(f"the shop does not answer after {_READY_SECONDS:.0f} s:\n{self._log_end()}")

    def check(self) -> None:
        """Raise `ApiVitalsError` with the end of the log when the process has ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise ApiVitalsError(f"the shop ended with exit code {code}:\n{self._log_end()}")

    def stop(self) -> None:
        """Ask it to end as a supervisor would (SIGTERM), and kill it when it does not; idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _log_end(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (it logged nothing)"
