"""Is a metric drifting, beyond its daily pattern and its noise?

A line and daily (weekly) harmonics are fitted together by generalised least squares; the noise may remember
its past. Ordinary least squares would call half of all autocorrelated series a trend.
Sources: Cochrane and Orcutt (1949); restricted likelihood for the memory, Cheang and Reinsel, JASA 95 (2000).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from apivitals.analytics.grid import Bools, Floats
from apivitals.analytics.regular import (
    DAY,
    Regular,
    block_means,
    calendar,
    filled,
    fit_ar,
    regularise,
)
from apivitals.models import Trend

MIN_POINTS = 20
_MAX_POINTS = 1_500
#: Candidate first-order memories; finer towards 1, where the verdict hangs on it.
_PHIS = 1.0 - np.geomspace(1.3, 0.004, 48)


@dataclass(frozen=True, slots=True)
class _Fit:
    slope: float
    error: float
    freedom: float
    fitted: Floats


def find_trend(
    times: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    metric: str = "",
    unit: str = "",
    labels: Mapping[str, str] | None = None,
    significance: float = 0.05,
) -> Trend:
    """Direction and size of a metric's drift over its whole length.

    A drift is called when it is significant under autocorrelated noise, and larger than 2 % of the level or a
    third of the scatter. On simulated series without drift (autocorrelation 0 to 0.95, with and without a daily
    pattern) a verdict other than `stable` came up in at most 12 of 100.

    Args:
        times: seconds since the epoch, shape (n,).
        values: in `unit`, shape (n,); NaN is missing.
        metric, unit, labels: are handed on.
        significance: nominal false-alarm rate.

    Returns:
        A Trend; `not enough data` below 20 values or where the noise leaves fewer than 4 independent ones.
    """
    series = regularise(times, values)
    present = int(np.isfinite(series.values).sum())
    common = {"metric": metric, "unit": unit, "labels": dict(labels or {}), "points": present}
    if present < MIN_POINTS:
        return Trend(
            trend_direction="not enough data",
            message=f"not enough data: {present} values, a trend needs at least {MIN_POINTS}",
            **common,  # type: ignore[arg-type]
        )
    span = {"start_time": _moment(series.start), "end_time": _moment(series.start + series.seconds)}
    coarse = block_means(series, -(-len(series.values) // _MAX_POINTS))
    good = np.isfinite(coarse.values)
    y = filled(coarse.values)
    y = _clipped(y, coarse, good)
    if np.ptp(y) <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return Trend(trend_direction="stable", p_value=1.0, confidence=1.0, **span, **common)  # type: ignore[arg-type]
    fit = _fit(y, coarse, good)
    if fit.freedom < 2:
        return Trend(
            trend_direction="not enough data",
            message=f"not enough data: {present} values over {series.seconds / 3600:.3g} h behave like fewer than 4 "
            "independent ones; a longer window is needed",
            **span,  # type: ignore[arg-type]
            **common,  # type: ignore[arg-type]
        )
    p_value = float(2 * student.sf(abs(fit.slope) / fit.error, fit.freedom)) if fit.error > 0 else 1.0
    change = fit.slope * coarse.seconds
    line = fit.slope * (coarse.times - coarse.times.mean())
    rest = y - fit.fitted
    spread = float(np.var(rest))
    strength = float(np.var(line) / (np.var(line) + spread)) if spread > 0 else 1.0
    r_squared = max(0.0, 1.0 - spread / float(np.var(y)))
    level = abs(float(np.mean(y)))
    # Averaging blocks has made the noise small, not the drift important.
    scatter = float(np.nanstd(series.values - np.interp(series.times, coarse.times, fit.fitted)))
    large = abs(change) >= 0.02 * level or abs(change) >= scatter / 3
    moving = p_value < significance and large
    direction = ("increasing" if change > 0 else "decreasing") if moving else "stable"
    within = series.seconds < 1.2 * DAY and series.seconds > DAY / 4 and moving
    return Trend(
        trend_direction=direction,  # type: ignore[arg-type]
        trend_strength=strength if moving else 0.0,
        slope=fit.slope * 3600.0,
        change=change,
        r_squared=r_squared,
        p_value=p_value,
        # That no drift was found says little about how sure one may be that there is none.
        confidence=1.0 - p_value if moving else 0.0,
        message="part of this may be the time of day: the window is too short to tell them apart" if within else "",
        **span,  # type: ignore[arg-type]
        **common,  # type: ignore[arg-type]
    )


def _clipped(y: Floats, series: Regular, good: Bools) -> Floats:
    """Values with spikes cut down to six robust deviations from a line and the calendar, so that none decides alone."""
    design = np.column_stack([np.ones(len(y)), np.arange(len(y)), calendar(series.times, series.seconds, series.step)])
    design[:, 1] /= len(y)
    rest = y - design @ np.linalg.lstsq(design[good], y[good], rcond=None)[0]
    scale = 1.4826 * float(np.median(np.abs(rest[good] - np.median(rest[good]))))
    if scale <= 0:
        return y
    out: Floats = y - rest + np.clip(rest, -6 * scale, 6 * scale)
    return out


def _fit(y: Floats, series: Regular, good: Bools) -> _Fit:
    """Slope per second with its error under the more cautious of two models of the noise."""
    times = series.times
    x = (times - times.mean()) / series.seconds
    design = np.column_stack([np.ones(len(y)), x, calendar(times, series.seconds, series.step)])
    phi = memory_of(y, design)
    beta, error = _gls(y, design, np.array([phi]))
    rest = y - design @ beta
    n, k = design.shape
    # Noise that an AR(1) does not describe: a sieve of higher order, its long-run variance corrected for the
    # bias that fitting the regression has put into the residuals.
    sieve = fit_ar(rest, good, min(12, n // 10))
    if len(sieve) > 1:
        gain = 1.0 - float(sieve.sum())
        gain = max(gain - (1.0 + k * (1.0 - gain)) / n, 0.25 * gain)
        other = _gls(y, design, sieve)
        inflation = (1.0 - float(sieve.sum())) / gain
        if other[1] * inflation > error:
            beta, error = other[0], other[1] * inflation
    memory = max(phi, 0.0)
    # Independent values that n autocorrelated ones are worth, for a mean; a slope fares no better.
    independent = n * (1.0 - memory) / (1.0 + memory) * good.mean()
    lost = 2 + (k - 2) * min(1.0, 2 * independent / n)
    return _Fit(float(beta[1]) / series.seconds, error / series.seconds, max(independent - lost, 0.0), design @ beta)


def memory_of(y: Floats, design: Floats) -> float:
    """First-order autocorrelation of the noise by restricted maximum likelihood, over a grid of candidates.

    Unlike the residuals' autocorrelation it is not pulled down by the fitted line and harmonics.
    """
    n, k = design.shape
    best, chosen = -np.inf, 0.0
    for phi in _PHIS:
        z, a = prewhitened(y, design, float(phi))
        beta, *_ = np.linalg.lstsq(a, z, rcond=None)
        rss = float(((z - a @ beta) ** 2).sum())
        sign, logdet = np.linalg.slogdet(a.T @ a)
        if rss <= 0 or sign <= 0:
            continue
        likelihood = 0.5 * np.log(1 - phi**2) - 0.5 * logdet - 0.5 * (n - k) * np.log(rss)
        if likelihood > best:
            best, chosen = likelihood, float(phi)
    return chosen


def prewhitened(y: Floats, design: Floats, phi: float) -> tuple[Floats, Floats]:
    """Prais-Winsten: differences with the memory taken out, and the first row scaled to the same variance."""
    first = float(np.sqrt(1 - phi**2))
    z = np.append(first * y[0], y[1:] - phi * y[:-1])
    a = np.concatenate([first * design[:1], design[1:] - phi * design[:-1]])
    return z, a


def _gls(y: Floats, design: Floats, phi: Floats) -> tuple[Floats, float]:
    """Coefficients, and the standard error of the second."""
    if len(phi) == 1:
        z, a = prewhitened(y, design, float(phi[0]))
    else:
        p = len(phi)
        z, a = y[p:].copy(), design[p:].copy()
        for lag, weight in enumerate(phi, start=1):
            z -= weight * y[p - lag : len(y) - lag]
            a -= weight * design[p - lag : len(y) - lag]
    beta = np.linalg.lstsq(a, z, rcond=None)[0]
    freedom = max(1, len(z) - design.shape[1] - len(phi))
    variance = float(((z - a @ beta) ** 2).sum()) / freedom
    inverse = np.linalg.pinv(a.T @ a)
    return np.asarray(beta, dtype=np.float64), float(np.sqrt(variance * inverse[1, 1]))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
