"""An agent with a real, small model that answers, and a planner with one that knows nothing, over a real wire."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentctl.local.embedded import free_port
from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus
from tests.integration.agent.conftest import UNLIMITED
from tests.integration.worker.conftest import StartPlatform
from tests.model_server import KEY, ModelHttpServer
from tests.platform.workers import Platform, worker

THINK = {
    "id": "think",
    "tool": "agent",
    "arguments": {"goal": "Say which animal says meow.", "tools": ["file_read"], "max_turns": 2},
}
KEEP = {"id": "keep", "tool": "file_write", "arguments": {"path": "said.txt", "content": "${steps.think.output}"}}


StartWithModel = Callable[[ModelHttpServer], Awaitable[Platform]]


@pytest.fixture
async def start_with_model(start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch) -> StartWithModel:
    async def start(server: ModelHttpServer) -> Platform:
        monkeypatch.setenv("LOCAL_KEY", KEY)
        return await start_platform(
            model_servers=servers_at(server.url),
            model=f"local/{server.model}",
            model_prices={f"local/{server.model}": {"input": 1.0, "output": 2.0}},
            model_max_output_tokens=40,
            plan_repairs=1,
            **UNLIMITED,
        )

    return start


def servers_at(url: str) -> dict[str, dict[str, Any]]:
    return {"local": {"kind": "openai", "url": url, "api_key_env": "LOCAL_KEY"}}


@pytest.mark.slow
async def test_a_run_of_a_real_model_is_replayed_offline_to_the_same_end(
    start_with_model: StartWithModel, small_model: ModelHttpServer
) -> None:
    platform = await start_with_model(small_model)
    async with worker(platform.settings):
        run_id = await platform.submit(THINK, KEEP)
        run = await platform.completed(run_id)
    said = await platform.read(run_id, "said.txt")
    assert b"cat" in said
    assert run.result is not None
    cost = run.result["cost"]
    # At its two prices, as many tokens as the server counted.
    assert cost["usd"] == pytest.approx((cost["input_tokens"] + 2 * cost["output_tokens"]) / 1e6)
    assert 0 < cost["output_tokens"] <= 40
    [call] = await platform.event_data(run_id, EventType.MODEL)
    assert (call["step"], call["purpose"], call["status"]) == ("think", "turn", "completed")

    nowhere = servers_at(f"http://127.0.0.1:{free_port()}")
    async with worker(platform.settings.model_copy(update={"model_servers": nowhere})):
        replay = await platform.submission.replay(platform.user, run_id, None)
        again = await platform.completed(replay.id)
    assert await platform.read(replay.id, "said.txt") == said
    assert again.result is not None
    assert again.result["cost"]["usd"] == 0.0
    [call] = await platform.event_data(replay.id, EventType.MODEL)
    assert call["replayed"] is True


@pytest.mark.slow
async def test_a_plan_by_a_model_that_knows_nothing_is_refused(
    start_with_model: StartWithModel, model_server: ModelHttpServer
) -> None:
    platform = await start_with_model(model_server)
    async with worker(platform.settings):
        run_id = await platform.submit(prompt="Sort the files by size.")
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "invalid_plan"
    purposes = [call["purpose"] for call in await platform.event_data(run_id, EventType.MODEL)]
    # An answer that is cut at its most tokens is another attempt's.
    assert purposes[:2] == ["plan", "repair"]
