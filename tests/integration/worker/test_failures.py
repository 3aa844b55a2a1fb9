"""What fails, how often it is tried again, and what is published of it."""

from typing import Any

import pytest

from backplane.domain.events import EventType
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.steps import StepStatus
from backplane.errors import Unavailable
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import Platform, processes_with, worker
from tests.submitted import shell, write
from tests.waiting import wait_until
from worker.tools.base import ToolContext, ToolResult

SCRIPTED: dict[str, Any] = {"id": "scripted", "tool": "scripted"}


async def test_a_failing_step_fails_the_run_with_its_error_and_the_later_steps_are_skipped(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(
        shell("a", "echo a > a"), shell("b", "echo why; exit 3"), shell("c", "true"), max_retries=3
    )
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.step, run.error.retryable) == ("command_failed", "b", False)
    assert run.attempt == 1
    journal = await platform.journal(run_id)
    assert [step.status.value for step in journal] == ["completed", "failed", "skipped"]
    assert journal[1].result is not None
    assert (journal[1].result["exit_code"], journal[1].result["output"]) == (3, "why\n")
    assert [data["status"] for data in await platform.event_data(run_id, EventType.END)] == ["failed"]
    await platform.ends_whole(run_id)


async def test_a_failed_run_that_is_retried_goes_on_where_it_failed(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(
        shell("a", "echo a >> marks"), shell("b", "[ -e mended ]; echo b >> marks"), shell("c", "echo c >> marks")
    )
    await platform.until(run_id, RunStatus.FAILED)
    await platform.write(run_id, "mended", b"")
    await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
    await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b", b"c"]


async def test_a_run_that_takes_too_long_is_ended_with_its_processes(working_platform: Platform) -> None:
    platform = working_platform
    marker = "600.0811"
    run_id = await platform.submit(
        shell("a", f"trap '' TERM; sleep {marker}"), shell("b", "true"), timeout_seconds=1, max_retries=3
    )
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.attempt) == ("run_timeout", 1)
    assert "timeout_seconds" in run.error.message
    assert processes_with(marker) == []
    await platform.ends_whole(run_id)


async def test_a_step_that_takes_too_long_is_ended_with_its_processes(working_platform: Platform) -> None:
    platform = working_platform
    marker = "600.0822"
    run_id = await platform.submit(shell("a", f"trap '' TERM; sleep {marker}", timeout_seconds=1))
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("step_timeout", "a")
    assert processes_with(marker) == []
    await platform.ends_whole(run_id)


async def test_a_step_is_tried_as_often_as_its_policy_says(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(
        shell("a", "echo try; exit 1", retry={"max_attempts": 3, "backoff_seconds": 0.01}), max_retries=3
    )
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.attempt == 1
    statuses = [status for _, status in await platform.step_statuses(run_id)]
    assert statuses == ["started", "retrying", "started", "retrying", "started", "failed"]
    assert await platform.lines(run_id) == ["try"] * 3
    pauses = [
        data["pause_seconds"] for data in await platform.event_data(run_id, EventType.STEP) if "pause_seconds" in data
    ]
    assert len(pauses) == 2
    assert [step.tries for step in await platform.journal(run_id)] == [3]


async def test_a_step_that_succeeds_at_its_second_try_is_completed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        return ToolResult(exit_code=1 if call == 1 else 0)

    equip(monkeypatch, Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit({**SCRIPTED, "retry": {"max_attempts": 5, "backoff_seconds": 0.01}})
        await platform.completed(run_id)
    assert [status for _, status in await platform.step_statuses(run_id)] == [
        "started",
        "retrying",
        "started",
        "completed",
    ]


async def test_a_fault_of_the_platform_is_tried_again_until_the_runs_retries_are_used_up(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        raise RuntimeError("a secret detail")

    equip(monkeypatch, tool := Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit({**SCRIPTED, "repeatable": True}, max_retries=2)
        run = await platform.until(run_id, RunStatus.FAILED)
    assert (tool.calls, run.attempt) == (3, 3)
    assert run.error is not None
    assert (run.error.code, run.error.retryable) == ("internal_error", True)
    assert "a secret detail" not in str([event.line for event in await platform.history(run_id)])
    assert await platform.statuses(run_id) == [
        ("created", 1),
        ("queued", 1),
        ("running", 1),
        ("queued", 2),
        ("running", 2),
        ("queued", 3),
        ("running", 3),
        ("failed", None),
    ]
    await platform.ends_whole(run_id)


async def test_another_attempt_repeats_no_finished_step(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        if call == 1:
            raise RuntimeError("once")
        return ToolResult()

    equip(monkeypatch, Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit(
            shell("a", "echo a >> marks"),
            {**SCRIPTED, "repeatable": True},
            shell("b", "echo b >> marks"),
            max_retries=1,
        )
        run = await platform.completed(run_id)
    assert run.attempt == 2
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b"]
    assert run.error is None


async def test_a_step_that_failed_and_may_succeed_later_is_open_again_until_the_next_attempt(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        return ToolResult(1, error=RunError("busy", "the other side is busy", retryable=True))

    equip(monkeypatch, Scripted(act))
    platform = await start_platform(retry_base_seconds=300.0, retry_max_seconds=300.0)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", "true"), SCRIPTED, max_retries=1)

        async def waits_for_its_next_attempt() -> bool:
            return (await platform.resources.queue.statistics()).scheduled == 1

        await wait_until(waits_for_its_next_attempt)
    run = await platform.run(run_id)
    assert run.error is not None
    assert (run.status, run.attempt, run.error.code) == (RunStatus.QUEUED, 2, "busy")
    assert [step.status for step in await platform.journal(run_id)] == [StepStatus.COMPLETED, StepStatus.PENDING]


async def test_a_step_that_finds_a_part_away_waits_for_it_and_costs_no_attempt(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        if call < 4:
            raise Unavailable("the sandbox cannot be started", part="sandbox")
        return ToolResult()

    equip(monkeypatch, tool := Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit({**SCRIPTED, "repeatable": True})
        run = await platform.completed(run_id)
    assert (tool.calls, run.attempt) == (4, 1)
    warnings = [data for data in await platform.event_data(run_id, EventType.LOG) if data.get("level") == "warning"]
    assert len(warnings) == 3
    assert "the sandbox cannot be started; trying again in" in warnings[0]["line"]


async def test_a_part_that_goes_away_in_the_middle_of_a_steps_changes_asks_a_person(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        raise Unavailable("the workspace does not answer", part="workspace")

    equip(monkeypatch, tool := Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit(SCRIPTED, max_retries=3)
        run = await platform.until(run_id, RunStatus.WAITING)
    assert tool.calls == 1
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("step_uncertain", "scripted")
    assert [step.status for step in await platform.journal(run_id)] == [StepStatus.UNCERTAIN]


async def test_an_answer_that_asking_again_cannot_change_fails_the_run_at_once(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit({"id": "a", "tool": "file_read", "arguments": {"path": "none.txt"}}, max_retries=3)
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.step, run.attempt) == ("not_found", "a", 1)


async def test_a_workspace_over_its_quota_fails_the_step_and_says_which_setting(platform: Platform) -> None:
    settings = platform.settings.model_copy(update={"workspace_max_bytes": 10})
    async with worker(settings):
        run_id = await platform.submit(write("a", "a.txt", "more than ten bytes"))
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "workspace_quota_exceeded"
    assert "WORKSPACE_MAX_BYTES" in run.error.message


@pytest.mark.parametrize(("name", "most"), [("memory_bytes", 4 * 1024**3), ("cpus", 4)])
async def test_a_step_may_ask_for_as_much_as_the_limit_and_no_more(
    working_platform: Platform, name: str, most: int
) -> None:
    platform = working_platform
    fine = {**shell("a", "true"), "limits": {name: most}}
    await platform.completed(await platform.submit(fine))
    run_id = await platform.submit({**fine, "limits": {name: most + 1}}, max_retries=3)
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.attempt) == ("invalid_plan", 1)
    assert f"plan.steps.0.limits.{name}" in run.error.message
    assert await platform.journal(run_id) == []
