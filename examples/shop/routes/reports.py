"""What the shop asks others for: stock from the warehouse, rates from a bank."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import func, select

from ..database import Order, Product, SessionOf

router = APIRouter(tags=["reports"])


@router.get("/reports/{report_id}")
async def get_report(report_id: int, request: Request, database: SessionOf) -> dict[str, object]:
    sold = await run_in_threadpool(
        lambda: database.execute(
            select(Product.category, func.sum(Order.quantity * Product.price_cents).label("cents"))
            .join(Order, Order.product_id == Product.id)
            .group_by(Product.category)
        ).all()
    )
    warehouse = await request.app.state.partners.get(f"/stock/{report_id}")
    warehouse.raise_for_status()
    return {"report": report_id, "sold_cents": {row.category: row.cents for row in sold}, **warehouse.json()}


@router.get("/rates")
async def get_rates(request: Request) -> dict[str, float]:
    answer = await request.app.state.partners.get("/rates")
    answer.raise_for_status()
    rates: dict[str, float] = answer.json()
    return rates
