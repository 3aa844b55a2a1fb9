"""What every live wire of events does, whoever keeps it. There is one adapter: Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import Priority
from backplane.errors import Unavailable
from backplane.logs.base import Announced, Appended, Batch, BusAnnounced, EventLog, Subscription, SubscriptionLost
from backplane.queue.base import Job
from backplane.redis.client import RedisClients
from backplane.redis.rest import RestClients
from tests.event_logs import make_known, redis_event_log
from tests.queues import hand_back, redis_queue
from tests.servers import RedisServer
from tests.waiting import wait_until

KEEP_SECONDS = 600


@pytest.fixture
async def event_log(clients: RedisClients) -> EventLog:
    await make_known(clients, "a", "b", "stays", *(f"run-{number}" for number in range(51)))
    return redis_event_log(clients, keep_seconds=KEEP_SECONDS)


def events(run_id: str, first: int, last: int) -> list[Event]:
    return [encode(run_id, number, EventType.LOG, {"line": f"line {number}\n"}) for number in range(first, last + 1)]


def batch(run_id: str, first: int, last: int, generation: int = 0, *, stored_id: int = 0) -> Batch:
    return Batch(run_id, generation, events(run_id, first, last), stored_id=stored_id)


async def kept(event_log: EventLog, run_id: str = "a") -> list[int]:
    return [event.id for event in await event_log.after(run_id, 0, 10_000)]


async def claims(clients: RedisClients, run_id: str, count: int) -> None:
    """Let the run be claimed so many times."""
    queue = redis_queue(clients)
    await queue.enqueue([Job(run_id, "user-1", Priority.NORMAL)])
    for _ in range(count):
        [claim] = await queue.claim("worker", 1)
        await hand_back(queue, claim)


class Listener:
    """Everything that a subscription receives, in that order."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.received: list[Event | Announced | BusAnnounced | SubscriptionLost] = []

    async def listen(self) -> None:
        async for received in self.subscription.listen():
            self.received += received if isinstance(received, list) else [received]

    def ids(self, run_id: str = "a") -> list[int]:
        return [received.id for received in self.received if isinstance(received, Event) and received.run_id == run_id]

    @property
    def announced(self) -> list[Announced]:
        return [received for received in self.received if isinstance(received, Announced)]

    @property
    def interruptions(self) -> int:
        return sum(isinstance(received, SubscriptionLost) for received in self.received)


@asynccontextmanager
async def listening(event_log: EventLog) -> AsyncIterator[Listener]:
    async with event_log.subscription() as subscription:
        listener = Listener(subscription)
        task = asyncio.create_task(listener.listen())
        try:
            yield listener
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


# --- keeping ---


async def test_events_are_kept_in_order_and_as_they_were(event_log: EventLog) -> None:
    assert await event_log.append([batch("a", 1, 3), batch("b", 1, 1)]) == [Appended.TAKEN, Appended.TAKEN]
    assert await event_log.append([batch("a", 4, 5)]) == [Appended.TAKEN]
    assert await event_log.after("a", 0, 100) == [*await event_log.after("a", 0, 2), *await event_log.after("a", 2, 9)]
    assert [event.id for event in await event_log.after("a", 0, 100)] == [1, 2, 3, 4, 5]
    assert [event.line for event in await event_log.after("b", 0, 100)] != []


@pytest.mark.parametrize(
    ("cursor", "limit", "expected"), [(0, 2, [1, 2]), (2, 2, [3, 4]), (4, 9, [5]), (5, 9, []), (99, 9, [])]
)
async def test_a_page_has_what_is_after_its_cursor(
    event_log: EventLog, cursor: int, limit: int, expected: list[int]
) -> None:
    await event_log.append([batch("a", 1, 5)])
    assert [event.id for event in await event_log.after("a", cursor, limit)] == expected


async def test_the_last_id_is_that_of_the_newest_event(event_log: EventLog) -> None:
    assert await event_log.last_id("a") is None
    await event_log.append([batch("a", 1, 3)])
    assert await event_log.last_id("a") == 3


async def test_a_repeated_append_is_kept_and_published_once(event_log: EventLog) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        await event_log.append([batch("a", 1, 3)])
        assert await event_log.append([batch("a", 1, 3)]) == [Appended.TAKEN]
        assert await event_log.append([batch("a", 2, 5)]) == [Appended.TAKEN]
        await wait_until(lambda: len(listener.ids()) >= 5)
        assert listener.ids() == [1, 2, 3, 4, 5]
    assert [event.id for event in await event_log.after("a", 0, 100)] == [1, 2, 3, 4, 5]


async def test_numbers_may_be_left_out(event_log: EventLog) -> None:
    await event_log.append([batch("a", 1, 2), batch("a", 1000, 1001)])
    assert [event.id for event in await event_log.after("a", 0, 100)] == [1, 2, 1000, 1001]


async def test_events_of_an_older_generation_are_neither_kept_nor_published(
    event_log: EventLog, clients: RedisClients
) -> None:
    await claims(clients, "a", 2)
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        taken = await event_log.append([batch("a", 1, 1, 1), batch("b", 1, 1, 1), batch("a", 2, 2, 2)])
        assert taken == [Appended.REFUSED, Appended.TAKEN, Appended.TAKEN]
        await wait_until(listener.ids)
        assert listener.ids() == [2]
    assert [event.id for event in await event_log.after("a", 0, 100)] == [2]


async def test_what_redis_does_not_know_of_is_published_once_the_database_has_it(
    event_log: EventLog, clients: RedisClients
) -> None:
    """As after Redis was emptied: the database judges who holds the run."""
    await claims(clients, "a", 2)
    await clients.commands.flushall()
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        assert await event_log.append([batch("a", 1, 2, 2)]) == [Appended.STORE_FIRST]
        assert await event_log.append([batch("a", 1, 3, 2, stored_id=2)]) == [Appended.STORE_FIRST]
        assert await event_log.append([batch("a", 3, 3, 2, stored_id=3)]) == [Appended.TAKEN]
        await wait_until(lambda: len(listener.ids()) >= 3)
        assert listener.ids() == [1, 2, 3]
    assert await event_log.last_id("a") is None


async def test_an_older_generation_is_refused_also_when_the_job_is_gone(
    event_log: EventLog, clients: RedisClients
) -> None:
    """As after a run's end, for a worker that stood still."""
    await event_log.append([batch("a", 1, 2, 1), batch("a", 3, 4, 2)])
    await clients.commands.delete(clients.keys.job("a"))
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        assert await event_log.append([batch("a", 5, 6, 1), batch("b", 1, 1)]) == [Appended.REFUSED, Appended.TAKEN]
        await listener.subscription.add("b")
        await event_log.append([batch("b", 2, 2)])
        await wait_until(lambda: listener.ids("b"))
        assert listener.ids("a") == []
    assert await event_log.last_id("a") == 4


async def test_nothing_that_is_not_stored_is_taken_of_a_run_that_is_over(
    event_log: EventLog, clients: RedisClients
) -> None:
    """Nothing is left of it by then by which an older generation could be distinguished from the newest."""
    await event_log.append([batch("a", 1, 2, 2, stored_id=2)])
    await clients.commands.delete(clients.keys.job("a"))
    assert await event_log.append([batch("a", 3, 4, 1, stored_id=2)]) == [Appended.STORE_FIRST]
    assert await clients.commands.exists(clients.keys.stream("a")) == 0


async def test_who_holds_nothing_is_not_refused_when_it_knows_the_rows_generation(event_log: EventLog) -> None:
    """As the API, which publishes a retry after the run's end."""
    assert await event_log.append([batch("a", 1, 2, 0)]) == [Appended.TAKEN]
    assert await event_log.append([batch("a", 3, 4, 1)]) == [Appended.TAKEN]
    assert await event_log.append([batch("a", 5, 5, 1, stored_id=2)]) == [Appended.TAKEN]
    assert await event_log.append([batch("a", 6, 6, 0, stored_id=6)]) == [Appended.REFUSED]
    assert await event_log.last_id("a") == 5


# --- what is kept ---


async def test_what_the_database_has_is_published_and_not_kept(event_log: EventLog, clients: RedisClients) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        assert await event_log.append([batch("a", 1, 4, stored_id=2)]) == [Appended.TAKEN]
        await wait_until(lambda: len(listener.ids()) >= 4)
        assert listener.ids() == [1, 2, 3, 4]
        assert await kept(event_log) == [3, 4]
        assert await event_log.append([batch("a", 5, 6, stored_id=6)]) == [Appended.TAKEN]
        await wait_until(lambda: len(listener.ids()) >= 6)
        assert listener.ids() == [1, 2, 3, 4, 5, 6]
    assert await clients.commands.exists(clients.keys.stream("a")) == 0


async def test_what_the_database_has_by_now_goes_with_the_next_event(event_log: EventLog) -> None:
    """By whole nodes of the stream, which have a hundred entries at most."""
    await event_log.append([batch("a", 1, 1000)])
    await event_log.append([batch("a", 1001, 1001, stored_id=900)])
    left = await kept(event_log)
    assert 101 <= len(left) <= 201
    assert left == list(range(1002 - len(left), 1002))


async def test_a_batch_without_events_drops_what_the_database_has(event_log: EventLog, clients: RedisClients) -> None:
    await event_log.append([batch("a", 1, 1000)])
    assert await event_log.append([Batch("a", 0, [], stored_id=900)]) == [Appended.TAKEN]
    assert 100 <= len(await kept(event_log)) <= 200
    assert await event_log.append([Batch("a", 0, [], stored_id=1000)]) == [Appended.TAKEN]
    assert await clients.commands.exists(clients.keys.stream("a")) == 0


async def test_events_that_nobody_stores_stay_for_as_long_as_is_set(event_log: EventLog, clients: RedisClients) -> None:
    await event_log.append([batch("a", 1, 1)])
    assert 0 < await clients.commands.ttl(clients.keys.stream("a")) <= KEEP_SECONDS


# --- listening ---


async def test_all_is_received_that_is_published_after_a_run_was_added(event_log: EventLog) -> None:
    async with listening(event_log) as listener:
        for number in range(1, 21):
            await listener.subscription.add(f"run-{number}")
            await event_log.append([batch(f"run-{number}", 1, 3)])
        await wait_until(lambda: len(listener.received) >= 60)
        assert all(listener.ids(f"run-{number}") == [1, 2, 3] for number in range(1, 21))
        assert listener.interruptions == 0


async def test_events_are_received_as_they_were_published(event_log: EventLog) -> None:
    appended = batch("a", 1, 3)
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        await event_log.append([appended])
        await wait_until(lambda: len(listener.received) == 3)
        assert listener.received == list(appended.events)


async def test_what_is_live_only_is_received_in_order_and_not_kept(event_log: EventLog) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        await event_log.append([batch("a", 1, 2)])
        await event_log.show([encode("a", 0, EventType.PROGRESS, {"output_tokens": 5})])
        await event_log.append([batch("a", 3, 3)])
        await wait_until(lambda: len(listener.ids()) == 4)
    assert listener.ids() == [1, 2, 0, 3]
    assert await kept(event_log) == [1, 2, 3]


async def test_what_a_newer_worker_publishes_interrupts_nobody(event_log: EventLog, clients: RedisClients) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        newer = encode("a", 0, EventType.PROGRESS, {}).line.replace('"progress"', '"unheardof"')
        await clients.commands.publish(clients.keys.channel("a"), newer)
        await event_log.append([batch("a", 1, 1)])
        await wait_until(lambda: listener.ids() == [1])
    assert listener.interruptions == 0


async def test_runs_that_were_not_added_are_not_received(event_log: EventLog) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        await event_log.append([batch("b", 1, 1), batch("a", 1, 1)])
        await wait_until(listener.ids)
        assert listener.ids("b") == []


async def test_a_run_that_was_removed_is_received_no_longer_and_may_be_added_again(event_log: EventLog) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        await listener.subscription.add("b")
        await event_log.append([batch("a", 1, 1)])
        await listener.subscription.remove("a")
        await event_log.append([batch("a", 2, 2), batch("b", 1, 1)])
        await wait_until(lambda: listener.ids("b"))
        await listener.subscription.add("a")
        await event_log.append([batch("a", 3, 3)])
        await wait_until(lambda: 3 in listener.ids("a"))
        assert listener.ids("a") == [1, 3]


async def test_two_subscriptions_receive_the_same(event_log: EventLog) -> None:
    async with listening(event_log) as first, listening(event_log) as second:
        await asyncio.gather(first.subscription.add("a"), second.subscription.add("a"))
        await event_log.append([batch("a", 1, 100)])
        await wait_until(lambda: len(first.received) == len(second.received) == 100)
        assert first.received == second.received


async def test_a_lost_subscription_is_reported_once_it_is_complete_again(
    event_log: EventLog, clients: RedisClients
) -> None:
    async with listening(event_log) as listener:
        runs = [f"run-{number}" for number in range(50)]
        for run_id in runs:
            await listener.subscription.add(run_id)
        # By REST each run is listened to by itself, and reported by itself.
        apart = 50 if isinstance(clients, RestClients) else 1
        assert await clients.commands.client_kill_filter(_type="pubsub") == apart
        await wait_until(lambda: listener.interruptions == apart)
        await event_log.append([batch(run_id, 1, 1) for run_id in runs])
        await wait_until(lambda: len(listener.received) >= 50 + apart)
        assert all(listener.ids(run_id) == [1] for run_id in runs)
        assert listener.interruptions == apart


async def test_runs_are_added_and_removed_by_many_at_once_while_the_wire_is_cut_again_and_again(
    event_log: EventLog, clients: RedisClients
) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("stays")

        async def come_and_go(run_id: str) -> None:
            for _ in range(20):
                with suppress(Unavailable):
                    await listener.subscription.add(run_id)
                    await listener.subscription.remove(run_id)

        async def cut() -> None:
            for _ in range(3):
                await clients.commands.client_kill_filter(_type="pubsub")
                await wait_until(lambda: _is_subscribed(clients, "stays"))

        await asyncio.gather(cut(), *(come_and_go(f"run-{number}") for number in range(20)))
        await event_log.append([batch("stays", 1, 1)])
        await wait_until(lambda: listener.ids("stays") == [1])


async def _is_subscribed(clients: RedisClients, run_id: str) -> bool:
    return bool((await clients.commands.pubsub_numsub(clients.keys.channel(run_id)))[0][1])


async def test_a_subscription_to_a_user_receives_that_a_run_of_the_user_has_events(
    event_log: EventLog, clients: RedisClients
) -> None:
    await claims(clients, "queued", 0)
    async with listening(event_log) as listener:
        await listener.subscription.add_user("user-1")
        await event_log.append([batch("queued", 1, 3)])
        await event_log.append([Batch("named", 0, events("named", 1, 2), "user-1", stored_id=2)])
        foreign = Batch("foreign", 0, events("foreign", 1, 2), "user-2", stored_id=2)
        await event_log.append([foreign, batch("unknown", 1, 1, stored_id=1)])
        await event_log.append([batch("queued", 2, 3), batch("queued", 4, 4)])
        expected = [("queued", 3), ("named", 2), ("queued", 4)]
        await wait_until(lambda: len(listener.announced) >= len(expected))
        assert listener.received == [Announced("user-1", run_id, last_id) for run_id, last_id in expected]


async def test_a_user_is_listened_to_again_after_a_cut_and_no_longer_when_removed(
    event_log: EventLog, clients: RedisClients
) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add_user("user-1")
        await clients.commands.client_kill_filter(_type="pubsub")
        await wait_until(lambda: listener.interruptions == 1)
        await event_log.append([Batch("a", 0, events("a", 1, 1), "user-1")])
        await wait_until(lambda: listener.announced == [Announced("user-1", "a", 1)])
        await listener.subscription.remove_user("user-1")
        await listener.subscription.add("a")
        await event_log.append([Batch("a", 0, events("a", 2, 2), "user-1")])
        await wait_until(lambda: listener.ids() == [2])
        assert len(listener.announced) == 1


async def test_what_is_no_event_does_not_end_the_listening(event_log: EventLog, clients: RedisClients) -> None:
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        channel = clients.keys.channel("a")
        for noise in ("'noise'", "'{}'", r"'\255\254'"):
            await clients.commands.eval(f"redis.call('PUBLISH', ARGV[1], {noise})", 0, channel)
            await wait_until(lambda: _is_subscribed(clients, "a"))
        await wait_until(lambda: listener.interruptions)
        await event_log.append([batch("a", 1, 1)])
        assert [event.id for event in await event_log.after("a", 0, 10)] == [1]


async def test_every_call_says_so_when_redis_is_away(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    clients = RedisClients(server.url)
    event_log = redis_event_log(clients)
    async with listening(event_log) as listener:
        await listener.subscription.add("a")
        server.kill()
        for call in (
            lambda: event_log.append([batch("a", 1, 1)]),
            lambda: event_log.after("a", 0, 1),
            lambda: event_log.last_id("a"),
            event_log.room,
            lambda: listener.subscription.add("b"),
            lambda: listener.subscription.add_user("b"),
        ):
            with pytest.raises(Unavailable) as refused:
                await call()
            assert refused.value.part == "redis"
        server.start()
        await wait_until(lambda: listener.interruptions)
        await make_known(clients, "a")
        await event_log.append([batch("a", 1, 1)])
        await wait_until(lambda: listener.ids() == [1])
    await clients.close()
