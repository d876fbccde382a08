"""The metrics of a Snapshot as families: all that share one Prometheus name, of one type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apivitals.export.naming import metric_name, unit_name
from apivitals.export.snapshot import Attributes, Metric, Scope, Snapshot

#: What the name of a histogram's series can end with.
HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")
#: The series that says what emits the others.
TARGET_INFO = "target_info"

_TYPES = {
    "counter": "counter",
    "updowncounter": "gauge",
    "gauge": "gauge",
    "histogram": "histogram",
    "exponential": "histogram",
}


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics of one name.

    Attributes:
        name: what its series are called, or begin with.
        kind: counter, gauge, histogram, or untyped.
        unit: its unit where the name ends with one, without `_total`.
        help: one line or more.
        members: metrics, each with the labels that tell its scope from the others'.
    """

    name: str
    kind: str
    unit: str
    help: str
    members: tuple[tuple[Attributes, Metric], ...]


def families(snapshot: Snapshot) -> Iterator[Family]:
    """The families of a snapshot, in its order.

    Left out are metrics without points, deltas, a metric whose type contradicts the first of its name, and one
    whose name is taken by `target_info` or by a part of a histogram.
    """
    grouped = _by_name(snapshot)
    taken = {TARGET_INFO} if snapshot.resource else set()
    taken.update(
        name + part for name, members in grouped.items() if _kind(members) == "histogram" for part in HISTOGRAM_PARTS
    )
    for name, members in grouped.items():
        if name in taken:
            continue
        first = members[0][1]
        # A gauge may not end like a part of a histogram, and the conventions have such names.
        kind = "untyped" if _kind(members) != "histogram" and name.endswith(HISTOGRAM_PARTS) else _kind(members)
        unit = unit_name(first.unit, first.kind)
        shown = unit if unit and name.removesuffix("_total").endswith(f"_{unit}") else ""
        labels = {id(scope): _scope_labels(scope) for scope, _ in members}
        several = len(set(labels.values())) > 1
        yield Family(
            name,
            kind,
            shown,
            first.description or first.name,
            tuple((labels[id(scope)] if several else (), metric) for scope, metric in members),
        )


def _kind(members: list[tuple[Scope, Metric]]) -> str:
    return _TYPES[members[0][1].kind]


def _by_name(snapshot: Snapshot) -> dict[str, list[tuple[Scope, Metric]]]:
    grouped: dict[str, list[tuple[Scope, Metric]]] = {}
    for scope in snapshot.scopes:
        for metric in scope.metrics:
            if not metric.points or metric.delta:
                continue
            members = grouped.setdefault(metric_name(metric.name, metric.unit, metric.kind), [])
            if not members or _kind(members) == _TYPES[metric.kind]:
                members.append((scope, metric))
    return grouped


def _scope_labels(scope: Scope) -> Attributes:
    version: Attributes = (("otel_scope_version", scope.version),) if scope.version else ()
    return (("otel_scope_name", scope.name), *version)
