"""The two entry points by which `opentelemetry-instrument` finds apivitals, in the order it calls them.

Nothing here may raise: a service must start also when its telemetry cannot.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from opentelemetry.instrumentation.distro import BaseDistro

logger = logging.getLogger("apivitals")


class ApiVitalsDistro(BaseDistro):  # type: ignore[misc]
    """Prepares the environment, then loads each instrumentor so that one that fails stops no other."""

    def _configure(self, **kwargs: Any) -> None:
        os.environ.setdefault("OTEL_PYTHON_CONFIGURATOR", "apivitals")
        # Contrib reads it when the first instrumentor is imported.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Load one instrumentor; FastAPI's is ours."""
        try:
            if entry_point.name == "fastapi":
                from apivitals.telemetry.setup import instrument_everything

                instrument_everything()
            elif entry_point.name == "logging":
                _instrument_logging(entry_point, kwargs)
            else:
                super().load_instrumentor(entry_point, **kwargs)
        except ImportError:
            # The launcher knows which of these mean that a library is not there.
            raise
        except Exception as error:
            if type(error).__name__ == "DependencyConflictError":
                raise
            logger.warning("instrumentor %r failed and is left out: %s", entry_point.name, error, exc_info=True)


class ApiVitalsConfigurator:
    """Builds the providers from the environment."""

    def configure(self, **kwargs: Any) -> None:
        """Set up; a bad setting is logged and replaced by its default, any other fault leaves telemetry off."""
        problems: list[str] = []
        try:
            from apivitals.telemetry.setup import configure

            configure(problems=problems)
        except Exception as error:
            logger.error("telemetry is off: %s", error, exc_info=True)
        for problem in problems:
            logger.error("%s; the default is used", problem)


def _instrument_logging(entry_point: Any, kwargs: dict[str, Any]) -> None:
    """Log records carry trace ids; they are exported only where logs have an exporter.

    Without one the handler would do nothing but make Python believe that logging is configured.
    """
    from apivitals.telemetry.setup import current_pipeline

    pipeline = current_pipeline()
    exported = pipeline is not None and bool(pipeline.plan.logs)
    options = {} if exported else {"enable_log_auto_instrumentation": False}
    entry_point.load()().instrument(inject_trace_context=True, **options, **kwargs)
