"""Episodes in which a metric left everything that it did in the week before.

Several views look at each value: the surprise against a fast and a slow exponential average, the distance from
the same time on earlier days, and the last hour against the last day. Each view's deviation is a number without
a natural scale, and metrics are spiky; so a value is scored by the mean of the logarithms of its deviations, and
compared with the highest score of the last seven days. Only what beats that by a margin is reported, and a young
series must beat it by more. Every step looks back only: a verdict on the past does not change as data come in.

Series of less than a day have no earlier days; they are scanned for stretches instead (`apivitals.analytics.scan`).
Sources: exponential averages, Holt (1957); conjunction of tail scores, after ECOD, Li et al., TKDE 35 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d
from scipy.signal import lfilter

from apivitals.analytics.grid import Bools, Floats
from apivitals.analytics.regular import DAY, Regular, filled, regularise
from apivitals.analytics.scan import MIN_CELLS, scan_levels
from apivitals.analytics.sensitivity import alpha_of, margin_of
from apivitals.models import Severity

_HOUR = 3_600.0
_MEMORY_DAYS = 7
_HALF_LIVES = (1.0, 6.0)
#: A deviation is measured on top of this many typical ones: quiet moments must not make a record look big.
_FLOOR = 6.0
#: How far above the record, in log units, and how much more while the record is young (per day of it).
_MARGIN = 0.05
_YOUTH = 6.0
_COOL_DOWN = 2 * _HOUR
#: An episode goes on while the score stays this near to the record that it broke, with breaks this long.
_LINGER = 0.3
_BREAK = 900.0
_MIN_LONG = 50

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Episode:
    """A stretch that stands out. Times are seconds since the epoch; `end` is where the last value's cell ends.

    Attributes:
        peak: time of the value furthest from what was expected.
        value, expected, lower, upper: at the peak, with the band that values kept to before.
        score: how far above the bar, at least 1; comparable between series.
        confidence: 0 to 1, that this is not what the metric does anyway.
    """

    start: float
    end: float
    peak: float
    value: float
    expected: float
    lower: float
    upper: float
    direction: Direction
    score: float
    confidence: float

    @property
    def severity(self) -> Severity:
        """By how many half bands the peak is off."""
        half = max((self.upper - self.lower) / 2, 1e-12 * max(1.0, abs(self.expected)))
        size = abs(self.value - self.expected) / half
        return "critical" if size >= 8 else "high" if size >= 4 else "medium" if size >= 2 else "low"


@dataclass(frozen=True, slots=True)
class Episodes:
    """What was found, and in `message` why there may be nothing: not enough data."""

    episodes: tuple[Episode, ...] = ()
    message: str = ""


def find_episodes(times: npt.ArrayLike, values: npt.ArrayLike, *, sensitivity: float = 2.0) -> Episodes:
    """Episodes of one metric.

    On labelled series, real and simulated, F1 is 0.51 at 0.03 false episodes per series and day with the default
    sensitivity, and 0.42 at 0.04 on a further set of simulated ones; these were looked at when one constant was
    chosen, so they are no independent test. Tail latencies are the hardest. `tests/benchmarks` holds the adapter
    that measures it.

    Args:
        times: seconds since the epoch, shape (n,), in any order.
        values: shape (n,); NaN is missing.
        sensitivity: 0.5 to 10; more finds less; see `apivitals.analytics.sensitivity`.
    """
    series = regularise(times, values)
    present = int(np.isfinite(series.values).sum())
    if present < MIN_CELLS:
        return Episodes(message=f"not enough data: {present} values, anomalies need at least {MIN_CELLS}")
    if series.seconds < DAY or present < _MIN_LONG:
        return Episodes(tuple(_short(series, alpha_of(sensitivity))))
    return Episodes(tuple(_long(series, margin_of(sensitivity))))


def prolonged(values: Floats, step: float, episode: Episode, first: int, last: int) -> int:
    """Where an episode of cells `first` up to, not including, `last` really ends: the expectations adapt to what
    lasts, but until the values have come half way back to what was expected it is not over, for a day at most.

    Args:
        values: shape (n,), NaN where missing.
        step: seconds of a cell.
        episode: what was found in these cells.

    Returns:
        The end of it, not included, at least `last`.
    """
    off = (values - episode.expected) / ((episode.value - episode.expected) or 1.0)
    pause = max(1, round(_BREAK / step))
    for j in range(last, min(len(values), first + round(DAY / step))):
        if off[j] >= 0.5:
            last = j + 1
        elif j - last >= pause:
            break
    return last


def _short(series: Regular, alpha: float) -> list[Episode]:
    found = []
    times = series.times
    for stretch in scan_levels(series.values, alpha=alpha):
        outside = np.isfinite(series.values)
        outside[stretch.first : stretch.last] = False
        low, high = np.quantile(series.values[outside], [0.025, 0.975])
        inside = series.values[stretch.first : stretch.last]
        at = stretch.first + int(np.nanargmax(np.abs(inside - stretch.outside)))
        found.append(
            Episode(
                start=float(times[stretch.first]),
                end=float(times[stretch.last - 1] + series.step),
                peak=float(times[at]),
                value=float(series.values[at]),
                expected=stretch.outside,
                lower=float(min(low, stretch.outside)),
                upper=float(max(high, stretch.outside)),
                direction="up" if stretch.inside > stretch.outside else "down",
                score=max(1.0, float(np.log10(alpha / max(stretch.p_value, 1e-300)))),
                confidence=1.0 - stretch.p_value,
            )
        )
    return found


def _long(series: Regular, strictness: float) -> list[Episode]:
    good = np.isfinite(series.values)
    y = filled(series.values)
    n = len(y)
    day = max(1, round(DAY / series.step))
    seasonal = _same_time_before(y, series.step)
    views = _views(y, seasonal, series.step)
    score = np.where(good, _log_score(views, float(np.abs(y).mean()), day), -np.inf)
    record = _record(score, _MEMORY_DAYS * day)
    history = np.clip(np.arange(n) / day, 0.3, _MEMORY_DAYS)
    margin = _MARGIN * (1.0 + _YOUTH / history) * strictness
    # A day, or a tenth of a longer series, to get to know the metric.
    warm = int(max(day, 0.1 * min(n, 14 * day)))
    with np.errstate(invalid="ignore"):
        above = np.where(np.isfinite(record), (score - record) / margin, 0.0)
    hits = np.flatnonzero((above > 1.0) & (np.arange(n) >= warm))
    cool = max(3, round(_COOL_DOWN / series.step))
    pause = max(2, round(_BREAK / series.step))
    found: list[Episode] = []
    last = -n
    for i in hits.tolist():
        if i - last > cool:
            stop = _stop(score, i, float(record[i]), pause)
            found.append(_episode(series, y, seasonal, good, i, stop, pause, float(above[i : stop + 1].max())))
        last = i
    return found


def _views(y: Floats, seasonal: Floats, step: float) -> list[Floats]:
    """Deviations from different expectations, each of shape (n,)."""
    hour, day = max(1, round(_HOUR / step)), max(1, round(DAY / step))
    views = [np.append(0.0, y[1:] - _average(y, half_life)[:-1]) for half_life in _HALF_LIVES]
    rest = np.where(np.isfinite(seasonal), y - seasonal, y - _trailing_mean(y, day))
    views.append(rest)
    views.append(_trailing_mean(rest, hour) - _trailing_mean(rest, day))
    return views


def _log_score(views: list[Floats], level: float, day: int) -> Floats:
    total = np.zeros(len(views[0]))
    for view in views:
        deviation = np.abs(view)
        typical = _trailing_mean(np.minimum(deviation, np.quantile(deviation, 0.99)), 14 * day)
        total += np.log(deviation + _FLOOR * typical + 1e-9 * level + 1e-300)
    return total / len(views)


def _record(score: Floats, width: int) -> Floats:
    """Highest score of the `width` cells before each one, shape (n,)."""
    n = len(score)
    width = min(width, n)
    highest = maximum_filter1d(score, width, mode="constant", cval=-np.inf, origin=(width - 1) // 2)
    # For an even width the filter's middle lies a half cell off; one cell less memory is no matter.
    out = np.full(n, -np.inf)
    out[1:] = highest[:-1]
    return out


def _stop(score: Floats, first: int, record: float, longest_break: int) -> int:
    """Last cell of the episode that begins at `first`."""
    last = first
    for j in range(first + 1, len(score)):
        if score[j] > record - _LINGER:
            last = j
        elif j - last > longest_break:
            break
    return last


def _episode(
    series: Regular,
    y: Floats,
    seasonal: Floats,
    good: Bools,
    first: int,
    last: int,
    pause: int,
    score: float,
) -> Episode:
    before = slice(max(0, first - 14 * max(1, round(DAY / series.step))), first)
    usual = float(np.median(y[max(0, first - max(6, round(_HOUR / series.step))) : first]))
    expected = np.where(np.isfinite(seasonal), seasonal, usual)[first : last + 1]
    rest = (y - np.where(np.isfinite(seasonal), seasonal, usual))[before]
    low, high = np.quantile(rest, [0.025, 0.975])
    away = np.where(good[first : last + 1], np.abs(y[first : last + 1] - expected), -1.0)
    at = int(away.argmax())
    value, wanted = float(y[first + at]), float(expected[at])
    # The hourly view remembers an episode for an hour; it ends when the values are back for good.
    far = away > max(0.2 * away[at], 1.5 * (high if value > wanted else -low))
    last = first + at
    for j in np.flatnonzero(far[at:]).tolist():
        if first + at + j - last > pause:
            break
        last = first + at + j
    return Episode(
        start=float(series.times[first]),
        end=float(series.times[last] + series.step),
        peak=float(series.times[first + at]),
        value=value,
        expected=wanted,
        lower=wanted + float(min(low, 0.0)),
        upper=wanted + float(max(high, 0.0)),
        direction="up" if value > wanted else "down",
        score=score,
        confidence=float(1.0 - 0.4 * np.exp(-(score - 1.0) / 4.0)),
    )


def _same_time_before(y: Floats, step: float) -> Floats:
    """Median of the values around the same time on up to 14 earlier days; NaN on the first day."""
    n = len(y)
    day = max(1, round(DAY / step))
    if n <= day:
        return np.full(n, np.nan)
    half = max(1, round(_HOUR / step) // 4)
    # The neighbours after the same time are known by today.
    smooth = np.convolve(np.pad(y, half, mode="edge"), np.full(2 * half + 1, 1.0 / (2 * half + 1)), mode="valid")
    days = min(14, (n - 1) // day)
    past = np.full((days, n), np.nan)
    for k in range(1, days + 1):
        past[k - 1, k * day :] = smooth[: n - k * day]
    out = np.full(n, np.nan)
    out[day:] = np.nanmedian(past[:, day:], axis=0)
    return out


def _average(y: Floats, half_life: float) -> Floats:
    weight = 1.0 - 0.5 ** (1.0 / half_life)
    out: Floats = lfilter([weight], [1.0, weight - 1.0], y, zi=np.array([y[0] * (1.0 - weight)]))[0]
    return out


def _trailing_mean(x: Floats, width: int) -> Floats:
    total = np.concatenate([[0.0], np.cumsum(x)])
    stop = np.arange(1, len(x) + 1)
    start = np.maximum(0, stop - width)
    out: Floats = (total[stop] - total[start]) / (stop - start)
    return out
