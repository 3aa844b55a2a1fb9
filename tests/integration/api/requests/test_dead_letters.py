"""The dead letters, as an admin works with them, and what a run's owner sees of its failures."""

from typing import Any

import pytest
import pytest_asyncio

from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.users import Tier
from backplane.store.run_transaction import RunTransaction
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "00000000-0000-7000-8000-000000000000"
ERROR = RunError("internal_error", "a fault of the platform", retryable=True)
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1'


@pytest_asyncio.fixture(loop_scope="module")
async def admin(api: Api) -> Person:
    """Finds no dead letters of other tests."""
    await api.resources.store.dead_letters.purge_all()
    return await api.person(Tier.ADMIN)


async def dead(
    api: Api, person: Person, reason: DeadReason = DeadReason.INTERNAL_ERROR, *, crashes: int = 0, **fields: Any
) -> str:
    """A run of this person that a worker has given up on, after its first attempt."""
    await person.make(**fields)
    worker = await api.worker()

    def give_up(transaction: RunTransaction) -> None:
        transaction.note_failure(1, ERROR, TRACEBACK, "worker-7")
        transaction.dead_letter(reason, crashes)

    await api.resources.store.running_runs.write(worker.run_id, worker.claim.generation, give_up)
    await worker.end(RunStatus.FAILED, ERROR)
    return worker.run_id


async def listed(admin: Person, **parameters: Any) -> list[str]:
    answer = await admin.http.get("/agent/dead-letters", params=parameters)
    assert answer.status_code == 200, answer.text
    return [letter["run_id"] for letter in answer.json()["dead_letters"]]


@pytest.mark.parametrize("tier", [tier for tier in Tier if tier is not Tier.ADMIN])
async def test_dead_letters_are_for_admins(api: Api, admin: Person, tier: Tier) -> None:
    person = await api.person(tier)
    run_id = await dead(api, person)
    for method, path in (
        ("GET", ""),
        ("GET", f"/{run_id}"),
        ("POST", f"/{run_id}/redrive"),
        ("POST", "/redrive"),
        ("DELETE", f"/{run_id}"),
        ("DELETE", ""),
    ):
        answer = await person.http.request(method, f"/agent/dead-letters{path}")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, path)
    assert await listed(admin) == [run_id]


async def test_a_dead_letter_says_whose_run_died_of_what(api: Api, person: Person, admin: Person) -> None:
    run_id = await dead(api, person, DeadReason.POISON, crashes=3, prompt="p" * 500)
    owner = (await person.http.get("/agent/me")).json()
    [summary] = (await admin.http.get("/agent/dead-letters")).json()["dead_letters"]
    view = (await admin.http.get(f"/agent/dead-letters/{run_id}")).json()
    [failure] = view.pop("failures")
    assert view == summary
    assert (view["run_id"], view["reason"], view["attempts"], view["crashes"]) == (run_id, "poison", 1, 3)
    assert (view["user_id"], view["user"], view["prompt"]) == (owner["user_id"], owner["name"], "p" * 200)
    assert view["error"] == failure["error"] == ERROR.as_dict()
    assert (failure["attempt"], failure["traceback"], failure["worker_id"]) == (1, TRACEBACK, "worker-7")


async def test_dead_letters_come_newest_first_and_page_by_page(api: Api, person: Person, admin: Person) -> None:
    made = [await dead(api, person) for _ in range(5)]
    seen: list[str] = []
    page = (await admin.http.get("/agent/dead-letters", params={"limit": 2})).json()
    while True:
        assert len(page["dead_letters"]) <= 2
        seen += [letter["run_id"] for letter in page["dead_letters"]]
        if not page["next_cursor"]:
            break
        cursor = {"limit": 2, "cursor": page["next_cursor"]}
        page = (await admin.http.get("/agent/dead-letters", params=cursor)).json()
    assert seen == made[::-1]


async def test_dead_letters_are_listed_by_reason(api: Api, person: Person, admin: Person) -> None:
    made = {reason: await dead(api, person, reason) for reason in DeadReason}
    for reason, run_id in made.items():
        assert await listed(admin, reason=reason.value) == [run_id]


@pytest.mark.parametrize(
    "parameters",
    [{"cursor": "x"}, {"cursor": NOBODY}, {"cursor": f"{'9' * 17}_{NOBODY}"}, {"reason": "bad luck"}, {"limit": 0}],
)
async def test_parameters_that_mean_nothing_are_refused(admin: Person, parameters: dict[str, Any]) -> None:
    answer = await admin.http.get("/agent/dead-letters", params=parameters)
    assert (answer.status_code, answer.json()["field"]) == (422, next(iter(parameters)))


async def test_what_is_no_dead_letter_is_not_there(admin: Person) -> None:
    own = await admin.make("create")
    for run_id in (own, NOBODY):
        for method, path in (("GET", ""), ("POST", "/redrive"), ("DELETE", "")):
            answer = await admin.http.request(method, f"/agent/dead-letters/{run_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)


async def test_a_redriven_run_is_carried_out_for_its_owner(api: Api, person: Person, admin: Person) -> None:
    run_id = await dead(api, person)
    answer = await admin.http.post(f"/agent/dead-letters/{run_id}/redrive")
    assert (answer.status_code, answer.json()["run_id"], answer.json()["status"]) == (200, run_id, "queued")
    assert await listed(admin) == []
    worker = await api.worker()
    assert worker.run_id == run_id
    async with person.stream(run_id) as stream:
        statuses = [frame.data["status"] async for frame in stream_until(stream, 5)]
    assert statuses == ["created", "queued", "failed", "failed", "queued"]
    await worker.end()
    shown = await person.show(run_id)
    assert (shown["status"], shown["attempt"], shown["error"]) == ("completed", 1, None)
    again = await admin.http.post(f"/agent/dead-letters/{run_id}/redrive")
    assert again.status_code == 404


async def stream_until(stream: Any, count: int) -> Any:
    """So many numbered frames."""
    while count:
        frame = await anext(stream)
        if frame.id is not None:
            count -= 1
            yield frame


async def test_all_are_redriven_the_oldest_first_up_to_the_limit(api: Api, person: Person, admin: Person) -> None:
    made = [await dead(api, person) for _ in range(3)]
    first = await admin.http.post("/agent/dead-letters/redrive", params={"limit": 2})
    assert first.json() == {"redriven": 2, "left": 1}
    assert await listed(admin) == [made[2]]
    assert [(await api.worker()).run_id for _ in range(2)] == made[:2]
    second = await admin.http.post("/agent/dead-letters/redrive")
    assert second.json() == {"redriven": 1, "left": 0}
    assert (await admin.http.post("/agent/dead-letters/redrive")).json() == {"redriven": 0, "left": 0}


async def test_a_full_queue_takes_no_dead_letter_and_all_are_redriven_until_it_is_full(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=2)
    admin = await api.person(Tier.ADMIN)
    made = [await dead(api, admin) for _ in range(3)]
    answer = await admin.http.post("/agent/dead-letters/redrive")
    assert answer.json() == {"redriven": 2, "left": 1}
    refused = await admin.http.post(f"/agent/dead-letters/{made[2]}/redrive")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_waiting")
    assert int(refused.headers["Retry-After"]) >= 1
    assert await listed(admin) == [made[2]]
    assert (await admin.show(made[2]))["status"] == "failed"


async def test_a_purged_dead_letter_leaves_a_failed_run_that_its_owner_may_retry(
    api: Api, person: Person, admin: Person
) -> None:
    run_id = await dead(api, person)
    assert (await admin.http.delete(f"/agent/dead-letters/{run_id}")).json() == {"purged": 1}
    assert await listed(admin) == []
    assert (await person.show(run_id))["status"] == "failed"
    assert (await person.act("retry", run_id)).json()["status"] == "queued"


async def test_all_are_purged_at_once(api: Api, person: Person, admin: Person) -> None:
    for _ in range(3):
        await dead(api, person)
    assert (await admin.http.delete("/agent/dead-letters")).json() == {"purged": 3}
    assert (await admin.http.delete("/agent/dead-letters")).json() == {"purged": 0}


async def test_a_retry_by_its_owner_takes_a_run_out_of_the_dead_letters(
    api: Api, person: Person, admin: Person
) -> None:
    run_id = await dead(api, person)
    await person.act("retry", run_id)
    assert await listed(admin) == []


async def test_the_owner_sees_what_an_attempt_died_of_and_an_admin_also_where(api: Api, admin: Person) -> None:
    for person, worker_id, traceback in ((await api.person(), None, None), (admin, "worker-7", TRACEBACK)):
        [failure] = (await person.show(await dead(api, person)))["failures"]
        assert (failure["attempt"], failure["error"]) == (1, ERROR.as_dict())
        assert (failure["worker_id"], failure["traceback"]) == (worker_id, traceback)
