"""Liberties that servers of all three wires take: how they end, fail, break lines and give calls of tools."""

import json
from typing import Any

import pytest

from tests.integration.models.conftest import LIMITS, asking, opened
from tests.scripted_models import TYPES, Reply, Said, ScriptedModels, event, openai_chunk, pieces_of
from worker.llm.base import ModelOutputInvalid, ModelResponse, ModelServer, ModelUnavailable, ToolSchema
from worker.llm.catalogue import Kind

READ = ToolSchema("read", "Reads.", {"type": "object", "properties": {"p": {"type": "integer"}}})
WORDS = {"ollama": "stop", "openai": "stop", "anthropic": "end_turn"}


def ending(kind: Kind, reason: str) -> Reply:
    """A whole answer whose end is named otherwise."""
    pieces = [
        piece.replace(f'"{WORDS[kind]}"'.encode(), json.dumps(reason).encode())
        for piece in pieces_of(kind, Said(["Half an"]))
    ]
    return Reply(pieces, headers={"content-type": TYPES[kind]})


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("max_tokens", "length"),
    ],
)
async def test_an_end_by_any_of_its_names_is_an_end(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind, reason: str, finish: str
) -> None:
    scripted.script(ending(kind, reason))
    response = await adapter.complete("m", asking(), LIMITS, lambda _: None)
    assert (response.text, response.finish) == ("Half an", finish)


@pytest.mark.parametrize(
    "reason", ["abort", "error", "timeout", "cancelled", "load_shed", "unload", "pause_turn", "x" * 500]
)
async def test_half_an_answer_is_no_answer(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind, reason: str
) -> None:
    scripted.script(ending(kind, reason))
    with pytest.raises(ModelUnavailable, match=f"ended its answer early: '{reason[:100]}") as failed:
        await adapter.complete("m", asking(), LIMITS, lambda _: None)
    assert failed.value.usage is not None


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the model ran out of memory", "type": "server_error"}},
        {"error": "the model ran out of memory"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "the model ran out of memory"}},
    ],
)
async def test_an_error_under_the_status_of_success_is_reported_in_the_servers_words(
    adapter: ModelServer, scripted: ScriptedModels, body: dict[str, Any]
) -> None:
    scripted.script(Reply([json.dumps(body).encode()], headers={"content-type": "application/json; charset=utf-8"}))
    with pytest.raises(ModelUnavailable, match="failed: the model ran out of memory"):
        await adapter.complete("m", asking(), LIMITS, lambda _: None)


async def test_a_page_in_place_of_an_answer_is_named(scripted: ScriptedModels) -> None:
    scripted.script(Reply([b"<html>Sign in</html>"], headers={"content-type": "text/html"}))
    async with opened("openai", scripted.url) as server:
        with pytest.raises(ModelOutputInvalid, match="text/html in place of events"):
            await server.complete("m", asking(), LIMITS, lambda _: None)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u000b", "\u000c", "\u001c", "\r"])
async def test_no_character_within_a_text_breaks_a_line_of_the_wire(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind, separator: str
) -> None:
    text = f"one{separator}two"
    pieces = [_unescaped(piece, separator) for piece in pieces_of(kind, Said([text]))]
    scripted.script(Reply(pieces, headers={"content-type": TYPES[kind]}))
    assert (await adapter.complete("m", asking(), LIMITS, lambda _: None)).text == text


def _unescaped(piece: bytes, separator: str) -> bytes:
    """As a server writes it that escapes only what JSON wants escaped."""
    if ord(separator) < 0x20:
        return piece
    return piece.replace(json.dumps(separator)[1:-1].encode(), separator.encode())


async def test_lines_may_be_cut_anywhere_on_the_way(scripted: ScriptedModels) -> None:
    whole = b"".join(pieces_of("ollama", Said(["Grüße\u2028!"])))
    scripted.script(
        Reply([whole[at : at + 7] for at in range(0, len(whole), 7)], headers={"content-type": TYPES["ollama"]})
    )
    async with opened("ollama", scripted.url) as server:
        assert (await server.complete("m", asking(), LIMITS, lambda _: None)).text == "Grüße\u2028!"


# --- OpenAI's wire ---


async def answered(scripted: ScriptedModels, *pieces: bytes) -> ModelResponse:
    scripted.script(Reply([*pieces, event("[DONE]")], headers={"content-type": TYPES["openai"]}))
    async with opened("openai", scripted.url) as server:
        return await server.complete("m", asking(tools=[READ]), LIMITS, lambda _: None)


def call(**fields: Any) -> bytes:
    return openai_chunk({"tool_calls": [fields]})


ONE, TWO = {"name": "read", "arguments": '{"p": 1}'}, {"name": "read", "arguments": '{"p": 2}'}
CALLS = {
    "no ids, the same index": [call(index=0, function=ONE), call(index=0, function=TWO)],
    "no ids, no index": [call(function=ONE), call(function=TWO)],
    "no ids, together, no index": [openai_chunk({"tool_calls": [{"function": ONE}, {"function": TWO}]})],
    "no ids, together, the same index": [
        openai_chunk({"tool_calls": [{"index": 0, "function": ONE}, {"index": 0, "function": TWO}]})
    ],
    "empty ids": [call(index=0, id="", function=ONE), call(index=0, id="", function=TWO)],
    "no ids, in pieces": [
        call(index=0, function={"name": "read", "arguments": ""}),
        call(index=0, function={"arguments": '{"p"'}),
        call(index=0, function={"arguments": ": 1}"}),
        call(index=0, function={"name": "read", "arguments": '{"p": 2}'}),
    ],
    "the id and the name with each piece": [
        call(index=0, id="a", function={"name": "read", "arguments": '{"p"'}),
        call(index=0, id="a", function={"name": "read", "arguments": ": 1}"}),
        call(index=1, id="b", function={"name": "read", "arguments": '{"p": 2}'}),
    ],
    "the name with each piece": [
        call(index=0, function={"name": "read", "arguments": '{"p"'}),
        call(index=0, function={"name": "read", "arguments": ": 1}"}),
        call(index=1, function={"name": "read", "arguments": '{"p": 2}'}),
    ],
}


@pytest.mark.parametrize("pieces", CALLS.values(), ids=CALLS)
async def test_two_calls_stay_two_however_they_are_told_apart(scripted: ScriptedModels, pieces: list[bytes]) -> None:
    response = await answered(scripted, *pieces, openai_chunk({}, "tool_calls"))
    assert [(one.name, json.loads(one.arguments)) for one in response.tool_calls] == [
        ("read", {"p": 1}),
        ("read", {"p": 2}),
    ]
    assert len({one.id for one in response.tool_calls}) == 2


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_what_a_model_thinks_is_counted_by_either_name(scripted: ScriptedModels, field: str) -> None:
    response = await answered(scripted, openai_chunk({field: "hm" * 30}), openai_chunk({"content": "Yes."}, "stop"))
    assert (response.text, response.usage.output_tokens > 20) == ("Yes.", True)


async def test_a_whole_answer_in_place_of_a_stream_is_taken(scripted: ScriptedModels) -> None:
    message = {"role": "assistant", "content": "Yes.", "tool_calls": [{"id": "a", "function": ONE}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}
    scripted.script(Reply([json.dumps(body).encode()], headers={"content-type": "application/json"}))
    async with opened("openai", scripted.url) as server:
        response = await server.complete("m", asking(tools=[READ]), LIMITS, lambda _: None)
    assert (response.text, [one.name for one in response.tool_calls], response.usage.output_tokens) == (
        "Yes.",
        ["read"],
        4,
    )


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://api.openai.com", "max_completion_tokens"),
        ("https://API.OpenAI.com/v1/", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://us.api.openai.com:443/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://openai.com.evil.test/v1", "max_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
        ("http://127.0.0.1:8000/api.openai.com", "max_tokens"),
    ],
)
def test_the_makers_hosts_get_the_newer_name_of_the_limit(url: str, field: str) -> None:
    from worker.llm.openai import most_tokens_field  # noqa: PLC0415 - takes 0.7 s

    assert most_tokens_field(url) == field
