"""What runs reserve and spend: never more than there is, and not a unit lost, in whatever order things happen."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane.domain.budgets import Amounts, Resource, account_id, run_owner, tier_owner, user_owner
from backplane.domain.events import EventType, encode
from backplane.domain.ledger import EntryKind
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.users import User
from backplane.errors import BudgetExhausted, Conflict, NotFound, Superseded
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from tests.submitted import new_run, together

TOKENS, USD, STEPS, SECONDS = Resource.TOKENS, Resource.MICRO_USD, Resource.STEPS, Resource.SECONDS
TIER = "standard"
ERROR = RunError("budget_exhausted", "nothing left", step="a")
CALL = Amounts(tokens=40, micro_usd=400)


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    """Held in generation 1."""
    return await running_run(store, user)


async def running_run(store: Store, user: User, generation: int = 1) -> Run:
    run = await store.runs.create(new_run(user), start=True)
    taken = await store.running_runs.take(run.id, generation)
    assert taken is not None
    return taken.run


async def state(store: Store, owner: str, resource: Resource) -> tuple[int, int, int]:
    """Balance, reserved, spent."""
    found = await store.ledger.get(account_id(owner, resource))
    return found.balance, found.reserved, found.spent


async def is_right(store: Store) -> bool:
    return not (await store.ledger.audit()).differences


def reserving(amounts: Amounts, reservation_id: str = "call") -> Callable[[RunTransaction], None]:
    return lambda transaction: transaction.reserve_budget(TIER, reservation_id, "a", amounts)


def settling(spent: Amounts, reservation_id: str = "call") -> Callable[[RunTransaction], None]:
    return lambda transaction: transaction.settle_budget(TIER, reservation_id, spent)


def releasing(reservation_id: str = "call") -> Callable[[RunTransaction], None]:
    return lambda transaction: transaction.release_budget(TIER, reservation_id)


# --- who has accounts ---


async def test_a_run_that_is_taken_says_its_tier_and_that_nobody_has_an_account(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    taken = await store.running_runs.take(run.id, 1)
    assert taken is not None
    assert (taken.tier, taken.has_accounts) == ("standard", False)


@pytest.mark.parametrize("kind", ["run", "user", "tier"])
async def test_a_run_that_is_taken_says_that_somebody_has_an_account(store: Store, user: User, kind: str) -> None:
    run = await store.runs.create(new_run(user), start=True)
    owner = {"run": run_owner(run.id), "user": user_owner(user.id), "tier": tier_owner(TIER)}[kind]
    await store.ledger.deposit("user:someone", TOKENS, 1, "other")
    await store.ledger.deposit("tier:free", TOKENS, 1, "another")
    await store.ledger.deposit(owner, TOKENS, 1, "in")
    taken = await store.running_runs.take(run.id, 1)
    assert taken is not None
    assert taken.has_accounts


# --- limits of the run ---


async def test_a_runs_limits_are_put_in_once_however_often_it_is_claimed(store: Store, run: Run) -> None:
    limits = {TOKENS: 100, STEPS: 0}
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, limits))
    await store.running_runs.write(run.id, 1, reserving(Amounts(tokens=30)))
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, lambda transaction: transaction.open_budget(TIER, limits))
    assert await state(store, run_owner(run.id), TOKENS) == (70, 30, 0)
    assert await state(store, run_owner(run.id), STEPS) == (0, 0, 0)
    assert await is_right(store)


async def test_a_limit_of_zero_allows_nothing(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {STEPS: 0}))
    with pytest.raises(BudgetExhausted, match="answer its decision with a higher budget"):
        await store.running_runs.write(run.id, 1, reserving(Amounts(steps=1)))


# --- reserve ---


async def test_every_account_that_there_is_pays(store: Store, run: Run, user: User) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {TOKENS: 100}))
    await store.ledger.deposit(user_owner(user.id), TOKENS, 200, "user")
    await store.ledger.deposit(tier_owner(TIER), USD, 1000, "tier")
    await store.running_runs.write(run.id, 1, reserving(CALL))
    assert await state(store, run_owner(run.id), TOKENS) == (60, 40, 0)
    assert await state(store, user_owner(user.id), TOKENS) == (160, 40, 0)
    assert await state(store, tier_owner(TIER), USD) == (600, 400, 0)
    await store.running_runs.write(run.id, 1, settling(Amounts(tokens=10, micro_usd=400)))
    assert await state(store, run_owner(run.id), TOKENS) == (90, 0, 10)
    assert await state(store, user_owner(user.id), TOKENS) == (190, 0, 10)
    assert await state(store, tier_owner(TIER), USD) == (600, 0, 400)
    [settled, reserved, _] = await store.ledger.entries(account_id(user_owner(user.id), TOKENS))
    assert [settled.kind, reserved.kind] == [EntryKind.SETTLE, EntryKind.RESERVE]
    assert (reserved.run_id, reserved.step_id, reserved.transfer_id) == (run.id, "a", settled.transfer_id)
    assert await is_right(store)


@pytest.mark.parametrize("empty", ["run", "user", "tier"])
async def test_where_one_account_has_too_little_nothing_is_written(
    store: Store, run: Run, user: User, empty: str
) -> None:
    owners = {"run": run_owner(run.id), "user": user_owner(user.id), "tier": tier_owner(TIER)}
    for name, owner in owners.items():
        await store.ledger.deposit(owner, TOKENS, 39 if name == empty else 100, name)
    event = encode(run.id, 3, EventType.LOG, {"line": "x"})
    with pytest.raises(BudgetExhausted) as refused:
        await store.running_runs.write(
            run.id, 1, together(lambda transaction: transaction.add_events([event]), reserving(CALL))
        )
    assert (refused.value.account, refused.value.needed, refused.value.left) == (
        account_id(owners[empty], TOKENS),
        40,
        39,
    )
    assert "39 tokens left and 40 tokens are needed" in refused.value.message
    assert account_id(owners[empty], TOKENS) in refused.value.message
    assert [account.reserved for account in await store.ledger.page()] == [0, 0, 0]
    assert await store.events.last_id(run.id) == 2
    assert await is_right(store)


async def test_dollars_are_shown_as_dollars(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {USD: 1500}))
    with pytest.raises(BudgetExhausted, match=r"\$0\.0015 left and \$0\.02 are needed: .*micro_usd"):
        await store.running_runs.write(run.id, 1, reserving(Amounts(micro_usd=20_000)))


async def test_a_resource_without_an_account_has_no_limit(store: Store, run: Run, user: User) -> None:
    await store.ledger.deposit(user_owner(user.id), STEPS, 1, "in")
    await store.running_runs.write(run.id, 1, reserving(CALL))
    await store.running_runs.write(run.id, 1, settling(CALL))
    assert [account.id for account in await store.ledger.page()] == [account_id(user_owner(user.id), STEPS)]


async def test_a_closed_account_does_not_bind_and_still_settles(store: Store, run: Run, user: User) -> None:
    account = account_id(user_owner(user.id), TOKENS)
    await store.ledger.deposit(user_owner(user.id), TOKENS, 100, "in")
    await store.running_runs.write(run.id, 1, reserving(CALL, "before"))
    await store.ledger.close(account)
    await store.running_runs.write(run.id, 1, reserving(Amounts(tokens=10**9), "after"))
    await store.running_runs.write(run.id, 1, settling(Amounts(tokens=10**9), "after"))
    await store.running_runs.write(run.id, 1, settling(Amounts(tokens=30), "before"))
    assert await state(store, user_owner(user.id), TOKENS) == (10, 0, 30)
    assert await is_right(store)


async def test_of_two_runs_that_reserve_the_last_dollar_at_once_one_gets_it(
    store: Store, second_store: Store, user: User
) -> None:
    first, second = await running_run(store, user), await running_run(store, user)
    await store.ledger.deposit(user_owner(user.id), USD, 1_000_000, "in")
    asked = [
        store.running_runs.write(first.id, 1, reserving(Amounts(micro_usd=600_000))),
        second_store.running_runs.write(second.id, 1, reserving(Amounts(micro_usd=600_000))),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {BudgetExhausted, type(None)}
    assert await state(store, user_owner(user.id), USD) == (400_000, 600_000, 0)


async def test_runs_that_reserve_and_settle_at_once_beside_transfers_neither_hang_nor_lose_anything(
    store: Store, second_store: Store, user: User
) -> None:
    held = [await running_run(store, user) for _ in range(6)]
    owner = user_owner(user.id)
    for resource in Resource:
        await store.ledger.deposit(owner, resource, 1_000, f"user {resource}")
        await store.ledger.deposit(tier_owner(TIER), resource, 1_000, f"tier {resource}")

    async def spend(number: int, run: Run) -> None:
        database = (store, second_store)[number % 2]
        step, call = Amounts(steps=1, seconds=5), Amounts(tokens=7, micro_usd=9)
        # In the two orders: what locks as it goes would hang.
        for begin, end in ((step, call), (call, step), (step, call)):
            await database.running_runs.write(run.id, 1, together(reserving(begin, "x"), reserving(end, "y")))
            await database.running_runs.write(run.id, 1, together(settling(end, "y"), settling(begin, "x")))

    async def move(number: int) -> None:
        source, target = account_id(owner, TOKENS), account_id(tier_owner(TIER), TOKENS)
        await second_store.ledger.transfer(*((source, target) if number % 2 else (target, source)), 3, f"over {number}")

    await asyncio.gather(*(spend(number, run) for number, run in enumerate(held)), *map(move, range(6)))
    assert await state(store, owner, TOKENS) == (1_000 - 126, 0, 126)
    assert await state(store, tier_owner(TIER), STEPS) == (1_000 - 18, 0, 18)
    assert await is_right(store)


# --- once ---


async def test_what_is_written_twice_after_a_lost_answer_happens_once(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {TOKENS: 100}))
    for _ in range(2):
        await store.running_runs.write(run.id, 1, reserving(CALL))
    assert await state(store, run_owner(run.id), TOKENS) == (60, 40, 0)
    for _ in range(2):
        await store.running_runs.write(run.id, 1, settling(Amounts(tokens=10)))
    await store.running_runs.write(run.id, 1, releasing())
    assert await state(store, run_owner(run.id), TOKENS) == (90, 0, 10)
    assert await is_right(store)


async def test_a_name_may_be_reserved_again_after_it_was_released(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {TOKENS: 100}))
    for _ in range(2):
        await store.running_runs.write(run.id, 1, reserving(CALL))
        await store.running_runs.write(run.id, 1, releasing())
    await store.running_runs.write(run.id, 1, reserving(CALL))
    assert await state(store, run_owner(run.id), TOKENS) == (60, 40, 0)
    assert await is_right(store)


async def test_two_runs_may_use_the_same_name(store: Store, user: User) -> None:
    await store.ledger.deposit(user_owner(user.id), TOKENS, 100, "in")
    for run in (await running_run(store, user), await running_run(store, user)):
        await store.running_runs.write(run.id, 1, reserving(CALL))
    assert await state(store, user_owner(user.id), TOKENS) == (20, 80, 0)


# --- more than was reserved ---


async def test_what_was_spent_beyond_the_reservation_is_taken_as_far_as_it_goes(store: Store, run: Run) -> None:
    await store.running_runs.write(
        run.id, 1, lambda transaction: transaction.open_budget(TIER, {TOKENS: 100, SECONDS: 10})
    )
    await store.running_runs.write(run.id, 1, reserving(CALL))
    await store.running_runs.write(run.id, 1, settling(Amounts(tokens=130, seconds=4)))
    assert await state(store, run_owner(run.id), TOKENS) == (0, 0, 100)
    assert await state(store, run_owner(run.id), SECONDS) == (6, 0, 4)
    newest = (await store.ledger.entries(account_id(run_owner(run.id), TOKENS)))[0]
    assert newest.note == "30 more were used than there was"
    assert await is_right(store)


# --- a lost worker ---


async def test_of_what_a_lost_worker_reserved_the_model_is_paid_and_the_rest_goes_back(store: Store, run: Run) -> None:
    everything = Amounts(tokens=40, micro_usd=400, steps=1, seconds=60)
    await store.running_runs.write(
        run.id, 1, lambda transaction: transaction.open_budget(TIER, dict.fromkeys(Resource, 1000))
    )
    await store.running_runs.write(run.id, 1, reserving(everything))
    await store.running_runs.take(run.id, 2)
    for _ in range(2):
        await store.running_runs.write(
            run.id, 2, together(reserving(everything, "new"), lambda h: h.settle_lost_budget(TIER))
        )
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, settling(everything))
    owner = run_owner(run.id)
    assert [await state(store, owner, resource) for resource in (TOKENS, USD, STEPS, SECONDS)] == [
        (920, 40, 40),
        (200, 400, 400),
        (999, 1, 0),
        (940, 60, 0),
    ]
    kinds = {entry.kind for entry in await store.ledger.entries(account_id(owner, STEPS))}
    assert kinds == {EntryKind.DEPOSIT, EntryKind.RESERVE, EntryKind.LOST}
    assert await is_right(store)


async def test_a_newer_generation_cannot_settle_what_an_older_one_reserved(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.open_budget(TIER, {TOKENS: 100}))
    await store.running_runs.write(run.id, 1, reserving(CALL))
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, settling(Amounts(tokens=1)))
    assert await state(store, run_owner(run.id), TOKENS) == (60, 40, 0)


LETTING_GO: dict[str, Callable[[RunTransaction], None]] = {
    "finish": lambda transaction: transaction.finish(RunStatus.CANCELLED, None),
    "wait": lambda transaction: transaction.wait_for_person(ERROR),
    "queue": lambda transaction: transaction.queue_again(attempt=None, error=None),
}


@pytest.mark.parametrize("let_go", LETTING_GO.values(), ids=LETTING_GO)
async def test_nothing_stays_reserved_for_a_run_that_nobody_holds(
    store: Store, run: Run, user: User, let_go: Callable[[RunTransaction], None]
) -> None:
    await store.ledger.deposit(user_owner(user.id), TOKENS, 100, "tokens")
    await store.ledger.deposit(user_owner(user.id), STEPS, 100, "steps")
    await store.running_runs.write(run.id, 1, reserving(Amounts(tokens=10, steps=1), "of the lost one"))
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, reserving(Amounts(tokens=20, steps=1), "settled at last"))
    await store.running_runs.write(run.id, 2, reserving(Amounts(tokens=5, steps=1), "forgotten"))
    await store.running_runs.write(run.id, 2, together(settling(Amounts(tokens=1, steps=1), "settled at last"), let_go))
    assert await state(store, user_owner(user.id), TOKENS) == (84, 0, 16)
    assert await state(store, user_owner(user.id), STEPS) == (99, 0, 1)
    await store.running_runs.take(run.id, 3)
    assert await is_right(store)


async def test_a_run_that_spent_nothing_ends_beside_the_reservations_of_others(store: Store, user: User) -> None:
    await store.ledger.deposit(user_owner(user.id), TOKENS, 100, "tokens")
    first, second = await running_run(store, user), await running_run(store, user)
    await store.running_runs.write(first.id, 1, reserving(CALL))
    await store.running_runs.write(second.id, 1, LETTING_GO["finish"])
    assert await state(store, user_owner(user.id), TOKENS) == (60, 40, 0)


# --- any order ---

AMOUNTS = st.builds(Amounts, *(st.integers(0, 60) for _ in range(4)))
NAMES = st.sampled_from(["x", "y", "z"])
WHO = st.sampled_from(["run", "user", "tier"])
OPERATIONS = st.one_of(
    st.tuples(st.just("deposit"), WHO, st.sampled_from(Resource), st.integers(1, 100)),
    st.tuples(st.just("withdraw"), WHO, st.sampled_from(Resource), st.integers(1, 100)),
    st.tuples(
        st.just("transfer"), st.permutations(["run", "user", "tier"]), st.sampled_from(Resource), st.integers(1, 100)
    ),
    st.tuples(st.just("close"), WHO, st.sampled_from(Resource)),
    st.tuples(st.just("reserve"), NAMES, AMOUNTS),
    st.tuples(st.just("settle"), NAMES, AMOUNTS),
    st.tuples(st.just("release"), NAMES),
    st.tuples(st.just("take over")),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(OPERATIONS, min_size=5, max_size=25))
async def test_in_any_order_nothing_is_lost_and_nobody_spends_more_than_there_is(
    store: Store, user: User, operations: list[tuple[Any, ...]]
) -> None:
    generation = 1
    run = await running_run(store, user)
    owners = {"run": run_owner(run.id), "user": user_owner(user.id), "tier": tier_owner(TIER)}
    for name, *values in operations:
        with suppress(BudgetExhausted, NotFound, Conflict):
            match name, values:
                case "deposit", (who, resource, amount):
                    await store.ledger.deposit(owners[who], resource, amount, str(uuid.uuid4()))
                case "withdraw", (who, resource, amount):
                    await store.ledger.withdraw(account_id(owners[who], resource), amount, str(uuid.uuid4()))
                case "transfer", ([source, target, _], resource, amount):
                    taken, given = account_id(owners[source], resource), account_id(owners[target], resource)
                    await store.ledger.transfer(taken, given, amount, str(uuid.uuid4()))
                case "close", (who, resource):
                    await store.ledger.close(account_id(owners[who], resource))
                case "reserve", (key, amounts):
                    binding = await store.ledger.of_owners(owners.values())
                    enough = all(account.balance >= amounts.of(account.resource) for account in binding)
                    try:
                        await store.running_runs.write(run.id, generation, reserving(amounts, key))
                    except BudgetExhausted:
                        assert not enough
                case "settle", (key, amounts):
                    await store.running_runs.write(run.id, generation, settling(amounts, key))
                case "release", (key,):
                    await store.running_runs.write(run.id, generation, releasing(key))
                case _:
                    generation += 1
                    assert await store.running_runs.take(run.id, generation)
                    await store.running_runs.write(
                        run.id, generation, lambda transaction: transaction.settle_lost_budget(TIER)
                    )
    audit = await store.ledger.audit()
    assert audit.differences == ()
    await store.running_runs.take(run.id, generation + 1)
    await store.running_runs.write(run.id, generation + 1, lambda transaction: transaction.settle_lost_budget(TIER))
    assert all(account.reserved == 0 for account in await store.ledger.page())
    assert await is_right(store)
