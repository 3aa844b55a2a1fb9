"""Real workers with a model server: one that is scripted, one that plays a recording, one that is real."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.conftest import StartPlatform, start_platform, start_process
from tests.platform.workers import Platform, skip_without_isolation, worker
from tests.scripted_models import Asked, Reply, ScriptedModels, said, scripted_models

__all__ = ["isolated", "models", "start_platform", "start_process", "start_with_models"]

RECORDINGS = Path(__file__).parents[2] / "recordings"
UNLIMITED = {
    "agent_tokens_per_second": 0,
    "user_tokens_per_second": 0,
    "model_retries": 0,
    "plan_replans": 1,
}

StartWithModels = Callable[..., Any]


@pytest.fixture
async def isolated() -> None:
    await skip_without_isolation()


@pytest.fixture
async def models() -> AsyncIterator[ScriptedModels]:
    async with scripted_models() as server:
        yield server


@pytest.fixture
async def start_with_models(start_platform: StartPlatform, models: ScriptedModels) -> AsyncIterator[StartWithModels]:
    """`await start_with_models()`: a platform and a worker that ask the scripted models as they ask Ollama."""
    async with AsyncExitStack() as stack:

        async def start(*, working: bool = True, **values: Any) -> Platform:
            platform = await start_platform(ollama_host=models.url, model="ollama/m", **{**UNLIMITED, **values})
            if working:
                await stack.enter_async_context(worker(platform.settings))
            return platform

        yield start


@dataclass
class Recording:
    """Plays a file of `tests/recordings`: one exchange a call, in their order. `wrong`: what was asked otherwise than
    recorded."""

    exchanges: list[dict[str, Any]]
    played: int = 0
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, name: str) -> "Recording":
        return cls(json.loads((RECORDINGS / name).read_text())["exchanges"])

    def __call__(self, asked: Asked) -> Reply:
        if self.played == len(self.exchanges):
            self.wrong.append(f"one call too many: {asked.body}")
            return Reply(status=500, pieces=[b'{"error": "the recording is over"}'])
        exchange = self.exchanges[self.played]
        self.played += 1
        last = asked.body["messages"][-1]
        is_like = {
            "purpose": exchange["asked"]["purpose"],
            "tools": [tool["function"]["name"] for tool in asked.body.get("tools", [])],
            "format": "format" in asked.body,
            "last_role": last["role"],
            "says": exchange["asked"]["says"] if exchange["asked"]["says"] in last["content"] else last["content"],
        }
        if (asked.path, is_like) != ("/api/chat", exchange["asked"]):
            self.wrong.append(f"{asked.path} {is_like}")
        lines = [json.dumps(line).encode() + b"\n" for line in exchange["lines"]]
        return Reply(lines, headers={"content-type": "application/x-ndjson"})


def plan_of(*steps: dict[str, Any]) -> Reply:
    return said("ollama", json.dumps({"steps": steps}))


def says(text: str) -> Reply:
    return said("ollama", text)


def asks_for(*calls: tuple[str, dict[str, Any]]) -> Reply:
    return said("ollama", calls=calls)


def contents(asked: Asked) -> list[str]:
    """The contents of the messages of a call."""
    return [message["content"] for message in asked.body["messages"]]
