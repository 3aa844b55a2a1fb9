"""What a user has stored, and how runs and files are deleted."""

from datetime import UTC, datetime

import pytest

from backplane.errors import Unavailable
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODYS = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"


async def test_what_was_not_counted_yet_is_null(person: Person) -> None:
    usage = (await person.http.get("/agent/usage")).json()
    assert usage["runs"] == {"used": None, "limit": 100_000}
    assert usage["bytes"]["used"] is None


async def test_a_user_sees_what_was_counted(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    await person.http.put(f"/agent/runs/{run_id}/files/a", content=b"12345")
    await api.resources.storage.count_rows(await api.resources.store.usage_counts.of_users())
    usage = (await person.http.get("/agent/usage")).json()
    assert [usage[name]["used"] for name in ("runs", "events", "bytes")] == [1, 1, 5]
    assert datetime.fromisoformat(usage["rows_counted_at"]) <= datetime.now(UTC)
    assert usage["files_counted_at"] is None


@pytest.mark.parametrize("setting", ["user_max_runs", "user_max_events", "user_max_bytes"])
async def test_a_user_over_a_limit_goes_on_as_soon_as_enough_is_deleted(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr("backplane.limits.storage.limits.LOOKED_UP_SECONDS", -1.0)
    api = await start_api(**{setting: 5})
    person = await api.person()
    runs = [await person.make("create") for _ in range(5)]
    if setting == "user_max_bytes":
        await person.http.put(f"/agent/runs/{runs[0]}/files/a", content=b"12345")
    storage = api.resources.storage
    await person.act("cancel", runs[0])
    await storage.count_rows(await api.resources.store.usage_counts.of_users())
    monkeypatch.setattr("backplane.limits.storage.limits.LOOKED_UP_SECONDS", 600.0)
    for _ in range(2):
        refused = await person.act("create", prompt="one more")
        assert (refused.status_code, refused.json()["code"]) == (413, "storage_quota_exceeded")
    assert (await person.http.delete(f"/agent/runs/{runs[0]}")).status_code == 204
    assert (await person.act("create", prompt="one more")).status_code == 201
    # The counters say what a count would.
    found = await storage.of((await person.access(api)).user.id)
    counted = (await api.resources.store.usage_counts.of_users())[(await person.access(api)).user.id]
    assert counted.runs is not None
    assert (found.runs, found.events) == (counted.runs - 1, (counted.events or 0) - 1)


async def test_a_run_that_is_over_is_deleted_with_all_that_belongs_to_it(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    await person.http.put(f"/agent/runs/{run_id}/files/a", content=b"12345")
    await person.act("cancel", run_id)
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 204
    assert (await person.http.get(f"/agent/runs/{run_id}")).status_code == 404
    user_id = (await person.access(api)).user.id
    assert await api.resources.workspaces.workspace(user_id, run_id).list() == []
    assert await api.resources.store.events.last_id(run_id) == 0
    assert (await person.http.get("/agent/usage")).json()["bytes"]["used"] == 0


async def test_a_run_that_is_not_over_is_not_deleted(person: Person) -> None:
    for action in ("create", "run"):
        run_id = await person.make(action)
        answer = await person.http.delete(f"/agent/runs/{run_id}")
        assert answer.status_code == 409
        assert "cancel it first" in answer.json()["detail"]


async def test_a_run_that_is_being_deleted_cannot_be_retried_and_is_deleted_once(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    await person.act("cancel", run_id)
    user_id = (await person.access(api)).user.id
    await api.resources.store.retention.lease_one(user_id, run_id, seconds=60)
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 409
    assert (await person.act("retry", run_id)).status_code == 409


@pytest.mark.parametrize(("fails", "left"), [("remove", 5), ("delete_runs", 0)])
async def test_a_run_whose_deletion_failed_can_be_deleted_again_at_once(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch, fails: str, left: int
) -> None:
    run_id = await person.make("create")
    await person.http.put(f"/agent/runs/{run_id}/files/a", content=b"12345")
    await person.act("cancel", run_id)

    async def fail(*_: object) -> None:
        raise Unavailable("away for a moment", part="workspace")

    with monkeypatch.context() as patched:
        part = api.resources.workspaces if fails == "remove" else api.resources.store.retention
        patched.setattr(part, fails, fail)
        assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 503
    assert (await person.http.get("/agent/usage")).json()["bytes"]["used"] == left
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 204
    assert (await person.http.get("/agent/usage")).json()["bytes"]["used"] == 0


async def test_who_lost_a_lease_does_not_give_up_anothers(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    await person.act("cancel", run_id)
    user_id, retention = (await person.access(api)).user.id, api.resources.store.retention
    lost = await retention.lease_one(user_id, run_id, seconds=-1)
    await retention.lease_one(user_id, run_id, seconds=60)
    await retention.give_up_lease(run_id, lost)
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 409


async def test_nobody_elses_run_or_file_is_deleted(api: Api, person: Person) -> None:
    other = await api.person()
    run_id = await other.make("create")
    await other.http.put(f"/agent/runs/{run_id}/files/a", content=b"kept")
    await other.act("cancel", run_id)
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 404
    assert (await person.http.delete(f"/agent/runs/{run_id}/files/a")).status_code == 404
    assert (await person.http.delete(f"/agent/runs/{NOBODYS}")).status_code == 404
    assert (await other.http.get(f"/agent/runs/{run_id}/files/a")).content == b"kept"


async def test_a_file_is_deleted_once(person: Person) -> None:
    url = f"/agent/runs/{await person.make('create')}/files"
    await person.http.put(f"{url}/a/b", content=b"x")
    assert (await person.http.delete(f"{url}/a/b")).status_code == 204
    assert (await person.http.delete(f"{url}/a/b")).status_code == 404
    assert (await person.http.get(url)).json()["files"] == []
