"""Who emits the telemetry: the service's resource, completed by what we know of the process."""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from apivitals.settings import Settings
from apivitals.telemetry.plan import guess_service_name

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource


def our_version() -> str:
    """The version of apivitals that is installed."""
    try:
        return version("apivitals")
    except PackageNotFoundError:
        return "unknown"


def service_resource(settings: Settings) -> Resource:
    """What the environment says of the service, completed by what we know; the environment wins."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    said = OTELResourceDetector().detect().attributes
    ours: dict[str, Any] = {
        "service.instance.id": str(uuid.uuid4()),
        "telemetry.distro.name": "apivitals",
        "telemetry.distro.version": our_version(),
    }
    name = settings.service_name or guess_service_name(_command_line(), os.getcwd())
    if name:
        ours["service.name"] = name
    return Resource.create({key: value for key, value in ours.items() if key not in said})


def _command_line() -> list[str]:
    """The command that started this process; of a spawned worker, the one that started its parent."""
    words = list(getattr(sys, "orig_argv", sys.argv))
    if any("multiprocessing" in word for word in words):
        import psutil

        with suppress(psutil.Error):
            parent = psutil.Process().parent()
            words = parent.cmdline() if parent is not None else words
    return words


def service_of(resource: Any) -> str:
    """The name of the service in a resource."""
    attributes = getattr(resource, "attributes", None) or {}
    return str(attributes.get("service.name") or "unknown_service")
