"""Health, and what the API does while a part is down: it says so, keeps what it has promised, and goes on later."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.integration.api.running import Api, Person, StartApi, StartWorker
from tests.servers import PostgresServer, RedisServer, S3Server
from tests.waiting import wait_until


async def readiness(api: Api) -> tuple[int, Any]:
    answer = await api.client().get("/health/ready")
    return answer.status_code, answer.json()


async def test_a_healthy_api_is_live_and_ready_and_wants_no_token(api: Api) -> None:
    assert (await api.client().get("/health/live")).json() == {"ok": True}
    status, body = await readiness(api)
    assert (status, body["ok"]) == (200, True)
    assert body["parts"].keys() == {"redis", "database", "workspace"}
    assert all(part["ok"] and part["latency_ms"] >= 0 and part["error"] is None for part in body["parts"].values())


def down(body: Any) -> list[str]:
    assert all(part["error"] for part in body["parts"].values() if not part["ok"])
    return [name for name, part in body["parts"].items() if not part["ok"]]


async def test_an_api_without_redis_is_live_and_names_redis(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    server.stop()
    status, body = await readiness(api)
    assert (status, down(body)) == (503, ["redis"])
    assert (await api.client().get("/health/live")).status_code == 200
    server.start()

    async def is_ready() -> bool:
        return (await readiness(api))[0] == 200

    await wait_until(is_ready)


@pytest.mark.slow
async def test_an_api_without_its_object_store_names_the_workspace(
    start_api: StartApi, own_s3: Callable[[], S3Server]
) -> None:
    server = own_s3()
    api = await start_api(
        s3_bucket=server.create_bucket(),
        s3_endpoint=server.endpoint,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
    )
    person = await api.person()
    run_id = await person.make("create")
    assert (await person.http.put(f"/agent/runs/{run_id}/files/a", content=b"x")).status_code == 201
    server.stop()
    status, body = await readiness(api)
    assert (status, down(body)) == (503, ["workspace"])
    assert server.secret_key not in str(body)
    answer = await person.http.get(f"/agent/runs/{run_id}/files/a")
    assert_unavailable(answer)
    server.start()
    assert (await person.http.get(f"/agent/runs/{run_id}/files/a")).content == b"x"


async def test_an_api_without_its_database_names_it_and_asks_to_come_again(
    start_api: StartApi, own_postgres: Callable[[], PostgresServer]
) -> None:
    server = own_postgres()
    api = await start_api(database_url=server.url(server.create_database()))
    person = await api.person()
    run_id = await person.make("create")
    server.stop()
    status, body = await readiness(api)
    assert (status, down(body)) == (503, ["database"])
    for answer in (
        await person.http.get(f"/agent/runs/{run_id}"),
        await person.act("create", prompt="x"),
        await person.act("start", run_id),
        await person.http.get(f"/agent/logs/{run_id}/stream"),
        await api.client({"Authorization": "Bearer agt_unknown"}).get("/agent/me"),
    ):
        assert_unavailable(answer)
    server.start()
    assert (await person.act("start", run_id)).json()["status"] == "queued"


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "part_unavailable"), answer.text
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.slow
async def test_a_part_that_hangs_does_not_hang_the_health_check(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.routes.health.PART_SECONDS", 0.1)
    redis = api.resources.redis.commands
    await redis.client_pause(1500)
    status, body = await readiness(api)
    assert (status, down(body)) == (503, ["redis"])
    assert "0.1 s" in body["parts"]["redis"]["error"]
    await wait_until(lambda: _pings(redis))


async def _pings(redis: Any) -> bool:
    return bool(await redis.ping())


async def test_a_run_that_is_started_while_redis_is_down_is_carried_out_once_it_is_back(
    start_api: StartApi, own_redis: Callable[..., RedisServer], start_worker: StartWorker
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    person = await api.person()
    server.stop()
    run_id = await person.make("create")
    answer = await person.act("start", run_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    start_worker(api.settings)
    server.start()
    await wait_until(lambda: _status_is(person, run_id, "completed"), 20)
    assert (await person.watch(run_id))[-1].data["status"] == "completed"


async def _status_is(person: Person, run_id: str, status: str) -> bool:
    return bool((await person.show(run_id))["status"] == status)


async def test_an_api_starts_without_any_of_its_parts(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    server.stop()
    api = await start_api(redis_url=server.url)
    assert (await readiness(api))[0] == 503
    server.start()
    person = await api.person()
    run_id = await person.make("create")
    watching = asyncio.create_task(_watch_when_possible(person, run_id))
    await person.act("cancel", run_id)
    assert await watching == "end"


async def _watch_when_possible(person: Person, run_id: str) -> str:
    async def is_open() -> bool:
        async with person.http.stream("GET", f"/agent/logs/{run_id}/stream") as answer:
            return answer.status_code == 200

    await wait_until(is_open)
    return (await person.watch(run_id))[-1].event
