"""Where the telemetry of a service is: what the user named, else a service's folder in the data directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from apivitals.errors import ConfigurationError, NoDataError


def telemetry_paths(
    sources: Sequence[Path],
    *,
    service: str | None = None,
    data_dir: Path | None = None,
    configured: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[Path, ...], str | None]:
    """What to read: the files and folders that were named, else the folder of one service.

    The second value is the `service.name` to pick from what is read; None where the folder has picked it.

    Args:
        sources: what the user named; a single folder may be a data directory.
        service: which service of the data directory, or in the files; None takes the one that was written last.
        data_dir: the data directory, if the user named it.
        configured: the data directory by the settings; empty for the user's state directory.
        say: gets one line when a service had to be chosen.

    Raises:
        ConfigurationError: the arguments contradict one another, or a source is an address.
        NoDataError: there is no telemetry, or no such service; the message lists those there are.
    """
    given = [path.expanduser() for path in sources]
    for path in given:
        if re.match(r"\w+:/", str(path)) and not path.exists():
            raise ConfigurationError(
                f"SOURCE is {path}; it can be a file or a folder of OTLP JSON lines, not an address"
            )
    if given and data_dir:
        raise ConfigurationError("both SOURCE and --data-dir are given; a data directory can be named as the SOURCE")
    if len(given) > 1 or (given and not _is_data_dir(given[0])):
        return tuple(given), service
    root = given[0] if given else data_dir or configured
    if not root:
        from platformdirs import user_state_path

        root = user_state_path("apivitals")
    return (_service_folder(Path(root).expanduser(), service, say),), None


def _services(root: Path) -> Sequence[str]:
    from apivitals.analytics.sources.otlp_json import list_services

    return list_services(root)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(child.is_file() and ".json" in child.name for child in folder.iterdir())


def _is_data_dir(path: Path) -> bool:
    return bool(_services(path)) and not _holds_files(path)


def _service_folder(root: Path, name: str | None, say: Callable[[str], None]) -> Path:
    services = _services(root)
    if not services:
        if name is None and _holds_files(root):
            return root
        raise NoDataError(
            f"no telemetry in {root}: start a service with  opentelemetry-instrument uvicorn shop:app  and send it "
            "some requests, or say where the telemetry is with SOURCE, --data-dir or APIVITALS_DATA_DIR; "
            "to see it work first:  apivitals demo"
        )
    if name is not None:
        # A folder's name cannot hold every character that a service's name can.
        for candidate in (name, re.sub(r"[^\w.-]+", "_", name).strip("._")):
            if candidate in services:
                return root / candidate
        raise NoDataError(f"no service {name!r} in {root}; there are: {', '.join(services)}")
    latest = max(services, key=lambda service: _last_written(root / service))
    if len(services) > 1:
        others = ", ".join(service for service in services if service != latest)
        say(f"reading {latest}, the service written last; for {others} use --service NAME")
    return root / latest


def _last_written(folder: Path) -> float:
    """When anything in a folder was written, in seconds since the epoch; files may vanish while we look."""
    times = [0.0]
    for file in folder.iterdir():
        try:
            times.append(file.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
