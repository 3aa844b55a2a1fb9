"""The ledger: what is put in is there or was spent, whoever moves it, however often, and whoever dies meanwhile."""

import asyncio
import signal
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError

from backplane.domain.budgets import AMOUNT_MAX, MICRO, Amounts, Resource, RunBudget, account_id, run_owner, user_owner
from backplane.domain.ledger import Account, EntryKind
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import parse_plan
from backplane.domain.steps import pending_steps
from backplane.domain.users import User
from backplane.errors import BudgetExhausted, Conflict, IdempotencyKeyReused, InvalidInput, NotFound
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from backplane.store.tables import accounts, ledger_entries, reservations
from tests.submitted import new_run, plan, shell

ROOT = Path(__file__).parents[3]
PLAN = parse_plan(plan(shell("a", "true"), shell("b", "true")))
TOKENS = Resource.TOKENS
ADA, EVE = "user:ada", "user:eve"
ADAS, EVES = account_id(ADA, TOKENS), account_id(EVE, TOKENS)


async def state(store: Store, account: str) -> tuple[int, int, int]:
    found = await store.ledger.get(account)
    return found.balance, found.reserved, found.spent


async def is_right(store: Store) -> bool:
    return not (await store.ledger.audit()).differences


# --- deposit and withdraw ---


async def test_a_deposit_makes_the_account_and_an_entry(store: Store) -> None:
    [entry] = await store.ledger.deposit(ADA, TOKENS, 100, "first", "to begin with")
    assert await store.ledger.entries(ADAS) == [entry]
    assert (entry.kind, entry.balance_change, entry.balance_after) == (EntryKind.DEPOSIT, 100, 100)
    assert (entry.account_id, entry.transfer_id, entry.note) == (ADAS, "first", "to begin with")
    assert await state(store, ADAS) == (100, 0, 0)


async def test_a_withdrawal_takes_what_there_is_and_no_more(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.withdraw(ADAS, 60, "out")
    with pytest.raises(BudgetExhausted, match=r"40 tokens left and 41 tokens are needed: an administrator") as refused:
        await store.ledger.withdraw(ADAS, 41, "too much")
    assert (refused.value.account, refused.value.needed, refused.value.left) == (ADAS, 41, 40)
    await store.ledger.withdraw(ADAS, 40, "all")
    assert await state(store, ADAS) == (0, 0, 0)
    assert await is_right(store)


async def test_a_movement_that_is_asked_for_again_answers_what_it_did(store: Store) -> None:
    for _ in range(2):
        first = await store.ledger.deposit(ADA, TOKENS, 100, "in")
        taken = await store.ledger.withdraw(ADAS, 30, "out")
        await store.ledger.deposit(EVE, TOKENS, 1, "other")
        moved = await store.ledger.transfer(ADAS, EVES, 70, "over")
    assert await store.ledger.deposit(ADA, TOKENS, 100, "in", "another note") == first
    assert await store.ledger.withdraw(ADAS, 30, "out") == taken
    assert await store.ledger.transfer(ADAS, EVES, 70, "over") == moved
    assert [entry.balance_after for entry in moved] == [0, 71]


async def test_a_name_is_of_one_movement(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "name")
    await store.ledger.deposit(EVE, TOKENS, 100, "in")
    with pytest.raises(IdempotencyKeyReused):
        await store.ledger.deposit(ADA, TOKENS, 101, "name")
    with pytest.raises(IdempotencyKeyReused):
        await store.ledger.deposit(EVE, TOKENS, 100, "name")
    with pytest.raises(IdempotencyKeyReused):
        await store.ledger.withdraw(ADAS, 100, "name")
    with pytest.raises(IdempotencyKeyReused):
        await store.ledger.transfer(ADAS, EVES, 100, "name")
    assert await state(store, ADAS) == (100, 0, 0)


async def test_of_one_movement_asked_for_ten_times_at_once_one_happens(store: Store, second_store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.deposit(EVE, TOKENS, 100, "in too")
    asked = [(store, second_store)[number % 2].ledger.transfer(ADAS, EVES, 60, "over") for number in range(10)]
    answers = await asyncio.gather(*asked)
    assert all(answer == answers[0] for answer in answers)
    assert (await state(store, ADAS), await state(store, EVES)) == ((40, 0, 0), (160, 0, 0))


async def test_of_two_movements_of_one_name_at_once_one_is_refused(store: Store, second_store: Store) -> None:
    asked = [store.ledger.deposit(ADA, TOKENS, 1, "name"), second_store.ledger.deposit(EVE, TOKENS, 1, "name")]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, IdempotencyKeyReused) for answer in answers) == 1
    assert len(await store.ledger.page()) == 1


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1])
async def test_an_amount_has_its_bounds(store: Store, amount: int) -> None:
    await store.ledger.deposit(ADA, TOKENS, 1, "in")
    await store.ledger.deposit(EVE, TOKENS, 1, "in too")
    with pytest.raises(InvalidInput):
        await store.ledger.deposit(ADA, TOKENS, amount, "a")
    with pytest.raises(InvalidInput):
        await store.ledger.withdraw(ADAS, amount, "b")
    with pytest.raises(InvalidInput):
        await store.ledger.transfer(ADAS, EVES, amount, "c")


async def test_an_account_holds_no_more_than_one_movement_may_bring(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, AMOUNT_MAX, "in")
    await store.ledger.deposit(EVE, TOKENS, 1, "in too")
    with pytest.raises(InvalidInput, match="hold more"):
        await store.ledger.deposit(ADA, TOKENS, 1, "more")
    with pytest.raises(InvalidInput, match="hold more"):
        await store.ledger.transfer(EVES, ADAS, 1, "over")
    assert await is_right(store)


# --- transfer ---


async def test_a_transfer_is_refused_where_it_cannot_be(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.deposit(EVE, Resource.STEPS, 100, "steps")
    with pytest.raises(InvalidInput, match="it is the source"):
        await store.ledger.transfer(ADAS, ADAS, 1, "a")
    with pytest.raises(InvalidInput, match="another resource"):
        await store.ledger.transfer(ADAS, account_id(EVE, Resource.STEPS), 1, "b")
    with pytest.raises(NotFound):
        await store.ledger.transfer(ADAS, EVES, 1, "c")
    with pytest.raises(NotFound):
        await store.ledger.transfer(EVES, ADAS, 1, "d")
    await store.ledger.deposit(EVE, TOKENS, 1, "in too")
    with pytest.raises(BudgetExhausted):
        await store.ledger.transfer(ADAS, EVES, 101, "e")
    assert await is_right(store)


async def test_twenty_transfers_in_a_ring_at_once_neither_hang_nor_lose_anything(
    store: Store, second_store: Store
) -> None:
    ring = [f"user:{number}" for number in range(20)]
    for owner in ring:
        await store.ledger.deposit(owner, TOKENS, 100, f"in {owner}")

    async def pass_on(number: int) -> None:
        source, target = account_id(ring[number], TOKENS), account_id(ring[(number + 1) % 20], TOKENS)
        for turn in range(3):
            await (store, second_store)[number % 2].ledger.transfer(source, target, number + 1, f"{number}.{turn}")

    await asyncio.gather(*map(pass_on, range(20)))
    balances = {account.owner: account.balance for account in await store.ledger.page()}
    assert balances == {owner: 100 + 3 * (number or 20) - 3 * (number + 1) for number, owner in enumerate(ring)}
    assert await is_right(store)


HALF_A_TRANSFER = """
import asyncio, sys, time
from backplane.store.database import Database
from backplane.store.ledger import Change, EntryKind, book, locked

def half(connection):
    [ada] = locked(connection, ids=["user:ada:tokens"])
    book(connection, [Change(ada, EntryKind.TRANSFER, "over", balance=-60)])
    print("half", flush=True)
    time.sleep(60)

asyncio.run(Database(sys.argv[1]).write(half))
"""


@pytest.mark.slow
async def test_a_process_that_is_killed_in_the_middle_of_a_transfer_moves_nothing(
    store: Store, database_url: str
) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.deposit(EVE, TOKENS, 1, "in too")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HALF_A_TRANSFER, database_url), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout
    assert await child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await store.ledger.transfer(ADAS, EVES, 60, "over")
    assert (await state(store, ADAS), await state(store, EVES)) == ((40, 0, 0), (61, 0, 0))
    assert await is_right(store)


# --- closing ---


async def test_a_closed_account_limits_nobody_and_keeps_its_entries(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    closed = await store.ledger.close(ADAS)
    assert closed.closed_at is not None
    assert await store.ledger.close(ADAS) == closed == await store.ledger.get(ADAS)
    assert await store.ledger.of_owners([ADA]) == []
    assert [entry.balance_change for entry in await store.ledger.entries(ADAS)] == [-100, 100]
    assert await is_right(store)


async def test_a_closed_account_takes_no_transfer_and_is_opened_by_a_deposit(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.deposit(EVE, TOKENS, 100, "in too")
    await store.ledger.close(EVES)
    with pytest.raises(Conflict, match="closed"):
        await store.ledger.transfer(ADAS, EVES, 1, "over")
    await store.ledger.deposit(EVE, TOKENS, 5, "again")
    assert [account.balance for account in await store.ledger.of_owners([EVE])] == [5]


async def test_what_is_not_there_is_neither_closed_nor_shown(store: Store) -> None:
    for asked in (store.ledger.close(ADAS), store.ledger.get(ADAS), store.ledger.withdraw(ADAS, 1, "out")):
        with pytest.raises(NotFound, match="no account user:ada:tokens"):
            await asked


# --- lists ---


async def test_accounts_and_entries_come_in_pages(store: Store) -> None:
    for number, resource in enumerate(Resource):
        await store.ledger.deposit(ADA, resource, 1, f"a{number}")
        await store.ledger.deposit(EVE, resource, 1, f"e{number}")
    for number in range(3):
        await store.ledger.deposit(ADA, TOKENS, 1, f"more{number}")

    def ids(found: list[Account]) -> list[str]:
        return [account.id for account in found]

    everything = ids(await store.ledger.page())
    assert everything == sorted(everything)
    assert len(everything) == 8
    assert ids(await store.ledger.page(after=everything[2], limit=3)) == everything[3:6]
    assert ids(await store.ledger.page(owner=ADA)) == everything[:4]
    assert ids(await store.ledger.page(resource=TOKENS)) == [ADAS, EVES]
    newest = await store.ledger.entries(ADAS, limit=2)
    older = await store.ledger.entries(ADAS, before=newest[-1].seq)
    assert [entry.balance_after for entry in newest + older] == [4, 3, 2, 1]


async def test_owners_are_named_as_people_name_them(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    assert await store.ledger.owner("user:ada") == await store.ledger.owner(user_owner(user.id)) == user_owner(user.id)
    assert await store.ledger.owner(run_owner(run.id)) == run_owner(run.id)
    assert await store.ledger.owner("tier:free") == "tier:free"
    for nobody in ("user:nobody", "run:none", "tier", "group:x"):
        with pytest.raises(NotFound, match="an owner is"):
            await store.ledger.owner(nobody)


# --- raising a run's budget ---


async def test_a_runs_limits_are_raised_once(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    owner = run_owner(run.id)
    await store.ledger.deposit(owner, TOKENS, 100, "in")
    await store.ledger.deposit(owner, Resource.MICRO_USD, MICRO, "in dollars")
    for _ in range(2):
        await store.ledger.raise_run_budget(run.id, RunBudget(tokens=50, usd=0.25, steps=0), "decision")
    balances = {account.resource: account.balance for account in await store.ledger.of_owners([owner])}
    assert balances == {TOKENS: 150, Resource.MICRO_USD: MICRO + MICRO // 4}


async def test_raising_makes_no_limit_where_there_was_none(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    await store.ledger.deposit(run_owner(run.id), Resource.STEPS, 1, "in")
    with pytest.raises(InvalidInput, match="no limit of its own") as refused:
        await store.ledger.raise_run_budget(run.id, RunBudget(steps=1, usd=1), "decision")
    assert refused.value.field == "budget.usd"
    with pytest.raises(InvalidInput, match="by how much"):
        await store.ledger.raise_run_budget(run.id, RunBudget(), "decision")
    assert [account.balance for account in await store.ledger.of_owners([run_owner(run.id)])] == [1]


# --- what a user's runs took ---


async def test_what_a_users_runs_took_is_added_up_of_calls_and_tries(store: Store, user: User, stranger: User) -> None:
    def work(transaction: RunTransaction) -> None:
        transaction.save_plan(PLAN, pending_steps(PLAN))
        transaction.begin_step("a", 3)
        for number, price in ((1, 500), (2, None)):
            key = CallKey("a", "turn", number)
            transaction.begin_model_call(BeginningCall(key, str(uuid.uuid4()), "s", "m", {}, "d"))
            transaction.end_model_call(key, CallStatus.COMPLETED, CallTotals(100, 10, price))

    for owner in (user, user, stranger):
        run = await store.runs.create(new_run(owner), start=True)
        await store.running_runs.take(run.id, 1)
        await store.running_runs.write(run.id, 1, work)
    assert await store.ledger.spent_by(user.id) == Amounts(tokens=440, micro_usd=1000, steps=6)


# --- audit, and what the database itself refuses ---


@pytest.mark.parametrize("column", ["balance", "reserved", "spent"])
async def test_no_account_goes_below_zero_whoever_writes(store: Store, column: str) -> None:
    await store.ledger.deposit(ADA, TOKENS, 1, "in")
    with pytest.raises(IntegrityError):
        await store.database.write(lambda connection: connection.execute(update(accounts).values({column: -1})))


async def test_the_books_of_an_empty_ledger_are_right(store: Store) -> None:
    audit = await store.ledger.audit()
    assert (audit.accounts, audit.entries, audit.differences) == (0, 0, ())


async def test_an_audit_finds_what_was_changed_beside_the_books(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    await store.ledger.deposit(EVE, TOKENS, 100, "in too")
    await store.database.write(
        lambda connection: connection.execute(update(accounts).where(accounts.c.id == EVES).values(balance=90))
    )
    audit = await store.ledger.audit()
    assert (audit.accounts, audit.entries) == (2, 2)
    found = {(one.account_id, one.what, one.expected, one.found) for one in audit.differences}
    assert found == {
        (EVES, "balance", 100, 90),
        (EVES, "balance after its last entry", 100, 90),
        ("all:tokens", "put in", 200, 190),
    }


async def test_an_audit_finds_a_lost_entry_and_a_reservation_that_nothing_holds(store: Store) -> None:
    await store.ledger.deposit(ADA, TOKENS, 100, "in")
    lost = delete(ledger_entries)
    stray = insert(reservations).values(
        id="stray",
        run_id="r",
        step_id="",
        generation=1,
        amounts={"tokens": 5, "micro_usd": 0, "steps": 0, "seconds": 0},
        accounts=[ADAS],
        created_at=datetime.now(UTC),
    )
    await store.database.write(lambda connection: [connection.execute(statement) for statement in (lost, stray)])
    found = {(one.account_id, one.what) for one in (await store.ledger.audit()).differences}
    assert found >= {(ADAS, "balance"), (ADAS, "reservations"), ("all:tokens", "put in")}
