"""What is wrong with a plan is found in an amount of work that has a bound, whatever stands in the plan."""

import asyncio
import difflib
from time import process_time
from typing import Any

import pytest

from app.known_tools import LARGE_CHARS, LARGE_VALUES, MOST_TOOLS
from backplane.domain.plans import MAX_NAMES, MAX_REFERENCES, parse_plan
from backplane.domain.validation_messages import HINTS, MOST_COMPARED
from backplane.errors import FAULTS_SHOWN, InvalidPlan
from tests.unit.test_known_tools import WITH_AGENT, faults, known, step

MOST_SEARCHES = 4 * HINTS
"""Of names that are like an unknown one: a plan is looked at by its fields, its order, and its tools."""


def many(count: int, what: str = "scrip") -> dict[str, str]:
    return {f"{what}{at:06}": "" for at in range(count)}


def agent(names: int) -> dict[str, Any]:
    return step("agent", goal="x", tools=[f"t{at:06}" for at in range(names)])


WORST: dict[str, list[dict[str, Any]]] = {
    "an agent with many unknown tools": [agent(40_000)],
    "many agents with unknown tools": [agent(MOST_TOOLS)] * 200,
    "many unknown arguments": [step("shell", **many(24_000))],
    "unknown arguments of many steps": [step("shell", **many(90))] * 200,
    "long unknown arguments": [step("shell", **{"m" * 19_000: ""})] * 200,
    "many unknown fields": [{"tool": "shell", **many(24_000)}],
    "unknown fields of many steps": [{"tool": "shell", **many(90)}] * 200,
    "many unknown fields of a limit": [{"tool": "shell", "limits": many(24_000)}],
    "long unknown tools": [{"tool": "t" * 64}] * 200,
    "ids that are like each other": [
        {"id": f"{at:064}", "tool": "shell", "needs": [f"{at:03}{other:061}" for other in range(190)]}
        for at in range(200)
    ],
    "long ids": [{"id": f"{at}" + "a" * 19_000, "tool": "shell", "needs": ["a" * 64]} for at in range(200)],
    "many references": [step("shell", script="".join(f"${{steps.{at:06x}.output}}" for at in range(100_000)))],
    "many beginnings of references": [step("shell", script="${steps." * 400_000)],
    "many values that do not fit": [step("shell", script="x", environment={f"A{at}": 1 for at in range(24_000)})],
    "many choices that do not fit": [step("browser", actions=[{"do": "fly"}] * 12_000)],
}


@pytest.mark.parametrize("steps", WORST.values(), ids=WORST.keys())
async def test_a_plan_full_of_faults_is_refused_by_bounded_work(
    steps: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    search = difflib.get_close_matches

    def counted(name: str, names: list[str], **how: Any) -> list[str]:
        compared.append(len(name) * sum(map(len, names)))
        return search(name, names, **how)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    tools = known(WITH_AGENT)
    began = process_time()
    found = await faults(tools, *steps)
    seconds = process_time() - began
    assert 0 < len(found) <= FAULTS_SHOWN
    assert len(compared) <= MOST_SEARCHES
    assert max(compared, default=0) <= MOST_COMPARED
    # Ten times what it takes: the bound is for what grows with the square of the length.
    assert seconds < 2


FLYING = [step("browser", actions=[{"do": "fly"}] * 90)]
ACTIONS = step("browser", actions=[{"do": "click", "selector": "a"}])


def scripts(values: int, chars: int = 0) -> list[dict[str, Any]]:
    """Steps of a plan of so many values, the last of which is so long."""
    # Beside those of its steps, four each, a plan has itself and its list.
    steps = [step("shell", script="true") for _ in range((values - 2) // 5)]
    return [*steps[:-1], step("shell", script="x" * (chars or 1))]


async def turns_while(steps: list[dict[str, Any]]) -> int:
    """How often others had their turn while this plan was looked at."""
    turns, tools = 0, known(WITH_AGENT)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await tools.known()
    task = asyncio.create_task(others())
    await asyncio.sleep(0)
    await faults(tools, *steps)
    task.cancel()
    return turns


@pytest.mark.parametrize("steps", [*WORST.values(), FLYING], ids=[*WORST, "a few choices that do not fit"])
async def test_others_are_served_while_a_hostile_plan_is_looked_at(steps: list[dict[str, Any]]) -> None:
    assert await turns_while(steps) > 0


@pytest.mark.parametrize(
    ("steps", "is_large"),
    [
        (scripts(LARGE_VALUES), False),
        (scripts(LARGE_VALUES + 5), True),
        (scripts(100, LARGE_CHARS // 2), False),
        (scripts(100, LARGE_CHARS), True),
        ([ACTIONS], False),
        ([ACTIONS] * 20, True),
    ],
    ids=["few values", "many values", "short texts", "long texts", "few checks", "many checks"],
)
async def test_a_right_plan_costs_a_thread_only_when_it_is_large(steps: list[dict[str, Any]], is_large: bool) -> None:
    assert (await turns_while(steps) > 0) == is_large


@pytest.mark.parametrize(("count", "is_right"), [(MOST_TOOLS, True), (MOST_TOOLS + 1, False)])
async def test_an_agent_may_name_200_tools(count: int, is_right: bool) -> None:
    found = await faults(known(WITH_AGENT), step("agent", goal="x", tools=["shell"] * count))
    assert found == ({} if is_right else {"0.arguments.tools": found.get("0.arguments.tools")})


@pytest.mark.parametrize(("count", "is_right"), [(MAX_REFERENCES, True), (MAX_REFERENCES + 1, False)])
def test_a_plan_has_10_000_references_at_most(count: int, is_right: bool) -> None:
    first = {"id": "a", "tool": "shell", "arguments": {"script": "true"}}
    second = {"id": "b", "tool": "agent", "arguments": {"goal": "${steps.a.output}" * count}}
    value = {"steps": [first, second]}
    if is_right:
        parse_plan(value)
    else:
        with pytest.raises(InvalidPlan, match="more than 10,000 references"):
            parse_plan(value)


@pytest.mark.parametrize(
    ("count", "message"),
    [(MAX_NAMES - 2, "there are approval, arguments"), (MAX_NAMES - 1, "has 101 names; at most 100")],
)
def test_more_than_100_names_of_a_step_are_not_looked_at_one_by_one(count: int, message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        parse_plan({"steps": [{"id": "a", "tool": "shell", **many(count)}]})
