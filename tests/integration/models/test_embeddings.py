"""Embeddings of a server, by the gateway."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backplane.domain.users import User
from backplane.resources import Resources
from backplane.settings import Settings
from tests.integration.models.runs import Asking, asking
from tests.model_server import KEY, MODEL, ModelHttpServer
from tests.scripted_models import Reply, ScriptedModels, refusal
from worker.llm.base import ModelOutputInvalid, ModelRefused
from worker.llm.embedding import BATCH, HashedEmbedder, ServerEmbedder, embedder_of


def vectors(*found: list[Any]) -> Reply:
    return Reply([json.dumps({"embeddings": found, "prompt_eval_count": 3}).encode()])


@pytest.fixture
async def world(resources: Resources, user: User, scripted: ScriptedModels) -> AsyncIterator[Asking]:
    server = {"kind": "ollama", "url": scripted.url, "slots": 0}
    async with asking(resources, user, model_servers={"one": server}, embedding_model="one/e") as world:
        yield world


async def test_a_real_server_gives_vectors_of_length_one(
    resources: Resources, user: User, model_server: ModelHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REAL_KEY", KEY)
    server = {"kind": "openai", "url": model_server.url, "slots": 0, "api_key_env": "REAL_KEY"}
    name = f"real/{MODEL}"
    async with asking(resources, user, model_servers={"real": server}, embedding_model=name) as world:
        embedder = embedder_of(Settings(_env_file=None, embedding_model=name), world.gateway)
        assert isinstance(embedder, ServerEmbedder)
        assert await embedder.dimensions() == 32
        [vector] = await embedder.embed(["a text"])
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert embedder.name == name


def test_without_a_model_there_is_a_built_in_one(world: Asking) -> None:
    assert isinstance(embedder_of(Settings(_env_file=None), world.gateway), HashedEmbedder)


async def test_many_texts_are_sent_in_parts(world: Asking, scripted: ScriptedModels) -> None:
    scripted.answer(lambda asked: vectors(*[[float(len(text)), 0.0] for text in asked.body["input"]]))
    found = await ServerEmbedder(world.gateway, "one/e").embed(["x"] * (BATCH + 1))
    assert found == [[1.0, 0.0]] * (BATCH + 1)
    assert [len(asked.body["input"]) for asked in scripted.asked] == [BATCH, 1]
    assert world.sample("agent_model_tokens_total", server="one", model="e", direction="input") == 6


async def test_a_busy_server_is_asked_again(world: Asking, scripted: ScriptedModels) -> None:
    scripted.script(refusal("ollama", 503, "loading"), vectors([3.0, 4.0]))
    assert await ServerEmbedder(world.gateway, "one/e").embed(["a"]) == [[0.6, 0.8]]


@pytest.mark.parametrize("found", [[], [[1.0], [2.0]], [[]], [["a"]], [None], [[True, None]]])
async def test_what_is_no_vector_a_text_is_refused(world: Asking, scripted: ScriptedModels, found: list[Any]) -> None:
    scripted.script(vectors(*found))
    with pytest.raises(ModelOutputInvalid, match="embeddings"):
        await ServerEmbedder(world.gateway, "one/e").embed(["a"])


async def test_a_server_that_is_not_there_any_more_is_reported(world: Asking) -> None:
    with pytest.raises(ModelRefused, match="there is no model server"):
        await ServerEmbedder(world.gateway, "gone/e").embed(["a"])
