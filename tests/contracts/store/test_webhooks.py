"""The outbox: a message is written with the state that it reports, claimed by one sender at a time, and settled by
it."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, update

from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.users import User
from backplane.domain.webhooks import Delivery, DeliveryStatus
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from backplane.store.run_writes import RunWrite
from backplane.store.tables import runs, webhook_deliveries
from tests.submitted import new_run

URL = "https://example.org/hook?team=1"
ERROR = RunError("command_failed", "exit code 1", step="only")
LEASE = 60.0


async def running_run(store: Store, user: User, *, url: str | None = URL, **values: Any) -> Run:
    run = await store.runs.create(new_run(user, webhook_url=url, **values), start=True)
    assert await store.running_runs.take(run.id, 1)
    return run


async def ended_run(store: Store, user: User, *, url: str | None = URL) -> Run:
    run = await running_run(store, user, url=url)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    return run


async def claim(
    store: Store, limit: int = 100, *, lease: float = LEASE, user_limit: int = 100, **sending: int
) -> list[Delivery]:
    return await store.webhooks.claim(limit, lease_seconds=lease, user_limit=user_limit, sending=sending)


async def deliveries(store: Store) -> int:
    count = select(func.count()).select_from(webhook_deliveries)
    return await store.database.read(lambda connection: connection.execute(count).scalar_one())


async def make_due(store: Store) -> None:
    """As if the leases and pauses were over."""
    past = update(webhook_deliveries).values(next_at=datetime.now(UTC) - timedelta(hours=1))
    await store.database.write(lambda connection: connection.execute(past))


# --- what is written ---


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (lambda transaction: transaction.finish(RunStatus.COMPLETED, None), "completed", None),
        (lambda transaction: transaction.finish(RunStatus.FAILED, ERROR), "failed", ERROR.as_dict()),
        (lambda transaction: transaction.finish(RunStatus.CANCELLED, None), "cancelled", None),
        (lambda transaction: transaction.wait_for_person(ERROR), "waiting", ERROR.as_dict()),
    ],
)
async def test_a_state_that_matters_is_put_into_the_outbox(
    store: Store, user: User, end: Callable[[RunTransaction], None], status: str, error: Any
) -> None:
    run = await running_run(store, user, metadata={"ticket": 42})
    await store.running_runs.write(run.id, 1, end)
    [delivery] = await claim(store)
    now = await store.runs.get(user.id, run.id)
    assert (delivery.run_id, delivery.url, delivery.event) == (run.id, URL, f"run.{status}")
    assert json.loads(delivery.body) == {
        "event": f"run.{status}",
        "delivery_id": delivery.id,
        "run_id": run.id,
        "status": status,
        "attempt": 1,
        "error": error,
        "metadata": {"ticket": 42},
        "created_at": now.created_at.isoformat(),
        "started_at": now.started_at.isoformat() if now.started_at else "it was started",
        "finished_at": now.finished_at.isoformat() if now.finished_at else None,
    }
    assert (now.finished_at is None) is (status == "waiting")


async def test_a_run_that_is_cancelled_before_a_worker_has_it_gets_a_webhook(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user, webhook_url=URL), start=True)
    await store.runs.cancel(user.id, run.id)
    [delivery] = await claim(store)
    assert (delivery.event, json.loads(delivery.body)["started_at"]) == ("run.cancelled", None)


async def test_states_on_the_way_and_runs_without_a_url_get_no_webhook(store: Store, user: User) -> None:
    run = await running_run(store, user)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.queue_again(attempt=2, error=ERROR))
    await ended_run(store, user, url=None)
    unnamed = await store.runs.create(new_run(user), start=True)
    await store.runs.cancel(user.id, unnamed.id)
    assert await deliveries(store) == 0


async def test_what_is_rolled_back_gets_no_webhook(store: Store, user: User) -> None:
    run = await running_run(store, user)

    def write(transaction: RunTransaction) -> None:
        transaction.finish(RunStatus.COMPLETED, None)
        transaction.writes.append(RunWrite())  # which nothing carries out

    with pytest.raises(TypeError):
        await store.running_runs.write(run.id, 1, write)
    assert await deliveries(store) == 0


async def test_a_run_without_a_url_costs_no_statement_more(store: Store, user: User) -> None:
    counts = []
    for url in (None, URL):
        run = await running_run(store, user, url=url)
        said: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object, said: list[str] = said) -> None:
            said.append(statement)

        def write(transaction: RunTransaction) -> None:
            transaction.unless_cancelled()  # which PostgreSQL is not asked in one statement
            transaction.finish(RunStatus.COMPLETED, None)

        event.listen(Engine, "before_cursor_execute", note)
        try:
            await store.running_runs.write(run.id, 1, write)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        counts.append(len(said))
    # BEGIN, its row twice, whether it is to be cancelled, whether it still has something reserved, and the note for the
    # event bus.
    assert counts == [6, 8]


async def test_a_run_that_goes_takes_its_deliveries_along(store: Store, user: User) -> None:
    run = await ended_run(store, user)
    gone = runs.delete().where(runs.c.id == run.id)
    await store.database.write(lambda connection: connection.execute(gone))
    assert await deliveries(store) == 0


# --- who sends it ---


async def test_a_claim_holds_for_its_lease_and_is_due_again_after_it(
    store: Store, second_store: Store, user: User
) -> None:
    await ended_run(store, user)
    [first] = await claim(store)
    assert await claim(second_store) == []
    await make_due(store)
    [second] = await claim(second_store)
    assert (first.id, first.attempt) == (second.id, 1)
    assert second.attempt == 2


async def test_claims_at_the_same_moment_never_share_a_delivery(store: Store, second_store: Store, user: User) -> None:
    for _ in range(20):
        await ended_run(store, user)
    rounds = await asyncio.gather(*(claim(part, 3) for _ in range(5) for part in (store, second_store)))
    ids = [delivery.id for found in rounds for delivery in found]
    ids += [delivery.id for delivery in await claim(store)]
    assert len(ids) == len(set(ids)) == 20


async def test_nobody_gets_more_than_a_users_share_at_once(store: Store, user: User, stranger: User) -> None:
    for _ in range(5):
        await ended_run(store, user)
    await ended_run(store, stranger)
    first = await claim(store, 10, user_limit=2)
    shares = Counter(delivery.user_id for delivery in first)
    assert shares == {stranger.id: 1, user.id: 2}
    assert await claim(store, 10, user_limit=2, **{user.id: 2}) == []
    assert len(await claim(store, 10, user_limit=2, **{user.id: 1})) == 1


async def test_the_one_that_has_waited_longest_goes_first(store: Store, user: User) -> None:
    late, early = await ended_run(store, user), await ended_run(store, user)
    past = update(webhook_deliveries).where(webhook_deliveries.c.run_id == early.id)
    past = past.values(next_at=datetime.now(UTC) - timedelta(hours=1))
    await store.database.write(lambda connection: connection.execute(past))
    assert [delivery.run_id for delivery in await claim(store, 1)] == [early.id]
    assert [delivery.run_id for delivery in await claim(store, 1)] == [late.id]


# --- what came of it ---


async def test_what_was_delivered_is_not_sent_again(store: Store, user: User) -> None:
    run = await ended_run(store, user)
    [delivery] = await claim(store)
    await store.webhooks.delivered(delivery, 204)
    await make_due(store)
    assert await claim(store) == []
    state = await store.webhooks.last_of(run.id)
    assert state
    assert (state.status, state.attempts, state.response_code, state.last_error) == ("delivered", 1, 204, None)


async def test_what_failed_is_due_again_after_its_pause(store: Store, user: User) -> None:
    run = await ended_run(store, user)
    [delivery] = await claim(store)
    await store.webhooks.failed(delivery, "it answered 500", 500, 3600.0)
    assert await claim(store) == []
    state = await store.webhooks.last_of(run.id)
    assert state
    assert (state.status, state.attempts, state.response_code, state.last_error) == (
        DeliveryStatus.PENDING, 1, 500, "it answered 500",
    )  # fmt: skip
    assert timedelta(minutes=59) < state.next_at - datetime.now(UTC) < timedelta(minutes=61)
    await store.webhooks.failed(delivery, "once more", 500, 0.0)
    [again] = await claim(store)
    assert (again.id, again.body, again.attempt) == (delivery.id, delivery.body, 2)


async def test_what_was_given_up_is_not_sent_again(store: Store, user: User) -> None:
    run = await ended_run(store, user)
    [delivery] = await claim(store)
    await store.webhooks.failed(delivery, "it answered 410", 410, None)
    await make_due(store)
    assert await claim(store) == []
    state = await store.webhooks.last_of(run.id)
    assert state
    assert state.status is DeliveryStatus.GIVEN_UP


async def test_a_late_failure_changes_nothing_after_another_claim_but_a_late_delivery_does(
    store: Store, user: User
) -> None:
    run = await ended_run(store, user)
    [slow] = await claim(store)
    await make_due(store)
    [newer] = await claim(store)
    await store.webhooks.failed(slow, "too late", None, None)
    state = await store.webhooks.last_of(run.id)
    assert state
    assert (state.status, state.last_error) == (DeliveryStatus.PENDING, None)
    await store.webhooks.delivered(slow, 200)
    await store.webhooks.failed(newer, "refused as a repetition", 409, 1.0)
    state = await store.webhooks.last_of(run.id)
    assert state
    assert (state.status, state.response_code) == (DeliveryStatus.DELIVERED, 200)


async def test_the_state_of_a_run_is_that_of_its_newest_delivery(store: Store, user: User) -> None:
    run = await running_run(store, user)
    assert await store.webhooks.last_of(run.id) is None
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.wait_for_person(ERROR))
    await store.runs.cancel(user.id, run.id)
    state = await store.webhooks.last_of(run.id)
    assert state
    assert state.event == "run.cancelled"
    assert await deliveries(store) == 2


async def test_a_look_that_finds_nothing_due_uses_the_index_of_what_is_pending(store: Store, user: User) -> None:
    for _ in range(3):
        await ended_run(store, user)

    def plan(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        query = "SELECT 1 FROM webhook_deliveries WHERE status = 'pending' AND next_at <= CURRENT_TIMESTAMP LIMIT 1"
        return str(connection.exec_driver_sql(f"{explain} {query}").all())

    assert "ix_webhook_deliveries_pending" in await store.database.read(plan)


# --- secrets ---


async def test_a_users_secret_is_made_at_first_use_and_stays(store: Store, user: User, stranger: User) -> None:
    made = await asyncio.gather(*(store.webhooks.secret(user.id) for _ in range(4)))
    assert len({secret.secret for secret in made}) == 1
    assert len(base64.b64decode(made[0].secret.removeprefix("whsec_"), validate=True)) == 32
    assert (await store.webhooks.secret(stranger.id)).secret != made[0].secret
    await ended_run(store, user)
    [delivery] = await claim(store)
    assert delivery.secrets == (made[0].secret,)


async def test_a_user_who_never_asked_for_a_secret_has_one_when_something_is_sent(store: Store, user: User) -> None:
    await ended_run(store, user)
    [delivery] = await claim(store)
    assert delivery.secrets == ((await store.webhooks.secret(user.id)).secret,)


async def test_after_a_rotation_both_secrets_sign_until_the_overlap_is_over(store: Store, user: User) -> None:
    old = await store.webhooks.secret(user.id)
    new = await store.webhooks.rotate_secret(user.id, overlap_seconds=3600.0)
    assert new.secret != old.secret
    assert new.previous == old.secret
    await ended_run(store, user)
    [delivery] = await claim(store)
    assert delivery.secrets == (new.secret, old.secret)
    newest = await store.webhooks.rotate_secret(user.id, overlap_seconds=0.0)
    assert (newest.previous, newest.previous_until) == (None, None)
    await make_due(store)
    [delivery] = await claim(store)
    assert delivery.secrets == (newest.secret,)


async def test_secrets_do_not_show_when_they_are_printed(store: Store, user: User) -> None:
    secret = await store.webhooks.rotate_secret(user.id, overlap_seconds=3600.0)
    await ended_run(store, user)
    [delivery] = await claim(store)
    assert "whsec_" not in f"{secret!r} {secret} {delivery!r} {delivery}"
