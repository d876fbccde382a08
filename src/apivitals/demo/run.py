"""`apivitals demo`: starts the example shop, drives traffic through it, breaks two things, and has them found."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from apivitals.demo.interruption import Interruption
from apivitals.demo.options import Options, check_extra, prepare
from apivitals.demo.plan import Injection, changes, faults_at, injections
from apivitals.demo.screen import Screen, screen
from apivitals.demo.service import Shop
from apivitals.demo.traffic import Sent, at_times, schedule, send
from apivitals.demo.verdict import judge
from apivitals.errors import ApiVitalsError
from apivitals.models import utc_now

_JOB_TIMEOUT_SECONDS = 300.0
_INTERRUPTED = 130


def main(args: argparse.Namespace | None = None) -> int:
    """Run the demo.

    Args:
        args: `seconds` and `out`, also `rps` and `seed`; what is left out has the default of `Options`.

    Returns:
        0 when the analytics job named both faults, 1 when it did not or something failed, 130 after Ctrl-C.

    Raises:
        MissingExtraError: a package of the extra `demo` is not installed.
        ConfigurationError: an option has a value that cannot be used.
    """
    options = Options.of(args)
    check_extra()
    with prepare(options.out) as folder, Interruption() as interruption:
        try:
            return _run(options, folder, interruption)
        except ApiVitalsError as error:
            # Here and not by the command line, which would fold the log lines in it into one.
            print(f"apivitals demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\napivitals demo: interrupted; the shop is shut down", file=sys.stderr)
            return _INTERRUPTED


def _run(options: Options, folder: Path, interruption: Interruption) -> int:
    plan = injections(options.seconds)
    shop = Shop(folder, options.interval_seconds)
    try:
        print(f"$ {' '.join(shop.command)}")
        shop.wait_until_ready()
        print(f"The shop is open on {shop.url}, its metrics are on {shop.scrape_url}", flush=True)
        with screen(options.seconds) as shown:
            started = interruption.run(_drive(shop, options, plan, shown))
    finally:
        shop.stop()
    print("The shop is closed. What its telemetry says:\n", flush=True)
    begin = time.monotonic()
    page = folder / "report.html"
    report = _analyze(shop.data, page)
    print(f"\nWhat was broken, and what the analysis made of it ({time.monotonic() - begin:.0f} s):")
    verdicts = judge(started, report.get("findings") or ())
    for verdict in verdicts:
        print(f"  {'✓' if verdict.found else '✗'} {verdict.text}")
    print(_NEXT.format(page=page, data=shop.data, log=shop.log))
    if not all(verdict.found for verdict in verdicts):
        print("apivitals demo: not every fault was found, see ✗ above", file=sys.stderr)
        return 1
    return 0


_NEXT = """
The report:     {page}
The telemetry:  {data}
The shop's log: {log}

Your own service, in three lines:
  pip install 'apivitals[analytics]'
  opentelemetry-instrument uvicorn your_module:app
  apivitals analyze"""


async def _drive(
    shop: Shop, options: Options, plan: Sequence[Injection], shown: Screen
) -> list[tuple[Injection, datetime]]:
    """Send the traffic and break things on time; returns when each fault really began."""
    import httpx

    started: list[tuple[Injection, datetime]] = []
    sent = Sent()

    def tick(seconds: float) -> None:
        if control.done():
            control.result()
        shop.check()
        shown.passed(seconds, f"{sent.total} requests, {sent.statuses[500]} failed")

    async def change(moment: float) -> None:
        # A connection of its own: one that customers share may be closing after a failed checkout.
        async with httpx.AsyncClient(base_url=shop.url, trust_env=False) as operator:
            answer = await operator.post("/_demo/faults", json=faults_at(plan, moment))
        answer.raise_for_status()
        now = utc_now()
        for fault in plan:
            if fault.begin == moment:
                started.append((fault, now))
                shown.say(f"{_clock(now)}  breaking: {fault.text}")
            elif fault.end == moment:
                shown.say(f"{_clock(now)}  mended:   {fault.method} {fault.route} is back to normal")

    # trust_env: a proxy of the user's has no business on loopback.
    async with httpx.AsyncClient(base_url=shop.url, trust_env=False) as client:
        rate = f"{options.rps:g} requests/s"
        shown.say(f"{_clock(utc_now())}  traffic:  {options.seconds:g} s of {rate}, all well at first")
        control = asyncio.create_task(at_times(changes(plan), change))
        try:
            await send(client, schedule(options.seconds, options.rps, options.seed), sent, tick)
            await control
        except httpx.HTTPError as error:
            raise ApiVitalsError(f"the shop's control route failed: {error!r}; its log is {shop.log}") from error
        finally:
            control.cancel()
    shown.say(f"{_clock(utc_now())}  done:     {sent}")
    return started


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"


def _analyze(data: Path, page: Path) -> Mapping[str, Any]:
    """Show what the analytics job says of the shop's telemetry, write its page, and return its report."""
    with ThreadPoolExecutor(2) as pool:
        as_json = pool.submit(_job, "analyze", str(data), "--json")
        as_page = pool.submit(_job, "report", str(data), "--output", str(page))
        _job("analyze", str(data), shown=True)
        as_page.result()
        report: Mapping[str, Any] = json.loads(as_json.result())
    return report


def _job(*words: str, shown: bool = False) -> str:
    """The output of one `apivitals` command, in a process of its own as cron would run it; or it is just shown.

    Raises:
        ApiVitalsError: it failed; the message has the end of what it said.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "APIVITALS_"))}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "apivitals", *words],
            stdout=None if shown else subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**environ, "PYTHONIOENCODING": "utf-8"},
            timeout=_JOB_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ApiVitalsError(f"`apivitals {' '.join(words)}` did not end in {_JOB_TIMEOUT_SECONDS:g} s") from error
    if result.returncode != 0:
        said = "\n".join(f"  {line}" for line in result.stderr.splitlines()[-30:]) or "  (it said nothing)"
        raise ApiVitalsError(f"`apivitals {' '.join(words)}` ended with exit code {result.returncode}:\n{said}")
    return result.stdout or ""
