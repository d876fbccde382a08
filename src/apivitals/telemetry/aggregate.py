"""Counts finished requests in plain numbers, without the SDK: what makes a request cheap to measure.

A request is recorded under its `Shape` (method, route, status and so on), which is also what its span has in
common with all others of that shape. Recording is a few additions under one lock; points, attributes and
cumulative buckets are made when somebody collects.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from time import time_ns

from apivitals import semconv
from apivitals.classify import ErrorClass
from apivitals.models import Measured, MeasuredExemplar, MeasuredPoint
from apivitals.semconv import Instrument
from apivitals.settings import Settings
from apivitals.tally import Tally
from apivitals.telemetry.rates import RateWindow, RouteRate

#: What a request is recorded under: method, scheme, protocol version, route, status, error type.
Key = tuple[str, str, str, "str | None", "int | None", "str | None"]

Attributes = tuple[tuple[str, "str | int | bool"], ...]

_OVERFLOW: Attributes = (("otel.metric.overflow", True),)


class Histogram:
    """An explicit-bucket histogram that is added to; bucket i holds values up to and including bounds[i]."""

    __slots__ = ("bounds", "counts", "exemplars", "max", "min", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.min = float("inf")
        self.max = float("-inf")
        self.exemplars: dict[int, MeasuredExemplar] | None = None

    def add(self, value: float) -> int:
        """Count one value; the bucket it fell into."""
        place = bisect_left(self.bounds, value)
        self.counts[place] += 1
        self.sum += value
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value
        return place


class Shape:
    """All requests of one method, scheme, protocol version, route, status and error type.

    Attributes:
        name: the span's name.
        attributes: what the spans and the points have in common, sorted by key.
        status_code: status of the span: 0 unset, 2 error.
        encoded: for the span encoder, which keeps here what it made of the above.
    """

    __slots__ = (
        "attributes",
        "duration",
        "encoded",
        "name",
        "request_size",
        "response_size",
        "route",
        "start_ns",
        "status_code",
        "status_description",
    )

    def __init__(self, key: Key, route: Route, bounds: Sequence[float], start_ns: int) -> None:
        method, scheme, version, template, status, error = key
        pairs = {
            semconv.ERROR_TYPE: error,
            semconv.HTTP_METHOD: method,
            semconv.HTTP_STATUS: status,
            semconv.HTTP_ROUTE: template,
            semconv.PROTOCOL_VERSION: version or None,
            semconv.URL_SCHEME: scheme,
        }
        self.attributes: Attributes = _sorted(pairs)
        spoken = "HTTP" if method == "_OTHER" else method
        self.name = f"{spoken} {template}" if template else spoken
        self.status_code = 2 if error is not None else 0
        self.status_description = ""
        self.encoded: bytes | None = None
        self.route = route
        self.start_ns = start_ns
        self.duration = Histogram(bounds)
        self.request_size: Histogram | None = None
        self.response_size: Histogram | None = None


class Route:
    """All requests of one method and route: what is not split by how they ended.

    Attributes:
        rate: requests and failures of the last seconds.
        background: by the type of what a background task raised.
    """

    __slots__ = (
        "attributes",
        "background",
        "errors",
        "first_byte",
        "latency_bounds",
        "rate",
        "start_ns",
        "work",
    )

    def __init__(self, method: str, template: str | None, settings: Settings, start_ns: int, rate: RouteRate) -> None:
        pairs = {semconv.HTTP_METHOD: method, semconv.HTTP_ROUTE: template}
        self.attributes: Attributes = _sorted(pairs)
        self.latency_bounds = settings.thresholds_for(template).latency_bounds
        self.start_ns = start_ns
        self.first_byte = Histogram(settings.duration_bounds(semconv.DURATION_BOUNDS))
        self.rate = rate
        self.errors: dict[ErrorClass, int] = {}
        self.background: dict[str | None, Histogram] = {}
        self.work: dict[Instrument, Histogram] = {}

    def add_work(self, instrument: Instrument, value: float) -> None:
        """Count one value of a tally's histogram, which is made when it is first needed."""
        histogram = self.work.get(instrument)
        if histogram is None:
            histogram = self.work[instrument] = Histogram(instrument.bounds or ())
        histogram.add(value)


class ServerAggregator:
    """Everything that was recorded about the requests of this process, cumulative since its start.

    Args:
        settings: decides the boundaries.
        limit: shapes beyond this number are counted as one, marked as overflow.
    """

    def __init__(self, settings: Settings, limit: int = 2000) -> None:
        self._settings = settings
        self._limit = limit
        self._bounds = settings.duration_bounds(semconv.DURATION_BOUNDS)
        self._shapes: dict[Key, Shape] = {}
        self._routes: dict[tuple[str, str | None], Route] = {}
        self._active: dict[tuple[str, str], set[int]] = {}
        self._overflow: Shape | None = None
        self._start_ns = time_ns()
        self._rates = RateWindow(settings.class_window_seconds)
        self.lock = self._rates.lock

    def follow(self, rates: RateWindow) -> None:
        """Count requests and failures per second there too; call it before the first request.

        From then on both have one lock, so that a request takes one.
        """
        if not self._shapes:
            self._rates = rates
            self.lock = rates.lock

    def shape(self, key: Key) -> Shape:
        """The shape of a key, made when it is first seen."""
        found = self._shapes.get(key)
        return found if found is not None else self._new_shape(key)

    def active(self, method: str, scheme: str) -> set[int]:
        """The ids of the spans of requests that are being served; a set, which is added to without a lock."""
        key = (method, scheme)
        found = self._active.get(key)
        if found is None:
            with self.lock:
                found = self._active.setdefault(key, set())
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
        """Count one finished request.

        Args:
            shape: what it was.
            seconds: to the last body byte.
            first_byte: seconds to the start of the response, None when there was none.
            ended: its error class.
            request_bytes, response_bytes: body sizes, negative where they are not known.
            done: what it did.
            exemplar: end in nanoseconds since the epoch, trace id and span id of a sampled request.
            failed: it counts against the error rate.
        """
        route = shape.route
        with self.lock:
            route.rate.add(failed)
            place = shape.duration.add(seconds)
            if exemplar is not None:
                kept = shape.duration.exemplars
                if kept is None:
                    kept = shape.duration.exemplars = {}
                kept[place] = (*exemplar, seconds)
            if first_byte is not None:
                route.first_byte.add(first_byte)
            if response_bytes >= 0:
                if shape.response_size is None:
                    shape.response_size = Histogram(semconv.SIZE_BOUNDS)
                shape.response_size.add(response_bytes)
            if request_bytes >= 0:
                if shape.request_size is None:
                    shape.request_size = Histogram(semconv.SIZE_BOUNDS)
                shape.request_size.add(request_bytes)
            if ended != "none":
                route.errors[ended] = route.errors.get(ended, 0) + 1
            if done.queries or done.cache_hits or done.cache_misses or done.outbound_calls:
                for instrument, value in work_of(done):
                    route.add_work(instrument, value)

    def record_background(self, method: str, template: str | None, seconds: float, error: str | None) -> None:
        """Count the background tasks of one request.

        Args:
            method, template: of the request.
            seconds: from the last byte of the response until the application was done.
            error: the type of what a task raised, None when all went well.
        """
        with self.lock:
            route = self._routes.get((method, template))
            if route is not None:
                histogram = route.background.get(error)
                if histogram is None:
                    bounds = semconv.BACKGROUND_DURATION.bounds or ()
                    histogram = route.background[error] = Histogram(bounds)
                histogram.add(seconds)

    def collect(self) -> list[Measured]:
        """Everything recorded so far, one entry an instrument; those without a point are left out."""
        points: dict[Instrument, list[MeasuredPoint]] = {}
        with self.lock:
            shapes = [*self._shapes.values(), *([self._overflow] if self._overflow else [])]
            routes = list(self._routes.values())
        for shape in dict.fromkeys(shapes):
            # The lock is held for one shape at a time, so that a collection never holds up a request for long.
            with self.lock:
                for instrument, point in _shape_points(shape):
                    points.setdefault(instrument, []).append(point)
        for route in routes:
            with self.lock:
                for instrument, point in _route_points(route):
                    points.setdefault(instrument, []).append(point)
        active = [
            MeasuredPoint(((semconv.HTTP_METHOD, method), (semconv.URL_SCHEME, scheme)), self._start_ns, len(spans))
            for (method, scheme), spans in list(self._active.items())
        ]
        if active:
            points[semconv.ACTIVE_REQUESTS] = active
        return [Measured(instrument, tuple(found)) for instrument, found in points.items()]

    def _new_shape(self, key: Key) -> Shape:
        method, _, _, template, _, _ = key
        with self.lock:
            if key in self._shapes:
                return self._shapes[key]
            now = time_ns()
            route = self._routes.get((method, template))
            if len(self._shapes) >= self._limit:
                return self._overflow_shape(now)
            if route is None:
                rate = self._rates.of(method, template)
                route = self._routes[method, template] = Route(method, template, self._settings, now, rate)
            shape = self._shapes[key] = Shape(key, route, self._bounds, now)
            return shape

    def _overflow_shape(self, now: int) -> Shape:
        if self._overflow is None:
            route = Route("_OTHER", None, self._settings, now, self._rates.of("_OTHER", None))
            self._overflow = Shape(("_OTHER", "", "", None, None, None), route, self._bounds, now)
            self._overflow.attributes = route.attributes = _OVERFLOW
            self._routes["otel.metric.overflow", None] = route
        return self._overflow


def work_of(done: Tally) -> Iterator[tuple[Instrument, float]]:
    """The values that a tally has for its histograms; kinds of work that the request did not do are left out."""
    if done.queries:
        yield semconv.REQUEST_QUERIES, done.queries
        yield semconv.REQUEST_QUERY_TIME, done.query_seconds
    if done.cache_hits or done.cache_misses:
        yield semconv.REQUEST_CACHE_HITS, done.cache_hits
        yield semconv.REQUEST_CACHE_MISSES, done.cache_misses
        yield semconv.REQUEST_CACHE_TIME, done.cache_seconds
    if done.outbound_calls:
        yield semconv.REQUEST_OUTBOUND, done.outbound_calls
        yield semconv.REQUEST_OUTBOUND_TIME, done.outbound_seconds


def _sorted(pairs: Mapping[str, str | int | None]) -> Attributes:
    return tuple((name, value) for name, value in sorted(pairs.items()) if value is not None)


def _shape_points(shape: Shape) -> Iterator[tuple[Instrument, MeasuredPoint]]:
    yield semconv.REQUEST_DURATION, _point(shape.attributes, shape.start_ns, shape.duration)
    if shape.request_size is not None:
        yield semconv.REQUEST_BODY_SIZE, _point(shape.attributes, shape.start_ns, shape.request_size)
    if shape.response_size is not None:
        yield semconv.RESPONSE_BODY_SIZE, _point(shape.attributes, shape.start_ns, shape.response_size)


def _route_points(route: Route) -> Iterator[tuple[Instrument, MeasuredPoint]]:
    if any(route.first_byte.counts):
        yield semconv.TIME_TO_FIRST_BYTE, _point(route.attributes, route.start_ns, route.first_byte)
    for instrument, histogram in route.work.items():
        yield instrument, _point(route.attributes, route.start_ns, histogram)
    for error, histogram in route.background.items():
        failed: Attributes = ((semconv.ERROR_TYPE, error),) if error else ()
        yield semconv.BACKGROUND_DURATION, _point((*failed, *route.attributes), route.start_ns, histogram)
    for ended, count in route.errors.items():
        attributes = tuple(sorted((*route.attributes, (semconv.ERROR_CLASS, ended))))
        yield semconv.ERRORS, MeasuredPoint(attributes, route.start_ns, count)


def _point(attributes: Attributes, start_ns: int, histogram: Histogram) -> MeasuredPoint:
    return MeasuredPoint(
        attributes,
        start_ns,
        histogram.sum,
        tuple(histogram.bounds),
        tuple(histogram.counts),
        histogram.min,
        histogram.max,
        tuple((histogram.exemplars or {}).values()),
    )
