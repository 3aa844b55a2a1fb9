"""One pass over the GPU machines: what was decided (`decision`, `reconcile`) is carried out, each step written first.

The row comes before the call, so a controller that dies in between leaves a row from which the next one goes on: by the
machine's label it finds whether the call did something. No pass waits for a machine. Everything that fails is tried
again by a later pass.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from backplane.domain.gpus import (
    AUTOSCALER,
    PAID,
    FleetStatus,
    Machine,
    MachineSpec,
    MachineState,
    Offer,
    RegisteredServer,
    SpendingCaps,
    hour_of,
    label_of,
    machine_id_of,
    new_machine_id,
    server_name,
)
from backplane.errors import Unavailable
from backplane.store import GpuMachines, ModelServerTable
from controller.gpus.decision import FAILURES_WITHIN, OFFER_PATIENCE, Fleet, ScalingRules, has_no_offer, scaling_of
from controller.gpus.health import Probe
from controller.gpus.metrics import GpuMetrics
from controller.gpus.provider import CreateRefused, GpuProvider, Instance, NewInstance
from controller.gpus.reconcile import (
    MachineStep,
    Seen,
    by_this_clock,
    health_of,
    is_drained,
    orphans,
    registrations_of,
    step_of,
    tries_that_count,
)
from controller.gpus.router import ModelRouter

ATTEMPTS_MAX = 5
"""How often a machine is tried to be made before the row ends. If it is still needed, another is wanted then."""
OFFER_REFUSED = timedelta(minutes=10)
"""How long an offer that could not be had, or whose machine did not serve, is left out."""
USE_KEPT = 0.9
"""What remains of a machine's use from pass to pass: the last two minutes count most."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FleetRules:
    """`slots`: calls that a machine takes at once. `most_micro_usd`: the highest price of a machine, an hour."""

    platform_id: str
    spec: MachineSpec
    pool: str
    slots: int
    most_micro_usd: int
    scaling: ScalingRules
    caps: SpendingCaps
    period: timedelta
    drain: timedelta


@dataclass(frozen=True, slots=True)
class MachineAccess:
    """How the model server on a machine is called. `key`: of its certificate."""

    token: str
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """`waiting`: None when it is not known. `calls`: what each model server serves, by name, as far as it is known."""

    waiting: int | None
    calls: dict[str, int]


class CallCounts(Protocol):
    """What calls wait, and what each model server serves."""

    async def now(self, names: Sequence[str]) -> Demand: ...

    async def forget(self, name: str) -> None:
        """A model server is gone for ever."""


@dataclass(frozen=True, slots=True)
class FleetParts:
    """What a fleet works with. `access`: how a machine is called, by its id. `fault`: whether a model server serves.
    `clock`: in UTC."""

    machines: GpuMachines
    servers: ModelServerTable
    provider: GpuProvider
    access: Callable[[str], MachineAccess]
    fault: Callable[[Probe], Awaitable[str | None]]
    calls: CallCounts
    clock: Callable[[], datetime]
    metrics: GpuMetrics
    router: ModelRouter | None = None


class GpuFleet:
    def __init__(self, parts: FleetParts, rules: FleetRules) -> None:
        self._parts = parts
        self._rules = rules
        self._machines = parts.machines
        self._provider = parts.provider
        self._refused: dict[str, datetime] = {}
        self._orphans_since: dict[str, datetime] = {}
        self._use: dict[str, float] = {}
        self._wires: dict[str, tuple[str, int | None]] = {}
        self._routed: dict[str, bool] = {}
        self._low_since: datetime | None = None
        self._decide_at: datetime | None = None
        self._decision = "not decided yet"
        self._offers: tuple[Offer, ...] = ()
        self._offers_at: datetime | None = None

    async def look(self) -> bool:
        """One pass. Whether anything starts or ends, so that the next one should come soon. Raises Unavailable when the
        database or the provider did not answer; what could be done was done then."""
        machines = await self._machines.open()
        error: Unavailable | None = None
        try:
            seen, machines = await self._see(machines)
        except Unavailable as unavailable:
            error, seen = unavailable, None
            machines = await self._machines.open()
        names = [server_name(machine.id) for machine in machines]
        demand = await self._parts.calls.now(names)
        self._note_use(machines, demand)
        if seen is not None:
            await self._advance_all(machines, seen, demand)
            await self._destroy_orphans(seen)
        await self._register(await self._machines.open())
        await self._scale(demand, can_start=error is None)
        if error is None:
            await self._read_offers()
        machines = await self._machines.open()
        spending = await self._machines.spending(self._now())
        self._parts.metrics.saw(machines, spending, demand.waiting)
        words = "" if error is None else error.message
        await self._machines.note(FleetStatus(self._now(), demand.waiting, self._decision, words, self._offers))
        if error is not None:
            raise error
        return any(machine.state is not MachineState.READY or machine.is_leaving for machine in machines)

    def _now(self) -> datetime:
        return self._parts.clock()

    async def _charge(self, machine: Machine) -> Machine:
        """By the hours that are over, and only once its real price has been seen: what is booked stays."""
        hour, until = hour_of(self._now()), machine.charged_until
        if not machine.contract or machine.state not in PAID or until is None or until >= hour:
            return machine
        return await self._machines.charge(machine, hour) or machine

    async def _see(self, machines: Sequence[Machine]) -> tuple[Seen, list[Machine]]:
        """A complete list, and the rows as they are after it."""
        asked_at = self._now()
        kept = {
            machine.contract: label_of(self._rules.platform_id, machine)
            for machine in machines
            if machine.contract and machine.state is not MachineState.TERMINATING
        }
        seen = Seen(await self._provider.instances(kept), asked_at)
        return seen, await self._machines.open()

    def _note_use(self, machines: Sequence[Machine], demand: Demand) -> None:
        self._use = {
            machine.id: self._use.get(machine.id, 0.0) * USE_KEPT + demand.calls.get(server_name(machine.id), 0)
            for machine in machines
        }

    async def _advance_all(self, machines: Sequence[Machine], seen: Seen, demand: Demand) -> None:
        steps: list[tuple[Machine, Instance | None, MachineStep]] = []
        for machine in machines:
            righted = by_this_clock(machine, self._now())
            if righted != machine:
                machine = await self._machines.change(machine, righted) or machine
            instance = seen.of(label_of(self._rules.platform_id, machine), machine.contract)
            if instance is not None:
                self._wires[machine.id] = (instance.kind, instance.slots)
                machine = await self._charge(await self._seen_again(machine, instance))
            name = server_name(machine.id)
            calls = None if self._routed.get(name) else demand.calls.get(name)
            drained = is_drained(machine, calls, self._rules.drain, self._now())
            steps.append((machine, instance, step_of(machine, instance, seen, self._now(), is_drained=drained)))
        checked = [
            (machine, instance) for machine, instance, step in steps if step.act == "check" and instance is not None
        ]
        faults = await asyncio.gather(*(self._fault(machine, instance) for machine, instance in checked))
        for (machine, instance), fault in zip(checked, faults, strict=True):
            await self._checked(machine, instance, fault)
        for machine, instance, step in steps:
            try:
                await self._carry_out(machine, instance, step)
            except Unavailable as error:
                log.warning("a GPU machine has to wait", machine=machine.id, step=step.act, error=error.message)

    async def _seen_again(self, machine: Machine, instance: Instance) -> Machine:
        """The machine with its real price. When that changes later, what it cost is booked by the one before."""
        price = instance.micro_usd_per_hour
        if machine.contract is None or (price in (None, machine.micro_usd_per_hour) and not machine.missing_since):
            return machine
        is_first = machine.charged_until == machine.paid_since
        if price is not None and price != machine.micro_usd_per_hour and not is_first:
            machine = await self._machines.charge(machine, self._now()) or machine
        price = machine.micro_usd_per_hour if price is None else price
        after = replace(machine, missing_since=None, micro_usd_per_hour=price)
        return await self._machines.change(machine, after) or machine

    async def _carry_out(self, machine: Machine, instance: Instance | None, step: MachineStep) -> None:
        now, reason = self._now(), step.reason
        match step.act:
            case "place":
                await self._place(machine)
            case "adopt":
                assert instance is not None
                log.info("a GPU machine is there", machine=machine.id, contract=instance.contract)
                await self._move(machine, MachineState.STARTING, contract=instance.contract)
            case "not_made":
                await self._not_made(machine, reason)
            case "missing":
                if machine.missing_since is None:
                    await self._machines.change(machine, replace(machine, missing_since=now, reason=reason))
            case "drain":
                log.info("a GPU machine drains", machine=machine.id, reason=reason)
                await self._move(machine, MachineState.DRAINING, reason=reason)
            case "destroy":
                await self._destroy(machine, reason or machine.reason)
            case "end":
                await self._end(machine, reason or machine.reason)

    async def _move(self, machine: Machine, state: MachineState, **values: object) -> Machine | None:
        """The machine in its new state; None: another has changed it, and the next pass looks again."""
        moved = replace(machine, state=state, state_since=self._now(), checked_at=None, **values)  # type: ignore[arg-type]
        return await self._machines.change(machine, moved)

    async def _place(self, machine: Machine) -> None:
        """Reserve the cheapest offer, and ask the provider for it."""
        now, rules = self._now(), self._rules
        self._refused = {offer: until for offer, until in self._refused.items() if until > now}
        offers = await self._provider.offers(machine.spec, rules.most_micro_usd)
        offer = next((one for one in offers if one.id not in self._refused), None)
        if offer is None:
            spec = machine.spec
            await self._not_placed(machine, f"there is no offer of {spec.gpu_count} x {spec.gpu_type} within the price")
            return
        reserved = await self._machines.reserve(machine, offer, rules.caps, now)
        if isinstance(reserved, str):
            await self._not_placed(machine, reserved)
            return
        if reserved is None:
            return
        log.info("a GPU machine is asked for", machine=machine.id, offer=offer.id, price=offer.micro_usd_per_hour)
        self._parts.metrics.started()
        access = self._parts.access(machine.id)
        label = label_of(rules.platform_id, reserved)
        new = NewInstance(machine.spec, label, access.token, access.certificate, access.key)
        try:
            contract = await self._provider.create(offer, new)
        except CreateRefused as refused:
            self._refused[offer.id] = now + OFFER_REFUSED
            await self._explain(reserved, f"the provider refused it: {refused}")
            return
        if await self._move(reserved, MachineState.STARTING, contract=contract) is None:
            # Somebody has asked for its end meanwhile. The label leads to it.
            log.info("a GPU machine is changed while it is made", machine=machine.id, contract=contract)

    async def _not_placed(self, machine: Machine, reason: str) -> None:
        """What a person has asked for ends when it cannot be had: nobody expects to pay for it hours later. What the
        autoscaler wants, it stops itself."""
        if machine.wanted_by != AUTOSCALER and has_no_offer(machine, self._now()):
            minutes = OFFER_PATIENCE.total_seconds() / 60
            await self._end(machine, f"it could not be had within {minutes:g} minutes: {reason}")
            return
        await self._explain(machine, reason)

    async def _explain(self, machine: Machine, reason: str) -> None:
        if machine.reason != reason:
            log.info("a GPU machine waits", machine=machine.id, reason=reason)
            await self._machines.change(machine, replace(machine, reason=reason))

    async def _not_made(self, machine: Machine, reason: str) -> None:
        """No list has it, long after the call: nothing was made, and nothing is to be paid."""
        if machine.offer is not None:
            self._refused[machine.offer] = self._now() + OFFER_REFUSED
        is_over = machine.stop_reason is not None or machine.attempt >= ATTEMPTS_MAX
        again = replace(
            machine,
            attempt=machine.attempt + (not is_over),
            offer=None,
            micro_usd_per_hour=0,
            paid_since=None,
            charged_until=None,
        )
        reason = reason or "the provider did not make it"
        if not is_over:
            await self._machines.change(
                machine, replace(again, state=MachineState.WANTED, state_since=self._now(), reason=reason)
            )
            return
        now = self._now()
        ended = replace(again, state=MachineState.ENDED, state_since=now, ended_at=now, reason=reason)
        await self._machines.change(machine, ended)

    async def _fault(self, machine: Machine, instance: Instance) -> str | None:
        if instance.url is None:
            return "the provider has not reported its address yet"
        access = self._parts.access(machine.id)
        models = machine.spec.models
        return await self._parts.fault(Probe(instance.url, instance.kind, access.token, access.certificate, models))

    async def _checked(self, machine: Machine, instance: Instance, fault: str | None) -> None:
        now, health = self._now(), health_of(machine, fault)
        if health.state is not machine.state:
            log.info("a GPU machine has another state", machine=machine.id, state=health.state, reason=health.reason)
        after = replace(
            machine,
            state=health.state,
            state_since=now if health.state is not machine.state else machine.state_since,
            health_tries=health.tries,
            checked_at=now,
            reason=health.reason,
            url=instance.url or machine.url,
            ready_at=machine.ready_at or (now if health.state is MachineState.READY else None),
            stop_reason=health.reason if health.give_up else machine.stop_reason,
        )
        if health.give_up and machine.offer is not None:
            self._refused[machine.offer] = now + OFFER_REFUSED
        changed = await self._machines.change(machine, after)
        if changed is not None and health.give_up:
            await self._destroy(changed, health.reason)

    async def _destroy(self, machine: Machine, reason: str) -> None:
        """It stays `terminating` until a complete list lacks it, whatever the provider answers now."""
        now = self._now()
        since = machine.state_since if machine.state is MachineState.TERMINATING else now
        if machine.state is not MachineState.TERMINATING:
            log.info("a GPU machine is destroyed", machine=machine.id, contract=machine.contract, reason=reason)
        leaving = replace(
            machine,
            state=MachineState.TERMINATING,
            state_since=since,
            checked_at=now,
            health_tries=tries_that_count(machine),
            reason=reason,
            stop_reason=machine.stop_reason or reason,
        )
        leaving_now = await self._machines.change(machine, leaving)
        if leaving_now is not None and leaving_now.contract is not None:
            await self._provider.destroy(leaving_now.contract)

    async def _end(self, machine: Machine, reason: str) -> None:
        now = self._now()
        charged = await self._machines.charge(machine, now) if machine.contract else machine
        if charged is None:
            return
        if (machine.ready_at is None and machine.health_tries) or machine.missing_since is not None:
            self._parts.metrics.failed()
        ended = replace(charged, state=MachineState.ENDED, state_since=now, ended_at=now, reason=reason)
        if await self._machines.change(charged, ended) is not None:
            await self._parts.calls.forget(server_name(machine.id))
            log.info("a GPU machine has ended", machine=machine.id, reason=reason, micro_usd=charged.charged_micro_usd)

    async def _destroy_orphans(self, seen: Seen) -> None:
        """The rows are read after the list, so a machine that is in the list and wanted has its row."""
        platform_id = self._rules.platform_id
        ours = [one for one in seen.instances if machine_id_of(platform_id, one.label) is not None]
        machines = await self._machines.open()
        known = await self._machines.known([machine_id_of(platform_id, one.label) or "" for one in ours])
        self._orphans_since = {
            one.contract: self._orphans_since.get(one.contract, seen.asked_at)
            for one in ours
            if machine_id_of(platform_id, one.label) not in known
        }
        for orphan in orphans(seen, machines, known, self._orphans_since, platform_id):
            log.warning("a machine that nothing wants is destroyed", contract=orphan.contract, label=orphan.label)
            try:
                await self._provider.destroy(orphan.contract)
            except Unavailable as error:
                log.warning("a machine that nothing wants stays", contract=orphan.contract, error=error.message)
                continue
            self._parts.metrics.orphan_destroyed()

    async def _register(self, machines: Sequence[Machine]) -> None:
        servers = self._parts.servers
        change = registrations_of(machines, await servers.list_all())
        for server in (*change.drain, *change.remove):
            gone = server in change.remove
            await (servers.deregister(server.name) if gone else servers.drain(server.name))
            log.info("a model server gets no more calls", server=server.name, gone=gone)
        for machine in change.add:
            if machine.id not in self._wires:
                continue  # this controller has not seen it yet
            server = self._server(machine)
            await servers.register(server)
            log.info("a model server is there", server=server.name, url=server.url, slots=server.slots)

        if self._parts.router is not None:
            for machine in machines:
                try:
                    await self._route(self._parts.router, machine)
                except Unavailable as error:
                    log.warning("the model router does not know", machine=machine.id, error=error.message)

    async def _route(self, router: ModelRouter, machine: Machine) -> None:
        """Send the router what is there, and what is not any more. After a start of this controller each is sent
        once."""
        name = server_name(machine.id)
        serves = machine.state is MachineState.READY and machine.missing_since is None and machine.id in self._wires
        if machine.contract is None or self._routed.get(name) is serves:
            return
        if serves:
            access = self._parts.access(machine.id)
            await router.register(self._server(machine), access.token, access.certificate)
        else:
            await router.deregister(name)
        self._routed[name] = serves

    def _server(self, machine: Machine) -> RegisteredServer:
        rules, spec = self._rules, machine.spec
        kind, slots = self._wires[machine.id]
        return RegisteredServer(
            name=server_name(machine.id),
            pool=rules.pool,
            kind=kind,
            url=machine.url or "",
            slots=slots or rules.slots,
            machine_id=machine.id,
            provider=machine.provider,
            models=spec.models,
            gpu_type=spec.gpu_type,
            micro_usd_per_hour=machine.micro_usd_per_hour,
        )

    async def _scale(self, demand: Demand, *, can_start: bool) -> None:
        now, rules = self._now(), self._rules
        low = demand.waiting is not None and demand.waiting < rules.scaling.in_below
        # A clock that is put back leaves both in the future.
        self._low_since = min(self._low_since or now, now) if low else None
        if self._decide_at is not None and timedelta() < self._decide_at - now <= rules.period:
            return
        self._decide_at = now + rules.period
        fleet = Fleet(
            machines=await self._machines.open(),
            waiting=demand.waiting,
            use=self._use,
            low_since=self._low_since,
            failures=await self._machines.failures(now - FAILURES_WITHIN),
            spending=await self._machines.spending(now),
        )
        decided = scaling_of(fleet, rules.scaling, rules.caps, now)
        self._decision = decided.reason
        if decided.change == "none" or (decided.change == "start" and not can_start):
            return
        log.info("the autoscaler decides", change=decided.change, reason=decided.reason, machine=decided.machine_id)
        if decided.change == "start":
            wanted = Machine(
                id=new_machine_id(),
                provider=self._provider.name,
                spec=rules.spec,
                state=MachineState.WANTED,
                wanted_by=AUTOSCALER,
                created_at=now,
                state_since=now,
                reason=decided.reason,
            )
            await self._machines.want(wanted, rules.scaling.most)
        elif decided.machine_id is not None:
            await self._machines.stop(decided.machine_id, decided.reason)

    async def _read_offers(self) -> None:
        """What could be had, now and then, for those who ask."""
        now = self._now()
        if self._offers_at is not None and abs(now - self._offers_at) < OFFER_REFUSED:
            return
        self._offers_at = now
        self._offers = tuple(await self._provider.offers(self._rules.spec, self._rules.most_micro_usd))
