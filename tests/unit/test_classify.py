"""Every bound of every class, on both of its sides, and how a request's end is named."""

from __future__ import annotations

import asyncio
from math import inf, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.classify import (
    CLASSES,
    ERROR_CLASSES,
    FAILURES,
    error_class,
    error_rate_class,
    latency_class,
    status_class,
    throughput_class,
    worst,
)
from apivitals.settings import PerformanceThresholds

THRESHOLDS = PerformanceThresholds()


class UpstreamTimeout(TimeoutError):
    pass


@pytest.mark.parametrize(("place", "bound"), list(enumerate((0.1, 0.3, 0.5, 1.0))))
def test_a_latency_bound_belongs_to_the_worse_side(place: int, bound: float) -> None:
    bounds = THRESHOLDS.latency_bounds
    assert latency_class(nextafter(bound, 0), bounds) == CLASSES[place]
    assert latency_class(bound, bounds) == CLASSES[place + 1]
    assert latency_class(nextafter(bound, inf), bounds) == CLASSES[place + 1]


@pytest.mark.parametrize(("place", "bound"), list(enumerate((0.001, 0.01, 0.05, 0.1))))
def test_an_error_rate_bound_belongs_to_the_worse_side(place: int, bound: float) -> None:
    bounds = THRESHOLDS.error_rate_bounds
    assert error_rate_class(nextafter(bound, 0), bounds) == CLASSES[place]
    assert error_rate_class(bound, bounds) == CLASSES[place + 1]


@pytest.mark.parametrize(("place", "bound"), list(enumerate((1000.0, 500.0, 100.0, 50.0))))
def test_a_throughput_bound_belongs_to_the_better_side(place: int, bound: float) -> None:
    bounds = THRESHOLDS.throughput_bounds
    assert throughput_class(bound, bounds) == CLASSES[place]
    assert throughput_class(nextafter(bound, inf), bounds) == CLASSES[place]
    assert throughput_class(nextafter(bound, 0), bounds) == CLASSES[place + 1]


def test_the_ends_of_the_scales() -> None:
    assert latency_class(0.0, THRESHOLDS.latency_bounds) == "excellent"
    assert latency_class(inf, THRESHOLDS.latency_bounds) == "critical"
    assert error_rate_class(0.0, THRESHOLDS.error_rate_bounds) == "excellent"
    assert error_rate_class(1.0, THRESHOLDS.error_rate_bounds) == "critical"
    assert throughput_class(0.0, THRESHOLDS.throughput_bounds) == "critical"
    assert throughput_class(1e9, THRESHOLDS.throughput_bounds) == "excellent"


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_longer_duration_is_never_a_better_class(a: float, b: float) -> None:
    short, long = sorted((a, b))
    bounds = THRESHOLDS.latency_bounds
    assert CLASSES.index(latency_class(short, bounds)) <= CLASSES.index(latency_class(long, bounds))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (101, "none"),
        (200, "none"),
        (304, "none"),
        (399, "none"),
        (400, "client_error"),
        (404, "client_error"),
        (407, "client_error"),
        (408, "timeout"),
        (409, "client_error"),
        (499, "client_error"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "timeout"),
        (505, "server_error"),
        (599, "server_error"),
    ],
)
def test_what_a_status_implies(status: int, expected: str) -> None:
    assert status_class(status) == expected
    assert error_class(status) == expected


@pytest.mark.parametrize(
    ("status", "error", "disconnected", "complete", "expected"),
    [
        # The client left before the end: whatever was raised because of it is not the service's fault.
        (None, None, True, False, "disconnected"),
        (200, None, True, False, "disconnected"),
        (200, RuntimeError(), True, False, "disconnected"),
        (200, TimeoutError(), True, False, "disconnected"),
        (None, asyncio.CancelledError(), True, False, "disconnected"),
        # It left after the last byte: the request is what it was.
        (200, None, True, True, "none"),
        (500, None, True, True, "server_error"),
        (200, RuntimeError(), True, True, "exception"),
        (None, asyncio.CancelledError(), False, False, "cancelled"),
        (200, asyncio.CancelledError(), False, True, "cancelled"),
        (500, TimeoutError(), False, True, "timeout"),
        (500, UpstreamTimeout(), False, True, "timeout"),
        (500, asyncio.TimeoutError(), False, True, "timeout"),
        (500, RuntimeError(), False, True, "exception"),
        (500, KeyboardInterrupt(), False, False, "exception"),
        # Raised after an answer was begun or complete.
        (200, RuntimeError(), False, False, "exception"),
        (200, RuntimeError(), False, True, "exception"),
        (404, RuntimeError(), False, True, "exception"),
        # An application that returns without having answered, or answered in full.
        (None, None, False, True, "exception"),
        (200, None, False, False, "exception"),
        (404, None, False, False, "exception"),
        (404, None, False, True, "client_error"),
        (504, None, False, True, "timeout"),
    ],
)
def test_how_a_request_ended(
    status: int | None, error: BaseException | None, disconnected: bool, complete: bool, expected: str
) -> None:
    assert error_class(status, error, disconnected=disconnected, complete=complete) == expected


@given(
    st.none() | st.integers(100, 599),
    st.sampled_from([None, ValueError(), TimeoutError(), asyncio.CancelledError()]),
    st.booleans(),
    st.booleans(),
)
def test_every_end_has_a_name(status: int | None, error: BaseException | None, left: bool, complete: bool) -> None:
    ended = error_class(status, error, disconnected=left, complete=complete)
    assert ended in ERROR_CLASSES
    if ended == "none":
        assert status is not None
        assert status < 400
        assert error is None


def test_a_mistake_of_the_client_is_no_failure() -> None:
    assert {"server_error", "timeout", "exception"} == FAILURES
    assert set(ERROR_CLASSES) > FAILURES


def test_the_worst_class() -> None:
    assert worst([]) == "excellent"
    assert worst(["good", "critical", "excellent"]) == "critical"
    assert worst(["poor", "acceptable"]) == "poor"
