"""Requests and failures per route over the last seconds: what the throughput and error-rate classes rest on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

Route = tuple[str, str | None]


@dataclass(slots=True)
class _Seconds:
    """Per second: its number, requests, failures; and the sums of them all."""

    entries: deque[list[int]] = field(default_factory=deque)
    requests: int = 0
    failures: int = 0

    def add(self, second: int, failed: bool) -> None:
        if not self.entries or self.entries[-1][0] != second:
            self.entries.append([second, 0, 0])
        self.entries[-1][1] += 1
        self.entries[-1][2] += failed
        self.requests += 1
        self.failures += failed

    def forget(self, before: int) -> None:
        while self.entries and self.entries[0][0] <= before:
            _, requests, failures = self.entries.popleft()
            self.requests -= requests
            self.failures -= failures


class RateWindow:
    """Counts over a sliding window of whole seconds; memory is bounded by routes x window.

    Args:
        seconds: length of the window.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._window = max(1, round(seconds))
        self._clock = clock
        self._started = clock()
        self._routes: dict[Route, _Seconds] = {}
        self._lock = Lock()

    def add(self, method: str, route: str | None, failed: bool) -> None:
        """Count one finished request."""
        with self._lock:
            seconds = self._routes.setdefault((method, route), _Seconds())
            second = int(self._clock())
            seconds.add(second, failed)
            seconds.forget(second - self._window)

    def read(self) -> list[tuple[Route, float, float | None]]:
        """Per route: requests per second, and the share of failures (None without requests)."""
        with self._lock:
            now = self._clock()
            # A young process has not seen a whole window yet; dividing by it would understate the rate.
            elapsed = min(float(self._window), max(1.0, now - self._started))
            for seconds in self._routes.values():
                seconds.forget(int(now) - self._window)
            return [
                (route, seconds.requests / elapsed, _ratio(seconds.failures, seconds.requests))
                for route, seconds in self._routes.items()
            ]


def total(rates: Iterable[tuple[Route, float, float | None]]) -> tuple[float, float | None]:
    """Rate and failure share of all routes together."""
    rows = list(rates)
    rate = sum(rps for _, rps, _ in rows)
    failing = sum(rps * ratio for _, rps, ratio in rows if ratio is not None)
    return rate, _ratio(failing, rate)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
