"""The upstream instrumentor's interface on our instrumentation: for code that instruments its application itself.

::

    from apivitals import ApiVitalsInstrumentor

    ApiVitalsInstrumentor.instrument_app(app, server_request_hook=hook, excluded_urls="health")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from apivitals.telemetry import fastapi
from apivitals.telemetry.options import InstrumentationOptions, MessageHook, ServerHook

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


class ApiVitalsInstrumentor(FastAPIInstrumentor):  # type: ignore[misc]
    """Takes the place of `FastAPIInstrumentor`: the same methods and options, the server instrumentation of apivitals.

    It sets up OpenTelemetry by `apivitals.configure()` when nobody has. Applications are instrumented from the
    outside, so it makes no difference whether they are instrumented before or after they get their routes.
    """

    # The upstream base keeps one instance a class, and looks for it with the base classes too.
    _instance = None
    _is_instrumented_by_opentelemetry = False

    @staticmethod
    def instrument_app(
        app: FastAPI,
        server_request_hook: ServerHook | None = None,
        client_request_hook: MessageHook | None = None,
        client_response_hook: MessageHook | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        excluded_urls: str | None = None,
        http_capture_headers_server_request: Sequence[str] | None = None,
        http_capture_headers_server_response: Sequence[str] | None = None,
        http_capture_headers_sanitize_fields: Sequence[str] | None = None,
        exclude_spans: Sequence[str] | None = None,
    ) -> None:
        """Instrument one application; again, with other options, replaces them.

        Args:
            app: the application.
            server_request_hook: called with the SERVER span and the ASGI scope of every request and session.
            client_request_hook: called with a span, the scope and the message, for every message received.
            client_response_hook: the same for every message sent.
            tracer_provider: makes the spans; an SDK provider, or a `NoOpTracerProvider` for none. By default the
                global one.
            meter_provider: takes the metrics. By default the global one; its points are counted without the SDK.
            excluded_urls: comma-separated regular expressions of URLs that are not measured, instead of those of the
                environment.
            http_capture_headers_server_request: names (regular expressions) of request headers that become
                attributes.
            http_capture_headers_server_response: the same of the response.
            http_capture_headers_sanitize_fields: captured headers whose values are replaced.
            exclude_spans: `receive` and `send` keep the hooks for messages, and the spans that they are given, out.

        Raises:
            ConfigurationError: a setting of the environment cannot be used.
        """
        hook = _hook()
        if hook is not None:
            hook.add(
                app,
                InstrumentationOptions(
                    server_request_hook,
                    client_request_hook,
                    client_response_hook,
                    tracer_provider,
                    meter_provider,
                    excluded_urls,
                    http_capture_headers_server_request,
                    http_capture_headers_server_response,
                    http_capture_headers_sanitize_fields,
                    exclude_spans,
                ),
            )

    @staticmethod
    def uninstrument_app(app: FastAPI) -> None:
        """Leave one application alone from its next request on."""
        hook = fastapi.installed()
        if hook is not None:
            hook.remove(app)
        # With `contrib` its middleware is in the application.
        if getattr(app, "_is_instrumented_by_opentelemetry", False):
            FastAPIInstrumentor.uninstrument_app(app)

    def _instrument(self, **kwargs: Any) -> None:
        """Instrument every application of the process, those that exist and those to come."""
        hook = _hook()
        if hook is not None:
            known = InstrumentationOptions.__dataclass_fields__
            hook.add_all(InstrumentationOptions(**{name: value for name, value in kwargs.items() if name in known}))

    def _uninstrument(self, **kwargs: Any) -> None:
        """Leave every application alone from its next request on."""
        hook = fastapi.installed()
        if hook is not None:
            hook.remove_all()


def _hook() -> fastapi.FastAPIHook | None:
    from apivitals.telemetry.setup import configure

    if fastapi.installed() is None:
        configure()
    return fastapi.installed()
