"""Which metrics move together, beyond the clock that they share and the memory that each has of itself.

Two slow series always seem to correlate, and so do two with a daily pattern. Both are taken out first: daily
harmonics and each series' own autoregression. What is left is cross-correlated over lags up to an hour; the
best lag of a pair pays for the search among lags (Šidák), each pair for the search among pairs
(Benjamini and Hochberg, JRSS B 57, 1995). Source of the method: Haugh, JASA 71 (1976).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from apivitals.analytics.grid import Bools, Floats
from apivitals.analytics.regular import Regular, calendar, filled, fit_ar, regularise, whiten
from apivitals.models import Correlation

MIN_POINTS = 40
_HOUR = 3_600.0
_MAX_POINTS = 4_000
#: Weaker than this is not worth a person's time, however many points make it significant.
_MIN_COEFFICIENT = 0.1

Significance = Literal["strong", "moderate", "weak", "none", "not enough data"]
Samples = tuple[npt.ArrayLike, npt.ArrayLike]


def find_correlations(
    series: Mapping[str, Samples], *, max_lag_seconds: float = _HOUR, false_discoveries: float = 0.05
) -> list[Correlation]:
    """Every pair of some metrics, the strongest first.

    On simulated reports of eight independent metrics with a shared daily pattern and autocorrelation up to
    0.98, at most one report in ten named any pair.

    Args:
        series: times (seconds since the epoch) and values by metric name; they need not share a clock.
        max_lag_seconds: how far one may follow the other; never more than a twentieth of the overlap.
        false_discoveries: expected share of the pairs reported that are not there.

    Returns:
        A Correlation per pair. `correlation_coefficient` is that of the innovations at the best lag;
        `relationship` is `none` where it is not significant.
    """
    tidy = {name: regularise(*samples) for name, samples in series.items()}
    found: list[Correlation] = []
    for first, second in combinations(tidy, 2):
        found.append(_pair(first, tidy[first], second, tidy[second], max_lag_seconds))
    return sorted(_judged(found, false_discoveries), key=lambda pair: (pair.relationship == "none", pair.p_value))


def _pair(name1: str, one: Regular, name2: str, two: Regular, max_lag: float) -> Correlation:
    step = max(one.step, two.step)
    start = max(one.start, two.start)
    end = min(one.start + one.seconds, two.start + two.seconds)
    cells = int(max(0.0, (end - start) / step + 1e-6)) if len(one.values) and len(two.values) else 0
    factor = -(-cells // _MAX_POINTS) if cells else 1
    step, cells = step * factor, cells // factor
    a, b = (_onto(item, start, step, cells) for item in (one, two))
    both = int((np.isfinite(a) & np.isfinite(b)).sum())
    if both < MIN_POINTS:
        return Correlation(
            name1,
            name2,
            0.0,
            "not enough data",
            "none",
            points=both,
            message=f"not enough data: {both} moments with both values, a correlation needs at least {MIN_POINTS}",
        )
    times = start + step * np.arange(cells, dtype=np.float64)
    (u, good_u), (v, good_v) = (_innovations(x, times, step) for x in (a, b))
    if not (good_u.sum() >= MIN_POINTS // 2 and good_v.sum() >= MIN_POINTS // 2 and u.std() > 0 and v.std() > 0):
        return Correlation(name1, name2, 0.0, "none", "none", points=both, message="one of them does not vary")
    lags = int(min(max_lag / step, cells / 20))
    coefficients, pairs = _cross_correlation(u, good_u, v, good_v, lags)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.arctanh(np.clip(coefficients, -0.999999, 0.999999)) * np.sqrt(np.maximum(pairs - 3, 1))
    best = int(np.argmax(np.abs(z)))
    p_single = float(2 * norm.sf(abs(z[best])))
    p_value = float(-np.expm1(len(z) * np.log1p(-min(p_single, 1 - 1e-12))))
    return Correlation(
        name1,
        name2,
        float(coefficients[best]),
        "none",
        "none",
        p_value=p_value,
        lag_seconds=float((best - lags) * step),
        points=both,
    )


def _onto(series: Regular, start: float, step: float, cells: int) -> Floats:
    """Values averaged onto another clock, NaN where there are none."""
    index = np.floor((series.times - start) / step + 0.5).astype(np.int64)
    good = np.isfinite(series.values) & (index >= 0) & (index < cells)
    sums = np.bincount(index[good], weights=series.values[good], minlength=cells)
    numbers = np.bincount(index[good], minlength=cells)
    out = np.full(cells, np.nan)
    np.divide(sums, numbers, out=out, where=numbers > 0)
    return out


def _innovations(values: Floats, times: Floats, step: float) -> tuple[Floats, Bools]:
    """What a series' calendar and its own past do not explain, and where that is known."""
    good = np.isfinite(values)
    x = filled(values)
    design = np.column_stack([np.ones(len(x)), calendar(times, step * len(x), step)])
    x = x - design @ np.linalg.lstsq(design[good], x[good], rcond=None)[0]
    phi = fit_ar(x, good, int(min(24, 10 * np.log10(len(x)))))
    out = whiten(x, phi)
    known = good.copy()
    known[: len(phi)] = False
    # After a gap the filter runs on bridged values.
    for lag in range(1, len(phi) + 1):
        known[lag:] &= good[:-lag]
    if known.sum() < MIN_POINTS // 2:
        known = good
    # Ranks' robustness without their loss: innovations beyond five robust deviations are cut off.
    scale = 1.4826 * float(np.median(np.abs(out[known])))
    if scale > 0:
        out = np.clip(out, -5 * scale, 5 * scale)
    return np.where(known, out - out[known].mean(), 0.0), known


def _cross_correlation(u: Floats, good_u: Bools, v: Floats, good_v: Bools, lags: int) -> tuple[Floats, Floats]:
    """Correlation of u(t) with v(t + lag) for lags -lags to lags, and how many pairs each rests on."""
    n = len(u)
    size = 1 << (2 * n).bit_length()

    def products(a: Floats, b: Floats) -> Floats:
        spectrum = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
        circular = np.fft.irfft(spectrum, size)
        out: Floats = np.concatenate([circular[size - lags :] if lags else circular[:0], circular[: lags + 1]])
        return out

    pairs = np.round(products(good_u.astype(np.float64), good_v.astype(np.float64)))
    covariance = products(u, v)
    variance = products(u**2, good_v.astype(np.float64)) * products(good_u.astype(np.float64), v**2)
    scale = np.sqrt(np.maximum(variance, 1e-300))
    return np.where(pairs > 3, covariance / scale, 0.0), pairs


def _judged(found: list[Correlation], rate: float) -> list[Correlation]:
    tested = [pair for pair in found if pair.significance != "not enough data"]
    ordered = sorted(pair.p_value for pair in tested)
    limit = max((p for rank, p in enumerate(ordered, 1) if p <= rate * rank / len(ordered)), default=-1.0)
    out = [pair for pair in found if pair.significance == "not enough data"]
    for pair in tested:
        size = abs(pair.correlation_coefficient)
        real = pair.p_value <= limit and size >= _MIN_COEFFICIENT
        significance: Significance = (
            "none" if not real else "strong" if size >= 0.6 else "moderate" if size >= 0.3 else "weak"
        )
        out.append(
            Correlation(
                pair.metric1,
                pair.metric2,
                pair.correlation_coefficient,
                significance,
                "none" if not real else "positive" if pair.correlation_coefficient > 0 else "negative",
                p_value=pair.p_value,
                lag_seconds=pair.lag_seconds if real else 0.0,
                points=pair.points,
                message=pair.message,
            )
        )
    return out
