"""What one application wants of its instrumentation beyond the settings: the options of the upstream instrumentor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from apivitals.errors import ConfigurationError

#: Called with the SERVER span and the ASGI scope.
ServerHook = Callable[[Any, dict[str, Any]], None]
#: Called with the span of one message, the ASGI scope and the message.
MessageHook = Callable[[Any, dict[str, Any], dict[str, Any]], None]


@dataclass(frozen=True, slots=True, eq=False)
class InstrumentationOptions:
    """The keyword arguments of `FastAPIInstrumentor.instrument_app`; None everywhere leaves it to the settings."""

    server_request_hook: ServerHook | None = None
    client_request_hook: MessageHook | None = None
    client_response_hook: MessageHook | None = None
    tracer_provider: trace.TracerProvider | None = None
    meter_provider: metrics.MeterProvider | None = None
    excluded_urls: str | None = None
    http_capture_headers_server_request: Sequence[str] | None = None
    http_capture_headers_server_response: Sequence[str] | None = None
    http_capture_headers_sanitize_fields: Sequence[str] | None = None
    exclude_spans: Sequence[str] | None = None

    def sdk_tracer_provider(self, default: TracerProvider) -> TracerProvider:
        """The provider that makes the spans.

        Raises:
            ConfigurationError: the one that was given has no sampler, ids and processors to read.
        """
        given = self.tracer_provider
        if given is None or given is default:
            return default
        if isinstance(given, TracerProvider):
            return given
        if isinstance(given, trace.NoOpTracerProvider):
            return TracerProvider(sampler=ALWAYS_OFF, resource=default.resource, shutdown_on_exit=False)
        raise ConfigurationError(
            f"tracer_provider is {given!r}; give an opentelemetry.sdk.trace.TracerProvider, "
            "or set server_instrumentation to 'contrib', which takes any"
        )

    def own_meter_provider(self) -> metrics.MeterProvider | None:
        """The meter provider to record into, None for the process's own metrics."""
        given = self.meter_provider
        return None if given is None or given is metrics.get_meter_provider() else given


def names(given: Sequence[str] | None, setting: str) -> list[str]:
    """Names that an application gave, else those of a comma-separated setting."""
    return [name.strip() for name in (given or setting.split(",")) if name.strip()]
