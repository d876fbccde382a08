"""Traffic as customers make it: requests arrive when they like, and not when the one before is answered.

Arrivals are a Poisson process (exponential gaps), drawn from a seed, so that two runs send the same. An
open loop keeps its rate while the service slows down, which is what makes the slowdown visible; only the
number of requests in flight is bounded.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_MAX_IN_FLIGHT = 200
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds after the start, and what is sent."""

    at: float
    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Sent:
    """What came of the traffic: responses by status, requests without one by error, and those never sent."""

    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    @property
    def total(self) -> int:
        """Requests sent so far that have ended."""
        return sum(self.statuses.values()) + sum(self.errors.values())

    def __str__(self) -> str:
        parts = [f"{count} × {status}" for status, count in sorted(self.statuses.items())]
        parts += [f"{count} × {name}" for name, count in sorted(self.errors.items())]
        if self.skipped:
            parts.append(f"{self.skipped} not sent because too many were waiting")
        return f"{self.total} requests: {', '.join(parts)}"


def _order(dice: random.Random) -> tuple[str, Mapping[str, Any]]:
    # One order in ten is not valid, and one in fifty is for a product that does not exist.
    product = 10_000 if dice.random() < 0.02 else dice.randint(1, 200)
    quantity = 0 if dice.random() < 0.1 else dice.randint(1, 5)
    email = f"customer{dice.randrange(1000)}@shop.test"
    return "/orders", {"product_id": product, "quantity": quantity, "email": email}


def _product(dice: random.Random) -> tuple[str, None]:
    # Some products are much more popular than others, so that a cache has something to do.
    number = 10_000 if dice.random() < 0.03 else 1 + int(dice.betavariate(1, 4) * 200)
    return f"/products/{number}", None


#: Each route's share of the requests, and how one of them is made.
ROUTES: tuple[tuple[float, str, Callable[[random.Random], tuple[str, Mapping[str, Any] | None]]], ...] = (
    (14, "GET", lambda dice: ("/", None)),
    (16, "GET", lambda dice: (f"/products?page={dice.randint(1, 10)}", None)),
    (28, "GET", _product),
    (12, "GET", lambda dice: (f"/reports/{dice.randint(1, 20)}", None)),
    (8, "POST", _order),
    (6, "GET", lambda dice: ("/rates", None)),
    (11, "POST", lambda dice: ("/checkout", None)),
    (1, "GET", lambda dice: ("/export.csv", None)),
    (4, "GET", lambda dice: (f"/support/tickets/{dice.choices((1, 2, 3, 99), (6, 6, 6, 1))[0]}", None)),
)


def schedule(seconds: float, rps: float, seed: int) -> Iterator[Arrival]:
    """The requests of a run, in order of time; equal arguments give equal requests.

    Args:
        seconds: length of the run.
        rps: mean arrivals per second.
        seed: of the random numbers.
    """
    dice = random.Random(seed)
    weights = [weight for weight, _, _ in ROUTES]
    at = dice.expovariate(rps)
    while at < seconds:
        _, method, make = dice.choices(ROUTES, weights)[0]
        path, body = make(dice)
        yield Arrival(at, method, path, body)
        at += dice.expovariate(rps)


async def send(
    client: httpx.AsyncClient,
    arrivals: Iterable[Arrival],
    sent: Sent,
    tick: Callable[[float], None],
    *,
    max_in_flight: int = _MAX_IN_FLIGHT,
) -> None:
    """Send each request at its time and wait for the last response.

    Args:
        client: knows the base URL.
        arrivals: in order of time.
        sent: counts what came of them.
        tick: told the seconds passed before each request; what it raises ends the run.
        max_in_flight: a request that arrives when so many have no answer yet is skipped and counted.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    running: set[asyncio.Task[None]] = set()
    try:
        for arrival in arrivals:
            wait = begin + arrival.at - loop.time()
            # Also when late: responses must get their turn.
            await asyncio.sleep(max(0.0, wait))
            tick(loop.time() - begin)
            if len(running) >= max_in_flight:
                sent.skipped += 1
                continue
            task = asyncio.create_task(_send_one(client, arrival, sent))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


async def _send_one(client: httpx.AsyncClient, arrival: Arrival, sent: Sent) -> None:
    import httpx

    # uvicorn closes a connection after a handler raised on it, and a request on its way there would be lost.
    headers = {"Connection": "close"} if arrival.path == "/checkout" else None
    try:
        response = await client.request(
            arrival.method, arrival.path, json=arrival.body, headers=headers, timeout=_TIMEOUT_SECONDS
        )
        sent.statuses[response.status_code] += 1
    except httpx.HTTPError as error:
        sent.errors[type(error).__name__] += 1


async def at_times(moments: Iterable[float], act: Callable[[float], Awaitable[None]]) -> None:
    """Call `act(moment)` when each of the moments comes, in seconds from now."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for moment in moments:
        await asyncio.sleep(max(0.0, begin + moment - loop.time()))
        await act(moment)
