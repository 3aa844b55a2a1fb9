"""What is refused when the queue is full, why a run waits, and what ended last."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backplane.domain.runs import RunError, RunStatus
from backplane.domain.users import Tier
from backplane.limits.slots.base import SlotRequest
from backplane.settings import fixed
from tests.integration.api.running import Api, Person, StartApi
from tests.queues import postpone
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def full_api(start_api: StartApi, **settings: Any) -> tuple[Api, Person]:
    """An API whose queue has room for one run of each user, and a person who has filled it."""
    api = await start_api(**{"queue_max_waiting": 1, **settings})
    person = await api.person()
    await person.make()
    return api, person


# --- back-pressure ---


@pytest.mark.parametrize("action", ["run", "start"])
async def test_a_full_queue_refuses_a_run_and_says_when_to_come_back(start_api: StartApi, action: str) -> None:
    _, person = await full_api(start_api)
    run_id = await person.make("create") if action == "start" else None
    answer = await person.act(action, run_id, **({} if run_id else {"prompt": "one more"}))
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_waiting")
    assert answer.headers["Retry-After"] == "120"
    assert "QUEUE_MAX_WAITING" in answer.json()["detail"]
    if run_id:
        assert (await person.show(run_id))["status"] == "created"
    else:
        assert len((await person.http.get("/agent/runs")).json()["runs"]) == 1


async def test_what_is_refused_is_taken_once_there_is_room(start_api: StartApi) -> None:
    api, person = await full_api(start_api)
    run_id = await person.make("create")
    assert (await person.act("start", run_id)).status_code == 429
    await api.worker()
    assert (await person.act("start", run_id)).status_code == 200


async def test_the_time_to_come_back_follows_what_runs_take(start_api: StartApi) -> None:
    api, person = await full_api(start_api)
    await (await api.worker()).end()
    await person.make()
    answer = await person.act("run", prompt="one more")
    assert answer.headers["Retry-After"] == "1"


async def test_the_time_to_come_back_is_that_of_ones_own_next_run_behind_those_of_others(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "ESTIMATE_INITIAL_SECONDS", 10.0)
    api = await start_api(queue_max_waiting=3)
    queue = api.resources.queue
    await queue.renew("by-hand", 1, [])
    other, person = await api.person(), await api.person()
    for _ in range(3):
        await other.make()
    for _ in range(3):
        await person.make()
    answers = [await who.act("run", prompt="one more") for who in (other, person)]
    first, behind = [int(answer.headers["Retry-After"]) for answer in answers]
    # One slot, which is free: one's own next run is taken at once, or after the three of the other one.
    assert (first, behind) == (1, 30)


async def test_a_run_may_be_made_though_the_queue_is_full(start_api: StartApi) -> None:
    _, person = await full_api(start_api)
    assert (await person.act("create", prompt="for later")).status_code == 201


async def test_starting_again_what_was_started_is_no_new_run(start_api: StartApi) -> None:
    _, person = await full_api(start_api)
    [queued] = (await person.http.get("/agent/runs")).json()["runs"]
    assert (await person.act("start", queued["run_id"])).json()["status"] == "queued"


async def test_a_repeated_request_gets_its_answer_though_the_queue_is_full(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    person = await api.person()
    body, key = {"action": "run", "prompt": "once"}, {"Idempotency-Key": "a"}
    first = await person.http.post("/agent/execute", json=body, headers=key)
    again = await person.http.post("/agent/execute", json=body, headers=key)
    assert (first.status_code, again.json()["run_id"]) == (201, first.json()["run_id"])


async def test_a_failed_run_is_not_retried_into_a_full_queue(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    person = await api.person()
    failed = await person.make()
    await (await api.worker()).end(RunStatus.FAILED, RunError("step_failed", "exit code 1"))
    await person.make()
    assert (await person.act("retry", failed)).json()["code"] == "too_many_waiting"
    assert (await person.show(failed))["status"] == "failed"


@pytest.mark.parametrize(
    ("action", "run_id", "status"), [("start", "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c", 404), ("retry", None, 409)]
)
async def test_what_fails_for_another_reason_keeps_no_place(
    start_api: StartApi, action: str, run_id: str | None, status: int
) -> None:
    api = await start_api(queue_max_waiting=1)
    person = await api.person()
    run_id = run_id or await person.make("create")
    assert (await person.act(action, run_id)).status_code == status
    await person.make()


async def test_a_tier_may_have_less_room_than_all(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=10, queue_max_waiting_free=1)
    free, standard = await api.person(Tier.FREE), await api.person()
    await free.make()
    assert (await free.act("run", prompt="one more")).json()["code"] == "queue_full"
    await standard.make()


async def test_a_refusal_says_which_limit_is_reached_and_what_helps(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=2, queue_max_waiting_all=4, queue_max_waiting_free=1)
    first, second, free, other_free = (
        await api.person(),
        await api.person(),
        await api.person(Tier.FREE),
        await api.person(Tier.FREE),
    )
    details = {}

    async def refuse(name: str, person: Person, code: str) -> None:
        answer = await person.act("run", prompt="one more")
        assert (answer.json()["code"], answer.status_code) == (code, 503 if code == "queue_full" else 429)
        assert int(answer.headers["Retry-After"]) >= 1
        details[name] = answer.json()["detail"]

    await free.make()
    await refuse("priority", other_free, "queue_full")
    await first.make()
    await second.make()
    await refuse("all", second, "queue_full")
    assert "1 runs of the priority low wait already" in details["priority"]
    assert "3 runs of all users wait" in details["all"]
    assert "QUEUE_MAX_WAITING_ALL" in details["all"]


async def test_without_a_limit_any_number_waits(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=0, queue_max_waiting_all=0)
    person = await api.person()
    for _ in range(25):
        await person.make()
    assert (await person.http.get("/agent/queue")).json()["queued"] == 25


async def test_by_default_twenty_wait_and_the_next_is_refused(api: Api) -> None:
    person = await api.person()
    for _ in range(20):
        await person.make()
    assert (await person.act("run", prompt="one more")).json()["code"] == "too_many_waiting"


async def test_while_redis_is_away_a_run_is_accepted_uncounted(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(queue_max_waiting=1, redis_url=server.url)
    person = await api.person()
    server.kill()
    assert [(await person.act("run", prompt="kept")).status_code for _ in range(2)] == [201, 201]


# --- resources ---


async def test_a_run_may_need_a_resource_that_is_known(start_api: StartApi) -> None:
    api = await start_api(resource_concurrency={"gpu": 1})
    person = await api.person()
    first, second = await person.make(resource="gpu"), await person.make(resource="gpu")
    assert [claim.run_id for claim in await api.resources.queue.claim("worker", 10)] == [first]
    [reason, *_] = (await explain(person, second))["reasons"]
    assert reason == {"code": "resource_cap", "text": "1 run may use gpu at once, and as many do"}


async def test_a_resource_that_is_not_known_is_refused_by_name(person: Person) -> None:
    answer = await person.act("create", prompt="x", resource="gpu")
    assert (answer.status_code, answer.json()["field"]) == (422, "resource")


# --- explain ---


async def explain(person: Person, run_id: str) -> Any:
    answer = await person.http.get(f"/agent/runs/{run_id}/explain")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_waiting_run_says_why_in_words_and_fields(api: Api, person: Person) -> None:
    await person.make()
    run_id = await person.make()
    found = await explain(person, run_id)
    assert found["text"] == "The run waits: no worker is alive; start one; 1 run is taken before it."
    assert (found["ahead"], found["position"], found["workers"], found["free_slots"]) == (1, 2, 0, 0)
    assert (found["priority"], found["cap"]) == ("normal", None)


async def test_how_long_a_run_waits_is_estimated_only_while_a_worker_is_alive(api: Api, person: Person) -> None:
    run_id = await person.make()

    async def estimates() -> list[float | None]:
        answers = [
            await explain(person, run_id),
            await person.show(run_id),
            (await person.act("status", run_id)).json(),
            (await person.http.get("/agent/queue")).json(),
        ]
        return [answer["estimated_wait_seconds"] for answer in answers]

    assert await estimates() == [None, None, None, None]
    other = await api.resources.queue.claim("worker", 1)
    run_id = await person.make()
    await api.resources.queue.renew("worker", 1, other)
    assert await estimates() == [120.0, 120.0, 120.0, 240.0]


async def test_a_run_over_its_users_cap_says_so(start_api: StartApi) -> None:
    api = await start_api(user_concurrency_standard=1)
    person = await api.person()
    await person.make()
    found = await explain(person, await person.make())
    assert [reason["code"] for reason in found["reasons"]] == ["user_cap", "no_worker", "runs_ahead"]
    assert found["cap"] == 1


async def test_a_run_between_two_attempts_says_when_it_goes_on(api: Api, person: Person) -> None:
    run_id = await person.make()
    worker = await api.worker()
    await api.resources.store.running_runs.write(
        run_id,
        worker.claim.generation,
        lambda transaction: transaction.queue_again(
            attempt=2, error=RunError("part_unavailable", "the store was away", True)
        ),
    )
    await postpone(api.resources.queue, worker.claim, 600)
    found = await explain(person, run_id)
    [reason] = found["reasons"]
    assert reason["code"] == "next_attempt"
    assert found["next_attempt_at"] is not None


async def test_a_run_whose_queue_is_away_says_so(start_api: StartApi, own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    person = await api.person()
    run_id = await person.make()
    server.kill()
    found = await explain(person, run_id)
    assert found["reasons"][0]["code"] == "queue_away"


async def test_a_run_that_waits_for_a_model_server_says_so(api: Api, person: Person) -> None:
    run_id, slots = await person.make(), api.resources.slots
    await api.worker()
    positions: list[int] = []

    async def call() -> None:
        async with slots.hold(
            SlotRequest("gpu", "m", "u", run_id, "waits"), parallel=1, models=1, on_wait=positions.append
        ):
            pass

    async with slots.hold(SlotRequest("gpu", "m", "u", "run", "holds"), parallel=1, models=1, on_wait=positions.append):
        waiting = asyncio.create_task(call())
        await wait_until(lambda: positions)
        found = await explain(person, run_id)
        waiting.cancel()
        await asyncio.wait([waiting])
    text = "it waits for a slot of the model server gpu: place 1 of 1, all 1 are taken"
    assert found["reasons"] == [{"code": "waits_for_model_slot", "text": text}]
    assert (await explain(person, run_id))["reasons"][0]["code"] == "running"


async def test_nobody_elses_run_is_explained(api: Api, person: Person) -> None:
    other = await api.person()
    assert (await other.http.get(f"/agent/runs/{await person.make()}/explain")).status_code == 404


# --- what ended last ---


async def test_ones_last_runs_are_at_hand_and_an_admin_sees_all(api: Api, person: Person) -> None:
    run_id = await person.make()
    await (await api.worker()).end()
    [job] = (await person.http.get("/agent/queue/finished")).json()["jobs"]
    assert (job["run_id"], job["status"], job["error"]) == (run_id, "completed", None)
    other, admin = await api.person(), await api.person(Tier.ADMIN)
    assert (await other.http.get("/agent/queue/finished")).json() == {"jobs": []}
    assert [job["run_id"] for job in (await admin.http.get("/agent/queue/finished")).json()["jobs"]] == [run_id]


async def test_the_queues_numbers_distinguish_waiting_from_held_back(start_api: StartApi) -> None:
    api = await start_api(user_concurrency_standard=1)
    person = await api.person()
    for _ in range(3):
        await person.make()
    numbers = (await person.http.get("/agent/queue")).json()
    assert (numbers["queued"], numbers["queued_by_priority"]["normal"]) == (3, 3)
    assert numbers["held_back_by_priority"]["normal"] == 2
    assert (numbers["max_waiting"], numbers["max_concurrent"], numbers["dead"]) == (20, 0, 0)
