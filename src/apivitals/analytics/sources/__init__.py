"""Where telemetry is read from; every source gives the same shape.

A source yields OTLP export requests as decoded JSON (`{"resourceMetrics": [...]}`), in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from apivitals.errors import ConfigurationError


@runtime_checkable
class MetricsSource(Protocol):
    """Anything that hands out metric export requests of a time range.

    `start` and `end` are aware datetimes and a hint: a source may give more, and None is open.
    A `notes` attribute (a list of sentences), where there is one, ends up in the report.
    """

    def requests(self, start: datetime | None, end: datetime | None) -> Iterable[dict[str, Any]]:
        """Decoded ExportMetricsServiceRequests that overlap the range."""
        ...


def open_source(source: Any) -> MetricsSource:
    """A source from what a caller has: a path, several paths, a source, or an object with a `data_directory`.

    Raises:
        ConfigurationError: the value is none of these.
    """
    from apivitals.analytics.sources.otlp_json import OtlpJsonFiles

    if isinstance(source, (str, Path)):
        return OtlpJsonFiles(source)
    if isinstance(source, Sequence) and source and all(isinstance(item, (str, Path)) for item in source):
        return OtlpJsonFiles(*source)
    if isinstance(source, MetricsSource):
        return source
    directory = getattr(source, "data_directory", None)
    if isinstance(directory, (str, Path)):
        return OtlpJsonFiles(directory)
    raise ConfigurationError(
        f"source is {source!r}; give a folder or file of OTLP JSON lines, a list of them, or an object with a "
        "requests(start, end) method, such as a PerformanceMonitor"
    )
