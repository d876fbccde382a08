"""Episodes, trends and forecasts in plain words, the one that hit most requests first."""

from __future__ import annotations

from collections.abc import Sequence

from apivitals.analytics.advice import advise
from apivitals.analytics.episodes import RouteEpisode
from apivitals.analytics.evidence import co_moving, how_they_failed, trace_ids
from apivitals.analytics.grid import Grid
from apivitals.analytics.telemetry import Telemetry
from apivitals.models import Change, Finding, Severity, Trend
from apivitals.wording import count, metric_title, number, place, quantity, sentence_case, share, span

#: Episodes of this share of the routes, and of this many, at one time are the service's and told once.
_MOST_ROUTES = 0.6
_SEVERAL = 3
#: A drift is worth a finding from a fifth of the level on.
_MIN_DRIFT = 0.2
#: And a step from this many milliseconds on.
_MIN_STEP_MS = 5.0
_WORSE_UP = ("response_time", "response_time_p95", "error_rate", "process_memory", "memory_usage", "event_loop_lag")


def told_once(routes: Sequence[RouteEpisode], service: Sequence[RouteEpisode], busy: int) -> list[RouteEpisode]:
    """Episodes without repetition: at the route where one or two explain it, at the service where most are hit.

    Args:
        routes: episodes of single routes.
        service: episodes of the service as a whole.
        busy: how many routes had enough requests to be judged.
    """
    kept = list(routes)
    for whole in service:
        inside = [episode for episode in routes if episode.kind == whole.kind and episode.overlaps(whole)]
        hit = {(episode.method, episode.route) for episode in inside}
        if len(hit) >= _SEVERAL and len(hit) >= _MOST_ROUTES * busy:
            kept = [episode for episode in kept if episode not in inside]
            kept.append(whole)
        elif not inside and not (whole.kind == "traffic" and any(whole.overlaps(other) for other in routes)):
            kept.append(whole)
    return kept


def episode_finding(telemetry: Telemetry, episode: RouteEpisode) -> Finding:
    """One episode as a finding, with its evidence and what to do about it."""
    where = place(episode.method, episode.route) or "The whole service"
    grid = episode.grid
    title, detail, evidence = _WORDS[episode.kind](telemetry, grid, episode, where)
    moved = co_moving(telemetry, grid, episode) if episode.kind == "latency" else []
    evidence += [item.sentence for item in moved]
    traces = trace_ids(telemetry, episode)
    if traces:
        evidence.append(f"traces of it: {', '.join(traces)}")
    return Finding(
        kind=episode.kind,
        severity=episode.severity,
        title=title,
        detail=detail,
        metric=episode.metric,
        start_time=episode.start,
        end_time=episode.end,
        route=episode.route,
        method=episode.method,
        value=episode.value,
        expected_value=episode.expected,
        confidence=episode.confidence,
        impact=episode.hit,
        evidence=tuple(evidence),
        advice=advise(_ISSUES[episode.kind], [item.metric for item in moved]),  # type: ignore[arg-type]
    )


_ISSUES = {"latency": "high_response_time", "errors": "high_error_rate", "traffic": "low_throughput"}


def _seconds(episode: RouteEpisode) -> str:
    return span((episode.end - episode.start).total_seconds())


def _slow(telemetry: Telemetry, grid: Grid, episode: RouteEpisode, where: str) -> tuple[str, str, list[str]]:
    slow = episode.slowdown
    ratio = episode.value / episode.expected if episode.expected > 0 else float("inf")
    what = "p95" if episode.metric == "response_time_p95" else "mean"
    before, now = quantity(episode.expected, "ms"), quantity(episode.value, "ms")
    title = f"{where} slowed down {number(_short(ratio))}× ({what} {before} → {now})"
    detail = (
        f"For {_seconds(episode)} the {what} latency of {where} was {now} instead of {before}; "
        f"{count(episode.requests)} requests were made in that time."
    )
    evidence = []
    if slow is not None:
        if what != "mean":
            evidence.append(f"mean {quantity(slow.mean_before * 1e3, 'ms')} → {quantity(slow.mean * 1e3, 'ms')}")
        if slow.p50 == slow.p50:
            evidence.append(f"median {quantity(slow.p50_before * 1e3, 'ms')} → {quantity(slow.p50 * 1e3, 'ms')}")
    return title, detail, evidence


def _failing(telemetry: Telemetry, grid: Grid, episode: RouteEpisode, where: str) -> tuple[str, str, list[str]]:
    title = f"{where} failed for {share(episode.value)} of requests (otherwise {share(episode.expected)})"
    detail = (
        f"For {_seconds(episode)}, {count(episode.hit)} of {count(episode.requests)} requests to {where} failed; "
        f"in the rest of the time {share(episode.expected)} did."
    )
    kinds = how_they_failed(telemetry, grid, episode)
    return title, detail, [f"{count(amount)} × {name}" for name, amount in kinds[:5]]


def _quiet(telemetry: Telemetry, grid: Grid, episode: RouteEpisode, where: str) -> tuple[str, str, list[str]]:
    now, before = quantity(episode.value, "rps"), quantity(episode.expected, "rps")
    title = f"{where} got {now} instead of {before}"
    detail = (
        f"For {_seconds(episode)} traffic was {now} where {before} are usual; about {count(episode.hit)} are missing."
    )
    return title, detail, [f"{count(episode.requests)} requests in {_seconds(episode)}"]


_WORDS = {"latency": _slow, "errors": _failing, "traffic": _quiet}


def _short(ratio: float) -> float:
    return float(f"{ratio:.2g}") if ratio < 100 else ratio


def step_finding(change: Change, method: str | None, route: str | None, requests: int) -> Finding | None:
    """A lasting step of mean latency to the worse as a finding, None where it is none or below a fifth.

    Args:
        change: of `response_time`.
        requests: how many were made since.
    """
    if change.after < (1 + _MIN_DRIFT) * change.before or change.after - change.before < _MIN_STEP_MS:
        return None
    where = place(method, route) or "The whole service"
    before, after = quantity(change.before, "ms"), quantity(change.after, "ms")
    ratio = change.after / change.before
    severity: Severity = "high" if ratio >= 3 else "medium" if ratio >= 1.5 else "low"
    return Finding(
        kind="latency",
        severity=severity,
        title=f"{where} became {number(_short(ratio))}× slower and stayed so (mean {before} → {after})",
        detail=f"The mean latency of {where} stepped from {before} to {after} at one moment and did not come back; "
        f"{count(requests)} requests were made since.",
        metric=change.metric,
        start_time=change.timestamp,
        route=route,
        method=method,
        value=change.after,
        expected_value=change.before,
        confidence=change.confidence,
        impact=requests,
        advice=("Look at what was deployed or changed at that moment", *advise("high_response_time")),
    )


def trend_finding(trend: Trend, level: float, requests: int) -> Finding | None:
    """A drift for the worse as a finding, None where it is none or small.

    Args:
        trend: of a metric that is better when lower.
        level: the metric's mean over the window, in its unit.
        requests: how many requests there were in the window.
    """
    begin = level - trend.change / 2
    if trend.trend_direction != "increasing" or trend.metric not in _WORSE_UP or level <= 0:
        return None
    relative = trend.change / begin if begin > 0 else 2.0
    if relative < _MIN_DRIFT:
        return None
    title = sentence_case(f"{metric_title(trend.metric, trend.labels)} is drifting up")
    hours = trend.change / trend.slope if trend.slope else 0.0
    severity: Severity = "high" if relative >= 1 else "medium" if relative >= 0.5 else "low"
    memory = trend.metric in ("process_memory", "memory_usage")
    return Finding(
        kind="saturation" if memory else "trend",
        severity=severity,
        title=f"{title}: {quantity(max(begin, 0.0), trend.unit)} → {quantity(begin + trend.change, trend.unit)}",
        detail=f"Over {span(hours * 3600)} it rose by {quantity(trend.change, trend.unit)}, beyond its daily pattern "
        "and its noise.",
        metric=trend.metric,
        start_time=trend.start_time,
        end_time=trend.end_time,
        value=begin + trend.change,
        expected_value=max(begin, 0.0),
        confidence=trend.confidence,
        impact=0 if memory else requests,
        evidence=(f"{quantity(trend.slope, trend.unit)} an hour", f"p = {trend.p_value:.2g}, {trend.points} values"),
        advice=(
            "Look for what keeps growing: caches without a bound, lists in module scope, tasks that never end",
            "Compare two heap snapshots an hour apart (tracemalloc)",
        )
        if memory
        else advise("high_error_rate" if trend.metric == "error_rate" else "high_response_time"),
    )


def ranked(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings by the requests that they hit, then by severity."""
    order = ("critical", "high", "medium", "low")
    return tuple(sorted(findings, key=lambda item: (-item.impact, order.index(item.severity))))
