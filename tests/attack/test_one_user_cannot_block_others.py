"""Attacks of a user with a valid token on the others: everything that is shared and has a limit is filled by one user,
and the others, and an administrator, go on as before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.users import Tier
from tests.integration.api.running import Api, Person, StartApi, StartWorker
from tests.waiting import wait_until

# --- the queue ---


async def test_runs_that_a_users_own_cap_holds_back_leave_the_queue_open_to_others(start_api: StartApi) -> None:
    api = await start_api()
    hostile, other, admin = await api.person(Tier.FREE), await api.person(), await api.person(Tier.ADMIN)
    answers = [(await hostile.act("run", prompt="mine")).status_code for _ in range(25)]
    assert answers.count(201) == 20
    assert [(await person.act("run", prompt="mine")).status_code for person in (other, admin)] == [201, 201]


@pytest.mark.slow
async def test_one_user_cannot_fill_the_queue_of_all(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=0, queue_max_waiting_all=10, user_concurrency_standard=0)
    hostile, other, admin = await api.person(), await api.person(), await api.person(Tier.ADMIN)
    answers = [(await hostile.act("run", prompt="mine")) for _ in range(12)]
    assert [answer.status_code for answer in answers].count(201) == 5
    assert "QUEUE_MAX_WAITING_ALL" in answers[-1].json()["detail"]
    assert [(await person.act("run", prompt="mine")).status_code for person in (other, admin)] == [201, 201]


async def test_a_users_full_queue_keeps_nobody_elses_dead_letters_from_being_redriven(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    hostile, other, admin = await api.person(), await api.person(), await api.person(Tier.ADMIN)

    async def dies(person: Person) -> None:
        run_id, worker = await person.make(), await api.worker()
        await api.resources.store.running_runs.write(
            run_id, worker.claim.generation, lambda transaction: transaction.dead_letter(DeadReason.INTERNAL_ERROR)
        )
        await worker.end(RunStatus.FAILED, RunError("internal_error", "a fault of the platform"))

    for person in (hostile, hostile, other):
        await dies(person)
    await hostile.make()
    assert (await admin.http.post("/agent/dead-letters/redrive")).json() == {"redriven": 1, "left": 2}


# --- streams ---


async def test_one_user_cannot_take_all_streams(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_max=10, stream_watchers_user_max=3)
    hostile, other = await api.person(), await api.person()
    run_id, others = await hostile.make("create"), await other.make("create")

    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(hostile.http.stream("GET", path))
            for path in (f"/agent/logs/{run_id}/stream", "/agent/events", "/api/v1/events/stream") * 3
        ]
        assert [answer.status_code for answer in opened].count(200) == 3
        for path in ("/agent/events", "/api/v1/events/stream"):
            refused = await hostile.http.get(path)
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        assert int(refused.headers["Retry-After"]) > 0
        async with other.stream(others) as stream:
            assert (await anext(stream)).id == 1


async def test_streams_that_are_opened_at_the_same_moment_are_no_more_than_a_users_share(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_user_max=5)
    hostile = await api.person()
    run_id = await hostile.make("create")
    async with AsyncExitStack() as stack:
        opening = [
            stack.enter_async_context(hostile.http.stream("GET", f"/agent/logs/{run_id}/stream")) for _ in range(40)
        ]
        opened = await asyncio.gather(*opening)
        assert [answer.status_code for answer in opened].count(200) == 5


@pytest.mark.slow
async def test_streams_are_kept_free_for_administrators(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_max=10, stream_watchers_user_max=1)
    admin = await api.person(Tier.ADMIN)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            person = await api.person()
            opened = await stack.enter_async_context(person.http.stream("GET", "/agent/events"))
            assert opened.status_code == 200
        late = await api.person()
        assert (await late.http.get("/agent/events")).status_code == 503
        assert (await stack.enter_async_context(admin.http.stream("GET", "/agent/events"))).status_code == 200


async def test_mcp_holds_no_connection_open(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    async with asyncio.timeout(5):
        answer = await person.http.get("/mcp", headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


# --- files ---

MIB = 1024 * 1024


async def count(api: Api, uploads: str) -> int:
    """Uploads of a run that have reserved room."""
    return int(await cast(Any, api.resources.redis.commands.hlen(uploads)))


async def pieces(size: int, together: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """A body whose last piece is sent when all others have come so far too."""
    for _ in range(size // MIB - 1):
        yield b"x" * MIB
    if together is not None:
        await together.wait()
    yield b"x" * MIB


@pytest.mark.parametrize("announced", [True, False])
async def test_uploads_at_the_same_moment_put_no_more_into_a_workspace_than_is_allowed(
    start_api: StartApi, announced: bool
) -> None:
    api = await start_api(workspace_max_bytes=10 * MIB)
    person = await api.person()
    run_id = await person.make("create")
    headers = {"Content-Length": str(3 * MIB)} if announced else {}

    async def put(number: int) -> int:
        url = f"/agent/runs/{run_id}/files/{number}"
        return (await person.http.put(url, content=pieces(3 * MIB), headers=headers)).status_code

    answers = await asyncio.gather(*(put(number) for number in range(12)))
    stored = sum(file["size"] for file in (await person.http.get(f"/agent/runs/{run_id}/files")).json()["files"])
    assert stored <= 10 * MIB
    assert set(answers) <= {201, 413}
    # Room that a refused upload had reserved is free again.
    assert (await person.http.put(f"/agent/runs/{run_id}/files/last", content=b"x")).status_code == 201


@pytest.mark.slow
async def test_two_api_processes_share_what_uploads_reserve(start_api: StartApi) -> None:
    first = await start_api(workspace_max_bytes=10 * MIB)
    second = await start_api(workspace_max_bytes=10 * MIB)
    person = await first.person()
    run_id = await person.make("create")
    other_way = second.client({"Authorization": f"Bearer {person.token}"})
    go = asyncio.Event()
    headers = {"Content-Length": str(6 * MIB)}
    url = f"/agent/runs/{run_id}/files"
    slow = asyncio.create_task(person.http.put(f"{url}/a", content=pieces(6 * MIB, go), headers=headers))
    uploads = first.resources.redis.keys.uploads(run_id)
    await wait_until(lambda: count(first, uploads))
    refused = await other_way.put(f"{url}/b", content=pieces(6 * MIB), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (413, "workspace_quota_exceeded")
    go.set()
    assert (await slow).status_code == 201


async def test_an_upload_that_breaks_off_gives_its_room_back(start_api: StartApi) -> None:
    api = await start_api(workspace_max_bytes=10 * MIB, user_max_bytes=10 * MIB)
    person = await api.person()
    run_id = await person.make("create")
    never = asyncio.Event()
    url = f"/agent/runs/{run_id}/files/a"
    broken = asyncio.create_task(
        person.http.put(url, content=pieces(8 * MIB, never), headers={"Content-Length": str(8 * MIB)})
    )
    uploads = api.resources.redis.keys.uploads(run_id)
    await wait_until(lambda: count(api, uploads))
    broken.cancel()
    await asyncio.wait([broken])

    async def is_released() -> bool:
        return not await count(api, uploads)

    await wait_until(is_released)
    assert (await person.http.put(url, content=b"x" * 9 * MIB)).status_code == 201


async def test_a_user_keeps_no_more_bytes_than_a_user_may_over_all_runs(start_api: StartApi) -> None:
    api = await start_api(user_max_bytes=5 * MIB)
    person, other = await api.person(), await api.person()
    first, second = await person.make("create"), await person.make("create")
    assert (await person.http.put(f"/agent/runs/{first}/files/a", content=b"x" * 4 * MIB)).status_code == 201
    refused = await person.http.put(f"/agent/runs/{second}/files/b", content=b"x" * 2 * MIB)
    assert (refused.status_code, refused.json()["code"]) == (413, "storage_quota_exceeded")
    assert "USER_MAX_BYTES" in refused.json()["detail"]
    others = await other.make("create")
    assert (await other.http.put(f"/agent/runs/{others}/files/b", content=b"x" * 2 * MIB)).status_code == 201
    assert (await person.http.delete(f"/agent/runs/{first}/files/a")).status_code == 204
    assert (await person.http.put(f"/agent/runs/{second}/files/b", content=b"x" * 2 * MIB)).status_code == 201


@pytest.mark.slow
async def test_a_file_that_replaces_another_counts_once(start_api: StartApi) -> None:
    api = await start_api(user_max_bytes=5 * MIB)
    person = await api.person()
    url = f"/agent/runs/{await person.make('create')}/files/a"
    answers = [(await person.http.put(url, content=b"x" * 2 * MIB)).status_code for _ in range(4)]
    assert answers == [201] * 4
    assert (await person.http.get("/agent/usage")).json()["bytes"] == {"used": 2 * MIB, "limit": 5 * MIB}


async def test_a_step_writes_no_more_than_its_user_may_keep(start_api: StartApi, start_worker: StartWorker) -> None:
    api = await start_api(user_max_bytes=5 * MIB)
    start_worker(api.settings)
    person = await api.person()
    run_id = await person.make("create", plan={"steps": [{"id": "a", "tool": "file_list"}]})
    assert (await person.http.put(f"/agent/runs/{run_id}/files/a", content=b"x" * 4 * MIB)).status_code == 201
    write = {"path": "b", "content": "x" * 2 * MIB}
    second = await person.make(plan={"steps": [{"id": "a", "tool": "file_write", "arguments": write}]})
    await person.watch(second)
    shown = await person.show(second)
    assert (shown["status"], shown["steps"][0]["result"]["error"]["code"]) == ("failed", "storage_quota_exceeded")


@pytest.mark.parametrize(("setting", "kept"), [("user_max_runs", {"runs": 3}), ("user_max_events", {"events": 3})])
async def test_a_user_makes_no_more_runs_and_events_than_a_user_may_keep(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, setting: str, kept: dict[str, int]
) -> None:
    monkeypatch.setattr("backplane.limits.storage.limits.LOOKED_UP_SECONDS", -1.0)
    api = await start_api(**{setting: 3})
    person, other = await api.person(), await api.person()
    made = [await person.make("create") for _ in range(3)]
    storage, counts = api.resources.storage, api.resources.store.usage_counts
    await storage.count_rows(await counts.of_users())
    refused = await person.act("create", prompt="one more")
    assert (refused.status_code, refused.json()["code"]) == (413, "storage_quota_exceeded")
    assert setting.upper() in refused.json()["detail"]
    assert (await other.act("create", prompt="mine")).status_code == 201
    await person.act("cancel", made[0])
    assert (await person.http.delete(f"/agent/runs/{made[0]}")).status_code == 204
    await storage.count_rows(await counts.of_users())
    assert (await person.act("create", prompt="one more")).status_code == 201


@pytest.mark.slow
async def test_one_user_has_only_so_many_files_on_their_way_at_once(start_api: StartApi) -> None:
    api = await start_api(transfers_user_max=2)
    person, other = await api.person(), await api.person()
    run_id, others = await person.make("create"), await other.make("create")
    go = asyncio.Event()
    slow = [
        asyncio.create_task(person.http.put(f"/agent/runs/{run_id}/files/{n}", content=pieces(2 * MIB, go)))
        for n in range(2)
    ]
    uploads = api.resources.redis.keys.uploads(run_id)

    async def both_began() -> bool:
        return await count(api, uploads) == 2

    await wait_until(both_began)
    refused = await person.http.put(f"/agent/runs/{run_id}/files/c", content=b"x")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_transfers")
    assert (await other.http.put(f"/agent/runs/{others}/files/c", content=b"x")).status_code == 201
    go.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [201, 201]
    assert (await person.http.put(f"/agent/runs/{run_id}/files/c", content=b"x")).status_code == 201


# --- calls ---


@pytest.mark.slow
@pytest.mark.parametrize(("path", "status"), [("/agent/me", 429), ("/agent/events", 429)])
async def test_whoever_goes_on_calling_over_a_limit_is_answered_slowly_and_others_are_not(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    monkeypatch.setattr("app.auth.REFUSALS_PER_SECOND", 50)
    monkeypatch.setattr("app.auth.REFUSALS_AT_ONCE", 5)
    limit = {"api_rate_per_second": 0.01, "api_rate_burst": 1} if path == "/agent/me" else {}
    api = await start_api(stream_watchers_user_max=1, **limit)
    hostile, other = await api.person(), await api.person()
    began = asyncio.get_running_loop().time()
    async with hostile.http.stream("GET", path):
        storm = asyncio.gather(*(hostile.http.get(path) for _ in range(55)))
        assert (await other.http.get("/agent/me")).status_code == 200
        assert not storm.done()
        assert {answer.status_code for answer in await storm} == {status}
    assert asyncio.get_running_loop().time() - began > 0.9  # 55 refusals, of which 5 are at once


@pytest.mark.slow
async def test_a_users_files_move_no_faster_than_a_users_share(start_api: StartApi) -> None:
    api = await start_api(transfers_user_bytes_per_second=4 * MIB)
    person = await api.person()
    run_id = await person.make("create")
    began = asyncio.get_running_loop().time()
    puts = (person.http.put(f"/agent/runs/{run_id}/files/{n}", content=b"x" * MIB) for n in range(2))
    assert [answer.status_code for answer in await asyncio.gather(*puts)] == [201, 201]
    assert asyncio.get_running_loop().time() - began > 0.4
