"""Sends export requests over OTLP/HTTP, and tries again what may be tried again.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response and what follows it there
"""

from __future__ import annotations

import logging
import os
import random
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from threading import Event

from apivitals.export.connection import Answer, Connection
from apivitals.export.otlp_settings import OtlpSettings
from apivitals.export.protobuf import LENGTH, VARINT, fields

logger = logging.getLogger(__name__)

_RETRYABLE = frozenset({429, 502, 503, 504})
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 30.0
#: A server that asks for more is taken to have meant this: it is known to have happened by mistake.
_LONGEST_RETRY_AFTER = 300.0
_COMPLAINT_SECONDS = 60.0


class Verdict(Enum):
    """What became of a request."""

    SUCCESS = "success"
    #: It was not taken, and may be given again.
    RETRYABLE = "retryable"
    #: It was refused, and would be refused again.
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request, how many of its items the server rejected, and why, for a person."""

    verdict: Verdict
    rejected: int = 0
    reason: str = ""


class Sender:
    """Sends to the endpoint of its settings over one kept connection. For one thread at a time.

    Args:
        settings: where to and how.
        user_agent: how we present ourselves.
        clock: seconds that only grow.
        wall_clock: seconds since the epoch, for a `Retry-After` that is a date.
        jitter: a random number from 0 to 1.
        wait: waits that many seconds, or less once `stop` was called.

    Raises:
        ConfigurationError: the settings name certificates that cannot be used.
    """

    def __init__(
        self,
        settings: OtlpSettings,
        *,
        user_agent: str = "apivitals",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.settings = settings
        self._headers = _request_headers(settings, user_agent)
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._wait_with = wait
        self._connection = Connection(settings)
        self._stopping = Event()
        self._stop_deadline = float("inf")
        self._process = os.getpid()
        self._failures = 0
        self._not_before = float("-inf")
        self._complained = float("-inf")

    def send(self, body: bytes, budget: float = 30.0) -> Outcome:
        """Send one request, again and again for `budget` seconds while that is of use. Never raises.

        The waits between two tries double from one second to thirty, with jitter, and go on doubling from one
        call to the next until one succeeds; a `Retry-After` of the server makes them longer. After `stop` there
        is one try, and no wait.
        """
        self._notice_fork()
        deadline = self._clock() + budget
        payload = _compressed(body, self.settings.compression)
        outcome = Outcome(Verdict.RETRYABLE, reason="the server asked us to wait")
        while True:
            pause = self._not_before - self._clock()
            if pause > 0 and not self._stopping.is_set():
                self._wait(min(pause, max(0.0, deadline - self._clock())))
            last = self._stopping.is_set()
            now = self._clock()
            if not last and (now < self._not_before or now >= deadline):
                return outcome
            outcome, asked = self._attempt(payload, min(deadline, self._stop_deadline) - now)
            if outcome.verdict is not Verdict.RETRYABLE:
                self._failures = 0
                return outcome
            self._complain(f"{outcome.reason}; it is tried again" if not last else outcome.reason)
            if last:
                return outcome
            backoff = min(_FIRST_BACKOFF * 2.0 ** min(self._failures, 16), _LONGEST_BACKOFF)
            self._failures += 1
            # Half to one and a half times the wait, so that many services do not come back at once.
            self._not_before = self._clock() + max(asked, backoff * (0.5 + self._jitter()))

    def stop(self, timeout: float = 5.0) -> None:
        """End all waiting; everything that is sent from now on must be through within `timeout` seconds."""
        self._notice_fork()
        self._stop_deadline = self._clock() + timeout
        self._stopping.set()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _wait(self, seconds: float) -> None:
        if self._wait_with is not None:
            self._wait_with(seconds)
        else:
            self._stopping.wait(seconds)

    def _notice_fork(self) -> None:
        if self._process == os.getpid():
            return
        # The connection is the parent's: closed here, it goes on there. A thread that is not in this process may
        # have been in the middle of the event.
        self._process = os.getpid()
        self._connection.close()
        if not self._stopping.is_set():
            self._stopping = Event()

    def _attempt(self, payload: bytes, limit: float) -> tuple[Outcome, float]:
        """One try, and how long the server asks us to wait before the next."""
        from http.client import HTTPException

        if limit <= 0:
            return Outcome(Verdict.RETRYABLE, reason="there was no time left"), 0.0
        deadline = time.monotonic() + min(limit, self.settings.timeout)
        while True:
            kept = self._connection.kept
            try:
                answer = self._connection.post(payload, self._headers, deadline)
            except (OSError, HTTPException, ValueError) as error:
                # A server closes a connection that was idle for long; that says nothing about the next one.
                if kept and isinstance(error, ConnectionError):
                    continue
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                return Outcome(Verdict.RETRYABLE, reason=reason), 0.0
            return self._judged(answer)

    def _judged(self, answer: Answer) -> tuple[Outcome, float]:
        status = answer.status
        if 200 <= status < 300:
            rejected, message = _partial_success(answer.body)
            if rejected or message:
                self._complain(f"the server rejected {rejected} items: {message[:300] or 'it does not say why'}")
            return Outcome(Verdict.SUCCESS, rejected, message), 0.0
        reason = f"the server answered {status}"
        if status in _RETRYABLE:
            return Outcome(Verdict.RETRYABLE, reason=reason), self._retry_after(answer.headers)
        if 300 <= status < 400:
            reason += f" and points to {answer.headers.get('location', 'nowhere')[:200]!r}, which is not followed"
        self._complain(f"{reason}; it is not tried again")
        return Outcome(Verdict.FATAL, reason=reason), 0.0

    def _retry_after(self, headers: Mapping[str, str]) -> float:
        """Seconds that the server asks for, in seconds or by a date; 0 when it does not, or not legibly."""
        said = headers.get("retry-after", "").strip()
        try:
            seconds = (
                float(said) if said[:1].isdigit() else parsedate_to_datetime(said).timestamp() - self._wall_clock()
            )
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0
        return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)

    def _complain(self, text: str) -> None:
        """At most once a minute: a sink that is down for a night must not fill the log."""
        if self._clock() - self._complained >= _COMPLAINT_SECONDS:
            self._complained = self._clock()
            logger.warning("sending %s to %s: %s", self.settings.signal, self.settings.endpoint, text)


def _request_headers(settings: OtlpSettings, user_agent: str) -> dict[str, str | bytes]:
    headers: dict[str, str | bytes] = {"user-agent": user_agent}
    # http.client takes text as Latin-1; a header that was percent-encoded is UTF-8.
    headers.update((name, value.encode()) for name, value in settings.headers)
    headers["content-type"] = "application/x-protobuf"
    if settings.compression != "none":
        headers["content-encoding"] = settings.compression
    return headers


def _compressed(body: bytes, compression: str) -> bytes:
    if compression == "none":
        return body
    # 31 is gzip with the largest window; the lock of the interpreter is not held while it compresses.
    compressor = zlib.compressobj(3, zlib.DEFLATED, 31 if compression == "gzip" else 15)
    return compressor.compress(body) + compressor.flush()


def _partial_success(body: bytes) -> tuple[int, str]:
    """How many items the server rejected, and its words; none for a body that cannot be read.

    Of all three signals' responses partial_success is field 1, with the count as field 1 and the message as 2.
    """
    rejected, message = 0, ""
    try:
        for number, wire_type, value in fields(body):
            if (number, wire_type) != (1, LENGTH) or not isinstance(value, bytes):
                continue
            for inner, kind, item in fields(value):
                if (inner, kind) == (1, VARINT) and isinstance(item, int):
                    rejected = item if item < 2**63 else 0
                elif (inner, kind) == (2, LENGTH) and isinstance(item, bytes):
                    message = item.decode("utf-8", "replace")
    except ValueError:
        return 0, ""
    return rejected, message
