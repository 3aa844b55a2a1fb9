"""An API that reaches Redis by REST alone, with a worker that has a connection: the same promises."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from backplane.domain.users import Tier
from backplane.settings import Settings
from tests.integration.api.running import Api, Frame, Person, StartApi, StartWorker, WorkerByHand, running
from tests.ports import own_port
from tests.rest_front import TOKEN, Fault, RestFront, rest_front
from tests.servers import RedisServer
from tests.submitted import shell
from tests.waiting import wait_until

NOWHERE = "redis://127.0.0.1:{}/0"


@pytest.fixture
async def front(redis: str) -> AsyncIterator[RestFront]:
    async with rest_front(redis) as front:
        yield front


def by_rest(front: RestFront, **values: Any) -> dict[str, Any]:
    """What such an API is given; there is nothing at its REDIS_URL."""
    rest = {"upstash_redis_rest_url": front.url, "upstash_redis_rest_token": TOKEN}
    return {"redis_url": NOWHERE.format(own_port()), **rest, **values}


def for_workers(api: Api, redis: str) -> Settings:
    none = {"upstash_redis_rest_url": "", "upstash_redis_rest_token": ""}
    given = {name: getattr(api.settings, name) for name in api.settings.model_fields_set}
    return Settings.model_validate({**given, **none, "redis_url": redis})


@dataclass
class ByRest:
    """The API, what it goes by, and one beside it that has a connection, whose parts play the worker."""

    front: RestFront
    api: Api
    person: Person
    connected: Api

    async def worker(self) -> WorkerByHand:
        return await self.connected.worker()


@pytest.fixture
async def rest(front: RestFront, start_api: StartApi, redis: str) -> AsyncIterator[ByRest]:
    api = await start_api(**by_rest(front))
    async with running(for_workers(api, redis)) as connected:
        yield ByRest(front, api, await api.person(), connected)


def numbers(watched: list[Frame]) -> list[int | None]:
    return [frame.id for frame in watched if frame.id is not None]


async def test_a_run_is_queued_carried_out_and_followed_to_its_end(
    front: RestFront, start_api: StartApi, start_worker: StartWorker, redis: str
) -> None:
    api = await start_api(**by_rest(front))
    start_worker(for_workers(api, redis))
    person = await api.person()
    run_id = await person.make(plan={"steps": [shell("say", "for n in 1 2 3 4 5; do echo line $n; sleep 0.1; done")]})
    watching = asyncio.create_task(person.watch(run_id))
    await wait_until(lambda: front.subscriptions)
    front.cut()
    watched = await watching
    lines = "".join(frame.data["line"] for frame in watched if frame.event == "log")
    assert [f"line {number}" in lines for number in range(1, 6)] == [True] * 5
    assert numbers(watched) == list(range(1, len(watched) + 1))
    assert watched[-1].event == "end"
    assert (await person.show(run_id))["status"] == "completed"


@pytest.mark.parametrize("of_a_line", ["data: ", ""], ids=["each line is data", "as it is"])
async def test_nothing_is_missed_or_doubled_when_the_front_cuts_again_and_again(rest: ByRest, of_a_line: str) -> None:
    rest.front.of_a_line = of_a_line
    await rest.person.make()
    worker = await rest.worker()
    watching = asyncio.create_task(rest.person.watch(worker.run_id))
    for count in range(4):
        await wait_until(lambda: rest.front.subscriptions)
        await worker.say(f"a {count}", f"b {count}", f"c {count}")
        rest.front.cut()
        await worker.say(f"while it was cut {count}")
    await worker.end()
    watched = await watching
    assert numbers(watched) == list(range(1, 4 * 4 + 5))


async def test_a_client_that_comes_back_goes_on_where_it_was(rest: ByRest) -> None:
    await rest.person.make()
    worker = await rest.worker()
    async with rest.person.stream(worker.run_id) as stream:
        seen = [await anext(stream), await anext(stream)]
    await worker.say("one", "two")
    watching = asyncio.create_task(rest.person.watch(worker.run_id, last_event_id=seen[-1].id))
    await worker.say("three")
    await worker.end()
    assert numbers([*seen, *await watching]) == list(range(1, 8))


async def test_all_runs_of_a_user_are_followed_in_one_stream(rest: ByRest) -> None:
    http = rest.person.http
    async with http.stream("GET", "/agent/events") as response:
        blocks = response.aiter_lines()
        run_id = await rest.person.make()
        async for line in blocks:
            if run_id in line:
                break


async def test_a_run_that_is_queued_is_cancelled_at_once(rest: ByRest) -> None:
    run_id = await rest.person.make()
    assert (await rest.person.act("cancel", run_id)).status_code == 200
    assert (await rest.person.show(run_id))["status"] == "cancelled"
    assert await rest.connected.resources.queue.claim("worker", 1) == []


async def test_a_running_step_ends_when_its_run_is_cancelled(
    front: RestFront, start_api: StartApi, start_worker: StartWorker, redis: str
) -> None:
    api = await start_api(**by_rest(front))
    start_worker(for_workers(api, redis))
    person = await api.person()
    run_id = await person.make(plan={"steps": [shell("wait", "echo begun; sleep 60")]})
    async with person.stream(run_id) as stream:
        async for frame in stream:
            if frame.event == "log":
                break
        await person.act("cancel", run_id)
        last = [frame async for frame in stream][-1]
    assert (last.event, last.data["status"]) == ("end", "cancelled")


async def test_a_run_that_waits_says_where_it_stands(rest: ByRest) -> None:
    run_ids = [await rest.person.make() for _ in range(3)]
    explained = (await rest.person.http.get(f"/agent/runs/{run_ids[-1]}/explain")).json()
    assert explained["position"] == 3
    queue = (await rest.person.http.get("/agent/queue")).json()
    assert queue["queued"] == 3


async def test_who_asks_too_often_is_refused(front: RestFront, start_api: StartApi) -> None:
    api = await start_api(**by_rest(front, api_rate_per_second=0.01, api_rate_burst=5))
    person = await api.person()
    found = [(await person.http.get("/agent/queue")).status_code for _ in range(10)]
    assert (found[0], found[-1]) == (200, 429)


async def test_a_queue_that_is_full_is_refused(front: RestFront, start_api: StartApi) -> None:
    api = await start_api(**by_rest(front, queue_max_waiting=2))
    person = await api.person(Tier.STANDARD)
    answers = [await person.act("run", prompt="a", plan={"steps": [shell("a", "true")]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]


async def test_readiness_says_what_the_front_answered(rest: ByRest) -> None:
    http = rest.api.client()
    await wait_until(lambda: _status(http, 200))
    rest.front.fail_next(*[Fault(429, b"{}")] * 20)
    await wait_until(lambda: _status(http, 503))
    reason = (await http.get("/health/ready")).json()["parts"]["redis"]["error"]
    assert "answered 429" in reason
    assert TOKEN not in reason
    rest.front.fail_next()
    await wait_until(lambda: _status(http, 200), 20)


async def _status(http: Any, status: int) -> bool:
    return bool((await http.get("/health/ready")).status_code == status)


async def test_runs_are_taken_while_the_front_is_away_and_reach_the_queue_later(
    own_redis: Callable[[], RedisServer], settings_with: Callable[..., Settings], start_worker: StartWorker
) -> None:
    redis = own_redis().url
    async with rest_front(redis) as front, running(settings_with(**by_rest(front))) as api:
        person = await api.person()
        await front.stop()
        run_id = await person.make()
        start_worker(for_workers(api, redis))
        await front.start()
        watched = await person.watch(run_id)
        assert watched[-1].event == "end"


async def test_the_start_says_what_rest_is_and_never_the_token(
    front: RestFront, start_api: StartApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api = await start_api(**by_rest(front, log_level="debug"))
    answer = await (await api.person()).http.get("/agent/queue")
    assert answer.status_code == 200
    lines = capsys.readouterr().err
    assert "reached by REST" in lines
    assert TOKEN not in lines
    assert TOKEN not in repr(api.settings)


async def test_a_bulk_action_is_taken_and_left_to_a_controller(rest: ByRest) -> None:
    run_id = await rest.person.make()
    answer = await rest.person.http.post("/agent/bulk", json={"action": "cancel", "filter": {"run_ids": [run_id]}})
    assert answer.status_code == 202, answer.text
