"""Handlers that use up what they may spend, that block the loop, and whose worker is killed while they start runs."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from backplane.domain.budgets import Resource
from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.runs import Run, RunStatus
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.test_budget_pauses import account, approve, books_are_right, pending
from tests.integration.worker.test_handlers import FILE, Marks, handling, marks, submit, value_of
from tests.platform.workers import LONG_SECONDS, Platform, WorkerProcess, worker
from tests.waiting import wait_until

__all__ = ["marks"]

StartProcess = Callable[..., Awaitable[WorkerProcess]]


async def children(platform: Platform, run_id: str) -> list[Run]:
    runs: list[Run] = []
    while page := await platform.resources.store.runs.page(platform.user.id, before=runs[-1].id if runs else None):
        runs.extend(page)
    return [run for run in runs if run.parent_id == run_id]


# --- budgets ---


async def test_a_handler_without_steps_left_waits_and_goes_on_with_more(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input(), budget={"steps": 2})
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("budget_exhausted", "3.mark-2")
        assert (await pending(platform, run_id)).kind is DecisionKind.BUDGET
        assert marks.lines == ["0", "1"]
        await approve(platform, run_id, steps=1)
        await platform.completed(run_id)
    assert marks.lines == ["0", "1", "2"]
    assert await account(platform, run_id, Resource.STEPS) == (0, 0, 3)
    await platform.ends_whole(run_id)
    await books_are_right(platform)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("marks", RunStatus.FAILED), ("catches-a-refusal", RunStatus.COMPLETED)])
async def test_a_handler_whose_person_gives_no_more_gets_an_error_that_it_may_catch(
    platform: Platform, marks: Marks, name: str, status: RunStatus
) -> None:
    async with handling(platform):
        run_id = await submit(platform, name, marks.input(), budget={"steps": 1})
        await platform.until(run_id, RunStatus.WAITING)
        decision = await pending(platform, run_id)
        answer = {"reason": "enough"}
        await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.REJECTED, answer)
        run = await platform.until(run_id, RunStatus.FAILED, RunStatus.COMPLETED)
    assert run.status is status
    if run.error is None:
        assert value_of(run) == "caught budget_exhausted of 2.second"
    else:
        assert (run.error.code, run.error.step) == ("budget_exhausted", "2.mark-1")
    assert len(marks.lines) == 1
    await books_are_right(platform)


@pytest.mark.slow
async def test_effects_at_once_that_cannot_all_be_paid_are_each_done_once(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "at-once", marks.input(), budget={"steps": 2})
        await platform.until(run_id, RunStatus.WAITING)
        assert len(marks.lines) == 2
        # Each effect that was begun asks for itself.
        store = platform.resources.store.decisions
        while open_ones := await store.page(platform.user.id, run_id=run_id, status=DecisionStatus.PENDING, limit=9):
            for decision in open_ones:
                answer = {"budget": {"steps": 1}}
                await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, answer)
            run = await platform.until(run_id, RunStatus.WAITING, RunStatus.COMPLETED, RunStatus.FAILED)
    assert value_of(run) == ["0", "1", "2", "3", "4"]
    assert sorted(marks.lines) == ["0", "1", "2", "3", "4"]
    assert (await account(platform, run_id, Resource.STEPS))[1:] == (0, 5)
    await books_are_right(platform)


@pytest.mark.slow
async def test_each_run_that_a_handler_starts_counts_as_a_step(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "starts-many", {"count": 3}, budget={"steps": 2})
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("budget_exhausted", "3.no-input")
        assert len(await children(platform, run_id)) == 2
        await approve(platform, run_id, steps=1)
        await platform.completed(run_id)
    assert len(await children(platform, run_id)) == 3
    await books_are_right(platform)


# --- code that blocks the loop ---


@pytest.mark.slow
async def test_a_handler_that_blocks_the_loop_is_named_in_the_log_and_the_others_go_on_after_it(
    start_platform: StartPlatform, start_process: StartProcess, marks: Marks
) -> None:
    platform = await start_platform(lease_seconds=15.0, heartbeat_seconds=1.0)
    process = await start_process(platform, handlers_file=FILE)
    run_id = await submit(platform, "blocks", {"seconds": 2.0})
    await process.until_logged("the event loop is blocked")
    other = await submit(platform, "marks", marks.input())
    assert value_of(await platform.completed(run_id)) == "blocked"
    await platform.completed(other)
    [line] = [line for line in process.logged() if line["event"] == "the event loop is blocked"]
    assert "handlers.py" in line["stack"]
    assert "in blocks" in line["stack"]
    assert (await platform.run(run_id)).generation == 1


async def waiting_for_go(platform: Platform, marks: Marks, count: int) -> list[str]:
    """Runs that are in the middle of an effect, in the only worker."""
    runs = [await submit(platform, "waits-for-go", marks.input()) for _ in range(count)]
    await wait_until(lambda: marks.lines.count("second") == count, LONG_SECONDS)
    return runs


@pytest.mark.slow
async def test_a_handler_that_blocks_for_three_leases_goes_on_and_no_run_of_its_worker_is_lost(
    platform: Platform, start_process: StartProcess, marks: Marks
) -> None:
    """The leases are a second long. Another worker, of another queue, looks for those that are over."""
    async with worker(platform.settings.model_copy(update={"worker_queues": ["other"]})):
        await start_process(platform, handlers_file=FILE)
        others = await waiting_for_go(platform, marks, 4)
        run_id = await submit(platform, "blocks", {"seconds": 3.2})
        assert value_of(await platform.completed(run_id)) == "blocked"
        marks.go.touch()
        for other in others:
            run = await platform.completed(other)
            assert (run.generation, run.attempt) == (1, 1)
            await platform.ends_whole(other)
        assert (await platform.run(run_id)).generation == 1
        assert sorted(marks.lines) == sorted(["first", "second", "third"] * len(others))
        await platform.ends_whole(run_id)


@pytest.mark.slow
async def test_a_worker_that_is_blocked_for_ever_ends_and_another_one_carries_its_runs_out(
    start_platform: StartPlatform, start_process: StartProcess, marks: Marks
) -> None:
    platform = await start_platform(worker_crash_limit=1)
    process = await start_process(platform, handlers_file=FILE)
    others = await waiting_for_go(platform, marks, 4)
    run_id = await submit(platform, "blocks", {"seconds": 600.0})
    await process.until_logged("the event loop is blocked")
    await start_process(platform, handlers_file=FILE)
    marks.go.touch()
    assert await process.ended() == 1
    assert any("the event loop is blocked for too long" in str(line["event"]) for line in process.logged())
    for other in others:
        await platform.completed(other)  # the effect that was cut off may be done twice
        assert (await platform.run(other)).generation == 2
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "worker_lost"
    assert marks.lines.count("first") == marks.lines.count("third") == len(others)


# --- kill -9 while a run is being started ---


@pytest.mark.slow
async def test_kill_9_while_runs_are_started_makes_each_of_them_once(
    platform: Platform, start_process: StartProcess
) -> None:
    """The handler does nothing but start runs, so each of the kills falls into the making of one."""
    count, chance = 60, random.Random(7)
    run_id = await submit(platform, "starts-many", {"count": count})
    made = 0
    for _ in range(2):  # a third loss would be the run's last
        process = await start_process(platform, handlers_file=FILE, worker_concurrency=1)

        async def has_begun(before: int = made) -> bool:
            return len(await children(platform, run_id)) > before

        await wait_until(has_begun, LONG_SECONDS, "runs are started")
        await asyncio.sleep(chance.uniform(0, 0.1))
        await process.kill()
        made = len(await children(platform, run_id))
        assert made < count
    async with handling(platform):
        assert value_of(await platform.completed(run_id)) == count
        found = await children(platform, run_id)
        for child in found:
            await platform.completed(child.id)
    assert len(found) == count
    assert sorted(str((child.origin or {})["by"]) for child in found) == sorted(
        f"{number}.no-input" for number in range(1, count + 1)
    )
    await platform.ends_whole(run_id)
