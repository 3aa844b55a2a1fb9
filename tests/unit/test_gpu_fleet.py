"""GPU machines over simulated time: a day with its line and prices, a provider that is away, and seeds of faults."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from backplane.domain.gpus import MachineState, SpendingCaps, cost
from backplane.errors import Unavailable
from tests.chaos.gpu_seeds import complaints_of
from tests.gpu_machines import CENTS, SPEC, Faults, MemoryMachines, World, wanted


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """To write it would take most of the time."""
    with capture_logs():
        yield


MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def states(world: World) -> list[str]:
    assert isinstance(world.machines, MemoryMachines)
    return sorted(row.state.value for row in world.machines.rows.values() if row.state is not MachineState.ENDED)


async def test_machines_follow_the_line_and_each_is_registered_while_it_serves() -> None:
    world = World.of()
    await world.run(6 * MINUTE)
    assert states(world) == ["ready"]
    world.line.waiting = 101
    await world.run(30 * MINUTE)
    assert states(world) == ["ready"] * 5
    assert len(await world.servers.list_all()) == 5
    world.line.waiting = 9
    await world.run(40 * MINUTE)
    assert states(world) == ["ready"]
    assert len(await world.servers.list_all()) == 1
    assert len(world.account.running()) == 1
    assert len(world.account.creates) == 5, "one machine a start, and none twice"


async def test_a_machine_that_is_to_stop_gets_no_calls_and_ends_those_it_has() -> None:
    world = World.of()
    await world.run(6 * MINUTE)
    [row] = await world.machines.open()
    world.line.calls = {f"gpu-{row.id}": 1}
    await world.machines.stop(row.id, "an operator asks for it")
    await world.run(MINUTE)
    assert (await world.machines.get(row.id)).state is MachineState.DRAINING
    assert [server.draining for server in await world.servers.list_all() if server.machine_id == row.id] == [True]
    world.line.calls = {}
    await world.run(MINUTE)
    assert (await world.machines.get(row.id)).state is MachineState.ENDED


async def test_a_machine_that_a_person_asked_for_and_nobody_offers_ends_by_itself_and_delays_no_other() -> None:
    world = World.of()
    await world.run(6 * MINUTE)
    asked = replace(wanted(now=world.clock.now, by="somebody"), spec=replace(SPEC, gpu_type="H100"))
    await world.machines.want(asked, 5)
    await world.run(9 * MINUTE)
    assert (await world.machines.get(asked.id)).reason == "there is no offer of 1 x H100 within the price"
    world.line.waiting = 101
    await world.run(2 * MINUTE)
    ended = await world.machines.get(asked.id)
    assert (ended.state, ended.reason) == (
        MachineState.ENDED,
        "it could not be had within 10 minutes: there is no offer of 1 x H100 within the price",
    )
    await world.run(2 * MINUTE)
    assert len(states(world)) > 1


async def test_a_clock_that_was_a_day_ahead_leaves_no_machine_alone() -> None:
    world = World.of()
    world.line.waiting = 101
    await world.run(6 * MINUTE)
    right = world.clock.now
    world.clock.now += 24 * HOUR
    await world.run(3 * MINUTE)
    world.clock.now = right
    there = len(states(world))
    await world.run(20 * MINUTE)
    assert len(states(world)) > there, "it decides again"
    world.line.waiting = 0
    [first, *_] = await world.machines.open()
    for lost in world.account.running():
        lost.ended = world.clock.now
    await world.run(5 * MINUTE)
    assert (await world.machines.get(first.id)).state is MachineState.ENDED


async def test_a_machine_that_is_stopped_while_it_starts_has_not_failed_and_the_next_does_not_wait() -> None:
    world = World.of(faults=Faults(never_healthy=1.0))
    await world.run(2 * MINUTE)
    [row] = await world.machines.open()
    assert row.health_tries
    await world.machines.stop(row.id, "an operator asks for it")
    await world.run(3 * MINUTE)
    assert (await world.machines.get(row.id)).state is MachineState.ENDED
    assert len(world.account.creates) == 2


@pytest.mark.slow
async def test_a_machine_that_never_serves_is_given_up_after_thirty_tries_and_the_next_waits() -> None:
    world = World.of(faults=Faults(never_healthy=1.0))
    await world.run(5 * MINUTE)
    [row] = await world.machines.open()
    assert row.state is MachineState.STARTING
    await world.run(3 * MINUTE)
    assert (await world.machines.get(row.id)).state is MachineState.ENDED
    assert "30 tries" in (await world.machines.get(row.id)).reason
    await world.run(2 * HOUR)
    assert len(world.account.creates) < 12, "the pauses between them grow"


async def test_a_machine_that_is_taken_away_is_replaced() -> None:
    world = World.of()
    await world.run(6 * MINUTE)
    [lost] = world.account.running()
    lost.ended = world.clock.now
    await world.run(MINUTE / 3)
    assert await world.servers.list_all() == []
    await world.run(10 * MINUTE)
    assert states(world) == ["ready"]
    assert len(world.account.running()) == 1


async def test_while_the_provider_is_away_for_an_hour_nothing_is_started_or_forgotten() -> None:
    world = World.of()
    await world.run(6 * MINUTE)
    world.line.waiting = 500
    world.account.faults.away = ((world.clock.now, world.clock.now + HOUR),)
    await world.run(HOUR - MINUTE)
    assert len(world.account.creates) == 1
    with pytest.raises(Unavailable):
        await world.fleet().look()
    assert isinstance(world.machines, MemoryMachines)
    assert world.machines.noted is not None
    assert world.machines.noted.error == "no answer"
    await world.run(30 * MINUTE)
    assert states(world).count("ready") >= 3


async def test_a_price_that_is_first_seen_when_the_provider_is_back_is_booked_from_the_beginning() -> None:
    world = World.of(faults=Faults(price_rise=1.0))
    while not world.account.creates:
        await world.tick()
    world.account.faults.away = ((world.clock.now, world.clock.now + 2 * HOUR),)
    await world.run(2 * HOUR + 5 * MINUTE)
    [row], [real] = await world.machines.open(), world.account.running()
    assert row.charged_until is not None
    assert row.charged_until.hour == world.clock.now.hour, "whole hours are booked"
    assert row.charged_micro_usd >= cost(real.price, row.charged_until - real.began) > 0


@pytest.mark.slow
async def test_over_the_cap_of_the_day_all_stop_in_time_although_the_provider_is_away_for_an_hour() -> None:
    caps = SpendingCaps(hour=200 * CENTS, day=350 * CENTS)
    world = World.of(caps=caps)
    world.line.waiting = 500
    while not any(row.stop_reason for row in await world.machines.open()):
        await world.tick()
    world.account.faults.away = ((world.clock.now, world.clock.now + HOUR),)
    await world.run(HOUR * 5 / 4)
    spent = sum(one.cost_at(world.clock.now) for one in world.account.machines.values() if len(one.contract) > 1)
    assert 100 * CENTS < spent <= caps.day
    assert world.account.running() == []


@pytest.mark.slow
async def test_a_day_costs_to_the_cent_what_its_machines_cost() -> None:
    world = World.of(seed=3)
    assert isinstance(world.machines, MemoryMachines)
    for hour in range(16):
        world.line.waiting = (0, 5, 40, 150, 300, 150, 40, 5, 0)[hour % 9]
        await world.run(HOUR)
    for row in await world.machines.open():
        await world.machines.stop(row.id, "the day is over")
    world.rules = world.rules.__class__(least=0)
    world.fleets.clear()
    await world.run(10 * MINUTE)
    assert await world.machines.open() == []
    booked = sum(charge.micro_usd for _, charge in world.machines.booked)
    assert booked == sum(row.charged_micro_usd for row in world.machines.rows.values())
    real = [one for one in world.account.machines.values() if one.contract not in world.account.foreign]
    used = sum(one.cost_at(world.clock.now) for one in real)
    most = sum(cost(one.price, 2 * MINUTE) for one in real)
    assert used <= booked <= used + most


@pytest.mark.parametrize("seed", range(2))
async def test_a_seed_of_faults_loses_no_machine_makes_none_twice_and_keeps_the_caps(seed: int) -> None:
    assert await complaints_of(seed, hours=0.4, quiet=0.3) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 50, 10))
async def test_longer_seeds_of_faults(first: int) -> None:
    for seed in range(first, first + 10):
        assert await complaints_of(seed) == [], f"seed {seed}"
