"""Forks, replays, and runs that go back to a step: real workers give them the files as they were."""

import pytest

from app.schemas.execute import ForkRun, NewRun
from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.runs import Run, RunStatus
from backplane.domain.steps import StepStatus
from backplane.errors import NotFound
from tests.event_data import data_of
from tests.platform.workers import Platform
from tests.submitted import shell, write

STEPS = (
    write("first", "a.txt", "1\n"),
    shell("second", "echo 2 >> a.txt; echo b > b.txt; rm c.txt; cat a.txt"),
    shell("third", "echo 3 >> a.txt; cat a.txt"),
)


async def source_of(platform: Platform) -> Run:
    """A run that began with a file, and whose three steps changed one after the other."""
    new = NewRun(prompt="a test", plan={"steps": list(STEPS)})
    run = await platform.submission.create(platform.user, new, None, start=False)
    await platform.write(run.id, "c.txt", b"c\n")
    await platform.submission.start(platform.user, run.id)
    return await platform.completed(run.id)


async def outputs(platform: Platform, run_id: str) -> dict[str, str]:
    return {record.step_id: (record.result or {})["output"] for record in await platform.journal(run_id)}


async def files(platform: Platform, run_id: str) -> dict[str, bytes]:
    workspace = platform.resources.workspaces.workspace(platform.user.id, run_id)
    return {file.path: await platform.read(run_id, file.path) for file in await workspace.list()}


async def forked(platform: Platform, source: Run, **values: object) -> Run:
    fork = ForkRun(action="fork", run_id=source.id, **values)  # type: ignore[arg-type]
    return await platform.submission.fork(platform.user, fork, None)


async def test_a_fork_goes_on_with_the_files_as_they_were(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    run = await forked(platform, source, step="first")
    done = await platform.completed(run.id)
    assert await files(platform, run.id) == {"a.txt": b"1\n2\n3\n", "b.txt": b"b\n"}
    assert await outputs(platform, run.id) == await outputs(platform, source.id)
    assert done.restore is None
    begun = [
        data_of(event)["step"]
        for event in await platform.history(run.id)
        if event.type is EventType.STEP and data_of(event)["status"] == "started"
    ]
    assert begun == ["second", "third"]
    await platform.ends_whole(run.id)


async def test_a_fork_with_another_plan_does_something_else_from_there_on(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    plan = {"steps": [STEPS[0], shell("other", "cat a.txt c.txt")]}
    run = await platform.completed((await forked(platform, source, step="first", plan=plan)).id)
    assert (await outputs(platform, run.id))["other"] == "1\nc\n"
    assert await files(platform, source.id) == {"a.txt": b"1\n2\n3\n", "b.txt": b"b\n"}


async def test_a_fork_gets_files_of_its_own_before_it_is_started(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    run = await forked(platform, source, step="second", start=False)
    await platform.write(run.id, "a.txt", b"mine\n")
    await platform.submission.start(platform.user, run.id)
    await platform.completed(run.id)
    assert await files(platform, run.id) == {"a.txt": b"mine\n3\n", "b.txt": b"b\n"}


async def test_a_fork_from_the_beginning_begins_with_what_the_run_began_with(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    run = await platform.completed((await forked(platform, source)).id)
    assert await outputs(platform, run.id) == await outputs(platform, source.id)


async def test_a_fork_of_a_fork_finds_the_files_of_the_first(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    second = await platform.completed((await forked(platform, source, step="second")).id)
    plan = {"steps": [STEPS[0], shell("other", "cat a.txt c.txt")]}
    run = await platform.completed((await forked(platform, second, step="first", plan=plan)).id)
    assert (await outputs(platform, run.id))["other"] == "1\nc\n"


async def test_a_completed_run_goes_back_to_a_step(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    await platform.submission.retry_from(platform.user, source.id, "third")
    again = await platform.completed(source.id)
    assert again.generation == 2
    assert await files(platform, source.id) == {"a.txt": b"1\n2\n3\n", "b.txt": b"b\n"}
    assert [record.tries for record in await platform.journal(source.id)] == [1, 1, 2]
    ends = [event.type for event in await platform.history(source.id)]
    assert (ends.count(EventType.END), ends[-1]) == (2, EventType.END)


async def test_files_that_are_gone_fail_the_fork_with_what_to_do(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    await platform.resources.workspaces.remove(platform.user.id, source.id)
    run = await platform.until((await forked(platform, source, step="second")).id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "files_gone"
    assert "a.txt" in run.error.message


async def test_a_replay_ends_like_its_source(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    made = await platform.submission.replay(platform.user, source.id, None)
    run = await platform.completed(made.id)
    assert await outputs(platform, run.id) == await outputs(platform, source.id)
    assert await files(platform, run.id) == await files(platform, source.id)


async def test_a_run_s_result_names_its_files_in_a_replay_as_well(working_platform: Platform) -> None:
    platform = working_platform
    source = await source_of(platform)
    run = await platform.completed((await platform.submission.replay(platform.user, source.id, None)).id)
    assert run.result is not None
    assert source.result is not None
    assert run.result["files"] == source.result["files"] == ["a.txt", "b.txt"]


async def test_an_approval_is_answered_once_and_holds_in_a_replay(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("ask", "echo done", approval=True))
    await platform.until(run_id, RunStatus.WAITING)
    decision = await _decide(platform, run_id, DecisionStatus.APPROVED)
    await platform.completed(run_id)
    statuses = [
        data_of(event)["status"] for event in await platform.history(run_id) if event.type is EventType.DECISION
    ]
    assert (statuses, decision.step_id) == (["pending", "approved"], "ask")
    made = await platform.submission.replay(platform.user, run_id, None)
    await platform.completed(made.id)
    assert await outputs(platform, made.id) == {"ask": "done\n"}


async def test_a_step_that_was_rejected_is_not_carried_out(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("ask", "touch never", approval=True))
    await platform.until(run_id, RunStatus.WAITING)
    await _decide(platform, run_id, DecisionStatus.REJECTED, reason="no")
    await platform.until(run_id, RunStatus.FAILED)
    assert [record.status for record in await platform.journal(run_id)] == [StepStatus.FAILED]
    with pytest.raises(NotFound):
        await platform.read(run_id, "never")


async def _decide(platform: Platform, run_id: str, status: DecisionStatus, **answer: str) -> Decision:
    [asked] = await platform.resources.store.decisions.of_run(run_id)
    return await platform.submission.decide(platform.user, run_id, asked.id, status, answer)
