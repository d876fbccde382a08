"""The sliding window that the throughput and error-rate classes rest on, with a clock of our own."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.telemetry.rates import RateWindow, total


class Clock:
    def __init__(self) -> None:
        self.now = 5000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rows(window: RateWindow) -> dict[tuple[str, str | None], tuple[float, float | None]]:
    return {route: (rps, ratio) for route, rps, ratio in window.read()}


def test_nothing_yet(clock: Clock) -> None:
    window = RateWindow(60, clock)
    assert window.read() == []
    assert total(window.read()) == (0.0, None)


def test_a_young_process_is_not_divided_by_a_whole_window(clock: Clock) -> None:
    window = RateWindow(60, clock)
    for _ in range(20):
        window.add("GET", "/a", False)
    # Within its first second, as if a second had passed.
    assert rows(window) == {("GET", "/a"): (20.0, 0.0)}
    clock.now += 10
    assert rows(window) == {("GET", "/a"): (2.0, 0.0)}


def test_the_window_slides(clock: Clock) -> None:
    window = RateWindow(10, clock)
    clock.now += 100
    for _ in range(10):
        clock.now += 1
        for place in range(30):
            window.add("GET", "/a", place == 0)
    assert rows(window) == {("GET", "/a"): (30.0, 1 / 30)}
    clock.now += 5
    assert rows(window) == {("GET", "/a"): (15.0, 1 / 30)}
    clock.now += 4
    assert rows(window) == {("GET", "/a"): (3.0, 1 / 30)}
    clock.now += 1
    # The route stays, so that its rate is seen to be 0; there is no share of failures of nothing.
    assert rows(window) == {("GET", "/a"): (0.0, None)}


def test_routes_and_methods_are_told_apart(clock: Clock) -> None:
    window = RateWindow(10, clock)
    window.add("GET", "/a", False)
    window.add("POST", "/a", True)
    window.add("GET", None, False)
    window.add("GET", None, True)
    found = rows(window)
    assert found == {("GET", "/a"): (1.0, 0.0), ("POST", "/a"): (1.0, 1.0), ("GET", None): (2.0, 0.5)}
    assert total(window.read()) == (4.0, 0.5)


def test_the_total_leaves_out_routes_without_requests() -> None:
    assert total([(("GET", "/a"), 9.0, 0.1), (("GET", "/b"), 0.0, None)]) == (9.0, pytest.approx(0.1))
    assert total(iter([(("GET", "/b"), 0.0, None)])) == (0.0, None)


def test_memory_is_bounded_by_the_window(clock: Clock) -> None:
    window = RateWindow(5, clock)
    for _ in range(1000):
        clock.now += 1
        window.add("GET", "/a", False)
    assert len(window._routes["GET", "/a"].entries) == 5


@pytest.mark.parametrize(("seconds", "kept"), [(0.1, 1), (1.4, 1), (2.6, 3)])
def test_a_window_is_whole_seconds_and_one_at_least(clock: Clock, seconds: float, kept: int) -> None:
    window = RateWindow(seconds, clock)
    clock.now += 100
    for _ in range(10):
        clock.now += 1
        window.add("GET", "/a", False)
    assert rows(window)["GET", "/a"] == (1.0, 0.0)
    assert window._window == kept


@given(
    st.lists(
        st.tuples(st.floats(0, 4), st.sampled_from(["/a", "/b"]), st.booleans()),
        max_size=60,
    )
)
def test_it_counts_what_a_list_would(steps: list[tuple[float, str, bool]]) -> None:
    clock = Clock()
    window = RateWindow(10, clock)
    clock.now += 50
    sent: list[tuple[int, str, bool]] = []
    for wait, route, failed in steps:
        clock.now += wait
        window.add("GET", route, failed)
        sent.append((int(clock.now), route, failed))
        recent = [entry for entry in sent if entry[0] > int(clock.now) - 10]
        for name, (rps, ratio) in ((route[1], values) for route, values in rows(window).items()):
            mine = [entry for entry in recent if entry[1] == name]
            assert rps == len(mine) / 10
            assert ratio == (sum(entry[2] for entry in mine) / len(mine) if mine else None)


def test_threads_lose_nothing(clock: Clock) -> None:
    window = RateWindow(10, clock)
    threads = [threading.Thread(target=lambda: [window.add("GET", "/a", True) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(window) == {("GET", "/a"): (8000.0, 1.0)}
