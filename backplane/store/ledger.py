"""Accounts, and every movement that made them what they are.

An account's state is the sum of its entries, which are never changed and never removed. A transaction that changes
accounts first locks them in the order of their ids, so that no two wait for each other; until its commit nothing else
can change them. A movement has a name (`transfer_id`): a repeated request returns what the first one did, so it can be
repeated when its answer was lost.

What runs reserve and spend is in `store.reservations`. Nothing here knows what a unit costs.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, literal_column, or_, select, text, update

from backplane.domain.budgets import (
    AMOUNT_MAX,
    Amounts,
    Resource,
    RunBudget,
    account_id,
    in_words,
    run_owner,
    tier_owner,
    user_owner,
)
from backplane.domain.gpus import LEDGER_OWNER
from backplane.domain.ledger import Account, Audit, Difference, Entry, EntryKind
from backplane.domain.users import Tier
from backplane.errors import BudgetExhausted, Conflict, IdempotencyKeyReused, InvalidInput, NotFound
from backplane.store.database import Database
from backplane.store.tables import UtcDateTime, accounts, ledger_entries, model_calls, reservations, runs, steps, users


@dataclass(frozen=True, slots=True)
class Change:
    """An entry to be made. The account is locked, and as it was read then."""

    account: Account
    kind: EntryKind
    transfer_id: str
    balance: int = 0
    reserved: int = 0
    spent: int = 0
    run_id: str | None = None
    step_id: str | None = None
    note: str = ""


_ADD_ACCOUNT = text(
    "INSERT INTO accounts (id, owner, resource, balance, reserved, spent, created_at) "
    "VALUES (:id, :owner, :resource, 0, 0, 0, :created_at) ON CONFLICT DO NOTHING"
).bindparams(bindparam("created_at", type_=UtcDateTime()))
_CHANGE_ACCOUNT = (
    update(accounts)
    .where(accounts.c.id == bindparam("of_account"))
    .values(
        balance=accounts.c.balance + bindparam("balance_change"),
        reserved=accounts.c.reserved + bindparam("reserved_change"),
        spent=accounts.c.spent + bindparam("spent_change"),
    )
)
# As the index has it, word for word: with a parameter in its place the index could not be used.
_MOVED = select(ledger_entries).where(
    ledger_entries.c.transfer_id == bindparam("of_transfer"),
    literal_column("kind IN ('deposit', 'withdraw', 'transfer')"),
)
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:transfer_id, 0))")


def account_of(row: Row[Any]) -> Account:
    values = dict(row._mapping)
    return Account(**{**values, "resource": Resource(row.resource)})


def _entry(row: Row[Any]) -> Entry:
    values = dict(row._mapping)
    return Entry(**{**values, "kind": EntryKind(row.kind)})


def locked(connection: Connection, owners: Iterable[str] = (), ids: Iterable[str] = ()) -> list[Account]:
    """Lock the accounts of these owners, and those with these ids, in the order of ids in which every transaction locks
    them."""
    wanted = or_(accounts.c.owner.in_(list(owners)), accounts.c.id.in_(list(ids)))
    query = select(accounts).where(wanted).order_by(accounts.c.id).with_for_update(key_share=True)
    return [account_of(row) for row in connection.execute(query)]


def book(connection: Connection, changes: Sequence[Change]) -> None:
    """Change locked accounts, each once at most, and add the entries."""
    if not changes:
        return
    now = datetime.now(UTC)
    sums = [
        {
            "of_account": change.account.id,
            "balance_change": change.balance,
            "reserved_change": change.reserved,
            "spent_change": change.spent,
        }
        for change in changes
    ]
    entries = [
        {
            "account_id": change.account.id,
            "transfer_id": change.transfer_id,
            "kind": change.kind.value,
            "balance_change": change.balance,
            "reserved_change": change.reserved,
            "spent_change": change.spent,
            "balance_after": change.account.balance + change.balance,
            "at": now,
            "run_id": change.run_id,
            "step_id": change.step_id,
            "note": change.note,
        }
        for change in changes
    ]
    connection.execute(_CHANGE_ACCOUNT, sums)
    connection.execute(insert(ledger_entries), entries)


def exhausted(account: Account, needed: int) -> BudgetExhausted:
    """The error for an account that cannot pay."""
    kind, _, name = account.owner.partition(":")
    left = in_words(account.resource, account.balance)
    remedy = f"an administrator adds to the account {account.id}"
    if kind == "run":
        whose, remedy = f"the budget of run {name}", f"answer its decision with a higher budget, or {remedy}"
    else:
        whose = f"the account of {kind} {name}"
    message = f"{whose} has {left} left and {in_words(account.resource, needed)} are needed: {remedy}"
    return BudgetExhausted(message, account=account.id, needed=needed, left=account.balance)


def deposit(
    connection: Connection, owner: str, resource: Resource, amount: int, transfer_id: str, note: str = ""
) -> list[Entry]:
    """Put an amount into an account, which is made where there is none, and opened where it was closed. Raises
    InvalidInput when the account would hold too much, and IdempotencyKeyReused."""
    wanted = account_id(owner, resource)
    if moved := _moved_before(connection, transfer_id, EntryKind.DEPOSIT, {wanted: amount}):
        return moved
    values = {"id": wanted, "owner": owner, "resource": resource.value, "created_at": datetime.now(UTC)}
    connection.execute(_ADD_ACCOUNT, values)
    [account] = locked(connection, ids=[wanted])
    _check_room(account, amount)
    if account.closed_at is not None:
        connection.execute(update(accounts).where(accounts.c.id == wanted).values(closed_at=None))
    run_id = owner.removeprefix("run:") if owner.startswith("run:") else None
    change = Change(account, EntryKind.DEPOSIT, transfer_id, balance=amount, run_id=run_id, note=note)
    book(connection, [change])
    return _moved(connection, transfer_id)


def raise_run_budget(connection: Connection, run_id: str, added: RunBudget, transfer_id: str, note: str = "") -> None:
    """Add to the limits of a run, in the caller's transaction. Once: by its `transfer_id` it can be asked for again.

    Raises InvalidInput, and nothing is to be committed then, where the run has no limit of its own that could be
    raised, as what is empty then is its user's account or its tier's; and where nothing is added."""
    amounts = {resource: amount for resource, amount in added.limits().items() if amount}
    if not amounts:
        raise InvalidInput(
            "budget: say by how much the run's budget is to be raised, as {tokens: 1000}", field="budget"
        )
    owner = run_owner(run_id)
    there = {account.resource for account in locked(connection, [owner]) if account.closed_at is None}
    for resource, amount in sorted(amounts.items()):
        if resource not in there:
            name = "usd" if resource is Resource.MICRO_USD else resource.value
            raise InvalidInput(
                f"budget.{name}: the run has no limit of its own that could be raised; when an account of its user or "
                "tier is empty, an administrator adds to it",
                field=f"budget.{name}",
            )
        deposit(connection, owner, resource, amount, f"{transfer_id}:{resource}", note)


def _moved_before(connection: Connection, transfer_id: str, kind: EntryKind, changes: Mapping[str, int]) -> list[Entry]:
    """What a movement of this name did, empty when there was none; two of one name come one after the other. Raises
    IdempotencyKeyReused when it was another movement."""
    if connection.dialect.name == "postgresql":
        connection.execute(_ONE_AT_A_TIME, {"transfer_id": transfer_id})
    moved = _moved(connection, transfer_id)
    same = {entry.account_id: entry.balance_change for entry in moved} == changes
    if moved and not (same and moved[0].kind is kind):
        raise IdempotencyKeyReused(
            f"the transfer_id {transfer_id!r} was used for another movement; send a new one with a new movement"
        )
    return moved


def _moved(connection: Connection, transfer_id: str) -> list[Entry]:
    """By seq: what was taken, before what was given."""
    query = _MOVED.order_by(ledger_entries.c.seq)
    return [_entry(row) for row in connection.execute(query, {"of_transfer": transfer_id})]


def _check_amount(amount: int) -> None:
    if not 0 < amount <= AMOUNT_MAX:
        raise InvalidInput(f"amount: it must be more than 0 and at most {AMOUNT_MAX}", field="amount")


def _check_room(account: Account, amount: int) -> None:
    if account.balance + amount > AMOUNT_MAX:
        most = in_words(account.resource, AMOUNT_MAX)
        raise InvalidInput(f"amount: the account {account.id} would hold more than {most}; add less", field="amount")


def _missing(account: str) -> NotFound:
    return NotFound(f"there is no account {account}")


class Ledger:
    """What administrators do with accounts, and what everybody may read of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, *, owner: str | None = None, resource: Resource | None = None, after: str = "", limit: int = 50
    ) -> list[Account]:
        """Accounts by id, closed ones too. `after`: the last id of the page before."""
        query = select(accounts).where(accounts.c.id > after).order_by(accounts.c.id).limit(limit)
        if owner is not None:
            query = query.where(accounts.c.owner == owner)
        if resource is not None:
            query = query.where(accounts.c.resource == resource.value)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [account_of(row) for row in rows]

    async def get(self, account: str) -> Account:
        """Raises NotFound."""
        query = select(accounts).where(accounts.c.id == account)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise _missing(account)
        return account_of(row)

    async def of_owners(self, owners: Iterable[str]) -> list[Account]:
        """The accounts that limit these owners, by id. Closed ones are left out."""
        query = (
            select(accounts)
            .where(accounts.c.owner.in_(list(owners)), accounts.c.closed_at.is_(None))
            .order_by(accounts.c.id)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [account_of(row) for row in rows]

    async def entries(self, account: str, *, before: int | None = None, limit: int = 50) -> list[Entry]:
        """Newest first. `before`: the last seq of the page before."""
        query = (
            select(ledger_entries)
            .where(ledger_entries.c.account_id == account)
            .order_by(ledger_entries.c.seq.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(ledger_entries.c.seq < before)
        return [_entry(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def owner(self, named: str) -> str:
        """`user:{name}` as `user:{id}`, other owners as they are. Raises NotFound when there is no such owner."""
        kind, _, name = named.partition(":")
        found: str | None = None
        if kind == "user":
            by_id = users.c.id == name
            query = select(users.c.id).where(or_(by_id, users.c.name == name)).order_by(by_id.desc()).limit(1)
            user = await self._database.read(lambda connection: connection.scalar(query))
            found = user and user_owner(user)
        elif kind == "run":
            exists = select(runs.c.id).where(runs.c.id == name)
            run = await self._database.read(lambda connection: connection.scalar(exists))
            found = run and run_owner(run)
        elif kind == "tier" and name in set(Tier):
            found = tier_owner(name)
        elif named == LEDGER_OWNER:
            found = named
        if found is None:
            raise NotFound(f"there is no {named}; an owner is user:NAME, tier:NAME or run:ID")
        return found

    async def names(self, owners: Iterable[str]) -> dict[str, str]:
        """The names of those owners that are users, by owner."""
        ids = [owner.removeprefix("user:") for owner in owners if owner.startswith("user:")]
        query = select(users.c.id, users.c.name).where(users.c.id.in_(ids))
        rows = await self._database.read(lambda connection: connection.execute(query).all()) if ids else []
        return {user_owner(row.id): row.name for row in rows}

    async def deposit(
        self, owner: str, resource: Resource, amount: int, transfer_id: str, note: str = ""
    ) -> list[Entry]:
        """As the function of this name; `amount` in 1…AMOUNT_MAX."""
        _check_amount(amount)
        return await self._database.write(
            lambda connection: deposit(connection, owner, resource, amount, transfer_id, note)
        )

    async def withdraw(self, account: str, amount: int, transfer_id: str, note: str = "") -> list[Entry]:
        """Raises NotFound, BudgetExhausted, IdempotencyKeyReused, InvalidInput."""
        _check_amount(amount)

        def write(connection: Connection) -> list[Entry]:
            if moved := _moved_before(connection, transfer_id, EntryKind.WITHDRAW, {account: -amount}):
                return moved
            found = locked(connection, ids=[account])
            if not found:
                raise _missing(account)
            if found[0].balance < amount:
                raise exhausted(found[0], amount)
            book(connection, [Change(found[0], EntryKind.WITHDRAW, transfer_id, balance=-amount, note=note)])
            return _moved(connection, transfer_id)

        return await self._database.write(write)

    async def transfer(self, source: str, target: str, amount: int, transfer_id: str, note: str = "") -> list[Entry]:
        """From one account to another of the same resource: the entry of what was taken, and that of what was given.

        Raises NotFound, Conflict when the target is closed, BudgetExhausted when the source has too little,
        IdempotencyKeyReused, and InvalidInput."""
        _check_amount(amount)
        if source == target:
            raise InvalidInput("target: it is the source; name another account", field="target")
        if source.rpartition(":")[2] != target.rpartition(":")[2]:
            raise InvalidInput("target: it holds another resource than the source", field="target")

        def write(connection: Connection) -> list[Entry]:
            if moved := _moved_before(connection, transfer_id, EntryKind.TRANSFER, {source: -amount, target: amount}):
                return moved
            found = {account.id: account for account in locked(connection, ids=[source, target])}
            for wanted in (source, target):
                if wanted not in found:
                    raise _missing(wanted)
            if found[target].closed_at is not None:
                raise Conflict(f"the account {target} is closed; topping it up opens it again")
            if found[source].balance < amount:
                raise exhausted(found[source], amount)
            _check_room(found[target], amount)
            taken = Change(found[source], EntryKind.TRANSFER, transfer_id, balance=-amount, note=note)
            given = Change(found[target], EntryKind.TRANSFER, transfer_id, balance=amount, note=note)
            book(connection, [taken, given])
            return _moved(connection, transfer_id)

        return await self._database.write(write)

    async def close(self, account: str) -> Account:
        """Its owner has no limit of its resource from now on. What is left is withdrawn; what is reserved is settled as
        ever. Entries stay. Closing twice changes nothing. Raises NotFound."""

        def write(connection: Connection) -> Account:
            found = locked(connection, ids=[account])
            if not found:
                raise _missing(account)
            if found[0].closed_at is None:
                name, left = f"close:{uuid.uuid4()}", found[0].balance
                book(connection, [Change(found[0], EntryKind.WITHDRAW, name, balance=-left, note="account closed")])
                closing = update(accounts).where(accounts.c.id == account)
                connection.execute(closing.values(closed_at=datetime.now(UTC)))
            return account_of(connection.execute(select(accounts).where(accounts.c.id == account)).one())

        return await self._database.write(write)

    async def raise_run_budget(self, run_id: str, added: RunBudget, transfer_id: str, note: str = "") -> None:
        """As the function of this name, in a transaction of its own."""
        await self._database.write(lambda connection: raise_run_budget(connection, run_id, added, transfer_id, note))

    async def spent_by(self, user_id: str) -> Amounts:
        """What is known of what the runs of a user took, whether or not anything limits them: tokens and dollars of
        calls of models, and tries of steps, of the runs that are kept. A step that is done again at its user's request
        is counted as the last time; the entries of accounts know it all."""
        of_user = runs.c.user_id == user_id
        calls = (
            select(
                func.sum(func.coalesce(model_calls.c.input_tokens, 0) + func.coalesce(model_calls.c.output_tokens, 0)),
                func.sum(model_calls.c.micro_usd),
            )
            .join(runs, runs.c.id == model_calls.c.run_id)
            .where(of_user)
        )
        # What a fork took over from another run is older than itself.
        own = and_(of_user, steps.c.started_at >= runs.c.created_at)
        tries = select(func.sum(steps.c.tries)).join(runs, runs.c.id == steps.c.run_id).where(own)

        def read(connection: Connection) -> Amounts:
            [(tokens, micro_usd)] = connection.execute(calls).all()
            return Amounts(int(tokens or 0), int(micro_usd or 0), int(connection.scalar(tries) or 0))

        return await self._database.read(read)

    async def audit(self) -> Audit:
        """Add everything up: each account is the sum of its entries, what is reserved is what reservations say, and
        over all accounts there is what was put in. It sees one moment, and holds nobody up on PostgreSQL."""

        def read(connection: Connection) -> Audit:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return _audit(connection)

        return await self._database.write(read)


def _audit(connection: Connection) -> Audit:
    sums = (
        select(
            ledger_entries.c.account_id,
            func.count().label("entries"),
            func.sum(ledger_entries.c.balance_change).label("balance"),
            func.sum(ledger_entries.c.reserved_change).label("reserved"),
            func.sum(ledger_entries.c.spent_change).label("spent"),
            func.max(ledger_entries.c.seq).label("last"),
        )
        .group_by(ledger_entries.c.account_id)
        .subquery()
    )
    last = select(ledger_entries.c.seq, ledger_entries.c.balance_after).subquery()
    books = (
        select(accounts, sums.c.entries, sums.c.balance, sums.c.reserved, sums.c.spent, last.c.balance_after)
        .outerjoin(sums, sums.c.account_id == accounts.c.id)
        .outerjoin(last, last.c.seq == sums.c.last)
        .order_by(accounts.c.id)
    )
    put_in = (
        select(accounts.c.resource, func.sum(ledger_entries.c.balance_change))
        .join(accounts, accounts.c.id == ledger_entries.c.account_id)
        .where(ledger_entries.c.kind.in_([EntryKind.DEPOSIT.value, EntryKind.WITHDRAW.value]))
        .group_by(accounts.c.resource)
    )
    open_reservations = _reserved(connection)
    differences, there, entries, number = [], dict.fromkeys(Resource, 0), 0, 0
    for row in connection.execute(books):
        id, _, resource, balance, reserved, spent, *_, count, of_entries, reserved_in, spent_in, after = row
        number, entries = number + 1, entries + (count or 0)
        there[Resource(resource)] += balance + reserved + spent
        checks = {
            "balance": (of_entries, balance),
            "reserved": (reserved_in, reserved),
            "spent": (spent_in, spent),
            "balance after its last entry": (after, balance),
            "reservations": (open_reservations.pop(id, 0), reserved),
        }
        differences += [
            Difference(id, what, int(expected or 0), found)
            for what, (expected, found) in checks.items()
            if int(expected or 0) != found
        ]
    differences += [Difference(id, "reservations", amount, 0) for id, amount in open_reservations.items() if amount]
    given = {Resource(resource): int(amount) for resource, amount in connection.execute(put_in)}
    differences += [
        Difference(f"all:{resource}", "put in", given.get(resource, 0), amount)
        for resource, amount in there.items()
        if given.get(resource, 0) != amount
    ]
    return Audit(number, entries, tuple(differences))


def _reserved(connection: Connection) -> dict[str, int]:
    """By account, what open reservations hold."""
    reserved: dict[str, int] = {}
    for row in connection.execute(select(reservations.c.amounts, reservations.c.accounts)):
        for account in row.accounts:
            reserved[account] = reserved.get(account, 0) + row.amounts[account.rpartition(":")[2]]
    return reserved
