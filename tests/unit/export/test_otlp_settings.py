"""What the OTEL_* variables say of pushing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apivitals.errors import ConfigurationError
from apivitals.export.otlp_settings import BatchSettings, MetricPushSettings, OtlpSettings, Signal

OTLP = "OTEL_EXPORTER_OTLP_"


def read(signal: Signal = "traces", **variables: str) -> OtlpSettings:
    return OtlpSettings.from_environ({OTLP + name: value for name, value in variables.items()}, signal)


def test_nothing_said() -> None:
    assert read() == OtlpSettings("traces", "http://localhost:4318/v1/traces")
    assert read("metrics").endpoint == "http://localhost:4318/v1/metrics"
    assert read().timeout == 10


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp", "https://c/otlp/v1/traces"),
        ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ("https://c/otlp?key=1", "https://c/otlp/v1/traces?key=1"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_general_endpoint_gets_the_signal_s_path(said: str, sent: str) -> None:
    assert read(ENDPOINT=said).endpoint == sent


@pytest.mark.parametrize(
    ("said", "sent"),
    [("http://c:4318", "http://c:4318/"), ("http://c/x", "http://c/x"), ("http://c/x/?a=b", "http://c/x/?a=b")],
)
def test_the_signal_s_endpoint_is_taken_as_it_is(said: str, sent: str) -> None:
    assert read(ENDPOINT="http://other", TRACES_ENDPOINT=said).endpoint == sent
    assert read("metrics", ENDPOINT="http://other", TRACES_ENDPOINT=said).endpoint == "http://other/v1/metrics"


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(ENDPOINT="http://c", TRACES_ENDPOINT=" ").endpoint == "http://c/v1/traces"


def test_credentials_in_the_url_become_a_header() -> None:
    settings = read(ENDPOINT="https://user:p%40ss@c:8443/x")
    assert settings.endpoint == "https://c:8443/x/v1/traces"
    assert settings.headers == (("authorization", "Basic dXNlcjpwQHNz"),)
    assert "dXNlcjpwQHNz" not in repr(settings)
    assert read(ENDPOINT="http://u:p@c", HEADERS="Authorization=Bearer%20t").headers == (("authorization", "Bearer t"),)


@pytest.mark.parametrize(
    ("said", "headers"),
    [
        ("api-key=abc", {"api-key": "abc"}),
        ("A=1, B = 2 ,,", {"a": "1", "b": "2"}),
        ("a=b=c==", {"a": "b=c=="}),
        ("a=x%2Cy%20z", {"a": "x,y z"}),
        ("a=s%C3%BC%C3%9F", {"a": "süß"}),
        ("authorization=Basic abc=", {"authorization": "Basic abc="}),
        ("a=", {"a": ""}),
        ("a=1,a=2", {"a": "2"}),
    ],
)
def test_headers(said: str, headers: dict[str, str]) -> None:
    assert dict(read(HEADERS=said).headers) == headers


def test_a_signal_s_headers_stand_for_the_general_ones() -> None:
    assert read(HEADERS="a=1,b=2", TRACES_HEADERS="a=3").headers == (("a", "3"),)


@pytest.mark.parametrize("said", ["secret-token", "a b=secret-token", "=secret-token", "x=1,secret-token"])
def test_a_bad_header_is_named_without_its_value(said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_HEADERS: item \d .*name=value") as raised:
        read(HEADERS=said)
    assert "secret-token" not in str(raised.value)


def test_a_header_cannot_smuggle_another_one_in() -> None:
    with pytest.raises(ConfigurationError, match="value of 'a' has a control character"):
        read(HEADERS="a=x%0d%0aevil: 1")


@given(st.text(max_size=30))
def test_any_headers_are_read_or_refused(said: str) -> None:
    try:
        headers = read(HEADERS=said).headers
    except ConfigurationError:
        return
    assert all("\n" not in value and "\r" not in value and name == name.lower() for name, value in headers)


@given(st.text(max_size=20))
def test_any_endpoint_is_read_or_refused(said: str) -> None:
    try:
        endpoint = read(TRACES_ENDPOINT=said).endpoint
    except ConfigurationError:
        return
    assert endpoint.startswith(("http://", "https://"))


def test_the_rest(tmp_path: Path) -> None:
    pem = tmp_path / "c.pem"
    pem.write_text("-")
    settings = read(
        TIMEOUT="20",
        TRACES_TIMEOUT="2.5",
        COMPRESSION="GZIP",
        CERTIFICATE=str(pem),
        CLIENT_KEY=str(pem),
        TRACES_CLIENT_CERTIFICATE=str(pem),
    )
    assert (settings.timeout, settings.compression) == (2.5, "gzip")
    assert (settings.certificate, settings.client_key, settings.client_certificate) == (str(pem),) * 3
    assert read(COMPRESSION="gzip", TRACES_COMPRESSION="none").compression == "none"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ENDPOINT", "localhost:4318", "give a URL like http://localhost:4318"),
        ("ENDPOINT", "grpc://c:4317", "give a URL"),
        ("TRACES_ENDPOINT", "http://", "give a URL"),
        ("TRACES_ENDPOINT", "http://c:99999", "give a URL"),
        ("ENDPOINT", "http://a b", "give a URL"),
        ("ENDPOINT", "http://[", "give a URL"),
        ("TIMEOUT", "soon", "positive number of seconds"),
        ("TRACES_TIMEOUT", "-1", "positive number of seconds"),
        ("TIMEOUT", "nan", "positive number of seconds"),
        ("TIMEOUT", "inf", "positive number of seconds"),
        ("COMPRESSION", "brotli", "gzip, deflate or none"),
        ("CERTIFICATE", "/no/such/file", "path of a PEM file"),
        ("CLIENT_KEY", __file__, "set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE as well"),
    ],
)
def test_bad_values_name_the_variable_the_value_and_the_remedy(name: str, value: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(**{name: value})
    message = str(raised.value)
    assert OTLP + name in message
    assert repr(value) in message
    assert remedy in message


def test_a_password_is_not_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(ENDPOINT="ftp://user:hunter2@host")
    assert "hunter2" not in str(raised.value)


def test_batches() -> None:
    assert BatchSettings.from_environ({}) == BatchSettings(2048, 512, 5.0, 30.0)
    said = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
        "OTEL_BSP_EXPORT_TIMEOUT": "1500",
    }
    assert BatchSettings.from_environ(said) == BatchSettings(100, 10, 0.25, 1.5)
    # A small queue alone means small batches, not an error.
    assert BatchSettings.from_environ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}).batch_size == 100


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "positive whole number"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1.5", "positive whole number"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "positive whole number"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "2048 or less, or raise OTEL_BSP_MAX_QUEUE_SIZE"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-5", "positive number of milliseconds"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "x", "positive number of milliseconds"),
    ],
)
def test_bad_batches(name: str, value: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        BatchSettings.from_environ({name: value})
    assert all(part in str(raised.value) for part in (name, value, remedy))


def test_metric_pushes() -> None:
    preference = OTLP + "METRICS_TEMPORALITY_PREFERENCE"
    assert MetricPushSettings.from_environ({}) == MetricPushSettings(60.0, 30.0, "cumulative")
    said = {"OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_METRIC_EXPORT_TIMEOUT": "100", preference: " Delta "}
    assert MetricPushSettings.from_environ(said) == MetricPushSettings(0.5, 0.1, "delta")
    assert MetricPushSettings.from_environ({preference: "LOWMEMORY"}).temporality == "lowmemory"
    with pytest.raises(ConfigurationError, match="'sometimes'; give cumulative, delta or lowmemory"):
        MetricPushSettings.from_environ({preference: "sometimes"})
