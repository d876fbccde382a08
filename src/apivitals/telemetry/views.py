"""The SDK views: histogram boundaries cut from the thresholds, and the attributes a metric may be split by."""

from __future__ import annotations

from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from apivitals import semconv
from apivitals.settings import Settings


def views(settings: Settings) -> list[View]:
    """Views of the server instruments.

    The boundaries of the duration histogram are the conventions' united with every threshold, so that the
    share of each latency class is an exact difference of two buckets. The attribute filter is the guard of
    cardinality: what an instrumentation adds beyond it (an address, a raw path) never becomes a label.
    """
    bounds = {
        semconv.REQUEST_DURATION: settings.duration_bounds(semconv.DURATION_BOUNDS),
        semconv.TIME_TO_FIRST_BYTE: settings.duration_bounds(semconv.DURATION_BOUNDS),
        semconv.REQUEST_BODY_SIZE: semconv.SIZE_BOUNDS,
        semconv.RESPONSE_BODY_SIZE: semconv.SIZE_BOUNDS,
    }
    histograms = [
        View(
            instrument_name=instrument.name,
            attribute_keys=set(instrument.attributes),
            aggregation=ExplicitBucketHistogramAggregation(boundaries),
        )
        for instrument, boundaries in bounds.items()
    ]
    active = semconv.ACTIVE_REQUESTS
    return [*histograms, View(instrument_name=active.name, attribute_keys=set(active.attributes))]
