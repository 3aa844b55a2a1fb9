"""A run's stream, read as any client would read it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import aconnect_sse

LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Seen:
    """`type` is status, plan, step, log, gap or end; `data` is its content."""

    id: int
    type: str
    data: dict[str, Any]


async def watch(api: httpx.AsyncClient, run_id: str, *, last_event_id: int = 0) -> AsyncGenerator[Seen]:
    """The run's numbered events as they happen, until its end."""
    headers = {"Last-Event-ID": str(last_event_id)} if last_event_id else {}
    async with (
        asyncio.timeout(LONGEST_SECONDS),
        aconnect_sse(api, "GET", f"/agent/logs/{run_id}/stream", headers=headers) as source,
    ):
        async for event in source.aiter_sse():
            # What is live only has no number, and the client gives it that of the event before.
            if event.id and event.event not in ("position", "progress"):
                yield Seen(int(event.id), event.event, event.json()["data"])
