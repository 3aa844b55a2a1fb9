"""What every keeper of model slots does. There is one adapter: Redis; two of it are two workers here."""

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from backplane.limits.slots.base import SlotRequest, Slots
from backplane.limits.slots.redis import RedisSlots
from backplane.redis.client import RedisClients
from tests.servers import RedisServer
from tests.waiting import wait_until

LONG_SECONDS = 600.0
SHORT_SECONDS = 0.6
"""Of leases. A renewal is a sixth."""
LONG_TURN = 600.0


@asynccontextmanager
async def working(
    clients: RedisClients, *, lease: float = LONG_SECONDS, turn: float = LONG_TURN
) -> AsyncIterator[Slots]:
    """One worker's."""
    slots = RedisSlots(clients, lease_seconds=lease, turn_seconds=turn)
    running = asyncio.create_task(slots.run())
    try:
        yield slots
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def must_not_wait(place: int) -> None:
    pytest.fail(f"has to wait, at place {place}")


@pytest.fixture
async def slots(clients: RedisClients) -> AsyncIterator[Slots]:
    async with working(clients) as slots:
        yield slots


@pytest.fixture
async def other(clients: RedisClients) -> AsyncIterator[Slots]:
    async with working(clients) as slots:
        yield slots


class Server:
    """What a model server sees: who is there at once, in which order they came. Each call stays until it is ended."""

    def __init__(self, parallel: int, models: int = 0) -> None:
        self.parallel, self.models = parallel, models
        self.now: list[SlotRequest] = []
        self.came: list[str] = []
        self.most = self.most_models = 0
        self.places: dict[str, list[int]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}

    async def call(self, slots: Slots, name: str, user: str = "u", model: str = "m") -> None:
        """Make a call, and return once it has a slot or knows its place in the line."""
        self._ends[name] = asyncio.Event()
        self.places[name] = []
        request = SlotRequest("server", model, user, f"run-{name}", name)
        self._calls[name] = asyncio.create_task(self._hold(slots, request))
        await wait_until(lambda: name in self.came or self.places[name])

    async def calls(self, slots: Slots, *names: str, user: str = "u", model: str = "m") -> None:
        for name in names:
            await self.call(slots, name, user, model)

    async def _hold(self, slots: Slots, request: SlotRequest) -> None:
        name = request.call_id
        async with slots.hold(request, parallel=self.parallel, models=self.models, on_wait=self.places[name].append):
            self.now.append(request)
            self.came.append(name)
            self.most = max(self.most, len(self.now))
            self.most_models = max(self.most_models, len({request.model for request in self.now}))
            try:
                await self._ends[name].wait()
            finally:
                self.now.remove(request)

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self._calls.pop(name)

    async def cancel(self, *names: str) -> None:
        for name in names:
            call = self._calls.pop(name)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call

    async def cancel_all(self) -> None:
        await self.cancel(*self._calls)

    async def until_here(self, *names: str) -> None:
        await wait_until(lambda: set(names) <= {request.call_id for request in self.now}, what=f"{names} hold slots")

    async def one_after_another(self, count: int) -> list[str]:
        """End whoever is there, one at a time, until so many have come; who came."""
        while len(self.came) < count:
            came = len(self.came)
            await wait_until(lambda: self.now)
            await self.end(self.now[0].call_id)
            await wait_until(lambda came=came: len(self.came) > came)  # type: ignore[misc]
        return self.came


@pytest.fixture
async def serving() -> AsyncIterator[Callable[..., Server]]:
    """Makes servers; what still waits or is held there at the end is cancelled."""
    async with AsyncExitStack() as stack:

        def serve(parallel: int, models: int = 0) -> Server:
            server = Server(parallel, models)
            stack.push_async_callback(server.cancel_all)
            return server

        yield serve


Serving = Callable[..., Server]


# --- how many at once ---


async def test_a_call_goes_on_at_once_where_a_slot_is_free(slots: Slots, serving: Serving) -> None:
    server = serving(2)
    await server.calls(slots, "a", "b")
    assert (server.came, server.places) == (["a", "b"], {"a": [], "b": []})


async def test_a_call_too_many_learns_its_place_and_gets_the_slot_that_is_freed(
    slots: Slots, other: Slots, serving: Serving
) -> None:
    server = serving(1)
    await server.call(slots, "a")
    await server.call(other, "b")
    await server.call(slots, "c")
    assert (server.places["b"], server.places["c"]) == ([1], [2])
    await server.end("a")
    await server.until_here("b")
    await server.end("b")
    await server.until_here("c")
    assert server.most == 1


async def test_servers_do_not_wait_for_one_another(slots: Slots) -> None:
    async with AsyncExitStack() as stack:
        for name in ("one", "other"):
            request = SlotRequest(name, "m", "u", "run", name)
            await stack.enter_async_context(slots.hold(request, parallel=1, models=1, on_wait=must_not_wait))


async def test_a_server_without_a_limit_needs_no_redis() -> None:
    clients = RedisClients("redis://127.0.0.1:1/0")
    slots = RedisSlots(clients, lease_seconds=1, turn_seconds=1)
    async with slots.hold(SlotRequest("s", "m", "u", "r", "c"), parallel=0, models=1, on_wait=must_not_wait):
        pass
    await clients.close()


async def test_however_many_call_and_give_up_nobody_is_forgotten_and_no_limit_is_passed(
    slots: Slots, other: Slots, serving: Serving
) -> None:
    """Three users with two models of three at a time, at two workers; a third of the calls gives up at some time."""
    server, chance = serving(4, 2), random.Random(5)
    waiting: list[str] = []
    for number in range(60):
        await server.call(chance.choice((slots, other)), f"{number}", chance.choice("abc"), chance.choice("xyz"))
        waiting.append(f"{number}")
        if len(waiting) > 12:
            name = chance.choice(waiting)
            waiting.remove(name)
            await (server.end(name) if name in server.came else server.cancel(name))
    while waiting:
        await wait_until(lambda: server.now)
        name = server.now[0].call_id
        waiting.remove(name)
        await server.end(name)
    assert (server.most, server.most_models) == (4, 2)


# --- whose turn it is ---


async def test_of_one_user_who_came_first_is_served_first(slots: Slots, other: Slots, serving: Serving) -> None:
    server = serving(1)
    for name, where in zip("abcdef", [slots, other] * 3, strict=True):
        await server.call(where, name)
    assert await server.one_after_another(6) == list("abcdef")


async def test_users_take_turns_however_many_calls_one_has(slots: Slots, other: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, "a1", "a2", "a3", "a4", "a5", user="a")
    await server.calls(other, "b1", "b2", user="b")
    await server.calls(slots, "c1", user="c")
    assert await server.one_after_another(8) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4", "a5"]


async def test_a_user_who_comes_back_has_no_advantage_over_those_who_waited(slots: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, "a1", user="a")
    await server.calls(slots, "b1", "b2", user="b")
    await server.calls(slots, "c1", user="c")
    await server.end("a1")
    await server.until_here("b1")
    await server.call(slots, "a2", user="a")
    assert (await server.one_after_another(5))[2:] == ["c1", "a2", "b2"]


async def test_long_calls_of_one_user_do_not_take_all_slots_while_others_wait(slots: Slots, serving: Serving) -> None:
    server = serving(4)
    await server.calls(slots, *(f"a{number}" for number in range(8)), user="a")
    await server.calls(slots, *(f"b{number}" for number in range(20)), user="b")
    # The calls of a never end but for one, and b's are short.
    await server.end("a0")
    for _ in range(19):
        await wait_until(lambda: len(server.now) == 4)
        await server.end(next(request.call_id for request in server.now if request.user_id == "b"))
    assert len(server.came) == 4 + 20
    assert Counter(name[0] for name in server.came) == {"a": 4, "b": 20}


async def test_the_place_says_who_is_served_before(slots: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, *(f"a{number}" for number in range(10)), user="a")
    await server.calls(slots, "b1", "b2", user="b")
    assert [server.places[name][0] for name in ("a9", "b1", "b2")] == [9, 1, 3]


# --- models ---


async def test_no_more_models_are_in_use_than_the_server_keeps(slots: Slots, other: Slots, serving: Serving) -> None:
    server = serving(4, 2)
    await server.call(slots, "x1", model="x")
    await server.call(other, "y1", model="y")
    await server.call(slots, "z1", model="z")
    await server.call(other, "x2", model="x")
    assert server.came == ["x1", "y1", "x2"]
    await server.end("y1")
    await server.until_here("z1")


async def test_a_model_that_waits_gets_its_place_although_another_is_always_asked_for(
    clients: RedisClients, serving: Serving
) -> None:
    async with working(clients, turn=0) as slots:
        server = serving(2, 1)
        await server.calls(slots, "x1", "x2", user="a", model="x")
        await server.calls(slots, "z1", user="b", model="z")
        await server.calls(slots, "x3", "x4", user="c", model="x")
        await server.end("x1")
        assert server.came == ["x1", "x2"]
        await server.end("x2")
        await server.until_here("z1")
        await server.end("z1")
        await server.until_here("x3", "x4")
        assert server.most_models == 1
        await server.cancel_all()


async def test_a_model_keeps_its_place_for_its_turn(slots: Slots, serving: Serving) -> None:
    server = serving(1, 1)
    await server.calls(slots, "x1", model="x")
    await server.calls(slots, "z1", model="z")
    await server.calls(slots, "x2", "x3", model="x")
    assert await server.one_after_another(4) == ["x1", "x2", "x3", "z1"]


async def test_the_place_of_a_model_that_is_free_goes_to_the_one_that_waits_longest(
    clients: RedisClients, serving: Serving
) -> None:
    async with working(clients, turn=0) as slots:
        server = serving(1, 1)
        for model in ("x", "y", "z"):
            await server.calls(slots, f"{model}1", f"{model}2", model=model)
        assert await server.one_after_another(6) == ["x1", "y1", "z1", "x2", "y2", "z2"]
        await server.cancel_all()


async def test_a_model_too_many_gets_no_more_calls(clients: RedisClients, slots: Slots, serving: Serving) -> None:
    """As a worker brings one that stood still for longer than its lease."""
    server = serving(2, 1)
    still = RedisSlots(clients, lease_seconds=0.06, turn_seconds=LONG_TURN)
    await server.call(still, "x1", model="x")
    await server.call(slots, "y1", model="y")

    async def y_is_let_in() -> bool:
        await cast(Any, slots)._renew_at("server")
        return "y1" in server.came

    await wait_until(y_is_let_in)
    await cast(Any, still)._renew_at("server")
    await server.calls(slots, "x2", model="x")
    await server.calls(slots, "y2", model="y")
    await server.end("x1" if server.places["x2"] else "y1")
    await server.until_here("y2")
    assert "x2" not in server.came


# --- ends of all kinds ---


async def test_a_call_that_gives_up_waiting_leaves_the_line_at_once(slots: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, "a", "b", "c")
    await server.cancel("b")
    await server.end("a")
    await server.until_here("c")
    assert "b" not in server.came
    assert await slots.waiting("run-b") is None


async def test_a_cancelled_call_frees_its_slot_once(slots: Slots, other: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, "a", "b")
    await server.call(other, "c")
    await server.cancel("a")
    await server.until_here("b")
    assert server.came == ["a", "b"]
    await server.end("b")
    await server.until_here("c")


async def test_a_call_that_fails_frees_its_slot(slots: Slots) -> None:
    request = SlotRequest("server", "m", "u", "run", "call")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"):
            async with slots.hold(request, parallel=1, models=1, on_wait=must_not_wait):
                raise RuntimeError("broken")


HOLDING = """
import asyncio, sys
from backplane.redis.client import RedisClients
from backplane.limits.slots.base import SlotRequest
from backplane.limits.slots.redis import RedisSlots

async def hold(slots, name):
    say = lambda place: print("waits", flush=True)
    async with slots.hold(SlotRequest("server", "m", "dead", "run", name), parallel=1, models=1, on_wait=say):
        print("holds", flush=True)
        await asyncio.Event().wait()

async def main():
    slots = RedisSlots(RedisClients(sys.argv[1]), lease_seconds=float(sys.argv[2]), turn_seconds=1)
    await asyncio.gather(slots.run(), hold(slots, "a"), hold(slots, "b"))

asyncio.run(main())
"""


async def other_worker(redis: str) -> asyncio.subprocess.Process:
    """A process with two calls for the one slot, whose lease is short."""
    arguments = ("-c", HOLDING, redis, f"{SHORT_SECONDS}")
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, cwd=root)


async def says(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def until_it_holds(process: asyncio.subprocess.Process) -> None:
    # It may say before that its place is another.
    while await says(process) != "holds":
        pass


async def test_the_slots_and_the_places_of_a_worker_that_dies_are_free_when_its_lease_ends(
    redis: str, serving: Serving
) -> None:
    dying, clients = await other_worker(redis), RedisClients(redis)
    assert sorted([await says(dying), await says(dying)]) == ["holds", "waits"]
    async with working(clients, lease=SHORT_SECONDS) as slots:
        server = serving(1, 1)
        await server.call(slots, "c")
        assert server.came == []
        dying.kill()
        await dying.wait()
        await server.until_here("c")
        await server.cancel_all()
    await clients.close()


@pytest.mark.slow
async def test_a_worker_that_stood_still_does_not_take_a_slot_that_was_granted_and_lost(
    redis: str, serving: Serving
) -> None:
    clients = RedisClients(redis)
    async with working(clients, lease=SHORT_SECONDS) as slots:
        server = serving(1, 1)
        await server.call(slots, "a")
        still = await other_worker(redis)
        assert [await says(still), await says(still)] == ["waits", "waits"]
        still.send_signal(signal.SIGSTOP)
        await server.call(slots, "b", user="b")
        # This gives the slot to who stands still, and b gets it when that one's lease is over.
        await server.end("a")
        assert server.came == ["a"]
        await server.until_here("b")
        holds = asyncio.create_task(until_it_holds(still))
        still.send_signal(signal.SIGCONT)
        await wait_until(lambda: slots.waiting("run"))
        assert not holds.done()
        await server.end("b")
        await holds
        still.kill()
        await still.wait()
    await clients.close()


async def test_a_call_that_takes_longer_than_the_lease_keeps_its_slot(clients: RedisClients, serving: Serving) -> None:
    lease = 0.3

    async def holds_and_waits_evenly() -> bool:
        async with working(clients, lease=lease) as slots, working(clients, lease=lease) as other:
            server = serving(1)
            await server.call(slots, "a")
            await server.call(other, "b")
            is_even = await passes_evenly(clients, 2 * lease, pause=lease / 3)
            came = [*server.came]
            await server.cancel_all()
            assert not is_even or came == ["a"]
            return is_even

    await wait_until(holds_and_waits_evenly, 30)


async def passes_evenly(clients: RedisClients, seconds: float, *, pause: float) -> bool:
    """Let so much time pass. Returns whether this process and Redis were never kept from the processor for so long as
    `pause`: a lease that is not renewed for that reason ends, as it should."""
    time = asyncio.get_running_loop().time
    until = last = time()
    until += seconds
    longest = 0.0
    while last < until:
        await asyncio.sleep(0.005)
        await clients.commands.ping()
        longest, last = max(longest, time() - last), time()
    return longest < pause


# --- Redis ---

BETWEEN_SERVERS = {"psync", "replconf"}
"""What a replica asks its master: once a second how far it is, and after a break to go on."""


async def test_after_redis_was_emptied_all_go_on_and_nobody_is_let_in_too_early(
    clients: RedisClients, serving: Serving
) -> None:
    async with working(clients, lease=SHORT_SECONDS) as slots, working(clients, lease=SHORT_SECONDS) as other:
        server = serving(2)
        await server.calls(slots, "a", "c", user="a")
        await server.calls(other, "b", "d", user="b")
        assert server.came == ["a", "c"]
        await clients.commands.flushall()
        # Its worker does not know the other's slots when it asks.
        await server.call(other, "e", user="e")
        await server.end("a")
        await server.until_here("b")
        await server.one_after_another(5)
        assert sorted(server.came) == ["a", "b", "c", "d", "e"]
        assert server.most == 2
        await server.cancel_all()


async def test_while_redis_is_away_calls_wait_and_those_with_a_slot_go_on(
    own_redis: Callable[..., RedisServer],
) -> None:
    away = own_redis()
    clients = RedisClients(away.url)
    async with working(clients, lease=SHORT_SECONDS) as slots:
        server = Server(1)
        await server.calls(slots, "a", "b")
        away.kill()
        asking = asyncio.create_task(server.call(slots, "c"))
        await server.end("a")
        assert server.came == ["a"]
        away.start()
        await asking
        await server.one_after_another(3)
        assert server.most == 1
        await server.cancel_all()
    await clients.close()


async def test_a_release_that_did_not_reach_redis_is_made_up_for(own_redis: Callable[..., RedisServer]) -> None:
    away = own_redis(keeps_data=True)
    clients, others = RedisClients(away.url), RedisClients(away.url)
    async with working(clients, lease=SHORT_SECONDS) as slots, working(others, lease=SHORT_SECONDS) as other:
        server = Server(2)
        # The other one goes on, and with it its worker's lease.
        await server.calls(slots, "a", "goes on")
        away.kill()
        await server.end("a")
        away.start()
        await server.call(other, "b")
        await server.until_here("b")
        await server.cancel_all()
    await clients.close()
    await others.close()


async def test_a_ring_that_is_lost_is_made_up_for(clients: RedisClients, serving: Serving) -> None:
    async with working(clients) as slots:
        deaf = RedisSlots(clients, lease_seconds=SHORT_SECONDS, turn_seconds=0)
        renewing = asyncio.create_task(deaf._renew_forever())  # all of `run` but the wake-up list
        server = serving(1)
        await server.call(slots, "a")
        await server.call(deaf, "b")
        await server.end("a")
        await server.until_here("b")
        await server.cancel_all()
        renewing.cancel()


async def test_waiting_asks_redis_nothing(clients: RedisClients, slots: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, *(f"{number}" for number in range(20)))
    await clients.commands.config_resetstat()
    ends = asyncio.get_running_loop().time() + 0.2
    await wait_until(lambda: asyncio.get_running_loop().time() > ends)
    asked: dict[str, object] = await clients.commands.info("commandstats")
    commands = {name.removeprefix("cmdstat_").partition("|")[0] for name in asked}
    assert commands <= {"config", "info"} | BETWEEN_SERVERS


async def test_nothing_but_the_servers_own_hash_is_left_behind(
    clients: RedisClients, slots: Slots, serving: Serving
) -> None:
    server = serving(1, 1)
    await server.calls(slots, "a", "b", "c")
    await server.cancel("b")
    await server.end("a", "c")
    keys = [str(key) for key in await clients.commands.keys(f"{clients.keys.models}*")]
    left = [key for key in keys if not key.startswith(clients.keys.model_wake_ups(""))]
    assert left == [f"{clients.keys.models}server:server"]
    fields = await clients.commands.hkeys(left[0])
    assert {field[:2] for field in fields} == {"ep", "w:", "u:"}
    assert all([await clients.commands.pttl(key) > 0 for key in keys if key not in left])


# --- why a run waits ---


async def test_what_a_run_waits_for_is_known(slots: Slots, other: Slots, serving: Serving) -> None:
    server = serving(1)
    await server.calls(slots, "a", "b", "c")
    waiting = await other.waiting("run-c")
    assert waiting is not None
    assert (waiting.what, waiting.server, waiting.model) == ("slot", "server", "m")
    assert (waiting.position, waiting.waiting, waiting.slots) == (2, 2, 1)
    assert await other.waiting("run-a") is None


async def test_the_place_is_reported_again_when_it_changes(clients: RedisClients, serving: Serving) -> None:
    async with working(clients, lease=SHORT_SECONDS) as slots:
        server = serving(1)
        await server.calls(slots, "a", "b", "c")
        await server.end("a")
        await wait_until(lambda: server.places["c"] == [2, 1])
        waiting = await slots.waiting("run-c")
        assert waiting is not None
        assert waiting.position == 1
        await server.cancel_all()


async def test_what_a_dead_worker_said_is_forgotten(clients: RedisClients, serving: Serving) -> None:
    slots = RedisSlots(clients, lease_seconds=0.3, turn_seconds=1)
    server = serving(1)
    await server.calls(slots, "a", "b")
    # Nobody renews.
    assert await slots.waiting("run-b")

    async def nobody() -> bool:
        return await slots.waiting("run-b") is None

    await wait_until(nobody)
