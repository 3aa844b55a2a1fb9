"""The adapters against a real server: llama.cpp's, which speaks OpenAI's wire and Anthropic's messages."""

import asyncio
import json
import traceback
import urllib.request
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.models.conftest import LIMITS, asking, opened
from tests.model_server import KEY, MODEL, SMALL_MODEL, ModelHttpServer
from tests.waiting import wait_until
from worker.llm.base import Message, ModelContextTooLong, ModelRefused, ModelRequest, ModelTimeout
from worker.llm.catalogue import Kind

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "steps": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"enum": ["read", "write"]}},
    },
    "required": ["title", "steps"],
    "additionalProperties": False,
}

MANY = {"type": "array", "minItems": 300, "maxItems": 300}
ENDLESS: dict[str, Any] = {**MANY, "items": {**MANY, "items": {"enum": ["a"]}}}
LONG = replace(LIMITS, max_output_bytes=1_000_000)


@pytest.fixture(params=["openai", "anthropic"])
def spoken(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def busy_slots(server: ModelHttpServer) -> int:
    request = urllib.request.Request(f"{server.url}/slots", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        return sum(slot["is_processing"] for slot in json.load(answer))


async def test_a_real_model_answers(small_model: ModelHttpServer, spoken: Kind) -> None:
    received: list[str] = []
    async with opened(spoken, small_model.url, KEY) as server:
        request = asking("What is 2 + 2?", most=20, temperature=0.0, seed=1)
        response = await server.complete(SMALL_MODEL, request, LIMITS, received.append)
    assert response.text == "".join(received)
    assert "4" in response.text
    assert response.finish == "stop"
    assert 0 < response.usage.output_tokens < 20
    assert len(received) > 1
    # Of the chat template's marks, too.
    assert 10 < response.usage.input_tokens < 60
    assert not response.usage.is_estimate


@pytest.mark.slow
async def test_a_real_model_is_cut_at_its_most_tokens(small_model: ModelHttpServer, spoken: Kind) -> None:
    async with opened(spoken, small_model.url, KEY) as server:
        request = asking("Tell me a long story of a cat.", most=5, temperature=0.0, seed=1)
        response = await server.complete(SMALL_MODEL, request, LIMITS, lambda _: None)
    assert (response.finish, response.usage.output_tokens) == ("length", 5)


@pytest.mark.slow
async def test_a_real_model_answers_in_a_schema_and_knows_what_was_said(small_model: ModelHttpServer) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog", "cow"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    messages = [
        Message("user", "The cat says meow."),
        Message("assistant", "Yes, the cat says meow."),
        Message("user", "Which animal says meow? Answer as JSON."),
    ]
    async with opened("openai", small_model.url, KEY) as server:
        request = ModelRequest(messages, 30, schema=schema, temperature=0.0, seed=1)
        response = await server.complete(SMALL_MODEL, request, LIMITS, lambda _: None)
    assert json.loads(response.text) == {"animal": "cat"}


async def test_a_real_server_keeps_to_a_schema_and_a_seed(model_server: ModelHttpServer) -> None:
    async with opened("openai", model_server.url, KEY) as server:
        request = asking(most=300, schema=SCHEMA, seed=3, temperature=1.0)
        texts = [(await server.complete(MODEL, request, LIMITS, lambda _: None)).text for _ in range(2)]
    assert texts[0] == texts[1]
    answer = json.loads(texts[0])
    assert set(answer) == {"title", "steps"}
    assert set(answer["steps"]) <= {"read", "write"}


@pytest.mark.parametrize("path", ["", "/v1", "/v1/"])
async def test_a_url_may_have_its_version_or_not(model_server: ModelHttpServer, path: str) -> None:
    async with opened("openai", model_server.url + path, KEY) as server:
        assert await server.models() == [MODEL]


async def test_a_real_server_stops_when_a_call_is_cancelled(model_server: ModelHttpServer) -> None:
    received: list[str] = []
    async with opened("openai", model_server.url, KEY) as server:
        call = asyncio.create_task(server.complete(MODEL, asking(most=30_000, schema=ENDLESS), LONG, received.append))
        await wait_until(lambda: received or call.done())
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await wait_until(lambda: busy_slots(model_server) == 0)


async def test_a_real_server_may_take_too_long(model_server: ModelHttpServer) -> None:
    async with opened("openai", model_server.url, KEY) as server:
        with pytest.raises(ModelTimeout):
            await server.complete(
                MODEL, asking(most=30_000, schema=ENDLESS), replace(LONG, timeout_seconds=0.1), lambda _: None
            )
    await wait_until(lambda: busy_slots(model_server) == 0)


async def test_a_real_server_says_that_a_prompt_is_too_long(model_server: ModelHttpServer, spoken: Kind) -> None:
    async with opened(spoken, model_server.url, KEY) as server:
        with pytest.raises(ModelContextTooLong):
            await server.complete(MODEL, asking("x" * 40_000), LIMITS, lambda _: None)


async def test_a_real_server_refuses_a_wrong_key_which_stays_hidden(
    model_server: ModelHttpServer, spoken: Kind
) -> None:
    async with opened(spoken, model_server.url, "sk-wrong-key-of-somebody") as server:
        with pytest.raises(ModelRefused, match="check its key") as raised:
            await server.complete(MODEL, asking(), LIMITS, lambda _: None)
    assert "sk-wrong" not in "".join(traceback.format_exception(raised.value))


async def test_a_real_server_embeds(model_server: ModelHttpServer) -> None:
    async with opened("openai", model_server.url, KEY) as server:
        vectors, usage = await server.embed(MODEL, ["one text", "another"], LIMITS)
    assert [len(vector) for vector in vectors] == [32, 32]
    assert vectors[0] != vectors[1]
    assert usage.input_tokens >= len("one textanother")
