"""What a measure is given, what it gives back, and how its subjects take turns.

Subjects take turns within a round, A B C A B C …, so that a machine that slows down slows all of them; see `figures`
for what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.configurations import Subject
from tests.benchmarks.processes import BenchError, Place, Worker

Gathered = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Task:
    """What a measure is asked to do.

    Attributes:
        subjects: who is measured, in this order.
        size: makes what is done in a round larger or smaller.
        rate: requests per second of the paced load; None takes it from the bare service.
        say: is told about everything that happens on the way.
    """

    place: Place
    subjects: Sequence[Subject]
    rounds: int
    size: float
    rate: float | None
    say: Callable[[str], None]

    def scaled(self, count: int) -> int:
        """A number of requests, made larger or smaller."""
        return max(1, round(count * self.size))


class Record:
    """Values by measure and subject, one per round; a subject that failed in one round has none at all."""

    def __init__(self, task: Task, *measures: str) -> None:
        self._task = task
        self._values: Gathered = {measure: {} for measure in measures}
        self._out: set[str] = set()

    def add(self, measure: str, measured: Subject, value: float) -> None:
        """Keep one value."""
        self._values[measure].setdefault(measured.key, []).append(value)

    def leave_out(self, measured: Subject, reason: object) -> None:
        """Forget a subject: with a round less than the others it could not be compared with them."""
        self._task.say(f"{measured.key} is left out: {reason}")
        self._out.add(measured.key)

    def left(self) -> list[Subject]:
        """The subjects that have not failed."""
        return [measured for measured in self._task.subjects if measured.key not in self._out]

    def gathered(self) -> Gathered:
        """The values of those that did not fail."""
        return {
            measure: {key: values for key, values in by_subject.items() if key not in self._out}
            for measure, by_subject in self._values.items()
        }


def by_turns(task: Task, record: Record, name: str, measure: Callable[[Subject, int], None], first: int = 0) -> None:
    """Measure each subject in each round; rounds are counted from `first`."""
    for number in range(first, task.rounds):
        task.say(f"{name}: round {number + 1} of {task.rounds}")
        for measured in record.left():
            try:
                measure(measured, number)
            except BenchError as error:
                record.leave_out(measured, error)


def check_spans(measured: Subject, spans: int, requests: int, least: float = 1.0) -> None:
    """See that telemetry ran: what is not sent costs nothing, and somebody else's spans are not ours.

    Raises:
        BenchError: a configuration that exports every span sent less than that share of them, or ours sent more.
    """
    configuration = measured.configuration
    if not configuration.exports_every_span:
        return
    # Through a server there are a few requests that nobody counted.
    most = 1.0 if least == 1.0 else 1.05
    if spans < least * requests or (configuration.mode and spans > most * requests):
        raise BenchError(f"it sent {spans} spans for {requests} requests")


def started(task: Task, record: Record, stack: ExitStack, requests: int = 50) -> list[Worker]:
    """A worker of each subject, all of them at once, that has served its first requests and sent their spans."""
    workers = [stack.enter_context(Worker(task.place, measured)) for measured in record.left()]
    ready = []
    for worker in workers:
        try:
            worker.ready()
            task.place.received()
            worker.warm_up(requests)
            check_spans(worker.subject, task.place.received()["spans"], requests)
            ready.append(worker)
        except BenchError as error:
            record.leave_out(worker.subject, error)
    return ready
