from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from apivitals import tally


@pytest.fixture
def opened() -> Iterator[tally.Tally]:
    record, token = tally.open_tally()
    yield record
    tally.close_tally(token)


def test_nothing_is_counted_outside_a_request():
    tally.add_query(1.0)
    tally.add_cache(hit=True)
    tally.add_outbound()
    with tally.query(), tally.outbound(), tally.cache():
        pass
    assert tally.current() is None


def test_adds_counts_and_seconds(opened: tally.Tally):
    tally.add_query(0.5, count=2)
    tally.add_cache(hit=True, seconds=0.25, count=3)
    tally.add_cache(hit=False)
    tally.add_outbound(2.0)
    assert (opened.queries, opened.query_seconds) == (2, 0.5)
    assert (opened.cache_hits, opened.cache_misses, opened.cache_seconds) == (3, 1, 0.25)
    assert (opened.outbound_calls, opened.outbound_seconds) == (1, 2.0)


def test_closing_restores_the_outer_tally(opened: tally.Tally):
    inner, token = tally.open_tally()
    tally.add_query()
    tally.close_tally(token)
    tally.add_outbound()
    assert (inner.queries, inner.outbound_calls) == (1, 0)
    assert (opened.queries, opened.outbound_calls) == (0, 1)


def test_blocks_measure_time(opened: tally.Tally, monkeypatch: pytest.MonkeyPatch):
    clock = iter([10.0, 10.5, 20.0, 21.0, 30.0, 30.25])
    monkeypatch.setattr(tally, "perf_counter", lambda: next(clock))
    with tally.query():
        pass
    with tally.outbound():
        pass
    with tally.cache() as lookup:
        lookup.hits, lookup.misses = 2, 1
    assert (opened.queries, opened.query_seconds) == (1, 0.5)
    assert (opened.outbound_calls, opened.outbound_seconds) == (1, 1.0)
    assert (opened.cache_hits, opened.cache_misses, opened.cache_seconds) == (2, 1, 0.25)


def test_a_block_that_raises_counts_and_the_error_passes(opened: tally.Tally):
    with pytest.raises(LookupError), tally.query():
        raise LookupError
    assert opened.queries == 1


def test_a_block_within_a_block_counts_once(opened: tally.Tally):
    with tally.query(), tally.outbound(), tally.cache() as lookup:
        lookup.hits = 1
    assert (opened.queries, opened.outbound_calls, opened.cache_hits) == (1, 0, 0)
    with tally.outbound():
        pass
    assert opened.outbound_calls == 1


def test_a_block_that_ends_in_another_context_counts_where_it_began(opened: tally.Tally):
    timer = tally.outbound()
    contextvars.copy_context().run(timer.__enter__)
    timer.__exit__(None, None, None)
    assert opened.outbound_calls == 1


def test_threads_and_tasks_of_a_request_add_to_its_tally(opened: tally.Tally):
    rounds = 2000

    def work() -> None:
        for _ in range(rounds):
            tally.add_query(count=1)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(contextvars.copy_context().run, work) for _ in range(4)]:
            future.result()

    async def tasks() -> None:
        await asyncio.gather(*(asyncio.to_thread(tally.add_query) for _ in range(5)))

    asyncio.run(tasks())
    assert opened.queries == 4 * rounds + 5


def test_requests_at_the_same_time_keep_apart():
    async def request(queries: int) -> int:
        record, token = tally.open_tally()
        for _ in range(queries):
            tally.add_query()
            await asyncio.sleep(0)
        tally.close_tally(token)
        return record.queries

    async def requests() -> list[int]:
        return list(await asyncio.gather(*(request(count) for count in (1, 5, 9))))

    assert asyncio.run(requests()) == [1, 5, 9]
