"""A run stops before it spends what it does not have, asks, and goes on; the books are right whatever happens."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.domain.budgets import Resource
from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.runs import RunStatus
from backplane.errors import InvalidInput
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import BlockingTool, equip
from tests.platform.workers import Platform, WorkerProcess, worker
from tests.submitted import shell, write
from tests.waiting import wait_until

StartProcess = Callable[..., Awaitable[WorkerProcess]]


async def pending(platform: Platform, run_id: str) -> Decision:
    found = await platform.resources.store.decisions.of_run(run_id)
    [decision] = [one for one in found if one.status is DecisionStatus.PENDING]
    return decision


async def account(platform: Platform, run_id: str, resource: Resource) -> tuple[int, int, int]:
    """Balance, reserved, spent of the run's own account."""
    accounts = await platform.resources.store.ledger.of_owners([f"run:{run_id}"])
    [found] = [one for one in accounts if one.resource is resource]
    return found.balance, found.reserved, found.spent


async def approve(platform: Platform, run_id: str, **budget: Any) -> None:
    decision = await pending(platform, run_id)
    answer = {"budget": budget} if budget else {}
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, answer)


async def books_are_right(platform: Platform) -> None:
    audit = await platform.resources.store.ledger.audit()
    assert list(audit.differences) == []


async def test_a_run_without_steps_left_waits_and_goes_on_with_more(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    async with worker(platform.settings):
        await _waits_and_goes_on(platform)


async def _waits_and_goes_on(platform: Platform) -> None:
    run_id = await platform.submit(*(write(id, f"{id}.txt") for id in "abc"), budget={"steps": 2})
    run = await platform.until(run_id, RunStatus.WAITING)
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("budget_exhausted", "c")
    decision = await pending(platform, run_id)
    assert (decision.kind, decision.step_id) == (DecisionKind.BUDGET, "c")
    assert (decision.asked["resource"], decision.asked["needed"], decision.asked["left"]) == ("steps", 1, 0)
    assert await account(platform, run_id, Resource.STEPS) == (0, 0, 2)
    await approve(platform, run_id, steps=1)
    await platform.completed(run_id)
    assert await account(platform, run_id, Resource.STEPS) == (0, 0, 3)
    assert [status for _, status in await platform.step_statuses(run_id)] == ["started", "completed"] * 3
    await platform.ends_whole(run_id)
    await books_are_right(platform)


async def test_approving_without_more_says_that_an_amount_is_missing_and_decides_nothing(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "true"), budget={"steps": 0})
    await platform.until(run_id, RunStatus.WAITING)
    with pytest.raises(InvalidInput, match=r"say how much is to be added, as .*usd") as error:
        await approve(platform, run_id)
    assert error.value.field == "budget"
    assert (await pending(platform, run_id)).kind is DecisionKind.BUDGET
    await approve(platform, run_id, steps=1)
    await platform.completed(run_id)


async def test_approving_without_more_is_enough_where_somebody_has_filled_the_account(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "true"), budget={"steps": 0})
    await platform.until(run_id, RunStatus.WAITING)
    await platform.resources.store.ledger.deposit(f"run:{run_id}", Resource.STEPS, 1, "an administrator")
    await approve(platform, run_id)
    await platform.completed(run_id)


async def test_a_person_who_gives_no_more_ends_the_run(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(write("a", "a.txt"), shell("b", "true"), budget={"steps": 1})
    await platform.until(run_id, RunStatus.WAITING)
    decision = await pending(platform, run_id)
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.REJECTED, {"reason": "enough"})
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("budget_exhausted", "b")
    await platform.ends_whole(run_id)
    await books_are_right(platform)


async def test_a_step_may_not_take_longer_than_the_seconds_that_are_left(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "sleep 600"), budget={"seconds": 1})
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "step_timeout"
    balance, reserved, spent = await account(platform, run_id, Resource.SECONDS)
    assert (balance, reserved, spent) == (0, 0, 1)
    await books_are_right(platform)


async def test_a_step_waits_for_what_another_running_one_gives_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        {"id": "a", "tool": "hold", "needs": []}, {"id": "b", "tool": "hold", "needs": []}, budget={"seconds": 100}
    )
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 1)
        tool.go.set()
        run = await platform.completed(run_id)
    assert tool.most == 1
    assert (run.generation, await platform.resources.store.decisions.of_run(run_id)) == (1, [])
    await books_are_right(platform)


@pytest.mark.slow
async def test_what_a_lost_worker_had_reserved_is_given_back(
    isolated: None, platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform)
    until_go = "echo begun; until [ -e go ]; do sleep 0.02; done"
    run_id = await platform.submit(
        shell("a", until_go, needs=[]),
        shell("b", until_go, needs=[]),
        shell("c", "true"),
        budget={"steps": 5, "seconds": 10_000},
    )
    await platform.until_begun(run_id, times=2)
    assert (await account(platform, run_id, Resource.STEPS))[:2] == (3, 2)
    await first.kill()
    await platform.let_go(run_id)
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert await account(platform, run_id, Resource.STEPS) == (2, 0, 3)
    assert (await account(platform, run_id, Resource.SECONDS))[1] == 0
    await books_are_right(platform)


@pytest.mark.slow
async def test_a_worker_that_is_lost_while_a_run_waits_for_money_changes_nothing(
    platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform)
    run_id = await platform.submit(write("a", "a.txt"), write("b", "b.txt"), budget={"steps": 1})
    await platform.until(run_id, RunStatus.WAITING)
    await first.kill()
    await approve(platform, run_id, steps=1)
    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert run.attempt == 1
    assert [step for step, status in await platform.step_statuses(run_id) if status == "started"] == ["a", "b"]
    assert await account(platform, run_id, Resource.STEPS) == (0, 0, 2)
    await platform.ends_whole(run_id)
    await books_are_right(platform)


async def test_a_cancelled_step_is_settled(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        *({"id": id, "tool": "hold", "needs": [], "timeout_seconds": 9} for id in "ab"),
        budget={"steps": 9, "seconds": 99},
    )
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 2)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    assert await account(platform, run_id, Resource.STEPS) == (7, 0, 2)
    assert (await account(platform, run_id, Resource.SECONDS))[1] == 0
    await books_are_right(platform)
