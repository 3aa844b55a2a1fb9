"""What an MCP server's tool answers, as the text of a step."""

import base64
from typing import Any

import pytest

from backplane.errors import Unavailable
from worker.mcp.connection import result_from


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def resource(**fields: Any) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": "file:///notes", **fields}}


BYTES = base64.b64encode(b"\x89PNG\r\n").decode()
CONTENT: dict[str, tuple[list[Any], str]] = {
    "nothing": ([], ""),
    "texts": ([text("one"), text("two")], "one\ntwo"),
    "the text of a resource": ([resource(text="notes\n")], "[the resource file:///notes]\nnotes\n"),
    "a text as bytes": (
        [resource(blob=base64.b64encode("Grüße".encode()).decode(), mimeType="text/plain; charset=utf-8")],
        "[the resource file:///notes]\nGrüße",
    ),
    "bytes that only say they are a text": (
        [resource(blob=base64.b64encode(b"\xff\xfe").decode(), mimeType="application/json")],
        "[the resource file:///notes is left out: application/json, 2 bytes]",
    ),
    "bytes": (
        [resource(blob=BYTES, mimeType="image/png")],
        "[the resource file:///notes is left out: image/png, 6 bytes]",
    ),
    "an image": (
        [{"type": "image", "data": BYTES, "mimeType": "image/png"}],
        "[an image is left out: image/png, 6 bytes]",
    ),
    "sound": ([{"type": "audio", "data": BYTES}], "[sound is left out: of no type, 6 bytes]"),
    "a link": (
        [{"type": "resource_link", "uri": "https://a/b", "name": "b", "description": "The\nsecond."}],
        "[a link to https://a/b: b, The second.]",
    ),
    "a kind of later years": ([{"type": "hologram\x1b[31m"}], "[a part of the kind hologram[31m is left out]"),
    "no part": ([{}, 7], "[a part of the kind unknown is left out]\n[a part of the kind unknown is left out]"),
    "a text that is none": ([{"type": "text", "text": 7}], "[a part of the kind text is left out]"),
    "a resource that is none": ([{"type": "resource", "resource": 7}], "[a part of the kind resource is left out]"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), CONTENT.values(), ids=CONTENT)
def test_what_a_tool_answers_is_text_or_named_as_left_out(content: list[Any], said: str) -> None:
    assert result_from("s", {"content": content}).text == said


STRUCTURED: dict[str, tuple[dict[str, Any], str]] = {
    "alone": ({"structuredContent": {"a": 1}}, '{"a": 1}'),
    "with no content": ({"content": [], "structuredContent": {"a": "ü"}}, '{"a": "ü"}'),
    "beside another text": ({"content": [text("done")], "structuredContent": {"a": 1}}, 'done\n{"a": 1}'),
    "said by the text": ({"content": [text('{ "a": 1 }')], "structuredContent": {"a": 1}}, '{ "a": 1 }'),
    "a string that a function returned": (
        {"content": [text("hello")], "structuredContent": {"result": "hello"}},
        "hello",
    ),
    "a number that a function returned": ({"content": [text("5")], "structuredContent": {"result": 5}}, "5"),
    "a list that a function returned": (
        {"content": [text("a"), text("b")], "structuredContent": {"result": ["a", "b"]}},
        "a\nb",
    ),
    "an empty list": ({"content": [], "structuredContent": {"result": []}}, ""),
    "a list of other things": (
        {"content": [text("a")], "structuredContent": {"result": ["a", "b"]}},
        'a\n{"result": ["a", "b"]}',
    ),
    "null": ({"content": [text("a")], "structuredContent": None}, "a"),
    "beside a text that looks like JSON": (
        {"content": [text("[" * 100_000)], "structuredContent": {"a": 1}},
        "[" * 100_000 + '\n{"a": 1}',
    ),
    "as of 2024": ({"toolResult": {"a": 1}}, '{"a": 1}'),
}


@pytest.mark.parametrize(("answer", "said"), STRUCTURED.values(), ids=STRUCTURED)
def test_structured_content_is_kept_where_no_text_says_the_same(answer: dict[str, Any], said: str) -> None:
    assert result_from("s", answer).text == said


@pytest.mark.parametrize(("flag", "is_error"), [({"isError": True}, True), ({"isError": False}, False), ({}, False)])
def test_a_tool_says_that_it_failed_by_a_flag(flag: dict[str, bool], is_error: bool) -> None:
    result = result_from("s", {"content": [resource(text="why")], **flag})
    assert (result.is_error, "why" in result.text) == (is_error, True)


@pytest.mark.parametrize("answer", [None, 7, {}, {"content": "text"}, {"content": None}, {"content": 7}])
def test_what_is_no_result_is_named_as_that(answer: Any) -> None:
    with pytest.raises(Unavailable, match="the MCP server s answers in a form that is none"):
        result_from("s", answer)
