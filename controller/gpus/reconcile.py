"""What has to be done about each GPU machine, by its row and by what the provider shows: decisions about values alone.

The row is written before the provider is called, so whatever happens in between is found again by the machine's label.
A machine that an account has under this platform's label, and that no row wants, is destroyed; one with any other label
is never touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from backplane.domain.gpus import (
    Machine,
    MachineState,
    RegisteredServer,
    label_of,
    machine_id_of,
    server_name,
)
from controller.gpus.provider import Instance

CREATE_GRACE = timedelta(seconds=90)
"""How long after the call a machine may appear: the call itself ends after 30 s."""
GONE_GRACE = timedelta(seconds=60)
"""How long lists may lack a machine before it counts as gone."""
DESTROY_AGAIN = timedelta(seconds=30)
ORPHAN_GRACE = timedelta(minutes=10)
"""A labelled machine without any row: its row may be in a database that is being restored."""
HEALTH_PERIOD = timedelta(seconds=10)
HEALTH_TRIES = 30
FAILED_CHECKS = 3
"""So many checks in a row a ready machine may fail."""
CLOCK_SLACK = timedelta(minutes=1)
"""So far apart the clocks of two controllers may be."""
DRAIN_LEAST = timedelta(seconds=15)
"""Each worker has read by then that the machine gets no new calls: it reads every 5 s."""

Act = Literal["wait", "place", "adopt", "not_made", "check", "drain", "destroy", "missing", "end"]


@dataclass(frozen=True, slots=True)
class MachineStep:
    """What to do about a machine. `reason`: why, where its row is to say so."""

    act: Act
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A complete list of an account, asked for at `asked_at`."""

    instances: Sequence[Instance]
    asked_at: datetime

    def of(self, label: str, contract: str | None) -> Instance | None:
        """The machine's own instance. Two may have one label; it is the one whose id is known, else the first."""
        ours = [one for one in self.instances if one.label == label]
        known = [one for one in ours if one.contract == contract]
        found = known or (ours if contract is None else [])
        return found[0] if found else None


def step_of(machine: Machine, instance: Instance | None, seen: Seen, now: datetime, *, is_drained: bool) -> MachineStep:
    """`instance`: as `seen` has it. `is_drained`: see there; only of a machine that drains."""
    match machine.state:
        case MachineState.WANTED:
            return MachineStep("end", machine.stop_reason) if machine.stop_reason else MachineStep("place")
        case MachineState.CREATING:
            if instance is not None:
                return MachineStep("adopt")
            if seen.asked_at - machine.state_since > CREATE_GRACE:
                return MachineStep("not_made", machine.reason)
            return MachineStep("wait")
        case MachineState.TERMINATING:
            tried = machine.checked_at or machine.state_since
            if instance is None:
                return MachineStep("end" if seen.asked_at > tried else "wait")
            return MachineStep("destroy") if now - tried >= DESTROY_AGAIN else MachineStep("wait")
    if instance is None:
        if machine.missing_since is not None and now - machine.missing_since > GONE_GRACE:
            return MachineStep("end", "the provider does not have it any more")
        is_new = machine.state is MachineState.STARTING and machine.ready_at is None
        if is_new and machine.missing_since is None and seen.asked_at - machine.state_since <= CREATE_GRACE:
            return MachineStep("wait")
        return MachineStep("missing", "the provider's list lacks it")
    if machine.state is MachineState.DRAINING:
        return MachineStep("destroy", machine.stop_reason or "") if is_drained else MachineStep("wait")
    if machine.stop_reason is not None:
        if machine.state is MachineState.READY:
            return MachineStep("drain", machine.stop_reason)
        return MachineStep("destroy", machine.stop_reason)
    if instance.status == "stopped":
        # A stopped machine still pays for its disk, and may never come back.
        return MachineStep("destroy", "it has stopped at the provider")
    if machine.checked_at is not None and now - machine.checked_at < HEALTH_PERIOD:
        return MachineStep("wait")
    return MachineStep("check")


def by_this_clock(machine: Machine, now: datetime) -> Machine:
    """The machine, with times that are still to come set to now: a clock that was ahead wrote them, and nothing would
    be done until then."""
    latest = now + CLOCK_SLACK
    since = now if machine.state_since > latest else machine.state_since
    checked = None if machine.checked_at is not None and machine.checked_at > latest else machine.checked_at
    missing = now if machine.missing_since is not None and machine.missing_since > latest else machine.missing_since
    if (since, checked, missing) == (machine.state_since, machine.checked_at, machine.missing_since):
        return machine
    return replace(machine, state_since=since, checked_at=checked, missing_since=missing)


def is_drained(machine: Machine, calls: int | None, most: timedelta, now: datetime) -> bool:
    """Whether a draining machine may go: it serves no calls, or has drained for as long as it may. `calls`: how many it
    serves, None when that is not known."""
    since = now - machine.state_since
    return since >= most or (since >= DRAIN_LEAST and calls == 0)


def tries_that_count(machine: Machine) -> int:
    """The failed checks of a machine that is to be destroyed now. Where somebody has asked for its end before it could
    serve, it has not failed, and delays no other."""
    is_asked = machine.stop_reason is not None and machine.health_tries < HEALTH_TRIES
    return 0 if is_asked and machine.state is not MachineState.TERMINATING else machine.health_tries


@dataclass(frozen=True, slots=True)
class MachineHealth:
    """What a check makes of a machine."""

    state: MachineState
    tries: int
    reason: str
    give_up: bool = False


def health_of(machine: Machine, fault: str | None) -> MachineHealth:
    """`fault`: why the model server does not serve; None: it does. A new machine has HEALTH_TRIES tries. A ready
    one that fails FAILED_CHECKS times in a row gets no calls, and has the rest of these tries to come back."""
    if fault is None:
        return MachineHealth(MachineState.READY, 0, "")
    tries = machine.health_tries + 1
    if machine.state is MachineState.READY and tries < FAILED_CHECKS:
        return MachineHealth(MachineState.READY, tries, fault)
    give_up = machine.state is MachineState.STARTING and tries >= HEALTH_TRIES
    if give_up:
        fault = f"it was not healthy within {HEALTH_TRIES} tries, {HEALTH_PERIOD.total_seconds():g} s apart: {fault}"
    return MachineHealth(MachineState.STARTING, tries, fault, give_up)


def orphans(
    seen: Seen,
    machines: Sequence[Machine],
    known: frozenset[str],
    first_seen: Mapping[str, datetime],
    platform_id: str,
) -> list[Instance]:
    """Machines under this platform's labels that no row wants, and that are to be destroyed. `known`: ids of all rows,
    the ended ones too. `first_seen`: when each of those without any row was seen first, by the provider's id."""
    wanted: dict[str, str] = {}
    for machine in machines:
        instance = seen.of(label_of(platform_id, machine), machine.contract)
        if instance is not None and machine.state is not MachineState.WANTED:
            wanted[instance.contract] = machine.id
    found = []
    for instance in seen.instances:
        machine_id = machine_id_of(platform_id, instance.label)
        if machine_id is None or instance.contract in wanted:
            continue
        is_old = seen.asked_at - first_seen.get(instance.contract, seen.asked_at) >= ORPHAN_GRACE
        if machine_id in known or is_old:
            found.append(instance)
    return found


@dataclass(frozen=True, slots=True)
class Registrations:
    add: Sequence[Machine]
    drain: Sequence[RegisteredServer]
    remove: Sequence[RegisteredServer]


def registrations_of(machines: Sequence[Machine], servers: Sequence[RegisteredServer]) -> Registrations:
    """What has to change in the table of model servers: ready machines are in it, and draining ones without new
    calls."""
    by_name = {server_name(machine.id): machine for machine in machines}
    there = {server.name for server in servers}
    add = [
        machine
        for name, machine in by_name.items()
        if machine.state is MachineState.READY and machine.missing_since is None and name not in there
    ]
    drain, remove = [], []
    for server in servers:
        machine = by_name.get(server.name)
        if machine is not None and machine.state is MachineState.DRAINING:
            if not server.draining:
                drain.append(server)
        elif machine is None or machine.state is not MachineState.READY or machine.missing_since is not None:
            remove.append(server)
    return Registrations(add, drain, remove)
