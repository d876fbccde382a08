"""Reads the route template of a request where the router left it, for every FastAPI that we support."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from starlette.routing import Mount

#: Where the wrapper around an application leaves it: a mounted one takes its place in `scope["app"]`.
APP_KEY = "apivitals.app"


class RouteReader:
    """Reads templates; remembers the mounts of an application."""

    def __init__(self) -> None:
        self._mounts: WeakKeyDictionary[Any, list[tuple[str, re.Pattern[str]]]] = WeakKeyDictionary()

    def template(self, scope: MutableMapping[str, Any]) -> str | None:
        """The full template of the route that a request matched, None when it matched none.

        The application writes it to the scope while it routes, so this is for after it ran.
        """
        route = scope.get("route")
        path: str | None = None
        if route is not None:
            # An included router has its prefixes in a context beside the route, since FastAPI 0.137.
            context = (scope.get("fastapi") or {}).get("effective_route_context")
            if context is not None and context.original_route is route:
                path = getattr(context.starlette_route, "path_format", None) or context.path_format
            else:
                path = getattr(route, "path_format", None)
        if "app_root_path" not in scope:
            return path
        prefix = scope["root_path"][len(scope["app_root_path"]) :]
        mount = self._mount(scope.get(APP_KEY), prefix) if prefix else None
        if mount is None:
            return path
        if path is None or isinstance(route, Mount):
            return f"{mount}/{{path}}"
        return mount + path

    def _mount(self, app: Any, prefix: str) -> str | None:
        """The template of the mounts that a request went through to get this prefix of its path."""
        if app is None:
            return None
        mounts = self._mounts.get(app)
        if mounts is None:
            # Longest first: nested mounts before the ones they are in.
            found = sorted(_mount_templates(app.routes, ""), key=len, reverse=True)
            mounts = self._mounts[app] = [(template, _pattern(template)) for template in found]
        return next((template for template, pattern in mounts if pattern.fullmatch(prefix)), None)


def _mount_templates(routes: Any, prefix: str) -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            template = prefix + route.path_format.removesuffix("/{path}")
            yield template
            yield from _mount_templates(route.routes or (), template)


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{[^}]*\}", template)
    return re.compile("[^/]+".join(map(re.escape, parts)))
