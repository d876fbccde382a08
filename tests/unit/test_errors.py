"""Errors say what was wrong and what to do, and can be caught as what they also are."""

from __future__ import annotations

import pickle

import pytest

from apivitals import errors
from apivitals.errors import (
    ApiVitalsError,
    ConfigurationError,
    MissingExtraError,
    NoDataError,
    UnknownMetricError,
)


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (ConfigurationError("x"), ValueError),
        (UnknownMetricError("x", ("a",)), KeyError),
        (MissingExtraError("Reading", "analytics", "orjson"), ImportError),
        (NoDataError("x"), Exception),
    ],
)
def test_each_is_one_of_ours_and_of_the_builtin_kind(error: Exception, also: type[Exception]) -> None:
    assert isinstance(error, ApiVitalsError)
    assert isinstance(error, also)


def test_a_missing_extra_names_the_command() -> None:
    error = MissingExtraError("Reading OTLP files", "analytics", "orjson")
    assert str(error) == (
        "Reading OTLP files needs 'orjson', which is not installed: run  pip install 'apivitals[analytics]'"
    )
    assert error.extra == "analytics"


def test_an_unknown_metric_prints_as_a_sentence() -> None:
    # A KeyError would print the repr of it, with quotes around.
    assert str(UnknownMetricError("respones", ("a", "b"), ("response_time",))) == (
        "unknown metric 'respones'; did you mean 'response_time'?"
    )
    assert str(UnknownMetricError("zzz", ("a", "b"))) == "unknown metric 'zzz'; known short names: a, b"
    several = str(UnknownMetricError("cache", ("a",), ("cache_hits", "cache_misses")))
    assert several.endswith("did you mean 'cache_hits' or 'cache_misses'?")


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("x"),
        NoDataError("x"),
        UnknownMetricError("x", ("a",), ("b",)),
        MissingExtraError("f", "e", "m"),
    ],
)
def test_an_error_survives_a_process_boundary(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_nothing_is_raised_that_is_not_listed_here() -> None:
    listed = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert listed == {ApiVitalsError, ConfigurationError, UnknownMetricError, NoDataError, MissingExtraError}
