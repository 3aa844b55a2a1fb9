"""Steps that do not need each other run at once; what befalls one of them does not befall the others."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.domain.events import EventType
from backplane.domain.plans import Plan
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus, pending_steps
from backplane.store.run_transaction import RunTransaction
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import BlockingTool, Scripted, equip
from tests.platform.workers import UNTIL_GO, Platform, WorkerProcess, worker
from tests.submitted import shell, write
from tests.waiting import wait_until
from worker.tools.base import ToolContext, ToolResult

StartProcess = Callable[..., Awaitable[WorkerProcess]]


def hold(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "tool": "hold", **more}


async def statuses(platform: Platform, run_id: str) -> dict[str, StepStatus]:
    return {record.step_id: record.status for record in await platform.journal(run_id)}


async def test_steps_that_need_nothing_run_at_once_and_never_more_than_may(
    start_platform: StartPlatform, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform(step_concurrency=3, database_url=database_url)
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(*(hold(f"s{number}", needs=[]) for number in range(5)))
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 3)
        assert [status for _, status in await platform.step_statuses(run_id)] == ["started"] * 3
        tool.go.set()
        await platform.completed(run_id)
    assert tool.most == 3
    assert [step for step, status in await platform.step_statuses(run_id) if status == "started"] == [
        f"s{number}" for number in range(5)
    ]
    await platform.ends_whole(run_id)


async def test_steps_that_do_not_say_what_they_need_run_one_after_another(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    tool.go.set()
    run_id = await platform.submit(hold("a"), hold("b"), hold("c"))
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert tool.most == 1
    assert [step for step, _ in await platform.step_statuses(run_id)] == ["a", "a", "b", "b", "c", "c"]


async def test_a_step_begins_when_what_it_needs_is_done_whatever_else_still_runs(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        hold("slow", needs=[]), shell("quick", "true", needs=[]), shell("after", "true", needs=["quick"])
    )
    async with worker(platform.settings):
        await wait_until(lambda: _is_published(platform, run_id, ("after", "completed")))
        assert (await statuses(platform, run_id))["slow"] is StepStatus.STARTED
        tool.go.set()
        await platform.completed(run_id)


async def _is_published(platform: Platform, run_id: str, status: tuple[str, str]) -> bool:
    return status in await platform.step_statuses(run_id)


async def test_commands_at_once_have_files_of_their_own_and_what_each_makes_is_kept(working_platform: Platform) -> None:
    platform = working_platform
    script = f"echo {{0}} > {{0}}.txt; {UNTIL_GO}; rm go"
    run_id = await platform.submit(
        write("first", "common.txt", "common"),
        shell("a", script.format("a"), needs=["first"]),
        shell("b", script.format("b"), needs=["first"]),
        shell("both", "cat a.txt b.txt common.txt"),
    )
    await platform.until_begun(run_id, times=2)
    folders = platform.checkouts(run_id)
    assert sorted(sorted(path.name for path in folder.iterdir()) for folder in folders) == [
        ["a.txt", "common.txt"],
        ["b.txt", "common.txt"],
    ]
    for folder in folders:
        (folder / "go").touch()
    await platform.completed(run_id)
    assert (await platform.lines(run_id))[-3:] == ["a", "b", "common"]
    await wait_until(lambda: platform.checkouts(run_id) == [])


async def test_when_a_step_fails_the_running_ones_end_well_and_no_other_begins(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        shell("fails", "exit 3", needs=[]), hold("slow", needs=[]), shell("after", "true", needs=["slow"])
    )
    async with worker(platform.settings):
        await wait_until(lambda: _is_published(platform, run_id, ("fails", "failed")))
        assert (await platform.run(run_id)).status is RunStatus.RUNNING
        tool.go.set()
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("command_failed", "fails")
    assert await statuses(platform, run_id) == {
        "fails": StepStatus.FAILED,
        "slow": StepStatus.COMPLETED,
        "after": StepStatus.SKIPPED,
    }
    await platform.ends_whole(run_id)


async def test_a_cancel_ends_all_running_steps(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(hold("a", needs=[]), hold("b", needs=[]), hold("c"))
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 2)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    assert tool.blocked == 0
    assert sorted((await platform.step_statuses(run_id))[2:]) == [("a", "interrupted"), ("b", "interrupted")]
    await platform.ends_whole(run_id)


async def test_a_worker_that_drains_starts_no_further_step_and_the_next_goes_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(hold("a", needs=[]), hold("b", needs=[]), hold("c"))
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 2)
        tool.go.set()
        await wait_until(lambda: tool.blocked == 0)
    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert run.attempt == 1
    assert [step for step, status in await platform.step_statuses(run_id) if status == "started"] == ["a", "b", "c"]


@pytest.mark.slow
async def test_after_kill_9_each_step_that_was_running_is_repeated_and_none_that_was_done(
    isolated: None, platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform)
    run_id = await platform.submit(
        shell("done", "echo done >> done.txt", needs=[]),
        shell("a", f"echo a >> a.txt; {UNTIL_GO}", needs=["done"]),
        shell("b", f"echo b >> b.txt; {UNTIL_GO}", needs=["done"]),
        shell("end", "cat done.txt a.txt b.txt"),
    )
    await platform.until_begun(run_id, times=2)
    await first.kill()
    await platform.let_go(run_id)
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert (await platform.lines(run_id))[-3:] == ["done", "a", "b"]
    assert {record.step_id: record.tries for record in await platform.journal(run_id)} == {
        "done": 1,
        "a": 2,
        "b": 2,
        "end": 1,
    }
    await platform.ends_whole(run_id)


async def test_all_steps_of_which_nobody_knows_are_marked_and_named(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(call: int, context: ToolContext) -> ToolResult:
        return ToolResult()

    tool = Scripted(change)
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        {"id": "a", "tool": "scripted", "needs": []}, {"id": "b", "tool": "scripted", "needs": []}
    )
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    assert taken.run.id == run_id
    await _left_in_the_middle(platform, run_id, claim.generation)
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "step_uncertain"
        assert "'a', 'b'" in run.error.message
        assert set((await statuses(platform, run_id)).values()) == {StepStatus.UNCERTAIN}
        assert tool.calls == 0
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=True)
        await platform.completed(run_id)
    assert tool.calls == 0


async def _left_in_the_middle(platform: Platform, run_id: str, generation: int) -> None:
    """The run as it is when a worker is lost while the changes of both steps are on their way."""
    run = await platform.run(run_id)
    plan = Plan.model_validate(run.given_plan)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(plan, pending_steps(plan))
        for step in plan.steps:
            transaction.begin_step(step.id, 1)
            transaction.step_is_changing(step.id)

    await platform.resources.store.running_runs.write(run_id, generation, write)


async def test_events_of_steps_at_once_are_published_in_the_order_of_their_numbers(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(*(shell(f"s{n}", f"{UNTIL_GO}; seq 200", needs=[]) for n in range(4)))
    await platform.until_begun(run_id, times=4)
    async with platform.published(run_id) as published:
        await platform.let_go(run_id)
        await platform.completed(run_id)
        await wait_until(lambda: published and published[-1].type is EventType.END)
    await platform.ends_whole(run_id)
    numbers = [event.id for event in published]
    assert len(numbers) > 800
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
