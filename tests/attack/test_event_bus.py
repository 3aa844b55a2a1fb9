"""An API that is killed while events are posted: a batch is stored whole or not at all, and sent again it is stored
once."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.integration.api.running import Api, Person
from tests.platform.workers import ROOT

EVENTS, BATCH, ROUNDS = "/api/v1/events", 100, 4


@asynccontextmanager
async def api_process(api: Api, token: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """An API of its own on the database of another, and a client of it. It is killed in the end."""
    program = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", "0"]
    environment = {
        **os.environ,
        "REDIS_URL": api.settings.redis_url.get_secret_value(),
        "DATABASE_URL": api.settings.database_url.get_secret_value(),
        "WORKSPACE_DIR": str(api.settings.workspace_dir),
    }
    process = await asyncio.create_subprocess_exec(*program, cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        async for line in process.stderr:
            if b"running on" in line:
                break
        url = "http://" + line.split(b"http://")[1].split()[0].decode()
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as http:
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def batch(number: int) -> list[dict[str, Any]]:
    return [{"id": f"{number}-{each}", "source": "/shop", "type": "order.created"} for each in range(BATCH)]


async def stored(person: Person) -> list[str]:
    """The ids of all events, in their order."""
    found: list[str] = []
    after, more = 0, True
    while more:
        answer = (await person.http.get(EVENTS, params={"after": after, "limit": 100})).json()
        found += [event["id"] for event in answer["events"]]
        after, more = answer["cursor"], answer["has_more"]
    return found


@pytest.mark.slow
async def test_a_batch_whose_api_is_killed_is_stored_whole_or_not_and_once_when_it_is_sent_again(
    api: Api, person: Person
) -> None:
    chance, before = random.Random(5), 0
    for number in range(ROUNDS):
        async with api_process(api, person.token) as (process, http):
            assert (await http.get("/agent/runs")).status_code == 200  # what is loaded at the first request is there
            sending = asyncio.create_task(http.post(EVENTS, json=batch(number)))
            await asyncio.sleep(chance.uniform(0, 0.08))
            process.kill()
            with suppress(httpx.HTTPError):
                await sending
        there = len(await stored(person)) - before
        assert there in (0, BATCH)
        again = await person.http.post(EVENTS, json=batch(number))
        assert again.status_code == (200 if there else 201), again.text
        before += BATCH
    assert await stored(person) == [event["id"] for number in range(ROUNDS) for event in batch(number)]
