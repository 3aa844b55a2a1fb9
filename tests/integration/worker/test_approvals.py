"""A step waits for a person: the run keeps no worker meanwhile, nothing is lost, and what was decided is done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus
from backplane.errors import InvalidInput
from backplane.queue.base import Settlement
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import BlockingTool, Scripted, equip
from tests.platform.workers import Platform, WorkerProcess, worker
from tests.submitted import shell, write
from tests.waiting import wait_until
from worker.execution import Execution
from worker.tools.base import NeedsPerson, ToolContext, ToolResult

StartProcess = Callable[..., Awaitable[WorkerProcess]]
APPROVED, REJECTED, ANSWERED = DecisionStatus.APPROVED, DecisionStatus.REJECTED, DecisionStatus.ANSWERED


async def decisions(platform: Platform, run_id: str) -> list[Decision]:
    return await platform.resources.store.decisions.of_run(run_id)


async def decide(
    platform: Platform, run_id: str, status: DecisionStatus, answer: dict[str, Any] | None = None
) -> Decision:
    """Answer the run's open question, once there is one."""

    async def open_question() -> Decision | None:
        return next((one for one in await decisions(platform, run_id) if one.status is DecisionStatus.PENDING), None)

    decision = await wait_until(open_question)
    assert decision is not None
    return await platform.submission.decide(platform.user, run_id, decision.id, status, answer or {})


async def decided(platform: Platform, run_id: str) -> list[tuple[str, str]]:
    return [(data["step"], data["status"]) for data in await platform.event_data(run_id, EventType.DECISION)]


async def test_a_step_waits_for_its_approval_and_holds_no_worker_meanwhile(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(worker_concurrency=1, database_url=database_url)
    run_id = await platform.submit(
        shell("a", "echo a >> marks"), shell("b", "echo b >> marks", approval=True), shell("c", "echo c >> marks")
    )
    other = await platform.submit(shell("a", "true"))
    async with worker(platform.settings):
        await platform.completed(other)
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("approval_required", "b")
        [decision] = await decisions(platform, run_id)
        assert (decision.step_id, decision.kind, decision.asked["tool"]) == ("b", DecisionKind.APPROVAL, "shell")
        assert decision.asked["arguments"] == {"script": "echo b >> marks"}
        assert (await platform.read(run_id, "marks")).split() == [b"a"]
        await decide(platform, run_id, APPROVED)
        await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b", b"c"]
    assert await decided(platform, run_id) == [("b", "pending"), ("b", "approved")]
    assert [step for step, status in await platform.step_statuses(run_id) if status == "started"] == ["a", "b", "c"]
    await platform.ends_whole(run_id)


async def test_it_is_carried_out_with_the_arguments_that_the_person_gave(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "echo a >> marks", approval=True))
    await decide(platform, run_id, APPROVED, {"arguments": {"script": "echo other >> marks"}})
    await platform.completed(run_id)
    assert await platform.read(run_id, "marks") == b"other\n"


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({}, "'script' is a required property"),
    ({"skript": "true"}, "'skript'"),
    ({"script": 7}, "script: 7 is not of type 'string'"),
    ({"script": "true", "environment": []}, r"environment: \[\] is not of type 'object'"),
]


async def test_arguments_of_a_person_are_checked_when_they_are_given_and_nothing_is_decided_by_wrong_ones(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", "echo a", approval=True))
        for arguments, why in WRONG_ARGUMENTS:
            with pytest.raises(InvalidInput, match=why) as error:
                await decide(platform, run_id, APPROVED, {"arguments": arguments})
            assert error.value.field == "arguments"
            assert [one.status for one in await decisions(platform, run_id)] == [DecisionStatus.PENDING]
        assert (await platform.until(run_id, RunStatus.WAITING)).status is RunStatus.WAITING
        await decide(platform, run_id, APPROVED, {"arguments": {"script": "echo b"}})
        await platform.completed(run_id)
    assert await platform.lines(run_id) == ["b"]


async def test_arguments_that_only_the_tool_can_judge_have_the_step_ask_anew_and_say_why(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(write("a", "a.txt", "one", approval=True))
    first = await decide(platform, run_id, APPROVED, {"arguments": {"path": "../a.txt", "content": "two"}})

    async def asked_anew() -> Decision | None:
        last = (await decisions(platform, run_id))[-1]
        return last if last.id != first.id else None

    anew = await wait_until(asked_anew)
    assert anew is not None
    assert (anew.status, anew.step_id, anew.asked["arguments"]["path"]) == (DecisionStatus.PENDING, "a", "a.txt")
    assert "do not fit" in anew.asked["reason"]
    assert "path" in anew.asked["reason"]
    await decide(platform, run_id, APPROVED, {"arguments": {"path": "b.txt", "content": "two"}})
    await platform.completed(run_id)
    assert await platform.read(run_id, "b.txt") == b"two"


async def test_what_a_tool_takes_is_shown_to_who_decides_and_not_to_all_who_watch(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "true", approval=True))
    await platform.until(run_id, RunStatus.WAITING)
    [decision] = await decisions(platform, run_id)
    assert decision.asked["schema"]["required"] == ["script"]
    [data] = await platform.event_data(run_id, EventType.DECISION)
    assert "schema" not in data["asked"]


async def test_a_rejected_step_fails_at_once_and_a_retried_run_asks_again(working_platform: Platform) -> None:
    platform = working_platform
    retry = {"max_attempts": 5, "backoff_seconds": 0}
    run_id = await platform.submit(shell("a", "true", approval=True, retry=retry), max_retries=3)
    await decide(platform, run_id, REJECTED, {"reason": "too dear"})
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.attempt) == ("rejected", 1)
    assert "too dear" in run.error.message
    assert await platform.step_statuses(run_id) == [("a", "failed")]
    await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
    await platform.until(run_id, RunStatus.WAITING)
    await decide(platform, run_id, APPROVED)
    await platform.completed(run_id)
    assert await decided(platform, run_id) == [
        ("a", "pending"),
        ("a", "rejected"),
        ("a", "pending"),
        ("a", "approved"),
    ]


async def test_what_was_approved_once_is_not_asked_again_for_its_other_tries(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(
        shell("a", "exit 7", approval=True, retry={"max_attempts": 3, "backoff_seconds": 0.01})
    )
    await decide(platform, run_id, APPROVED)
    await platform.until(run_id, RunStatus.FAILED)
    assert len(await decisions(platform, run_id)) == 1
    assert [record.failed_tries for record in await platform.journal(run_id)] == [3]


async def test_other_steps_go_on_and_an_answer_that_comes_meanwhile_is_found(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = BlockingTool()
    equip(monkeypatch, tool)
    run_id = await platform.submit(
        {"id": "slow", "tool": "hold", "needs": []}, shell("asked", "true", needs=[], approval=True)
    )
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 1)
        await decide(platform, run_id, APPROVED)
        assert (await platform.run(run_id)).status is RunStatus.RUNNING
        tool.go.set()
        run = await platform.completed(run_id)
    assert run.generation == 1
    assert ("waiting", None) not in await platform.statuses(run_id)
    assert await decided(platform, run_id) == [("asked", "pending"), ("asked", "approved")]
    await platform.ends_whole(run_id)


async def test_an_answer_at_the_moment_when_the_run_is_about_to_wait_is_not_lost(
    working_platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = working_platform
    wait_for_person = Execution._wait_for_person

    async def answer_first(execution: Execution, *asked: Any) -> Settlement:
        if not any(one.status is APPROVED for one in await decisions(platform, run_id)):
            await decide(platform, run_id, APPROVED)
        return await wait_for_person(execution, *asked)

    monkeypatch.setattr(Execution, "_wait_for_person", answer_first)
    run_id = await platform.submit(shell("a", "true", approval=True))
    run = await platform.completed(run_id)
    assert run.generation == 1
    assert [status for status, _ in await platform.statuses(run_id)] == ["created", "queued", "running", "completed"]
    assert await decided(platform, run_id) == [("a", "pending"), ("a", "approved")]
    await platform.ends_whole(run_id)


async def test_two_answers_at_once_queue_the_run_once_and_both_are_done(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(*(shell(id, f"echo {id} > {id}.txt", needs=[], approval=True) for id in "ab"))
    run = await platform.until(run_id, RunStatus.WAITING)
    assert run.error is not None
    assert "1 more" in run.error.message
    await asyncio.gather(
        *(
            platform.submission.decide(platform.user, run_id, one.id, APPROVED, {})
            for one in await decisions(platform, run_id)
        )
    )
    await platform.completed(run_id)
    assert [status for _, status in await platform.step_statuses(run_id)].count("started") == 2


@pytest.mark.slow
async def test_a_waiting_run_survives_its_worker_and_is_done_once(
    platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform)
    run_id = await platform.submit(
        write("a", "a.txt", "a", needs=[]),
        shell("b", "echo b >> marks", approval=True, needs=["a"]),
        shell("slow", "until [ -e go ]; do sleep 0.02; done", needs=["a"], repeatable=True),
    )
    await wait_until(lambda: _asked(platform, run_id))
    await first.kill()
    await decide(platform, run_id, APPROVED)
    await platform.let_go(run_id)
    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert run.generation == 2
    assert await platform.read(run_id, "marks") == b"b\n"
    assert len(await decisions(platform, run_id)) == 1
    await platform.ends_whole(run_id)


async def _asked(platform: Platform, run_id: str) -> bool:
    return bool(await decisions(platform, run_id)) and ("slow", "started") in await platform.step_statuses(run_id)


async def test_a_tool_asks_a_question_and_gets_the_answer(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(call: int, context: ToolContext) -> ToolResult:
        if context.answer is None:
            raise NeedsPerson(DecisionKind.QUESTION, {"question": "Which?"})
        context.output(f"{call}: {context.answer['text']}\n".encode())
        return ToolResult()

    equip(monkeypatch, Scripted(ask))
    shown = {"script": 'echo "<$A>"', "environment": {"A": "${steps.a.output}"}}
    run_id = await platform.submit(
        {"id": "a", "tool": "scripted"}, {"id": "b", "tool": "shell", "arguments": shown, "needs": []}
    )
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "answer_required"
        assert [record.status for record in await platform.journal(run_id)] == [StepStatus.PENDING] * 2
        await decide(platform, run_id, ANSWERED, {"text": '$(the) "first"'})
        await platform.completed(run_id)
    assert await platform.lines(run_id) == ['2: $(the) "first"', '<2: $(the) "first">']


async def test_the_policy_asks_for_tools_by_name_and_by_risk(start_platform: StartPlatform) -> None:
    platform = await start_platform(approval_tools=["file_delete"], approval_risk="medium")
    run_id = await platform.submit(
        write("a", "a.txt"),
        shell("b", "true"),
        {"id": "c", "tool": "file_delete", "arguments": {"path": "a.txt"}},
    )
    async with worker(platform.settings):
        for code in ("APPROVAL_RISK", "APPROVAL_TOOLS"):
            decision = await decide(platform, run_id, APPROVED)
            assert code in decision.asked["reason"]
        await platform.completed(run_id)


async def test_a_tool_that_is_disabled_is_refused_before_the_first_step(start_platform: StartPlatform) -> None:
    platform = await start_platform(tools_disabled=["shell"])
    run_id = await platform.submit(write("a", "a.txt"), shell("b", "true"))
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "invalid_plan"
    assert "TOOLS_DISABLED" in run.error.message
    assert await platform.step_statuses(run_id) == []


async def test_a_run_that_waits_can_be_cancelled(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "true", approval=True))
    await platform.until(run_id, RunStatus.WAITING)
    await platform.submission.cancel(platform.user, run_id)
    await platform.until(run_id, RunStatus.CANCELLED)
    await platform.ends_whole(run_id)
