"""Loose samples to a regular series, and what a daily rhythm and noise with memory look like in one.

The arithmetic that trends, anomalies, correlations and forecasts share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from apivitals.analytics.grid import Bools, Floats

DAY = 86_400.0
WEEK = 7 * DAY
_MAX_CELLS = 200_000


@dataclass(frozen=True, slots=True)
class Regular:
    """Values on a regular clock.

    Attributes:
        start: time of the first value, seconds since the epoch.
        step: seconds between values.
        values: NaN where there was none, shape (n,).
    """

    start: float
    step: float
    values: Floats

    @property
    def times(self) -> Floats:
        """Time of each value, seconds since the epoch."""
        return self.start + self.step * np.arange(len(self.values), dtype=np.float64)

    @property
    def seconds(self) -> float:
        """Length of the series."""
        return self.step * len(self.values)


def regularise(times: npt.ArrayLike, values: npt.ArrayLike, step: float | None = None) -> Regular:
    """Put samples on a regular clock: unsorted, doubled, jittered and missing ones are all welcome.

    Args:
        times: seconds since the epoch, shape (n,).
        values: shape (n,); what is not finite counts as missing.
        step: seconds between values; None: the median gap.

    Returns:
        A series that begins and ends with a value; empty when there is none.
    """
    t = np.asarray(times, dtype=np.float64).ravel()
    v = np.asarray(values, dtype=np.float64).ravel()
    keep = np.isfinite(t) & np.isfinite(v)
    t, v = t[keep], v[keep]
    if not len(t):
        return Regular(0.0, step or 60.0, np.zeros(0))
    order = np.argsort(t, kind="stable")
    t, v = t[order], v[order]
    if step is None:
        gaps = np.diff(t)
        gaps = gaps[gaps > 0]
        step = float(np.median(gaps)) if len(gaps) else 60.0
        # Gaps of jittered clocks scatter about the step; most steps are whole seconds.
        step = float(round(step)) if step >= 5 else step
    # A pair of samples years apart must not make a series that fills the memory.
    step = max(step, (t[-1] - t[0]) / _MAX_CELLS)
    index = np.rint((t - t[0]) / step).astype(np.int64)
    sums = np.bincount(index, weights=v)
    numbers = np.bincount(index)
    cells = np.full(len(sums), np.nan)
    np.divide(sums, numbers, out=cells, where=numbers > 0)
    return Regular(float(t[0]), float(step), cells)


def block_means(series: Regular, factor: int) -> Regular:
    """Means of `factor` neighbours each; a block that is more than half empty is missing."""
    if factor <= 1:
        return series
    whole = len(series.values) // factor * factor
    blocks = series.values[:whole].reshape(-1, factor)
    present = np.isfinite(blocks)
    sums = np.where(present, blocks, 0.0).sum(axis=1)
    numbers = present.sum(axis=1)
    out = np.full(len(blocks), np.nan)
    np.divide(sums, numbers, out=out, where=numbers * 2 >= factor)
    return Regular(series.start + 0.5 * (factor - 1) * series.step, series.step * factor, out)


def filled(values: Floats) -> Floats:
    """The values with gaps bridged by straight lines; all zero when there are none."""
    good = np.isfinite(values)
    if not good.any():
        return np.zeros(len(values))
    index = np.arange(len(values))
    return np.interp(index, index[good], values[good])


def harmonics(times: Floats, period: float, order: int) -> Floats:
    """Columns sin and cos of the first `order` harmonics of a period, shape (n, 2 · order)."""
    phase = 2 * np.pi * (times[:, None] % period) / period * np.arange(1, order + 1)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def daily_order(seconds: float, step: float) -> int:
    """How many daily harmonics a series of this length and step can carry: 0 below 1.2 days or above 4 h steps."""
    if seconds < 1.2 * DAY or step > DAY / 6:
        return 0
    most = int(DAY / step // 3)
    return min(most, 2 if seconds < 3 * DAY else 4)


def calendar(times: Floats, seconds: float, step: float) -> Floats:
    """Daily and, from 15 days on, weekly harmonics for a series of this length, shape (n, k); k may be 0."""
    parts = [np.zeros((len(times), 0))]
    order = daily_order(seconds, step)
    if order:
        parts.append(harmonics(times, DAY, order))
    if seconds >= 15 * DAY and step <= DAY:
        # Harmonics 7, 14, … of the week are those of the day.
        parts.append(harmonics(times, WEEK, 3))
    return np.concatenate(parts, axis=1)


def autocovariance(values: Floats, good: Bools, lags: int) -> Floats:
    """Autocovariance at lags 0 to `lags` of a series about its mean, over the pairs that are both present."""
    x = np.where(good, values - values[good].mean(), 0.0)
    n = len(x)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(x, size)) ** 2
    out: Floats = np.fft.irfft(spectrum, size)[: lags + 1] / max(1, int(good.sum()))
    return out


def fit_ar(values: Floats, good: Bools, most: int) -> Floats:
    """Coefficients of an autoregression by Yule-Walker, its order chosen by BIC, shape (p,); p may be 0.

    Source: Box, Jenkins, Reinsel: Time Series Analysis, ch. 7.
    """
    n = int(good.sum())
    most = min(most, n // 4)
    if most < 1:
        return np.zeros(0)
    gamma = autocovariance(values, good, most)
    if gamma[0] <= 1e-300:
        return np.zeros(0)
    best, chosen = n * np.log(gamma[0]), np.zeros(0)
    for order in range(1, most + 1):
        try:
            phi = solve_toeplitz(gamma[:order] * np.append(1.0 + 1e-9, np.ones(order - 1)), gamma[1 : order + 1])
        except np.linalg.LinAlgError:
            break
        variance = gamma[0] - phi @ gamma[1 : order + 1]
        if variance <= 1e-12 * gamma[0]:
            break
        bic = n * np.log(variance) + order * np.log(n)
        if bic < best:
            best, chosen = bic, phi
    return chosen


def whiten(values: Floats, phi: Floats) -> Floats:
    """Innovations of a series (or of each column of a matrix) under an autoregression; the first p are not.

    They are the filter's answer to a start from zero, so a caller drops them.
    """
    out: Floats = lfilter(np.append(1.0, -phi), [1.0], values, axis=0)
    return out
