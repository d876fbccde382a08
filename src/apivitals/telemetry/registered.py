"""Samplers and id generators that an installed package registers; the SDK itself reads the variables for its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def registered_sampler(environ: Mapping[str, str]) -> Any:
    """The sampler that OTEL_TRACES_SAMPLER names, None where it is one of the SDK's."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    if not name or name in ("always_on", "always_off", "traceidratio") or name.startswith("parentbased_"):
        return None
    from opentelemetry.sdk._configuration import _import_sampler

    return _import_sampler(name)


def registered_id_generator(environ: Mapping[str, str]) -> Any:
    """The id generator that OTEL_PYTHON_ID_GENERATOR names, None where it is the SDK's."""
    name = environ.get("OTEL_PYTHON_ID_GENERATOR", "").strip()
    if not name or name == "random":
        return None
    from opentelemetry.sdk._configuration import _import_id_generator

    return _import_id_generator(name)
