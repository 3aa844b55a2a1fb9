"""A server outside that counts what arrives and fails as servers do, and what becomes of the runs that ask it."""

import asyncio
from typing import Any

from backplane.domain.runs import Run, RunStatus
from backplane.domain.steps import StepRecord
from tests.integration.tools.site import Answer, Site
from tests.platform.workers import Platform

RETRY = {"max_attempts": 3, "backoff_seconds": 0.01}
OVER = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.WAITING, RunStatus.CANCELLED)


def outside(site: Site, **more: Any) -> dict[str, Any]:
    """Settings under which tools reach the site, and nothing waits long."""
    return {
        "outside_hosts": [f"127.0.0.1:{site.port}", "127.0.0.1:9"],
        "outside_allow_private": True,
        "outside_timeout_seconds": 20.0,
        **more,
    }


def post(site: Site, path: str = "/pay", **more: Any) -> dict[str, Any]:
    arguments = {"method": "POST", "url": site.url(path), "body": "pay 10", **more.pop("arguments", {})}
    return {"id": "pay", "tool": "http_request", "arguments": arguments, **more}


def posts(site: Site) -> int:
    return sum(asked.method == "POST" for asked in site.asked)


async def hangs(writer: asyncio.StreamWriter) -> None:
    """Has the whole request, and says nothing."""
    await asyncio.Event().wait()


async def cuts(writer: asyncio.StreamWriter) -> None:
    """Has the whole request, and closes the connection."""
    writer.transport.abort()


def begins(head: bytes, *, then: Answer) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        await then(writer)

    return answer


def status(words: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    return answer


def moved(words: str, to: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {words}\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    return answer


async def ended(platform: Platform, run_id: str) -> Run:
    return await platform.until(run_id, *OVER)


async def record(platform: Platform, run_id: str, step: str = "pay") -> StepRecord:
    return next(record for record in await platform.journal(run_id) if record.step_id == step)


def is_uncertain(run: Run) -> bool:
    return run.status is RunStatus.WAITING and run.error is not None and run.error.code == "step_uncertain"
