"""Notices when a request's background task begins.

The response is out by then, so the time is not the request's; it is measured apart.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from starlette.background import BackgroundTask

from apivitals import tally
from apivitals.tally import Tally

if TYPE_CHECKING:
    from apivitals.telemetry.request import Request


class RequestTally(Tally):
    """The tally of a request that is being served; it leads back to the request until that is done with."""

    __slots__ = ("request",)

    def __init__(self) -> None:
        super().__init__()
        self.request: Request | None = None


def watch_background_tasks() -> None:
    """Wrap `BackgroundTask.__call__`, once a process; the tasks of `BackgroundTasks` go through it as well."""
    original = BackgroundTask.__call__
    if hasattr(original, "_apivitals"):
        return

    @wraps(original)
    async def call(self: BackgroundTask) -> None:
        current = tally.current()
        if type(current) is RequestTally and current.request is not None:
            current.request.background_begins()
        await original(self)

    call._apivitals = True  # type: ignore[attr-defined]
    BackgroundTask.__call__ = call  # type: ignore[method-assign]
