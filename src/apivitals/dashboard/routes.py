"""Routes that an application mounts to show its own telemetry. Off until mounted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from apivitals.exposition import Exposition

if TYPE_CHECKING:
    from fastapi import FastAPI


def mount(
    app: FastAPI,
    *,
    path: str = "/metrics",
    dependencies: Sequence[Any] = (),
    render: Callable[[], str] | None = None,
) -> None:
    """Serve the Prometheus exposition of this process as a route of the application.

    The answer is OpenMetrics where the client prefers it, and gzip where it allows that and the text is large.

    Args:
        app: the application.
        path: where.
        dependencies: FastAPI dependencies of the route, such as one that asks for a token.
        render: gives the exposition, always in the one format that it has; that of this process's telemetry by
            default.
    """
    from fastapi import Header, Response

    if render is None:
        import apivitals

        apivitals.configure()
        negotiated = apivitals.render_metrics
    else:
        given = render

        def negotiated(accept: str = "") -> str:
            return given()

    # No coroutine: FastAPI runs it in a thread, where a large exposition holds up no request.
    def metrics(
        accept: list[str] = Header(default=[]),  # noqa: B008
        accept_encoding: list[str] = Header(default=[]),  # noqa: B008
    ) -> Response:
        exposition = Exposition.of(negotiated(", ".join(accept)))
        body = exposition.encode(", ".join(accept_encoding))
        headers = {"Content-Type": exposition.content_type, **body.headers}
        return Response(b"".join(body.pieces), headers=headers)

    app.add_api_route(path, metrics, methods=["GET", "HEAD"], dependencies=list(dependencies), include_in_schema=False)
