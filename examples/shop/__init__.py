"""A small shop: what a FastAPI service looks like that knows nothing of its telemetry.

Start it with::

    cd examples
    opentelemetry-instrument uvicorn shop:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from . import faults
from .database import Database
from .partners import Partners
from .routes import catalogue, orders, reports
from .support import support


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # A shop in production would find its database and its partners in its settings.
    async with Partners() as partners, httpx.AsyncClient(base_url=partners.url, timeout=5) as client:
        with Database() as database:
            database.seed()
            app.state.database = database
            app.state.partners = client
            yield


app = FastAPI(title="Shop", lifespan=lifespan)
app.include_router(catalogue.router)
app.include_router(orders.router)
app.include_router(reports.router)
app.mount("/support", support)
if faults.enabled():
    app.include_router(faults.router)


@app.get("/")
async def index() -> dict[str, str]:
    return {"shop": "open", "products": "/products"}
