"""The help desk: an application of its own that the shop mounts."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException

TICKETS = {1: "Where is my lamp?", 2: "The table wobbles", 3: "Thank you!"}

support = FastAPI(title="Support")


@support.get("/tickets/{ticket_id}")
async def get_ticket(ticket_id: int) -> dict[str, str]:
    if ticket_id not in TICKETS:
        raise HTTPException(404, f"there is no ticket {ticket_id}")
    return {"ticket": TICKETS[ticket_id]}
