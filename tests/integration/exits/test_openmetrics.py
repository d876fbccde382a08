"""OpenMetrics from a launched service: what a real Prometheus takes from it, and the route that an app mounts."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pytest

from tests.launched import Launched
from tests.services import find_server, free_port, wait_for_port

ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
MOUNTED = """
from fastapi import Depends, FastAPI, HTTPException, Request

import apivitals

app = FastAPI()

def only_with_a_token(request: Request):
    if request.headers.get("authorization") != "Bearer open":
        raise HTTPException(401)

apivitals.mount(app, path="/internal/metrics", dependencies=[Depends(only_with_a_token)])
apivitals.mount(app, path="/own", render=lambda: "own 1\\n" * 10_000)

@app.get("/items/{item}")
async def item(item: int):
    return item
"""
#: Enough routes that what is said about them is worth compressing.
ROUTES = 20
MANY = f"""
for number in range({ROUTES}):
    app.get(f"/routes/{{number}}/{{{{item}}}}")(lambda item: item)
"""


def visit_all(service: Launched) -> None:
    for path in ("/items/1", *(f"/routes/{number}/1" for number in range(ROUTES))):
        assert service.get(path) == 200


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[Any, bytes]:
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, headers=spelled, method=method), timeout=20) as response:
        return response.headers, response.read()


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus server that scrapes a port; gives the address of its API."""
    program = find_server("prometheus")
    port = free_port()
    (folder / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
                "scrape_configs": [
                    {"job_name": "service", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]},
                ],
            }
        )
    )
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--log.level=debug",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_port(port, process, log)
        await_ready(f"http://127.0.0.1:{port}/-/ready", log)
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


def await_ready(url: str, log: Path) -> None:
    """It listens before it answers."""
    deadline = monotonic() + 30
    while True:
        try:
            fetch(url)
        except urllib.error.HTTPError as error:
            error.close()
            assert monotonic() < deadline, log.read_text()
            sleep(0.05)
        else:
            return


def ask(api: str, path: str, **parameters: object) -> Any:
    answer = json.loads(fetch(f"{api}/{path}?{urllib.parse.urlencode(parameters)}")[1])
    assert answer["status"] == "success"
    return answer["data"]


@pytest.mark.service
def test_a_real_prometheus_has_the_series_and_the_exemplars(tmp_path: Path) -> None:
    find_server("prometheus")
    with Launched(tmp_path) as service:
        for number in range(7):
            assert service.get(f"/items/{number}") == 200
        assert service.get("/boom") == 500
        shown = fetch(f"http://127.0.0.1:{service.metrics_port}/metrics", Accept=ACCEPT)[1].decode()
        with prometheus(tmp_path, service.metrics_port) as api:
            query = 'http_server_request_duration_seconds_bucket{http_route="/items/{item}"}'
            deadline = monotonic() + 30
            while not (found := ask(api, "query_exemplars", query=query, start=time() - 600, end=time() + 60)):
                assert monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
                sleep(0.05)
            counted = ask(api, "query", query="http_server_request_duration_seconds_count")["result"]
            buckets = ask(api, "query", query=query)["result"]
            about = ask(api, "query", query="target_info")["result"]
            described = ask(api, "metadata", metric="http_server_request_duration_seconds")
            counters = ask(api, "metadata", metric="process_cpu_time_seconds")
            (target,) = ask(api, "targets", state="active")["activeTargets"]
        service.stop()
    assert target["health"] == "up", target
    assert target["lastError"] == ""
    by_route = {each["metric"]["http_route"]: float(each["value"][1]) for each in counted}
    assert by_route == {"/items/{item}": 7, "/boom": 1}
    assert {each["metric"]["le"] for each in buckets} >= {"0.005", "0.1", "1.0", "10.0", "+Inf"}
    assert [each["metric"]["service_name"] for each in about] == ["shopping"]
    assert described["http_server_request_duration_seconds"] == [
        {"type": "histogram", "unit": "seconds", "help": "Duration of HTTP server requests, to the last body byte."}
    ]
    assert [each["type"] for each in counters["process_cpu_time_seconds"]] == ["counter"]
    # The exemplars are those of the text, to the digit; the traces are those that were recorded.
    marked = {
        (exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"], float(exemplar["value"]))
        for each in found
        for exemplar in each["exemplars"]
    }
    said = re.findall(
        r'http_route="/items/\{item\}".* # \{trace_id="([0-9a-f]{32})",span_id="([0-9a-f]{16})"\} (\S+) ', shown
    )
    assert marked
    assert marked == {(trace, span, float(value)) for trace, span, value in said}


def test_who_asks_gets_the_format_that_it_asks_for(tmp_path: Path) -> None:
    with Launched(tmp_path, extra=MANY) as service:
        visit_all(service)
        url = f"http://127.0.0.1:{service.metrics_port}/metrics"
        headers, body = fetch(url, Accept=ACCEPT)
        assert headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith(b"# EOF\n")
        assert b"# UNIT http_server_request_duration_seconds seconds\n" in body
        assert b"# TYPE process_cpu_time_seconds counter\n" in body
        packed, compressed = fetch(url, Accept=ACCEPT, Accept_Encoding="gzip")
        assert packed["content-encoding"] == "gzip"
        assert b"http_server_request_duration_seconds_count" in gzip.decompress(compressed)
        assert "# EOF" not in service.metrics()


def test_the_mounted_route_is_the_same(tmp_path: Path) -> None:
    with Launched(tmp_path, source=MOUNTED + MANY) as service:
        visit_all(service)
        assert service.get("/internal/metrics") == 401
        url = f"http://127.0.0.1:{service.port}/internal/metrics"
        key = "Bearer open"
        headers, body = fetch(url, Authorization=key, Accept=ACCEPT)
        assert headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith(b"# EOF\n")
        assert int(headers["content-length"]) == len(body)
        headers, body = fetch(url, Authorization=key)
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"http_server_request_duration_seconds_count" in body
        headers, body = fetch(url, Authorization=key, Accept=ACCEPT, Accept_Encoding="gzip", method="HEAD")
        assert body == b""
        assert headers["content-encoding"] == "gzip"
        headers, body = fetch(f"http://127.0.0.1:{service.port}/own", Accept=ACCEPT, Accept_Encoding="gzip")
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert gzip.decompress(body) == b"own 1\n" * 10_000
