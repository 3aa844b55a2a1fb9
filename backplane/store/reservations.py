"""What a run takes from its accounts: reserved before a step or a model call, settled after it.

Each function is part of the transaction of a running run (`store.run_transaction`), so that the journal and the
accounts always agree. All accounts of the run, its user and its tier are locked together, in one order for everybody:
the parts of one transaction may then come in any order. A reservation's row is there until it is settled. A settlement
that finds no row has been done before, and changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, exists, insert, select

from backplane.domain.budgets import Amounts, Resource, Spender, account_id, run_owner
from backplane.domain.ledger import Account, EntryKind
from backplane.store.ledger import Change, book, deposit, exhausted, locked
from backplane.store.tables import ledger_entries, reservations, users

# Built once, as every run asks it at its end.
_IS_RESERVED = select(exists().where(reservations.c.run_id == bindparam("of_run")))

COUNTED_WHEN_LOST = (Resource.TOKENS, Resource.MICRO_USD)
"""For these resources the reservations of a lost worker count as spent: the provider may have charged for them."""


def open_budget(connection: Connection, spender: Spender, limits: Mapping[Resource, int]) -> None:
    """Open the run's own accounts, each with its limit as the balance. It is done once, however often the run is
    claimed."""
    name = f"limit:{spender.run_id}"
    query = select(ledger_entries.c.account_id).where(
        ledger_entries.c.transfer_id.in_([f"{name}:{resource}" for resource in limits])
    )
    opened = set(connection.execute(query).scalars())
    owner = run_owner(spender.run_id)
    for resource, limit in sorted(limits.items()):
        if account_id(owner, resource) not in opened:
            deposit(connection, owner, resource, limit, f"{name}:{resource}", "limit of the run")


def reserve(connection: Connection, spender: Spender, reservation_id: str, step_id: str, amounts: Amounts) -> None:
    """Reserve the amounts. Raises BudgetExhausted; then nothing may be committed."""
    key = spender.key(reservation_id)
    bound = _open_accounts(connection, spender)
    if not bound or _reservation(connection, key) is not None:
        return
    paying = [account for account in bound if amounts.of(account.resource)]
    for account in paying:
        if account.balance < amounts.of(account.resource):
            raise exhausted(account, amounts.of(account.resource))
    connection.execute(
        insert(reservations).values(
            id=key,
            run_id=spender.run_id,
            step_id=step_id,
            generation=spender.generation,
            amounts=asdict(amounts),
            accounts=[account.id for account in paying],
            created_at=datetime.now(UTC),
        )
    )
    book(
        connection,
        [
            Change(
                account,
                EntryKind.RESERVE,
                key,
                balance=-amounts.of(account.resource),
                reserved=amounts.of(account.resource),
                run_id=spender.run_id,
                step_id=step_id,
            )
            for account in paying
        ],
    )


def settle(connection: Connection, spender: Spender, reservation_id: str, spent: Amounts) -> None:
    """Settle a reservation: what was spent of it is spent, the rest goes back. What was spent beyond it is taken from
    the balance, as far as there is one; the rest is noted."""
    _end(connection, spender, spender.key(reservation_id), spent, EntryKind.SETTLE)


def release(connection: Connection, spender: Spender, reservation_id: str) -> None:
    _end(connection, spender, spender.key(reservation_id), Amounts(), EntryKind.RELEASE)


def settle_lost(connection: Connection, spender: Spender) -> None:
    """End what older generations of the run left reserved."""
    _end_all(connection, spender, reservations.c.generation < spender.generation)


def settle_rest(connection: Connection, run_id: str, user_id: str, generation: int) -> None:
    """End these, and what this generation has not settled: a run that no worker has keeps nothing reserved."""
    if not connection.scalar(_IS_RESERVED, {"of_run": run_id}):
        return
    tier = connection.execute(select(users.c.tier).where(users.c.id == user_id)).scalar_one()
    spender = Spender(run_id, user_id, tier, generation)
    _end_all(connection, spender, reservations.c.generation <= generation)


def _end_all(connection: Connection, spender: Spender, which: ColumnElement[bool]) -> None:
    query = (
        select(reservations)
        .where(reservations.c.run_id == spender.run_id, which)
        .order_by(reservations.c.created_at, reservations.c.id)
    )
    for row in connection.execute(query).all():
        counted = Amounts(**{resource.value: row.amounts[resource.value] for resource in COUNTED_WHEN_LOST})
        _end(connection, spender, row.id, counted, EntryKind.LOST)


def _end(connection: Connection, spender: Spender, key: str, spent: Amounts, kind: EntryKind) -> None:
    reservation = _reservation(connection, key)
    if reservation is None:
        return
    amounts = Amounts(**reservation.amounts)
    changes = []
    for account in locked(connection, spender.owners, reservation.accounts):
        reserved = amounts.of(account.resource) if account.id in reservation.accounts else 0
        took = spent.of(account.resource) if reserved or account.closed_at is None else 0
        if reserved or took:
            changes.append(_ended(account, kind, reservation, reserved, took))
    book(connection, changes)
    connection.execute(delete(reservations).where(reservations.c.id == key))


def _ended(account: Account, kind: EntryKind, reservation: Row[Any], reserved: int, took: int) -> Change:
    back = max(reserved - took, 0)
    beyond = min(max(took - reserved, 0), account.balance)
    unpaid = took - min(took, reserved) - beyond
    return Change(
        account,
        kind,
        reservation.id,
        balance=back - beyond,
        reserved=-reserved,
        spent=min(took, reserved) + beyond,
        run_id=reservation.run_id,
        step_id=reservation.step_id,
        note=f"{unpaid} more were used than there was" if unpaid else "",
    )


def _open_accounts(connection: Connection, spender: Spender) -> Sequence[Account]:
    """The open accounts, locked: the run's before its user's before its tier's."""
    owners = spender.owners
    found = [account for account in locked(connection, owners) if account.closed_at is None]
    return sorted(found, key=lambda account: owners.index(account.owner))


def _reservation(connection: Connection, key: str) -> Row[Any] | None:
    return connection.execute(select(reservations).where(reservations.c.id == key)).one_or_none()
