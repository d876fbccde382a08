"""Finds the route template of a request where the router left it, for every FastAPI that we support."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from starlette.routing import Host, Match, Mount

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]

#: Without a route these mean that none was matched.
_UNMATCHED = (404, 405)


class _Application:
    """What is known about the routes of one application: its mounts, and whether its middleware copies the scope."""

    __slots__ = ("copies", "mounts")

    def __init__(self, app: Any) -> None:
        self.copies = False
        self.mounts = [(template, _pattern(template)) for template in _mount_templates(app.routes, "")]


class RouteReader:
    """Reads templates; remembers the mounts of an application."""

    def __init__(self) -> None:
        self._applications: WeakKeyDictionary[Any, _Application] = WeakKeyDictionary()

    def template(self, app: Any, scope: Scope, status: int | None) -> str | None:
        """The full template of the route that a request matched, None when it matched none.

        The application writes it to the scope while it routes, so this is for after it ran. Behind a middleware
        that hands a copy of the scope on, and for a route that is not FastAPI's, it is not there; then the routes
        are matched once more.

        Args:
            app: the application that the server called.
            scope: that it was called with.
            status: of the response, None when there was none.
        """
        route = scope.get("route")
        if route is None or type(route) is Mount:
            return self._searched(app, scope, status)
        # An included router has its prefixes in a context beside the route, since FastAPI 0.137.
        beside = scope.get("fastapi")
        context = beside.get("effective_route_context") if beside is not None else None
        path: str | None
        if context is not None and context.original_route is route:
            path = getattr(context.starlette_route, "path_format", None) or context.path_format
        else:
            path = getattr(route, "path_format", None)
        if "app_root_path" not in scope:
            return path
        return self._mounted(app, scope, path)

    def _mounted(self, app: Any, scope: Scope, path: str | None) -> str | None:
        prefix = scope["root_path"].removeprefix(scope["app_root_path"])
        mount = self._mount(app, prefix)
        if mount is None or path is None:
            # A mounted application that sets a root path of its own has overwritten the prefix.
            return self._matched(app, scope) or path
        return mount + path

    def _searched(self, app: Any, scope: Scope, status: int | None) -> str | None:
        if status not in _UNMATCHED:
            found = self._matched(app, scope)
            if found is not None and "endpoint" not in scope:
                self._application(app).copies = True
            return found
        if self._application(app).copies:
            return self._matched(app, scope)
        if "app_root_path" in scope:
            mount = self._mount(app, scope["root_path"].removeprefix(scope["app_root_path"]))
            return None if mount is None else f"{mount}/{{path}}"
        return None

    def _application(self, app: Any) -> _Application:
        found = self._applications.get(app)
        if found is None:
            found = self._applications[app] = _Application(app)
        return found

    def _mount(self, app: Any, prefix: str) -> str | None:
        """The template of the mounts that a request went through to get this prefix of its path."""
        mounts = self._application(app).mounts
        return next((template for template, pattern in mounts if pattern.fullmatch(prefix)), None)

    def _matched(self, app: Any, scope: Scope) -> str | None:
        """Match the routes as the router does."""
        probe = {
            "type": scope["type"],
            "method": scope.get("method"),
            "path": scope["path"],
            "root_path": scope.get("app_root_path", scope.get("root_path", "")),
            "headers": scope["headers"],
            "path_params": {},
        }
        try:
            return _search(app.routes, probe)
        except Exception:
            logger.debug("matching the routes of %r failed", app, exc_info=True)
            return None


def _search(routes: Iterable[Any], probe: Scope) -> str | None:
    """The template of the first route that matches; without one, of the first that differs in the method only."""
    partial: str | None = None
    for route in _candidates(routes):
        match, child = route.matches(probe)
        if match is Match.NONE:
            continue
        own = getattr(route, "starlette_route", None) or route
        template: str | None = getattr(own, "path_format", None) or getattr(route, "path_format", None)
        if isinstance(own, Mount):
            inner = _search(own.routes or (), {**probe, **child})
            template = own.path_format.removesuffix("/{path}") + (inner or "/{path}")
        elif isinstance(own, Host):
            template = _search(own.routes or (), {**probe, **child})
        if match is Match.FULL:
            return template
        partial = partial or template
    return partial


def _candidates(routes: Iterable[Any]) -> Iterator[Any]:
    """Routes, and in place of an included router (FastAPI 0.137 and later) the contexts of its routes."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            yield from contexts()


def _mount_templates(routes: Iterable[Any], prefix: str) -> Iterator[str]:
    for route in _candidates(routes):
        own = getattr(route, "starlette_route", None) or route
        if isinstance(own, Mount):
            template = prefix + own.path_format.removesuffix("/{path}")
            yield template
            yield from _mount_templates(own.routes or (), template)
        elif isinstance(own, Host):
            yield from _mount_templates(own.routes or (), prefix)


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{[^}]*\}", template)
    return re.compile("[^/]+".join(map(re.escape, parts)))
