"""An agent's worker is killed at every moment that matters: the next one repeats no step and no call that was answered,
and every token and dollar is accounted for."""

from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.runs import RunStatus
from tests.integration.agent_crashes.conftest import StartDying
from tests.integration.agent_crashes.crashes import (
    BUDGET,
    LAST,
    Marking,
    answer,
    answered,
    mark,
    marks,
    nothing_is_lost_or_done_twice,
    over,
)
from tests.platform.workers import LONG_SECONDS, UNTIL_GO, Platform, WorkerProcess, worker
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

StartProcess = Callable[..., Awaitable[WorkerProcess]]


async def killed(platform: Platform, run_id: str, process: WorkerProcess, model: Marking) -> dict[str, int]:
    """Kill it, if it has not done so itself; what was recorded and asked then."""
    await process.kill()
    return {"answered_before": await answered(platform, run_id), "asked_before": len(model.asked)}


async def dies(platform: Platform, process: WorkerProcess, run_id: str) -> bool:
    """Whether it dies before the run is over; a person answers what the run asks meanwhile."""

    async def either() -> bool:
        run = await platform.run(run_id)
        if process.is_running and run.status is RunStatus.WAITING:
            await answer(platform, run)
        return not process.is_running or run.status in (RunStatus.COMPLETED, RunStatus.FAILED)

    await wait_until(either, LONG_SECONDS)
    return not process.is_running


async def goes_on(platform: Platform, run_id: str, model: Marking, at_crash: dict[str, int]) -> None:
    async with worker(platform.settings):
        run = await over(platform, run_id)
    await nothing_is_lost_or_done_twice(platform, run, model, **at_crash)


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(1, id="the planner's"), pytest.param(3, id="an agent's")])
async def test_in_the_middle_of_a_model_call(
    platform: Platform, start_process: StartProcess, model: Marking, number: int
) -> None:
    model.blocked_calls = {number}
    process = await start_process(platform)
    run_id = await platform.submit(prompt="Mark.", budget=BUDGET)
    await wait_until(lambda: len(model.asked) == number, LONG_SECONDS)
    await goes_on(platform, run_id, model, await killed(platform, run_id, process, model))


@pytest.mark.slow
async def test_in_the_middle_of_an_agents_tool_call(
    platform: Platform, start_process: StartProcess, model: Marking
) -> None:
    model.turns = ((mark(1), mark(2, f"; {UNTIL_GO}")), (mark(3),))
    process = await start_process(platform)
    run_id = await platform.submit(prompt="Mark.", budget=BUDGET)
    await platform.until_begun(run_id)
    at_crash = await killed(platform, run_id, process, model)
    await platform.let_go(run_id)
    await goes_on(platform, run_id, model, at_crash)


@pytest.mark.slow
async def test_between_a_models_answer_and_its_tool_calls(
    platform: Platform, start_dying: StartDying, model: Marking
) -> None:
    process = await start_dying("after end_model_call 2")
    run_id = await platform.submit(prompt="Mark.", budget=BUDGET)
    assert await dies(platform, process, run_id)
    await goes_on(platform, run_id, model, await killed(platform, run_id, process, model))


@pytest.mark.slow
async def test_while_a_person_is_asked(platform: Platform, start_process: StartProcess, model: Marking) -> None:
    model.last = {**LAST, "approval": True}
    process = await start_process(platform)
    run_id = await platform.submit(prompt="Mark.", budget=BUDGET)
    await platform.until(run_id, RunStatus.WAITING)
    at_crash = await killed(platform, run_id, process, model)
    [decision] = await platform.resources.store.decisions.of_run(run_id)
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, {})
    await goes_on(platform, run_id, model, at_crash)


@pytest.mark.slow
async def test_between_a_persons_answer_and_what_was_allowed(
    platform: Platform, start_process: StartProcess, start_dying: StartDying, model: Marking
) -> None:
    model.last = {**LAST, "approval": True}
    process = await start_process(platform)
    run_id = await platform.submit(prompt="Mark.", budget=BUDGET)
    await platform.until(run_id, RunStatus.WAITING)
    await process.kill()
    dying = await start_dying("after begin_step 1")
    [decision] = await platform.resources.store.decisions.of_run(run_id)
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, {})
    assert await dies(platform, dying, run_id)
    await goes_on(platform, run_id, model, await killed(platform, run_id, dying, model))
    # What was allowed once is not asked again.
    assert len(await platform.resources.store.decisions.of_run(run_id)) == 1


@pytest.mark.slow
async def test_while_there_is_no_budget_left(platform: Platform, start_process: StartProcess, model: Marking) -> None:
    # The agent's step, and two below it.
    process = await start_process(platform)
    run_id = await platform.submit(prompt="Mark.", budget={**BUDGET, "steps": 3})
    await platform.until(run_id, RunStatus.WAITING)
    at_crash = await killed(platform, run_id, process, model)
    assert await marks(platform, run_id) == ["1", "2"]
    [decision] = await platform.resources.store.decisions.of_run(run_id)
    assert (decision.kind, decision.asked["left"]) == (DecisionKind.BUDGET, 0)
    # One more below the agent's, which itself was counted once, and the last.
    more = {"budget": {"steps": 2}}
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, more)
    await goes_on(platform, run_id, model, at_crash)


PARTS = 6
"""In which all commits are looked at, so that none takes too long."""
WITH_PEOPLE = {**BUDGET, "steps": 2}
CASES = {
    "after": ("sqlite", "after", False, BUDGET),
    "before": ("postgres", "before", False, BUDGET),
    "before, with people": ("sqlite", "before", True, WITH_PEOPLE),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "side", "asks", "budget"), CASES.values(), ids=CASES.keys(), indirect=["platform"]
)
@pytest.mark.parametrize("part", range(PARTS))
async def test_at_every_single_commit(
    platform: Platform,
    start_dying: StartDying,
    model: Marking,
    part: int,
    side: str,
    asks: bool,
    budget: dict[str, int],
) -> None:
    model.last = {**LAST, "approval": asks}
    for number in count(1 + part, PARTS):
        model.asked.clear()
        process = await start_dying(f"{side} any {number}")
        run_id = await platform.submit(prompt="Mark.", budget=budget)
        if not await dies(platform, process, run_id):
            break
        await goes_on(platform, run_id, model, await killed(platform, run_id, process, model))
    assert number > 15
