"""Episodes of a route in data too short for a yesterday: slower, failing, or silent.

Works on the whole-number counts of a grid; see `apivitals.analytics.scan` for the tests behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from apivitals.analytics.buckets import percentile
from apivitals.analytics.grid import Bools, Floats
from apivitals.analytics.scan import ALPHA, MIN_CELLS, Stretch, scan_levels, scan_shares
from apivitals.analytics.series import HistogramCells

#: A slowdown is told from half as slow again, and from this many seconds more in the mean.
MIN_SLOWDOWN = 1.5
MIN_SECONDS = 0.02
_MIN_DEVIATIONS = 4.0
#: A failing stretch is told from twice the share elsewhere, two points more, and five failures.
MIN_FAILURES = 5
#: A drop of traffic is told from half of the requests elsewhere.
MIN_DROP = 0.5


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A stretch of cells in which requests took longer. Seconds; `requests` is how many there were in it."""

    stretch: Stretch
    mean: float
    mean_before: float
    p50: float
    p50_before: float
    p95: float
    p95_before: float
    requests: int

    @property
    def ratio(self) -> float:
        """How many times slower the mean got."""
        return self.mean / self.mean_before if self.mean_before > 0 else float("inf")


def scan_latency(cells: HistogramCells, *, alpha: float = ALPHA, longest: int | None = None) -> list[Slowdown]:
    """Stretches in which a route answered more slowly than in the rest of the cells.

    The share of requests above each bucket boundary is scanned (exact counts), and the logarithm of the mean
    (for what happens inside one bucket). Of 500 simulated steady routes (20 to 60 cells, 5 to 300 requests each,
    log-normal latencies) none was reported where cells differ by chance alone, at most 5 where their level scatters
    by 20 % (also with memory, and with 1 % of requests ten times slower), and 11 where it scatters by 40 %. Of 100
    routes that were three times slower for 30 s, 99 were found at two requests a second.

    Args:
        cells: the duration histogram on a grid.
        alpha: family-wise false-alarm rate.
        longest: most cells of a stretch, which is then compared with as many on either side of it: over many hours
            the time of day moves latency, too. None: half of the cells, and all others.
    """
    if (cells.counts > 0).sum() < MIN_CELLS:
        return []
    candidates: list[Stretch] = []
    totals = cells.buckets.sum(axis=1)
    above = totals[:, None] - np.cumsum(cells.buckets, axis=1)[:, :-1]
    shares = above.sum(axis=0) / max(1.0, float(totals.sum()))
    useful = [column for column in range(above.shape[1]) if 0.0 < shares[column] < 0.995]
    for column in useful:
        candidates += scan_shares(
            above[:, column],
            totals,
            alpha=alpha,
            min_difference=0.15,
            min_ratio=1.0,
            searches=len(useful),
            longest=longest,
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where((cells.counts >= 3) & (cells.sums > 0), np.log(cells.sums / cells.counts), np.nan)
    # The level needs no search among boundaries and its bar for size is high, so it may be less sure.
    candidates += scan_levels(
        means,
        alpha=10 * alpha,
        both=False,
        min_difference=float(np.log(MIN_SLOWDOWN)),
        min_deviations=3.0,
        longest=longest,
    )
    slow = [
        found
        for stretch in candidates
        if (found := slowdown_of(cells, stretch, _around(cells, stretch, longest))) is not None
        and np.log(found.ratio) >= _bar(means, stretch)
    ]
    slow.sort(key=lambda found: (found.stretch.p_value, found.stretch.outside - found.stretch.inside))
    chosen: list[Stretch] = []
    for found in slow:
        if all(found.stretch.last <= other.first or found.stretch.first >= other.last for other in chosen):
            chosen.append(found.stretch)
    joined = _joined(sorted(chosen, key=lambda stretch: stretch.first))
    every = np.zeros(len(cells.counts), bool)
    for stretch in joined:
        every[stretch.first : stretch.last] = True
    return [
        found for stretch in joined if (found := slowdown_of(cells, stretch, ~every & _around(cells, stretch, longest)))
    ]


def _around(cells: HistogramCells, stretch: Stretch, longest: int | None) -> Bools:
    """The cells to compare a stretch with."""
    near = np.ones(len(cells.counts), bool)
    if longest is not None:
        near[: max(0, stretch.first - longest)] = False
        near[stretch.last + longest :] = False
    near[stretch.first : stretch.last] = False
    return near


def _bar(log_means: Floats, stretch: Stretch) -> float:
    """How far above the rest a stretch must be, in log units, given how the cells scatter: a route that swings by
    half from cell to cell all the time had no incident because one cell is twice as slow."""
    rest = np.delete(log_means, np.s_[stretch.first : stretch.last])
    rest = rest[np.isfinite(rest)]
    if len(rest) < 4:
        return 0.0
    scatter = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    return float(_MIN_DEVIATIONS * scatter / (stretch.last - stretch.first) ** 0.25)


def slowdown_of(cells: HistogramCells, stretch: Stretch, outside: Bools | None = None) -> Slowdown | None:
    """The figures of a stretch, or None where it is not slow enough to be worth telling.

    Args:
        cells: the duration histogram on a grid.
        stretch: the cells in question.
        outside: the cells to compare with, shape (n,); None: all others.
    """
    inside = np.zeros(len(cells.counts), bool)
    inside[stretch.first : stretch.last] = True
    if outside is None:
        outside = ~inside
    n_in, n_out = float(cells.counts[inside].sum()), float(cells.counts[outside].sum())
    if n_in < MIN_FAILURES or n_out < MIN_FAILURES:
        return None
    mean, before = float(cells.sums[inside].sum()) / n_in, float(cells.sums[outside].sum()) / n_out
    if mean < MIN_SLOWDOWN * before or mean - before < MIN_SECONDS:
        return None
    p50, p50_before, p95, p95_before = (
        float(percentile(cells.buckets[part].sum(axis=0), cells.bounds, q))
        for q in (0.5, 0.95)
        for part in (inside, outside)
    )
    return Slowdown(stretch, mean, before, p50, p50_before, p95, p95_before, round(n_in))


def _joined(stretches: list[Stretch]) -> list[Stretch]:
    out: list[Stretch] = []
    for stretch in stretches:
        if out and stretch.first - out[-1].last <= 1:
            out[-1] = replace(out[-1], last=stretch.last, p_value=min(out[-1].p_value, stretch.p_value))
        else:
            out.append(stretch)
    return out


def scan_failures(failures: Floats, counts: Floats, *, alpha: float = ALPHA, most: int = 4) -> list[Stretch]:
    """Stretches in which a larger share of requests failed; `inside` and `outside` are shares.

    Args:
        failures, counts: whole numbers per cell, shape (n,).
        alpha: family-wise false-alarm rate.
        most: how many stretches to look for.
    """
    if (counts > 0).sum() < MIN_CELLS:
        return []
    joined = _joined(scan_shares(failures, counts, alpha=alpha, min_hits=MIN_FAILURES, most=most))
    usual = np.ones(len(counts), bool)
    for stretch in joined:
        usual[stretch.first : stretch.last] = False
    outside = _share(failures[usual], counts[usual])
    # A stretch of two that were found apart has the share of both, and none is usual for the other.
    return [
        replace(
            stretch,
            inside=_share(failures[stretch.first : stretch.last], counts[stretch.first : stretch.last]),
            outside=outside,
        )
        for stretch in joined
    ]


def _share(part: Floats, whole: Floats) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total else 0.0


def scan_drop(counts: Floats, seconds: Floats, *, alpha: float = ALPHA, longest: int | None = None) -> list[Stretch]:
    """Stretches with less than half of the traffic around them; `inside` and `outside` are requests per second.

    The load before the first and after the last requests is no drop, so a stretch has traffic on both sides.

    Args:
        counts: requests per cell, shape (n,).
        seconds: how much of each cell was observed, shape (n,).
        alpha, longest: as for `scan_latency`.
    """
    busy = np.flatnonzero(counts > 0)
    if len(busy) < MIN_CELLS:
        return []
    first, last = int(busy[0]) + 1, int(busy[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(seconds > 0, counts / seconds, np.nan)[first:last]
    # The square root of a count scatters alike at any level.
    found = scan_levels(-np.sqrt(rate), alpha=alpha, both=False, longest=longest)
    out = []
    for stretch in found:
        inside, outside = float(stretch.inside**2), float(stretch.outside**2)
        if longest is not None:
            beside = np.r_[rate[max(0, stretch.first - longest) : stretch.first], rate[stretch.last :][:longest]]
            outside = min(outside, float(np.nanmean(beside))) if np.isfinite(beside).any() else outside
        surrounded = stretch.first > 0 and stretch.last < len(rate)
        if surrounded and stretch.last - stretch.first >= 2 and inside <= MIN_DROP * outside:
            out.append(Stretch(stretch.first + first, stretch.last + first, inside, outside, stretch.p_value))
    return out
