"""The applications that are served. Nothing is done in them, so that what is measured is everything around.

FastAPI is imported inside of the functions: an instrumentation may have to be there first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

#: Routes ahead of the one that is asked for, and routes that are asked for in turn.
AHEAD, MANY = 200, 50


@dataclass(frozen=True, slots=True)
class Application:
    """How an application is made, the paths that it is asked for in turn, and the status it answers with."""

    make: Callable[[], FastAPI]
    paths: Sequence[str]
    status: int = 200


def _items(app: FastAPI) -> FastAPI:
    @app.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, int]:
        return {"item_id": item_id}

    return app


def _items_behind(*names: str) -> FastAPI:
    from fastapi import FastAPI

    app = FastAPI()

    async def answer(key: str) -> dict[str, str]:
        return {"key": key}

    for name in names:
        app.add_api_route(f"/{name}/{{key}}", answer, name=name)
    return _items(app)


def _raising() -> FastAPI:
    from fastapi import FastAPI

    app = FastAPI()

    def look_up(order: int, depth: int) -> int:
        if depth:
            return look_up(order, depth - 1)
        raise LookupError(f"no order {order}")

    @app.get("/orders/{order}")
    async def get_order(order: int) -> int:
        return look_up(order, 5)

    return app


# As long as each other, so that any stretch of them costs the same.
_NUMBERS = range(100, 600)
_ITEM_PATHS = [f"/items/{number}" for number in _NUMBERS]
_MANY_NAMES = [f"part{number}" for number in range(MANY)]

APPLICATIONS = {
    "items": Application(lambda: _items_behind("users", "orders", "carts", "payments", "reports"), _ITEM_PATHS),
    "behind-routes": Application(lambda: _items_behind(*(f"route{number}" for number in range(AHEAD))), _ITEM_PATHS),
    "alone": Application(_items_behind, _ITEM_PATHS),
    "raising": Application(_raising, [f"/orders/{number}" for number in _NUMBERS], 500),
    "many-routes": Application(lambda: _items_behind(*_MANY_NAMES), [f"/{name}/1" for name in _MANY_NAMES]),
}
