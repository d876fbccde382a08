"""Series for a chart: gaps kept, the usual band, and the episodes marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apivitals.analytics.episodes import RouteEpisode
from apivitals.analytics.series import Series
from apivitals.models import ChartSeries

_KINDS = {"response_time_p95": "latency", "throughput": "traffic", "error_rate": "errors"}
_MIN_FOR_BAND = 10


def chart(series: Series, episodes: Sequence[RouteEpisode] = ()) -> ChartSeries | None:
    """A series for a chart, its points in the middle of their cells; None when it has no value.

    Episodes of the series' own kind are marked: those of its route, and on a chart of the whole service those of
    every route. The band holds 95 % of the values outside of all episodes that could show in the series, and
    outside of the cells beside them, which an episode may have begun or ended in.
    """
    if not series.points:
        return None
    route, method = series.labels.get("http.route"), series.labels.get("http.request.method")
    seen = [episode for episode in episodes if route is None or (episode.route, episode.method) == (route, method)]
    own = [episode for episode in seen if _KINDS.get(series.metric) == episode.kind]
    usual = np.isfinite(series.values)
    for episode in seen:
        usual[max(0, episode.first - 1) : episode.last + 1] = False
    lower: tuple[float | None, ...] = ()
    upper: tuple[float | None, ...] = ()
    if usual.sum() >= _MIN_FOR_BAND:
        low, high = np.quantile(series.values[usual], [0.025, 0.975])
        lower, upper = (float(low),) * len(series.values), (float(high),) * len(series.values)
    return ChartSeries(
        name=series.metric,
        unit=series.unit,
        timestamps=tuple((series.times + series.step / 2).tolist()),
        values=tuple(value if value == value else None for value in series.values.tolist()),
        lower=lower,
        upper=upper,
        episodes=tuple(
            (max(episode.start.timestamp(), float(series.times[0])), episode.end.timestamp()) for episode in own
        ),
        labels=series.labels,
    )
