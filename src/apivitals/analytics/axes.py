"""Axes of a chart: round numbers for values, round clock times for time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from math import ceil, floor, isfinite, log10

from apivitals.wording import printable

_HUGE = 1e300
_TINY = 1e-290

# Steps of a time axis in seconds: what a clock is read in.
_TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000),
)
_UNIT_STEPS: dict[str, tuple[tuple[float, str], ...]] = {
    "ms": ((1e3, "s"),),
    "s": ((1e-3, "ms"),),
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")),
    "By": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    "rps": ((1.0, "requests/s"),),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """A value axis: its ends and ticks in the metric's unit, the factor and unit of the labels, and its height."""

    low: float
    high: float
    ticks: tuple[float, ...]
    divisor: float = 1.0
    unit: str = ""
    pixels: float = 100.0

    def y(self, value: float) -> float:
        """Height of a value in the plot, in pixels from its top; values outside the axis are held at its ends."""
        part = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return round(self.pixels * (1 - min(1.0, max(0.0, part))), 2)


def nice_ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Ticks at 1, 2 or 5 times a power of ten that enclose `low` to `high`, `most` + 1 of them or fewer."""
    # Values that differ in their last digits only are one value to the eye, and to arithmetic.
    if not high - low > max(_TINY, 1e-9 * max(abs(low), abs(high))):
        high = low + (abs(low) if abs(low) > _TINY else 1.0)
    raw = (high / most) - (low / most)
    power = 10.0 ** floor(log10(raw))
    step = next((power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9)), power * 10)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return tuple(tick for tick in ticks if isfinite(tick))


def value_axis(values: Sequence[float], unit: str, pixels: float = 100.0) -> Axis:
    """The axis for some values: from zero, unless they keep within a quarter of their height above it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = max(low, -_HUGE), min(high, _HUGE)
    if high == low:
        high = low + (abs(low) * 0.25 or 1.0)
        low = min(0.0, low)
    elif low >= 0 and high / 2 - low / 2 >= high * 0.125:
        low = 0.0
    ticks = nice_ticks(low, high)
    size = max(abs(ticks[0]), abs(ticks[-1]))
    divisor, shown = 1.0, printable(unit).strip("{}")
    for factor, name in _UNIT_STEPS.get(unit, ()):
        # A step up when the top reaches it; a step down (s to ms) when the top stays below one.
        if (factor >= 1 and size >= factor) or (factor < 1 and size <= 1):
            divisor, shown = factor, name
            break
    return Axis(ticks[0], ticks[-1], ticks, divisor, shown, pixels)


def time_ticks(start: float, end: float, tz: tzinfo | None = None, most: int = 7) -> tuple[tuple[float, str], ...]:
    """Round moments between two epochs with their labels in a time zone: clock times, and the day where it turns."""
    length = end - start
    step = next((step for step in _TIME_STEPS if length / step <= most), ceil(length / most / 86_400) * 86_400)
    # Wall-clock steps from midnight: a day on which the clock changes still has its ticks at round hours.
    local_start = at_epoch(start, tz).replace(tzinfo=None)
    wall = local_start.replace(hour=0, minute=0, second=0, microsecond=0)
    skipped = int((local_start - wall).total_seconds() // step)
    ticks: list[tuple[float, str]] = []
    previous: datetime | None = None
    for index in range(skipped, skipped + 4 * most):
        local = wall + timedelta(seconds=index * step)
        epoch = (local.replace(tzinfo=tz) if tz is not None else local).timestamp()
        if epoch > end:
            break
        if epoch < start:
            continue
        new_day = previous is None or previous.date() != local.date()
        if step >= 86_400 or (new_day and local.hour == local.minute == 0):
            label = f"{local.day} {local:%b}"
        else:
            label = local.strftime("%H:%M:%S" if step < 60 else "%H:%M")
        previous = local
        ticks.append((epoch, label))
    return tuple(ticks)


def at_epoch(epoch: float, tz: tzinfo | None) -> datetime:
    """A moment from seconds since the epoch, in a time zone (None: this machine's)."""
    return datetime.fromtimestamp(epoch, timezone.utc).astimezone(tz)
