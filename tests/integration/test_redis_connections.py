"""Redis as it stands elsewhere: behind a sentinel, as a cluster, with TLS, and with a user who may do little."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from redis.exceptions import NoPermissionError

from backplane.bus.redis import RedisDoorbell
from backplane.domain.bus import Announcement
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import Priority
from backplane.domain.stored import StorageQuota, Stored
from backplane.errors import Unavailable
from backplane.limits.storage.redis import RedisStorage
from backplane.logs.base import Appended, Batch, EventLog, Subscription, SubscriptionLost
from backplane.queue.base import Caps, Job, QueueRoom
from backplane.redis.client import RedisAccess, RedisClients, Script, translated
from tests.conftest import started
from tests.event_logs import make_known, redis_event_log
from tests.queues import finish, hand_back, known, postpone, redis_queue
from tests.redis_servers import Cluster, LoneMember, Node, Watched, make_certificate, tls_before
from tests.servers import HOST
from tests.waiting import wait_until

T = TypeVar("T")

PREFIX = "{agents}:"
PASSWORD = "correct-horse"
AGENTS = RedisAccess(username="agents", password=PASSWORD)
JOB = Job("run-1", "user-1", Priority.HIGH)
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PAUSES = 0.05


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(lambda: Cluster(tmp_path_factory.mktemp("cluster"), PREFIX)) as cluster:
        yield cluster


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with started(lambda: Watched(tmp_path)) as watched:
        yield watched


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with started(lambda: Node(tmp_path / "node")) as node:
        yield node


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[RedisClients]:
    clients = RedisClients(url, **options)
    try:
        yield clients
    finally:
        await clients.close()


def acl_line() -> list[str]:
    """The line that the documentation gives operators."""
    [line] = [line for line in OPERATIONS.read_text().splitlines() if line.startswith("ACL SETUSER ")]
    return line.replace("PASSWORD", PASSWORD).split()


def script(clients: RedisClients, tmp_path: Path) -> Script:
    file = tmp_path / "set.lua"
    file.write_text("return redis.call('SET', KEYS[1], ARGV[1])")
    return Script(clients, file)


async def live_a_life(clients: RedisClients) -> None:
    """Every step of a job's life and of its events', and an announcement of the event bus."""
    assert await RedisDoorbell(clients).ring([Announcement("user", "order.created", 1)])
    queue = redis_queue(clients, caps=Caps(user={Priority.HIGH: 1}), room=QueueRoom(user=5, overall=10))
    assert await queue.admit(JOB.run_id, JOB.user_id, JOB.priority) is None
    await queue.give_up_place(JOB.run_id, JOB.user_id, JOB.priority)
    assert await queue.enqueue([JOB, replace(JOB, run_id="run-2")]) == [True, True]
    [standing] = await queue.standing([JOB.run_id])
    assert standing is not None
    [claim] = await queue.claim("worker", 5, 0.01)
    assert not (await queue.renew("worker", 5, [claim])).lost
    await hand_back(queue, claim)
    [again] = await queue.claim("worker", 5)
    await postpone(queue, again, 60)
    assert (await queue.statistics()).scheduled == 1
    await queue.reap(10)
    assert await queue.next_attempt(JOB.run_id) is not None
    await queue.forget(JOB.run_id)
    assert await known(queue, [JOB.run_id]) == [False]
    [last] = await queue.claim("worker", 5)
    await finish(queue, last, 1.5)
    assert len(await queue.finished()) == 2
    await queue.mirror_dead({"run-1": 1.0})
    await queue.end_wait("worker")
    assert await queue.claim("worker", 5, 0.01) == []
    await queue.deregister("worker")

    async def events_watched(cancel: asyncio.Task[str]) -> bool:
        await queue.announce_cancel(JOB.run_id)
        return cancel.done()

    async with queue.cancels() as cancels, beside(first(cancels)) as cancel:
        await wait_until(lambda: events_watched(cancel))
        assert cancel.result() == JOB.run_id
    event_log = redis_event_log(clients)
    await make_known(clients, "seen")
    async with listening(event_log) as received:
        assert await event_log.append([Batch("seen", 1, [event(1)])]) == [Appended.TAKEN]
        await wait_until(lambda: received == [[event(1)]])
    assert await event_log.after("seen", 0, 10) == [event(1)]
    assert await event_log.last_id("seen") == 1
    await count_what_is_stored(RedisStorage(clients))


async def count_what_is_stored(storage: RedisStorage) -> None:
    await storage.reserve("ada", "run-1", "upload", 10, StorageQuota())
    await storage.release("ada", "run-1", "upload", grown=5)
    await storage.grow("ada", 5, StorageQuota())
    await storage.count_rows({"ada": Stored(runs=1, events=2)})
    await storage.count_files(await storage.known(), {"ada": 7})
    assert await storage.of("ada") == Stored(runs=1, events=2, bytes=7)


def event(number: int) -> Event:
    return encode("seen", number, EventType.LOG, {"line": "hello"}, at=datetime(2026, 1, 1, tzinfo=UTC))


async def first(words: AsyncIterator[str]) -> str:
    return await anext(words)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def listening(event_log: EventLog) -> AsyncIterator[list[object]]:
    """All that is received of the run `seen`."""
    received = list[object]()

    async def listen(subscription: Subscription) -> None:
        async for words in subscription.listen():
            received.append(words)

    async with event_log.subscription() as subscription, beside(listen(subscription)):
        await subscription.add("seen")
        yield received


def blocks(node: Node) -> bool:
    return bool(node.ask("INFO", "clients")["blocked_clients"])


async def writes(clients: RedisClients) -> bool:
    """Tried once; False while the server is away."""
    try:
        with translated():
            return bool(await clients.commands.set(f"{clients.keys.prefix}written", "yes"))
    except Unavailable:
        await asyncio.sleep(PAUSES)
        return False


# --- a cluster ---


@pytest.mark.slow
async def test_a_life_on_a_cluster_by_a_user_who_may_do_no_more_than_the_documentation_says(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask(*acl_line())
    async with connected(cluster.url(), prefix=PREFIX, access=AGENTS) as clients:
        await live_a_life(clients)


async def test_the_node_that_owns_the_keys_is_found_by_one_that_does_not(cluster: Cluster) -> None:
    async with connected(cluster.url(cluster.others[:1]), prefix=PREFIX) as clients:
        assert await writes(clients)
    assert cluster.owner.ask("GET", f"{PREFIX}written") == "yes"


async def test_a_node_that_is_gone_does_not_keep_others_from_being_asked(cluster: Cluster) -> None:
    url = cluster.url(cluster.others[:1]).replace("cluster://", f"cluster://{HOST}:1,")
    async with connected(url, prefix=PREFIX) as clients:
        await clients.check()


async def test_without_any_node_the_parts_that_were_asked_are_named() -> None:
    async with connected(f"redis+cluster://{HOST}:1,{HOST}:2", prefix=PREFIX) as clients:
        with pytest.raises(Unavailable, match=f"(?s){HOST}:1.*{HOST}:2"):
            await clients.check()


async def test_commands_and_scripts_follow_a_replica_that_is_promoted(cluster: Cluster, tmp_path: Path) -> None:
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        put = script(clients, tmp_path)
        await put([f"{PREFIX}a"], ["before"])
        cluster.promote()
        await put([f"{PREFIX}a"], ["after"])
        await put.batch([([f"{PREFIX}b"], ["batched"])])
        assert await cast(Any, clients.commands.mget(f"{PREFIX}a", f"{PREFIX}b")) == ["after", "batched"]


async def test_a_batch_meets_a_promotion(cluster: Cluster, tmp_path: Path) -> None:
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        put = script(clients, tmp_path)
        await put([f"{PREFIX}a"], ["before"])
        cluster.promote()
        await put.batch([([f"{PREFIX}{number}"], [number]) for number in range(3)])
        names = [f"{PREFIX}{number}" for number in range(3)]
        assert await cast(Any, clients.commands.mget(names)) == ["0", "1", "2"]


@pytest.mark.slow
async def test_a_worker_that_waits_gets_what_comes_after_a_promotion(cluster: Cluster) -> None:
    cluster.flush()
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        queue = redis_queue(clients)
        async with beside(queue.claim("worker", 1, 20)) as waiting:
            await wait_until(lambda: blocks(cluster.owner))
            cluster.promote()
            await queue.enqueue([JOB])
            assert [claim.run_id for claim in await waiting] == [JOB.run_id]


@pytest.mark.slow
async def test_what_is_published_after_a_promotion_is_received(cluster: Cluster) -> None:
    cluster.flush()
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        event_log = redis_event_log(clients)
        async with listening(event_log) as received:
            cluster.promote()
            await event_log.append([Batch("seen", 1, [event(1)], stored_id=1)])
            await wait_until(lambda: [event(1)] in received)


async def test_commands_follow_a_slot_that_moves_with_its_keys(cluster: Cluster, tmp_path: Path) -> None:
    home = cluster.owner
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        put = script(clients, tmp_path)
        await put([f"{PREFIX}a"], ["before"])
        cluster.move_slot(cluster.others[0])
        assert await clients.commands.get(f"{PREFIX}a") == "before"
        await put([f"{PREFIX}a"], ["after"])
        cluster.move_slot(home)
        assert await clients.commands.get(f"{PREFIX}a") == "after"


async def test_while_a_slot_moves_nothing_is_done_by_halves(cluster: Cluster, tmp_path: Path) -> None:
    home, target = cluster.owner, cluster.others[0]
    async with connected(cluster.url(), prefix=PREFIX) as clients:
        put = script(clients, tmp_path)
        cluster.begin_to_move(target)
        with pytest.raises(Unavailable, match="ASK"):
            await put([f"{PREFIX}new"], ["x"])
        cluster.end_move(target)
        await put([f"{PREFIX}new"], ["x"])
        cluster.move_slot(home)


@pytest.mark.slow
async def test_a_node_that_is_killed_is_replaced_by_its_replica(tmp_path: Path) -> None:
    with started(lambda: Cluster(tmp_path / "cluster", PREFIX)) as cluster:
        async with connected(cluster.url(), prefix=PREFIX) as clients:
            assert await writes(clients)
            cluster.owner.kill()
            await wait_until(lambda: writes(clients), timeout=30)
            assert cluster.replica.role() == "master"
            await live_a_life(clients)


# --- a sentinel ---


async def test_a_master_that_is_killed_is_replaced_by_its_replica(watched: Watched) -> None:
    async with connected(watched.url) as clients:
        assert await writes(clients)
        watched.master.kill()
        await wait_until(lambda: writes(clients))
        assert watched.replica.role() == "master"


async def test_commands_go_to_the_new_master_before_the_old_one_knows_that_it_is_none(watched: Watched) -> None:
    async with connected(watched.url) as clients:
        assert await writes(clients)
        watched.promote()
        assert watched.master.role() == "master"

        async def put() -> bool:
            await clients.commands.set("new", "1")
            return bool(watched.replica.ask("EXISTS", "new"))

        await wait_until(put)
        assert watched.master.role() == "master"


@pytest.mark.slow
async def test_all_connections_leave_a_master_that_becomes_a_replica(watched: Watched) -> None:
    async with connected(watched.url) as clients:
        queue, event_log = redis_queue(clients), redis_event_log(clients)
        async with listening(event_log) as received, beside(queue.claim("worker", 1, 20)) as waiting:
            await wait_until(lambda: blocks(watched.master))
            watched.promote()
            await wait_until(watched.master.is_replica, timeout=30)
            await wait_until(lambda: writes(clients))
            await queue.enqueue([JOB])
            assert [claim.run_id for claim in await waiting] == [JOB.run_id]
            await wait_until(lambda: received == [SubscriptionLost()], timeout=30)
            await event_log.append([Batch("seen", 1, [event(1)], stored_id=1)])
            await wait_until(lambda: received[1:] == [[event(1)]])


async def test_a_service_that_no_sentinel_knows_is_named(watched: Watched) -> None:
    async with connected(watched.url.replace("/agents", "/others")) as clients:
        with pytest.raises(Unavailable, match="others"):
            await clients.check()


async def test_the_sentinels_have_a_login_of_their_own(watched: Watched) -> None:
    watched.sentinel.ask("ACL", "SETUSER", "guard", "on", ">theirs", "+@all")
    access = RedisAccess(sentinel_username="guard", sentinel_password="theirs")
    async with connected(watched.url, access=access) as clients:
        await clients.check()
    async with connected(watched.url, access=replace(access, sentinel_password="wrong")) as clients:
        with pytest.raises(Unavailable):
            await clients.check()


# --- one server ---


async def test_a_server_that_may_only_be_read_is_left_and_found_again(node: Node, tmp_path: Path) -> None:
    async with connected(node.url) as clients:
        put = script(clients, tmp_path)
        await put(["a"], ["1"])
        connection = await own_id(clients)
        node.ask("REPLICAOF", HOST, "1")
        for call in (put(["a"], ["2"]), put.batch([(["a"], ["2"])])):
            with pytest.raises(Unavailable, match="READONLY"):
                await call
        node.ask("REPLICAOF", "NO", "ONE")
        await put(["a"], ["2"])
        assert await own_id(clients) != connection


async def own_id(clients: RedisClients) -> int:
    """Of the connection that scripts use one after another."""
    async with clients.own_connection() as own:
        [number] = await own.ask(("CLIENT", "ID"))
        return int(number)


async def test_a_full_server_is_unavailable(node: Node, tmp_path: Path) -> None:
    async with connected(node.url) as clients:
        put = script(clients, tmp_path)
        await put(["a"], ["1"])
        node.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="OOM"):
            await put(["a"], ["2"])


@pytest.mark.parametrize("kind", ["commands", "blocking"])
async def test_a_server_that_hangs_up_is_not_tried_for_long(kind: str) -> None:
    calls = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()

    async with (
        await asyncio.start_server(hang_up, HOST, 0) as server,
        connected(f"redis://{HOST}:{server.sockets[0].getsockname()[1]}") as clients,
    ):
        with pytest.raises(Unavailable), translated():
            await getattr(clients, kind).ping()
    assert 1 < calls <= 4


async def test_more_commands_than_connections_wait_for_one(node: Node) -> None:
    async with connected(node.url) as clients:
        assert all(await asyncio.gather(*(clients.commands.set("a", number) for number in range(300))))


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "other"),
        ("SET", "other", "1"),
        ("PUBLISH", "other", "1"),
        ("SUBSCRIBE", "other"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("CLIENT", "LIST"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
    ],
    ids=lambda command: command[0].lower(),
)
async def test_the_documented_user_may_do_nothing_else(node: Node, command: tuple[str, ...]) -> None:
    node.ask(*acl_line())
    async with connected(node.url, prefix=PREFIX, access=AGENTS) as clients:
        await clients.check()
        with pytest.raises(NoPermissionError):
            await cast(Any, clients.commands).execute_command(*command)


async def test_a_redis_user_with_too_few_rights_is_reported_as_such(node: Node, tmp_path: Path) -> None:
    node.ask(*acl_line())
    async with connected(node.url, prefix=PREFIX, access=AGENTS) as clients:
        with pytest.raises(Unavailable, match="NOPERM"):
            await script(clients, tmp_path)(["other"], ["1"])


async def test_the_login_of_the_settings_goes_before_the_one_in_the_url(node: Node) -> None:
    node.ask(*acl_line())
    url = f"redis://somebody:else@{HOST}:{node.port}/0"
    async with connected(url, access=AGENTS) as clients:
        await clients.check()
    async with connected(url) as clients:
        with pytest.raises(Unavailable) as refused:
            await clients.check()
        assert "else" not in refused.value.message


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def test_a_life_over_tls(node: Node, certificate: tuple[Path, Path]) -> None:
    access = RedisAccess(tls_ca=str(certificate[0]))
    async with (
        tls_before(node.port, *certificate) as port,
        connected(f"rediss://{HOST}:{port}", access=access) as clients,
    ):
        await live_a_life(clients)


async def test_a_certificate_that_nobody_known_has_signed_is_refused(
    node: Node, certificate: tuple[Path, Path]
) -> None:
    async with tls_before(node.port, *certificate) as port, connected(f"rediss://{HOST}:{port}") as clients:
        with pytest.raises(Unavailable, match="certificate"):
            await clients.check()


async def test_a_certificate_for_another_host_is_refused(node: Node, certificate: tuple[Path, Path]) -> None:
    access = RedisAccess(tls_ca=str(certificate[0]))
    async with (
        tls_before(node.port, *certificate) as port,
        connected(f"rediss://localhost:{port}", access=access) as clients,
    ):
        with pytest.raises(Unavailable, match="certificate"):
            await clients.check()


async def test_a_server_that_asks_for_a_certificate_is_shown_one(node: Node, certificate: tuple[Path, Path]) -> None:
    file, key = map(str, certificate)
    async with tls_before(node.port, *certificate, asks_for_one=True) as port:
        async with connected(f"rediss://{HOST}:{port}", access=RedisAccess(tls_ca=file)) as clients:
            with pytest.raises(Unavailable):
                await clients.check()
        with_one = RedisAccess(tls_ca=file, tls_certificate=file, tls_key=key)
        async with connected(f"rediss://{HOST}:{port}", access=with_one) as clients:
            await clients.check()


@pytest.mark.slow
async def test_a_cluster_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with started(lambda: LoneMember(tmp_path / "node")) as member:
        async with tls_before(member.port, *certificate, listen=member.announced) as port:
            url, access = f"rediss+cluster://{HOST}:{port}", RedisAccess(tls_ca=str(certificate[0]))
            async with connected(url, prefix=PREFIX, access=access) as clients:
                await live_a_life(clients)
