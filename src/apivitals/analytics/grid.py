"""A regular grid of time cells, and how what was counted between two exports is laid out on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Steps that read well on an axis, in seconds; a long window takes the first that keeps it below MAX_CELLS.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
MAX_CELLS = 2_000


@dataclass(frozen=True, slots=True)
class Grid:
    """`size` cells of `step` seconds from `start` (seconds since the epoch)."""

    start: float
    step: float
    size: int

    @property
    def edges(self) -> Floats:
        """The `size + 1` cell edges, in seconds since the epoch."""
        return self.start + self.step * np.arange(self.size + 1, dtype=np.float64)

    @property
    def times(self) -> Floats:
        """The starts of the cells."""
        return self.edges[:-1]

    @property
    def end(self) -> float:
        """The end of the last cell."""
        return self.start + self.step * self.size


def choose_step(interval: float, seconds: float, max_cells: int = MAX_CELLS) -> float:
    """Cell length for a window: the export interval, or a round number above it if that gives too many cells.

    Args:
        interval: typical seconds between two exports.
        seconds: length of the window.
        max_cells: how many cells there may be.
    """
    # 5.003 s between exports is an interval of 5 s: a rounded step keeps one export in one cell.
    near = [step for step in _STEPS if abs(step - interval) <= 0.1 * step]
    step = float(near[0]) if near else float(np.ceil(interval)) if interval > 1 else 1.0
    if seconds / step <= max_cells:
        return step
    return next((float(s) for s in _STEPS if s >= step and seconds / s <= max_cells), float(_STEPS[-1]))


def make_grid(start: float, end: float, step: float, exports: Floats) -> Grid:
    """A grid over [start, end] whose cells end when exports happen, as far as these keep a rhythm.

    Args:
        start, end: seconds since the epoch.
        step: cell length in seconds.
        exports: times of exports, shape (n,); their common phase decides where the cells begin.
    """
    phase = 0.0
    if len(exports):
        angle = np.angle(np.exp(2j * np.pi * (exports % step) / step).mean())
        phase = float(angle / (2 * np.pi) * step) % step
    first = np.floor((start - phase) / step + 1e-6) * step + phase
    size = max(1, int(np.ceil((end - first) / step - 1e-6)))
    return Grid(float(first), step, size)


def spread(edges: Floats, begins: Floats, ends: Floats, amounts: Floats, *, whole: bool = False) -> Floats:
    """Distribute what accrued in intervals over grid cells, in proportion to the overlap.

    The cumulative curve is read at the cell edges, so the sum over the cells is exactly the sum of the
    intervals that lie within them. With `whole` the curve is rounded first: counts stay whole numbers, and
    no request is lost or made.

    Args:
        edges: cell edges, shape (cells + 1,).
        begins, ends: the intervals, shape (n,), in increasing order and without overlap.
        amounts: what accrued in each, shape (n,) or (n, k).
        whole: the amounts are counts.

    Returns:
        Amount per cell, shape (cells,) or (cells, k).
    """
    flat = amounts.reshape(len(amounts), int(np.prod(amounts.shape[1:])))
    curve = _curve(edges, begins, ends, flat, whole=whole)
    return np.diff(curve, axis=0).reshape((len(edges) - 1, *amounts.shape[1:]))


def _curve(edges: Floats, begins: Floats, ends: Floats, amounts: Floats, *, whole: bool) -> Floats:
    out = np.zeros((len(edges), amounts.shape[1]))
    if not len(begins):
        return out
    knots = np.empty(2 * len(begins))
    # An interval of no length still holds its amount: a step at its end.
    knots[0::2] = np.minimum(begins, ends - 1e-6)
    knots[1::2] = ends
    knots = np.maximum.accumulate(knots)
    total = np.cumsum(amounts, axis=0)
    before = total - amounts
    for column in range(amounts.shape[1]):
        heights = np.empty(2 * len(begins))
        heights[0::2] = before[:, column]
        heights[1::2] = total[:, column]
        out[:, column] = np.interp(edges, knots, heights)
    return np.round(out) if whole else out


def spread_histogram(
    edges: Floats, begins: Floats, ends: Floats, buckets: Floats, sums: Floats
) -> tuple[Floats, Floats]:
    """Distribute histogram increments over cells: bucket counts as whole numbers, the sum following the counts.

    The sum goes where the counts went and not where the time went: a request that falls into one of two cells
    takes its duration along, so that a cell's mean stays between the means of the intervals it was cut from.

    Args:
        edges: cell edges, shape (cells + 1,).
        begins, ends: the intervals, shape (n,).
        buckets: increments per bucket, shape (n, k).
        sums: increments of the sum, shape (n,).

    Returns:
        Bucket counts, shape (cells, k), and sums, shape (cells,).
    """
    curve = _curve(edges, begins, ends, buckets, whole=True)
    counts = buckets.sum(axis=1)
    filled = counts > 0
    if not filled.any():
        return np.diff(curve, axis=0), np.zeros(len(edges) - 1)
    knots = np.concatenate([[0.0], np.cumsum(counts[filled])])
    heights = np.concatenate([[0.0], np.cumsum(sums[filled])])
    return np.diff(curve, axis=0), np.diff(np.interp(curve.sum(axis=1), knots, heights))


def covered(edges: Floats, begins: Floats, ends: Floats) -> Floats:
    """Seconds of each cell that lie in the union of some intervals, shape (cells,)."""
    if not len(begins):
        return np.zeros(len(edges) - 1)
    order = np.argsort(begins, kind="stable")
    first, last = begins[order], np.maximum.accumulate(ends[order])
    first = np.maximum(first, np.concatenate([[-np.inf], last[:-1]]))
    keep = last > first
    return spread(edges, first[keep], last[keep], (last - first)[keep])
