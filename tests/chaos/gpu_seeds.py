"""GPU machines under faults: `python -m tests.chaos.gpu_seeds --seeds 1000`.

Each seed is some hours of two controllers that die, and of an account that fails in every way that `Faults` knows, in
simulated time, and a quiet hour at the end. What must hold at each moment: no machine that nobody looks after, none
made twice, nothing over the caps, no machine of somebody else touched; and what is booked is never less than what was
used, and not much more.
"""

import argparse
import asyncio
import logging
import random
import sys
from collections import Counter
from datetime import datetime, timedelta

import structlog

from backplane.domain.gpus import MachineState, SpendingCaps, cost, day_of, label_of, machine_id_of
from tests.gpu_machines import CAPS, CENTS, PLATFORM, START, Faults, MemoryMachines, RealMachine, World

UNSEEN_MOST = timedelta(minutes=8)
"""How long a machine may run that no row wants: a create that came late, and an account that does not answer."""
BOOKED_MORE_MOST = timedelta(minutes=6)
"""What may be booked of a machine before it was made and after its end: the call, and the lists that lack it."""
OVER_MOST = timedelta(minutes=15)
"""How long all may cost more than the cap an hour because a machine costs more than its offer said."""


def faults_of(draw: random.Random) -> Faults:
    def chance(most: float) -> float:
        return draw.choice((0.0, draw.uniform(0, most)))

    began = START + timedelta(minutes=draw.uniform(0, 150))
    return Faults(
        create_unanswered=chance(0.5),
        made_late=chance(0.2),
        create_refused=chance(0.5),
        create_refused_and_made=chance(0.3),
        unanswered=chance(0.3),
        destroy_lies=chance(0.6),
        never_healthy=chance(0.5),
        price_rise=chance(0.4),
        taken_away=chance(0.01),
        killed=chance(0.1),
        away=((began, began + timedelta(hours=1)),) if draw.random() < 0.3 else (),
    )


class Watcher:
    """Looks at the account and the rows after each tick."""

    def __init__(self, world: World, machines: MemoryMachines) -> None:
        self._world, self._machines = world, machines
        self.complaints: list[str] = []
        self._unseen: dict[str, datetime] = {}
        self._over_since: datetime | None = None
        self._twice_since: datetime | None = None

    def look(self) -> None:
        world, now = self._world, self._world.clock.now
        running = world.account.running()
        rows = [row for row in self._machines.rows.values() if row.ended_at is None]
        labels = {label_of(PLATFORM, row) for row in rows if row.state is not MachineState.WANTED}
        # While the account does not answer nobody can end anything.
        if world.account.is_away():
            self._unseen.clear()
        unseen = {one.contract for one in running if one.label not in labels}
        self._unseen = {contract: self._unseen.get(contract, now) for contract in unseen}
        for contract, since in self._unseen.items():
            if now - since > UNSEEN_MOST:
                self._complain(f"machine {contract} runs and nobody looks after it")
        twice = [
            machine_id
            for machine_id, count in Counter(machine_id_of(PLATFORM, one.label) for one in running).items()
            if count > 1
        ]
        self._twice_since = (self._twice_since or now) if twice and not world.account.is_away() else None
        if self._twice_since and (not world.account.faults.made_late or now - self._twice_since > UNSEEN_MOST):
            self._complain(f"machine {twice[0]} was made twice")
        if len(rows) > world.rules.most:
            self._complain(f"{len(rows)} machines, more than {world.rules.most}")
        self._look_at_prices(running, now)
        if any(machine.ended is not None for machine in world.account.foreign.values()):
            self._complain("a machine of somebody else was ended")

    def _look_at_prices(self, running: list[RealMachine], now: datetime) -> None:
        caps = self._world.caps
        if sum(one.price for one in running) > caps.hour:
            # While the account does not answer nobody sees what a machine costs.
            self._over_since = now if self._world.account.is_away() else self._over_since or now
            if not (self._world.account.faults.price_rise or self._world.account.faults.made_late):
                self._complain("machines cost more than the cap an hour")
            elif now - self._over_since > OVER_MOST:
                self._complain("machines cost more than the cap an hour for long")
        else:
            self._over_since = None
        day = day_of(now)
        today = sum(
            cost(one.price, (one.ended or now) - max(one.began, day))
            for one in self._world.account.machines.values()
            if one.contract not in self._world.account.foreign and (one.ended or now) > day
        )
        if today > caps.day:
            self._complain(f"the day has cost {today / 1e6:.2f} dollars, more than {caps.day / 1e6:.2f}")

    def look_at_the_end(self) -> None:
        account, machines = self._world.account, self._machines
        labels = [label_of(PLATFORM, row) for row in machines.rows.values() if row.ended_at is None]
        for one in account.running():
            if one.label not in labels:
                self._complain(f"machine {one.contract} runs in the end and has no row")
        if len(account.creates) != len(set(account.creates)):
            self._complain("a label was used twice")
        for row in machines.rows.values():
            booked = sum(charge.micro_usd for machine_id, charge in machines.booked if machine_id == row.id)
            if booked != row.charged_micro_usd:
                self._complain(f"machine {row.id} has {row.charged_micro_usd} in its row and {booked} in the books")
            real = [one for one in account.machines.values() if one.contract == row.contract]
            if row.ended_at is not None and real:
                self._look_at_money(row.id, booked, real[0])

    def _look_at_money(self, machine_id: str, booked: int, real: RealMachine) -> None:
        used = real.cost_at(self._world.clock.now)
        more = cost(real.price, BOOKED_MORE_MOST) + (cost(real.price, timedelta(hours=1.2)) * bool(self._away()))
        if not used <= booked <= used + more:
            self._complain(f"machine {machine_id} has used {used} and {booked} are booked")

    def _away(self) -> tuple[tuple[datetime, datetime], ...]:
        return self._world.account.faults.away

    def _complain(self, words: str) -> None:
        if len(self.complaints) < 5:
            self.complaints.append(f"{self._world.clock.now:%H:%M:%S}: {words}")


async def complaints_of(seed: int, hours: float = 3.0, quiet: float = 1.0) -> list[str]:
    """What is wrong after so many hours with the faults of this seed, and so many quiet ones."""
    draw = random.Random(seed)
    caps = draw.choice((CAPS, SpendingCaps(CAPS.hour, 400 * CENTS), SpendingCaps(110 * CENTS, CAPS.day)))
    world = World.of(seed, faults_of(draw), caps=caps)
    assert isinstance(world.machines, MemoryMachines)
    watcher = Watcher(world, world.machines)
    controllers = draw.choice((1, 1, 2))
    for is_quiet in (False, True):
        if is_quiet:
            away = world.account.faults.away
            # What was made late, or at a higher price, before may still be there.
            before = world.account.faults
            world.account.faults = Faults(
                away=away, price_rise=before.price_rise and 1e-9, made_late=before.made_late and 1e-9
            )
        until = world.clock.now + timedelta(hours=quiet if is_quiet else hours)
        while world.clock.now < until:
            if draw.random() < 0.01:
                world.line.waiting = draw.choice((0, 5, 50, 150, 500, None))
            rows = await world.machines.open()
            world.line.calls = {f"gpu-{row.id}": draw.randrange(3) for row in rows}
            if rows and draw.random() < 0.003:
                await world.machines.stop(draw.choice(rows).id, "an operator asks for it")
            await world.tick(controllers)
            watcher.look()
    watcher.look_at_the_end()
    return watcher.complaints


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.gpu_seeds", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    wrong = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        if found := asyncio.run(complaints_of(seed)):
            wrong += 1
            print(f"seed {seed}: {'; '.join(found)}")
    print(f"{arguments.seeds} seeds, {wrong} with complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
