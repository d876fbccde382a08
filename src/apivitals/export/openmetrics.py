"""What OpenMetrics 1.0 says otherwise than the classic text: names of families, and exemplars.

Source: https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from apivitals.export.families import Family
from apivitals.export.naming import escape, label_pairs, number
from apivitals.export.snapshot import Exemplar

EOF = "# EOF\n"
TARGET_HEADER = "# TYPE target info\n# HELP target Attributes of the service that emits these metrics."
#: Characters that the names and values of an exemplar's labels may have together.
EXEMPLAR_LIMIT = 128

_SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
}
_TIME = attrgetter("time_ns")
#: Who keeps a name that two could claim: a histogram cannot be called otherwise, a counter can.
_PRECEDENCE = {"histogram": 0, "gauge": 1, "untyped": 1, "counter": 2}


def unambiguous(families: Iterable[Family]) -> list[Family]:
    """The families, in their order, such that no series could belong to two of them.

    The family of a counter has no `_total`, so it can be called as a gauge is. Such a counter is shown untyped,
    because its values are worth more than its type. What is ambiguous even so is left out.
    """
    every = list(families)
    taken = {"target", "target_info"}
    kept: dict[str, Family] = {}
    for family in sorted(every, key=lambda family: _PRECEDENCE[family.kind]):
        shown = (family, replace(family, kind="untyped")) if family.kind == "counter" else (family,)
        for candidate in shown:
            names = _names(candidate)
            if taken.isdisjoint(names):
                taken |= names
                kept[family.name] = candidate
                break
    return [kept[family.name] for family in every if family.name in kept]


def header(family: Family) -> str:
    """The lines above a family's series, the last without its end."""
    kind = "unknown" if family.kind == "untyped" else family.kind
    name = family.name.removesuffix("_total") if kind == "counter" else family.name
    unit = f"# UNIT {name} {family.unit}\n" if family.unit and name.endswith(f"_{family.unit}") else ""
    return f"# TYPE {name} {kind}\n{unit}# HELP {name} {escape(family.help)}"


def bucket_exemplars(exemplars: Sequence[Exemplar], bounds: Sequence[float]) -> dict[int, str]:
    """The newest exemplar of each bucket that has one, as it stands behind the bucket's value."""
    # The later of two takes the place; NaN is in no bucket.
    return {
        bisect_left(bounds, exemplar.value): exemplar_text(exemplar)
        for exemplar in sorted(exemplars, key=_TIME)
        if exemplar.value == exemplar.value
    }


def counter_exemplar(exemplars: Sequence[Exemplar]) -> str:
    """The newest exemplar of a counter, as it stands behind the counter's value."""
    return exemplar_text(max(exemplars, key=_TIME))


def exemplar_text(exemplar: Exemplar) -> str:
    """An exemplar with its ids, and with its attributes where all of them fit into what is allowed."""
    if exemplar.trace_id and not exemplar.attributes:
        labels = f'trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"'
    else:
        labels = _exemplar_labels(exemplar)
    return f" # {{{labels}}} {number(exemplar.value)} {exemplar.time_ns / 1e9:.3f}"


def _exemplar_labels(exemplar: Exemplar) -> str:
    ids = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id} if exemplar.trace_id else {}
    pairs = label_pairs(exemplar.attributes) | ids
    if sum(len(name) + len(value) for name, value in pairs.items()) > EXEMPLAR_LIMIT:
        pairs = ids
    return ",".join(f'{name}="{escape(value)}"' for name, value in pairs.items())


def _names(family: Family) -> set[str]:
    if family.kind != "counter":
        return {family.name + suffix for suffix in _SUFFIXES.get(family.kind, ("",))}
    base = family.name.removesuffix("_total")
    # A counter that is called nothing but `total` has no name without it.
    return {base + suffix for suffix in _SUFFIXES["counter"]} if base != family.name else {"target"}
