"""Latency, throughput and error class: pure functions of a number and the thresholds.

The names run from best to worst. A bound belongs to the worse side for latency and error rate
(`excellent` is *below* 100 ms) and to the better side for throughput (`excellent` is *at least*
1000 requests per second).
"""

from __future__ import annotations

from asyncio import CancelledError
from asyncio import TimeoutError as AsyncTimeoutError
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

Class = Literal["excellent", "good", "acceptable", "poor", "critical"]
ErrorClass = Literal["none", "client_error", "server_error", "timeout", "disconnected", "cancelled", "exception"]

CLASSES: tuple[Class, ...] = ("excellent", "good", "acceptable", "poor", "critical")
ERROR_CLASSES: tuple[ErrorClass, ...] = (
    "none",
    "client_error",
    "server_error",
    "timeout",
    "disconnected",
    "cancelled",
    "exception",
)
#: The error classes that count against a service's error rate. A client's mistake does not.
FAILURES: frozenset[ErrorClass] = frozenset({"server_error", "timeout", "exception"})

_TIMEOUT_STATUS = (408, 504)


def latency_class(seconds: float, bounds: Sequence[float]) -> Class:
    """Class of one duration.

    Args:
        seconds: the duration in seconds.
        bounds: the four increasing upper bounds, in seconds, of excellent, good, acceptable and poor.
    """
    return CLASSES[bisect_right(bounds, seconds)]


def error_rate_class(ratio: float, bounds: Sequence[float]) -> Class:
    """Class of a share of failed requests, 0 to 1, by four increasing upper bounds (ratios too)."""
    return CLASSES[bisect_right(bounds, ratio)]


def throughput_class(rps: float, bounds: Sequence[float]) -> Class:
    """Class of a rate in requests per second, by the four decreasing lower bounds of excellent to poor."""
    for name, bound in zip(CLASSES, bounds, strict=False):
        if rps >= bound:
            return name
    return "critical"


def worst(classes: Sequence[Class]) -> Class:
    """The worst of some classes; `excellent` when there are none."""
    return max(classes, key=CLASSES.index, default="excellent")


def error_class(
    status: int | None, error: BaseException | None = None, *, disconnected: bool = False, complete: bool = True
) -> ErrorClass:
    """Class of how one request ended.

    Args:
        status: the HTTP status that was sent, None when none was.
        error: what the application raised, None when it returned.
        disconnected: the client left before the response was complete.
        complete: the last byte of the body was sent.
    """
    # An exception group that a task group made of one disconnect is that disconnect, and so on down.
    if disconnected and not complete:
        return "disconnected"
    if isinstance(error, CancelledError):
        return "cancelled"
    # In Python 3.10 asyncio's is a class of its own.
    if isinstance(error, (TimeoutError, AsyncTimeoutError)):
        return "timeout"
    if error is not None:
        return "exception"
    if status is None or not complete:
        return "exception"
    return status_class(status)


def status_class(status: int) -> ErrorClass:
    """Class that an HTTP status alone implies."""
    if status < 400:
        return "none"
    if status in _TIMEOUT_STATUS:
        return "timeout"
    return "client_error" if status < 500 else "server_error"
