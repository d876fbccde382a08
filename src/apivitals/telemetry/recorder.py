"""Records finished requests into the instruments of a meter provider that an application brought along."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import Meter, UpDownCounter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from apivitals import semconv
from apivitals.classify import ErrorClass
from apivitals.models import Measured
from apivitals.semconv import Instrument
from apivitals.settings import Settings
from apivitals.tally import Tally
from apivitals.telemetry.aggregate import ServerAggregator, Shape, work_of


class InstrumentRecorder(ServerAggregator):
    """Takes the place of the aggregator; the numbers go to instruments of the SDK, and none are kept here."""

    def __init__(self, settings: Settings, meter: Meter) -> None:
        super().__init__(settings)
        bounds = settings.duration_bounds(semconv.DURATION_BOUNDS)
        active = semconv.ACTIVE_REQUESTS
        self._active_counter = meter.create_up_down_counter(active.name, active.unit, active.description)
        errors = semconv.ERRORS
        self._errors = meter.create_counter(errors.name, errors.unit, errors.description)
        self._histograms = {
            instrument: _histogram(meter, instrument, bounds if instrument.bounds == semconv.DURATION_BOUNDS else None)
            for instrument in (
                semconv.REQUEST_DURATION,
                semconv.REQUEST_BODY_SIZE,
                semconv.RESPONSE_BODY_SIZE,
                semconv.TIME_TO_FIRST_BYTE,
                semconv.BACKGROUND_DURATION,
                semconv.REQUEST_QUERIES,
                semconv.REQUEST_QUERY_TIME,
                semconv.REQUEST_CACHE_HITS,
                semconv.REQUEST_CACHE_MISSES,
                semconv.REQUEST_CACHE_TIME,
                semconv.REQUEST_OUTBOUND,
                semconv.REQUEST_OUTBOUND_TIME,
            )
        }

    def active(self, method: str, scheme: str) -> set[int]:
        """As the aggregator has it; what is added is counted."""
        key = (method, scheme)
        found = self._active.get(key)
        if found is None:
            counted = _Counted(self._active_counter, {semconv.HTTP_METHOD: method, semconv.URL_SCHEME: scheme})
            found = self._active.setdefault(key, counted)
        return found

    def record(
        self,
        shape: Shape,
        seconds: float,
        first_byte: float | None,
        ended: ErrorClass,
        request_bytes: int,
        response_bytes: int,
        done: Tally,
        exemplar: tuple[int, int, int] | None,
        failed: bool,
    ) -> None:
        """Record one finished request; arguments as the aggregator has them."""
        with self.lock:
            shape.route.rate.add(failed)
        attributes: dict[str, Any] = dict(shape.attributes)
        context = _span_context(exemplar)
        self._histograms[semconv.REQUEST_DURATION].record(seconds, attributes, context)
        if request_bytes >= 0:
            self._histograms[semconv.REQUEST_BODY_SIZE].record(request_bytes, attributes, context)
        if response_bytes >= 0:
            self._histograms[semconv.RESPONSE_BODY_SIZE].record(response_bytes, attributes, context)
        of_route: dict[str, Any] = dict(shape.route.attributes)
        if first_byte is not None:
            self._histograms[semconv.TIME_TO_FIRST_BYTE].record(first_byte, of_route, context)
        if ended != "none":
            self._errors.add(1, {**of_route, semconv.ERROR_CLASS: ended}, context)
        for instrument, value in work_of(done):
            self._histograms[instrument].record(value, of_route, context)

    def record_background(self, method: str, template: str | None, seconds: float, error: str | None) -> None:
        """Record the background tasks of one request; arguments as the aggregator has them."""
        pairs = {semconv.HTTP_METHOD: method, semconv.HTTP_ROUTE: template, semconv.ERROR_TYPE: error}
        attributes = {name: value for name, value in pairs.items() if value is not None}
        self._histograms[semconv.BACKGROUND_DURATION].record(seconds, attributes)

    def collect(self) -> list[Measured]:
        """Nothing: the meter provider has its own readers."""
        return []


class _Counted(set[int]):
    """A set that counts its members in an up-down counter."""

    def __init__(self, counter: UpDownCounter, attributes: dict[str, str]) -> None:
        super().__init__()
        self._counter = counter
        self._attributes = attributes

    def add(self, element: int) -> None:
        self._counter.add(1, self._attributes)

    def discard(self, element: object) -> None:
        self._counter.add(-1, self._attributes)


def _span_context(exemplar: tuple[int, int, int] | None) -> Context:
    """A context with the request's span, from which the SDK takes an exemplar."""
    if exemplar is None:
        return Context()
    _, trace_id, span_id = exemplar
    span = NonRecordingSpan(SpanContext(trace_id, span_id, False, TraceFlags(TraceFlags.SAMPLED)))
    return set_span_in_context(span, Context())


def _histogram(meter: Meter, instrument: Instrument, bounds: tuple[float, ...] | None) -> Any:
    return meter.create_histogram(
        instrument.name,
        instrument.unit,
        instrument.description,
        explicit_bucket_boundaries_advisory=bounds or instrument.bounds,
    )
