"""Route templates, read from a scope as the router leaves it or found by matching once more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router

from apivitals.telemetry.routing import RouteReader


def scope_of(path: str, method: str = "GET", **fields: Any) -> dict[str, Any]:
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": [(b"host", b"a.example")]}
    return {**scope, "http_version": "1.1", "scheme": "http", "query_string": b"", **fields}


def served(app: Any, path: str, method: str = "GET", **fields: Any) -> tuple[dict[str, Any], int]:
    """The scope after the application has served it, and the status."""
    scope, statuses = scope_of(path, method, **fields), []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    return scope, statuses[0]


def page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("x")


def application() -> FastAPI:
    leaf = FastAPI()
    leaf.get("/items/{item:path}")(lambda item: item)
    branch = FastAPI()
    branch.mount("/leaves/{leaf}", leaf)
    inner = APIRouter(prefix="/inner")
    inner.get("/{name}")(lambda name: name)
    inner.mount("/mounted/{key}", Starlette(routes=[Route("/x/{y}", page)]))
    outer = APIRouter(prefix="/outer/{group}")
    outer.include_router(inner)
    app = FastAPI()
    app.mount("/fixed/b", Starlette(routes=[Route("/{name}", page)]))
    app.mount("/fixed/{any}", Starlette(routes=[Route("/{name}/{more}", page)]))
    app.mount("/branches/{branch}", branch)
    app.include_router(outer, prefix="/v1")
    app.get("/plain/{number}")(lambda number: number)
    app.add_route("/page", page)
    app.router.routes.append(Host("tenant.example", Router([Route("/of/{tenant}", page)])))
    return app


CASES = [
    ("/plain/1", "GET", "/plain/{number}"),
    ("/plain/1", "POST", "/plain/{number}"),
    ("/page", "GET", "/page"),
    ("/v1/outer/g/inner/n", "GET", "/v1/outer/{group}/inner/{name}"),
    ("/branches/1/leaves/2/items/a/b/c", "GET", "/branches/{branch}/leaves/{leaf}/items/{item}"),
    ("/branches/1/leaves/2/none", "GET", "/branches/{branch}/leaves/{leaf}/{path}"),
    ("/branches/1/none", "GET", "/branches/{branch}/{path}"),
    ("/fixed/b/x", "GET", "/fixed/b/{name}"),
    ("/fixed/b/x/y", "GET", "/fixed/b/{path}"),
    ("/fixed/c/x/y", "GET", "/fixed/{any}/{name}/{more}"),
    ("/nowhere", "GET", None),
    ("/", "GET", None),
]


@pytest.mark.parametrize(("path", "method", "template"), CASES)
@pytest.mark.parametrize("root", ["", "/api"])
def test_the_template_of_a_served_request(path: str, method: str, template: str | None, root: str) -> None:
    app = application()
    scope, status = served(app, root + path, method, root_path=root)
    assert RouteReader().template(app, scope, status) == template


@pytest.mark.parametrize(("path", "method", "template"), CASES)
def test_the_same_by_matching_once_more(path: str, method: str, template: str | None) -> None:
    app = application()
    _, status = served(app, path, method)
    # A scope as a middleware that copies leaves it: untouched by the router. That it copies is known by then.
    reader = RouteReader()
    assert reader.template(app, scope_of("/plain/1"), 200) == "/plain/{number}"
    assert reader.template(app, scope_of(path, method), status) == template


def test_hosts() -> None:
    app = application()
    fields = {"headers": [(b"host", b"tenant.example")]}
    scope, status = served(app, "/of/me", **fields)
    assert status == 200
    assert RouteReader().template(app, scope, status) == "/of/{tenant}"


class Counted(Route):
    matched = 0

    def matches(self, scope: Any) -> Any:
        type(self).matched += 1
        return super().matches(scope)


def test_a_path_that_nobody_knows_is_not_matched_a_second_time() -> None:
    app = FastAPI()
    app.router.routes.append(Counted("/counted", page))
    reader = RouteReader()
    for number in range(3):
        scope, status = served(app, f"/scan/{number}")
        before = Counted.matched
        assert reader.template(app, scope, status) is None
        assert Counted.matched == before
    scope, status = served(app, "/counted")
    before = Counted.matched
    assert reader.template(app, scope, status) == "/counted"
    assert Counted.matched == before + 1


class Faulty(BaseRoute):
    def matches(self, scope: Any) -> Any:
        raise RuntimeError("cannot match")


def test_a_route_that_cannot_be_matched_gives_no_template() -> None:
    app = FastAPI()
    app.router.routes.insert(0, Faulty())
    assert RouteReader().template(app, scope_of("/x"), 200) is None


def test_a_mounted_application_that_overwrites_the_root_path() -> None:
    app = application()
    scope, status = served(app, "/branches/1/leaves/2/items/a")
    scope["root_path"] = "/somewhere/else"
    assert RouteReader().template(app, scope, status) == "/branches/{branch}/leaves/{leaf}/items/{item}"


def test_a_mount_without_routes_to_look_at() -> None:
    async def anything(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("x")(scope, receive, send)

    app = FastAPI()
    app.router.routes.append(Mount("/files/{kind}", anything))
    scope, status = served(app, "/files/images/a.png")
    assert RouteReader().template(app, scope, status) == "/files/{kind}/{path}"
