"""Histogram buckets: exponential to explicit, different boundaries to common ones, percentiles and shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from apivitals.analytics.grid import Floats

Bounds = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ExponentialBuckets:
    """One point of an exponential histogram; bucket i of `counts` covers (b^(offset+i), b^(offset+i+1)], where
    b = 2^(2^-scale). Negative values do not occur in durations and sizes and are counted with the zeros."""

    scale: int
    zeros: int
    offset: int
    counts: tuple[int, ...]


def explicit(points: Sequence[ExponentialBuckets]) -> tuple[Bounds, Floats]:
    """Exponential points of one stream on common explicit boundaries, without loss beyond the coarsest scale.

    Merging neighbours is exact when the scale falls by one, so all points go to the lowest scale among them.

    Returns:
        The boundaries, and counts of shape (n, len(boundaries) + 1).
    """
    filled = [point for point in points if any(point.counts)]
    if not filled:
        return (0.0,), np.array([[point.zeros, 0.0] for point in points], dtype=np.float64).reshape(-1, 2)
    scale = min(point.scale for point in filled)
    lowest = min(point.offset >> (point.scale - scale) for point in filled)
    highest = max((point.offset + len(point.counts) - 1) >> (point.scale - scale) for point in filled)
    # 320 buckets is twice what an SDK keeps; beyond that the coarser scale is as good.
    while highest - lowest > 320:
        scale, lowest, highest = scale - 1, lowest >> 1, highest >> 1
    counts = np.zeros((len(points), highest - lowest + 3))
    for row, point in enumerate(points):
        counts[row, 0] = point.zeros
        for index, count in enumerate(point.counts):
            if count:
                counts[row, ((point.offset + index) >> (point.scale - scale)) - lowest + 1] += count
    exponents = np.clip(np.arange(lowest, highest + 2) * 2.0**-scale, -1000.0, 1000.0)
    return tuple((2.0**exponents).tolist()), counts


def common_bounds(every: Iterable[Bounds]) -> Bounds:
    """The boundaries that all histograms share: counts between them are exact. Histograms without any are ignored."""
    shared: set[float] | None = None
    for bounds in every:
        if bounds:
            shared = set(bounds) if shared is None else shared & set(bounds)
    return tuple(sorted(shared or ()))


def merge(counts: Floats, bounds: Bounds, target: Bounds) -> Floats:
    """Counts on boundaries that are a subset of the histogram's own.

    Args:
        counts: shape (n, len(bounds) + 1).
        bounds: the histogram's boundaries.
        target: some of them.

    Returns:
        Counts of shape (n, len(target) + 1).
    """
    if target == bounds:
        return counts
    cumulative = np.cumsum(counts, axis=1)
    index = [bounds.index(bound) for bound in target]
    edges = np.concatenate([np.zeros((len(counts), 1)), cumulative[:, index], cumulative[:, -1:]], axis=1)
    return np.diff(edges, axis=1)


def percentile(counts: Floats, bounds: Bounds, q: float) -> Floats:
    """Percentiles by linear interpolation inside the bucket that holds them, as Prometheus does.

    The error is at most the width of that bucket; above the last boundary the answer is that boundary, which
    is then a lower bound.

    Args:
        counts: shape (..., len(bounds) + 1).
        bounds: increasing upper boundaries; the first bucket is taken to begin at 0.
        q: 0 to 1.

    Returns:
        Shape (...), NaN where there is nothing or there are no boundaries.
    """
    flat = np.asarray(counts, dtype=np.float64).reshape(-1, counts.shape[-1])
    out = np.full(len(flat), np.nan)
    if bounds and len(flat):
        cumulative = np.cumsum(flat, axis=1)
        total = cumulative[:, -1]
        rank = q * total
        index = np.minimum((cumulative < rank[:, None]).sum(axis=1), len(bounds))
        # Rank 0 falls before the first filled bucket.
        index = np.maximum(index, (cumulative <= 0).sum(axis=1).clip(max=len(bounds)))
        uppers = np.append(np.asarray(bounds), bounds[-1])
        lowers = np.append(min(0.0, bounds[0]), np.asarray(bounds))
        rows = np.arange(len(flat))
        inside = flat[rows, index]
        before = cumulative[rows, index] - inside
        share = np.divide(rank - before, inside, out=np.zeros(len(flat)), where=inside > 0).clip(0.0, 1.0)
        value = lowers[index] + (uppers[index] - lowers[index]) * share
        out = np.where(total > 0, value, np.nan)
    return out.reshape(counts.shape[:-1])


def count_below(counts: Floats, bounds: Bounds, limit: float) -> tuple[float, bool]:
    """How many values are at most `limit`, and whether that is exact (a boundary) or interpolated.

    Args:
        counts: shape (len(bounds) + 1,).
    """
    cumulative = np.cumsum(counts)
    for index, bound in enumerate(bounds):
        if abs(bound - limit) <= 1e-9 * max(1.0, abs(limit)):
            return float(cumulative[index]), True
    if not bounds:
        return float("nan"), False
    index = int(np.searchsorted(np.asarray(bounds), limit))
    if index == len(bounds):
        return float(cumulative[-2] if len(cumulative) > 1 else 0.0), False
    lower = bounds[index - 1] if index else min(0.0, bounds[0])
    before = float(cumulative[index - 1]) if index else 0.0
    return before + float(counts[index]) * (limit - lower) / (bounds[index] - lower), False
