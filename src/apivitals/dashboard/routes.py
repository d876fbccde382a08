"""Routes that an application mounts to show its own telemetry. Off until mounted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

#: The exposition format that `render` gives.
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def mount(
    app: FastAPI,
    *,
    path: str = "/metrics",
    dependencies: Sequence[Any] = (),
    render: Callable[[], str] | None = None,
) -> None:
    """Serve the Prometheus exposition of this process as a route of the application.

    Args:
        app: the application.
        path: where.
        dependencies: FastAPI dependencies of the route, such as one that asks for a token.
        render: gives the exposition; that of this process's telemetry by default.
    """
    from fastapi import Response

    if render is None:
        import apivitals

        apivitals.configure()
        render = apivitals.render_metrics

    def metrics() -> Response:
        return Response(render(), media_type=_CONTENT_TYPE)

    app.add_api_route(path, metrics, dependencies=list(dependencies), include_in_schema=False)
