"""What Prometheus calls OpenTelemetry's metrics, units and attributes, and how it writes their values.

Names follow the OpenTelemetry-to-Prometheus rules, so that `/metrics`, the collector's Prometheus exporter
and Prometheus' own OTLP receiver agree.
Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
"""

from __future__ import annotations

import math
import re

from apivitals.export.snapshot import Attributes

_UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "TiBy": "tebibytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "TBy": "terabytes",
    "%": "percent",
    "Hz": "hertz",
    "Cel": "celsius",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "m": "meters",
}
_PER = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]+")


def metric_name(name: str, unit: str, kind: str) -> str:
    """Prometheus name of an OpenTelemetry metric, by its name, UCUM unit and kind."""
    words = [word for word in _NOT_IN_NAME.split(name) if word]
    main, per = _unit_words(unit)
    words += [word for word in main if word not in words]
    if per and per[-1] not in words:
        words += ["per", *per]
    if kind == "counter":
        words = [*(word for word in words if word != "total"), "total"]
    elif kind == "gauge" and unit == "1":
        words = [*(word for word in words if word != "ratio"), "ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() or not joined else joined


def unit_name(unit: str, kind: str) -> str:
    """Prometheus name of a UCUM unit, as `metric_name` puts it at the end of a name; empty where there is none."""
    if kind == "gauge" and unit == "1":
        return "ratio"
    main, per = _unit_words(unit)
    return "_".join([*main, "per", *per] if main and per else main)


def _unit_words(unit: str) -> tuple[list[str], list[str]]:
    """The words of a unit, and those of what it is per; an annotation in braces is none."""
    over, _, under = re.sub(r"\{[^}]*\}", "", unit).partition("/")
    main = "" if over.strip() == "1" else _UNITS.get(over.strip(), over)
    per = _PER.get(under.strip(), _UNITS.get(under.strip(), under))
    return [word for word in _NOT_IN_NAME.split(main) if word], [word for word in _NOT_IN_NAME.split(per) if word]


def label_pairs(attributes: Attributes, reserved: str = "") -> dict[str, str]:
    """Labels of attributes, values not escaped; a label called as `reserved` becomes `exported_…`."""
    labels: dict[str, str] = {}
    for key, value in attributes:
        name = re.sub("_+", "_", _NOT_IN_LABEL.sub("_", key))
        name = f"key_{name}" if name[:1].isdigit() or not name else name
        # As Prometheus does with a label that is its own.
        name = f"exported_{name}" if name == reserved else name
        # Two attributes can meet in one label; the rules join their values.
        labels[name] = f"{labels[name]};{_text(value)}" if name in labels else _text(value)
    return labels


def label_text(attributes: Attributes, reserved: str = "") -> str:
    """Labels of attributes as they stand between the braces."""
    return ",".join(f'{name}="{escape(value)}"' for name, value in label_pairs(attributes, reserved).items())


def braces(labels: str) -> str:
    """A label text in braces; nothing where there are no labels."""
    return f"{{{labels}}}" if labels else ""


def escape(value: str) -> str:
    """A label's value, or OpenMetrics' help, as it stands between quotes."""
    return escape_help(value).replace('"', '\\"')


def escape_help(text: str) -> str:
    """A help text of the classic format, which leaves quotes as they are."""
    # A file name that is not UTF-8 brings lone surrogates along, which nothing can encode.
    encodable = text.encode(errors="replace").decode()
    return encodable.replace("\\", "\\\\").replace("\n", "\\n")


def number(value: float) -> str:
    """A sample's value."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def border(bound: float) -> str:
    """The `le` of a bucket, as OpenMetrics wants it: Go's `%g`, and always with a point or an exponent.

    The classic text has the same, because Prometheus 2 keeps the label as it is written: a scrape in the other
    format would be another series.
    """
    if not math.isfinite(bound):
        return number(bound)
    text = repr(float(bound))
    whole, _, fraction = text.lstrip("-").partition(".")
    # Python writes an exponent from 1e16 on, Go from 1e6; below 0.0001 they agree.
    if "e" in text or len(whole) < 7:
        return text
    digits = (whole + fraction).rstrip("0")
    mantissa = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    return f"{'-' if bound < 0 else ''}{mantissa}e+{len(whole) - 1:02d}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return str(value)
