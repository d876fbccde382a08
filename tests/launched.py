"""A service started as a user starts it: `opentelemetry-instrument uvicorn module:app`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.services import free_port, wait_for_port

BIN = Path(sys.executable).parent

APP = """
import logging
import asyncio
from fastapi import FastAPI

app = FastAPI()
log = logging.getLogger("shopping")
{extra}

@app.get("/items/{{item}}")
async def item(item: int):
    log.warning("looking at item %s", item)
    return item

@app.get("/boom")
async def boom():
    raise RuntimeError("the handler failed")
"""


class Launched:
    """Runs an application under the launcher; `log` is what it printed."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        *,
        extra: str = "",
        source: str | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.metrics_port = free_port()
        (folder / "shopping.py").write_text(source or APP.format(extra=extra))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "APIVITALS_"))}
        self._environ = {
            **kept,
            "APIVITALS_DATA_DIR": str(folder / "data"),
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(self.metrics_port),
            "HOME": str(folder),
            **(environ or {}),
        }
        self._command = [str(BIN / "opentelemetry-instrument"), str(BIN / "uvicorn"), "shopping:app"]
        self._command += ["--port", str(self.port), *arguments]
        self._log = folder / "service.log"

    def __enter__(self) -> Launched:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, env=self._environ, stdout=output, stderr=subprocess.STDOUT
            )
        wait_for_port(self.port, self._process, self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Ask it to end as a container's runtime does, and wait."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=30)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as response:
                response.read()
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=20) as response:
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            text: str = response.read().decode()
            return text
