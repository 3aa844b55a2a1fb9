"""GPU machines without a provider: rows in memory, a simulated account of machines, and a clock that is driven.

The simulated account does what real ones do: it makes a machine and does not answer, answers and has not destroyed,
takes machines away, and is gone for an hour. A controller dies at any of its calls. The rows behave as those in a
database; the contract suite of the store runs over both.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

from prometheus_client import CollectorRegistry

from backplane.domain.gpus import (
    AUTOSCALER,
    Charge,
    FleetStatus,
    Machine,
    MachineSpec,
    MachineState,
    Offer,
    RegisteredServer,
    Spending,
    SpendingCaps,
    cost,
    day_of,
    due_charges,
    spending_of,
    why_not,
)
from backplane.errors import NotFound, Unavailable
from backplane.store import GpuMachines, ModelServerTable
from controller.gpus.decision import ScalingRules
from controller.gpus.fleet import Demand, FleetParts, FleetRules, GpuFleet, MachineAccess
from controller.gpus.health import Probe
from controller.gpus.metrics import GpuMetrics
from controller.gpus.provider import CreateRefused, GpuProvider, Instance, NewInstance

PLATFORM = "f" * 32
START = datetime(2026, 11, 30, 6, 0, tzinfo=UTC)
SPEC = MachineSpec("RTX_4090", 1, "ollama/ollama", 50, ("m",))
TICK = timedelta(seconds=10)
CENTS = 10_000
CAPS = SpendingCaps(hour=200 * CENTS, day=1500 * CENTS)
RULES = ScalingRules(least=1, most=5, out_above=100, in_below=10, in_after=timedelta(minutes=5))


class Killed(Exception):
    """The controller dies here: nothing after this happens."""


def wanted(machine_id: str = "0123456789ab", now: datetime = START, by: str = AUTOSCALER) -> Machine:
    return Machine(machine_id, "simulated", SPEC, MachineState.WANTED, by, now, now)


class MemoryMachines:
    """As `backplane.store.GpuMachines`."""

    def __init__(self) -> None:
        self.rows: dict[str, Machine] = {}
        self.booked: list[tuple[str, Charge]] = []
        self.noted: FleetStatus | None = None

    async def open(self) -> list[Machine]:
        return sorted(
            (row for row in self.rows.values() if row.ended_at is None), key=lambda row: (row.created_at, row.id)
        )

    async def page(self, *, before: datetime | None, limit: int, ended: bool) -> list[Machine]:
        found = [row for row in self.rows.values() if (ended or row.ended_at is None)]
        found = [row for row in found if before is None or row.created_at < before]
        return sorted(found, key=lambda row: (-row.created_at.timestamp(), row.id))[:limit]

    async def get(self, machine_id: str) -> Machine:
        if machine_id not in self.rows:
            raise NotFound(f"there is no GPU machine {machine_id}")
        return self.rows[machine_id]

    async def known(self, machine_ids: Sequence[str]) -> frozenset[str]:
        return frozenset(machine_ids) & self.rows.keys()

    async def want(self, machine: Machine, most: int) -> Machine | None:
        there = await self.open()
        coming = [one for one in there if one.state in (MachineState.WANTED, MachineState.CREATING)]
        if len(there) >= most or (machine.wanted_by == AUTOSCALER and coming):
            return None
        self.rows[machine.id] = machine
        return machine

    async def reserve(self, machine: Machine, offer: Offer, caps: SpendingCaps, now: datetime) -> Machine | str | None:
        if refused := why_not(await self.spending(now), offer.micro_usd_per_hour, caps):
            return refused
        after = replace(machine, state=MachineState.CREATING, state_since=now, offer=offer.id, paid_since=now)
        return self._changed(
            machine, replace(after, micro_usd_per_hour=offer.micro_usd_per_hour, charged_until=now, reason="")
        )

    async def change(self, before: Machine, after: Machine) -> Machine | None:
        return self._changed(before, after)

    async def stop(self, machine_id: str, reason: str) -> Machine:
        row = await self.get(machine_id)
        if row.ended_at is None and row.stop_reason is None:
            self.rows[machine_id] = row = replace(row, stop_reason=reason, version=row.version + 1)
        return row

    async def charge(self, machine: Machine, until: datetime) -> Machine | None:
        charges = due_charges(machine, until)
        if not charges:
            return machine
        total = machine.charged_micro_usd + sum(charge.micro_usd for charge in charges)
        done = self._changed(machine, replace(machine, charged_until=until, charged_micro_usd=total))
        if done is not None:
            self.booked += [(machine.id, charge) for charge in charges]
        return done

    async def charges(self, machine_id: str) -> list[Charge]:
        return sorted((charge for of, charge in self.booked if of == machine_id), key=lambda charge: charge.since)

    async def spending(self, now: datetime) -> Spending:
        day = day_of(now)
        charged = sum(charge.micro_usd for _, charge in self.booked if day <= charge.since < day + timedelta(days=1))
        return spending_of(await self.open(), charged, now)

    async def failures(self, since: datetime) -> list[datetime]:
        return [
            row.ended_at
            for row in self.rows.values()
            if row.ended_at and row.ended_at >= since and not row.ready_at and row.contract and row.health_tries
        ]

    async def note(self, status: FleetStatus) -> None:
        self.noted = status

    async def status(self) -> FleetStatus | None:
        return self.noted

    def _changed(self, before: Machine, after: Machine) -> Machine | None:
        if self.rows[before.id].version != before.version:
            return None
        self.rows[before.id] = changed = replace(after, version=before.version + 1)
        return changed


class MemoryServers:
    """As `backplane.store.ModelServerTable`."""

    def __init__(self) -> None:
        self.rows: dict[str, RegisteredServer] = {}

    async def list_all(self) -> list[RegisteredServer]:
        return [self.rows[name] for name in sorted(self.rows)]

    async def register(self, server: RegisteredServer) -> None:
        self.rows[server.name] = server

    async def drain(self, name: str) -> None:
        if name in self.rows:
            self.rows[name] = replace(self.rows[name], draining=True)

    async def deregister(self, name: str) -> None:
        self.rows.pop(name, None)


@dataclass(slots=True)
class RealMachine:
    """A machine as it is, whoever knows of it. `serves_from`: when its model server answers; None: never."""

    contract: str
    label: str
    price: int
    began: datetime
    serves_from: datetime | None
    ended: datetime | None = None

    def cost_at(self, now: datetime) -> int:
        return cost(self.price, (self.ended or now) - self.began)


@dataclass(slots=True)
class Faults:
    """How likely each is, at a call or a tick."""

    create_unanswered: float = 0.0
    made_late: float = 0.0
    create_refused: float = 0.0
    create_refused_and_made: float = 0.0
    unanswered: float = 0.0
    destroy_lies: float = 0.0
    never_healthy: float = 0.0
    price_rise: float = 0.0
    taken_away: float = 0.0
    killed: float = 0.0
    away: tuple[tuple[datetime, datetime], ...] = ()


@dataclass(slots=True)
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


class SimulatedAccount(GpuProvider):
    """An account with machines of this platform and of others."""

    name = "simulated"

    def __init__(self, clock: Clock, draw: random.Random, faults: Faults) -> None:
        self.clock, self.draw, self.faults = clock, draw, faults
        self.machines: dict[str, RealMachine] = {}
        self.creates: list[str] = []
        self._late: list[tuple[datetime, RealMachine]] = []
        self._number = 100
        foreign = RealMachine("1", "somebody else's", 30 * CENTS, clock.now, None)
        other = RealMachine("2", f"agents:{'0' * 12}:0123456789ab:1", 30 * CENTS, clock.now, None)
        self.foreign = {machine.contract: machine for machine in (foreign, other)}
        self.machines.update(self.foreign)

    def tick(self) -> None:
        """What happens by itself."""
        for at, machine in self._late:
            if at <= self.clock.now:
                self.machines[machine.contract] = replace(machine, began=self.clock.now)
        self._late = [(at, machine) for at, machine in self._late if at > self.clock.now]
        for machine in self.running():
            if self._happens(self.faults.taken_away):
                machine.ended = self.clock.now

    def running(self) -> list[RealMachine]:
        """Those of this platform."""
        return [one for one in self.machines.values() if one.ended is None and one.contract not in self.foreign]

    async def offers(self, spec: MachineSpec, most_micro_usd: int) -> Sequence[Offer]:
        await self._call()
        if spec.gpu_type != SPEC.gpu_type:
            return []
        hour = self.clock.now.hour
        prices = [(30 + (hour * 7 + number * 5) % 25) * CENTS for number in range(8)]
        found = [Offer(f"o{number}", spec.gpu_type, 1, price) for number, price in enumerate(prices)]
        return sorted(
            (one for one in found if one.micro_usd_per_hour <= most_micro_usd), key=lambda one: one.micro_usd_per_hour
        )

    async def create(self, offer: Offer, new: NewInstance) -> str:
        await self._call()
        self.creates.append(new.label)
        if self._happens(self.faults.create_refused):
            raise CreateRefused("no such offer")
        if self._happens(self.faults.made_late):
            # Long after nobody looks for it any more.
            self._make(offer, new.label, timedelta(seconds=self.draw.uniform(120, 600)))
            raise Unavailable("no answer", part=self.name)
        made = self._make(offer, new.label)
        if self._happens(self.faults.create_refused_and_made):
            raise CreateRefused("an error that is none")
        if self._happens(self.faults.create_unanswered):
            raise Unavailable("no answer", part=self.name)
        self._die()
        return made.contract

    async def instances(self, kept: Mapping[str, str]) -> Sequence[Instance]:
        await self._call()
        return [
            Instance(one.contract, one.label, "running", one.price, f"https://{one.contract}.invalid")
            for one in self.machines.values()
            if one.ended is None
        ]

    async def destroy(self, contract: str) -> None:
        await self._call()
        machine = self.machines.get(contract)
        if machine is None or machine.ended is not None:
            return
        if not self._happens(self.faults.destroy_lies):
            machine.ended = self.clock.now
        self._die()

    async def close(self) -> None:
        pass

    def serves(self, url: str) -> bool:
        machine = self.machines[url.removeprefix("https://").removesuffix(".invalid")]
        return machine.ended is None and machine.serves_from is not None and machine.serves_from <= self.clock.now

    def is_away(self) -> bool:
        return any(since <= self.clock.now < until for since, until in self.faults.away)

    def _make(self, offer: Offer, label: str, late: timedelta = timedelta()) -> RealMachine:
        self._number += 1
        price = offer.micro_usd_per_hour + (7 * CENTS if self._happens(self.faults.price_rise) else 0)
        serves = None
        if not self._happens(self.faults.never_healthy):
            serves = self.clock.now + timedelta(seconds=self.draw.uniform(30, 240))
        made = RealMachine(str(self._number), label, price, self.clock.now, serves)
        if late or self._happens(0.2):
            self._late.append((self.clock.now + (late or TICK), made))
        else:
            self.machines[made.contract] = made
        return made

    async def _call(self) -> None:
        await asyncio.sleep(0)
        self._die()
        if self.is_away() or self._happens(self.faults.unanswered):
            raise Unavailable("no answer", part=self.name, retry_after=10)

    def _die(self) -> None:
        if self._happens(self.faults.killed):
            raise Killed

    def _happens(self, chance: float) -> bool:
        return self.draw.random() < chance


@dataclass(slots=True)
class Line:
    """What waits at a time, and how many calls machines serve."""

    clock: Clock
    waiting: int | None = 0
    calls: dict[str, int] = field(default_factory=dict)

    async def now(self, names: Sequence[str]) -> Demand:
        return Demand(self.waiting, {name: self.calls.get(name, 0) for name in names})

    async def forget(self, name: str) -> None:
        self.calls.pop(name, None)


@dataclass(slots=True)
class World:
    """Everything, with controllers that may die and be replaced."""

    clock: Clock
    account: SimulatedAccount
    machines: MemoryMachines | GpuMachines
    servers: MemoryServers | ModelServerTable
    line: Line
    caps: SpendingCaps = CAPS
    rules: ScalingRules = RULES
    fleets: list[GpuFleet] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    most_at_once: int = 0
    _missed: timedelta = timedelta()

    @classmethod
    def of(
        cls, seed: int = 0, faults: Faults | None = None, *, caps: SpendingCaps = CAPS, rules: ScalingRules = RULES
    ) -> "World":
        clock = Clock()
        account = SimulatedAccount(clock, random.Random(seed), faults or Faults())
        return cls(clock, account, MemoryMachines(), MemoryServers(), Line(clock), caps, rules)

    def fleet(self) -> GpuFleet:
        """A new controller's."""
        parts = FleetParts(
            machines=cast(GpuMachines, self.machines),
            servers=cast(ModelServerTable, self.servers),
            provider=self.account,
            access=lambda machine_id: MachineAccess(f"token of {machine_id}"),
            fault=self._fault,
            calls=self.line,
            clock=self.clock,
            metrics=GpuMetrics(CollectorRegistry()),
        )
        rules = FleetRules(
            platform_id=PLATFORM,
            spec=SPEC,
            pool="gpu",
            slots=4,
            most_micro_usd=80 * CENTS,
            scaling=self.rules,
            caps=self.caps,
            period=timedelta(seconds=60),
            drain=timedelta(seconds=120),
        )
        return GpuFleet(parts, rules)

    async def _fault(self, probe: Probe) -> str | None:
        await asyncio.sleep(0)
        return None if self.account.serves(probe.url) else "it does not answer"

    async def tick(self, controllers: int = 1) -> None:
        """Ten seconds later: a look of each controller, at the same time. One that dies is replaced by the next."""
        self.clock.now += TICK
        self.account.tick()
        while len(self.fleets) < controllers:
            self.fleets.append(self.fleet())
        ended = await asyncio.gather(*(fleet.look() for fleet in self.fleets), return_exceptions=True)
        self.fleets = [fleet for fleet, how in zip(self.fleets, ended, strict=True) if not isinstance(how, Killed)]
        for how in ended:
            if isinstance(how, BaseException) and not isinstance(how, Killed | Unavailable):
                raise how

    async def run(self, span: timedelta, controllers: int = 1) -> None:
        until = self.clock.now + span
        while self.clock.now < until:
            await self.tick(controllers)
