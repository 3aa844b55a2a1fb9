"""Which queue a run names, what is known of queues, and why a run of a queue waits."""

from collections.abc import Callable
from typing import Any

import pytest

from backplane.domain.runs import DEFAULT_QUEUE
from tests.integration.api.running import Api, Person, StartApi, StartWorker
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def explain(person: Person, run_id: str) -> Any:
    return (await person.http.get(f"/agent/runs/{run_id}/explain")).json()


async def serve(api: Api, worker: str, *queues: str, slots: int = 4) -> None:
    """As a worker reports that it lives."""
    await api.resources.queue.renew(worker, slots, [], queues=queues)


async def test_a_run_that_names_no_queue_waits_in_the_default_one(person: Person) -> None:
    assert (await person.show(await person.make()))["queue"] == DEFAULT_QUEUE


async def test_a_queue_that_a_live_worker_serves_may_be_named(api: Api, person: Person) -> None:
    await serve(api, "worker-1", "gpu")
    run_id = await person.make(queue="gpu")
    assert (await person.show(run_id))["queue"] == "gpu"
    [claim] = await api.resources.queue.claim("worker-1", 9, queues=["gpu"])
    assert claim.run_id == run_id


async def test_a_queue_that_the_operator_has_named_may_be_named_while_nobody_serves_it(start_api: StartApi) -> None:
    person = await (await start_api(queues=["nights"])).person()
    assert (await person.show(await person.make(queue="nights")))["status"] == "queued"


@pytest.mark.parametrize("action", ["create", "run"])
async def test_an_unknown_queue_is_refused_with_those_that_there_are(start_api: StartApi, action: str) -> None:
    api = await start_api(queues=["nights"])
    person = await api.person()
    await serve(api, "worker-1", "gpu")
    answer = await person.act(action, prompt="a test", queue="gpuu")
    assert (answer.status_code, answer.json()["field"]) == (422, "queue")
    assert "there is no queue 'gpuu'; there are: default, gpu, nights" in answer.json()["detail"]


async def test_validate_reports_an_unknown_queue_beside_other_faults(person: Person) -> None:
    answer = (await person.act("validate", prompt="a test", queue="gpuu", resource="nothing")).json()
    assert [fault["field"] for fault in answer["errors"]] == ["resource", "queue"]


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "{a}", "-a", "a" * 65])
async def test_a_name_that_no_queue_can_have_is_refused(person: Person, name: str) -> None:
    answer = await person.act("run", prompt="a test", queue=name)
    assert (answer.status_code, answer.json()["field"]) == (422, "queue")
    assert (await person.http.get("/agent/queue", params={"queue": name})).status_code == 422


async def test_while_redis_is_away_no_queue_is_refused(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    person = await (await start_api(redis_url=server.url)).person()
    server.kill()
    assert (await person.act("create", prompt="a test", queue="gpu")).status_code == 201


async def test_a_run_whose_queue_nobody_serves_says_so_and_which_queues_are_served(start_api: StartApi) -> None:
    api = await start_api(queues=["nights"])
    person = await api.person()
    await serve(api, "worker-1", "gpu", DEFAULT_QUEUE)
    found = await explain(person, await person.make(queue="nights"))
    assert [reason["code"] for reason in found["reasons"]] == ["queue_not_served"]
    assert "no live worker serves the queue nights (live workers serve default, gpu)" in found["text"]
    assert (found["workers"], found["estimated_wait_seconds"]) == (0, None)


async def test_a_run_whose_workers_are_all_busy_says_what_they_are_busy_with(api: Api, person: Person) -> None:
    await serve(api, "worker-1", "gpu", DEFAULT_QUEUE, slots=2)
    for queue in ("gpu", DEFAULT_QUEUE):
        await person.make(queue=queue)
    claims = await api.resources.queue.claim("worker-1", 2, queues=["gpu", DEFAULT_QUEUE])
    await api.resources.queue.renew("worker-1", 2, claims, queues=["gpu", DEFAULT_QUEUE])
    found = await explain(person, await person.make(queue="gpu"))
    assert found["queue"] == "gpu"
    expected = "all 2 slots of 1 worker that serves the queue gpu are taken (1 run of default, 1 run of gpu)"
    assert expected in found["text"]


async def test_all_queues_are_listed_with_what_waits_and_who_serves_them(api: Api, person: Person) -> None:
    await serve(api, "worker-1", "gpu", slots=3)
    for queue in ("gpu", "gpu", DEFAULT_QUEUE):
        await person.make(queue=queue)
    await api.resources.queue.claim("worker-1", 1, queues=["gpu"])
    found = {view["queue"]: view for view in (await person.http.get("/agent/queues")).json()["queues"]}
    gpu = found["gpu"]
    assert (gpu["queued"], gpu["running"], gpu["workers"], gpu["max_concurrent"]) == (1, 1, 1, 3)
    assert found[DEFAULT_QUEUE]["queued"] == 1
    one = (await person.http.get("/agent/queue", params={"queue": "gpu"})).json()
    assert (one["queue"], one["queued"], one["running"], one["max_concurrent"]) == ("gpu", 1, 1, 3)


async def test_a_full_queue_refuses_its_own_runs_alone(start_api: StartApi) -> None:
    api = await start_api(queues=["nights"], queue_max_waiting_standard=1)
    first, second = await api.person(), await api.person()
    await first.make(queue="nights")
    run_id = await second.make("create", queue="nights")
    answer = await second.act("start", run_id)
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
    assert "in the queue 'nights'" in answer.json()["detail"]
    await second.make()


@pytest.mark.parametrize("action", ["replay", "fork"])
async def test_a_run_that_is_made_from_another_one_waits_in_its_queue(
    start_api: StartApi, start_worker: StartWorker, action: str
) -> None:
    api = await start_api(worker_queues=["gpu"])
    person = await api.person()
    start_worker(api.settings)
    await wait_until(lambda: _serves(api, "gpu"))
    plan = {"steps": [{"id": "nothing", "tool": "file_list"}]}
    run_id = await person.make(queue="gpu", plan=plan)
    await wait_until(lambda: _is_completed(person, run_id))
    more = {"step": "nothing"} if action == "fork" else {}
    made = (await person.act(action, run_id, **more)).json()["run_id"]
    assert (await person.show(made))["queue"] == "gpu"


async def test_the_same_request_has_the_same_digest_as_before_there_were_queues(api: Api, person: Person) -> None:
    """A key that was used before the release was changed is used again after it."""
    body, key = {"action": "run", "prompt": "once"}, {"Idempotency-Key": "a"}
    first = await person.http.post("/agent/execute", json=body, headers=key)
    again = await person.http.post("/agent/execute", json={**body, "queue": DEFAULT_QUEUE}, headers=key)
    assert again.json()["run_id"] == first.json()["run_id"]


async def _serves(api: Api, queue: str) -> bool:
    return queue in await api.resources.queue.served()


async def _is_completed(person: Person, run_id: str) -> bool:
    return bool((await person.show(run_id))["status"] == "completed")
