from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from apivitals.demo import run
from apivitals.demo.plan import injections
from apivitals.errors import ApiVitalsError, ConfigurationError

MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


class FakeShop:
    url = "http://127.0.0.1:1"
    scrape_url = "http://127.0.0.1:2/metrics"
    command = ("opentelemetry-instrument", "uvicorn", "shop:app")
    stopped = 0

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        self.data, self.log = folder / "data", folder / "shop.log"

    def wait_until_ready(self) -> None:
        pass

    def stop(self) -> None:
        FakeShop.stopped += 1


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run the demo with a shop that is not there, traffic that takes no time, and findings of our own."""
    FakeShop.stopped = 0

    def start(found: tuple[str, ...] = (), drive: Callable[[], None] = lambda: None) -> int:
        async def driven(shop: Any, options: Any, plan: Any, shown: Any) -> Any:
            drive()
            return [(injection, MOMENT) for injection in plan]

        findings = [
            {"kind": fault.kind, "route": fault.route, "method": fault.method, "start_time": MOMENT.isoformat()}
            for fault in injections(60)
            if fault.kind in found
        ]
        monkeypatch.setattr(run, "Shop", FakeShop)
        monkeypatch.setattr(run, "_drive", driven)
        monkeypatch.setattr(run, "_analyze", lambda data, page: {"findings": findings})
        return run.main(Namespace(seconds=60.0, out=tmp_path / "out"))

    return start


def test_both_faults_found(demo: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert demo(found=("latency", "errors")) == 0
    shown = capsys.readouterr()
    assert shown.out.count("✓") == 2
    assert str(tmp_path / "out" / "report.html") in shown.out
    assert "pip install 'apivitals[analytics]'" in shown.out
    assert shown.err == ""
    assert FakeShop.stopped == 1


@pytest.mark.parametrize("found", [(), ("latency",), ("errors",)])
def test_a_fault_that_is_not_found_fails_the_demo(
    found: tuple[str, ...], demo: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert demo(found=found) == 1
    shown = capsys.readouterr()
    assert shown.out.count("✗") == 2 - len(found)
    assert "not every fault was found" in shown.err


def test_a_failure_is_told_and_the_shop_closed(demo: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise ApiVitalsError("the shop ended with exit code 3:\n  the port is taken")

    assert demo(drive=fail) == 1
    assert "exit code 3:\n  the port is taken" in capsys.readouterr().err
    assert FakeShop.stopped == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_closes_the_shop(
    number: signal.Signals, demo: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    before = signal.getsignal(signal.SIGTERM)
    assert demo(drive=lambda: os.kill(os.getpid(), number)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert FakeShop.stopped == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_too_short_starts_nothing(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="--seconds is 5"):
        run.main(Namespace(seconds=5.0, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_shows_what_it_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ApiVitalsError, match=r"`apivitals no-such-command` ended with exit code 2:\n(.|\n)*usage"):
        run._job("no-such-command")
    assert "apivitals" in run._job("--version")
