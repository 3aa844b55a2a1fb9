"""What every adapter must do, whatever its server does: the contract of `ModelServer`."""

import asyncio
import json
import traceback
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.models.conftest import KEY, LIMITS, asking, opened
from tests.scripted_models import TYPES, Reply, Said, ScriptedModels, pieces_of, refusal, said
from tests.waiting import wait_until
from worker.llm.base import (
    Message,
    ModelContextTooLong,
    ModelOutputInvalid,
    ModelOutputTooLong,
    ModelRateLimited,
    ModelRefused,
    ModelServer,
    ModelTimeout,
    ModelUnavailable,
    ToolCall,
    ToolSchema,
    Usage,
)
from worker.llm.catalogue import Kind

LOOK_UP = ToolSchema("look_up", "Looks a word up.", {"type": "object", "properties": {"word": {"type": "string"}}})
COLOUR: dict[str, Any] = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


def ignore(_: str) -> None:
    pass


async def test_the_text_is_handed_on_as_it_comes(adapter: ModelServer, scripted: ScriptedModels, kind: Kind) -> None:
    scripted.script(said(kind, "Grü", "ße", "!"))
    received: list[str] = []
    response = await adapter.complete("m", asking(), LIMITS, received.append)
    assert (response.text, received, response.finish) == ("Grüße!", ["Grü", "ße", "!"], "stop")


async def test_the_servers_own_count_of_tokens_is_reported(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(said(kind, "a"))
    assert (await adapter.complete("m", asking(), LIMITS, ignore)).usage == Usage(11, 7)


async def test_what_a_server_does_not_count_is_estimated(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(said(kind, "a" * 300, counted=False))
    usage = (await adapter.complete("m", asking("b" * 3000), LIMITS, ignore)).usage
    assert usage.is_estimate
    assert usage.output_tokens == 100
    assert 1000 < usage.input_tokens < 1100


async def test_an_answer_that_reached_its_limit_says_so(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(said(kind, "and then", finish="length"))
    assert (await adapter.complete("m", asking(), LIMITS, ignore)).finish == "length"


async def test_calls_of_tools_come_with_their_arguments_as_json(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(said(kind, "Let me see.", calls=[("look_up", {"word": "ox"}), ("look_up", {})]))
    response = await adapter.complete("m", asking(tools=[LOOK_UP]), LIMITS, ignore)
    assert response.finish == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in response.tool_calls] == [
        ("look_up", {"word": "ox"}),
        ("look_up", {}),
    ]
    assert len({call.id for call in response.tool_calls}) == 2


async def test_results_of_tools_go_back_to_the_call_they_belong_to(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(said(kind, "An ox."))
    talk = [
        Message("system", "Be brief."),
        Message("user", "What is an ox?"),
        Message("assistant", "", (ToolCall("c1", "look_up", '{"word": "ox"}'), ToolCall("c2", "look_up", "not json"))),
        Message("tool", "a beast", tool_call_id="c1"),
        Message("tool", "no word", tool_call_id="c2"),
    ]
    await adapter.complete("m", replace(asking(tools=[LOOK_UP]), messages=talk), LIMITS, ignore)
    body = json.dumps(scripted.asked[0].body)
    assert body.index("a beast") < body.index("no word")
    assert "not json" in body
    results = {"ollama": '"tool_name": "look_up"', "openai": '"tool_call_id": "c1"', "anthropic": '"tool_use_id": "c1"'}
    assert results[kind] in body


async def test_limits_and_the_schema_are_sent_to_the_server(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    if kind == "anthropic":
        scripted.script(said(kind, calls=[("answer", {"colour": "red"})]))
    else:
        scripted.script(said(kind, '{"colour": "red"}'))
    request = asking(most=33, schema=COLOUR, temperature=0.5, seed=4)
    response = await adapter.complete("m", request, LIMITS, ignore)
    assert json.loads(response.text) == {"colour": "red"}
    assert (response.finish, response.tool_calls) == ("stop", ())
    body = scripted.asked[0].body
    expected: dict[Kind, dict[str, Any]] = {
        "ollama": {
            "format": COLOUR,
            "options": {"num_predict": 33, "temperature": 0.5, "seed": 4},
            "keep_alive": "5m",
            "stream": True,
        },
        "openai": {
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": COLOUR}},
            "max_tokens": 33,
            "temperature": 0.5,
            "seed": 4,
            "stream_options": {"include_usage": True},
        },
        "anthropic": {
            "tools": [{"name": "answer", "description": "Gives the answer.", "input_schema": COLOUR}],
            "tool_choice": {"type": "tool", "name": "answer"},
            "max_tokens": 33,
            "system": "Be brief.",
        },
    }
    assert {name: body[name] for name in expected[kind]} == expected[kind]


async def test_cancelling_a_call_closes_its_connection(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(
        Reply(pieces_of(kind, Said(["word "] * 3))[:2], headers={"content-type": TYPES[kind]}, ending="hang")
    )
    call = asyncio.create_task(adapter.complete("m", asking(), LIMITS, ignore))
    await wait_until(lambda: scripted.running_calls == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await wait_until(lambda: scripted.left == 1)


async def test_a_server_that_never_answers_is_given_up(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(Reply(status=0, ending="hang"))
    with pytest.raises(ModelTimeout, match="MODEL_SILENCE_SECONDS") as raised:
        await adapter.complete("m", asking(), replace(LIMITS, silence_seconds=0.1), ignore)
    assert raised.value.usage is not None  # it may have counted the prompt


async def test_a_server_that_falls_silent_is_given_up(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    pieces = pieces_of(kind, Said(["word "] * 5))[:4]
    scripted.script(Reply(pieces, headers={"content-type": TYPES[kind]}, ending="hang"))
    received: list[str] = []
    with pytest.raises(ModelTimeout, match=r"sent nothing for 0\.2 s"):
        await adapter.complete("m", asking(), replace(LIMITS, silence_seconds=0.2), received.append)
    assert received
    await wait_until(lambda: scripted.left == 1)


async def test_a_call_has_a_limit_also_when_the_server_goes_on_talking(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(Reply([b"\n"], headers={"content-type": TYPES[kind]}, ending="endless"))
    with pytest.raises(ModelTimeout, match="MODEL_TIMEOUT_SECONDS"):
        await adapter.complete("m", asking(), replace(LIMITS, timeout_seconds=0.2), ignore)
    await wait_until(lambda: scripted.left == 1)


@pytest.mark.parametrize("ending", ["cut", "whole"])
async def test_an_answer_that_breaks_off_is_no_answer(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind, ending: Any
) -> None:
    pieces = pieces_of(kind, Said(["word "] * 5))[:4]
    scripted.script(Reply(pieces, headers={"content-type": TYPES[kind]}, ending=ending))
    with pytest.raises(ModelUnavailable, match="broke off") as raised:
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert raised.value.usage is not None
    assert raised.value.usage.output_tokens > 0


@pytest.mark.parametrize(
    "garbage", [b'{"choices": [{', b"\xff\xfe\x00", b'"a string"', b"[1, 2]", b'{"choices": 3, "message": 4}']
)
async def test_garbage_is_no_answer(adapter: ModelServer, scripted: ScriptedModels, kind: Kind, garbage: bytes) -> None:
    line = garbage + b"\n" if kind == "ollama" else b"event: content_block_delta\ndata: " + garbage + b"\n\n"
    scripted.script(Reply([line], headers={"content-type": TYPES[kind]}))
    with pytest.raises((ModelOutputInvalid, ModelUnavailable)):
        await adapter.complete("m", asking(), LIMITS, ignore)


async def test_endless_text_is_cut_off(adapter: ModelServer, scripted: ScriptedModels, kind: Kind) -> None:
    pieces = pieces_of(kind, Said(["w" * 1000]))
    at = next(at for at, piece in enumerate(pieces) if b"wwww" in piece)
    scripted.script(Reply(pieces[: at + 1], headers={"content-type": TYPES[kind]}, ending="endless"))
    with pytest.raises(ModelOutputTooLong, match="cut off") as raised:
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert raised.value.usage is not None
    assert raised.value.usage.output_tokens > LIMITS.max_output_bytes // 4
    await wait_until(lambda: scripted.left == 1)


@pytest.mark.parametrize(("status", "end"), [(200, b""), (500, b"\n\n")])
async def test_a_piece_without_an_end_is_cut_off(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind, status: int, end: bytes
) -> None:
    # A refusal is one piece, whatever is in it.
    piece = b"data: " + b"w" * 65_536 + end
    scripted.script(Reply([piece], status, {"content-type": TYPES[kind]}, ending="endless"))
    with pytest.raises(ModelOutputTooLong):
        await adapter.complete("m", asking(), LIMITS, ignore)
    await wait_until(lambda: scripted.left == 1)


async def test_a_compressed_answer_is_not_unpacked(adapter: ModelServer, scripted: ScriptedModels, kind: Kind) -> None:
    scripted.script(Reply([b"\x1f\x8b"], headers={"content-type": TYPES[kind], "content-encoding": "gzip"}))
    with pytest.raises(ModelOutputInvalid, match="compressed"):
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert scripted.asked[0].headers["accept-encoding"] == "identity"


async def test_a_redirect_is_not_followed(adapter: ModelServer, scripted: ScriptedModels) -> None:
    scripted.script(Reply(status=307, headers={"location": f"{scripted.url}/elsewhere"}))
    with pytest.raises(ModelRefused, match="307"):
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert len(scripted.asked) == 1


async def test_a_busy_server_says_when_to_come_back(adapter: ModelServer, scripted: ScriptedModels, kind: Kind) -> None:
    scripted.script(refusal(kind, 429, "slow down", retry_after="7"), refusal(kind, 503, "loading"))
    with pytest.raises(ModelRateLimited, match="slow down") as limited:
        await adapter.complete("m", asking(), LIMITS, ignore)
    with pytest.raises(ModelUnavailable, match="loading") as away:
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert (limited.value.retry_after, away.value.retry_after) == (7.0, None)
    assert len(scripted.asked) == 2  # the libraries' own retries are off


async def test_what_a_server_refuses_is_reported_in_its_words_and_without_the_key(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    scripted.script(refusal(kind, 401, f"the key {KEY} is not known \x1b[31m" + "x" * 5000))
    with pytest.raises(ModelRefused, match=r"the key \[key\] is not known") as raised:
        await adapter.complete("m", asking(), LIMITS, ignore)
    assert KEY in str(scripted.asked[0].headers)
    shown = "".join(traceback.format_exception(raised.value))
    assert KEY not in shown
    assert "\x1b" not in raised.value.message
    assert len(raised.value.message) < 600


async def test_a_prompt_that_is_too_long_is_told_apart(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    words = (
        "prompt is too long: 9 tokens > 8 maximum"
        if kind == "anthropic"
        else "this model's maximum context length is 8"
    )
    scripted.script(refusal(kind, 400, words))
    with pytest.raises(ModelContextTooLong):
        await adapter.complete("m", asking(), LIMITS, ignore)


async def test_a_server_that_is_not_there_is_unavailable(kind: Kind) -> None:
    async with opened(kind, "http://127.0.0.1:9") as server:
        with pytest.raises(ModelUnavailable, match="cannot be reached"):
            await server.complete("m", asking(), LIMITS, ignore)


async def test_an_error_in_the_middle_of_an_answer_is_reported(
    adapter: ModelServer, scripted: ScriptedModels, kind: Kind
) -> None:
    event = {
        "ollama": b'{"error": "the model runner has crashed"}\n',
        "openai": b'data: {"error": {"message": "the model runner has crashed"}}\n\n',
        "anthropic": b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", '
        b'"message": "the model runner has crashed"}}\n\n',
    }
    pieces = [*pieces_of(kind, Said(["word "] * 5))[:4], event[kind]]
    scripted.script(Reply(pieces, headers={"content-type": TYPES[kind]}))
    with pytest.raises(ModelUnavailable, match="runner has crashed"):
        await adapter.complete("m", asking(), LIMITS, ignore)


async def test_a_server_gets_nothing_that_only_the_environment_names(
    scripted: ScriptedModels, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "AUTH_TOKEN", "CUSTOM_HEADERS"):
        for maker in ("OPENAI", "ANTHROPIC"):
            monkeypatch.setenv(f"{maker}_{name}", "x-given: of-the-environment")
    for maker in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{maker}_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    scripted.script(said(kind, "Yes."))
    async with opened(kind, scripted.url, key=None) as server:
        await server.complete("m", asking(), LIMITS, ignore)
    assert "of-the-environment" not in str(scripted.asked[0].headers)
