"""Attacks of a user with a valid token on the others: everything that is shared and has a limit is filled by one user,
and the others, and an administrator, go on as before."""

import asyncio
from contextlib import AsyncExitStack

from backplane.dead_letters import DeadReason
from backplane.runs import RunError, RunStatus
from backplane.users import Tier
from tests.integration.api.running import Person, StartApi

# --- the queue ---


async def test_runs_that_a_users_own_cap_holds_back_leave_the_queue_open_to_others(start_api: StartApi) -> None:
    api = await start_api()
    hostile, other, admin = await api.person(Tier.FREE), await api.person(), await api.person(Tier.ADMIN)
    answers = [(await hostile.act("run", prompt="mine")).status_code for _ in range(25)]
    assert answers.count(201) == 20
    assert [(await person.act("run", prompt="mine")).status_code for person in (other, admin)] == [201, 201]


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
        await api.resources.store.held.write(
            run_id, worker.claim.generation, lambda held: held.dead_letter(DeadReason.INTERNAL_ERROR)
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
            for path in (f"/agent/logs/{run_id}/stream", "/agent/events") * 4
        ]
        assert [answer.status_code for answer in opened].count(200) == 3
        refused = await hostile.http.get("/agent/events")
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
