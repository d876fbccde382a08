"""Pushing spans and metrics: with a sender that answers as it is told, and no time that passes by itself."""

from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from queue import Queue
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, TraceFlags

from apivitals.export import push as push_module
from apivitals.export.metric_push import MetricPusher
from apivitals.export.otlp_settings import BatchSettings, MetricPushSettings
from apivitals.export.push import SpanPusher
from apivitals.export.sender import Outcome, Verdict
from apivitals.export.snapshot import Metric, NumberPoint, Scope, Snapshot

RESOURCE = Resource({"service.name": "a"})
SUCCESS, RETRYABLE, FATAL = (Outcome(verdict) for verdict in (Verdict.SUCCESS, Verdict.RETRYABLE, Verdict.FATAL))
LONG = 3600.0


class FakeSender:
    """Keeps what is sent, and answers with what `answers` gives: SUCCESS when it gives nothing."""

    def __init__(self, answers: Callable[[int], Outcome | None] = lambda place: None) -> None:
        self.bodies: list[bytes] = []
        self.sent: Queue[bytes] = Queue()
        self.budgets: list[float] = []
        self.stopped: list[float] = []
        self.closed = Event()
        self._answers = answers

    def send(self, body: bytes, budget: float) -> Outcome:
        self.bodies.append(body)
        self.budgets.append(budget)
        self.sent.put(body)
        return self._answers(len(self.bodies) - 1) or SUCCESS

    def stop(self, timeout: float) -> None:
        self.stopped.append(timeout)

    def close(self) -> None:
        self.closed.set()

    def names(self) -> list[list[str]]:
        return [names_of(body) for body in self.bodies]


def names_of(body: bytes) -> list[str]:
    return [
        span.name
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def span(name: str, sampled: bool = True) -> ReadableSpan:
    return ReadableSpan(name, SpanContext(1, 2, False, TraceFlags(int(sampled))), resource=RESOURCE)


class Drops(list[tuple[str, str, int]]):
    def __call__(self, signal: str, reason: str, count: int) -> None:
        self.append((signal, reason, count))

    def total(self, reason: str) -> int:
        return sum(count for _, why, count in self if why == reason)


Make = Callable[..., SpanPusher]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SpanPusher] = []

    def build(sender: Any, on_drop: Any = lambda *_: None, **batches: Any) -> SpanPusher:
        pusher = SpanPusher(sender, BatchSettings(**{"delay": LONG, **batches}), on_drop)
        made.append(pusher)
        return pusher

    yield build
    for pusher in made:
        pusher.shutdown(2)


def test_a_flush_sends_what_is_queued(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender)
    for name in "abc":
        pusher.on_end(span(name))
    assert sender.bodies == []
    assert pusher.force_flush()
    assert sender.names() == [["a", "b", "c"]]
    assert pusher.force_flush()
    assert len(sender.bodies) == 1


def test_a_thread_that_cannot_be_had_is_tried_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    sender = FakeSender()
    pusher = make(sender)
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        pusher.push(span("a"))
        assert not pusher.force_flush()
    pusher.push(span("b"))
    assert pusher.force_flush()
    assert sender.names() == [["a", "b"]]


def test_there_is_no_thread_before_there_is_a_span(make: Make) -> None:
    before = threading.active_count()
    pusher = make(FakeSender())
    assert pusher.force_flush()
    assert threading.active_count() == before
    pusher.shutdown()
    assert threading.active_count() == before


def test_unsampled_spans_are_not_sent(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender)
    pusher.on_end(span("no", sampled=False))
    pusher.on_end(ReadableSpan("odd", context=None))
    pusher.on_end(span("yes"))
    assert pusher.force_flush()
    assert sender.names() == [["yes"]]


def test_it_is_a_span_processor_of_the_sdk(make: Make) -> None:
    sender = FakeSender()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(make(sender))
    with provider.get_tracer("t").start_as_current_span("outer"), provider.get_tracer("t").start_as_current_span("in"):
        pass
    assert provider.force_flush()
    provider.shutdown()
    assert sender.names() == [["in", "outer"]]
    assert sender.stopped
    off = FakeSender()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(make(off))
    provider.get_tracer("t").start_span("x").end()
    provider.shutdown()
    assert off.bodies == []


def test_a_full_batch_is_sent_before_its_time(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender, batch_size=3)
    for name in "abcd":
        pusher.push(span(name))
    assert len(names_of(sender.sent.get(timeout=10))) == 3
    assert pusher.force_flush()
    assert [*chain(*sender.names())] == list("abcd")


def test_what_waits_is_sent_when_its_time_has_come(make: Make) -> None:
    sender = FakeSender()
    make(sender, delay=0.01).push(span("a"))
    assert names_of(sender.sent.get(timeout=10)) == ["a"]


def test_large_queues_are_sent_in_batches(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender, batch_size=200)
    pusher._woken = True  # as if the thread had been told already: only the flush below
    for place in range(450):
        pusher.push(span(str(place)))
    assert pusher.force_flush()
    assert [len(names) for names in sender.names()] == [200, 200, 50]
    assert [*chain(*sender.names())] == [str(place) for place in range(450)]


def test_a_request_is_bounded_in_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_REQUEST_BYTES", 10_000)
    sender = FakeSender()
    pusher = make(sender)
    for _ in range(300):
        pusher.push(span("x" * 200))
    assert pusher.force_flush()
    assert sum(len(names) for names in sender.names()) == 300
    assert len(sender.bodies) >= 4
    assert max(map(len, sender.bodies)) < 10_000 + 64 * 300


def test_encoding_gives_way_after_every_64_spans(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    breaths: list[int] = []
    monkeypatch.setattr(push_module, "breathe", lambda: breaths.append(1))
    pusher = make(FakeSender())
    for place in range(300):
        pusher.push(span(str(place)))
    assert pusher.force_flush()
    assert len(breaths) == 5


def test_a_full_queue_drops_the_newest_and_counts_them(make: Make) -> None:
    drops, answered = Drops(), Event()
    sender = FakeSender(lambda place: SUCCESS if answered.wait(20) else None)
    pusher = make(sender, drops, queue_size=10, batch_size=2)
    pusher.push(span("first"))
    pusher.push(span("second"))
    sender.sent.get(timeout=10)  # now the thread hangs in the sender
    for place in range(25):
        pusher.push(span(str(place)))
    assert drops == []  # told by the thread, not by whoever ends a span
    answered.set()
    assert pusher.force_flush()
    assert drops.total("queue_full") == 15
    assert [*chain(*sender.names())] == ["first", "second", *(str(place) for place in range(10))]


def test_a_batch_is_kept_until_it_is_taken(make: Make) -> None:
    drops = Drops()
    sender = FakeSender(lambda place: RETRYABLE if place < 5 else SUCCESS)
    pusher = make(sender, drops, timeout=7.0)
    pusher.push(span("a"))
    assert pusher.force_flush()
    assert sender.names() == [["a"]] * 6
    assert set(sender.budgets) == {7.0}
    assert drops == []


def test_a_batch_that_is_never_taken_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_PATIENCE", 0.0)
    drops = Drops()
    sender = FakeSender(lambda place: RETRYABLE if place == 0 else SUCCESS)
    pusher = make(sender, drops)
    pusher.push(span("a"))
    assert not pusher.force_flush()
    pusher.push(span("b"))
    assert pusher.force_flush()
    assert sender.names() == [["a"], ["b"]]
    assert drops == [("traces", "export", 1)]


def test_what_is_refused_is_dropped_and_counted(make: Make) -> None:
    drops = Drops()
    pusher = make(FakeSender(lambda place: FATAL), drops)
    pusher.push(span("a"))
    pusher.push(span("b"))
    assert not pusher.force_flush()
    assert drops == [("traces", "export", 2)]


def test_what_a_server_rejects_is_counted(make: Make) -> None:
    drops = Drops()
    pusher = make(FakeSender(lambda place: Outcome(Verdict.SUCCESS, 10**15)), drops)
    pusher.push(span("a"))
    assert pusher.force_flush()
    assert drops == [("traces", "rejected", 1)]  # never more than there were


def test_a_span_that_cannot_be_encoded_does_not_take_others_with_it(make: Make) -> None:
    drops, sender = Drops(), FakeSender()
    pusher = make(sender, drops)
    pusher.push(span("a"))
    pusher.push(object())
    pusher.push(ReadableSpan("huge", SpanContext(1, 2, False), start_time="no"))  # type: ignore[arg-type]
    pusher.push(span("b"))
    assert pusher.force_flush()
    assert sender.names() == [["a", "b"]]
    assert drops == [("traces", "encode", 2)]


def test_a_fault_of_ours_does_not_end_the_thread(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def answers(place: int) -> Outcome | None:
        if place == 0:
            raise RuntimeError("a fault")
        return None

    def on_drop(signal: str, reason: str, count: int) -> None:
        drops(signal, reason, count)
        raise RuntimeError("another")

    drops, sender = Drops(), FakeSender(answers)
    pusher = make(sender, on_drop)
    pusher.push(span("a"))
    assert not pusher.force_flush()
    pusher.push(span("b"))
    assert pusher.force_flush()
    assert sender.names()[-1] == ["b"]
    assert drops == [("traces", "export", 1)]
    assert "a fault" in caplog.text


def test_a_flush_gives_up_in_time(make: Make) -> None:
    answered = Event()
    pusher = make(FakeSender(lambda place: SUCCESS if answered.wait(20) else None))
    pusher.push(span("a"))
    began = monotonic()
    assert not pusher.force_flush(50)
    assert monotonic() - began < 5
    answered.set()


# --- shutdown


def test_a_shutdown_sends_what_is_queued_once(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender)
    pusher.push(span("a"))
    pusher.shutdown(5)
    pusher.shutdown(5)
    assert sender.names() == [["a"]]
    assert sender.stopped == [5]
    assert sender.closed.is_set()


def test_after_a_shutdown_spans_are_counted_and_nothing_else(make: Make) -> None:
    drops, sender = Drops(), FakeSender()
    pusher = make(sender, drops)
    pusher.push(span("a"))
    pusher.shutdown()
    pusher.push(span("late"))
    pusher.on_end(span("later"))
    assert sender.names() == [["a"]]
    assert pusher.force_flush()
    assert len(pusher._queue) == 0


def test_a_shutdown_is_bounded_and_counts_what_it_leaves(make: Make) -> None:
    drops, answered = Drops(), Event()
    sender = FakeSender(lambda place: SUCCESS if answered.wait(20) else None)
    pusher = make(sender, drops, batch_size=2, queue_size=50)
    for place in range(7):
        pusher.push(span(str(place)))
    sender.sent.get(timeout=10)
    began = monotonic()
    pusher.shutdown(0.1)
    assert monotonic() - began < 5
    assert drops == [("traces", "shutdown", 7)]
    answered.set()
    thread = pusher._thread
    assert thread is not None
    thread.join(10)
    # What was written off is not counted again, whatever became of it.
    assert drops == [("traces", "shutdown", 7)]


def test_a_shutdown_ends_the_waiting_for_a_server_that_is_down(make: Make) -> None:
    drops = Drops()
    told = Event()

    class Down(FakeSender):
        def send(self, body: bytes, budget: float) -> Outcome:
            super().send(body, budget)
            told.wait(20)
            return RETRYABLE

        def stop(self, timeout: float) -> None:
            told.set()

    pusher = make(Down(), drops)
    pusher.push(span("a"))
    assert not pusher.force_flush(10)
    pusher.push(span("b"))
    pusher.shutdown(5)
    assert drops.total("export") == 2


# --- what it costs to be down


def test_memory_is_flat_while_the_sink_is_down(make: Make) -> None:
    drops, answered = Drops(), Event()
    sender = FakeSender(lambda place: SUCCESS if answered.wait(30) else None)
    pusher = make(sender, drops, queue_size=100, batch_size=10)

    def burst(count: int) -> None:
        for _ in range(count):
            pusher.push(span("x" * 100))

    burst(1000)
    sender.sent.get(timeout=10)
    burst(1000)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        burst(5000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    answered.set()
    assert pusher.force_flush()
    sent = sum(len(names) for names in sender.names())
    assert sent + drops.total("queue_full") == 7000
    assert 100 <= sent <= 300


def test_every_span_of_many_threads_is_sent_or_counted(make: Make) -> None:
    drops, sender = Drops(), FakeSender()
    pusher = make(sender, drops, queue_size=300, batch_size=50)

    def work() -> None:
        for _ in range(500):
            pusher.push(span("x"))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pusher.shutdown(10)
    assert sum(len(names) for names in sender.names()) + sum(count for *_, count in drops) == 2000


def test_a_pusher_without_a_thread_is_collected() -> None:
    pusher = SpanPusher(FakeSender(), BatchSettings())  # type: ignore[arg-type]
    reference = weakref.ref(pusher)
    del pusher
    gc.collect()
    assert reference() is None


# --- fork


def in_a_child(action: Callable[[], object]) -> int:
    """The exit status of a forked process: 0 when the action returned true."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if action() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
if sys.version_info >= (3, 12):
    quiet = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
else:
    quiet = pytest.mark.filterwarnings("error")


@forks
@quiet
def test_a_child_sends_its_own_spans_and_not_its_parent_s(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender)
    pusher.push(span("parent"))

    def child() -> bool:
        if len(pusher._queue) or pusher._thread is not None:
            return False
        pusher.push(span("child"))
        flushed = pusher.force_flush(5000)
        return flushed and sender.names() == [["child"]]

    assert in_a_child(child) == 0
    assert pusher.force_flush()
    assert sender.names() == [["parent"]]


@forks
@quiet
def test_a_fork_while_a_lock_is_held(make: Make) -> None:
    sender = FakeSender()
    pusher = make(sender, queue_size=1, batch_size=1)
    held, done = Event(), Event()

    def hold() -> None:
        with pusher._lock:
            held.set()
            done.wait(20)

    thread = Thread(target=hold)
    thread.start()
    held.wait(10)

    def child() -> bool:
        for _ in range(5):
            pusher.push(span("child"))
        pusher.shutdown(5)
        return sum(len(names) for names in sender.names()) >= 1

    status = in_a_child(child)
    done.set()
    thread.join()
    assert status == 0


@forks
@quiet
def test_a_child_of_a_process_that_was_shut_down_stays_so(make: Make) -> None:
    pusher = make(FakeSender())
    pusher.shutdown()
    assert in_a_child(lambda: pusher._stopping and not pusher.push(span("a")) and not pusher._queue) == 0


# --- metrics


def counted(value: int, time: int = 10, kind: str = "counter") -> Snapshot:
    point = NumberPoint((("k", "v"),), 1, time, value)
    return Snapshot(time, (("service.name", "a"),), (Scope("s", "", "", (Metric("m", "1", "", kind, (point,)),)),))


class Source:
    def __init__(self) -> None:
        self.value = 0
        self.kind = "counter"

    def __call__(self) -> Snapshot:
        return counted(self.value, 10 + self.value, self.kind)


def values(sender: FakeSender) -> list[tuple[int, int]]:
    """Value and temporality of what was sent."""
    found = []
    for body in sender.bodies:
        (metric,) = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics
        found.append((metric.sum.data_points[0].as_int, metric.sum.aggregation_temporality))
    return found


def metric_pusher(sender: Any, source: Any, on_drop: Any = lambda *_: None, **settings: Any) -> MetricPusher:
    return MetricPusher(source, sender, MetricPushSettings(**{"interval": LONG, **settings}), on_drop)


def test_metrics_are_pushed_every_so_often_and_at_the_end() -> None:
    source, sender = Source(), FakeSender()
    pusher = metric_pusher(sender, source, interval=0.01)
    source.value = 1
    pusher.start()
    for _ in range(3):
        sender.sent.get(timeout=10)
    source.value = 7
    pusher.shutdown()
    pusher.shutdown()
    assert values(sender)[0] == (1, 2)
    assert values(sender)[-1] == (7, 2)
    assert set(sender.budgets) == {0.01}
    assert sender.closed.is_set()
    count = len(sender.bodies)
    assert sender.stopped == [5.0]
    assert len(sender.bodies) == count


def test_cumulative_pushes_that_fail_are_counted_and_made_up_for() -> None:
    source, drops = Source(), Drops()
    sender = FakeSender(lambda place: (RETRYABLE, FATAL, Outcome(Verdict.SUCCESS, 1), SUCCESS)[place])
    pusher = metric_pusher(sender, source, drops)
    results = []
    for value in (1, 2, 3, 4):
        source.value = value
        results.append(pusher.force_flush())
    assert results == [False, False, True, True]
    assert [value for value, _ in values(sender)] == [1, 2, 3, 4]
    assert drops == [("metrics", "export", 1), ("metrics", "export", 1), ("metrics", "rejected", 1)]


@pytest.mark.parametrize("temporality", ["delta", "lowmemory"])
def test_a_delta_that_did_not_arrive_is_not_lost(temporality: str) -> None:
    source, drops = Source(), Drops()
    sender = FakeSender(lambda place: RETRYABLE if place in (1, 2) else FATAL if place == 4 else SUCCESS)
    pusher = metric_pusher(sender, source, drops, temporality=temporality)
    for value in (1, 3, 6, 10, 15, 21):
        source.value = value
        pusher.force_flush()
    # 3 and 6 did not get through and are in the 9; 15 was refused for good and is gone.
    assert values(sender) == [(1, 1), (2, 1), (5, 1), (9, 1), (5, 1), (6, 1)]
    assert drops == [("metrics", "export", 1)]


def test_a_delta_of_nothing_is_not_sent() -> None:
    source, sender = Source(), FakeSender()
    pusher = metric_pusher(sender, source, temporality="delta")
    source.value = 1
    assert pusher.force_flush()
    assert pusher.force_flush()
    assert len(sender.bodies) == 1
    source.kind = "updowncounter"
    assert pusher.force_flush()
    assert values(sender)[-1] == (1, 2)


def test_deltas_lost_to_a_shutdown_are_counted() -> None:
    source, drops, sender = Source(), Drops(), FakeSender(lambda place: RETRYABLE)
    source.value = 1
    pusher = metric_pusher(sender, source, drops, temporality="delta")
    pusher.start()
    pusher.shutdown()
    assert len(sender.bodies) == 1
    assert drops == [("metrics", "export", 1)]


def test_nothing_measured_is_not_sent() -> None:
    sender = FakeSender()
    assert metric_pusher(sender, lambda: Snapshot(1, (), ())).force_flush()
    assert sender.bodies == []


def test_a_snapshot_that_fails_is_told_and_taken_again(caplog: pytest.LogCaptureFixture) -> None:
    source, sender = Source(), FakeSender()
    source.value = 1
    faults = [RuntimeError("no snapshot")]

    def take() -> Snapshot:
        if faults:
            raise faults.pop()
        return source()

    pusher = metric_pusher(sender, take)
    assert not pusher.force_flush()
    assert "no snapshot" in caplog.text
    assert pusher.force_flush()


def test_a_flush_of_metrics_gives_up_in_time() -> None:
    answered = Event()
    source = Source()
    source.value = 1
    sender = FakeSender(lambda place: SUCCESS if answered.wait(20) else None)
    pusher = metric_pusher(sender, source, interval=0.01)
    pusher.start()
    sender.sent.get(timeout=10)
    began = monotonic()
    assert not pusher.force_flush(50)
    pusher.shutdown(0.05)
    assert monotonic() - began < 5
    assert not sender.closed.is_set()  # the thread that hangs has the connection
    answered.set()


@forks
@quiet
def test_metrics_of_a_child() -> None:
    source, sender = Source(), FakeSender()
    source.value = 1
    pusher = metric_pusher(sender, source)
    held, done = Event(), Event()

    def hold() -> None:
        with pusher._busy:
            held.set()
            done.wait(20)

    thread = Thread(target=hold)
    thread.start()
    held.wait(10)
    status = in_a_child(lambda: pusher.force_flush(2000) and len(sender.bodies) == 1)
    done.set()
    thread.join()
    assert status == 0
