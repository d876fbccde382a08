"""The data that the wings hand around: immutable, and plain JSON on request."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass
from datetime import datetime, timedelta, timezone
from math import inf, nan

import pytest

from apivitals import models
from apivitals.models import Alert, EndpointMetrics, HealthStatus, RequestMetrics, SystemMetrics, TimeWindow, as_dict

RECORDS = [value for value in vars(models).values() if isinstance(value, type) and is_dataclass(value)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_records_are_frozen_slotted_and_documented(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(record, "__slots__")
    assert (record.__doc__ or "").strip()


def test_a_record_cannot_be_changed() -> None:
    request = RequestMetrics("1", "GET", "/")
    with pytest.raises(FrozenInstanceError):
        request.status_code = 500  # type: ignore[misc]


@pytest.mark.parametrize(
    ("window", "seconds"),
    [
        (TimeWindow.MINUTE, 60),
        (TimeWindow.FIVE_MINUTES, 300),
        (TimeWindow.HOUR, 3600),
        (TimeWindow.DAY, 86400),
        (TimeWindow.WEEK, 7 * 86400),
        (TimeWindow.MONTH, 30 * 86400),
    ],
)
def test_windows(window: TimeWindow, seconds: float) -> None:
    assert window.seconds == seconds
    assert isinstance(window.seconds, float)


@pytest.mark.parametrize("record", [RequestMetrics("1", "GET", "/"), SystemMetrics(), HealthStatus(*["healthy"] * 4)])
def test_times_are_utc_and_now(record: object) -> None:
    stamp = getattr(record, "timestamp", None) or record.start_time  # type: ignore[attr-defined]
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - stamp) < timedelta(minutes=1)


def test_as_dict_is_json() -> None:
    record = EndpointMetrics("GET", "/a", latency_classes={"good": 2}, avg_duration_ms=nan, max_duration_ms=inf)
    plain = as_dict(record)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["avg_duration_ms"] is None
    assert plain["max_duration_ms"] is None
    assert plain["latency_classes"] == {"good": 2}
    assert plain.keys() == {field.name for field in fields(EndpointMetrics)}


def test_as_dict_of_nested_records() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    route = models.RouteSummary("GET", "/", 1, 1.0, 1, 1, 1, 1, 0, 0.0, {"good": 1}, {}, "good", "good", "good")
    report = models.Report("shop", "hourly", when, None, 15.0, total=route, routes=(route,), generated_at=when)
    plain = as_dict(report)
    assert plain["start_time"] == plain["generated_at"] == "2026-01-02T03:04:05+00:00"
    assert plain["end_time"] is None
    assert plain["routes"] == [plain["total"]]
    assert plain["total"]["latency_classes"] == {"good": 1}
    json.dumps(plain, allow_nan=False)


def test_as_dict_keeps_integers_and_flags() -> None:
    alert = Alert("t", "T", "m", "warning", 1.5, 1.0, labels={"route": "/"})
    plain = as_dict(alert)
    assert plain["labels"] == {"route": "/"}
    assert plain["value"] == 1.5
    assert as_dict(RequestMetrics("1", "GET", "/", status_code=200))["status_code"] == 200
