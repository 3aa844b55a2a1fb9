"""A server that says when it may be asked again is not asked before."""

import asyncio
import time
from typing import Any

import pytest

from backplane.domain.runs import RunStatus
from tests.attack import mcp_site
from tests.attack.outside import ended, outside, post, record
from tests.integration.tools.site import Answer, Site
from tests.integration.worker.conftest import StartPlatform, start_platform
from tests.platform.workers import Platform, worker

__all__ = ["start_platform"]

ASKED_SECONDS = 1.0


def fetch(site: Site, **more: Any) -> dict[str, Any]:
    return {"id": "fetch", "tool": "http_fetch", "arguments": {"url": site.url("/page")}, **more}


def first(site: Site, words: str, asks: str, times: list[float]) -> Answer:
    """This status with this Retry-After at first, then 200."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        says = words if len(times) == 1 else "200 OK"
        writer.write(
            f"HTTP/1.1 {says}\r\nRetry-After: {asks}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )

    return answer


@pytest.mark.parametrize("layer", ["step", "run"])
async def test_the_next_try_comes_no_earlier_than_the_server_asks(
    start_platform: StartPlatform, site: Site, layer: str
) -> None:
    """Of both tools, and of both statuses that ask so."""
    policy: dict[str, Any] = {"retry": {"max_attempts": 2, "backoff_seconds": 0.01}} if layer == "step" else {}
    retries = 0 if layer == "step" else 1
    platform: Platform = await start_platform(**outside(site, retry_max_seconds=30.0))
    asked: list[list[float]] = [[], []]
    site.pages["/page"] = first(site, "503 Service Unavailable", "1", asked[0])
    site.pages["/pay"] = first(site, "429 Too Many Requests", "1", asked[1])
    async with worker(platform.settings):
        run_ids = [
            await platform.submit(fetch(site, **policy), max_retries=retries),
            await platform.submit(post(site, **policy), max_retries=retries),
        ]
        for run_id in run_ids:
            await platform.completed(run_id)
    for times in asked:
        assert len(times) == 2
        assert times[1] - times[0] >= ASKED_SECONDS


@pytest.mark.parametrize(
    ("step", "retries"),
    [({"retry": {"max_attempts": 3, "backoff_seconds": 0.01}, "timeout_seconds": 5}, 0), ({}, 3)],
    ids=["longer than the step's time", "longer than the longest pause of runs"],
)
async def test_a_server_that_asks_for_longer_than_may_be_waited_is_not_asked_again(
    start_platform: StartPlatform, site: Site, step: dict[str, Any], retries: int
) -> None:
    times: list[float] = []
    site.pages["/page"] = first(site, "429 Too Many Requests", "6", times)
    platform = await start_platform(**outside(site, retry_max_seconds=5.0))
    async with worker(platform.settings):
        run_id = await platform.submit(fetch(site, **step), max_retries=retries)
        run = await ended(platform, run_id)
    assert (len(times), run.status) == (1, RunStatus.FAILED)
    assert run.error is not None
    assert "it asks to be asked again in 6 s" in run.error.message
    assert (await record(platform, run_id, "fetch")).tries == 1


async def test_an_mcp_server_that_is_called_too_often_is_called_no_earlier_than_it_asks(
    start_platform: StartPlatform, site: Site
) -> None:
    times: list[float] = []

    def call(id: object) -> Answer:
        if times:
            times.append(time.monotonic())
            return mcp_site.result(id, {"content": [{"type": "text", "text": "paid"}]})
        return first(site, "429 Too Many Requests", "1", times)

    mcp_site.serve(site, "/bank", call)
    platform = await start_platform(**outside(site, mcp_servers={"bank": {"url": site.url("/bank")}}))
    step = {"id": "pay", "tool": "bank__pay", "retry": {"max_attempts": 2, "backoff_seconds": 0.01}}
    async with worker(platform.settings):
        await platform.completed(await platform.submit(step, mcp_servers=["bank"]))
    assert times[1] - times[0] >= ASKED_SECONDS
