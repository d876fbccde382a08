"""What to do about a finding: the troubleshooting table of the guide, sharpened by what moved along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Issue = Literal["high_response_time", "high_error_rate", "low_throughput"]

#: What usually helps, the likeliest first.
SOLUTIONS: dict[Issue, tuple[str, ...]] = {
    "high_response_time": (
        "Optimize the queries that this route makes: look at the slowest one with EXPLAIN and add the index it lacks",
        "Add caching for what the route reads often and what changes rarely",
        "Use background processing for work that the response does not need",
    ),
    "high_error_rate": (
        "Look at the exceptions in the logs of this time, and at what was deployed or changed right before it",
        "Add retry logic with backoff around calls that fail now and then",
        "Implement circuit breakers in front of what fails for long",
        "Scale resources if connections, memory or workers run out",
    ),
    "low_throughput": (
        "Check that the service and what is in front of it (load balancer, DNS, network) could be reached",
        "Optimize the code that holds up requests, and add caching",
        "Scale horizontally if workers are busy",
    ),
}

_REFINED: dict[str, str] = {
    "database_queries": "The route makes more queries per request than before: look for an N+1, and load related rows "
    "in one query",
    "database_time": "The time goes into the database: look for a missing index, a lock or a pool that is used up",
    "external_api_time": "The time goes into another service: give the call a timeout, cache its answer, and put a "
    "circuit breaker in front",
    "external_api_calls": "The route makes more outbound calls per request than before: batch or cache them",
    "cache_misses": "The cache misses more than before: look at its size, its keys and its time to live",
    "event_loop_lag": "The event loop is blocked: move blocking calls and heavy computation off it "
    "(`def` routes, a thread pool, background work)",
    "process_cpu_usage": "The process is short of CPU: profile this route, and scale out",
    "throughput": "Traffic rose at the same time: scale out, or shed load before it queues",
}


def advise(issue: Issue, moved: Sequence[str] = ()) -> tuple[str, ...]:
    """Advice for an issue, first that which the evidence points to.

    Args:
        issue: what is wrong.
        moved: short names of metrics that rose along with it, the strongest first.
    """
    refined = [_REFINED[name] for name in moved if name in _REFINED]
    # Where the time went is known then, and if it went into queries that is said already.
    guessed = SOLUTIONS[issue][1:] if refined and issue == "high_response_time" else SOLUTIONS[issue]
    return tuple([*refined, *guessed][:4])
