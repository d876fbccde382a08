"""Pushes finished spans over OTLP/HTTP: a bounded queue, and one thread that encodes and sends.

The thread encodes a few spans at a time and sleeps a moment between, so that an event loop that waits for
the interpreter's lock gets it within a fraction of a millisecond.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event, RLock, Thread
from time import monotonic
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from apivitals.export.otlp_settings import BatchSettings
from apivitals.export.sender import Sender, Verdict
from apivitals.export.trace_batch import TraceBatch

logger = logging.getLogger(__name__)

#: Called with the signal, a reason and how many items were lost.
OnDrop = Callable[[str, str, int], object]

_SLICE = 64
#: Long enough for a thread that waits for the interpreter's lock to be woken and to take it; with a sleep of
#: zero seconds this thread is usually back before that.
_BREATH = 1e-4
#: A request is not made larger than this; the collector's default limit is 20 MiB.
_REQUEST_BYTES = 8 * 1024 * 1024
#: A batch that cannot be delivered for this long is given up, so that one which a proxy in between never lets
#: through does not hold up everything behind it for ever.
_PATIENCE = 300.0


def breathe() -> None:
    """Let the other threads run."""
    time.sleep(_BREATH)


class SpanPusher(SpanProcessor):
    """A span processor that pushes what it is given; nothing in it blocks or raises into who ends a span.

    While the server cannot be reached, the batch at hand is kept and tried again, and the queue fills up behind
    it; then the newest spans are dropped and counted. After a fork the child starts with an empty queue and,
    with its first span, a thread and a connection of its own.

    Args:
        sender: sends the requests; nobody else may use it.
        batches: sizes and times.
        on_drop: told about lost spans, by the thread of this processor. Reasons are `queue_full`, `encode`,
            `export`, `rejected` and `shutdown`.
    """

    def __init__(self, sender: Sender, batches: BatchSettings, on_drop: OnDrop = lambda *_: None) -> None:
        self._sender = sender
        self._batches = batches
        self._on_drop = on_drop
        self._capacity = batches.queue_size
        self._batch_size = batches.batch_size
        self._begin()
        if hasattr(os, "register_at_fork"):
            reference = weakref.WeakMethod(self._begin_again)
            os.register_at_fork(after_in_child=lambda: (begin := reference()) and begin())

    def _begin(self) -> None:
        """The state of a process that has not pushed anything yet."""
        self._queue: deque[Any] = deque()
        self._lock = RLock()
        self._thread: Thread | None = None
        self._wake = Event()
        self._woken = False
        self._stopping = False
        self._refused = 0
        self._in_flight = 0
        self._flushes: list[_Flush] = []

    def _begin_again(self) -> None:
        # All of it, because a lock or an event may have been in use by a thread that this process has not got.
        stopping = self._stopping
        self._begin()
        self._stopping = stopping

    # --- called by whoever ends spans

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: only ended spans are of interest."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, if it is sampled."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            self.push(span)

    def push(self, span: Any) -> None:
        """Queue a finished span that is known to be sampled: one of the SDK's or a `ServerSpan`."""
        queue = self._queue
        if len(queue) >= self._capacity or self._stopping:
            with self._lock:
                self._refused += 1
            return
        queue.append(span)
        if self._thread is None:
            self._start()
        if len(queue) >= self._batch_size and not self._woken:
            # Marked first: a span that ends while the event is set, in a finalizer, must not set it again.
            self._woken = True
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued; whether all of it was delivered in time."""
        if self._thread is None or not self._thread.is_alive():
            return not self._queue
        flush = _Flush()
        self._flushes.append(flush)
        self._wake.set()
        return flush.done.wait(timeout_millis / 1e3) and flush.delivered

    def shutdown(self, timeout: float = 5.0) -> None:
        """Send what is queued, within `timeout` seconds; what is left then is counted as dropped."""
        if self._stopping:
            return
        # First the sender, so that a batch that waits to be tried again is tried a last time.
        self._sender.stop(timeout)
        self._stopping = True
        if self._thread is not None and self._thread.is_alive():
            self._wake.set()
            self._thread.join(timeout + 0.1)
        with self._lock:
            # A request that hangs is left to its daemon thread; nobody will hear what becomes of it.
            lost = len(self._queue) + self._in_flight
            self._queue.clear()
            self._in_flight = 0
        self._report("shutdown", lost)
        self._report_refused()

    # --- the thread

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopping:
                return
            thread = Thread(target=self._run, name="apivitals-otlp-traces", daemon=True)
            # RuntimeError: there are no more threads to be had, so the next span tries again.
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        # An instrumented or patched HTTP client must not make spans of our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        due = monotonic() + self._batches.delay
        while not self._stopping:
            self._wake.wait(max(0.0, due - monotonic()))
            self._wake.clear()
            self._woken = False
            flushes, self._flushes = self._flushes, []
            everything = bool(flushes) or self._stopping or monotonic() >= due
            delivered = self._drain(everything)
            if everything:
                due = monotonic() + self._batches.delay
            for flush in flushes:
                flush.delivered = delivered
                flush.done.set()
        delivered = self._drain(True)
        for flush in self._flushes:
            flush.delivered = delivered
            flush.done.set()
        self._sender.close()

    def _drain(self, everything: bool) -> bool:
        """Send full batches, and the rest as well if everything is to go; whether all of it arrived."""
        delivered = True
        # What comes while this goes on has its own turn, or a busy service would never let a flush end.
        left = len(self._queue)
        while left > 0 and (everything or left >= self._batch_size):
            try:
                taken, arrived = self._send_batch(min(left, self._batch_size))
            except Exception:
                logger.warning("pushing spans failed; a batch of them is lost", exc_info=True)
                taken, arrived = self._batch_size, False
                self._report("export", self._landed())
            if not taken:
                break
            left -= taken
            delivered = delivered and arrived
            self._report_refused()
        self._report_refused()
        return delivered

    def _send_batch(self, count: int) -> tuple[int, bool]:
        """Encode and send up to `count` spans; how many were taken from the queue, and whether they arrived."""
        batch, taken = self._encoded(count)
        if not batch.count:
            return taken, False
        body = batch.encode()
        count = batch.count
        del batch
        given_up = monotonic() + _PATIENCE
        while True:
            outcome = self._sender.send(body, self._batches.timeout)
            if outcome.verdict is not Verdict.RETRYABLE or self._stopping or monotonic() >= given_up:
                break
            self._report_refused()
        if not self._landed():
            return taken, False
        if outcome.verdict is Verdict.SUCCESS:
            self._report("rejected", min(outcome.rejected, count))
        else:
            self._report("export", count)
        return taken, outcome.verdict is Verdict.SUCCESS

    def _encoded(self, count: int) -> tuple[TraceBatch, int]:
        batch = TraceBatch()
        taken = failed = 0
        while taken < count and batch.size < _REQUEST_BYTES:
            for _ in range(min(_SLICE, count - taken)):
                try:
                    # Together, so that a shutdown that gives up counts each span once.
                    with self._lock:
                        span = self._queue.popleft()
                        self._in_flight += 1
                except IndexError:
                    count = taken
                    break
                taken += 1
                try:
                    batch.add(span)
                except Exception:
                    failed += 1
                    logger.debug("a span cannot be encoded", exc_info=True)
            breathe()
        if failed:
            with self._lock:
                self._in_flight = max(0, self._in_flight - failed)
            self._report("encode", failed)
        return batch, taken

    def _landed(self) -> int:
        """How many spans were under way until now; none when a shutdown has already written them off."""
        with self._lock:
            landed, self._in_flight = self._in_flight, 0
        return landed

    def _report_refused(self) -> None:
        with self._lock:
            refused, self._refused = self._refused, 0
        self._report("shutdown" if self._stopping else "queue_full", refused)

    def _report(self, reason: str, count: int) -> None:
        if count <= 0:
            return
        try:
            self._on_drop("traces", reason, count)
        except Exception:
            logger.warning("counting %d lost spans failed", count, exc_info=True)


class _Flush:
    """Somebody who waits until what is queued was sent."""

    __slots__ = ("delivered", "done")

    def __init__(self) -> None:
        self.done = Event()
        self.delivered = False
