"""Bulk actions, as a person asks for them and watches them, carried out by hand: one piece after the other."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backplane.domain.background_jobs import BulkAction, ItemStatus
from backplane.domain.runs import RunStatus
from backplane.domain.users import Tier
from backplane.errors import Unavailable
from backplane.store.tables import background_jobs
from controller.jobs import bulk as bulk_work
from controller.jobs.task import carry_out
from tests.integration.api.requests.test_dead_letters import dead
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "00000000-0000-7000-8000-000000000000"


async def ask(person: Person, action: str, wanted: dict[str, Any], **more: Any) -> Any:
    answer = await person.http.post("/agent/bulk", json={"action": action, "filter": wanted, **more})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


async def refused(person: Person, action: str, wanted: dict[str, Any], **more: Any) -> tuple[int, str]:
    answer = await person.http.post("/agent/bulk", json={"action": action, "filter": wanted, **more})
    return answer.status_code, answer.json()["code"]


async def carried_out(api: Api, person: Person, job: Any) -> Any:
    while await carry_out(api.settings, job["bulk_id"]) is not None:
        pass
    return (await person.http.get(f"/agent/bulk/{job['bulk_id']}")).json()


async def failed(api: Api, person: Person, **fields: Any) -> str:
    run_id = await person.make(**fields)
    worker = await api.worker()
    assert worker.run_id == run_id
    await worker.end(RunStatus.FAILED)
    return run_id


async def status_of(person: Person, run_id: str) -> str:
    return str((await person.show(run_id))["status"])


async def test_all_runs_that_a_filter_names_are_cancelled_and_no_others(api: Api, person: Person) -> None:
    stranger = await api.person()
    mine, other, theirs = [await person.make() for _ in range(2)], await failed_one(api, person), await stranger.make()
    job = await ask(person, "cancel", {"statuses": ["queued"]})
    assert (job["status"], job["total"]) == ("queued", 2)
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"], over["refused"]) == ("completed", 2, 0)
    assert [await status_of(person, run_id) for run_id in [*mine, other]] == ["cancelled", "cancelled", "failed"]
    assert await status_of(stranger, theirs) == "queued"
    listed = (await person.http.get(f"/agent/bulk/{job['bulk_id']}/runs")).json()
    assert [(one["run_id"], one["status"]) for one in listed["runs"]] == [(run_id, "done") for run_id in mine]


async def failed_one(api: Api, person: Person) -> str:
    """A run that failed, whatever else waits in the queue."""
    run_id = await person.make("create")
    store = api.resources.store
    user = await store.runs.find(run_id)
    assert user is not None
    await store.runs.start(user.user_id, run_id)
    await store.running_runs.take(run_id, 1)
    await store.running_runs.write(run_id, 1, lambda transaction: transaction.finish(RunStatus.FAILED, None))
    return run_id


async def test_a_dry_run_says_how_many_and_touches_none(api: Api, person: Person) -> None:
    run_id = await failed_one(api, person)
    assert await ask(person, "retry", {"statuses": ["failed"]}, dry_run=True) == {"action": "retry", "runs": 1}
    assert (await person.http.get("/agent/bulk")).json()["bulk_actions"] == []
    assert await status_of(person, run_id) == "failed"


async def test_failed_runs_are_retried_and_a_replay_makes_new_ones(api: Api, person: Person) -> None:
    first, second = await failed_one(api, person), await failed_one(api, person)
    replayed = await carried_out(api, person, await ask(person, "replay", {"run_ids": [first]}))
    [made] = (await person.http.get(f"/agent/bulk/{replayed['bulk_id']}/runs")).json()["runs"]
    assert (await person.show(made["detail"]))["origin"]["run_id"] == first
    over = await carried_out(api, person, await ask(person, "retry", {"statuses": ["failed"]}))
    assert (over["total"], over["done"]) == (2, 2)
    assert [await status_of(person, run_id) for run_id in (first, second)] == ["queued", "queued"]


async def test_runs_that_are_over_are_removed(api: Api, person: Person) -> None:
    gone, kept = await failed_one(api, person), await person.make()
    over = await carried_out(api, person, await ask(person, "remove", {"statuses": ["failed"]}))
    assert (over["status"], over["done"]) == ("completed", 1)
    assert (await person.http.get(f"/agent/runs/{gone}")).status_code == 404
    assert await status_of(person, kept) == "queued"


async def test_a_run_that_refuses_says_why_and_stops_no_other(api: Api, person: Person) -> None:
    runs = [await failed_one(api, person), await failed_one(api, person)]
    job = await ask(person, "retry", {"run_ids": runs})
    await person.act("retry", runs[0])
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"], over["refused"]) == ("completed", 1, 1)
    parameters = {"status": "refused"}
    [one] = (await person.http.get(f"/agent/bulk/{job['bulk_id']}/runs", params=parameters)).json()["runs"]
    assert (one["run_id"], "only a failed or a waiting run is retried" in one["detail"]) == (runs[0], True)


async def test_everybodys_dead_letters_are_redriven_for_an_administrator_alone(api: Api, person: Person) -> None:
    await api.resources.store.dead_letters.purge_all()
    admin = await api.person(Tier.ADMIN)
    run_id = await dead(api, person)
    assert await refused(person, "redrive", {"statuses": ["failed"]}) == (403, "forbidden")
    over = await carried_out(api, admin, await ask(admin, "redrive", {"statuses": ["failed"]}))
    assert (over["total"], over["done"], await status_of(person, run_id)) == (1, 1, "queued")


async def test_an_administrator_acts_on_no_runs_of_others(api: Api, person: Person) -> None:
    admin, run_id = await api.person(Tier.ADMIN), await person.make()
    assert (await ask(admin, "cancel", {"statuses": ["queued"]}, dry_run=True))["runs"] == 0
    assert await refused(admin, "cancel", {"run_ids": [run_id]}) == (404, "not_found")


async def test_another_users_bulk_action_is_not_there(api: Api, person: Person) -> None:
    stranger, job = await api.person(), await ask(person, "cancel", {"statuses": ["queued"]})
    for method, path in (("GET", ""), ("GET", "/runs"), ("DELETE", "")):
        answer = await stranger.http.request(method, f"/agent/bulk/{job['bulk_id']}{path}")
        absent = await stranger.http.request(method, f"/agent/bulk/{NOBODY}{path}")
        assert (answer.status_code, answer.text.replace(job["bulk_id"], NOBODY)) == (404, absent.text)
    assert (await stranger.http.get("/agent/bulk")).json()["bulk_actions"] == []


async def test_a_stopped_bulk_action_leaves_the_rest_undone(api: Api, person: Person) -> None:
    run_id = await person.make()
    job = await ask(person, "cancel", {"run_ids": [run_id]})
    stopped = (await person.http.delete(f"/agent/bulk/{job['bulk_id']}")).json()
    assert (stopped["status"], (await carried_out(api, person, job))["done"]) == ("stopped", 0)
    assert await status_of(person, run_id) == "queued"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"action": "cancel", "filter": {}}, "invalid_input"),
        ({"action": "cancel", "filter": {"statuses": ["failed"]}}, "invalid_input"),
        ({"action": "remove", "filter": {"statuses": ["running"]}}, "invalid_input"),
        ({"action": "retry", "filter": {"reason": "poison"}}, "invalid_input"),
        ({"action": "cancel", "filter": {"created_after": "2026-01-01T00:00:00"}}, "invalid_input"),
        ({"action": "cancel", "filter": {"run_ids": [NOBODY] * 1001}}, "invalid_input"),
        ({"action": "start", "filter": {"agent": "a"}}, "invalid_input"),
        ({"action": "cancel"}, "invalid_input"),
        ({"action": "cancel", "filter": {"agents": "a"}}, "invalid_input"),
        ({"action": "cancel", "filter": {"agent": "a\0b"}}, "invalid_input"),
        ({"action": "cancel", "filter": {"created_after": "0001-01-01T00:00:00+14:00"}}, "invalid_input"),
        ({"action": "cancel", "filter": {"created_before": "9999-12-31T23:59:59-14:00"}}, "invalid_input"),
        (
            {
                "action": "cancel",
                "filter": {"created_after": "2026-11-02T00:00:00Z", "created_before": "2026-11-02T00:00:00Z"},
            },
            "invalid_input",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_bulk_action_that_makes_no_sense_is_refused(
    person: Person, body: Any, code: str, dry_run: bool
) -> None:
    answer = await person.http.post("/agent/bulk", json={**body, "dry_run": dry_run})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


@pytest.mark.parametrize("query", ["dry_run=true", "status=failed"])
async def test_what_stands_in_the_query_of_a_bulk_action_is_refused_and_nothing_is_done(
    person: Person, query: str
) -> None:
    """A `?dry_run=true` that is passed over would do what the person only wanted to count."""
    answer = await person.http.post(f"/agent/bulk?{query}", json={"action": "cancel", "filter": {"agent": "a"}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "in the body" in answer.json()["detail"]
    assert (await person.http.get("/agent/bulk")).json()["bulk_actions"] == []


async def test_times_of_the_first_and_last_year_that_there_are_find_their_runs(person: Person) -> None:
    run_id = await person.make()
    wanted = {"created_after": "0001-01-01T00:00:00Z", "created_before": "9999-12-31T23:59:59Z"}
    assert (await ask(person, "cancel", {**wanted, "run_ids": [run_id]}, dry_run=True))["runs"] == 1


async def test_the_same_key_and_request_is_the_same_bulk_action(person: Person) -> None:
    await person.make()
    key = {"Idempotency-Key": "cancel all"}
    body = {"action": "cancel", "filter": {"statuses": ["queued"]}}
    first = await person.http.post("/agent/bulk", json=body, headers=key)
    again = await person.http.post("/agent/bulk", json=body, headers=key)
    assert (first.status_code, again.status_code, first.json()) == (202, 202, again.json())
    assert len((await person.http.get("/agent/bulk")).json()["bulk_actions"]) == 1
    other = await person.http.post(
        "/agent/bulk", json={**body, "action": "remove", "filter": {"agent": "a"}}, headers=key
    )
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


async def test_limits_are_those_that_the_settings_name(start_api: StartApi) -> None:
    api = await start_api(bulk_max_runs=1, jobs_user_max=1)
    person = await api.person()
    runs = [await person.make() for _ in range(2)]
    assert await refused(person, "cancel", {"run_ids": runs}) == (413, "too_large")
    await ask(person, "cancel", {"run_ids": runs[:1]})
    answer = await person.http.post("/agent/bulk", json={"action": "cancel", "filter": {"run_ids": runs[1:]}})
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_jobs")
    assert int(answer.headers["Retry-After"]) > 0
    assert "wait" in answer.json()["detail"]


async def test_a_cluster_without_a_redis_for_jobs_is_said_at_once(start_api: StartApi) -> None:
    api = await start_api(redis_url="redis+cluster://127.0.0.1:1", redis_key_prefix="{a}:")
    person = await api.person()
    answer = await person.http.post("/agent/bulk", json={"action": "cancel", "filter": {"agent": "a"}})
    assert (answer.status_code, "JOBS_REDIS_URL" in answer.json()["detail"]) == (409, True)


async def test_a_full_queue_is_waited_for(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    person = await api.person()
    runs = [await failed_one(api, person) for _ in range(2)]
    job = await ask(person, "retry", {"run_ids": runs})
    assert await carry_out(api.settings, job["bulk_id"]) is None
    shown = (await person.http.get(f"/agent/bulk/{job['bulk_id']}")).json()
    assert (shown["status"], shown["done"], shown["refused"]) == ("running", 1, 0)
    assert [item.status for item in await api.resources.store.background_jobs.items(job["bulk_id"])] == [
        ItemStatus.DONE,
        ItemStatus.PENDING,
    ]


async def test_what_was_cut_off_after_a_retry_is_not_retried_again(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the action and the note of it; the run fails once more before the next one looks."""
    run_id = await failed_one(api, person)
    job = await ask(person, "retry", {"run_ids": [run_id]})

    async def cut_off(*_: Any, **__: Any) -> None:
        raise Unavailable("cut off here", part="database")

    store = type(api.resources.store.background_jobs)
    with monkeypatch.context() as patched:
        patched.setattr(store, "settle", cut_off)
        assert await carry_out(api.settings, job["bulk_id"]) is None
    assert await status_of(person, run_id) == "queued"
    worker = await api.worker()
    await worker.end(RunStatus.FAILED)
    await release(api, job["bulk_id"])
    over = await carried_out(api, person, job)
    assert (over["done"], await status_of(person, run_id)) == (1, "failed")


async def release(api: Api, job_id: str) -> None:
    """As if the pause of the job were over."""
    statement = update(background_jobs).where(background_jobs.c.id == job_id).values(lease_until=None)
    await api.resources.store.database.write(lambda connection: connection.execute(statement))


@pytest.mark.parametrize("action", [BulkAction.REPLAY, BulkAction.REMOVE, BulkAction.CANCEL])
async def test_an_action_that_is_done_twice_is_done_once(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch, action: BulkAction
) -> None:
    run_id = await person.make() if action is BulkAction.CANCEL else await failed_one(api, person)
    job = await ask(person, action, {"run_ids": [run_id]})

    async def cut_off(*_: Any, **__: Any) -> None:
        raise Unavailable("cut off here", part="database")

    with monkeypatch.context() as patched:
        patched.setattr(type(api.resources.store.background_jobs), "settle", cut_off)
        await carry_out(api.settings, job["bulk_id"])
    await release(api, job["bulk_id"])
    over = await carried_out(api, person, job)
    assert (over["done"], over["refused"]) == (1, 0)
    listed = (await person.http.get("/agent/runs")).json()["runs"]
    assert len(listed) == {BulkAction.REPLAY: 2, BulkAction.REMOVE: 0, BulkAction.CANCEL: 1}[action]


async def test_a_piece_ends_after_its_time_and_the_next_one_goes_on(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [await person.make() for _ in range(3)]
    job = await ask(person, "cancel", {"run_ids": runs})
    monkeypatch.setattr(bulk_work, "PIECE_SECONDS", 0.0)
    assert await carry_out(api.settings, job["bulk_id"]) == 1
    monkeypatch.undo()
    assert (await carried_out(api, person, job))["done"] == 3


async def killed_in_the_middle(api: Api, job_id: str) -> None:
    """As if a process were killed while it does the action to the first run that is left."""
    jobs = api.resources.store.background_jobs
    job = await jobs.claim(job_id, seconds=0.0)
    assert job is not None
    [item, *_] = await jobs.left(job, 1)
    if item.status is ItemStatus.PENDING:
        await jobs.begin(job, item, seconds=0.0)


@pytest.mark.parametrize(("killed", "refused_runs"), [(2, 0), (3, 1)])
async def test_a_run_that_kills_whoever_acts_on_it_three_times_is_refused_and_the_others_get_their_turn(
    api: Api, person: Person, killed: int, refused_runs: int
) -> None:
    runs = [await person.make() for _ in range(3)]
    job = await ask(person, "cancel", {"run_ids": runs})
    for _ in range(killed):
        await killed_in_the_middle(api, job["bulk_id"])
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"], over["refused"]) == ("completed", 3 - refused_runs, refused_runs)
    listed = (await person.http.get(f"/agent/bulk/{job['bulk_id']}/runs")).json()["runs"]
    assert [one["run_id"] for one in listed if "3 times" in (one["detail"] or "")] == runs[:refused_runs]


async def test_kills_with_progress_between_them_are_not_added_up(api: Api, person: Person) -> None:
    runs = [await person.make() for _ in range(3)]
    job, jobs = await ask(person, "cancel", {"run_ids": runs}), api.resources.store.background_jobs
    for _ in runs:
        await killed_in_the_middle(api, job["bulk_id"])
        await killed_in_the_middle(api, job["bulk_id"])
        claim = await jobs.claim(job["bulk_id"], seconds=0.0)
        assert claim is not None
        [item, *_] = await jobs.left(claim, 1)
        await jobs.settle(claim, item, ItemStatus.DONE)
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"], over["refused"]) == ("completed", 3, 0)


async def test_a_bulk_action_that_kills_whoever_begins_it_fails(api: Api, person: Person) -> None:
    job = await ask(person, "cancel", {"run_ids": [await person.make()]})
    for _ in range(3):
        assert await api.resources.store.background_jobs.claim(job["bulk_id"], seconds=0.0)
    over = await carried_out(api, person, job)
    assert (over["status"], "3 times" in over["error"]) == ("failed", True)


async def asked_long_ago(api: Api, job_id: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    statement = update(background_jobs).where(background_jobs.c.id == job_id).values(created_at=long_ago)
    await api.resources.store.database.write(lambda connection: connection.execute(statement))


async def test_a_bulk_action_that_finds_room_is_carried_out_however_long_ago_it_was_asked_for(
    api: Api, person: Person
) -> None:
    job = await ask(person, "cancel", {"run_ids": [await person.make()]})
    await asked_long_ago(api, job["bulk_id"])
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"]) == ("completed", 1)


async def test_a_bulk_action_that_has_found_no_room_for_a_day_fails(start_api: StartApi) -> None:
    api = await start_api(queue_max_waiting=1)
    person = await api.person()
    runs = [await failed_one(api, person) for _ in range(2)]
    job = await ask(person, "retry", {"run_ids": runs})
    await asked_long_ago(api, job["bulk_id"])
    over = await carried_out(api, person, job)
    assert (over["status"], over["done"], "no room" in over["error"]) == ("failed", 1, True)
