"""Settings and thresholds.

A value is looked up in this order: the OTEL_* variable that governs it, the APIVITALS_* variable, the
argument given in code, `apivitals.toml`, `[tool.apivitals]` in `pyproject.toml`, the default. The two
files are searched for in the working directory and above it. `docs/configuration.md` is generated from
the fields below.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from apivitals.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ServerInstrumentation = Literal["apivitals", "contrib", "native"]
SERVER_INSTRUMENTATIONS: tuple[ServerInstrumentation, ...] = ("apivitals", "contrib", "native")

_LEVELS = ("excellent", "good", "acceptable", "poor", "critical")
#: An integer of a file can be larger than any float.
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class PerformanceThresholds:
    """The bounds that decide every class; see `apivitals.classify`.

    Each mapping names some of excellent, good, acceptable, poor and critical; a level left out keeps its
    default. `critical` of `response_time_ms` is the bound from which an alert is critical and not a warning.

    Raises:
        ConfigurationError: an unknown level, a value that is not a positive number, or bounds that do not
            increase (for `throughput_rps`: decrease).
    """

    response_time_ms: Mapping[str, float] = field(default_factory=dict)
    throughput_rps: Mapping[str, float] = field(default_factory=dict)
    error_rate_percent: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, defaults in _DEFAULT_BOUNDS.items():
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise ConfigurationError(f"{name} is {given!r}; give a table of {', '.join(_LEVELS)}")
            bounds = _checked_bounds(name, {**defaults, **given})
            object.__setattr__(self, name, bounds)

    @property
    def latency_bounds(self) -> tuple[float, ...]:
        """Upper bounds of excellent, good, acceptable and poor, in seconds."""
        return tuple(self.response_time_ms[level] / 1e3 for level in _LEVELS[:4])

    @property
    def throughput_bounds(self) -> tuple[float, ...]:
        """Lower bounds of excellent, good, acceptable and poor, in requests per second."""
        return tuple(self.throughput_rps[level] for level in _LEVELS[:4])

    @property
    def error_rate_bounds(self) -> tuple[float, ...]:
        """Upper bounds of excellent, good, acceptable and poor, as ratios 0 to 1."""
        return tuple(self.error_rate_percent[level] / 1e2 for level in _LEVELS[:4])

    @property
    def all_latency_bounds(self) -> tuple[float, ...]:
        """`latency_bounds` and the bound of a critical alert: what the histogram must be cut at."""
        return tuple(self.response_time_ms[level] / 1e3 for level in _LEVELS)


_DEFAULT_BOUNDS: dict[str, dict[str, float]] = {
    "response_time_ms": dict(zip(_LEVELS, (100.0, 300.0, 500.0, 1000.0, 2000.0), strict=True)),
    "throughput_rps": dict(zip(_LEVELS, (1000.0, 500.0, 100.0, 50.0, 10.0), strict=True)),
    "error_rate_percent": dict(zip(_LEVELS, (0.1, 1.0, 5.0, 10.0, 25.0), strict=True)),
}


def _checked_bounds(name: str, bounds: Mapping[str, Any]) -> dict[str, float]:
    for level, value in bounds.items():
        if level not in _LEVELS:
            raise ConfigurationError(f"{name} has a level {level!r}; the levels are {', '.join(_LEVELS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LARGEST:
            raise ConfigurationError(f"{name}[{level!r}] is {value!r}; give a positive number")
    ordered = [float(bounds[level]) for level in _LEVELS]
    falling = name == "throughput_rps"
    pairs = pairwise(ordered)
    if not all(a > b if falling else a < b for a, b in pairs):
        shown = ", ".join(f"{level} {bounds[level]:g}" for level in _LEVELS)
        raise ConfigurationError(
            f"{name} must {'decrease' if falling else 'increase'} from excellent to critical, and does not: {shown}"
        )
    return dict(zip(_LEVELS, ordered, strict=True))


def _setting(default: Any, help_: str, *, otel: tuple[str, ...] = (), factory: Callable[[], Any] | None = None) -> Any:
    metadata = {"help": help_, "otel": otel}
    return field(default_factory=factory, metadata=metadata) if factory else field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about apivitals that can be set. Build one with `load`; the constructor takes values as they are."""

    service_name: str = _setting(
        "",
        "Name of the service. Empty: guessed from the command line (`uvicorn shop:app` is `shop`).",
        otel=("OTEL_SERVICE_NAME",),
    )
    server_instrumentation: ServerInstrumentation = _setting(
        "apivitals",
        "Who makes server telemetry: `apivitals`, `contrib` (opentelemetry-instrumentation-fastapi) or `native` "
        "(FastAPI's own).",
    )
    exclude_spans: str = _setting(
        "receive,send,operations",
        "Spans beside the request's own to leave out: `contrib` makes `receive` and `send`, `native` `operations`. "
        "`none` leaves out none.",
    )
    excluded_urls: str = _setting(
        "",
        "Comma-separated regular expressions; a request whose URL matches one gives no telemetry.",
        otel=("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"),
    )
    http_known_methods: str = _setting(
        "",
        "Comma-separated HTTP methods that count as themselves; others are `_OTHER`. Empty: those of RFC 9110, "
        "PATCH and QUERY.",
        otel=("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS",),
    )
    http_capture_headers_server_request: str = _setting(
        "",
        "Comma-separated names (regular expressions) of request headers that become span attributes.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",),
    )
    http_capture_headers_server_response: str = _setting(
        "",
        "Comma-separated names (regular expressions) of response headers that become span attributes.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",),
    )
    http_capture_headers_sanitize_fields: str = _setting(
        "",
        "Comma-separated regular expressions; a captured header whose name has one in it is shown as `[REDACTED]`.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",),
    )
    data_dir: str = _setting("", "Folder of the telemetry files. Empty: `apivitals` in the user's state directory.")
    files_max_age_days: float = _setting(7.0, "Telemetry files older than this are removed.")
    files_max_size_mb: float = _setting(512.0, "The files of a service are kept below this; spans go before metrics.")
    files_rotate_seconds: float = _setting(3600.0, "A telemetry file is closed and compressed after this time.")
    files_interval_seconds: float = _setting(
        15.0,
        "Time between two snapshots in the metrics file. OTEL_METRIC_EXPORT_INTERVAL is in milliseconds.",
        otel=("OTEL_METRIC_EXPORT_INTERVAL",),
    )
    prometheus_host: str = _setting(
        "127.0.0.1", "Address that serves `/metrics`.", otel=("OTEL_EXPORTER_PROMETHEUS_HOST",)
    )
    prometheus_port: int = _setting(9464, "Port that serves `/metrics`.", otel=("OTEL_EXPORTER_PROMETHEUS_PORT",))
    class_window_seconds: float = _setting(60.0, "Window of the throughput and error-rate classes and of the health.")
    throughput_objective: bool = _setting(
        False, "Let a poor throughput class make health worse. Off: a quiet night is not an outage."
    )
    gc_freeze: bool = _setting(
        False,
        "Take what the application holds after its start-up out of garbage collection: `gc.freeze()`. Shortens the "
        "longest pauses; what start-up left behind is never freed.",
    )
    system_metrics: bool = _setting(True, "Emit process and host metrics and the event-loop lag.")
    thresholds: PerformanceThresholds = _setting(
        None,
        "Class bounds: tables `response_time_ms`, `throughput_rps`, `error_rate_percent`. As a variable: "
        "`APIVITALS_RESPONSE_TIME_MS=excellent=50,good=200` and so on.",
        factory=PerformanceThresholds,
    )
    routes: Mapping[str, PerformanceThresholds] = _setting(
        None,
        'Class bounds of single routes, files only: `[routes."/reports/{id}".response_time_ms]`.',
        factory=dict,
    )

    def __post_init__(self) -> None:
        if self.server_instrumentation not in SERVER_INSTRUMENTATIONS:
            raise ConfigurationError(
                f"server_instrumentation is {self.server_instrumentation!r}; "
                f"it can be {' or '.join(SERVER_INSTRUMENTATIONS)}"
            )
        if not 0 <= self.prometheus_port <= 65535:
            raise ConfigurationError(f"prometheus_port is {self.prometheus_port}; a port is a number from 0 to 65535")
        for name in (
            "files_max_age_days",
            "files_max_size_mb",
            "files_rotate_seconds",
            "files_interval_seconds",
            "class_window_seconds",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; give a number above 0")
        for name in (
            "excluded_urls",
            "http_capture_headers_server_request",
            "http_capture_headers_server_response",
            "http_capture_headers_sanitize_fields",
        ):
            for pattern in getattr(self, name).split(","):
                try:
                    re.compile(pattern.strip())
                except (re.error, OverflowError, RecursionError) as error:
                    raise ConfigurationError(
                        f"{name} has {pattern.strip()!r}, which is no regular expression: {error}"
                    ) from None

    def thresholds_for(self, route: str | None) -> PerformanceThresholds:
        """Class bounds of a route template; the service's own when the route has none."""
        return self.routes.get(route, self.thresholds) if route else self.thresholds

    def duration_bounds(self, defaults: tuple[float, ...]) -> tuple[float, ...]:
        """Boundaries of the duration histogram, in seconds: the defaults united with every threshold."""
        bounds = set(defaults)
        for thresholds in (self.thresholds, *self.routes.values()):
            bounds.update(thresholds.all_latency_bounds)
        return tuple(sorted(bounds))

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        *,
        directory: Path | None = None,
        problems: list[str] | None = None,
        **arguments: Any,
    ) -> Settings:
        """Settings from an environment, a folder's files and arguments, in the order the module states.

        Args:
            environ: the environment variables.
            directory: where to look for `apivitals.toml` and `pyproject.toml`, upwards; None reads no file.
            problems: when given, a bad value is described here and its default used instead of raising: a
                service that starts under the launcher must not fail over a setting.
            **arguments: values given in code; None counts as not given.

        Raises:
            ConfigurationError: a bad value, and `problems` is None.
        """
        table, origin = _read_files(directory, problems) if directory else ({}, "")
        known = {entry.name for entry in fields(cls)}
        for name in arguments.keys() - known:
            raise ConfigurationError(f"unknown setting {name!r}; the settings are {', '.join(sorted(known))}")
        for name in table.keys() - known:
            _report(problems, f"unknown setting {name!r} in {origin}; the settings are {', '.join(sorted(known))}")
        values: dict[str, Any] = {}
        for entry in fields(cls):
            for source, raw in _candidates(entry.name, entry.metadata["otel"], environ, arguments, table, origin):
                try:
                    value = _convert(entry.name, raw, values.get("thresholds"))
                    # An OTEL_ interval is in milliseconds, ours in seconds.
                    values[entry.name] = value / 1e3 if source == "OTEL_METRIC_EXPORT_INTERVAL" else value
                    cls(**{entry.name: values[entry.name]})
                    break
                except ConfigurationError as error:
                    values.pop(entry.name, None)
                    _report(problems, f"{source}: {error}")
        return cls(**values)


def _candidates(
    name: str,
    otel: tuple[str, ...],
    environ: Mapping[str, str],
    arguments: Mapping[str, Any],
    table: Mapping[str, Any],
    origin: str,
) -> list[tuple[str, Any]]:
    """What was said about one setting, the strongest first, with who said it."""
    found: list[tuple[str, Any]] = [
        (key, environ[key]) for key in (*otel, f"APIVITALS_{name.upper()}") if environ.get(key)
    ]
    if name == "thresholds":
        given = {
            key: environ[f"APIVITALS_{key.upper()}"]
            for key in _DEFAULT_BOUNDS
            if environ.get(f"APIVITALS_{key.upper()}")
        }
        if given:
            found.append(("APIVITALS_" + "/".join(key.upper() for key in given), given))
    if arguments.get(name) is not None:
        found.append((f"argument {name}", arguments[name]))
    if name in table:
        found.append((origin, table[name]))
    return found


def _report(problems: list[str] | None, text: str) -> None:
    if problems is None:
        raise ConfigurationError(text)
    problems.append(text)


def _read_files(directory: Path, problems: list[str] | None) -> tuple[dict[str, Any], str]:
    for folder in (directory, *directory.parents):
        for file, section in (("apivitals.toml", None), ("pyproject.toml", "apivitals")):
            path = folder / file
            try:
                table = tomllib.loads(path.read_text(encoding="utf-8"))
            except OSError:  # not there, not a file, or not for us to read
                continue
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                # Somebody else's broken pyproject.toml is not ours to complain about.
                if section is None:
                    _report(problems, f"{path} is not valid TOML: {error}")
                continue
            if section is None:
                return table, str(path)
            tools = table.get("tool")
            if isinstance(tools, dict) and section in tools:
                if isinstance(tools[section], dict):
                    return tools[section], f"[tool.{section}] in {path}"
                _report(problems, f"tool.{section} in {path} is {tools[section]!r}; give a table")
    return {}, ""


def _convert(name: str, raw: Any, thresholds: PerformanceThresholds | None) -> Any:
    if name == "routes":
        return _routes(name, raw, thresholds or PerformanceThresholds())
    convert: Callable[[str, Any], Any] = _CONVERTERS.get(name, _text)
    return convert(name, raw)


def _text(name: str, raw: Any) -> str:
    if isinstance(raw, (str, Path)):
        return str(raw).strip()
    if isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw):
        return ",".join(cast("list[str]", raw))
    raise ConfigurationError(f"{name} is {raw!r}; give text")


def _number(name: str, raw: Any) -> float:
    try:
        if isinstance(raw, bool):
            raise ValueError
        return float(raw)
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"{name} is {raw!r}; give a number") from None


def _integer(name: str, raw: Any) -> int:
    number = _number(name, raw)
    if not number.is_integer():
        raise ConfigurationError(f"{name} is {raw!r}; give a whole number")
    return int(number)


def _flag(name: str, raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if isinstance(raw, str) and raw.strip().lower() in ("false", "0", "no", "off"):
        return False
    raise ConfigurationError(f"{name} is {raw!r}; give true or false")


def _thresholds(name: str, raw: Any) -> PerformanceThresholds:
    if isinstance(raw, PerformanceThresholds):
        return raw
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{name} is {raw!r}; give tables {', '.join(_DEFAULT_BOUNDS)}")
    unknown = raw.keys() - _DEFAULT_BOUNDS.keys()
    if unknown:
        raise ConfigurationError(f"{name} has a table {min(unknown)!r}; the tables are {', '.join(_DEFAULT_BOUNDS)}")
    return PerformanceThresholds(
        **{key: _parse_bounds(key, value) if isinstance(value, str) else value for key, value in raw.items()}
    )


def _parse_bounds(name: str, text: str) -> dict[str, float]:
    bounds = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        level, separator, value = part.partition("=")
        if not separator:
            raise ConfigurationError(f"{name} has {part!r}; write it as excellent=100,good=300")
        bounds[level.strip()] = _number(f"{name}[{level.strip()!r}]", value)
    return bounds


def _routes(name: str, raw: Any, service: PerformanceThresholds) -> Mapping[str, PerformanceThresholds]:
    """Bounds by route; what a route's table leaves out is the service's."""
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{name} is {raw!r}; give a table of routes")
    return {
        route: value
        if isinstance(value, PerformanceThresholds)
        else _thresholds(f"{name}[{route!r}]", _completed(value, service))
        for route, value in raw.items()
    }


def _completed(tables: Any, service: PerformanceThresholds) -> Any:
    if not isinstance(tables, Mapping):
        return tables
    return {
        key: {**getattr(service, key), **value} if key in _DEFAULT_BOUNDS and isinstance(value, Mapping) else value
        for key, value in ({name: {} for name in _DEFAULT_BOUNDS} | dict(tables)).items()
    }


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        (
            "files_max_age_days",
            "files_max_size_mb",
            "files_rotate_seconds",
            "files_interval_seconds",
            "class_window_seconds",
        ),
        _number,
    ),
    "prometheus_port": _integer,
    "throughput_objective": _flag,
    "gc_freeze": _flag,
    "system_metrics": _flag,
    "thresholds": _thresholds,
}
