"""A step that asks, and goes on with what is said."""

from dataclasses import replace

import pytest

from backplane.domain.decisions import DecisionKind
from backplane.errors import InvalidPlan
from tests.tool_bench import Bench
from worker.tools.base import NeedsPerson


async def test_it_asks_before_anything_else(bench: Bench) -> None:
    with pytest.raises(NeedsPerson) as raised:
        await bench.step("ask_person", question="Which?", choices=["this", "that"])
    assert (raised.value.kind, raised.value.asked) == (
        DecisionKind.QUESTION,
        {"question": "Which?", "choices": ["this", "that"]},
    )
    assert bench.said == b""
    assert bench.changing == []


async def test_the_answer_is_its_output(bench: Bench) -> None:
    bench.context = replace(bench.context, answer={"text": "neither, thänks"})
    assert (await bench.step("ask_person", question="Which?")).exit_code == 0
    assert bench.said.decode() == "neither, thänks\n"


@pytest.mark.parametrize(
    "arguments", [{}, {"question": ""}, {"question": "x" * 4001}, {"question": "x", "choices": [""]}]
)
async def test_a_question_that_is_none_is_refused_with_the_plan(bench: Bench, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan):
        await bench.step("ask_person", **arguments)
