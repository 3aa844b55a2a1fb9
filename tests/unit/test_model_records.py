"""What is written down of a model call, and what it is known by."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.llm.base import Message, ModelRequest, ModelResponse, ToolCall, ToolSchema, Usage
from worker.llm.records import answer_of, digest_of, first_difference, record_of, record_of_answer

TOOL = ToolSchema("look_up", "Looks up.", {"type": "object"})
ASKED = ModelRequest([Message("system", "Be brief."), Message("user", "Why?")], 10, tools=[TOOL])


def test_an_answer_comes_back_as_it_was() -> None:
    answer = ModelResponse(
        "a\x00b\ud800", Usage(1, 2, is_estimate=True), (ToolCall("c", "t", "{"),), "length", "s/m", None, 1.5
    )
    assert answer_of(record_of_answer(answer)) == answer


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, messages=[*ASKED.messages, Message("user", "")]),
        replace(ASKED, messages=[ASKED.messages[0], Message("assistant", "Why?")]),
        replace(ASKED, messages=[ASKED.messages[0], replace(ASKED.messages[1], tool_calls=(ToolCall("1", "a", ""),))]),
        replace(ASKED, tools=[]),
        replace(ASKED, tools=[replace(TOOL, parameters={"type": "object", "properties": {}})]),
        replace(ASKED, schema={"type": "object"}),
    ],
)
def test_whatever_a_model_is_asked_otherwise_is_another_question(other: ModelRequest) -> None:
    assert digest_of(other) != digest_of(ASKED)
    assert first_difference(record_of(ASKED, 1000), record_of(other, 1000))


def test_how_much_it_may_say_makes_no_other_question() -> None:
    assert digest_of(replace(ASKED, max_output_tokens=99, temperature=0.1, seed=4)) == digest_of(ASKED)


def test_a_short_prompt_is_kept_whole() -> None:
    assert [message["content"] for message in record_of(ASKED, 13)["messages"]] == ["Be brief.", "Why?"]


def test_of_a_long_prompt_the_newest_is_kept_first() -> None:
    request = replace(ASKED, messages=[Message("user", "a" * 500), Message("user", "b" * 500)])
    first, second = (message["content"] for message in record_of(request, 800)["messages"])
    assert "were not kept" in first
    assert second.count("b") == 401  # with that of "bytes"
    first, second = (
        message["content"]
        for message in record_of(replace(request, messages=[Message("user", "a"), Message("user", "b" * 500)]), 502)[
            "messages"
        ]
    )
    assert (first, second) == ("a", "b" * 500)


@given(st.lists(st.text(max_size=200), max_size=6), st.integers(0, 300))
def test_a_record_has_a_bounded_size(texts: list[str], most: int) -> None:
    record = record_of(replace(ASKED, messages=[Message("user", text) for text in texts]), most)
    kept = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in record["messages"])
    assert kept <= most + 60 * len(texts)


def test_a_difference_is_shown_where_it_begins() -> None:
    other = replace(ASKED, messages=[ASKED.messages[0], Message("user", "Why not?")])
    words = first_difference(record_of(ASKED, 1000), record_of(other, 1000))
    assert words.startswith("message 2 (user)")
    assert "'Why?'" in words
    assert "'Why not?'" in words
