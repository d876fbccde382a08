"""Takes OpenTelemetry's process-wide providers back to the state of a fresh process, so that a test can set its own."""

from __future__ import annotations

from opentelemetry import _logs, metrics, trace
from opentelemetry.util._once import Once


def reset_opentelemetry() -> None:
    trace._TRACER_PROVIDER = None
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    metrics._internal._METER_PROVIDER = None
    metrics._internal._METER_PROVIDER_SET_ONCE = Once()
    metrics._internal._PROXY_METER_PROVIDER = metrics._internal._ProxyMeterProvider()
    _logs._internal._LOGGER_PROVIDER = None
    _logs._internal._LOGGER_PROVIDER_SET_ONCE = Once()
