"""Steps below a step: journalled, approved and paid for like any other, and never done twice."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest

from backplane.domain.decisions import DecisionStatus
from backplane.domain.plans import SubStep
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import Platform, worker
from tests.waiting import wait_until
from worker.tools.base import StepReport, ToolContext, ToolResult

OUTER = {"id": "outer", "tool": "scripted"}


class Loop(Scripted):
    """Safe to call again, as an agent is."""

    repeatable: ClassVar[bool] = True
    delegates: ClassVar[bool] = True


def below(context: ToolContext, number: int, script: str, **more: Any) -> SubStep:
    place = {"parent": context.call.step_id, "round": context.round, "turn": 1, "ordinal": number}
    return SubStep(**place, tool="shell", arguments={"script": script}, title=f"call {number}", **more)


def looping(scripts: list[str], then: Callable[[int, list[StepReport]], ToolResult] = lambda *_: ToolResult()) -> Loop:
    """Carries these out, one after another, each time it is called."""

    async def act(call: int, context: ToolContext) -> ToolResult:
        reports = [
            await context.sub_steps.run(below(context, number, script)) for number, script in enumerate(scripts, 1)
        ]
        seen.append(reports)
        return then(call, reports)

    seen: list[list[StepReport]] = []
    tool = Loop(act)
    tool.seen = seen  # type: ignore[attr-defined]
    return tool


async def journal(platform: Platform, run_id: str) -> dict[str, tuple[StepStatus, int]]:
    return {record.step_id: (record.status, record.tries) for record in await platform.journal(run_id)}


async def test_they_are_journalled_after_all_others_and_report_how_they_ended(
    start_platform: StartPlatform, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform(database_url=database_url)
    tool = looping(["echo one; echo x > x.txt", "echo two; exit 4"])
    equip(monkeypatch, tool)
    run_id = await platform.submit(OUTER, {"id": "next", "tool": "shell", "arguments": {"script": "cat x.txt"}})
    async with worker(platform.settings):
        await platform.completed(run_id)
    [[one, two]] = tool.seen  # type: ignore[attr-defined]
    assert (one.succeeded, one.output, one.files_changed) == (True, "one\n", ("x.txt",))
    assert (two.succeeded, two.output, two.error.code) == (False, "two\n", "command_failed")
    assert [record.step_id for record in await platform.journal(run_id)] == [
        "outer",
        "next",
        "outer/0.1.1",
        "outer/0.1.2",
    ]
    await platform.ends_whole(run_id)


async def test_one_that_was_done_is_not_done_again_when_the_step_above_is_called_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        first = await context.sub_steps.run(below(context, 1, "echo $RANDOM$RANDOM; echo x >> marks"))
        outputs.append(first.output)
        if call == 1:
            begun.set()
            await asyncio.Event().wait()
        return ToolResult()

    outputs: list[str] = []
    begun = asyncio.Event()
    equip(monkeypatch, Loop(act))
    run_id = await platform.submit(OUTER)
    async with worker(platform.settings):
        await begun.wait()
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert len(outputs) == 2
    assert outputs[0] == outputs[1]
    assert await platform.read(run_id, "marks") == b"x\n"
    assert (await journal(platform, run_id))["outer/0.1.1"] == (StepStatus.COMPLETED, 1)


async def test_a_step_that_is_tried_again_finds_nothing_of_what_was_done_below_its_failed_try(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = looping(["echo x >> marks"], lambda call, _: ToolResult(0 if call == 3 else 1))
    equip(monkeypatch, tool)
    run_id = await platform.submit({**OUTER, "retry": {"max_attempts": 2, "backoff_seconds": 0}})
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.FAILED)
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
        await platform.completed(run_id)
    assert await platform.read(run_id, "marks") == b"x\nx\nx\n"
    assert sorted(await journal(platform, run_id)) == ["outer", "outer/0.1.1", "outer/1.1.1", "outer/2.1.1"]


async def test_one_that_needs_approval_suspends_the_step_above_whatever_its_tool_makes_of_it(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform(approval_tools=["shell"])

    async def act(call: int, context: ToolContext) -> ToolResult:
        for number in (1, 2):
            try:
                await context.sub_steps.run(below(context, number, f"echo {number} >> marks"))
            except Exception:
                return ToolResult(1)
        return ToolResult()

    tool = Loop(act)
    equip(monkeypatch, tool)
    run_id = await platform.submit(OUTER)
    async with worker(platform.settings):
        for number in (1, 2):
            run = await platform.until(run_id, RunStatus.WAITING)
            assert run.error is not None
            assert (run.error.code, run.error.step) == ("approval_required", f"outer/0.1.{number}")
            assert (await journal(platform, run_id))["outer"][0] is StepStatus.PENDING
            decision = (await platform.resources.store.decisions.of_run(run_id))[-1]
            await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, {})
            await platform.until(run_id, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.COMPLETED, RunStatus.WAITING)
            await wait_until(partial(_is_called, tool, number + 1))
        await platform.completed(run_id)
    assert tool.calls == 3
    assert await platform.read(run_id, "marks") == b"1\n2\n"
    await platform.ends_whole(run_id)


def _is_called(tool: Loop, times: int) -> bool:
    return tool.calls >= times


async def test_each_takes_a_step_and_its_seconds_from_the_budget_and_the_one_above_no_seconds(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    equip(monkeypatch, looping(["true", "true", "true"]))
    run_id = await platform.submit(OUTER, budget={"steps": 3, "seconds": 600})
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "budget_exhausted"
        [decision] = await platform.resources.store.decisions.of_run(run_id)
        more = {"budget": {"steps": 2}}
        await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, more)
        await platform.completed(run_id)
    ended = {step: tries for step, (_, tries) in (await journal(platform, run_id)).items()}
    assert ended == {"outer": 2, "outer/0.1.1": 1, "outer/0.1.2": 1, "outer/0.1.3": 1}
    assert list((await platform.resources.store.ledger.audit()).differences) == []


async def test_a_cancel_ends_both(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    equip(monkeypatch, looping(["echo begun; sleep 600"]))
    run_id = await platform.submit(OUTER)
    async with worker(platform.settings):
        await platform.until_begun(run_id)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    statuses = await platform.step_statuses(run_id)
    assert statuses[2:] == [("outer/0.1.1", "interrupted"), ("outer", "interrupted")]
    await platform.ends_whole(run_id)
