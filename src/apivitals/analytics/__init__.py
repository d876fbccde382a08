"""EXPLAIN: a job of its own that reads what was exported and says what changed.

`PerformanceAnalytics` is the public face; `apivitals.analytics.job` holds it and the work behind it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from apivitals.errors import MissingExtraError

if TYPE_CHECKING:
    from apivitals.analytics.job import PerformanceAnalytics as PerformanceAnalytics
    from apivitals.analytics.job import analyse as analyse

# One clear sentence instead of an import error from the depths, whichever module is imported first.
for _package in ("numpy", "scipy", "orjson"):
    if find_spec(_package) is None:
        raise MissingExtraError("the analytics job", "analytics", _package)

__all__ = ["PerformanceAnalytics", "analyse"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from apivitals.analytics import job

        return getattr(job, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
