"""An adapter of each protocol against a server that answers as the test says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backplane.domain.users import Tier, User
from backplane.resources import Resources, connect
from backplane.settings import fixed
from tests.scripted_models import ScriptedModels, scripted_models
from tests.settings import settings_of
from worker.llm.base import CallLimits, Message, ModelRequest, ModelServer
from worker.llm.catalogue import Kind, ServerSpec

KEY = "sk-a-key-that-nobody-may-see"
LIMITS = CallLimits(timeout_seconds=20, silence_seconds=20, max_output_bytes=100_000)


def asking(text: str = "Say something.", **more: Any) -> ModelRequest:
    return ModelRequest([Message("system", "Be brief."), Message("user", text)], more.pop("most", 50), **more)


@asynccontextmanager
async def opened(
    kind: Kind, url: str, key: str | None = KEY, limits: CallLimits = LIMITS
) -> AsyncIterator[ModelServer]:
    spec = ServerSpec("there", kind, url, SecretStr(key) if key else None, keep_alive="5m")
    server: ModelServer = import_module(f"worker.llm.{kind}").open_server(spec, limits)
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a call."""
    monkeypatch.setattr(fixed, "MODEL_RETRY_MAX_SECONDS", 0.01)


@pytest.fixture
async def resources(redis: str, sqlite_database: str, tmp_path: Path) -> AsyncIterator[Resources]:
    settings = settings_of(
        redis_url=SecretStr(redis),
        database_url=SecretStr(sqlite_database),
        workspace_dir=tmp_path / "workspaces",
    )
    async with connect(settings) as resources:
        await resources.prepare()
        yield resources


@pytest.fixture
async def user(resources: Resources) -> User:
    token, _ = await resources.store.users.create_token("ada", Tier.STANDARD)
    return token.user


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedModels]:
    async with scripted_models() as models:
        yield models


@pytest.fixture(params=["ollama", "openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
async def adapter(kind: Kind, scripted: ScriptedModels) -> AsyncIterator[ModelServer]:
    async with opened(kind, scripted.url) as server:
        yield server
