"""Faults on demand, for the demo: off unless SHOP_FAULTS=1, because anybody could use the route."""

from __future__ import annotations

import os

from fastapi import APIRouter
from pydantic import BaseModel, Field


class Faults(BaseModel):
    """How much slower the warehouse answers reports, and what share of payments fails."""

    report_slowdown: float = Field(default=1.0, ge=1, le=100)
    checkout_failures: float = Field(default=0.01, ge=0, le=1)


faults = Faults()
router = APIRouter(prefix="/_demo", include_in_schema=False)


def enabled() -> bool:
    return os.environ.get("SHOP_FAULTS") == "1"


@router.post("/faults")
async def set_faults(wanted: Faults) -> Faults:
    """Put these faults in force; what is left out is back to normal."""
    faults.report_slowdown = wanted.report_slowdown
    faults.checkout_failures = wanted.checkout_failures
    return faults
