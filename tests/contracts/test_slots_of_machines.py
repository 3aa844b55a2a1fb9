"""Model slots of servers that come and go: what changes while calls wait, and what others see of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from backplane.limits.slots.base import NO_SLOTS, SlotLoad, SlotRequest, Slots
from backplane.limits.slots.redis import RedisSlots
from backplane.redis.client import RedisClients
from tests.waiting import wait_until


@asynccontextmanager
async def working(clients: RedisClients) -> AsyncIterator[RedisSlots]:
    slots = RedisSlots(clients, lease_seconds=600.0, turn_seconds=600.0)
    running = asyncio.create_task(slots.run())
    try:
        yield slots
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def slots(clients: RedisClients) -> AsyncIterator[RedisSlots]:
    async with working(clients) as slots:
        yield slots


class Call:
    """One that waits for its slot, and keeps it until it is ended."""

    def __init__(self, slots: Slots, name: str, parallel: int) -> None:
        self.places: list[int] = []
        self.has_slot = asyncio.Event()
        self._ends = asyncio.Event()
        request = SlotRequest("pool", "m", "u", f"run-{name}", name)
        self._task = asyncio.create_task(self._hold(slots, request, parallel))

    async def _hold(self, slots: Slots, request: SlotRequest, parallel: int) -> None:
        async with slots.hold(request, parallel=parallel, models=0, on_wait=self.places.append):
            self.has_slot.set()
            await self._ends.wait()

    async def end(self) -> None:
        self._ends.set()
        if not self.has_slot.is_set():
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def test_without_any_slot_calls_wait_until_there_are_some(slots: RedisSlots) -> None:
    calls = [Call(slots, str(number), NO_SLOTS) for number in range(3)]
    await wait_until(lambda: all(call.places for call in calls))
    assert await slots.load(["pool"]) == {"pool": SlotLoad(0, 3)}
    slots.resize("pool", parallel=2)
    await wait_until(lambda: sum(call.has_slot.is_set() for call in calls) == 2)
    assert await slots.load(["pool"]) == {"pool": SlotLoad(2, 1)}
    slots.resize("pool", parallel=3)
    await wait_until(lambda: all(call.has_slot.is_set() for call in calls))
    for call in calls:
        await call.end()
    assert await slots.load(["pool"]) == {"pool": SlotLoad(0, 0)}


async def test_with_fewer_slots_those_who_have_one_keep_it_and_nobody_gets_one(slots: RedisSlots) -> None:
    calls = [Call(slots, str(number), 2) for number in range(3)]
    await wait_until(lambda: sum(call.has_slot.is_set() for call in calls) == 2)
    slots.resize("pool", parallel=1)
    first, second = [call for call in calls if call.has_slot.is_set()]
    [third] = [call for call in calls if not call.has_slot.is_set()]
    await first.end()
    assert (await slots.load(["pool"]))["pool"] == SlotLoad(1, 1)
    await second.end()
    await wait_until(third.has_slot.is_set)
    await third.end()


async def test_another_process_sees_the_calls_of_all_and_nothing_of_a_server_that_is_forgotten(
    slots: RedisSlots, clients: RedisClients
) -> None:
    call = Call(slots, "a", 1)
    await wait_until(call.has_slot.is_set)
    async with working(clients) as other:
        assert await other.load(["pool", "nobody"]) == {"pool": SlotLoad(1, 0), "nobody": SlotLoad(0, 0)}
        await call.end()
        await other.forget("pool")
    assert await clients.commands.exists(clients.keys.model_server("pool")) == 0


async def test_a_server_that_nobody_uses_can_be_resized(slots: RedisSlots) -> None:
    slots.resize("never used", parallel=4)
    assert await slots.load([]) == {}
