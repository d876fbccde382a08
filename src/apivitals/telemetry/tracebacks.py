"""Formats exceptions as Python does, for the price of a look-up when one was raised from the same place before.

Formatting a traceback reads source lines and works out what to underline: millions of instructions. The frames of
an exception are the same each time that the same line fails, so their text is kept; the message is not.
"""

from __future__ import annotations

import traceback
from threading import Lock
from types import TracebackType
from typing import Any

#: Texts that are kept, and the most frames that one may have: together they bound the memory.
_KEPT = 256
_FRAMES = 100

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"

_Frames = tuple[tuple[Any, int], ...]
_texts: dict[_Frames, str] = {}
_lock = Lock()


def exception_type(error: BaseException) -> str:
    """The name of an exception's class, as `exception.type` and `error.type` have it."""
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if not module or module == "builtins" else f"{module}.{kind.__qualname__}"


def exception_message(error: BaseException) -> str:
    """What an exception says; one that cannot be printed says so."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - `__str__` is anybody's code
        return "<exception str() failed>"


def format_exception(error: BaseException) -> str:
    """The text that `traceback.format_exception` gives, but for its guesses ("Did you mean …?")."""
    chain = _chain(error)
    if chain is None:
        return "".join(traceback.format_exception(error))
    parts: list[str] = []
    for link, before in chain:
        if before:
            parts.append(before)
        if link.__traceback__ is not None:
            parts.append("Traceback (most recent call last):\n")
            parts.append(_frames_text(link.__traceback__))
        parts.append(_last_line(link))
    return "".join(parts)


def _chain(error: BaseException) -> list[tuple[BaseException, str]] | None:
    """An exception and what led to it, the earliest first, with the sentence in between; None for unusual ones."""
    found: list[tuple[BaseException, str]] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None:
        # Groups are trees, and a syntax error shows a piece of source code.
        if hasattr(link, "exceptions") or isinstance(link, SyntaxError) or hasattr(link, "__notes__"):
            return None
        seen.add(id(link))
        cause, context = link.__cause__, link.__context__
        if cause is not None and id(cause) not in seen:
            found.append((link, _CAUSE))
            link = cause
        elif cause is None and context is not None and not link.__suppress_context__ and id(context) not in seen:
            found.append((link, _CONTEXT))
            link = context
        elif cause is not None or (context is not None and not link.__suppress_context__):
            # A chain that bites its tail.
            return None
        else:
            found.append((link, ""))
            link = None
    return found[::-1]


def _last_line(error: BaseException) -> str:
    # A traceback leaves out `__main__` too.
    name, message = exception_type(error).removeprefix("__main__."), exception_message(error)
    return f"{name}: {message}\n" if message else f"{name}\n"


def _frames_text(trace: TracebackType) -> str:
    key: list[tuple[Any, int]] = []
    frame: TracebackType | None = trace
    while frame is not None:
        # The instruction and not the line: what is underlined depends on it.
        key.append((frame.tb_frame.f_code, frame.tb_lasti))
        frame = frame.tb_next
    if len(key) > _FRAMES:
        return "".join(traceback.format_tb(trace))
    frames = tuple(key)
    text = _texts.get(frames)
    if text is None:
        text = "".join(traceback.format_tb(trace))
        with _lock:
            while len(_texts) >= _KEPT:
                # The oldest, which a dictionary has first.
                del _texts[next(iter(_texts))]
            _texts[frames] = text
    return text
