"""The next values of a metric with a band that holds what it says.

Three plain methods forecast, and their median is taken: harmonics of the day (and week) with an autoregressive
rest; the profile of recent days by time of day, moved to the level of the last hours; and that profile on an
exponential average. The band is conformal: how far the same median was off at earlier origins of the same
series, by how far ahead.
Sources: combination, Makridakis and Winkler (1983); conformal bands, Stankevičiūtė et al., NeurIPS (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from apivitals.analytics.grid import Floats
from apivitals.analytics.regular import DAY, WEEK, filled, fit_ar, harmonics, regularise
from apivitals.models import Forecast
from apivitals.wording import span

MIN_DAYS = 3.0
_MIN_POINTS = 60
_MAX_DAYS = 28
_ORIGINS = 16
_LEVEL = 0.95


def find_forecast(
    times: npt.ArrayLike,
    values: npt.ArrayLike,
    horizon: int,
    *,
    metric: str = "",
    unit: str = "",
    labels: Mapping[str, str] | None = None,
) -> Forecast:
    """The next `horizon` values, at the step of the series.

    Args:
        times: seconds since the epoch, shape (n,).
        values: shape (n,); NaN is missing.
        horizon: how many steps ahead, at most as many as there are values.
        metric, unit, labels: are handed on.

    Returns:
        A Forecast; empty with a message where there are less than three days of values.
    """
    series = regularise(times, values)
    own = dict(labels or {})
    present = int(np.isfinite(series.values).sum())
    if present < _MIN_POINTS or series.seconds < MIN_DAYS * DAY * 0.98 or horizon < 1:
        return Forecast(
            metric,
            unit=unit,
            labels=own,
            message=f"not enough data: {present} values over {span(series.seconds)}, "
            f"a forecast needs {_MIN_POINTS} values over {MIN_DAYS:g} days",
        )
    horizon = min(horizon, len(series.values))
    day = max(1, round(DAY / series.step))
    y = filled(series.values)[-_MAX_DAYS * day :]
    start = series.start + series.step * (len(series.values) - len(y))
    floor = 0.0 if y.min() >= 0 else -np.inf
    mean = np.maximum(_combined(y, start, series.step, horizon), floor)
    errors, scale = _errors(y, start, series.step, horizon, floor)
    width = _band(errors, horizon)
    ahead = start + series.step * (len(y) + np.arange(horizon))
    inside = float((np.abs(errors) <= width[: errors.shape[1]]).mean())
    return Forecast(
        metric=metric,
        timestamps=tuple(datetime.fromtimestamp(float(t), timezone.utc) for t in ahead),
        mean=tuple(mean.tolist()),
        lower=tuple(np.maximum(mean - width, floor).tolist()),
        upper=tuple((mean + width).tolist()),
        method="median of harmonics + AR, daily profile, smoothed level; conformal 95 % band",
        mase=float(np.abs(errors).mean() / scale) if scale > 0 else None,
        coverage=inside,
        unit=unit,
        labels=own,
    )


def _combined(y: Floats, start: float, step: float, horizon: int) -> Floats:
    several = [_regression(y, start, step, horizon), _profile(y, step, horizon), _smoothed(y, step, horizon)]
    out: Floats = np.median(several, axis=0)
    return out


def _regression(y: Floats, start: float, step: float, horizon: int) -> Floats:
    """Daily and weekly harmonics by least squares, the rest continued by an autoregression."""
    n = len(y)
    times = start + step * np.arange(n + horizon, dtype=np.float64)
    order = int(max(1, min(6, DAY / step // 4)))
    parts = [np.ones((n + horizon, 1)), harmonics(times, DAY, order)]
    if n * step >= 14 * DAY:
        parts.append(harmonics(times, WEEK, 3))
    design = np.concatenate(parts, axis=1)
    scale = max(1e-12, 1.4826 * float(np.median(np.abs(y - np.median(y)))))
    clipped = np.clip(y, np.median(y) - 8 * scale, np.median(y) + 8 * scale) if scale > 1e-12 else y
    beta = np.linalg.lstsq(design[:n], clipped, rcond=None)[0]
    # The fit is kept from single spikes; the continuation must see where the series is now.
    rest = y - design[:n] @ beta
    phi = fit_ar(rest, np.ones(n, bool), 8)
    tail = list(rest[-max(1, len(phi)) :])
    out = design[n:] @ beta
    for h in range(horizon):
        following = float(sum(weight * tail[-lag] for lag, weight in enumerate(phi, start=1)))
        tail.append(following)
        out[h] += following
    return np.asarray(out, dtype=np.float64)


def _profile(y: Floats, step: float, horizon: int) -> Floats:
    """Median by time of day over the last week, moved to the level of the last hours."""
    day = max(1, round(DAY / step))
    shape, base = _shape(y, day, 7)
    recent = max(1, round(0.15 * day))
    offset = float(np.median(y[-recent:] - base - shape[-recent:]))
    out: Floats = shape[np.arange(horizon) % day] + base + offset
    return out


def _shape(y: Floats, day: int, days: int) -> tuple[Floats, float]:
    """How a day goes about its median, shape (day,), beginning where the series ends; and the level of late."""
    rows = min(days, len(y) // day)
    past = y[-rows * day :].reshape(rows, day)
    levels = np.median(past, axis=1)
    shape = np.median(past - levels[:, None], axis=0)
    smooth: Floats = np.convolve(np.pad(shape, 1, mode="wrap"), [0.25, 0.5, 0.25], mode="valid")
    return smooth, float(np.median(levels[-3:]))


def _smoothed(y: Floats, step: float, horizon: int) -> Floats:
    """Shape of the day plus an exponential average of the level, its weight the one that forecast best so far."""
    day = max(1, round(DAY / step))
    shape, _ = _shape(y, day, 14)
    rows = min(14, len(y) // day)
    level = y[-rows * day :] - np.tile(shape, rows)
    best, last = np.inf, float(level[-1])
    for weight in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        average = lfilter([weight], [1.0, weight - 1.0], level, zi=np.array([level[0] * (1.0 - weight)]))[0]
        loss = float(np.abs(level[1:] - average[:-1]).sum())
        if loss < best:
            best, last = loss, float(average[-1])
    out: Floats = shape[np.arange(horizon) % day] + last
    return out


def _errors(y: Floats, start: float, step: float, horizon: int, floor: float) -> tuple[Floats, float]:
    """Errors at earlier origins, shape (origins, horizon), and the mean error of repeating the last day."""
    n = len(y)
    day = max(1, round(DAY / step))
    least = min(2 * day, n - 1)
    ahead = max(1, min(horizon, (n - least) // 2))
    latest = n - ahead
    origins = np.unique(np.linspace(max(least, latest - 10 * day), latest, _ORIGINS).astype(int))
    rows = [
        y[origin : origin + ahead] - np.maximum(_combined(y[:origin], start, step, ahead), floor) for origin in origins
    ]
    return np.array(rows), float(np.abs(y[day:] - y[:-day]).mean()) if n > day else 0.0


def _band(errors: Floats, horizon: int) -> Floats:
    """Half width by how far ahead: the quantile of the errors of neighbouring leads, never narrowing."""
    origins, ahead = errors.shape
    blocks = np.array_split(np.arange(ahead), min(8, ahead))
    width = np.zeros(ahead)
    level = min(1.0, _LEVEL + 0.4 / max(1, origins))
    for block in blocks:
        width[block] = np.quantile(np.abs(errors[:, block]), level)
    width = np.maximum.accumulate(width)
    if horizon <= ahead:
        return width[:horizon]
    # Beyond what could be tried the error grows at most like that of a random walk.
    beyond = width[-1] * np.sqrt(np.arange(ahead + 1, horizon + 1) / ahead)
    return np.concatenate([width, beyond])
