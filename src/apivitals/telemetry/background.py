"""Notices when a request's background task begins.

The response is out by then, so the time is not the request's; it is measured apart.
"""

from __future__ import annotations

from functools import wraps

from starlette.background import BackgroundTask

from apivitals import tally
from apivitals.telemetry.request import Request


def watch_background_tasks() -> None:
    """Wrap `BackgroundTask.__call__`, once a process; the tasks of `BackgroundTasks` go through it as well."""
    original = BackgroundTask.__call__
    if hasattr(original, "_apivitals"):
        return

    @wraps(original)
    async def call(self: BackgroundTask) -> None:
        current = tally.current()
        if isinstance(current, Request):
            current.background_begins()
        await original(self)

    call._apivitals = True  # type: ignore[attr-defined]
    BackgroundTask.__call__ = call  # type: ignore[method-assign]
