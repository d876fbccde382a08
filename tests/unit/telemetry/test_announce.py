"""The line at the start, which people look for first."""

from __future__ import annotations

import logging
import sys

import pytest

from apivitals.telemetry import announce
from apivitals.telemetry.plan import ExportPlan


def test_what_is_said_is_seen_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = logging.getLogger("apivitals-quiet")
    quiet.propagate = False
    monkeypatch.setattr(announce, "logger", quiet)
    announce.say("a line")
    assert capsys.readouterr().err == "INFO:     a line\n"
    handler = logging.StreamHandler(sys.stderr)
    quiet.addHandler(handler)
    quiet.setLevel(logging.INFO)
    announce.say("a line")
    quiet.removeHandler(handler)
    assert capsys.readouterr().err == "a line\n"


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({}, "http/protobuf http://localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "grpc http://c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t"},
            "http/protobuf http://t",
        ),
    ],
)
def test_where_otlp_goes_is_said(environ: dict[str, str], target: str) -> None:
    assert f"traces → OTLP {target}" in announce.targets(ExportPlan(("otlp",), (), ()), environ, "", "")


def test_every_exit_is_named() -> None:
    plan = ExportPlan(("file", "console"), ("file", "prometheus"), ())
    said = announce.targets(plan, {}, "/data/shop", "http://127.0.0.1:9464/metrics")
    assert said == (
        "traces → /data/shop; traces → console; metrics → /data/shop; metrics → http://127.0.0.1:9464/metrics"
    )


def test_an_exit_that_could_not_be_had_is_nowhere() -> None:
    plan = ExportPlan(("file",), ("prometheus",), ())
    assert announce.targets(plan, {}, "", "").count("nowhere (see the warning above)") == 2


def test_what_governs_is_named() -> None:
    nothing = ExportPlan((), (), ())
    assert "otel.yaml" in announce.targets(nothing, {"OTEL_CONFIG_FILE": "otel.yaml"}, "", "")
    assert "nothing is exported" in announce.targets(nothing, {}, "", "")
