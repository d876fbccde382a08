"""Every error that apivitals raises: what happened, the value that was wrong, and the remedy."""

from __future__ import annotations

from typing import Any


class ApiVitalsError(Exception):
    """Base of all errors raised by apivitals."""


class ConfigurationError(ApiVitalsError, ValueError):
    """A setting, a threshold set or an argument has a value that cannot be used."""


class UnknownMetricError(ApiVitalsError, KeyError):
    """A metric name is neither an OpenTelemetry name we emit nor one of the short names."""

    def __init__(self, name: str, known: tuple[str, ...], close: tuple[str, ...] = ()) -> None:
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known short names: {', '.join(known)}"
        self.name = name
        self.message = f"unknown metric {name!r}; {hint}"
        self._given = (name, known, close)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:  # it has to come back from the processes of an analysis
        return type(self), self._given

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return self.message


class NoDataError(ApiVitalsError):
    """A source holds no telemetry that can be read."""


class MissingExtraError(ApiVitalsError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, feature: str, extra: str, missing: str) -> None:
        self.extra = extra
        self._given = (feature, extra, missing)
        super().__init__(f"{feature} needs {missing!r}, which is not installed: run  pip install 'apivitals[{extra}]'")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given
