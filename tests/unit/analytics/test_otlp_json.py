from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from apivitals.analytics.sources import MetricsSource, open_source
from apivitals.analytics.sources.otlp_json import OtlpJsonFiles, list_services
from apivitals.analytics.telemetry import read_telemetry
from apivitals.errors import ConfigurationError, NoDataError

NAME = "metrics-20251009T085320-one.jsonl"


def line(value: float = 1.0, second: int = 10, name: str = "m", **more: Any) -> dict[str, Any]:
    point = {"timeUnixNano": f"{second}000000000", "asDouble": value, **more}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": name, "gauge": {"dataPoints": [point]}}]}]}]}


def text(*lines: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


def values(source: MetricsSource) -> list[float]:
    telemetry = read_telemetry(source.requests(None, None))
    return [value for gauge in telemetry.gauges for value in gauge.values.tolist()]


def test_a_last_line_that_is_being_written_is_left_out_without_a_word(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text(line(1.0)) + text(line(2.0, 11))[:-7])
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [1.0]
    assert source.notes == []


def test_garbage_is_counted_and_said_once_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text(line(1.0)) + b"{not json\n\x00\xff\n[1]\n" + text(line(2.0, 11)))
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [1.0, 2.0]
    assert source.notes == [f"3 lines are not OTLP JSON and left out; the first is line 2 of {tmp_path / NAME}"]


def test_a_second_read_does_not_repeat_the_notes(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"garbage\n" + text(line()))
    source = OtlpJsonFiles(tmp_path)
    values(source)
    values(source)
    assert len(source.notes) == 1


def test_an_empty_folder_says_which_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match=f"{tmp_path}.*no telemetry files.*start the service"):
        list(OtlpJsonFiles(tmp_path).requests(None, None))


def test_a_missing_folder_says_which_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match=r"nowhere: it does not exist.*APIVITALS_DATA_DIR"):
        list(OtlpJsonFiles(tmp_path / "nowhere").requests(None, None))


def test_a_folder_with_spans_only_says_so(tmp_path: Path) -> None:
    (tmp_path / "traces-20251009T085320-one.jsonl").write_bytes(text({"resourceSpans": []}))
    with pytest.raises(NoDataError, match="spans or logs but no metrics"):
        list(OtlpJsonFiles(tmp_path).requests(None, None))


def test_other_signals_are_noted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "collector.json").write_bytes(text({"resourceSpans": []}, line(3.0), {"resourceLogs": []}))
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [3.0]
    assert source.notes == ["spans or logs left out: collector.json; this analysis reads metrics"]


def test_spans_of_our_own_layout_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "traces-20251009T085320-one.jsonl").write_bytes(b"garbage\n")
    (tmp_path / NAME).write_bytes(text(line()))
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [1.0]
    assert source.notes == []


def test_concatenated_frames_are_all_read(tmp_path: Path) -> None:
    frames = [zstandard.compress(text(line(float(i), 10 + i))) for i in range(3)]
    (tmp_path / f"{NAME}.zst").write_bytes(b"".join(frames))
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [0.0, 1.0, 2.0]
    assert source.notes == []


def test_a_truncated_archive_gives_what_it_holds_and_a_note(tmp_path: Path) -> None:
    many = text(*(line(float(i), 10 + i) for i in range(3000)))
    packed = zstandard.compress(many[:60_000]) + zstandard.compress(many[60_000:])[:-50]
    (tmp_path / f"{NAME}.zst").write_bytes(packed)
    source = OtlpJsonFiles(tmp_path)
    assert 500 < len(values(source)) < 3000
    assert len(source.notes) == 1
    assert "truncated or damaged" in source.notes[0]


def test_an_archive_that_is_none_gives_a_note(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.zst").write_bytes(b"\x00\x00\x00\x09not zstd at all")
    (tmp_path / "metrics-20251009T095320-one.jsonl").write_bytes(text(line()))
    source = OtlpJsonFiles(tmp_path)
    assert values(source) == [1.0]
    assert "truncated or damaged" in source.notes[0]


def test_a_file_that_is_being_compressed_is_read_once(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text(line()))
    (tmp_path / f"{NAME}.zst").write_bytes(zstandard.compress(text(line())))
    assert values(OtlpJsonFiles(tmp_path)) == [1.0]


def test_services_of_a_data_root(tmp_path: Path) -> None:
    for name in ("shop", "billing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / NAME).write_bytes(text(line()))
    (tmp_path / "empty").mkdir()
    assert list_services(tmp_path) == ["billing", "shop"]
    assert list_services(tmp_path / "nowhere") == []
    with pytest.raises(NoDataError, match="billing, shop"):
        list(OtlpJsonFiles(tmp_path).requests(None, None))


def test_a_root_with_one_service_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / NAME).write_bytes(text(line()))
    assert values(OtlpJsonFiles(tmp_path)) == [1.0]


def test_the_newest_time_is_that_of_the_last_complete_line(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(text(line(1.0, 1_760_000_000), line(1.0, 1_760_000_015)) + b'{"timeUnixNano": "19')
    assert OtlpJsonFiles(tmp_path).newest() == 1_760_000_015.0


def test_sources_are_opened_from_what_there_is(tmp_path: Path) -> None:
    class Monitor:
        data_directory = tmp_path

    (tmp_path / NAME).write_bytes(text(line()))
    assert values(open_source(str(tmp_path))) == [1.0]
    assert values(open_source([tmp_path / NAME])) == [1.0]
    assert values(open_source(Monitor())) == [1.0]
    with pytest.raises(ConfigurationError, match="source is 5"):
        open_source(5)


@pytest.mark.parametrize(
    "point",
    [
        {"flags": 1},
        {"asDouble": "NaN"},
        {"asDouble": "Infinity"},
        {"asDouble": None, "asInt": "three"},
        {"timeUnixNano": "yesterday"},
        {"timeUnixNano": None},
    ],
)
def test_points_without_a_usable_value_are_left_out(point: dict[str, Any]) -> None:
    telemetry = read_telemetry([line(1.0, 10), line(5.0, 20, **point)])
    assert [gauge.values.tolist() for gauge in telemetry.gauges] == [[1.0]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceMetrics",
                    "scopeMetrics",
                    "metrics",
                    "histogram",
                    "sum",
                    "gauge",
                    "dataPoints",
                    "attributes",
                    "name",
                    "timeUnixNano",
                    "count",
                    "bucketCounts",
                    "explicitBounds",
                    "asDouble",
                    "asInt",
                    "flags",
                    "exemplars",
                    "exponentialHistogram",
                    "scale",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(st.lists(JSON, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_content_raises(content: list[Any]) -> None:
    wrapped = {"resourceMetrics": [{"scopeMetrics": [{"metrics": content}]}]}
    read_telemetry([wrapped, {"resourceMetrics": content}])


@given(
    points=st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(allow_nan=False, allow_infinity=False, width=32)),
        min_size=1,
        max_size=20,
        unique_by=lambda item: item[0],
    ),
    labels=st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_gauges_come_back_as_they_went_in(points: list[tuple[int, float]], labels: dict[str, str]) -> None:
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in labels.items()]
    requests = [json.loads(json.dumps(line(value, second, attributes=pairs))) for second, value in points]
    (gauge,) = read_telemetry(requests).gauges
    assert dict(gauge.attributes) == labels
    assert list(zip(gauge.times.tolist(), gauge.values.tolist(), strict=True)) == sorted(
        (float(second), value) for second, value in points
    )
    assert not math.isnan(gauge.values.sum())
