"""Which exporter each signal goes to, and what a service is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.errors import ConfigurationError
from apivitals.telemetry.plan import ExportPlan, export_plan, guess_service_name, otlp_protocol

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (("file",), ("file", "prometheus"), ())),
        (ENDPOINT, (("otlp",), ("otlp", "prometheus"), ("otlp",))),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, (("file",), ("file", "prometheus"), ())),
        # An endpoint of one signal moves that signal alone.
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t"}, (("otlp",), ("file", "prometheus"), ())),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m"}, (("file",), ("otlp", "prometheus"), ())),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l"}, (("file",), ("file", "prometheus"), ("otlp",))),
        # What is named is what there is.
        ({"OTEL_TRACES_EXPORTER": "console"}, (("console",), ("file", "prometheus"), ())),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "otlp"}, (("otlp",), ("otlp",), ("otlp",))),
        ({**ENDPOINT, "OTEL_LOGS_EXPORTER": "none"}, (("otlp",), ("otlp", "prometheus"), ())),
        ({"OTEL_LOGS_EXPORTER": "console"}, (("file",), ("file", "prometheus"), ("console",))),
        ({"OTEL_METRICS_EXPORTER": "none"}, (("file",), (), ())),
        ({"OTEL_METRICS_EXPORTER": " NONE "}, (("file",), (), ())),
        ({"OTEL_TRACES_EXPORTER": "otlp, file ,otlp,,"}, (("otlp", "file"), ("file", "prometheus"), ())),
        ({"OTEL_TRACES_EXPORTER": " , "}, (("file",), ("file", "prometheus"), ())),
        ({"OTEL_TRACES_EXPORTER": "none,otlp"}, (("otlp",), ("file", "prometheus"), ())),
    ],
)
def test_what_goes_where(environ: dict[str, str], expected: tuple[tuple[str, ...], ...]) -> None:
    assert export_plan(environ) == ExportPlan(*expected)


@pytest.mark.parametrize(
    ("plan", "files"),
    [
        (ExportPlan(("file",), (), ()), True),
        (ExportPlan((), ("file",), ()), True),
        (ExportPlan(("otlp",), ("otlp", "prometheus"), ()), False),
        (ExportPlan((), (), ()), False),
    ],
)
def test_whether_there_are_files(plan: ExportPlan, files: bool) -> None:
    assert plan.files is files


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({}, "http/protobuf"),
        (ENDPOINT, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4317/x"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:99999"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": " http/protobuf ", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, None),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_the_protocol(environ: dict[str, str], protocol: str | None) -> None:
    assert otlp_protocol(environ, "TRACES") == (protocol or "http/protobuf")


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_a_protocol_that_is_not_spoken_is_named_with_its_variable(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable} is 'http/json'; this distribution speaks grpc and"):
        otlp_protocol({variable: "http/json"}, "TRACES")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("uvicorn shop:app", "shop"),
        ("/usr/bin/uvicorn shop:app --port 80", "shop"),
        ("python /x/.venv/bin/uvicorn --host 0.0.0.0 shop.main:app", "shop"),
        ("python -m uvicorn pkg.main:app", "pkg"),
        ("python -X dev -m uvicorn --reload pkg.api.v1:create_app --factory", "pkg"),
        ("opentelemetry-instrument --traces_exporter console uvicorn shop:app", "shop"),
        ("gunicorn -k uvicorn.workers.UvicornWorker shop:app", "shop"),
        ("gunicorn -w 4 -b 127.0.0.1:8000 -k uvicorn_worker.UvicornWorker shop.asgi:application", "shop"),
        ("gunicorn -b localhost:8000 shop:create_app()", "shop"),
        ("gunicorn -b unix:shop.sock --bind unix:run orders:app", "orders"),
        ("gunicorn shop:create_app(debug=True)", "shop"),
        # The configuration file of a server is not the service.
        ("gunicorn -c gunicorn.conf.py shop.main:app", "shop"),
        ("gunicorn -c gunicorn_conf.py", "folder"),
        ("uvicorn --log-config log.py app.main:app", "folder"),
        ("hypercorn shop:app", "shop"),
        ("granian --interface asgi shop:app", "shop"),
        ("uvicorn shop:container.app", "shop"),
        ("uvicorn src.shop.main:app", "shop"),
        # Names that everybody uses say nothing.
        ("uvicorn main:app", "folder"),
        ("uvicorn app.main:app", "folder"),
        ("uvicorn app.orders.main:app", "orders"),
        ("uvicorn API:app", "folder"),
        ("fastapi run main.py", "folder"),
        ("fastapi run", "folder"),
        ("fastapi dev shop/main.py", "shop"),
        ("fastapi run ./src/shop.py --port 80", "shop"),
        ("fastapi run /srv/code/shop/app/main.py", "shop"),
        ("fastapi run main.py --app api", "folder"),
        # No server of ours.
        ("python shop.py", ""),
        ("pytest tests/test_uvicorn.py", ""),
        ("", ""),
    ],
)
def test_the_service_s_name(command: str, name: str) -> None:
    assert guess_service_name(command.split(), "/home/folder") == name


@given(st.lists(st.text(max_size=10) | st.sampled_from(["uvicorn", "fastapi", "a:b", "x.py", "/", ".py", ":", "app:"])))
def test_any_command_line_is_survived(words: list[str]) -> None:
    assert isinstance(guess_service_name(words, "/home/folder"), str)


def test_in_the_root_folder_there_is_nothing_to_go_by() -> None:
    assert guess_service_name(["uvicorn", "main:app"], "/") == ""
