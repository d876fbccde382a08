"""A cache in memory. It tells apivitals of its hits and misses where that is installed."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Generic, TypeVar

try:
    from apivitals.tally import add_cache
except ImportError:

    def add_cache(*, hit: bool, seconds: float = 0.0, count: int = 1) -> None:
        """Nobody counts."""


V = TypeVar("V")


class Cache(Generic[V]):
    """The values used last, each for some seconds."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size = size
        self._seconds = seconds
        self._values: OrderedDict[object, tuple[float, V]] = OrderedDict()

    def get(self, key: object) -> V | None:
        until, value = self._values.get(key, (0.0, None))
        hit = until > time.monotonic()
        add_cache(hit=hit)
        if not hit:
            return None
        self._values.move_to_end(key)
        return value

    def put(self, key: object, value: V) -> None:
        self._values[key] = (time.monotonic() + self._seconds, value)
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
