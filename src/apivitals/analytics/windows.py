"""The windows that questions are about: how they are said, and which seconds they mean."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Literal

from apivitals.analytics.regular import DAY
from apivitals.analytics.telemetry import Telemetry
from apivitals.errors import ConfigurationError
from apivitals.models import TimeWindow

Period = Literal["hourly", "daily", "weekly"]

#: Lengths of the report periods in seconds.
PERIODS: dict[str, float] = {"hourly": 3_600.0, "daily": DAY, "weekly": 7 * DAY}


def window_of(
    telemetry: Telemetry, seconds: float, start_time: datetime | None, end_time: datetime | None
) -> tuple[float, float]:
    """Start and end in seconds since the epoch: what was given, else up to the newest data and `seconds` back."""
    end = epoch(end_time)
    end = telemetry.end if end is None else end
    start = epoch(start_time)
    return (end - seconds if start is None else start), end


def epoch(moment: datetime | None) -> float | None:
    """A datetime as seconds since the epoch; one without a zone is taken as UTC."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def moment_of(seconds: float | None) -> datetime | None:
    """Seconds since the epoch as a UTC datetime."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def period_seconds(period: str | float) -> float:
    """Length of a report period.

    Raises:
        ConfigurationError: neither a known name nor a positive number of seconds.
    """
    if isinstance(period, str):
        if period not in PERIODS:
            raise ConfigurationError(f"period is {period!r}; give {', '.join(PERIODS)} or seconds")
        return PERIODS[period]
    if isinstance(period, bool) or not 0 < period < float("inf"):
        raise ConfigurationError(f"period is {period!r}; give {', '.join(PERIODS)} or seconds above 0")
    return float(period)


def horizon_seconds(horizon: timedelta | TimeWindow | float) -> float:
    """Length of a forecast.

    Raises:
        ConfigurationError: not a positive span of time.
    """
    seconds = horizon.total_seconds() if isinstance(horizon, timedelta) else horizon
    seconds = seconds.seconds if isinstance(seconds, TimeWindow) else seconds
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ConfigurationError(f"horizon is {horizon!r}; give a timedelta, a TimeWindow or seconds above 0")
    return float(seconds)
