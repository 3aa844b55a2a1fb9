"""While a model thinks, who watches its run sees that it does; and nothing of that is kept."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from backplane.domain.events import Event, EventType
from backplane.domain.runs import RunStatus
from backplane.domain.secrets import Secret
from backplane.process.tasks import end
from backplane.sealing import new_key
from tests.event_data import data_of
from tests.integration.agent.conftest import StartWithModels, plan_of, says
from tests.platform.workers import Platform, worker
from tests.scripted_models import Reply, ScriptedModels
from tests.waiting import wait_until
from worker.llm import progress

THINK: dict[str, Any] = {"id": "think", "tool": "agent", "arguments": {"goal": "Say something long.", "max_turns": 1}}
WRITE = {"id": "write", "tool": "file_write", "arguments": {"path": "a.txt", "content": "one"}}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.05)


@asynccontextmanager
async def events_watched(platform: Platform, run_id: str) -> AsyncIterator[list[Event]]:
    received: list[Event] = []
    async with platform.resources.event_log.subscription() as subscription:

        async def listen() -> None:
            async for some in subscription.listen():
                if isinstance(some, list):
                    received.extend(some)

        listening = asyncio.create_task(listen())
        await subscription.add(run_id)
        yield received
        await end(listening)


def shown(received: list[Event]) -> list[dict[str, Any]]:
    return [data_of(event) for event in received if event.type is EventType.PROGRESS]


def thinking(reply: Reply, pieces: int) -> Reply:
    """So many pieces of it, and then nothing for ever."""
    return replace(reply, pieces=reply.pieces[:pieces], ending="hang")


async def test_a_step_that_streams_shows_the_end_of_its_text(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    reply = says("word " * 100)
    models.script(thinking(reply, len(reply.pieces) - 1))
    platform: Platform = await start_with_models(working=False)
    run_id = await platform.submit(THINK)
    async with events_watched(platform, run_id) as received, worker(platform.settings):
        await wait_until(lambda: shown(received) and "text" in shown(received)[-1])
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    progress = shown(received)[-1]
    assert (progress["step"], progress["purpose"], progress["number"], progress["model"]) == (
        "think",
        "turn",
        1,
        "ollama/m",
    )
    assert (progress["output_tokens"], progress["text"]) == (167, "…" + "word " * 40)
    assert {event.id for event in received if event.type is EventType.PROGRESS} == {0}
    await platform.ends_whole(run_id)
    kept = await platform.resources.store.events.after(run_id, 0, 1000)
    assert EventType.PROGRESS not in {event.type for event in kept}


async def test_a_secret_that_a_model_writes_is_shown_nowhere(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    value = "a-value-that-nobody-may-see"
    reply = says(f"The key is {value}, as you know.")
    models.script(thinking(reply, len(reply.pieces) - 1))
    platform: Platform = await start_with_models(working=False, secrets_key=new_key())
    assert platform.resources.seal is not None
    sealed = platform.resources.seal.seal(value, user_id=platform.user.id, name="KEY")
    await platform.resources.store.secrets.put(platform.user.id, Secret("KEY", sealed, ("shell",), ()), most=10)
    goal = {**THINK["arguments"], "goal": "Use ${secrets.KEY}."}
    run_id = await platform.submit({**THINK, "arguments": goal})
    async with events_watched(platform, run_id) as received, worker(platform.settings):
        await wait_until(lambda: shown(received) and "text" in shown(received)[-1])
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    assert shown(received)[-1]["text"] == "The key is [secret KEY], as you know."
    assert value[:8] not in repr(received)


async def test_a_planner_that_thinks_shows_its_tokens_and_no_text(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    reply = plan_of(WRITE)
    models.script(thinking(reply, len(reply.pieces) - 1))
    platform: Platform = await start_with_models(working=False)
    run_id = await platform.submit(prompt="Write one to a.txt.")
    async with events_watched(platform, run_id) as received, worker(platform.settings):
        await wait_until(lambda: shown(received) and shown(received)[-1]["output_tokens"] > 0)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    assert {(progress["step"], progress["purpose"], "text" in progress) for progress in shown(received)} == {
        ("", "plan", False)
    }
