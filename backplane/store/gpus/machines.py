"""GPU machines: one row each, written before its provider is called.

Each change of a row compares its version, so two controllers that look at once do not both make the same step.
Whether a machine may be started is decided in the transaction that reserves its price, one such transaction at a time:
the caps hold whatever any controller believed before.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from backplane.domain.budgets import Resource
from backplane.domain.gpus import (
    AUTOSCALER,
    LEDGER_OWNER,
    Charge,
    FleetStatus,
    Machine,
    MachineSpec,
    MachineState,
    Offer,
    RegisteredServer,
    Spending,
    SpendingCaps,
    day_of,
    due_charges,
    spending_of,
    why_not,
)
from backplane.domain.ledger import EntryKind
from backplane.errors import NotFound
from backplane.store.database import Database
from backplane.store.gpus.tables import gpu_charges, gpu_machines, gpu_status, model_servers
from backplane.store.ledger import Change, book, deposit, locked

_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('gpu_machines', 0))")
_OPEN = gpu_machines.c.ended_at.is_(None)
_STATUS = "fleet"


class GpuMachines:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> list[Machine]:
        """All that have not ended, the oldest first."""
        return await self._database.read(_open)

    async def page(self, *, before: datetime | None, limit: int, ended: bool) -> list[Machine]:
        """The youngest first; the ended ones too, where `ended` says so."""
        query = select(gpu_machines).order_by(gpu_machines.c.created_at.desc(), gpu_machines.c.id).limit(limit)
        if before is not None:
            query = query.where(gpu_machines.c.created_at < before)
        if not ended:
            query = query.where(_OPEN)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_machine(row) for row in rows]

    async def get(self, machine_id: str) -> Machine:
        """Raises NotFound."""
        query = select(gpu_machines).where(gpu_machines.c.id == machine_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound(f"there is no GPU machine {machine_id}; GET /api/vastai/instances lists them")
        return _machine(row)

    async def known(self, machine_ids: Sequence[str]) -> frozenset[str]:
        """Those of these ids that have a row, also an ended one."""
        query = select(gpu_machines.c.id).where(gpu_machines.c.id.in_(machine_ids))
        rows = await self._database.read(lambda connection: connection.execute(query).all()) if machine_ids else []
        return frozenset(row.id for row in rows)

    async def want(self, machine: Machine, most: int) -> Machine | None:
        """Write down that a machine is wanted. None, and nothing is written, where `most` have not ended, or the
        autoscaler wants it and another is on its way."""

        def write(connection: Connection) -> Machine | None:
            _wait_for_turn(connection)
            there = _open(connection)
            coming = [one for one in there if one.state in (MachineState.WANTED, MachineState.CREATING)]
            if len(there) >= most or (machine.wanted_by == AUTOSCALER and coming):
                return None
            connection.execute(insert(gpu_machines).values(_values(machine)))
            return machine

        return await self._database.write(write)

    async def reserve(self, machine: Machine, offer: Offer, caps: SpendingCaps, now: datetime) -> Machine | str | None:
        """Reserve the offer's price for a wanted machine, which is `creating` from then on: whoever gets it calls the
        provider, and nobody else does. A text: why it may not be started. None: another has changed the machine."""

        def write(connection: Connection) -> Machine | str | None:
            _wait_for_turn(connection)
            if refused := why_not(_spending(connection, now), offer.micro_usd_per_hour, caps):
                return refused
            reserved = replace(
                machine,
                state=MachineState.CREATING,
                state_since=now,
                offer=offer.id,
                micro_usd_per_hour=offer.micro_usd_per_hour,
                paid_since=now,
                charged_until=now,
                reason="",
            )
            return _changed(connection, machine, reserved)

        return await self._database.write(write)

    async def change(self, before: Machine, after: Machine) -> Machine | None:
        """The machine as it is then, with a higher version; None: another has changed it meanwhile."""
        return await self._database.write(lambda connection: _changed(connection, before, after))

    async def stop(self, machine_id: str, reason: str) -> Machine:
        """Ask for the end of a machine, once. The machine as it is then. Raises NotFound."""
        statement = (
            update(gpu_machines)
            .where(gpu_machines.c.id == machine_id, _OPEN, gpu_machines.c.stop_reason.is_(None))
            .values(stop_reason=reason, version=gpu_machines.c.version + 1)
        )
        await self._database.write(lambda connection: connection.execute(statement))
        return await self.get(machine_id)

    async def charge(self, machine: Machine, until: datetime) -> Machine | None:
        """Book what the machine cost up to then, by hours, in the ledger. None: another has changed it meanwhile."""
        charges = due_charges(machine, until)
        if not charges:
            return machine
        charged = replace(
            machine,
            charged_until=until,
            charged_micro_usd=machine.charged_micro_usd + sum(charge.micro_usd for charge in charges),
        )

        def write(connection: Connection) -> Machine | None:
            done = _changed(connection, machine, charged)
            if done is not None:
                for charge in charges:
                    _book(connection, machine, charge)
            return done

        return await self._database.write(write)

    async def charges(self, machine_id: str) -> list[Charge]:
        """The oldest first."""
        query = select(gpu_charges).where(gpu_charges.c.machine_id == machine_id).order_by(gpu_charges.c.since)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [Charge(row.since, row.until, row.micro_usd) for row in rows]

    async def spending(self, now: datetime) -> Spending:
        return await self._database.read(lambda connection: _spending(connection, now))

    async def failures(self, since: datetime) -> list[datetime]:
        """When machines ended that were started and never became ready."""
        query = select(gpu_machines.c.ended_at).where(
            gpu_machines.c.ended_at >= since,
            gpu_machines.c.ready_at.is_(None),
            gpu_machines.c.contract.is_not(None),
            gpu_machines.c.health_tries > 0,
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [row.ended_at for row in rows]

    async def note(self, status: FleetStatus) -> None:
        """Write down what was seen and decided, in place of what was before."""
        shown = {**asdict(status), "at": None}

        def write(connection: Connection) -> None:
            connection.execute(delete(gpu_status).where(gpu_status.c.name == _STATUS))
            connection.execute(insert(gpu_status).values(name=_STATUS, at=status.at, status=shown))

        await self._database.write(write)

    async def status(self) -> FleetStatus | None:
        """None: no controller has looked yet."""
        query = select(gpu_status).where(gpu_status.c.name == _STATUS)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        offers = tuple(Offer(**offer) for offer in row.status["offers"])
        return FleetStatus(**{**row.status, "at": row.at, "offers": offers})


class ModelServerTable:
    """Model servers that are there besides those of the settings: written by the controller, read by workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_all(self) -> list[RegisteredServer]:
        """By name."""
        query = select(model_servers).order_by(model_servers.c.name)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [RegisteredServer(**{**row._mapping, "models": tuple(row.models)}) for row in rows]

    async def register(self, server: RegisteredServer) -> None:
        """Write a server down, in place of one of its name."""

        def write(connection: Connection) -> None:
            connection.execute(delete(model_servers).where(model_servers.c.name == server.name))
            connection.execute(insert(model_servers).values({**asdict(server), "models": list(server.models)}))

        await self._database.write(write)

    async def drain(self, name: str) -> None:
        statement = update(model_servers).where(model_servers.c.name == name).values(draining=True)
        await self._database.write(lambda connection: connection.execute(statement))

    async def deregister(self, name: str) -> None:
        statement = delete(model_servers).where(model_servers.c.name == name)
        await self._database.write(lambda connection: connection.execute(statement))


def _wait_for_turn(connection: Connection) -> None:
    """SQLite has one writer at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(_ONE_AT_A_TIME)


def _open(connection: Connection) -> list[Machine]:
    query = select(gpu_machines).where(_OPEN).order_by(gpu_machines.c.created_at, gpu_machines.c.id)
    return [_machine(row) for row in connection.execute(query)]


def _spending(connection: Connection, now: datetime) -> Spending:
    day = day_of(now)
    charged = select(func.coalesce(func.sum(gpu_charges.c.micro_usd), 0)).where(
        gpu_charges.c.since >= day, gpu_charges.c.since < day + timedelta(days=1)
    )
    return spending_of(_open(connection), int(connection.scalar(charged) or 0), now)


def _changed(connection: Connection, before: Machine, after: Machine) -> Machine | None:
    changed = replace(after, version=before.version + 1)
    statement = (
        update(gpu_machines)
        .where(gpu_machines.c.id == before.id, gpu_machines.c.version == before.version)
        .values(_values(changed))
    )
    return changed if connection.execute(statement).rowcount == 1 else None


def _book(connection: Connection, machine: Machine, charge: Charge) -> None:
    """A machine's hour is paid in and spent at once: the account limits nobody, and shows what machines cost."""
    connection.execute(
        insert(gpu_charges).values(
            machine_id=machine.id, since=charge.since, until=charge.until, micro_usd=charge.micro_usd
        )
    )
    if not charge.micro_usd:
        return
    spec, name = machine.spec, f"gpu/{machine.id}/{charge.since:%Y-%m-%dT%H:%M:%S.%fZ}"
    note = (
        f"{machine.provider} {spec.gpu_count} x {spec.gpu_type}, machine {machine.id}, {charge.since:%H:%M:%S} to "
        + (f"{charge.until:%H:%M:%S}")
    )
    [paid] = deposit(connection, LEDGER_OWNER, Resource.MICRO_USD, charge.micro_usd, name, note)
    [account] = locked(connection, ids=[paid.account_id])
    spent = Change(account, EntryKind.SETTLE, name, balance=-charge.micro_usd, spent=charge.micro_usd, note=note)
    book(connection, [spent])


def _values(machine: Machine) -> dict[str, Any]:
    values = {name: getattr(machine, name) for name in machine.__slots__}
    return values | {"spec": asdict(machine.spec), "state": machine.state.value}


def _machine(row: Row[Any]) -> Machine:
    spec = MachineSpec(**{**row.spec, "models": tuple(row.spec["models"])})
    return Machine(**{**row._mapping, "spec": spec, "state": MachineState(row.state)})
