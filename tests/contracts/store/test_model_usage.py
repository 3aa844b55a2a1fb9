"""What models took, added up by day: on each database, while calls are written down and afterwards."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, insert

from backplane.domain.budgets import Amounts, Resource, user_owner
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.model_usage import ModelTotals, UsageFilter, UsageKey
from backplane.domain.runs import Run
from backplane.domain.users import User
from backplane.store import RunTransaction, Store
from backplane.store.model_usage import model_usage
from backplane.store.tables import runs
from tests.agents import placed_agent, sent
from tests.databases import downgrade, upgrade
from tests.submitted import new_run

USER, AGENT, MODEL, DAY, ROLE, POOL = UsageKey
TODAY = datetime.now(UTC).date()


async def running(store: Store, user: User, **values: object) -> Run:
    run = await store.runs.create(new_run(user, **values), start=True)
    assert await store.running_runs.take(run.id, 1)
    return run


def called(
    transaction: RunTransaction, totals: CallTotals, model: str = "m", ordinal: int = 1, was_made: bool = True
) -> None:
    key = CallKey("a", "turn", ordinal)
    transaction.begin_model_call(BeginningCall(key, str(uuid.uuid4()), "s", model, {}, "d"))
    transaction.end_model_call(key, CallStatus.COMPLETED, totals, was_made=was_made)


async def call(store: Store, run: Run, totals: CallTotals, model: str = "m", ordinal: int = 1) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: called(transaction, totals, model, ordinal))


async def test_no_call_makes_empty_totals(store: Store, user: User) -> None:
    report = await store.model_usage.report([MODEL], UsageFilter(user.id))
    assert (list(report.groups), report.totals) == ([], ModelTotals())


async def test_what_calls_took_is_grouped_by_each_key_that_is_asked_for(
    store: Store, user: User, stranger: User
) -> None:
    for owner, agent, model, price in ((user, "one", "m", 5), (user, "two", "n", 7), (stranger, "one", "m", 11)):
        await call(store, await running(store, owner, agent=agent), CallTotals(3, 4, price), model)
    by_model = await store.model_usage.report([MODEL])
    assert [(group.key[MODEL], group.totals.micro_usd) for group in by_model.groups] == [("s/m", 16), ("s/n", 7)]
    assert by_model.totals == ModelTotals(3, 0, 9, 12, 23)
    both = await store.model_usage.report([USER, AGENT])
    assert [(group.key, group.totals.micro_usd) for group in both.groups] == [
        ({USER: stranger.id, AGENT: "one"}, 11),
        ({USER: user.id, AGENT: "two"}, 7),
        ({USER: user.id, AGENT: "one"}, 5),
    ]
    own = await store.model_usage.report([DAY], UsageFilter(user.id))
    assert [(group.key[DAY], group.totals.micro_usd) for group in own.groups] == [(TODAY, 12)]


async def test_a_message_of_an_agent_that_lives_counts_for_its_pool_and_role(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    run = (await sent(store, user, agent)).run
    assert await store.running_runs.take(run.id, 1)
    await call(store, run, CallTotals(1, 1, 1))
    [group] = (await store.model_usage.report([ROLE, POOL])).groups
    assert group.key == {ROLE: "developer", POOL: "developer_pool"}


async def test_a_page_has_the_totals_of_all_groups(store: Store, user: User) -> None:
    run = await running(store, user)
    for number in range(1, 6):
        await call(store, run, CallTotals(0, 0, number), f"m{number}", number)
    pages = [await store.model_usage.report([MODEL], offset=offset, limit=2) for offset in (0, 2, 4, 6)]
    assert [[group.totals.micro_usd for group in page.groups] for page in pages] == [[5, 4], [3, 2], [1], []]
    assert {page.totals.micro_usd for page in pages} == {15}


async def test_days_are_in_their_order_and_both_ends_count(store: Store, user: User) -> None:
    values = {"user_id": user.id, "model": "s/m", "agent": "a", "pool": "", "role": "", "calls": 1, "unpriced": 0}
    days = [TODAY - timedelta(days=number) for number in range(4)]
    rows = [
        {**values, "day": day, "input_tokens": 1, "output_tokens": 1, "micro_usd": number}
        for number, day in enumerate(days)
    ]
    await store.database.write(lambda connection: connection.execute(insert(model_usage), rows))
    found = await store.model_usage.report([DAY], UsageFilter(first=days[2], last=days[1]))
    assert [group.key[DAY] for group in found.groups] == [days[2], days[1]]
    assert found.totals.micro_usd == 3


async def test_what_is_written_again_adds_nothing(store: Store, user: User) -> None:
    run = await running(store, user)
    await call(store, run, CallTotals(3, 4, 5))
    again = CallKey("a", "turn", 1)
    await store.running_runs.write(
        run.id, 1, lambda transaction: transaction.end_model_call(again, CallStatus.COMPLETED, CallTotals(3, 4, 5))
    )
    assert (await store.model_usage.report([MODEL])).totals == ModelTotals(1, 0, 3, 4, 5)


async def test_each_try_counts_for_the_model_that_made_it(store: Store, user: User) -> None:
    run, key = await running(store, user), CallKey("a", "turn", 1)

    def tries(transaction: RunTransaction) -> None:
        transaction.begin_model_call(BeginningCall(key, "1", "s", "first", {}, "d"))
        transaction.end_model_call(key, CallStatus.STARTED, CallTotals(10, 0, 100))
        transaction.begin_model_call(BeginningCall(key, "2", "s", "second", {}, "d"))
        transaction.end_model_call(key, CallStatus.COMPLETED, CallTotals(30, 1, 150))

    await store.running_runs.write(run.id, 1, tries)
    found = {group.key[MODEL]: group.totals for group in (await store.model_usage.report([MODEL])).groups}
    assert found == {"s/first": ModelTotals(0, 0, 10, 0, 100), "s/second": ModelTotals(1, 0, 20, 1, 50)}


async def test_a_price_that_is_not_known_is_counted_as_such(store: Store, user: User) -> None:
    run = await running(store, user)
    await call(store, run, CallTotals(3, 4, None))
    await call(store, run, CallTotals(1, 1, 9), ordinal=2)
    assert (await store.model_usage.report([USER])).totals == ModelTotals(2, 1, 4, 5, 9)


async def test_an_answer_from_a_record_is_no_usage(store: Store, user: User) -> None:
    run = await running(store, user)
    await store.running_runs.write(
        run.id, 1, lambda transaction: called(transaction, CallTotals(3, 4, 0), was_made=False)
    )
    assert (await store.model_usage.report([MODEL])).totals == ModelTotals()


async def test_usage_outlives_the_run(store: Store, user: User) -> None:
    run = await running(store, user)
    await call(store, run, CallTotals(1, 1, 1))
    await store.database.write(lambda connection: connection.execute(delete(runs)))
    assert (await store.model_usage.report([MODEL])).totals.micro_usd == 1


async def test_a_transaction_that_is_refused_adds_nothing(store: Store, user: User) -> None:
    run = await running(store, user)

    def refused(transaction: RunTransaction) -> None:
        called(transaction, CallTotals(1, 1, 1))
        transaction.reserve_budget(user.tier, "r", "a", Amounts(tokens=10))

    await store.ledger.deposit(user_owner(user.id), Resource.TOKENS, 1, "in")
    with pytest.raises(Exception, match="tokens left"):
        await store.running_runs.write(run.id, 1, refused)
    assert (await store.model_usage.report([MODEL])).totals == ModelTotals()


@pytest.mark.slow
async def test_runs_that_call_the_same_models_at_once_lose_nothing_and_equal_the_ledger(
    store: Store, user: User
) -> None:
    await store.ledger.deposit(user_owner(user.id), Resource.MICRO_USD, 1_000_000, "in")
    at_once = [await running(store, user) for _ in range(8)]

    async def work(run: Run, models: list[str]) -> None:
        for turn in range(5):

            def write(transaction: RunTransaction, turn: int = turn) -> None:
                for place, model in enumerate(models):
                    name = f"{turn}.{model}"
                    transaction.reserve_budget(user.tier, name, "a", Amounts(micro_usd=20))
                    called(transaction, CallTotals(1, 1, 7), model, turn * 10 + place + 1)
                    transaction.settle_budget(user.tier, name, Amounts(micro_usd=7))

            await store.running_runs.write(run.id, 1, write)

    orders = (["m", "n"], ["n", "m"])
    await asyncio.gather(*(work(run, orders[number % 2]) for number, run in enumerate(at_once)))
    report = await store.model_usage.report([MODEL])
    [account] = await store.ledger.of_owners([user_owner(user.id)])
    assert report.totals == ModelTotals(80, 0, 80, 80, 560)
    assert account.spent == report.totals.micro_usd


async def test_an_upgrade_adds_up_the_calls_that_are_there(store: Store, user: User) -> None:
    run = await running(store, user, agent="one")
    await call(store, run, CallTotals(3, 4, 5))
    await call(store, run, CallTotals(1, 1, None), ordinal=2)
    before = await store.model_usage.report(list(UsageKey))
    await store.database.write(lambda connection: downgrade(connection, "0025"))
    await store.database.write(lambda connection: upgrade(connection, "head"))
    after = await store.model_usage.report(list(UsageKey))
    assert (after.totals, list(after.groups)) == (ModelTotals(2, 1, 4, 5, 5), list(before.groups))
