"""Events of the bus in the store, on each database: each once, in an order that no reader can miss anything of."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from backplane.domain.bus import BusRoom, CloudEvent, EventFilter, cloud_event
from backplane.domain.runs import RunStatus
from backplane.domain.users import User
from backplane.errors import StorageExceeded
from backplane.store import Store
from backplane.store.bus import events
from backplane.store.bus.events import WINDOW, add_bus_events
from backplane.store.bus.log import of_type
from backplane.store.database import Database
from tests.submitted import new_run

ALL = EventFilter()


def made(id: str = "1", type: str = "order.created", source: str = "/shop", **more: Any) -> CloudEvent:
    return cloud_event({"specversion": "1.0", "id": id, "source": source, "type": type, **more})


def several(count: int, **more: Any) -> list[CloudEvent]:
    return [made(str(number), **more) for number in range(1, count + 1)]


async def cursors(store: Store, user: User, after: int = 0, wanted: EventFilter = ALL, limit: int = 100) -> list[int]:
    """Page by page."""
    found: list[int] = []
    while True:
        page = await store.bus.page(user.id, after, limit, wanted)
        found += [event.cursor for event in page.events]
        after = page.until
        if not page.more:
            return found


async def test_events_get_the_numbers_in_which_they_were_posted(store: Store, user: User) -> None:
    first = (await store.bus.publish(user.id, [made("a")])).published
    then = (await store.bus.publish(user.id, [made("b"), made("c")])).published
    assert [(each.id, each.cursor, each.is_new) for each in first + then] == [
        ("a", 1, True),
        ("b", 2, True),
        ("c", 3, True),
    ]
    assert await store.bus.present(user.id) == 3


async def test_an_event_that_comes_again_is_stored_once(store: Store, user: User) -> None:
    await store.bus.publish(user.id, [made("a"), made("b")])
    again = await store.bus.publish(user.id, [made("b"), made("c"), made("c"), made("a", source="/other")])
    assert [(each.cursor, each.is_new) for each in again.published] == [(2, False), (3, True), (3, False), (4, True)]
    assert await cursors(store, user) == [1, 2, 3, 4]


@pytest.mark.parametrize("sizes", [(3, 1), (2, 2)])
async def test_a_page_has_no_more_events_than_fit_into_its_bytes(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    stored = several(4, data="x" * 1000)
    # As many as fit, to the byte, or one byte less.
    monkeypatch.setattr(events, "PAGE_BYTES", stored[0].size * 3 - (sizes[0] == 2))
    await store.bus.publish(user.id, stored)
    after = 0
    found: list[int] = []
    while sum(found) < 4:
        page = await store.bus.page(user.id, after, 100, ALL)
        after = page.until
        found.append(len(page.events))
        assert page.more is (sum(found) < 4)
    assert tuple(found) == sizes
    assert await cursors(store, user) == [1, 2, 3, 4]


async def test_an_event_that_is_larger_than_a_page_is_alone_in_its_page(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAGE_BYTES", 1)
    await store.bus.publish(user.id, several(3))
    assert len((await store.bus.page(user.id, 0, 100, ALL)).events) == 1
    assert await cursors(store, user) == [1, 2, 3]


async def test_events_of_another_user_are_never_seen_and_count_apart(store: Store, user: User, stranger: User) -> None:
    await store.bus.publish(user.id, [made("a")])
    [other] = (await store.bus.publish(stranger.id, [made("a")])).published
    assert (other.cursor, other.is_new) == (1, True)
    assert len((await store.bus.page(user.id, 0, 10, ALL)).events) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_of_any_size_give_each_event_once(store: Store, user: User, limit: int) -> None:
    await store.bus.publish(user.id, several(5))
    assert await cursors(store, user, limit=limit) == [1, 2, 3, 4, 5]
    assert await cursors(store, user, after=3, limit=limit) == [4, 5]


@pytest.mark.parametrize(
    ("types", "sources", "subjects", "expected"),
    [
        ((), (), (), [1, 2, 3, 4]),
        (("*",), (), (), [1, 2, 3, 4]),
        (("order.*",), (), (), [1, 2]),
        (("order.created",), (), (), [1]),
        (("ORDER.*",), (), (), []),
        (("order",), (), (), []),
        (("order.created", "orders.*"), (), (), [1, 3]),
        ((), ("/till",), (), [4]),
        ((), (), ("42", "43"), [2]),
        (("order.*",), ("/shop", "/till"), ("42",), [2]),
        (("order.*",), ("/till",), ("42",), []),
    ],
)
async def test_a_filter_gives_what_fits_all_of_it(
    store: Store,
    user: User,
    types: tuple[str, ...],
    sources: tuple[str, ...],
    subjects: tuple[str, ...],
    expected: list[int],
) -> None:
    await store.bus.publish(
        user.id,
        [
            made("1"),
            made("2", "order.created.eu", subject="42"),
            made("3", "orders.created"),
            made("4", "till.closed", source="/till"),
        ],
    )
    assert await cursors(store, user, wanted=EventFilter(types, sources, subjects)) == expected


async def test_a_cursor_that_was_never_given_is_reported(store: Store, user: User) -> None:
    await store.bus.publish(user.id, [made("a")])
    page = await store.bus.page(user.id, 7, 10, ALL)
    assert (page.events, page.until, page.missing, page.more) == ([], 1, True, False)
    assert not (await store.bus.page(user.id, 1, 10, ALL)).missing


async def test_an_event_that_is_removed_leaves_a_gap_for_those_who_had_not_come_so_far(
    store: Store, user: User
) -> None:
    await store.bus.publish(user.id, several(5))
    future = datetime.now(UTC) + timedelta(hours=1)
    assert await store.bus.remove_before(future, 3) == 3
    assert await cursors(store, user) == [4, 5]
    assert (await store.bus.page(user.id, 1, 10, ALL)).missing
    assert not (await store.bus.page(user.id, 3, 10, ALL)).missing
    assert not (await store.bus.page(user.id, 0, 10, ALL)).missing, "whoever begins has missed nothing"
    assert await store.bus.remove_before(future, 10) == 2
    [last] = (await store.bus.publish(user.id, [made("a")])).published
    assert last.cursor == 6, "no number is given twice"


async def test_what_is_younger_stays(store: Store, user: User) -> None:
    await store.bus.publish(user.id, [made("a")])
    assert await store.bus.remove_before(datetime.now(UTC) - timedelta(hours=1), 10) == 0
    assert await cursors(store, user) == [1]


async def test_as_many_events_are_kept_as_may_be_and_no_more(store: Store, user: User) -> None:
    room = BusRoom(events=3)
    await store.bus.publish(user.id, several(3), room)
    with pytest.raises(StorageExceeded, match="USER_MAX_BUS_EVENTS"):
        await store.bus.publish(user.id, [made("4")], room)
    await store.bus.publish(user.id, [made("3")], room)  # is there already
    await store.bus.remove_before(datetime.now(UTC) + timedelta(hours=1), 1)
    await store.bus.publish(user.id, [made("4")], room)
    assert await cursors(store, user) == [2, 3, 4]


async def test_as_many_bytes_are_kept_as_may_be_and_no_more(store: Store, user: User) -> None:
    event = made("1")
    exact = BusRoom(bytes=event.size)
    with pytest.raises(StorageExceeded, match="USER_MAX_BUS_BYTES"):
        await store.bus.publish(user.id, [event], BusRoom(bytes=event.size - 1))
    await store.bus.publish(user.id, [event], exact)
    with pytest.raises(StorageExceeded):
        await store.bus.publish(user.id, [made("2")], exact)
    await store.bus.remove_before(datetime.now(UTC) + timedelta(hours=1), 1)
    await store.bus.publish(user.id, [made("2")], exact)


async def test_a_filter_that_nothing_matches_looks_at_no_more_than_a_window(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backplane.store.bus.events.WINDOW", 2)
    await store.bus.publish(user.id, [*several(5), made("6", "rare")])
    page = await store.bus.page(user.id, 0, 10, EventFilter(("rare",)))
    assert (page.events, page.until, page.more) == ([], 2, True)
    assert await cursors(store, user, wanted=EventFilter(("rare",))) == [6]
    assert WINDOW > 500, "a page must fit"


async def test_a_writer_waits_for_the_one_before_so_no_reader_passes_an_event_by(
    store: Store, second_store: Store, user: User
) -> None:
    """The first writer has its number and does not commit yet. Without the lock the second one would be visible first,
    and a reader would go on behind it."""
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        engine = create_engine(store.database.url)
        with engine.begin() as connection:
            add_bus_events(connection, user.id, [made("first")])
            inside.set()
            go_on.wait(5)
        engine.dispose()

    writing = asyncio.create_task(asyncio.to_thread(first))
    await asyncio.to_thread(inside.wait, 5)
    second = asyncio.create_task(second_store.bus.publish(user.id, [made("second")]))
    await asyncio.wait({second}, timeout=0.1)
    assert not second.done()
    assert await cursors(store, user) == []
    go_on.set()
    await writing
    await second
    page = await store.bus.page(user.id, 0, 10, ALL)
    assert ['"first"' in event.line for event in page.events] == [True, False]


async def test_a_reader_sees_every_event_once_and_in_order_while_many_write(
    store: Store, second_store: Store, user: User
) -> None:
    seen: list[int] = []
    done = asyncio.Event()

    async def write(which: Store, name: str) -> None:
        for number in range(10):
            await which.bus.publish(user.id, [made(f"{name}-{number}"), made(f"{name}-{number}-more")])

    async def read() -> None:
        after = 0
        while True:
            is_last = done.is_set()
            page = await store.bus.page(user.id, after, 7, ALL)
            seen.extend(event.cursor for event in page.events)
            after = page.until
            if is_last and not page.more:
                return

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(which, f"{at}") for at, which in enumerate([store, second_store] * 2)))
    done.set()
    await reading
    assert seen == list(range(1, 81))


async def test_two_who_post_the_same_at_once_store_it_once(store: Store, second_store: Store, user: User) -> None:
    posted = await asyncio.gather(*(which.bus.publish(user.id, several(5)) for which in [store, second_store] * 3))
    assert sum(each.is_new for one in posted for each in one.published) == 5
    assert await cursors(store, user) == [1, 2, 3, 4, 5]


async def test_the_end_of_a_run_becomes_an_event_of_its_user_once(
    store: Store, second_store: Store, user: User
) -> None:
    run = await store.runs.create(new_run(user, metadata={"team": "blue"}), start=True)
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda log: log.finish(RunStatus.COMPLETED, None, None))
    announced = await asyncio.gather(store.bus.publish_notices(10), second_store.bus.publish_notices(10))
    assert [(each.user_id, each.type, each.cursor) for one in announced for each in one] == [
        (user.id, "run.completed", 1)
    ]
    [event] = (await store.bus.page(user.id, 0, 10, ALL)).events
    assert event.type == "run.completed"
    assert '"team":"blue"' in event.line
    assert run.id in event.line
    assert await store.bus.publish_notices(10) == []


async def test_the_end_of_a_run_that_is_removed_by_now_is_an_event_all_the_same(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.runs.cancel(user.id, run.id)
    await store.database.write(lambda connection: connection.execute(text("DELETE FROM runs")))
    assert [each.type for each in await store.bus.publish_notices(10)] == ["run.cancelled"]


async def test_notices_are_worked_off_in_batches_in_their_order(store: Store, user: User, stranger: User) -> None:
    for owner in (user, stranger, user):
        run = await store.runs.create(new_run(owner), start=True)
        await store.runs.cancel(owner.id, run.id)
    first, second = await store.bus.publish_notices(2), await store.bus.publish_notices(2)
    assert sorted(each.user_id for each in first) == sorted([user.id, stranger.id])
    assert [(each.user_id, each.cursor) for each in second] == [(user.id, 2)]


@pytest.mark.parametrize("wanted", [ALL, EventFilter(("rare",))])
async def test_a_reader_learns_of_events_that_retention_removed_while_it_read(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch, wanted: EventFilter
) -> None:
    """Between the look at what is there and the read of the events."""
    await store.bus.publish(user.id, several(5))

    def remove(_: EventFilter) -> list[Any]:
        removed = threading.Thread(target=lambda: asyncio.run(removing()))
        removed.start()
        removed.join()
        return [] if wanted is ALL else [of_type("rare")]

    async def removing() -> None:
        database = Database(str(store.database.url.render_as_string(hide_password=False)))
        try:
            await Store(database).bus.remove_before(datetime.now(UTC) + timedelta(hours=1), 3)
        finally:
            await database.close()

    monkeypatch.setattr("backplane.store.bus.events._conditions", remove)
    page = await store.bus.page(user.id, 1, 10, wanted)
    assert page.missing
    assert [event.cursor for event in page.events] == ([4, 5] if wanted is ALL else [])
    assert page.until == 5
