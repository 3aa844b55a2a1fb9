"""Handlers that sleep, that start other runs, that are replayed and forked: they keep no slot meanwhile."""

from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.bus import CloudEvent, cloud_event
from backplane.domain.derived_runs import NewFork
from backplane.domain.events import EventType
from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.errors import Conflict, InvalidPlan
from backplane.settings import fixed
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.team import agents_looked_after
from tests.integration.worker.test_handlers import Marks, failed, handling, marks, submit, value_of
from tests.platform.workers import LONG_SECONDS, Platform
from tests.waiting import wait_until

__all__ = ["marks"]

pytestmark = pytest.mark.slow


async def holds_no_slot(platform: Platform) -> None:
    async def is_free() -> bool:
        return (await platform.resources.queue.statistics()).running == 0

    await wait_until(is_free, LONG_SECONDS, "no run is claimed")


async def over(platform: Platform, run_id: str) -> Run:
    """The run once it is over, which it must be by success; it may wait for others before."""
    run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)
    assert run.status is RunStatus.COMPLETED, run.error
    return run


async def until_it_sleeps(platform: Platform, run_id: str) -> None:
    async def sleeps() -> bool:
        run = await platform.run(run_id)
        return run.status is RunStatus.QUEUED and run.queued_at is not None and run.queued_at > datetime.now(UTC)

    await wait_until(sleeps, LONG_SECONDS, "the run sleeps")


# --- sleeping ---


async def test_a_handler_that_sleeps_holds_no_slot_and_goes_on_when_its_time_has_come(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "sleeps", {"seconds": 2.0})
        await until_it_sleeps(platform, run_id)
        await holds_no_slot(platform)
        run = await platform.completed(run_id)
        assert value_of(run) == "awake"
    reasons = [data.get("reason", "") for data in await platform.event_data(run_id, EventType.STATUS)]
    assert any(reason.startswith("its handler sleeps until") for reason in reasons)
    assert run.finished_at is not None
    assert (run.finished_at - run.created_at).total_seconds() >= 2.0
    await platform.ends_whole(run_id)


async def test_a_sleep_up_to_a_second_keeps_its_worker(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "sleeps", {"seconds": 0.1})
        assert (await platform.completed(run_id)).generation == 1


async def test_a_sleeping_run_that_an_emptied_redis_has_lost_wakes_in_time(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "sleeps", {"seconds": 3.0})
        await until_it_sleeps(platform, run_id)
        await holds_no_slot(platform)
        await platform.resources.redis.commands.flushall()
        run = await platform.completed(run_id)
    assert value_of(run) == "awake"
    assert run.finished_at is not None
    assert (run.finished_at - run.created_at).total_seconds() >= 3.0


async def test_a_sleeping_run_is_cancelled_at_once(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "sleeps", {"seconds": 600})
        await until_it_sleeps(platform, run_id)
        await platform.submission.cancel(platform.user, run_id)
        assert (await platform.run(run_id)).status is RunStatus.CANCELLED
    await platform.ends_whole(run_id)


async def test_the_time_limit_of_a_run_does_not_count_its_sleep(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "sleeps", {"seconds": 2.0}, timeout_seconds=1)
        assert value_of(await platform.completed(run_id)) == "awake"


# --- runs that start runs ---


async def test_a_parent_waits_for_its_children_without_a_slot_and_gets_what_they_gave(
    start_platform: StartPlatform,
) -> None:
    platform = await start_platform(worker_concurrency=1)
    async with handling(platform):
        children = [{"handler": "no-input"}, {"handler": "sleeps", "input": {"seconds": 1.5}}]
        run_id = await submit(platform, "parent", {"children": children})
        run = await over(platform, run_id)
    assert value_of(run) == ["nothing was needed", "awake"]
    started = await platform.resources.store.runs.page(platform.user.id)
    own = [one for one in started if one.parent_id == run_id]
    assert sorted(one.handler or "" for one in own) == ["no-input", "sleeps"]
    await platform.ends_whole(run_id)


async def test_a_child_that_fails_is_an_error_that_its_parent_may_catch(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "catches-its-child", "raises")
        value = value_of(await over(platform, run_id))
    assert value.startswith("child_failed: run it is failed: raises: LookupError: there is no such thing")


async def test_runs_that_start_themselves_end_at_a_depth(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "HANDLER_DEPTH_MAX", 2)
    async with handling(platform):
        _, message = await failed(platform, await submit(platform, "starts-itself"))
    assert "runs may start runs 2 deep" in message


async def test_a_child_may_have_a_plan_in_place_of_a_handler(platform: Platform) -> None:
    async with handling(platform):
        assert value_of(await over(platform, await submit(platform, "plan-child"))) is None


async def test_a_cancelled_parent_takes_its_children_with_it(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "parent", {"children": [{"handler": "never-ends"}]})
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "waits_for_run"
        [child] = await platform.resources.store.runs.unfinished_children(run_id)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
        await platform.until(child, RunStatus.CANCELLED)
    await platform.ends_whole(child)


@pytest.mark.parametrize("queue", ["nobody-serves-it", None])
async def test_a_child_that_is_not_over_in_its_time_is_cancelled_and_its_parent_goes_on(
    platform: Platform, queue: str | None
) -> None:
    given = {"handler": "never-ends", "timeout": 1.0, "queue": queue}
    async with handling(platform), agents_looked_after(platform):
        run_id = await submit(platform, "gives-time", given)
        await platform.until(run_id, RunStatus.WAITING)
        [child] = await platform.resources.store.runs.unfinished_children(run_id)
        assert value_of(await over(platform, run_id)) == "child_timeout"
        cancelled = await platform.until(child, RunStatus.CANCELLED)
        assert cancelled.error is not None
        assert cancelled.error.code == "message_expired"
    await platform.ends_whole(child)


@pytest.mark.parametrize(
    ("seconds", "value"), [(60, "nothing was needed"), (-1, "invalid_input"), ("x", "invalid_input")]
)
async def test_a_child_that_ends_in_its_time_is_as_any_other(platform: Platform, seconds: Any, value: str) -> None:
    async with handling(platform):
        run_id = await submit(platform, "gives-time", {"handler": "no-input", "timeout": seconds})
        assert value_of(await over(platform, run_id)) == value


async def test_a_failed_child_that_its_user_retries_has_all_time(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "gives-time", {"handler": "raises", "timeout": 60}, max_retries=0)
        assert value_of(await over(platform, run_id)) == "child_failed"
    [child] = [run for run in await platform.resources.store.runs.page(platform.user.id) if run.parent_id == run_id]
    assert child.expires_at is not None
    await platform.submission.retry(platform.user, child.id, uncertain_step_is_done=False)
    assert (await platform.run(child.id)).expires_at is None


async def test_a_parent_goes_on_when_its_child_is_cancelled_before_it_began(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "catches-its-child", "never-ends")
        await platform.until(run_id, RunStatus.WAITING)
        [child] = await platform.resources.store.runs.unfinished_children(run_id)
        await platform.submission.cancel(platform.user, child)
        assert value_of(await over(platform, run_id)).startswith("child_failed: run it is cancelled")


async def test_a_child_whose_end_found_redis_away_wakes_its_parent_all_the_same(platform: Platform) -> None:
    """The row is queued in the transaction that ends the child; the leading worker finds it."""
    async with handling(platform):
        run_id = await submit(platform, "parent", {"children": [{"handler": "sleeps", "input": {"seconds": 2.0}}]})
        await platform.until(run_id, RunStatus.WAITING)
        await platform.resources.redis.commands.flushall()
        assert value_of(await over(platform, run_id)) == ["awake"]


# --- replay, fork, going back ---


async def test_a_replay_gives_the_recorded_results_and_carries_nothing_out(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        await platform.completed(run_id)
        again = await platform.submission.replay(platform.user, run_id, None)
        assert value_of(await platform.completed(again.id))["done"] == ["0", "1", "2"]
    assert marks.lines == ["0", "1", "2"]


async def test_a_replay_that_executes_carries_all_out_again(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        await platform.completed(run_id)
        again = await platform.submission.replay(platform.user, run_id, None, execute=True)
        await platform.completed(again.id)
    assert marks.lines == ["0", "1", "2"] * 2


async def fork(platform: Platform, run_id: str, step: str | None, **values: Any) -> str:
    new = NewFork(new_run_id(), Priority.NORMAL, step, **values)
    made, events = await platform.resources.store.derived_runs.fork(platform.user.id, run_id, new, start=True)
    await platform.submission.push(made, events)
    return made.id


@pytest.mark.parametrize(("step", "lines"), [("2.mark-1", ["2"]), (None, ["0", "1", "2"])])
async def test_a_fork_goes_on_behind_an_effect_or_begins_anew(
    platform: Platform, marks: Marks, step: str | None, lines: list[str]
) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        await platform.completed(run_id)
        assert value_of(await platform.completed(await fork(platform, run_id, step)))["done"] == ["0", "1", "2"]
    assert marks.lines == ["0", "1", "2", *lines]


async def test_a_fork_of_a_handler_takes_no_plan(platform: Platform, marks: Marks) -> None:
    from backplane.domain.plans import Plan  # noqa: PLC0415

    plan = Plan.model_validate({"steps": [{"id": "a", "tool": "file_list"}]})
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        await platform.completed(run_id)
    with pytest.raises(InvalidPlan, match="is carried out by a handler, which has no plan"):
        await fork(platform, run_id, None, plan=plan)
    with pytest.raises(Conflict, match="a fork goes on after a step that was completed"):
        await fork(platform, run_id, "9.none")


async def test_a_retry_from_an_effect_does_it_and_all_after_it_again(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        await platform.completed(run_id)
        await platform.submission.retry_from(platform.user, run_id, "2.mark-1")
        await platform.until(run_id, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.COMPLETED)
        await platform.completed(run_id)
    assert marks.lines == ["0", "1", "2", "1", "2"]


# --- events ---


def shop(id: str, type: str = "order.paid", **data: Any) -> CloudEvent:
    return cloud_event({"specversion": "1.0", "id": id, "source": "/shop", "type": type, "data": data})


async def publish(platform: Platform, *events: CloudEvent) -> None:
    await platform.resources.store.bus.publish(platform.user.id, events)


async def wake(platform: Platform) -> None:
    """What the API and the controller do for runs whose wait has ended."""
    store = platform.resources.store

    async def woken() -> bool:
        await store.event_waits.time_out(10)
        for wait in await store.event_waits.matched(10, lease_seconds=0.2):
            found = await store.event_waits.wake(wait)
            if found.run is not None:
                await platform.submission.push(found.run, found.events)
                return True
        return False

    await wait_until(woken, LONG_SECONDS, "a run is woken")


async def test_a_handler_waits_for_an_event_without_a_slot_and_gets_it(platform: Platform) -> None:
    async with handling(platform):
        await publish(platform, shop("before", order=1))
        wanted = {"type": "order.*", "match": {"data": {"order": 2}}}
        run_id = await submit(platform, "waits-for-events", {"events": [wanted]})
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "event_required"
        await holds_no_slot(platform)
        await publish(platform, shop("other", order=1), shop("it", order=2))
        await wake(platform)
        assert value_of(await over(platform, run_id)) == [{"order": 2}]
    await platform.ends_whole(run_id)


async def test_an_event_that_does_not_come_in_time_is_none(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "waits-for-events", {"events": [{"type": "order.paid", "timeout": 0.3}]})
        await platform.until(run_id, RunStatus.WAITING)
        await wake(platform)
        assert value_of(await over(platform, run_id)) == [None]


async def test_a_handler_waits_for_several_events_at_once(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "waits-for-events", {"events": [{"type": "a"}, {"type": "b"}]})
        for name in ("b", "a"):
            await platform.until(run_id, RunStatus.WAITING)
            await publish(platform, shop(name, name, it=name))
            await wake(platform)
        assert value_of(await over(platform, run_id)) == [{"it": "a"}, {"it": "b"}]


async def test_a_type_that_is_none_is_an_error_of_the_effect(platform: Platform) -> None:
    async with handling(platform):
        code, message = await failed(platform, await submit(platform, "waits-for-events", {"events": [{"type": "?"}]}))
    assert code == "invalid_input"
    assert message.startswith("type: ")
