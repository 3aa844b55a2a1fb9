"""What models do wrong when they call tools: each fault is explained to the model, in words by which it can mend it."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.recorded_models import Answer, RecordedModels, calls, says
from tests.unit.test_agent_loop import Bench, Look, bench, look
from worker.llm.base import ModelRequest, ToolCall
from worker.tools.registry import ToolRegistry

__all__ = ["bench"]

BAD = {
    "an unknown tool": (("magic", "{}"), "You have no tool 'magic'; you have: change, look."),
    "a tool it was not given": (("send", '{"path": "a"}'), "You have no tool 'send'"),
    "a wrong type": (("look", '{"path": 7}'), "arguments.path: Input should be a valid string"),
    "a missing argument": (("look", ""), "arguments.path: Field required"),
    "an argument too many": (("look", '{"path": "a", "b": 1}'), "does not take this; it takes path"),
    "broken JSON": (("look", '{"path": "a"'), "cannot be read: it is no valid JSON"),
    "no object": (("look", "[1]"), "no object"),
    "depth": (("look", "[" * 100_000), "nested more than 32 levels"),
    "a lone surrogate": (("look", '{"path": "\\ud800"}'), "contains U+D800"),
    "a name that no server takes": (("lo ok\ud800\n<<", "{}"), "You have no tool 'lo_ok____'"),
    "null": (("look", "null"), "arguments.path: Field required"),
    "an empty object": (("look", " {} "), "arguments.path: Field required"),
    "an argument that is null": (("look", '{"path": null}'), "arguments.path: Input should be a valid string"),
    "an object in two strings": (("look", json.dumps(json.dumps(json.dumps({"path": "a"})))), "no object"),
    "a string that is no JSON": (("look", '"a"'), "cannot be read: it is no valid JSON"),
    "words before a fence": (("look", 'Here:\n```json\n{"path": "a"}\n```'), "cannot be read: it is no valid JSON"),
    "words after the object": (("look", '{"path": "a"} I hope that helps'), "more text after the JSON object"),
    "two objects": (("look", '{"path": "a"}{"path": "b"}'), "more text after the JSON object"),
    "Python's writing": (("look", "{'path': 'a'}"), "cannot be read: it is no valid JSON"),
    "no number": (("look", '{"path": NaN}'), "NaN is no number in JSON"),
    "a number": (("look", "7"), "no object"),
    "a boolean": (("look", "true"), "no object"),
    "a fence in a fence": (("look", "```\n```json\n{}\n```\n```"), "cannot be read: it is no valid JSON"),
    "no name": (("", '{"path": "a"}'), "You have no tool 'unknown'"),
    "a name in other letters": (("Look", '{"path": "a"}'), "You have no tool 'Look'; you have: change, look."),
    "a megabyte": (("look", '"' + "x" * 2_000_000 + '"'), "2,000,002 characters long"),
}


@pytest.mark.parametrize(("bad_call", "words"), BAD.values(), ids=BAD.keys())
async def test_a_bad_call_is_explained_to_the_model_and_not_carried_out(
    bench: Bench, bad_call: tuple[str, str], words: str
) -> None:
    result = await bench.run([calls(bad_call), says("Done.")])
    assert result.output == "Done."
    assert bench.journal.done == []
    asked, answer = bench.messages(2)[-2:]
    assert words in answer.content
    assert len(answer.content) < 2_500
    # What could not be read is not sent again: a server may refuse the whole conversation for it.
    assert asked.tool_calls[0].arguments == "{}"
    json.dumps([answer.content, asked.tool_calls[0].name], ensure_ascii=False).encode()


AS_MODELS_WRITE_IT = {
    "white space": '\n {"path": "a"} \n',
    "a JSON string": json.dumps('{"path": "a"}'),
    "a fence": '```json\n{"path": "a"}\n```',
    "a fence without a language": '```\n{\n"path": "a"\n}\n```\n',
    "a fence in a JSON string": json.dumps('```json\n{"path": "a"}\n```'),
}


@pytest.mark.parametrize("arguments", AS_MODELS_WRITE_IT.values(), ids=AS_MODELS_WRITE_IT)
async def test_arguments_are_read_in_the_forms_that_models_write(bench: Bench, arguments: str) -> None:
    await bench.run([calls(("look", arguments)), says("Done.")])
    assert [step.arguments for step in bench.journal.done] == [{"path": "a"}]
    # The model is shown what was understood.
    assert bench.messages(2)[-2].tool_calls[0].arguments == '{"path": "a"}'


class Dotted(Look):
    name = "docs__files.look"


class Dashed(Look):
    name = "docs__files_look"


@pytest.mark.parametrize("called", ["docs__files_look_", "docs__files.look"])
async def test_a_name_that_models_refuse_has_another_for_them(bench: Bench, called: str) -> None:
    tools = ToolRegistry((Dotted(), Dashed(), Look()))
    bench.context = replace(bench.context, tools=tools)

    def answer(request: ModelRequest) -> Answer:
        if len(request.messages) > 2:
            return says("Done.")
        offered = [schema.name for schema in request.tools]
        assert offered[:1] == ["docs__files_look"]
        assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name) for name in offered)
        name = next((name for name in offered if name.startswith(called)), called)
        return calls((name, '{"path": "a"}'))

    await bench.run(RecordedModels(answer))
    assert [step.tool for step in bench.journal.done] == ["docs__files.look"]
    assert bench.messages(2)[-2].tool_calls[0].name.startswith("docs__files_look_")


@pytest.mark.parametrize("argument", ["goal", "system"])
async def test_only_secrets_that_the_step_itself_names_may_be_used(bench: Bench, argument: str) -> None:
    def use(name: str) -> Answer:
        return calls(look(f"with ${{secrets.{name}}}"))

    wanted: dict[str, Any] = {argument: "Look with ${secrets.MINE}."}
    await bench.run([use("MINE"), use("OTHER"), says("Done.")], inputs={"page": "${secrets.OTHER}"}, **wanted)
    assert [step.arguments["path"] for step in bench.journal.done] == ["with ${secrets.MINE}"]
    assert (
        "may not use the secret OTHER: your goal does not name it. You may use: MINE." in bench.messages(3)[-1].content
    )


async def test_three_bad_turns_in_a_row_end_the_step(bench: Bench) -> None:
    result = await bench.run([calls(("magic", "{}")), says(""), calls(("look", "7")), says("Done.")])
    assert result.error is not None
    assert result.error.code == "agent_bad_calls"
    assert "no object" in result.error.message
    assert len(bench.models.asked) == 3


async def test_bad_turns_that_are_not_in_a_row_do_not(bench: Bench) -> None:
    bad = calls(("magic", "{}"))
    result = await bench.run([bad, bad, calls(look()), bad, bad, calls(look(), ("magic", "{}")), says("Done.")])
    assert result.output == "Done."


async def test_calls_over_the_most_of_a_turn_are_left_out_and_that_is_said(bench: Bench) -> None:
    await bench.run([calls(*(look(str(number)) for number in range(50))), says("Done.")])
    assert len(bench.journal.done) == 16
    assert "34 more calls were left out" in bench.messages(2)[-1].content


async def test_calls_with_the_same_id_are_told_apart(bench: Bench) -> None:
    double = replace(calls(look("a"), look("b")), tool_calls=(ToolCall("x", *look("a")), ToolCall("x", *look("b"))))
    await bench.run([double, says("Done.")])
    asked, first, second = bench.messages(2)[-3:]
    assert [call.id for call in asked.tool_calls] == [first.tool_call_id, second.tool_call_id]
    assert first.tool_call_id != second.tool_call_id


async def test_an_answer_that_was_cut_off_is_said_to_be(bench: Bench) -> None:
    cut = says("It is")
    assert not isinstance(cut, Exception)
    result = await bench.run([replace(cut, finish="length")])
    assert result.output == "It is"
    assert "cut off after 10 tokens" in bench.notices[0]
