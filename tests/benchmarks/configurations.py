"""What is compared: each configuration is one way to instrument a service, with the variables a user would set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Server instrumentations of apivitals, the default first.
MODES = ("apivitals", "native", "contrib")

#: What a configuration stands for when a request goes through nothing but FastAPI.
BARE = "bare"

#: Stands for the address of the sink in the variables below, as in `http://127.0.0.1:4318`.
SINK = "{sink}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to instrument a service.

    Attributes:
        name: how it is called on the command line and in results.
        title: how it is called in the documentation.
        setup: name of the function in `setups` that makes the instrumented application.
        environ: environment variables; `{sink}` in a value becomes the address of the sink.
        launched: the service is started by `opentelemetry-instrument`.
        environment: name of the virtual environment, see `environments`.
        sampled: share of the requests whose `traceparent` says that the caller sampled them.
        mode: server instrumentation of apivitals; empty where it is not part of it.
    """

    name: str
    title: str
    setup: str = "plain"
    environ: Mapping[str, str] = field(default_factory=dict)
    launched: bool = False
    environment: str = "shared"
    sampled: float = 1.0
    mode: str = ""

    @property
    def exports_every_span(self) -> bool:
        """Whether the sink must get a span for each request; one that sends nothing would look cheap."""
        exported = self.environ.get("OTEL_TRACES_EXPORTER") != "none" and self.sampled == 1.0
        return exported and "OTEL_EXPORTER_OTLP_ENDPOINT" in self.environ


_OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": SINK, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
# The conventions that apivitals emits too; without it contrib emits those of before 2023.
_STABLE = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http"}
_LAUNCHER = {**_OTLP, "OTEL_PYTHON_DISTRO": "distro", "OTEL_PYTHON_CONFIGURATOR": "configurator"}

_PEERS = (
    Configuration(BARE, "FastAPI alone"),
    Configuration(
        "launcher", "opentelemetry-instrument + opentelemetry-distro, OTLP/HTTP", "launched", _LAUNCHER, True
    ),
    Configuration("contrib", "contrib FastAPI, traces + metrics, no export", "contrib", _STABLE),
    Configuration(
        "contrib-otlp", "contrib FastAPI, one span + metrics, OTLP/HTTP", "contrib_otlp", {**_OTLP, **_STABLE}
    ),
    Configuration("contrib-metrics", "contrib FastAPI, metrics only", "contrib_metrics", _STABLE),
    Configuration("contrib-processor", "contrib FastAPI, a user's span processor", "contrib_processor", _STABLE),
    Configuration("native", "FastAPI native, one span + metrics, OTLP/HTTP", "native", _OTLP),
    Configuration("native-metrics", "FastAPI native, metrics only", "native_metrics"),
    Configuration(
        "prometheus-fastapi-instrumentator", "prometheus-fastapi-instrumentator (metrics only)", "instrumentator"
    ),
    Configuration("starlette_exporter", "starlette_exporter (metrics only)", "starlette_exporter"),
    Configuration("logfire", "logfire, OTLP/HTTP", "logfire", _OTLP, environment="logfire"),
    Configuration(
        "ddtrace",
        "ddtrace",
        "ddtrace",
        {
            "DD_TRACE_AGENT_URL": SINK,
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        },
        environment="ddtrace",
    ),
    Configuration("sentry", "sentry-sdk, every trace", "sentry", {"BENCH_SINK": SINK}, environment="sentry"),
    Configuration(
        "otel-prometheus",
        "opentelemetry-exporter-prometheus",
        "otel_prometheus",
        {**_OTLP, "OTEL_TRACES_EXPORTER": "none"},
    ),
    Configuration("prometheus-client", "prometheus_client", "prometheus_client"),
)


def _ours(mode: str) -> tuple[Configuration, ...]:
    """Every way to run apivitals that is measured, all with one server instrumentation."""
    base = {
        "APIVITALS_SERVER_INSTRUMENTATION": mode,
        "OTEL_PYTHON_DISTRO": "apivitals",
        "OTEL_PYTHON_CONFIGURATOR": "apivitals",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }
    full = {**base, **_OTLP, "OTEL_METRICS_EXPORTER": "otlp,prometheus"}
    quiet = {**base, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"}
    sampling = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}

    def of(
        name: str, title: str, environ: Mapping[str, str], setup: str = "launched", sampled: float = 1.0
    ) -> Configuration:
        return Configuration(name, f"apivitals, {title}", setup, environ, True, sampled=sampled, mode=mode)

    return (
        of("apivitals", "everything, OTLP/HTTP", full),
        of("apivitals-sampled", "5 % sampled, OTLP/HTTP", {**full, **sampling}, sampled=0.05),
        of("apivitals-unexported", "everything, no export", quiet),
        of("apivitals-metrics", "metrics only", {**quiet, "OTEL_TRACES_SAMPLER": "always_off"}),
        of("apivitals-processor", "a user's span processor", quiet, "launched_processor"),
    )


def configurations(mode: str = MODES[0]) -> dict[str, Configuration]:
    """All configurations by name, `apivitals…` with that server instrumentation.

    `apivitals-native` and `apivitals-contrib` are apivitals on top of the others' spans, whatever the mode.
    """
    listed = [*_PEERS, *_ours(mode)]
    for other in MODES[1:]:
        full = _ours(other)[0]
        listed.append(
            Configuration(
                f"apivitals-{other}", f"apivitals over {other}, OTLP/HTTP", full.setup, full.environ, True, mode=other
            )
        )
    return {configuration.name: configuration for configuration in listed}


@dataclass(frozen=True, slots=True)
class Subject:
    """A configuration that serves one of the applications of `apps`; written `configuration@application`."""

    configuration: Configuration
    application: str = "items"

    @property
    def key(self) -> str:
        """The name in results; the usual application is not said."""
        return (
            self.configuration.name if self.application == "items" else f"{self.configuration.name}@{self.application}"
        )


def subject(key: str, known: Mapping[str, Configuration]) -> Subject:
    """The subject that a key names.

    Raises:
        KeyError: no configuration has that name.
    """
    name, _, application = key.partition("@")
    return Subject(known[name], application or "items")
