"""The place of an event among all of its user's: nothing is passed by, nothing comes twice."""

from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

import backplane.store.migrations as migrations
from backplane.domain.events import Event, EventType, Place, encode
from backplane.domain.users import Tier, User
from backplane.store import Store
from backplane.store.database import Database
from tests.submitted import new_run

BEGIN = Place(0, 0)


def log_events(run_id: str, first: int, last: int) -> list[Event]:
    return [encode(run_id, number, EventType.LOG, {"line": "x"}) for number in range(first, last + 1)]


async def running_run(store: Store, user: User) -> str:
    """A running run of the user with two events, in generation 1."""
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)
    return run.id


async def all_of(store: Store, user: User, after: Place = BEGIN, limit: int = 100) -> list[tuple[str, int]]:
    """Page by page."""
    found: list[tuple[str, int]] = []
    while True:
        page = await store.events.of_user(user.id, after, limit)
        found += [(event.run_id, event.id) for _, event in page.events]
        after = page.until
        if len(page.events) < limit:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_events_come_in_the_order_in_which_they_were_stored_whatever_the_page(
    store: Store, user: User, limit: int
) -> None:
    first, second = await running_run(store, user), await running_run(store, user)
    await store.running_runs.add_events({(second, 1): log_events(second, 3, 4)})
    await store.running_runs.add_events({(first, 1): log_events(first, 3, 3)})
    expected = [(first, 1), (first, 2), (second, 1), (second, 2), (second, 3), (second, 4), (first, 3)]
    assert await all_of(store, user, limit=limit) == expected


async def test_events_of_others_are_not_among_them(store: Store, user: User, stranger: User) -> None:
    run_id = await running_run(store, user)
    await running_run(store, stranger)
    assert {found for found, _ in await all_of(store, user)} == {run_id}


async def test_what_is_stored_again_keeps_its_place(store: Store, user: User) -> None:
    run_id = await running_run(store, user)
    await store.running_runs.add_events({(run_id, 1): log_events(run_id, 3, 4)})
    page = await store.events.of_user(user.id, BEGIN, 100)
    await store.running_runs.add_events({(run_id, 1): log_events(run_id, 3, 5)})
    assert (await store.events.of_user(user.id, BEGIN, 100)).events[:4] == page.events
    assert await all_of(store, user, page.until) == [(run_id, 5)]


async def test_behind_the_present_comes_what_is_stored_later_and_nothing_else(store: Store, user: User) -> None:
    run_id = await running_run(store, user)
    present = await store.events.present()
    assert await all_of(store, user, present) == []
    await store.running_runs.add_events({(run_id, 1): log_events(run_id, 3, 3)})
    assert await all_of(store, user, present) == [(run_id, 3)]


async def test_no_place_is_given_again_when_all_events_are_gone(store: Store, user: User) -> None:
    await running_run(store, user)
    page = await store.events.of_user(user.id, BEGIN, 100)
    await store.database.write(lambda connection: connection.execute(text("DELETE FROM events")))
    run_id = await running_run(store, user)
    assert await all_of(store, user, page.events[-1][0]) == [(run_id, 1), (run_id, 2)]
    assert page.until <= await store.events.present()


async def test_an_event_whose_transaction_is_open_is_waited_for_by_those_behind_it(postgres_database: str) -> None:
    store = Store(Database(postgres_database))
    await store.migrate()
    user = (await store.users.create_token("ada", Tier.STANDARD))[0].user
    slow = await store.runs.create(new_run(user))
    page = await store.events.of_user(user.id, BEGIN, 100)
    with psycopg.connect(postgres_database.replace("+psycopg", "")) as other:
        late = log_events(slow.id, 2, 2)[0]
        insert = "INSERT INTO events (run_id, id, user_id, line) VALUES (%s, %s, %s, %s)"
        other.execute(insert, (slow.id, late.id, user.id, late.line))
        quick = await store.runs.create(new_run(user))
        while_open = await store.events.of_user(user.id, page.until, 100)
        assert while_open.events == []
        other.commit()
    assert await all_of(store, user, while_open.until) == [(slow.id, 2), (quick.id, 1)]
    await store.database.close()


async def test_events_of_before_get_places_in_the_order_of_their_runs(empty_database_url: str) -> None:
    database = Database(empty_database_url)

    def as_it_was(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        now = "2026-01-01 00:00:00+00:00"
        for user in ("ada", "eve"):
            row = {"id": f"user-{user}", "name": user, "tier": "standard", "created_at": now}
            connection.execute(text("INSERT INTO users VALUES (:id, :name, :tier, :created_at)"), row)
        for run_id, owner in (("run-2", "ada"), ("run-1", "ada"), ("run-3", "eve")):
            connection.execute(
                text(
                    "INSERT INTO runs (id, user_id, status, priority, generation, attempt, prompt, metadata, "
                    "timeout_seconds, max_retries, created_at) "
                    f"VALUES ('{run_id}', 'user-{owner}', 'running', 1, 1, 1, 'x', '{{}}', 60, 0, '{now}')"
                )
            )
            for event in reversed(log_events(run_id, 1, 12)):
                values = {"run": run_id, "id": event.id, "line": event.line}
                connection.execute(text("INSERT INTO events (run_id, id, line) VALUES (:run, :id, :line)"), values)

    await database.write(as_it_was)
    store = Store(database)
    await store.migrate()
    ada = User("user-ada", "ada", Tier.STANDARD)
    of_ada = [(run_id, number) for run_id in ("run-1", "run-2") for number in range(1, 13)]
    assert await all_of(store, ada) == of_ada
    await store.running_runs.add_events({("run-1", 1): log_events("run-1", 12, 13)})
    assert await all_of(store, ada) == [*of_ada, ("run-1", 13)]
    assert [event.id for event in await store.events.after("run-3", 10, 9)] == [11, 12]
    await database.close()
