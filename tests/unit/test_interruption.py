"""What ends the work of a run from outside, and how gently."""

import asyncio

import pytest

from worker.run import interruption as module
from worker.run.interruption import Cause, Interrupted, Interruption


@pytest.fixture
def interruption() -> Interruption:
    return Interruption()


class Work:
    """Work that lasts until it is let go, or cut off."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cut_off = False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cut_off = True
            raise
        return "done"


async def test_uninterrupted_work_gives_its_result(interruption: Interruption) -> None:
    work = Work()
    work.let_go.set()
    assert await interruption.guard(work()) == "done"


async def test_what_the_work_raises_comes_out_of_the_guard(interruption: Interruption) -> None:
    async def fail() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        await interruption.guard(fail())


@pytest.mark.parametrize("cause", list(Cause))
async def test_interrupted_work_is_cut_off_and_the_cause_is_raised(interruption: Interruption, cause: Cause) -> None:
    work = Work()
    guarded = asyncio.create_task(interruption.guard(work()))
    await work.begun.wait()
    interruption.set(cause)
    with pytest.raises(Interrupted) as interrupted:
        await guarded
    assert interrupted.value.cause is cause
    assert work.cut_off


async def test_the_guard_waits_until_the_work_has_cleaned_up(interruption: Interruption) -> None:
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            interruption.set(Cause.CANCELLED)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned.set()

    with pytest.raises(Interrupted):
        await interruption.guard(work())
    assert cleaned.is_set()


async def test_the_first_cause_wins(interruption: Interruption) -> None:
    interruption.set(Cause.SUPERSEDED)
    interruption.set(Cause.CANCELLED)
    with pytest.raises(Interrupted) as interrupted:
        interruption.check()
    assert interrupted.value.cause is Cause.SUPERSEDED


async def test_changes_that_are_on_their_way_may_end(interruption: Interruption) -> None:
    work = Work()

    async def changing() -> str:
        interruption.changes_begin()
        return await work()

    guarded = asyncio.create_task(interruption.guard(changing()))
    await work.begun.wait()
    interruption.set(Cause.CANCELLED)
    await asyncio.sleep(0)
    work.let_go.set()
    assert await guarded == "done"


async def test_changes_that_do_not_end_are_cut_off_after_the_grace(
    interruption: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHANGES_GRACE_SECONDS", 0.01)
    work = Work()

    async def changing() -> str:
        interruption.changes_begin()
        return await work()

    guarded = asyncio.create_task(interruption.guard(changing()))
    await work.begun.wait()
    interruption.set(Cause.DRAINED)
    with pytest.raises(Interrupted):
        await guarded
    assert work.cut_off


async def test_changes_of_a_run_that_another_worker_has_are_cut_off_at_once(interruption: Interruption) -> None:
    work = Work()

    async def changing() -> str:
        interruption.changes_begin()
        return await work()

    guarded = asyncio.create_task(interruption.guard(changing()))
    await work.begun.wait()
    interruption.set(Cause.SUPERSEDED)
    with pytest.raises(Interrupted):
        await guarded
    assert work.cut_off


async def test_changes_may_still_begin_when_the_worker_drains(interruption: Interruption) -> None:
    interruption.request_drain()
    interruption.changes_begin()


async def test_changes_may_not_begin_when_the_work_is_cut_off(interruption: Interruption) -> None:
    interruption.set(Cause.SUPERSEDED)
    with pytest.raises(Interrupted):
        interruption.changes_begin()


async def test_work_of_a_worker_that_drains_goes_on_until_its_next_check(interruption: Interruption) -> None:
    work = Work()
    guarded = asyncio.create_task(interruption.guard(work()))
    await work.begun.wait()
    interruption.request_drain()
    work.let_go.set()
    assert await guarded == "done"
    with pytest.raises(Interrupted) as interrupted:
        interruption.check()
    assert interrupted.value.cause is Cause.DRAINED


async def test_a_pause_ends_when_interrupted(interruption: Interruption) -> None:
    pausing = asyncio.create_task(interruption.pause(600))
    await asyncio.sleep(0)
    interruption.set(Cause.TIMED_OUT)
    with pytest.raises(Interrupted) as interrupted:
        await pausing
    assert interrupted.value.cause is Cause.TIMED_OUT


async def test_a_pause_ends_when_the_worker_drains(interruption: Interruption) -> None:
    pausing = asyncio.create_task(interruption.pause(600))
    await asyncio.sleep(0)
    interruption.request_drain()
    with pytest.raises(Interrupted) as interrupted:
        await pausing
    assert interrupted.value.cause is Cause.DRAINED


async def test_a_pause_that_nobody_interrupts_just_ends(interruption: Interruption) -> None:
    await interruption.pause(0)


async def test_of_two_at_once_only_the_one_that_changes_something_may_end(interruption: Interruption) -> None:
    idle, busy = Work(), Work()

    async def changing() -> str:
        interruption.changes_begin()
        return await busy()

    cut_off, finishing = (asyncio.create_task(interruption.guard(work)) for work in (idle(), changing()))
    await idle.begun.wait()
    await busy.begun.wait()
    interruption.set(Cause.CANCELLED)
    with pytest.raises(Interrupted):
        await cut_off
    busy.let_go.set()
    assert await finishing == "done"


async def test_work_above_one_that_changes_something_waits_for_it_and_not_longer(interruption: Interruption) -> None:
    below, rest = Work(), Work()

    async def changing() -> str:
        interruption.changes_begin()
        return await below()

    async def above() -> str:
        done = await interruption.guard(changing())
        interruption.check()
        return done + await rest()

    guarded = asyncio.create_task(interruption.guard(above()))
    await below.begun.wait()
    interruption.set(Cause.CANCELLED)
    await asyncio.sleep(0)
    assert not guarded.done()
    below.let_go.set()
    with pytest.raises(Interrupted):
        await guarded
    assert not below.cut_off
    assert not rest.begun.is_set()
