"""GPU machines in the store: written first, started once, within the caps, and paid for to the millionth of a dollar.

The rows in memory that the simulations use pass the same tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from backplane.domain.budgets import Resource, account_id
from backplane.domain.gpus import (
    LEDGER_OWNER,
    FleetStatus,
    Machine,
    MachineState,
    Offer,
    RegisteredServer,
    SpendingCaps,
    cost,
)
from backplane.errors import NotFound
from backplane.store import Database, GpuMachines, ModelServerTable, Store
from tests.gpu_machines import CENTS, MemoryMachines, MemoryServers, wanted

NOW = datetime(2026, 11, 30, 10, 45, tzinfo=UTC)
OFFER = Offer("7", "RTX_4090", 1, 40 * CENTS)
CAPS = SpendingCaps(hour=100 * CENTS, day=2000 * CENTS)
FIRST, SECOND, THIRD = (f"{number:012x}" for number in range(3))


EVERY_KIND = ["sqlite_database", "postgres_database", "memory"]


@asynccontextmanager
async def tables(request: pytest.FixtureRequest) -> AsyncIterator[tuple[GpuMachines, ModelServerTable]]:
    if request.param == "memory":
        yield cast(GpuMachines, MemoryMachines()), cast(ModelServerTable, MemoryServers())
        return
    database = Database(request.getfixturevalue(request.param))
    yield GpuMachines(database), ModelServerTable(database)
    await database.close()


@pytest.fixture(params=EVERY_KIND)
async def machines(request: pytest.FixtureRequest) -> AsyncIterator[GpuMachines]:
    async with tables(request) as (machines, _):
        yield machines


@pytest.fixture(params=EVERY_KIND)
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[ModelServerTable]:
    async with tables(request) as (machines, servers):
        await machines.want(wanted(FIRST), 5)
        yield servers


async def made(machines: GpuMachines, machine_id: str, now: datetime = NOW) -> Machine:
    """One that the provider has made."""
    machine = wanted(machine_id, now, by="an operator")
    assert await machines.want(machine, 9) == machine
    reserved = await machines.reserve(machine, OFFER, CAPS, now)
    assert isinstance(reserved, Machine)
    there = await machines.change(reserved, replace(reserved, state=MachineState.STARTING, contract=f"c{machine_id}"))
    assert there is not None
    return there


async def test_what_is_wanted_is_there_as_it_was_written(machines: GpuMachines) -> None:
    machine = replace(wanted(FIRST, NOW), reason="200 wait")
    await machines.want(machine, 5)
    assert await machines.open() == [machine]
    assert await machines.get(FIRST) == machine
    assert await machines.known([FIRST, SECOND]) == {FIRST}
    with pytest.raises(NotFound):
        await machines.get(SECOND)


async def test_the_autoscaler_wants_one_at_a_time_and_an_operator_as_many_as_there_may_be(
    machines: GpuMachines,
) -> None:
    assert await machines.want(wanted(FIRST, NOW), 2)
    assert await machines.want(wanted(SECOND, NOW), 2) is None
    assert await machines.want(wanted(SECOND, NOW, by="an operator"), 2)
    assert await machines.want(wanted(THIRD, NOW, by="an operator"), 2) is None


async def test_the_price_is_reserved_before_the_provider_is_called(machines: GpuMachines) -> None:
    machine = wanted(FIRST, NOW)
    await machines.want(machine, 5)
    reserved = await machines.reserve(machine, OFFER, CAPS, NOW)
    assert isinstance(reserved, Machine)
    assert (reserved.state, reserved.micro_usd_per_hour, reserved.offer) == (MachineState.CREATING, 40 * CENTS, "7")
    assert (await machines.spending(NOW)).per_hour == 40 * CENTS
    assert await machines.reserve(machine, OFFER, CAPS, NOW) is None, "another was first"


async def test_a_price_over_a_cap_is_not_reserved(machines: GpuMachines) -> None:
    await made(machines, FIRST)
    await made(machines, SECOND)
    machine = wanted(THIRD, NOW, by="an operator")
    await machines.want(machine, 5)
    over_the_hour = await machines.reserve(machine, OFFER, CAPS, NOW)
    assert isinstance(over_the_hour, str)
    assert "GPU_USD_PER_HOUR_MAX is $1" in over_the_hour
    over_the_day = await machines.reserve(machine, OFFER, SpendingCaps(10**9, 200 * CENTS), NOW)
    assert isinstance(over_the_day, str)
    assert "GPU_USD_PER_DAY_MAX" in over_the_day
    assert (await machines.get(THIRD)).state is MachineState.WANTED


async def test_of_two_changes_at_once_one_counts(machines: GpuMachines) -> None:
    machine = await made(machines, FIRST)
    both = await asyncio.gather(*(machines.change(machine, replace(machine, reason=str(one))) for one in range(2)))
    [first] = [one for one in both if one is not None]
    assert await machines.get(FIRST) == first
    assert await machines.change(machine, machine) is None


async def test_an_end_is_asked_for_once_and_with_its_first_reason(machines: GpuMachines) -> None:
    machine = await made(machines, FIRST)
    await machines.stop(FIRST, "first")
    stopped = await machines.stop(FIRST, "second")
    assert (stopped.stop_reason, stopped.version) == ("first", machine.version + 1)
    assert await machines.change(machine, machine) is None, "the one before knows nothing of it"


async def test_a_machine_is_charged_by_the_hour_and_never_twice_for_a_time(machines: GpuMachines) -> None:
    machine = await made(machines, FIRST)
    charged = await machines.charge(machine, NOW + timedelta(hours=1, minutes=45))
    assert charged is not None
    assert [(one.since.hour, one.micro_usd) for one in await machines.charges(FIRST)] == [
        (10, 10 * CENTS),
        (11, 40 * CENTS),
        (12, 20 * CENTS),
    ]
    assert charged.charged_micro_usd == 70 * CENTS
    assert await machines.charge(charged, NOW) == charged, "what is booked stays"
    assert await machines.charge(machine, NOW + timedelta(hours=3)) is None, "another has charged it"


async def test_the_day_counts_what_was_booked_today_and_what_is_not_booked_yet(machines: GpuMachines) -> None:
    evening = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
    machine = await made(machines, FIRST, evening)
    assert (await machines.spending(evening + timedelta(minutes=15))).today == 10 * CENTS
    midnight = evening + timedelta(minutes=30)
    assert await machines.charge(machine, midnight)
    spending = await machines.spending(midnight + timedelta(minutes=45))
    assert (spending.today, spending.day_left) == (30 * CENTS, timedelta(hours=23, minutes=15))


async def test_one_that_ended_without_having_served_counts_as_a_failure(machines: GpuMachines) -> None:
    for machine_id, tries, ready in ((FIRST, 30, None), (SECOND, 0, NOW), (THIRD, 0, None)):
        machine = await made(machines, machine_id)
        ended = replace(machine, state=MachineState.ENDED, ended_at=NOW, health_tries=tries, ready_at=ready)
        assert await machines.change(machine, replace(ended, micro_usd_per_hour=0))
        assert await machines.spending(NOW)
    assert await machines.failures(NOW - timedelta(hours=1)) == [NOW]
    assert await machines.failures(NOW + timedelta(seconds=1)) == []
    assert await machines.open() == []


async def test_a_page_has_the_youngest_first_and_ended_ones_where_they_are_wanted(machines: GpuMachines) -> None:
    ids = [FIRST, SECOND, THIRD]
    for minutes, machine_id in enumerate(ids):
        machine = wanted(machine_id, NOW + timedelta(minutes=minutes), by="an operator")
        await machines.want(machine, 5)
        if machine_id == SECOND:
            await machines.change(machine, replace(machine, state=MachineState.ENDED, ended_at=NOW))
    assert [one.id for one in await machines.page(before=None, limit=9, ended=False)] == [THIRD, FIRST]
    assert [one.id for one in await machines.page(before=None, limit=2, ended=True)] == [THIRD, SECOND]
    later = await machines.page(before=NOW + timedelta(minutes=1), limit=9, ended=True)
    assert [one.id for one in later] == [FIRST]


async def test_what_was_seen_last_is_kept_and_nothing_of_what_was_before(machines: GpuMachines) -> None:
    assert await machines.status() is None
    await machines.note(FleetStatus(NOW, 3, "nothing changes", "", ()))
    last = FleetStatus(NOW + timedelta(minutes=1), None, "nobody knows", "no answer", (OFFER,))
    await machines.note(last)
    assert await machines.status() == last


async def test_model_servers_come_drain_and_go(servers: ModelServerTable) -> None:
    server = RegisteredServer(
        name=f"gpu-{FIRST}",
        pool="gpu",
        kind="ollama",
        url="https://192.0.2.1:4000",
        slots=4,
        machine_id=FIRST,
        provider="vastai",
        models=("m",),
        gpu_type="RTX_4090",
        micro_usd_per_hour=OFFER.micro_usd_per_hour,
    )
    await servers.register(server)
    await servers.register(server)
    assert await servers.list_all() == [server]
    await servers.drain(server.name)
    assert await servers.list_all() == [replace(server, draining=True)]
    await servers.deregister(server.name)
    await servers.deregister(server.name)
    assert await servers.list_all() == []


async def test_what_a_machine_cost_is_in_the_ledger_which_adds_up(store: Store) -> None:
    machine = await made(store.gpu_machines, FIRST)
    odd = replace(machine, micro_usd_per_hour=333_333)
    changed = await store.gpu_machines.change(machine, odd)
    assert changed is not None
    assert await store.gpu_machines.charge(changed, NOW + timedelta(hours=2, seconds=1))
    parts = [timedelta(minutes=15), timedelta(hours=1), timedelta(minutes=45, seconds=1)]
    spent = sum(cost(333_333, part) for part in parts)
    account = await store.ledger.get(account_id(LEDGER_OWNER, Resource.MICRO_USD))
    assert (account.balance, account.spent) == (0, spent)
    assert not (await store.ledger.audit()).differences
    entries = await store.ledger.entries(account.id, limit=20)
    assert len(entries) == 2 * len(parts)
    assert "1 x RTX_4090" in entries[0].note


async def test_two_controllers_that_reserve_at_once_stay_within_the_cap(store: Store, second_store: Store) -> None:
    for number in range(6):
        await store.gpu_machines.want(wanted(f"{number:012x}", NOW, by="an operator"), 9)
    tables = (store.gpu_machines, second_store.gpu_machines)
    results = await asyncio.gather(
        *(
            table.reserve(wanted(f"{number:012x}", NOW, by="an operator"), OFFER, CAPS, NOW)
            for number in range(6)
            for table in tables
        )
    )
    assert sum(isinstance(result, Machine) for result in results) == 2
    assert (await store.gpu_machines.spending(NOW)).per_hour == 80 * CENTS
