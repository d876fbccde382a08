"""Products: fast reads, from the cache where it has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..cache import Cache
from ..database import Product, SessionOf

router = APIRouter(tags=["catalogue"])


class ProductOut(BaseModel):
    model_config = {"from_attributes": True}

    id: int
    name: str
    category: str
    price_cents: int


products: Cache[ProductOut] = Cache(size=100, seconds=30)


@router.get("/products")
def list_products(
    database: SessionOf,
    category: str | None = None,
    page: Annotated[int, Query(ge=1)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, object]:
    wanted = select(Product)
    if category is not None:
        wanted = wanted.where(Product.category == category)
    total = database.scalar(select(func.count()).select_from(wanted.subquery()))
    rows = database.scalars(wanted.order_by(Product.id).limit(size).offset((page - 1) * size))
    return {"total": total, "products": [ProductOut.model_validate(row) for row in rows]}


@router.get("/products/{product_id}")
def get_product(product_id: int, database: SessionOf) -> ProductOut:
    product = products.get(product_id)
    if product is None:
        row = database.get(Product, product_id)
        if row is None:
            raise HTTPException(404, f"there is no product {product_id}")
        product = ProductOut.model_validate(row)
        products.put(product_id, product)
    return product


@router.get("/export.csv")
def export(request: Request) -> StreamingResponse:
    engine = request.app.state.database.engine

    def lines() -> Iterator[str]:
        yield "id,name,category,price_cents\n"
        with Session(engine) as database:
            for row in database.scalars(select(Product).order_by(Product.id)):
                yield f"{row.id},{row.name},{row.category},{row.price_cents}\n"

    return StreamingResponse(lines(), media_type="text/csv")
