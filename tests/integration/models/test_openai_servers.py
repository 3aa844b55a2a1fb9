"""The liberties that servers take with OpenAI's wire."""

import json
from typing import Any

import pytest

from tests.integration.models.conftest import LIMITS, asking, opened
from tests.scripted_models import TYPES, Reply, ScriptedModels, event, openai_chunk, refusal
from worker.llm.base import ModelRefused, ModelResponse

HEADERS = {"content-type": TYPES["openai"]}


async def answered(scripted: ScriptedModels, *pieces: bytes) -> ModelResponse:
    scripted.script(Reply([*pieces, event("[DONE]")], headers=HEADERS))
    async with opened("openai", scripted.url) as server:
        return await server.complete("m", asking(), LIMITS, lambda _: None)


def call(**fields: Any) -> bytes:
    return openai_chunk({"tool_calls": [fields]})


async def test_a_call_may_come_in_pieces(scripted: ScriptedModels) -> None:
    response = await answered(
        scripted,
        call(index=0, id="a", type="function", function={"name": "read", "arguments": ""}),
        call(index=1, id="b", type="function", function={"name": "write", "arguments": "{"}),
        call(index=0, function={"arguments": '{"p": 1}'}),
        call(index=1, function={"arguments": "}"}),
        openai_chunk({}, "tool_calls"),
    )
    assert [(one.id, one.name, one.arguments) for one in response.tool_calls] == [
        ("a", "read", '{"p": 1}'),
        ("b", "write", "{}"),
    ]


async def test_whole_calls_may_come_without_an_index_or_all_with_the_same(scripted: ScriptedModels) -> None:
    both = [
        {"id": "a", "function": {"name": "read", "arguments": '{"p": 1}'}},
        {"id": "b", "function": {"name": "read", "arguments": '{"p": 2}'}},
    ]
    without = await answered(scripted, openai_chunk({"tool_calls": both}), openai_chunk({}, "stop"))
    same = await answered(scripted, *[call(index=0, **one) for one in both], openai_chunk({}, "stop"))
    for response in (without, same):
        assert [json.loads(one.arguments) for one in response.tool_calls] == [{"p": 1}, {"p": 2}]
        assert response.finish == "tool_calls"


async def test_a_call_may_have_no_id_and_an_object_as_arguments(scripted: ScriptedModels) -> None:
    response = await answered(
        scripted, call(function={"name": "read", "arguments": {"p": 1}}), openai_chunk({}, "tool_calls")
    )
    [one] = response.tool_calls
    assert one.id
    assert json.loads(one.arguments) == {"p": 1}


async def test_what_a_model_thinks_is_no_part_of_its_answer(scripted: ScriptedModels) -> None:
    response = await answered(
        scripted, openai_chunk({"reasoning_content": "hm" * 30}), openai_chunk({"content": "Yes."}, "stop")
    )
    assert response.text == "Yes."
    assert response.usage.output_tokens > 20


async def test_the_end_may_come_without_done(scripted: ScriptedModels) -> None:
    scripted.script(Reply([openai_chunk({"content": "Yes."}, "stop")], headers=HEADERS))
    async with opened("openai", scripted.url) as server:
        assert (await server.complete("m", asking(), LIMITS, lambda _: None)).text == "Yes."


async def test_an_answer_that_is_withheld_is_refused(scripted: ScriptedModels) -> None:
    with pytest.raises(ModelRefused, match="content filter"):
        await answered(scripted, openai_chunk({"content": "I"}), openai_chunk({}, "content_filter"))


async def test_a_key_without_credit_is_no_busy_server(scripted: ScriptedModels) -> None:
    scripted.script(refusal("openai", 429, "check your plan", code="insufficient_quota"))
    async with opened("openai", scripted.url) as server:
        with pytest.raises(ModelRefused, match="no quota"):
            await server.complete("m", asking(), LIMITS, lambda _: None)
