"""The calls of models that a run made, on each database."""

from typing import Any

import pytest

from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import parse_plan
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.steps import pending_steps
from backplane.domain.users import User
from backplane.errors import Superseded
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from tests.submitted import new_run

KEY = CallKey("a", "turn", 1)


def beginning(key: CallKey = KEY, id: str = "call-1", **values: Any) -> BeginningCall:
    return BeginningCall(key, id, "one", "m", {"messages": [{"content": "Why?\x00\ud800"}]}, "digest", **values)


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    created = await store.runs.create(new_run(user), start=True)
    assert await store.running_runs.take(created.id, 1)
    return created


async def test_a_call_is_there_before_it_is_answered(store: Store, run: Run) -> None:
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.begin_model_call(beginning()))
    [call] = await store.model_calls.of_run(run.id)
    assert (call.status, call.finished_at, call.totals) == (CallStatus.STARTED, None, CallTotals())
    assert (call.request, call.response) == (None, None)  # a list has no texts


async def test_an_answer_is_kept_as_it_is(store: Store, run: Run) -> None:
    response = {"text": "Because.\x00\ud800"}

    def write(transaction: RunTransaction) -> None:
        transaction.begin_model_call(beginning())
        transaction.end_model_call(KEY, CallStatus.COMPLETED, CallTotals(3, 4, None), response=response)

    await store.running_runs.write(run.id, 1, write)
    call = await store.model_calls.find(run.id, KEY)
    assert call is not None
    assert (call.status, call.totals, call.response) == (CallStatus.COMPLETED, CallTotals(3, 4, None), response)
    assert call.request == {"messages": [{"content": "Why?\x00\ud800"}]}
    assert call.finished_at is not None


async def test_what_is_written_twice_is_there_once(store: Store, run: Run) -> None:
    def write(transaction: RunTransaction) -> None:
        transaction.begin_model_call(beginning())
        transaction.end_model_call(KEY, CallStatus.FAILED, CallTotals(1, 0, 1), error=RunError("model_refused", "no"))

    for _ in range(2):
        await store.running_runs.write(run.id, 1, write)
    [call] = await store.model_calls.of_run(run.id)
    assert (call.totals, call.error) == (CallTotals(1, 0, 1), RunError("model_refused", "no"))


async def test_a_call_that_is_made_again_takes_its_own_place(store: Store, run: Run) -> None:
    other = KEY._replace(ordinal=2)

    def both(transaction: RunTransaction) -> None:
        for key in (KEY, other):
            transaction.begin_model_call(beginning(key, f"call-{key.ordinal}"))
            transaction.end_model_call(key, CallStatus.COMPLETED, CallTotals(1, 1, 1), response={})

    await store.running_runs.write(run.id, 1, both)
    assert await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, lambda transaction: transaction.begin_model_call(beginning(id="call-3")))
    calls = {call.key: call for call in await store.model_calls.of_run(run.id)}
    assert (calls[KEY].id, calls[KEY].generation, calls[KEY].status) == ("call-3", 2, CallStatus.STARTED)
    assert calls[KEY].totals == CallTotals(1, 1, 1)  # paid for is paid for
    assert (calls[other].id, calls[other].status) == ("call-2", CallStatus.COMPLETED)


async def test_nobody_else_writes_the_calls_of_a_running_run(store: Store, run: Run) -> None:
    assert await store.running_runs.take(run.id, 2)
    with pytest.raises(Superseded):
        await store.running_runs.write(run.id, 1, lambda transaction: transaction.begin_model_call(beginning()))
    assert await store.model_calls.find(run.id, KEY) is None


@pytest.mark.parametrize("has_plan", [False, True])
@pytest.mark.parametrize("by_its_user", [False, True])
async def test_a_plan_that_was_none_is_asked_for_again_with_the_next_attempt(
    store: Store, user: User, run: Run, has_plan: bool, by_its_user: bool
) -> None:
    asked = CallKey("", "plan", 1)

    def planned(transaction: RunTransaction) -> None:
        transaction.begin_model_call(beginning(asked))
        transaction.end_model_call(asked, CallStatus.COMPLETED, CallTotals(1, 1, 1), response={})
        if has_plan:
            plan = parse_plan({"steps": [{"id": "a", "tool": "shell"}]})
            transaction.save_plan(plan, pending_steps(plan))
        if by_its_user:
            transaction.finish(RunStatus.FAILED, RunError("invalid_plan", "no"))
        else:
            transaction.queue_again(attempt=2, error=RunError("model_unavailable", "no", retryable=True))

    await store.running_runs.write(run.id, 1, planned)
    if by_its_user:
        await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    [call] = await store.model_calls.of_run(run.id)
    assert (call.request_digest, call.totals) == ("digest" if has_plan else "", CallTotals(1, 1, 1))


def test_a_sum_with_an_unknown_price_is_not_known() -> None:
    assert CallTotals(1, 2, 3) + CallTotals(4, 5, None) == CallTotals(5, 7, None)
    assert CallTotals(1, 2, 3) + CallTotals(4, 5, 6) == CallTotals(5, 7, 9)
