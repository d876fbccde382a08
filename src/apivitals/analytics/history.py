"""A window judged against the history before it.

What fills a window cannot be seen from inside. So episodes are searched twice: within the window, in its fine
cells, and over the history and the window together, in the coarser cells that so long a time is given. Of the
latter those count that reach into the window, told with their true start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from apivitals.analytics.episodes import RouteEpisode
from apivitals.analytics.grid import Grid
from apivitals.analytics.regular import DAY
from apivitals.analytics.series import window_grid
from apivitals.analytics.telemetry import Telemetry
from apivitals.models import Anomaly

#: How far back before a window's start: the week that records are kept of, and a day to get to know the metric.
HISTORY_SECONDS = 8 * DAY


def history_grid(telemetry: Telemetry, window: Grid) -> Grid | None:
    """The grid over a window and up to eight days before it; None where the data begin with the window."""
    if telemetry.start > window.start - window.step:
        return None
    grid = window_grid(telemetry, window.start - HISTORY_SECONDS, min(window.end, telemetry.end))
    return grid if first_cell(grid, window) >= 1 else None


def first_cell(history: Grid, window: Grid) -> int:
    """The first cell of a history that lies within the window as a whole; at most its last cell."""
    cell = int(np.ceil((window.start - history.start) / history.step - 1e-6))
    return min(max(0, cell), history.size - 1)


def merged(window: Sequence[RouteEpisode], history: Sequence[RouteEpisode]) -> list[RouteEpisode]:
    """Episodes of both searches, each told once: the finer cells know the times better, unless the history shows
    that it is clearly longer than the window's search could tell.

    Args:
        window: found within the window.
        history: found over history and window.
    """
    kept: list[RouteEpisode] = []
    dropped: set[int] = set()
    for old in history:
        same = [
            new
            for new in window
            if (new.kind, new.method, new.route) == (old.kind, old.method, old.route) and new.overlaps(old)
        ]
        if not same or _clearly_longer(old.start.timestamp(), old.end.timestamp(), old.grid.step, _spans(same)):
            kept.append(old)
            dropped.update(id(new) for new in same)
    kept += [new for new in window if id(new) not in dropped]
    return sorted(kept, key=lambda episode: episode.start)


def merged_anomalies(window: Sequence[Anomaly], history: Sequence[Anomaly], step: float) -> list[Anomaly]:
    """The same for anomalies of one metric; `step` is that of the history."""
    kept: list[Anomaly] = []
    dropped: set[int] = set()
    for old in history:
        begin, end = _span(old)
        same = [new for new in window if _span(new)[0] < end and begin < _span(new)[1]]
        if not same or _clearly_longer(begin, end, step, map(_span, same)):
            kept.append(old)
            dropped.update(id(new) for new in same)
    kept += [new for new in window if id(new) not in dropped]
    return sorted(kept, key=lambda anomaly: anomaly.timestamp)


def _clearly_longer(begin: float, end: float, step: float, others: Iterable[tuple[float, float]]) -> bool:
    spans = list(others)
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    # Edges in coarse cells are off by up to a cell each.
    return (end - begin) - (last - first) > 2 * step


def _spans(episodes: Iterable[RouteEpisode]) -> Iterable[tuple[float, float]]:
    return ((episode.start.timestamp(), episode.end.timestamp()) for episode in episodes)


def _span(anomaly: Anomaly) -> tuple[float, float]:
    begin = anomaly.timestamp.timestamp()
    return begin, anomaly.end_time.timestamp() if anomaly.end_time is not None else begin
