"""Charts: well-formed for any series, honest about gaps, and labelled at round places."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apivitals.analytics import charts
from apivitals.analytics.axes import nice_ticks, time_ticks, value_axis
from apivitals.models import ChartSeries, Forecast

SVG = "{http://www.w3.org/2000/svg}"
T0 = datetime(2026, 11, 23, 12, tzinfo=timezone.utc).timestamp()
UTC = timezone.utc


def series(*values: float | None, unit: str = "ms", **other: object) -> ChartSeries:
    times = tuple(T0 + 60 * index for index in range(len(values)))
    return ChartSeries("response_time_p95", unit, times, values, **other)  # type: ignore[arg-type]


def drawn(chart: ChartSeries) -> ElementTree.Element:
    return ElementTree.fromstring(charts.line_chart(chart, tz=UTC))


def paths(chart: ChartSeries, style: str) -> str:
    return "".join(path.get("d", "") for path in drawn(chart).iter(f"{SVG}path") if path.get("class") == style)


def test_a_gap_breaks_the_line() -> None:
    assert paths(series(1.0, 2.0, None, 3.0, 4.0), "line").count("M") == 2


def test_a_lone_point_between_gaps_is_a_dot() -> None:
    assert paths(series(1.0, 1.0, None, 9.0, None, 1.0, 1.0), "dot").count("h0.01") == 1


def test_one_point_is_drawn() -> None:
    root = drawn(series(5.0))
    assert "h0.01" in paths(series(5.0), "dot")
    assert (root.findtext(f"{SVG}desc") or "").startswith("5 ms throughout")


@pytest.mark.parametrize("values", [(), (None, None), (float("nan"), float("inf"))])
def test_a_series_without_measurements_says_so(values: tuple[float | None, ...]) -> None:
    root = drawn(series(*values))
    assert [node.text for node in root.iter(f"{SVG}text")] == ["no measurements"]


def test_a_constant_series_has_a_scale_around_it() -> None:
    axis = value_axis([7.0, 7.0], "ms")
    assert axis.low == 0.0
    assert axis.high > 7.0
    assert value_axis([0.0, 0.0], "ms").high > 0


def test_the_axis_starts_at_zero_unless_the_values_keep_far_above_it() -> None:
    assert value_axis([40.0, 100.0], "ms").low == 0.0
    assert value_axis([980.0, 1000.0], "By").low > 900.0
    assert value_axis([-5.0, 5.0], "%").low <= -5.0


@pytest.mark.parametrize(
    ("top", "unit", "shown"),
    [(2500.0, "ms", "s"), (250.0, "ms", "ms"), (0.2, "s", "ms"), (3e6, "B/s", "MB/s"), (5.0, "rps", "requests/s")],
)
def test_the_unit_follows_the_size(top: float, unit: str, shown: str) -> None:
    assert value_axis([0.0, top], unit).unit == shown


def test_episodes_are_shaded_and_described() -> None:
    root = drawn(series(*range(10), episodes=((T0 + 120, T0 + 240),)))
    boxes = [node for node in root.iter(f"{SVG}rect") if node.get("class") == "episode"]
    assert len(boxes) == 1
    assert float(boxes[0].get("x", "")) == pytest.approx(1000 * 2 / 9, abs=0.1)
    assert "unusual: 23 Nov 12:02:00 to 12:04:00" in (root.findtext(f"{SVG}desc") or "")


def test_a_forecast_is_dashed_and_joined_to_the_measurements() -> None:
    chart = series(1.0, 2.0, 3.0, 4.0, forecast_from=T0 + 120)
    assert paths(chart, "line").count("L") == 1
    assert paths(chart, "ahead").count("L") == 2
    assert ("ahead", "forecast") in charts.legend(chart)
    assert "highest 2 ms" in charts.extremes(chart, UTC)


def test_a_forecast_of_the_same_series_is_appended() -> None:
    at = tuple(datetime.fromtimestamp(T0 + 60 * index, UTC) for index in range(1, 5))
    forecast = Forecast("response_time_p95", at, (1.0, 2.0, 3.0, 4.0), (0.0,) * 4, (9.0,) * 4, unit="ms")
    chart = charts.with_forecast(series(1.0, 2.0), [forecast])
    assert chart.forecast_from == T0 + 120
    assert chart.values == (1.0, 2.0, 2.0, 3.0, 4.0)
    assert len(chart.timestamps) == len(chart.values) == len(chart.lower) == len(chart.upper)
    other = Forecast("response_time_p95", at, (1.0,) * 4, (0.0,) * 4, (9.0,) * 4, labels={"http.route": "/x"})
    assert charts.with_forecast(series(1.0, 2.0), [other]).forecast_from is None


def test_thinning_keeps_peaks_and_gaps() -> None:
    points: list[tuple[float, float | None]] = [(float(at), 1.0) for at in range(20_000)]
    points[7_777] = (7777.0, 99.0)
    points[12_000:14_000] = [(float(at), None) for at in range(12_000, 14_000)]
    kept = charts.thin(points, 400)
    assert len(kept) < 700
    assert (7777.0, 99.0) in kept
    assert any(value is None for _, value in kept)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(kept, key=lambda point: point[0])


def test_a_week_of_samples_makes_a_small_drawing() -> None:
    assert len(charts.line_chart(series(*(float(index % 97) for index in range(40_320))), tz=UTC)) < 60_000


def test_names_in_the_title_are_escaped() -> None:
    chart = series(1.0, 2.0, labels={"http.route": "/<script>&\"'", "http.request.method": "GET"})
    assert drawn(chart).findtext(f"{SVG}title") == "p95 latency of GET /<script>&\"'"


def test_class_bar_names_every_part_and_fills_its_width() -> None:
    root = ElementTree.fromstring(charts.class_bar({"excellent": 900, "critical": 100, "good": 0}))
    titles = [node.findtext("title") for node in root.iter("rect")]
    assert titles == ["excellent: 900 of 1,000 requests", "critical: 100 of 1,000 requests"]
    assert [node.get("width") for node in root.iter("rect")] == ["90.000%", "10.000%"]
    assert charts.class_bar({}) == ""


@pytest.mark.parametrize(
    ("hours", "first", "count"), [(0.02, "12:00:00", 5), (1, "12:00", 7), (24, "12:00", 5), (24 * 7, "24 Nov", 7)]
)
def test_time_ticks_are_round(hours: float, first: str, count: int) -> None:
    ticks = time_ticks(T0, T0 + hours * 3600, UTC)
    assert ticks[0][1] == first
    assert len(ticks) == count


def test_time_ticks_name_the_day_where_it_turns_in_local_time() -> None:
    ticks = time_ticks(T0, T0 + 86_400, timezone(timedelta(hours=5, minutes=30)))
    assert {label: at for at, label in ticks}["24 Nov"] == T0 + 6.5 * 3600


def test_time_ticks_stay_at_round_hours_when_the_clock_changes() -> None:
    start = datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp()
    ticks = time_ticks(start, start + 30 * 3600, ZoneInfo("Europe/Vienna"))
    assert [label for _, label in ticks] == ["25 Oct", "06:00", "12:00", "18:00", "26 Oct"]
    assert [round((at - start) / 3600) for at, _ in ticks] == [0, 7, 13, 19, 25]


@given(st.floats(0, 4e9), st.floats(0.01, 1e9), st.integers(-12, 14))
def test_time_ticks_are_few_and_lie_inside(start: float, length: float, offset: int) -> None:
    ticks = time_ticks(start, start + length, timezone(timedelta(hours=offset)))
    assert len(ticks) <= 9
    assert all(start <= at <= start + length for at, _ in ticks)
    if length > 60:
        assert len(ticks) >= 2


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_ticks_enclose_any_two_numbers(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert list(ticks) == sorted(set(ticks))
    room = max(abs(low), abs(high)) * 1e-9 + 1e-290
    assert ticks[0] <= low + room
    assert ticks[-1] >= high - room


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(), st.floats(0, 1e4)), max_size=40),
    st.sampled_from(["ms", "s", "%", "B/s", "{query}", "<&>"]),
    st.booleans(),
)
def test_any_series_gives_well_formed_svg_without_bad_numbers(
    values: list[float | None], unit: str, ahead: bool
) -> None:
    band = tuple(None if value is None else value * 0.9 for value in values)
    chart = series(*values, unit=unit, lower=band, upper=tuple(values), forecast_from=T0 + 600 if ahead else None)
    root = drawn(chart)
    for node in root.iter():
        for name in ("d", "x", "y", "x1", "y1", "width"):
            assert not re.search(r"nan|inf", node.get(name, "")), (name, node.attrib)


def test_values_that_differ_in_their_last_digits_have_an_axis() -> None:
    ticks = nice_ticks(95.5, 95.50000000000001)
    assert ticks[0] <= 95.5 <= ticks[-1]
    assert len(set(ticks)) == len(ticks) > 1
