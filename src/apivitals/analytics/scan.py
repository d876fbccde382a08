"""Episodes in short series: a stretch of cells that differs from the rest by more than chance and by a lot.

For data of minutes or hours there is no yesterday to compare with; what there is are counts. Every stretch of
at most half the cells is compared with the cells outside it, the level is divided by the number of stretches
that were tried (and of bucket boundaries), and scatter beyond chance that the outside cells show raises the bar.
Sources: scan statistics, Kulldorff, Commun. Statist. 26 (1997); exact test of two shares, Fisher (1935);
quasi-binomial dispersion, McCullagh and Nelder: Generalized Linear Models, 4.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, xlogy
from scipy.stats import f as fisher_snedecor
from scipy.stats import hypergeom
from scipy.stats import t as student

from apivitals.analytics.grid import Bools, Floats

Indices = npt.NDArray[np.int64]

#: Fewer cells than this have no outside to compare with.
MIN_CELLS = 10
#: Family-wise level of one series: a false episode in a steady series at most this often.
ALPHA = 1e-4
_MOST_EPISODES = 4


@dataclass(frozen=True, slots=True)
class Stretch:
    """Cells `first` up to, not including, `last`; what was seen inside and outside of them, and how likely that
    is by chance after paying for the search."""

    first: int
    last: int
    inside: float
    outside: float
    p_value: float


def scan_shares(
    hits: Floats,
    totals: Floats,
    *,
    alpha: float = ALPHA,
    min_difference: float = 0.02,
    min_ratio: float = 2.0,
    min_hits: int = 5,
    searches: int = 1,
    longest: int | None = None,
    most: int = _MOST_EPISODES,
) -> list[Stretch]:
    """Stretches in which a share (failed ÷ all, slow ÷ all) is higher than elsewhere.

    Of 1,500 simulated steady series (24 to 60 cells, 5 to 300 requests each, shares 0 to 30 %, a third of them with
    a share that itself scatters by 60 % from cell to cell) 2 were reported.

    Args:
        hits: events per cell, whole numbers, shape (n,).
        totals: requests per cell, shape (n,).
        alpha: false-alarm rate of the whole search.
        min_difference, min_ratio: smallest effect that is worth telling: absolute, and against the outside.
        min_hits: fewest events that a stretch may rest on.
        searches: how many such searches the caller makes and picks the best of.
        longest: most cells that a stretch may have; None: half of all.
        most: how many stretches to look for.

    Returns:
        Stretches in time order; `inside` and `outside` are shares.
    """
    hits, totals = np.rint(hits), np.rint(totals)

    def search(open_cells: Bools) -> Stretch | None:
        return _best_share(hits, totals, open_cells, searches, longest)

    def large(found: Stretch) -> bool:
        events = hits[found.first : found.last].sum()
        return bool(
            events >= min_hits
            and found.inside - found.outside >= min_difference
            and found.inside >= min_ratio * found.outside
        )

    return _repeat(search, large, totals > 0, alpha, most)


def scan_levels(
    values: Floats,
    *,
    weights: Floats | None = None,
    alpha: float = ALPHA,
    min_difference: float = 0.0,
    min_deviations: float = 4.0,
    both: bool = True,
    longest: int | None = None,
) -> list[Stretch]:
    """Stretches in which a level is higher (or lower) than elsewhere, against robust scatter and its memory.

    Of 1,500 simulated steady series (24 to 60 values, autocorrelation 0 to 0.8, half of them with heavy tails) 14 were
    reported: the memory of so few values is hardly known.

    Args:
        values: shape (n,), NaN where missing.
        weights: how much each value counts in the means, shape (n,).
        alpha: false-alarm rate of the whole search.
        min_difference: smallest difference of the means, in the values' unit.
        min_deviations: smallest difference in robust standard deviations of a single value.
        both: look for lower levels too.
        longest: most cells that a stretch may have; None: half of all.

    Returns:
        Stretches in time order; `inside` and `outside` are means.
    """
    values = np.asarray(values, dtype=np.float64)
    weight = np.where(np.isfinite(values), 1.0 if weights is None else weights, 0.0)
    scatter = _scatter(values[np.isfinite(values)])

    def search(open_cells: Bools) -> Stretch | None:
        return _best_level(values, weight, open_cells, both, longest)

    def large(found: Stretch) -> bool:
        difference = abs(found.inside - found.outside)
        return bool(difference >= min_difference and difference >= min_deviations * scatter)

    return _repeat(search, large, weight > 0, alpha, _MOST_EPISODES)


def _repeat(
    search: Callable[[Bools], Stretch | None], large: Callable[[Stretch], bool], usable: Bools, alpha: float, most: int
) -> list[Stretch]:
    """Take the best stretch out and search again, until nothing is left that counts."""
    open_cells = usable.copy()
    half = usable.sum() / 2
    found: list[Stretch] = []
    for _ in range(most):
        if open_cells.sum() < max(MIN_CELLS - 2, half):
            break
        best = search(open_cells)
        if best is None or best.p_value > alpha:
            break
        open_cells[best.first : best.last] = False
        if large(best):
            found.append(best)
    return sorted(found, key=lambda stretch: stretch.first)


def _lengths(n: int, most: int | None) -> list[int]:
    """Lengths to try: each up to 30 cells, then in steps of a quarter; the edges are refined afterwards."""
    longest = max(1, min(n // 2, most or n))
    lengths = list(range(1, min(longest, 30) + 1))
    while lengths[-1] < longest:
        lengths.append(min(longest, ceil(lengths[-1] * 1.25)))
    return lengths


def _windows(n: int, most: int | None) -> tuple[Indices, Indices]:
    lengths = _lengths(n, most)
    first = [np.arange(n - length + 1) for length in lengths]
    last = [start + length for start, length in zip(first, lengths, strict=True)]
    return np.concatenate(first), np.concatenate(last)


def _sums(values: Floats, first: Indices, last: Indices) -> Floats:
    total = np.concatenate([[0.0], np.cumsum(values)])
    out: Floats = total[last] - total[first]
    return out


def _gain(k: Floats, n: Floats, all_k: float, all_n: float) -> Floats:
    """Twice the log-likelihood ratio of two shares against one, where the inside is higher; else 0."""
    rest_k, rest_n = all_k - k, all_n - n
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q, common = k / n, rest_k / rest_n, all_k / all_n
        gain = (
            xlogy(k, p)
            + xlogy(n - k, 1 - p)
            + xlogy(rest_k, q)
            + xlogy(rest_n - rest_k, 1 - q)
            - xlogy(all_k, common)
            - xlogy(all_n - all_k, 1 - common)
        )
        out: Floats = np.where((n > 0) & (rest_n > 0) & (p > q), 2 * gain, 0.0)
    return np.nan_to_num(out)


def _best_share(hits: Floats, totals: Floats, open_cells: Bools, searches: int, longest: int | None) -> Stretch | None:
    # Cells that are taken out already are as if they had not been: stretches pass over them.
    index = np.flatnonzero(open_cells)
    k, n = hits[index], totals[index]
    all_k, all_n = float(k.sum()), float(n.sum())
    if len(index) < MIN_CELLS - 2 or all_k <= 0 or all_k >= all_n:
        return None
    first, last = _windows(len(index), longest)
    gain = _gain(_sums(k, first, last), _sums(n, first, last), all_k, all_n)
    a, b = _refined(
        int(first[gain.argmax()]),
        int(last[gain.argmax()]),
        len(index),
        max(1, min(len(index) // 2, longest or len(index))),
        lambda i, j: float(_gain(k[i:j].sum(keepdims=True), n[i:j].sum(keepdims=True), all_k, all_n)[0]),
    )
    inside_k, inside_n = float(k[a:b].sum()), float(n[a:b].sum())
    outside = np.r_[0:a, b : len(index)]
    rest_k, rest_n = float(k[outside].sum()), float(n[outside].sum())
    best = float(_gain(k[a:b].sum(keepdims=True), n[a:b].sum(keepdims=True), all_k, all_n)[0])
    if best <= 0 or len(outside) < 4:
        return None
    tail = float(hypergeom.sf(inside_k - 1, all_n, all_k, inside_n))
    tail = max(tail, _point(inside_k, inside_n, all_k, all_n)) if tail < 1e-290 else tail
    dispersion = _dispersion(k[outside], n[outside], rest_k / rest_n)
    if dispersion > 1:
        tail = max(tail, float(fisher_snedecor.sf(best / dispersion, 1, max(1.0, 0.6 * len(outside)))) / 2)
    p_value = min(1.0, tail * len(first) * searches)
    return Stretch(int(index[a]), int(index[b - 1]) + 1, inside_k / inside_n, rest_k / rest_n, p_value)


def _point(k: float, n: float, all_k: float, all_n: float) -> float:
    def log_choose(m: float, j: float) -> float:
        return float(-np.log(m + 1) - betaln(m - j + 1, j + 1))

    return float(np.exp(log_choose(all_k, k) + log_choose(all_n - all_k, n - k) - log_choose(all_n, n)))


def _dispersion(k: Floats, n: Floats, share: float) -> float:
    """How much more than chance a share scatters from cell to cell; the worst fifth of the cells is set aside
    so that a second episode does not hide the first."""
    if share <= 0 or share >= 1:
        return 1.0
    squares = np.sort((k - n * share) ** 2 / (n * share * (1 - share)))
    kept = squares[: max(1, int(0.8 * len(squares)))]
    # The mean of the lower four fifths of a chi-square of one degree.
    return max(1.0, float(kept.mean()) / 0.4375)


def _refined(first: int, last: int, n: int, most: int, gain: Callable[[int, int], float]) -> tuple[int, int]:
    """Move the edges cell by cell as long as that helps; the coarse lengths leave them a little off."""
    best = gain(first, last)
    moved = True
    while moved:
        moved = False
        for i, j in ((first - 1, last), (first + 1, last), (first, last - 1), (first, last + 1)):
            if 0 <= i < j <= n and j - i <= most and (value := gain(i, j)) > best + 1e-12:
                best, first, last, moved = value, i, j, True
    return first, last


def _scatter(values: Floats) -> float:
    if not len(values):
        return 0.0
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    # More than half of a level's values may be the same number, and then any other would be an event.
    return max(deviation, float(np.diff(np.quantile(values, [0.1, 0.9]))[0]) / 2.563 * 0.5)


def _best_level(values: Floats, weights: Floats, open_cells: Bools, both: bool, longest: int | None) -> Stretch | None:
    index = np.flatnonzero(open_cells)
    if len(index) < MIN_CELLS:
        return None
    y, w = values[index], weights[index]
    first, last = _windows(len(index), longest)
    mass, weighted, squares = (_sums(x, first, last) for x in (w, w * y, w * w))
    rest = w.sum() - mass
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = weighted / mass - ((w * y).sum() - weighted) / rest
        noise = np.sqrt(squares / mass**2 + ((w * w).sum() - squares) / rest**2)
        score = np.nan_to_num(difference / noise)
    if not both:
        score = np.maximum(score, 0.0)
    best = int(np.abs(score).argmax())
    a, b = int(first[best]), int(last[best])
    outside = np.r_[0:a, b : len(index)]
    inside_mean = float(np.average(y[a:b], weights=w[a:b]))
    outside_mean = float(np.average(y[outside], weights=w[outside]))
    # Scatter about the two levels, so that a long episode does not widen its own yardstick.
    scale = max(_scatter(y[outside] - outside_mean), 1e-12 + 1e-6 * abs(outside_mean))
    rest_values = y[outside] - np.median(y[outside])
    clipped = np.clip(rest_values, -3 * scale, 3 * scale)
    memory = float(clipped[1:] @ clipped[:-1] / max(float(clipped @ clipped), 1e-300)) if len(clipped) > 4 else 0.0
    memory = min(0.95, max(0.0, memory + 2.0 / len(clipped)))
    length = b - a
    # Variance of the mean of `length` values with this memory, against independent ones; at most fully dependent.
    inflation = min(float(length), (1 + memory) / (1 - memory)) if length > 1 else 1.0
    statistic = abs(float(score[best])) / scale / np.sqrt(max(1.0, inflation))
    freedom = max(4.0, 0.5 * len(outside) * (1 - memory))
    p_value = min(1.0, 2 * float(student.sf(statistic, freedom)) * len(first))
    return Stretch(int(index[a]), int(index[b - 1]) + 1, inside_mean, outside_mean, p_value)
