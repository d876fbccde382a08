"""From running totals to what happened between two exports, with restarts and missing baselines told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apivitals.analytics.grid import Floats


@dataclass(frozen=True, slots=True)
class Increments:
    """What accrued in intervals: `begins` and `ends` of shape (n,), `amounts` of shape (n, k), and how often
    the total started again from zero."""

    begins: Floats
    ends: Floats
    amounts: Floats
    resets: int = 0


def difference(
    times: Floats,
    starts: Floats,
    totals: Floats,
    *,
    delta: bool,
    previous: float | None,
    horizon: float,
    may_fall: int = 0,
) -> Increments:
    """Increments of one stream of one process.

    A total begins again from zero where its start time moves forward or where it falls. The first total
    counts from zero if the process exported before without this stream (`previous`), or if it started at or
    after `horizon`; otherwise it is a baseline, because how much of it belongs to the window is unknown.

    Args:
        times: time of each point, shape (n,), seconds since the epoch, in any order.
        starts: start time of each point, 0 where unknown.
        totals: values, shape (n, k): counts, sums, buckets, which never fall without a restart.
        delta: the points are increments already.
        previous: time of this process's last export before the stream's first point, None if there was none.
        horizon: the earliest start time that counts as within the window.
        may_fall: so many leading columns (a histogram's sum) say nothing about a restart.
    """
    order = np.lexsort((starts, times))
    times, starts, totals = times[order], starts[order], totals[order]
    # The same point read twice (a file listed twice, a retry of the exporter) is one point: the last one.
    keep = np.append(times[1:] != times[:-1], True) if len(times) else np.zeros(0, bool)
    times, starts, totals = times[keep], starts[keep], totals[keep]
    if not len(times):
        return Increments(times, times, totals)
    if delta:
        begins = np.where((starts > 0) & (starts < times), starts, np.concatenate([times[:1], times[:-1]]))
        begins[1:] = np.maximum(begins[1:], times[:-1])
        return Increments(begins, times, totals)
    fell = (totals[1:, may_fall:] < totals[:-1, may_fall:]).any(axis=1)
    # Some exporters compute the start time anew each time; below a millisecond it has not moved.
    moved = (starts[1:] > starts[:-1] + 1e-3) & (starts[:-1] > 0)
    restarted = fell | moved
    amounts = np.where(restarted[:, None], totals[1:], totals[1:] - totals[:-1])
    begins = np.where(restarted & (starts[1:] > times[:-1]) & (starts[1:] < times[1:]), starts[1:], times[:-1])
    first = starts[0] if starts[0] > 0 else -np.inf
    zero = None
    if previous is not None and previous < times[0] and first <= times[0]:
        zero = max(previous, first) if first > -np.inf else previous
    elif horizon <= first <= times[0]:
        zero = first
    if zero is not None:
        begins = np.concatenate([[zero], begins])
        amounts = np.concatenate([totals[:1], amounts])
        ends = times
    else:
        ends = times[1:]
    return Increments(begins, ends, amounts, int(restarted.sum()))
