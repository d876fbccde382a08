from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apivitals.demo.traffic import ROUTES, Arrival, Sent, at_times, schedule, send


def test_the_seed_decides_the_traffic():
    first = list(schedule(20, 50, seed=1))
    assert first == list(schedule(20, 50, seed=1))
    assert first != list(schedule(20, 50, seed=2))


@settings(max_examples=20, deadline=None)
@given(seconds=st.floats(0.1, 30), rps=st.floats(1, 100), seed=st.integers(0, 1000))
def test_arrivals_are_in_order_and_within_the_run(seconds: float, rps: float, seed: int):
    moments = [arrival.at for arrival in schedule(seconds, rps, seed)]
    assert all(earlier <= later for earlier, later in pairwise(moments))
    assert all(0 < moment < seconds for moment in moments)


def test_arrivals_are_a_poisson_process():
    moments = [arrival.at for arrival in schedule(200, 80, seed=3)]
    # 16,000 are expected, with a standard deviation of 126.
    assert len(moments) == pytest.approx(16_000, abs=5 * 126)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / mean == pytest.approx(1, abs=0.05), "the gaps are exponential"


def test_every_route_gets_its_share():
    arrivals = list(schedule(300, 80, seed=4))
    counts = Counter((arrival.method, "/" + arrival.path.split("?")[0].split("/")[1]) for arrival in arrivals)
    shares = {route: count / len(arrivals) for route, count in counts.items()}
    total = sum(weight for weight, _, _ in ROUTES)
    assert shares[("GET", "/reports")] == pytest.approx(12 / total, rel=0.1)
    assert shares[("POST", "/checkout")] == pytest.approx(11 / total, rel=0.1)
    assert len(counts) == 8  # /products and /products/{id} look alike here


def test_some_requests_are_the_customers_mistakes():
    arrivals = list(schedule(100, 80, seed=5))
    orders = [arrival.body for arrival in arrivals if arrival.path == "/orders" and arrival.body is not None]
    assert 0.05 < sum(order["quantity"] == 0 for order in orders) / len(orders) < 0.15
    assert any(arrival.path == "/products/10000" for arrival in arrivals)


def run_send(handler: httpx.MockTransport, arrivals: list[Arrival], max_in_flight: int = 100) -> tuple[Sent, int]:
    ticks: list[float] = []

    async def main() -> Sent:
        sent = Sent()
        async with httpx.AsyncClient(transport=handler, base_url="http://shop") as client:
            await send(client, arrivals, sent, ticks.append, max_in_flight=max_in_flight)
        return sent

    return asyncio.run(main()), len(ticks)


def test_sending_counts_statuses_and_errors():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/gone":
            raise httpx.ReadError("gone")
        return httpx.Response(404 if request.url.path == "/no" else 200)

    arrivals = [Arrival(0.0, "GET", path) for path in ("/", "/", "/no", "/gone")]
    sent, ticks = run_send(httpx.MockTransport(answer), arrivals)
    assert sent.statuses == {200: 2, 404: 1}
    assert sent.errors == {"ReadError": 1}
    assert (sent.total, sent.skipped, ticks) == (4, 0, 4)
    assert str(sent) == "4 requests: 2 × 200, 1 × 404, 1 × ReadError"


def test_a_slow_service_does_not_hold_arrivals_back_until_too_many_wait():
    async def main() -> tuple[int, Sent]:
        release = asyncio.Event()
        waiting = 0
        sent = Sent()

        async def answer(request: httpx.Request) -> httpx.Response:
            nonlocal waiting
            waiting += 1
            await release.wait()
            return httpx.Response(200)

        def tick(seconds: float) -> None:
            if sent.skipped == 2:
                release.set()

        arrivals = [Arrival(0.0, "GET", "/") for _ in range(6)]
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://shop") as client:
            await send(client, arrivals, sent, tick, max_in_flight=3)
        return waiting, sent

    waiting, sent = asyncio.run(main())
    assert waiting == sent.statuses[200]
    assert waiting + sent.skipped == 6
    assert sent.skipped >= 2
    assert "not sent because too many were waiting" in str(sent)


def test_what_a_tick_raises_ends_the_run():
    async def main() -> Sent:
        sent = Sent()

        async def never(request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        def tick(seconds: float) -> None:
            raise LookupError("the shop is gone")

        async with httpx.AsyncClient(transport=httpx.MockTransport(never), base_url="http://shop") as client:
            with pytest.raises(LookupError):
                await send(client, [Arrival(0.0, "GET", "/")], sent, tick)
        return sent

    assert asyncio.run(main()).total == 0


def test_acts_at_each_moment_in_order():
    acted: list[float] = []

    async def act(moment: float) -> None:
        acted.append(moment)

    asyncio.run(at_times((0.0, 0.01, 0.02), act))
    assert acted == [0.0, 0.01, 0.02]
