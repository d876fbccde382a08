"""What the demo shows while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

_LINE_EVERY_SECONDS = 15.0


class Screen(Protocol):
    """Shows that time passes, and what happens."""

    def __enter__(self) -> Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def passed(self, seconds: float, state: str) -> None:
        """Show how far the run is."""


class _Lines:
    def __init__(self, total: float) -> None:
        self._total = total
        self._next = _LINE_EVERY_SECONDS

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, flush=True)

    def passed(self, seconds: float, state: str) -> None:
        if seconds >= self._next:
            self._next = seconds - seconds % _LINE_EVERY_SECONDS + _LINE_EVERY_SECONDS
            self.say(f"  {seconds:4.0f} of {self._total:.0f} s  {state}")


class _Bar:
    def __init__(self, total: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(), TextColumn("{task.description}")
        )
        self._task = self._progress.add_task("", total=total)
        self._shown = -1.0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        # Route templates have braces and brackets that are not markup.
        self._progress.console.print(text, markup=False, highlight=False)

    def passed(self, seconds: float, state: str) -> None:
        if seconds - self._shown >= 0.2:
            self._shown = seconds
            self._progress.update(self._task, completed=seconds, description=state)


def screen(total: float) -> Screen:
    """The screen for a run of so many seconds, by where the output goes."""
    return _Bar(total) if sys.stdout.isatty() else _Lines(total)
