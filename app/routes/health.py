"""Health: live says that the process turns; ready says which part is there, how quick it is, and what is wrong."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from fastapi import Response

from app.context import ContextOf
from app.edge.operations import Operations
from app.schemas.health import PartHealth, Readiness
from backplane.errors import PlatformError
from backplane.resources import Resources

router = Operations(tags=["health"])

PART_SECONDS = 3.0
KEPT_SECONDS = 0.25
"""So long an answer is given again: a flood of questions asks the parts four times a second."""


@router.get("/health/live")
async def check_liveness() -> dict[str, bool]:
    """Whether the process answers. Asks no other part."""
    return {"ok": True}


@router.get("/health/ready", responses={503: {"model": Readiness, "description": "A part does not answer."}})
async def check_readiness(context: ContextOf, response: Response) -> Readiness:
    """Whether runs can be taken now. No token needed; no secret is in it. Redis must take a write."""
    readiness = await context.readiness.get()
    if not readiness.ok:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return readiness


async def readiness_of(resources: Resources) -> Readiness:
    checks = {
        "redis": resources.redis.check_write,
        "database": resources.store.database.check,
        "workspace": resources.workspaces.check,
    }
    found = await asyncio.gather(*(_check(check) for check in checks.values()))
    parts = dict(zip(checks, found, strict=True))
    return Readiness(ok=all(part.ok for part in parts.values()), parts=parts)


async def _check(check: Callable[[], Awaitable[None]]) -> PartHealth:
    began, error = time.monotonic(), None
    try:
        async with asyncio.timeout(PART_SECONDS):
            await check()
    except PlatformError as failure:
        error = failure.message
    except TimeoutError:
        error = f"no answer within {PART_SECONDS:g} s"
    return PartHealth(ok=error is None, latency_ms=round((time.monotonic() - began) * 1000, 2), error=error)
