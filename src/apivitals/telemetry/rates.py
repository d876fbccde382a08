"""Requests and failures per route over the last seconds: what the throughput and error-rate classes rest on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from time import monotonic

Route = tuple[str, str | None]


class RouteRate:
    """Requests and failures of one route, per second of a window and in all."""

    __slots__ = ("_clock", "_current", "_second", "_window", "entries", "failures", "requests")

    def __init__(self, window: int, clock: Callable[[], float]) -> None:
        self._window = window
        self._clock = clock
        # Per second: its number, requests, failures.
        self.entries: deque[list[int]] = deque()
        self._current = [0, 0, 0]
        self._second = -1
        self.requests = 0
        self.failures = 0

    def add(self, failed: bool) -> None:
        """Count one finished request; under the lock of the window."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._current = [second, 0, 0]
            self.entries.append(self._current)
            self.forget(second - self._window)
        self._current[1] += 1
        self.requests += 1
        if failed:
            self._current[2] += 1
            self.failures += 1

    def forget(self, before: int) -> None:
        """Take out the seconds up to a number."""
        entries = self.entries
        while entries and entries[0][0] <= before:
            second, requests, failures = entries.popleft()
            self.requests -= requests
            self.failures -= failures
            if second == self._second:
                self._second = -1


class RateWindow:
    """Counts over a sliding window of whole seconds; memory is bounded by routes x window.

    Args:
        seconds: length of the window.
        clock: monotonic seconds.

    Attributes:
        lock: held by whoever adds to a `RouteRate`.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._window = max(1, round(seconds))
        self._clock = clock
        self._started = clock()
        self._routes: dict[Route, RouteRate] = {}
        self.lock = Lock()

    def of(self, method: str, route: str | None) -> RouteRate:
        """What a route's requests are counted in; under the lock."""
        found = self._routes.get((method, route))
        if found is None:
            found = self._routes[method, route] = RouteRate(self._window, self._clock)
        return found

    def add(self, method: str, route: str | None, failed: bool) -> None:
        """Count one finished request."""
        with self.lock:
            self.of(method, route).add(failed)

    def read(self) -> list[tuple[Route, float, float | None]]:
        """Per route: requests per second, and the share of failures (None without requests)."""
        with self.lock:
            now = self._clock()
            # A young process has not seen a whole window yet; dividing by it would understate the rate.
            elapsed = min(float(self._window), max(1.0, now - self._started))
            for rate in self._routes.values():
                rate.forget(int(now) - self._window)
            return [
                (route, rate.requests / elapsed, _ratio(rate.failures, rate.requests))
                for route, rate in self._routes.items()
            ]


def total(rates: Iterable[tuple[Route, float, float | None]]) -> tuple[float, float | None]:
    """Rate and failure share of all routes together."""
    rows = list(rates)
    rate = sum(rps for _, rps, _ in rows)
    failing = sum(rps * ratio for _, rps, ratio in rows if ratio is not None)
    return rate, _ratio(failing, rate)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
