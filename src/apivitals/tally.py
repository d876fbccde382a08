"""What one request did: database queries, cache look-ups and outbound calls, with the time spent in each.

The request path opens a `Tally` and puts it in a context variable; whatever runs on behalf of the
request (also in the thread pool, which gets a copy of the context) finds it there and adds to it. A
tally does not depend on whether the trace is sampled. Applications count work of their own with::

    from apivitals import tally

    tally.add_cache(hit=True)
    with tally.query():
        cursor.execute(...)

Outside a request every function here does nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from threading import Lock
from time import perf_counter
from types import TracebackType

# One lock for all tallies: `x += 1` on an attribute is not atomic, and one request may run threads.
_lock = Lock()


class Tally:
    """Counts and seconds of one request. Read it through its attributes; write it through the functions below."""

    __slots__ = (
        "cache_hits",
        "cache_misses",
        "cache_seconds",
        "outbound_calls",
        "outbound_seconds",
        "queries",
        "query_seconds",
    )

    def __init__(self) -> None:
        self.queries = 0
        self.query_seconds = 0.0
        self.cache_hits = 0
        self.cache_misses = 0
        self.cache_seconds = 0.0
        self.outbound_calls = 0
        self.outbound_seconds = 0.0


_current: ContextVar[Tally | None] = ContextVar("apivitals_tally", default=None)
# Set while one client library runs, so that a library below it (a driver below an ORM, a transport
# below a client) does not count the same work a second time.
_inside: ContextVar[bool] = ContextVar("apivitals_tally_inside", default=False)


def current() -> Tally | None:
    """The tally of the request that is being served here, None outside a request."""
    return _current.get()


def open_tally() -> tuple[Tally, Token[Tally | None]]:
    """Start a tally for the current context; hand the token to `close_tally`."""
    tally = Tally()
    return tally, _current.set(tally)


def close_tally(token: Token[Tally | None]) -> None:
    """Restore what was current before `open_tally`."""
    _current.reset(token)


def add_query(seconds: float = 0.0, count: int = 1) -> None:
    """Count database queries, and the seconds spent waiting for them."""
    tally = _current.get()
    if tally is not None:
        with _lock:
            tally.queries += count
            tally.query_seconds += seconds


def add_cache(*, hit: bool, seconds: float = 0.0, count: int = 1) -> None:
    """Count cache look-ups that hit or missed, and the seconds spent in them."""
    tally = _current.get()
    if tally is not None:
        with _lock:
            if hit:
                tally.cache_hits += count
            else:
                tally.cache_misses += count
            tally.cache_seconds += seconds


def add_outbound(seconds: float = 0.0, count: int = 1) -> None:
    """Count calls to other services, and the seconds spent waiting for them."""
    tally = _current.get()
    if tally is not None:
        with _lock:
            tally.outbound_calls += count
            tally.outbound_seconds += seconds


class _Timer:
    """Adds a block and its duration to the tally that is current when the block begins.

    Inside another timer it does nothing: the outer one already counts that time.
    """

    __slots__ = ("_start", "_tally", "_token")

    def __init__(self) -> None:
        self._tally: Tally | None = None

    def _begin(self) -> None:
        tally = _current.get()
        if tally is not None and not _inside.get():
            self._tally = tally
            self._token = _inside.set(True)
            self._start = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tally, self._tally = self._tally, None
        if tally is None:
            return
        seconds = perf_counter() - self._start
        try:
            _inside.reset(self._token)
        except ValueError:  # the block ended in another context, where nothing was set
            pass
        with _lock:
            self._count(tally, seconds)

    def _count(self, tally: Tally, seconds: float) -> None:
        raise NotImplementedError


class _QueryTimer(_Timer):
    __slots__ = ()

    def __enter__(self) -> None:
        self._begin()

    def _count(self, tally: Tally, seconds: float) -> None:
        tally.queries += 1
        tally.query_seconds += seconds


class _OutboundTimer(_Timer):
    __slots__ = ()

    def __enter__(self) -> None:
        self._begin()

    def _count(self, tally: Tally, seconds: float) -> None:
        tally.outbound_calls += 1
        tally.outbound_seconds += seconds


class CacheLookup(_Timer):
    """A block of work in a cache; set `hits` and `misses` to what its look-ups found. Both 0: only time counts."""

    __slots__ = ("hits", "misses")

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        self.misses = 0

    def __enter__(self) -> CacheLookup:
        self._begin()
        return self

    def _count(self, tally: Tally, seconds: float) -> None:
        tally.cache_hits += self.hits
        tally.cache_misses += self.misses
        tally.cache_seconds += seconds


def query() -> AbstractContextManager[None]:
    """Count the enclosed block as one database query, with its duration."""
    return _QueryTimer()


def outbound() -> AbstractContextManager[None]:
    """Count the enclosed block as one outbound call, with its duration."""
    return _OutboundTimer()


def cache() -> CacheLookup:
    """Time the enclosed block as work in a cache; it says what it found through the object it gets."""
    return CacheLookup()
