"""The budgets of a running run: in the same transaction as what they pay for, and free where there are none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import event

from backplane.domain.budgets import MICRO, Amounts, Resource, RunBudget, account_id, run_owner, user_owner
from backplane.domain.runs import Taken
from backplane.domain.users import Tier, User
from backplane.errors import BudgetExhausted, Superseded
from backplane.settings import Settings
from backplane.store import Store
from backplane.store.database import Database
from tests.submitted import new_run
from worker.run.budget import Budget, default_budget

TOKENS, STEPS = Resource.TOKENS, Resource.STEPS
NONE = RunBudget()


@pytest.fixture
async def store(sqlite_database: str) -> AsyncIterator[Store]:
    database = Database(sqlite_database)
    yield Store(database)
    await database.close()


@pytest.fixture
async def user(store: Store) -> User:
    token, _ = await store.users.create_token("ada", Tier.STANDARD)
    return token.user


async def taken(store: Store, user: User, **values: Any) -> Taken:
    run = await store.runs.create(new_run(user, **values), start=True)
    found = await store.running_runs.take(run.id, 1)
    assert found is not None
    return found


async def opened(store: Store, taken: Taken, defaults: RunBudget = NONE) -> Budget:
    return await Budget.open(store, taken.run, taken.tier, defaults, has_accounts=taken.has_accounts)


async def write(store: Store, taken: Taken, *writes: Any) -> None:
    def all_of_them(transaction: Any) -> None:
        for one in writes:
            one(transaction)

    await store.running_runs.write(taken.run.id, taken.run.generation, all_of_them)


async def balances(store: Store) -> dict[str, tuple[int, int, int]]:
    return {account.id: (account.balance, account.reserved, account.spent) for account in await store.ledger.page()}


@asynccontextmanager
async def statements(store: Store) -> AsyncIterator[list[str]]:
    """What the database is asked meanwhile."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    engine = store.database._connections._engine
    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


async def test_where_nobody_has_an_account_a_budget_costs_nothing(store: Store, user: User) -> None:
    taken_run = await taken(store, user)
    async with statements(store) as asked:
        budget = await opened(store, taken_run)
        assert not budget.active
        assert await budget.left(TOKENS) is None
    assert asked == []
    amounts = Amounts(tokens=10**12)
    settling = budget.settle("call", amounts), budget.release("call"), budget.settle_lost()
    await write(store, taken_run, budget.reserve("call", "a", amounts), *settling)
    assert await balances(store) == {}


async def test_a_run_has_the_limits_that_it_was_given(store: Store, user: User) -> None:
    taken_run = await taken(store, user, budget={"tokens": 100, "usd": 0.5})
    budget = await opened(store, taken_run, RunBudget(steps=3))
    assert budget.active
    assert await balances(store) == {
        account_id(run_owner(taken_run.run.id), TOKENS): (100, 0, 0),
        account_id(run_owner(taken_run.run.id), Resource.MICRO_USD): (MICRO // 2, 0, 0),
    }
    assert (await budget.left(TOKENS), await budget.left(STEPS)) == (100, None)


async def test_a_run_that_was_given_none_has_those_of_the_settings(store: Store, user: User) -> None:
    settings = Settings.model_validate({"budget_run_steps": 3, "budget_run_usd": 1.5})
    assert default_budget(settings) == RunBudget(steps=3, usd=1.5)
    assert default_budget(Settings.model_validate({})) == NONE
    taken_run = await taken(store, user)
    budget = await opened(store, taken_run, default_budget(settings))
    assert (await budget.left(STEPS), await budget.left(TOKENS)) == (3, None)


@pytest.mark.parametrize("resource", ["tokens", "usd", "steps", "seconds"])
def test_a_default_that_no_run_may_be_given_is_refused_as_a_setting(resource: str) -> None:
    [most] = (limit.le for limit in RunBudget.model_fields[resource].metadata if hasattr(limit, "le"))
    assert default_budget(Settings.model_validate({f"budget_run_{resource}": most})) == RunBudget(**{resource: most})
    with pytest.raises(ValidationError, match=f"budget_run_{resource}"):
        Settings.model_validate({f"budget_run_{resource}": most + 1})


async def test_what_is_left_is_the_least_of_all_accounts(store: Store, user: User) -> None:
    for owner, amount in ((user_owner(user.id), 70), ("tier:standard", 80), ("tier:free", 1)):
        await store.ledger.deposit(owner, TOKENS, amount, owner)
    taken_run = await taken(store, user, budget={"tokens": 100})
    budget = await opened(store, taken_run)
    assert await budget.left(TOKENS) == 70
    await store.ledger.close(account_id(user_owner(user.id), TOKENS))
    assert await budget.left(TOKENS) == 80


async def test_an_empty_budget_keeps_everything_else_of_its_transaction_from_being_written(
    store: Store, user: User
) -> None:
    taken_run = await taken(store, user, budget={"steps": 1})
    budget = await opened(store, taken_run)
    await write(store, taken_run, budget.reserve("a", "a", Amounts(steps=1)))
    with pytest.raises(BudgetExhausted, match="0 steps left and 1 steps are needed"):
        await write(
            store,
            taken_run,
            lambda run: run.skip_pending_steps(),
            budget.settle("a", Amounts(steps=1)),
            budget.reserve("b", "b", Amounts(steps=1)),
        )
    assert await balances(store) == {account_id(run_owner(taken_run.run.id), STEPS): (0, 1, 0)}


async def test_a_raised_budget_goes_on(store: Store, user: User) -> None:
    taken_run = await taken(store, user, budget={"steps": 0})
    budget = await opened(store, taken_run)
    await store.ledger.raise_run_budget(taken_run.run.id, RunBudget(steps=2), "decision")
    await write(store, taken_run, budget.reserve("a", "a", Amounts(steps=1)))
    assert await budget.left(STEPS) == 1


async def test_whoever_takes_a_run_over_settles_what_the_lost_worker_left(store: Store, user: User) -> None:
    first = await taken(store, user, budget={"tokens": 100, "steps": 5})
    budget = await opened(store, first)
    await write(store, first, budget.reserve("a", "a", Amounts(tokens=40, steps=1)))
    second = await store.running_runs.take(first.run.id, 2)
    assert second is not None
    assert second.has_accounts
    await opened(store, second)
    owner = run_owner(first.run.id)
    assert await balances(store) == {account_id(owner, STEPS): (5, 0, 0), account_id(owner, TOKENS): (60, 0, 40)}
    with pytest.raises(Superseded):
        await opened(store, first)
