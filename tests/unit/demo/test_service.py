from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from apivitals.demo import service
from apivitals.demo.service import Shop, environment, program, shop_folder
from apivitals.errors import ApiVitalsError


def test_the_environment_is_the_users_without_settings_of_telemetry(tmp_path: Path):
    made = environment(
        {"HOME": "/home/me", "PATH": "/bin", "OTEL_SDK_DISABLED": "true", "APIVITALS_ROUTES": "x"}, tmp_path, 1234, 2.5
    )
    assert made == {
        "HOME": "/home/me",
        "PATH": f"{Path(sys.executable).parent}:/bin",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_METRIC_EXPORT_INTERVAL": "2500",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "1234",
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "/_demo/",
        "APIVITALS_DATA_DIR": str(tmp_path),
        "SHOP_FAULTS": "1",
    }


def test_the_shop_is_found():
    assert (shop_folder() / "shop" / "__init__.py").is_file()


def test_a_missing_command_is_named():
    with pytest.raises(ApiVitalsError, match="no-such-command-at-all"):
        program("no-such-command-at-all")


@pytest.fixture
def plain_uvicorn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A launcher that only starts what it is given, so that the shop runs without telemetry."""
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    monkeypatch.setattr(service, "program", lambda name: str(launcher))
    return launcher


@pytest.fixture
def shop(plain_uvicorn: Path, tmp_path: Path) -> Iterator[Shop]:
    started = Shop(tmp_path, 5)
    yield started
    started.stop()


def test_a_shop_opens_breaks_mends_and_closes(shop: Shop):
    shop.wait_until_ready()
    shop.check()
    with httpx.Client(base_url=shop.url, trust_env=False) as client:
        order = {"product_id": 3, "quantity": 1, "email": "me@shop.test"}
        statuses = {
            path: client.request(method, path, json=body).status_code
            for method, path, body in (
                ("GET", "/", None),
                ("GET", "/products?category=office", None),
                ("GET", "/products/7", None),
                ("GET", "/products/10000", None),
                ("GET", "/reports/1", None),
                ("GET", "/rates", None),
                ("GET", "/support/tickets/2", None),
                ("GET", "/support/tickets/99", None),
                ("POST", "/orders", order),
            )
        }
        assert statuses == {
            "/": 200,
            "/products?category=office": 200,
            "/products/7": 200,
            "/products/10000": 404,
            "/reports/1": 200,
            "/rates": 200,
            "/support/tickets/2": 200,
            "/support/tickets/99": 404,
            "/orders": 201,
        }
        assert client.post("/orders", json={**order, "quantity": 0}).status_code == 422
        assert client.post("/orders", json={**order, "product_id": 10_000}).status_code == 404
        assert len(client.get("/export.csv").text.splitlines()) == 201
        assert client.post("/_demo/faults", json={"checkout_failures": 1}).json() == {
            "report_slowdown": 1,
            "checkout_failures": 1,
        }
        assert client.post("/checkout").status_code == 500
    with httpx.Client(base_url=shop.url, trust_env=False) as client:
        assert client.post("/_demo/faults", json={"report_slowdown": 0}).status_code == 422
        client.post("/_demo/faults", json={"report_slowdown": 4, "checkout_failures": 0})
        assert client.post("/checkout").json() == {"paid": True}
        assert client.get("/reports/1").elapsed.total_seconds() >= 4 * 0.055
    shop.stop()
    with pytest.raises(ApiVitalsError, match="ended with exit code"):
        shop.check()
    assert "Application shutdown complete" in shop.log.read_text(encoding="utf-8")


def test_a_shop_that_ends_at_once_shows_its_log(plain_uvicorn: Path, tmp_path: Path):
    plain_uvicorn.write_text("#!/bin/sh\necho the port is taken\nexit 3\n", encoding="utf-8")
    shop = Shop(tmp_path, 5)
    with pytest.raises(ApiVitalsError, match=r"exit code 3:\n  the port is taken"):
        shop.wait_until_ready()


def test_a_shop_that_never_answers_is_given_up_and_killed(
    plain_uvicorn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain_uvicorn.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n", encoding="utf-8")
    monkeypatch.setattr(service, "_READY_SECONDS", 0.3)
    monkeypatch.setattr(service, "_STOP_SECONDS", 0.3)
    shop = Shop(tmp_path, 5)
    with pytest.raises(ApiVitalsError, match="does not answer"):
        shop.wait_until_ready()
    shop.stop()
    shop.stop()
    with pytest.raises(ApiVitalsError, match="exit code -9"):
        shop.check()


def test_the_control_route_is_off_without_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SHOP_FAULTS", raising=False)
    monkeypatch.syspath_prepend(str(shop_folder()))
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        monkeypatch.delitem(sys.modules, name)
    from shop import app

    async def post() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return (await client.post("/_demo/faults", json={})).status_code

    assert asyncio.run(post()) == 404
