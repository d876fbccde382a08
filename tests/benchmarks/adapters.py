"""The analytics functions in the shape that the scoring harness calls them in: thin wrappers with the defaults."""

from __future__ import annotations

from typing import Any


def trend(ts: Any, values: Any) -> tuple[str, float]:
    from apivitals.analytics.trends import find_trend

    found = find_trend(ts, values)
    direction = found.trend_direction
    return ("stable" if direction == "not enough data" else direction), found.slope / 3600.0


def correlate(series: dict[str, tuple[Any, Any]]) -> list[tuple[str, str, float, float, bool]]:
    from apivitals.analytics.correlations import find_correlations

    return [
        (c.metric1, c.metric2, c.correlation_coefficient, c.lag_seconds, c.relationship != "none")
        for c in find_correlations(series)
    ]


def detect(ts: Any, values: Any) -> list[tuple[float, float]]:
    from apivitals.analytics.anomalies import find_episodes

    return [(episode.start, episode.score) for episode in find_episodes(ts, values).episodes]


def changepoints(ts: Any, values: Any) -> list[float]:
    from apivitals.analytics.changes import find_changes

    return [change.timestamp.timestamp() for change in find_changes(ts, values)]


def forecast(ts: Any, values: Any, horizon_points: int) -> tuple[Any, Any, Any]:
    import numpy as np

    from apivitals.analytics.forecasts import find_forecast

    found = find_forecast(ts, values, horizon_points)
    return np.array(found.mean), np.array(found.lower), np.array(found.upper)
