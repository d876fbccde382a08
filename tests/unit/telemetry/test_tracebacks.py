"""Formatted exceptions read as Python's own, and the text of their frames is made once."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.telemetry import tracebacks
from apivitals.telemetry.tracebacks import exception_message, exception_type, format_exception


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    tracebacks._texts.clear()
    yield
    tracebacks._texts.clear()


class Custom(Exception):
    class Inner(Exception):
        pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(action: Callable[[], Any]) -> BaseException:
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - exactly that is wanted
        return error
    raise AssertionError("nothing was raised")


def stock(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def from_cause() -> None:
    try:
        int("x")
    except ValueError as error:
        raise Custom("with a cause") from error


def in_context() -> None:
    try:
        int("x")
    except ValueError:
        {}["missing"]


def suppressed() -> None:
    try:
        int("x")
    except ValueError:
        raise Custom.Inner("alone") from None


def without_traceback() -> None:
    raise Custom from KeyError("never raised")


def bites_its_tail() -> None:
    first, second = Custom("1"), Custom("2")
    first.__cause__, second.__cause__ = second, first
    raise first


def deep(levels: int = 300) -> None:
    if levels:
        deep(levels - 1)
    raise Custom("deep")


def syntax() -> None:
    compile("a b", "<mine>", "exec")


def noted() -> None:
    error = Custom("noted")
    error.__notes__ = ["first note", "second\nnote"]  # type: ignore[attr-defined]
    raise error


def two_steps(first: bool) -> None:
    (int if first else float)("x")


CASES = [
    lambda: int("x"),
    lambda: [][1],  # type: ignore[var-annotated]
    from_cause,
    in_context,
    suppressed,
    without_traceback,
    bites_its_tail,
    deep,
    syntax,
    noted,
    lambda: (_ for _ in ()).throw(Custom()),
    lambda: (_ for _ in ()).throw(Custom("")),
    lambda: (_ for _ in ()).throw(Unprintable()),
    lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    lambda: (_ for _ in ()).throw(Custom("two\nlines")),
    lambda: two_steps(True),
]


@pytest.mark.parametrize("action", CASES)
def test_the_text_is_pythons(action: Callable[[], Any]) -> None:
    error = raised(action)
    assert format_exception(error) == stock(error)
    # And again, when it is known.
    again = raised(action)
    assert format_exception(again) == stock(again)


def test_groups_are_pythons_too() -> None:
    group = pytest.importorskip("builtins").__dict__.get("ExceptionGroup")
    if group is None:
        pytest.skip("this Python has no exception groups")
    error = raised(lambda: (_ for _ in ()).throw(group("several", [ValueError("a"), KeyError("b")])))
    assert format_exception(error) == stock(error)


def test_an_exception_that_was_never_raised() -> None:
    assert format_exception(ValueError("x")) == stock(ValueError("x"))


def test_the_frames_are_formatted_once_and_the_message_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    formatted: list[Any] = []
    format_tb = traceback.format_tb
    monkeypatch.setattr(traceback, "format_tb", lambda tb: formatted.append(tb) or format_tb(tb))

    def fail(text: str) -> None:
        raise ValueError(text)

    texts = [format_exception(raised(lambda text=text: fail(text))) for text in ("one", "two", "three")]  # type: ignore[misc]
    assert len(formatted) == 1
    assert [text.splitlines()[-1] for text in texts] == ["ValueError: one", "ValueError: two", "ValueError: three"]
    assert len({text.rpartition("ValueError")[0] for text in texts}) == 1


def test_what_fails_elsewhere_in_a_line_is_told_apart() -> None:
    for first in (True, False):
        error = raised(lambda first=first: two_steps(first))  # type: ignore[misc]
        assert format_exception(error) == stock(error)


def test_memory_is_bounded() -> None:
    for number in range(tracebacks._KEPT + 50):
        space: dict[str, Any] = {}
        exec(f"def fail{number}():\n    raise ValueError", space)
        format_exception(raised(space[f"fail{number}"]))
    assert len(tracebacks._texts) == tracebacks._KEPT
    format_exception(raised(deep))
    assert max(map(len, tracebacks._texts)) <= tracebacks._FRAMES


@given(st.lists(st.tuples(st.sampled_from(["cause", "context", "none"]), st.text(max_size=5)), min_size=1, max_size=5))
def test_any_chain_reads_as_pythons(links: list[tuple[str, str]]) -> None:
    error: BaseException | None = None
    for kind, text in links:
        made = Custom(text)
        if kind == "cause":
            made.__cause__ = error
        elif kind == "context":
            made.__context__ = error
        error = raised(lambda made=made: (_ for _ in ()).throw(made))  # type: ignore[misc]
    assert error is not None
    assert format_exception(error) == stock(error)


def test_names_and_messages() -> None:
    assert exception_type(ValueError()) == "ValueError"
    assert exception_type(Custom.Inner()) == f"{__name__}.Custom.Inner"
    assert exception_message(ValueError(1, "a")) == "(1, 'a')"
    assert exception_message(Unprintable()) == "<exception str() failed>"
