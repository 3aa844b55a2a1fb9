"""A worker is lost: another one finishes its runs, repeats no finished step, and asks where it cannot know."""

import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backplane.domain.events import Event, EventType, encode
from backplane.domain.plans import parse_plan
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus, pending_steps
from backplane.errors import Superseded
from backplane.logs.base import Batch
from backplane.logs.redis import RedisEventLog
from backplane.queue.base import Job
from backplane.store.run_transaction import RunTransaction
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import UNTIL_GO, Platform, WorkerProcess, processes_with, worker
from tests.queues import known
from tests.submitted import plan, shell, together, write
from tests.waiting import wait_until
from worker.context import WorkerContext
from worker.execution import Execution
from worker.run.interruption import Cause
from worker.sandbox.local import sandbox as local
from worker.tools.base import ToolContext, ToolResult

StartProcess = Callable[..., Awaitable[WorkerProcess]]


def _log_event(run_id: str, number: int) -> Event:
    return encode(run_id, number, EventType.LOG, {"line": f"line {number}"})


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
async def test_after_kill_9_another_worker_finishes_the_run_and_repeats_no_finished_step(
    platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform)
    marker = "600.0417"
    run_id = await platform.submit(
        shell("a", "echo a >> marks"),
        shell("b", f"echo b >> marks; sleep {marker} & {UNTIL_GO}"),
        shell("c", "echo c >> marks"),
    )
    await platform.until_begun(run_id)
    await first.kill()
    await wait_until(lambda: not processes_with(marker), what="the sandbox dies with its worker")
    await platform.let_go(run_id)
    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b", b"c"]
    assert (run.generation, run.attempt) == (2, 1)
    assert await platform.statuses(run_id) == [
        ("created", 1),
        ("queued", 1),
        ("running", 1),
        ("running", 1),
        ("completed", None),
    ]
    assert await platform.step_statuses(run_id) == [
        ("a", "started"),
        ("a", "completed"),
        ("b", "started"),
        ("b", "started"),
        ("b", "completed"),
        ("c", "started"),
        ("c", "completed"),
    ]
    assert [step.tries for step in await platform.journal(run_id)] == [1, 2, 1]
    await platform.ends_whole(run_id)


@pytest.mark.slow
async def test_the_files_of_a_killed_worker_are_removed_by_the_next_that_starts(
    platform: Platform, start_process: StartProcess
) -> None:
    killed = await start_process(platform)
    run_id = await platform.submit(shell("a", UNTIL_GO))
    await platform.until_begun(run_id)
    await killed.kill()
    [left] = platform.scratch.glob("agent-worker-*")
    async with worker(platform.settings):
        await wait_until(lambda: not left.exists())
        assert len(list(platform.scratch.glob("agent-worker-*"))) == 1
    assert list(platform.scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
async def test_a_worker_that_slept_through_its_lease_writes_nothing_any_more(
    platform: Platform, start_process: StartProcess
) -> None:
    stale = await start_process(platform)
    run_id = await platform.submit(shell("a", f"echo stale >> marks; {UNTIL_GO}"), shell("b", "echo b >> marks"))
    await platform.until_begun(run_id)
    [its_checkout] = platform.checkouts(run_id)
    stale.signal(signal.SIGSTOP)
    # When it wakes up, the first thing it finds is a step that succeeded and has changes to be brought home.
    (its_checkout / "go").touch()
    await platform.write(run_id, "go", b"")

    async with worker(platform.settings):
        run = await platform.completed(run_id)
        before = await platform.everything(run_id)
        stale.signal(signal.SIGCONT)
        await stale.until_logged("run lost: another worker has taken it")
    assert run.generation == 2
    assert await platform.everything(run_id) == before
    assert (await platform.read(run_id, "marks")).split() == [b"stale", b"b"]
    await platform.ends_whole(run_id)


async def test_a_run_that_loses_its_worker_again_and_again_is_failed_as_the_cause(
    start_platform: StartPlatform,
) -> None:
    platform = await start_platform(worker_crash_limit=3)
    run_id = await platform.submit(shell("a", "true"), max_retries=3)
    for crashes in range(3):
        await platform.taken(await platform.claimed(crashes=crashes))
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.retryable, run.attempt) == ("worker_lost", False, 1)
    assert await platform.step_statuses(run_id) == []
    await platform.ends_whole(run_id)


async def test_a_run_that_lost_fewer_workers_is_carried_out(start_platform: StartPlatform) -> None:
    platform = await start_platform(worker_crash_limit=3)
    run_id = await platform.submit(shell("a", "true"))
    for crashes in range(2):
        await platform.taken(await platform.claimed(crashes=crashes))
    async with worker(platform.settings):
        await platform.completed(run_id)


# --- what a step was doing when its worker was lost ---


MARKS = (shell("a", "echo a >> marks"), shell("b", "echo b >> marks"))


async def cut_off(platform: Platform, *writes: Callable[[RunTransaction], None], steps: Sequence[Any] = MARKS) -> str:
    """A run whose worker was lost after it had begun its step a and written this."""
    run_id = await platform.submit(*steps)
    made = parse_plan(plan(*steps))
    claim = await platform.claimed()
    await platform.taken(claim)
    save = together(
        lambda transaction: transaction.save_plan(made, pending_steps(made)),
        lambda transaction: transaction.begin_step("a", 1),
    )
    await platform.resources.store.running_runs.write(run_id, claim.generation, together(save, *writes))
    return run_id


def changing(transaction: RunTransaction) -> None:
    transaction.step_is_changing("a")


@pytest.mark.usefixtures("isolated")
async def test_a_step_that_was_cut_off_before_its_changes_is_repeated_in_an_isolated_sandbox(
    platform: Platform,
) -> None:
    run_id = await cut_off(platform)
    async with worker(platform.settings):
        await platform.completed(run_id)
        assert (await platform.read(run_id, "marks")).split() == [b"a", b"b"]
        assert [step.tries for step in await platform.journal(run_id)] == [2, 1]


async def test_without_isolation_such_a_step_may_have_happened_and_a_person_is_asked(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [])
    run_id = await cut_off(platform)
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.WAITING)
    assert run.error is not None
    assert run.error.code == "step_uncertain"


async def test_a_step_that_was_cut_off_in_the_middle_of_its_changes_asks_a_person(platform: Platform) -> None:
    run_id = await cut_off(platform, changing)
    async with worker(platform.settings):
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("step_uncertain", "a")
        assert 'uncertain_step "repeat" or "done"' in run.error.message
        assert [step.status for step in await platform.journal(run_id)] == [StepStatus.UNCERTAIN, StepStatus.PENDING]
        assert (await platform.step_statuses(run_id))[-1] == ("a", "uncertain")

        async def has_no_worker() -> bool:
            return (await platform.resources.queue.statistics()).running == 0

        await wait_until(has_no_worker)


@pytest.mark.parametrize(("is_done", "marks"), [(True, [b"b"]), (False, [b"a", b"b"])])
async def test_the_person_says_whether_the_step_is_repeated_or_done(
    platform: Platform, is_done: bool, marks: list[bytes]
) -> None:
    run_id = await cut_off(platform, changing)
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.WAITING)
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=is_done)
        await platform.completed(run_id)
        assert (await platform.read(run_id, "marks")).split() == marks
        await platform.ends_whole(run_id)


async def test_the_person_may_cancel_it_instead(platform: Platform) -> None:
    run_id = await cut_off(platform, changing)
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.WAITING)
        await platform.submission.cancel(platform.user, run_id)
        assert (await platform.run(run_id)).status is RunStatus.CANCELLED
        await platform.ends_whole(run_id)


async def test_a_step_that_is_safe_to_repeat_is_repeated_wherever_it_was_cut_off(platform: Platform) -> None:
    run_id = await cut_off(platform, changing, steps=[write("a", "a.txt", "whole")])
    async with worker(platform.settings):
        await platform.completed(run_id)
        assert await platform.read(run_id, "a.txt") == b"whole"


async def test_a_finished_step_whose_run_was_lost_is_not_repeated(platform: Platform) -> None:
    run_id = await cut_off(
        platform, lambda transaction: transaction.end_step("a", StepStatus.COMPLETED, {"exit_code": 0})
    )
    async with worker(platform.settings):
        await platform.completed(run_id)
        assert (await platform.read(run_id, "marks")).split() == [b"b"]


# --- what was on its way when a worker was lost ---


async def test_events_that_were_published_and_not_stored_are_stored_by_the_next_worker(
    platform: Platform,
) -> None:
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    published = [_log_event(run_id, taken.last_event_id + number) for number in (1, 2, 3)]
    await platform.resources.event_log.append([Batch(run_id, claim.generation, published)])
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert (await platform.history(run_id))[taken.last_event_id :][:3] == published
    await platform.ends_whole(run_id)


async def test_where_redis_was_emptied_in_that_moment_a_gap_says_that_numbers_are_missing(platform: Platform) -> None:
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    lost = [_log_event(run_id, taken.last_event_id + number) for number in (1, 2, 3)]
    await platform.resources.event_log.append([Batch(run_id, claim.generation, lost)])
    await platform.resources.redis.commands.flushall()
    async with worker(platform.settings):
        await platform.completed(run_id)
    history = await platform.history(run_id)
    after = history[taken.last_event_id :]
    assert after[0].type is EventType.GAP
    assert after[0].id > lost[-1].id
    [gap] = await platform.event_data(run_id, EventType.GAP)
    assert (gap["after"], gap["before"]) == (taken.last_event_id, after[0].id)
    assert [event.id for event in after] == list(range(after[0].id, after[0].id + len(after)))


async def test_where_redis_is_emptied_between_two_questions_a_gap_says_so_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    lost = _log_event(run_id, taken.last_event_id + 1)
    await platform.resources.event_log.append([Batch(run_id, claim.generation, [lost])])
    last_id = RedisEventLog.last_id

    async def then_emptied(self: RedisEventLog, of_run: str) -> int | None:
        found = await last_id(self, of_run)
        await platform.resources.redis.commands.delete(platform.resources.redis.keys.stream(of_run))
        return found

    monkeypatch.setattr(RedisEventLog, "last_id", then_emptied)
    async with worker(platform.settings):
        await platform.completed(run_id)
    [gap] = await platform.event_data(run_id, EventType.GAP)
    assert gap["after"] == taken.last_event_id
    assert gap["before"] > lost.id + 1


async def test_an_end_that_was_committed_and_not_published_is_published_by_the_next_worker(
    platform: Platform,
) -> None:
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    end = encode(run_id, taken.last_event_id + 1, EventType.END, {"status": "completed"})
    await platform.resources.store.running_runs.write(
        run_id,
        claim.generation,
        together(
            lambda transaction: transaction.add_events([end]),
            lambda transaction: transaction.finish(RunStatus.COMPLETED, None),
        ),
    )
    async with platform.published(run_id) as published, worker(platform.settings):
        await wait_until(lambda: end in published)

        async def is_given_up() -> bool:
            return not any(await known(platform.resources.queue, [run_id]))

        await wait_until(is_given_up)
    await platform.ends_whole(run_id)


# --- a step that asks in the middle of things ---


async def test_a_fault_in_the_middle_of_a_steps_changes_asks_a_person_in_the_next_attempt(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        await context.about_to_change()
        raise RuntimeError("in the middle")

    equip(monkeypatch, tool := Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit({"id": "a", "tool": "scripted"}, max_retries=3)
        run = await platform.until(run_id, RunStatus.WAITING)
    assert tool.calls == 1
    assert run.error is not None
    assert run.error.code == "step_uncertain"


# --- before a file is changed ---


async def test_a_worker_whose_lease_may_have_ended_asks_the_database(platform: Platform) -> None:
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    await platform.taken(claim)
    rules = SimpleNamespace(runs=SimpleNamespace(lease_seconds=60.0))
    context = cast(WorkerContext, SimpleNamespace(resources=platform.resources, rules=rules))
    fresh, ended = Execution(claim, context), Execution(claim, context)
    fresh.lease_renewed(time.monotonic())
    await fresh.ensure_ours()
    await ended.ensure_ours()
    assert await platform.resources.store.running_runs.take(run_id, claim.generation + 1)
    await fresh.ensure_ours()
    with pytest.raises(Superseded):
        await ended.ensure_ours()
    assert ended.interruption.cause is Cause.SUPERSEDED


@pytest.mark.parametrize("taken_by", ["its worker", pytest.param("another worker", marks=pytest.mark.slow)])
async def test_a_run_goes_on_when_redis_forgets_its_claim_and_gives_it_out_again(
    platform: Platform, start_process: StartProcess, taken_by: str
) -> None:
    resources = platform.resources
    async with worker(
        platform.settings.model_copy(update={"worker_concurrency": 2 if taken_by == "its worker" else 1})
    ):
        run_id = await platform.submit(shell("a", UNTIL_GO))
        await platform.until_begun(run_id)
        if taken_by == "another worker":
            await start_process(platform)
        run = await platform.run(run_id)
        # A replica that knows the run, and not its claim, becomes the master.
        await resources.redis.commands.flushall()
        [is_queued] = await resources.queue.enqueue([Job(run_id, run.user_id, run.priority, 0)])

        async def is_running_again() -> bool:
            return (await resources.queue.statistics()).running == 1 and await resources.queue.standing([run_id]) == [
                None
            ]

        if is_queued:  # else its worker's heartbeat was quicker
            await wait_until(is_running_again)
        await platform.let_go(run_id)
        run = await platform.completed(run_id)
    assert run.generation == 1
    await platform.ends_whole(run_id)
