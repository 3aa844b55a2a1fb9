"""Exports, as a person asks for them and fetches them, carried out by hand."""

import asyncio
import errno
import io
import json
import tempfile
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update

from backplane.background.rq import RqQueue
from backplane.domain.runs import RunStatus
from backplane.errors import Unavailable
from backplane.resources import Resources
from backplane.store.tables import background_jobs
from controller.jobs import dispatch, export
from controller.jobs.dispatch import JobDispatch
from controller.jobs.export import FOLDER_PREFIX, archive_folder
from controller.jobs.task import carry_out
from tests.integration.api.running import Api, Person, StartApi
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "00000000-0000-7000-8000-000000000000"


async def asked(person: Person, run_id: str) -> Any:
    answer = await person.http.post(f"/agent/runs/{run_id}/export")
    assert answer.status_code == 202, answer.text
    return answer.json()


async def exported(api: Api, person: Person, run_id: str) -> Any:
    job = await asked(person, run_id)
    assert await carry_out(api.settings, job["export_id"]) is None
    return (await person.http.get(f"/agent/exports/{job['export_id']}")).json()


async def with_files(api: Api, person: Person, **files: bytes) -> str:
    """A run that completed, with these files."""
    run_id = await person.make()
    worker = await api.worker()
    await worker.say("one line", "another")
    await worker.end(RunStatus.COMPLETED)
    for name, content in files.items():
        answer = await person.http.put(f"/agent/runs/{run_id}/files/folder/{name}", content=content)
        assert answer.status_code == 201
    return run_id


async def test_an_archive_has_the_run_its_plan_events_and_files(api: Api, person: Person) -> None:
    run_id = await with_files(api, person, one=b"first", two=b"x" * 300_000)
    job = await exported(api, person, run_id)
    assert (job["status"], job["files"], job["files_total"], job["error"]) == ("completed", 2, 2, None)
    answer = await person.http.get(job["archive"])
    assert (answer.status_code, answer.headers["content-type"], len(answer.content)) == (
        200,
        "application/octet-stream",
        job["bytes"],
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        content = {name: archive.read(name) for name in names}
    assert content["files/folder/one"] == b"first"
    assert content["files/folder/two"] == b"x" * 300_000
    assert json.loads(content["run.json"])["id"] == run_id
    assert json.loads(content["plans.json"])["in_force"]["steps"][0]["tool"] == "file_write"
    events = [json.loads(line) for line in content["events.jsonl"].splitlines()]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert "one line" in content["events.jsonl"].decode()
    assert {"steps.json", "decisions.json", "model-calls.jsonl", "manifest.json"} <= names
    manifest = json.loads(content["manifest.json"])
    assert (manifest["run_id"], manifest["removed_meanwhile"]) == (run_id, [])


async def test_another_users_run_and_export_are_not_there(api: Api, person: Person) -> None:
    stranger, run_id = await api.person(), await with_files(api, person)
    job = await exported(api, person, run_id)
    theirs = await stranger.http.post(f"/agent/runs/{run_id}/export")
    absent = await stranger.http.post(f"/agent/runs/{NOBODY}/export")
    assert (theirs.status_code, theirs.text.replace(run_id, NOBODY)) == (404, absent.text)
    for path in ("", "/archive"):
        answer = await stranger.http.get(f"/agent/exports/{job['export_id']}{path}")
        nothing = await stranger.http.get(f"/agent/exports/{NOBODY}{path}")
        assert (answer.status_code, answer.text.replace(job["export_id"], NOBODY)) == (404, nothing.text)
    assert (await stranger.http.get("/agent/exports")).json()["exports"] == []


async def test_the_link_ends_with_its_time_and_then_the_archive_goes(api: Api, person: Person) -> None:
    job = await exported(api, person, await with_files(api, person, one=b"first"))
    past = update(background_jobs).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    this = past.where(background_jobs.c.id == job["export_id"])
    await api.resources.store.database.write(lambda connection: connection.execute(this))
    assert (await person.http.get(job["archive"])).status_code == 404
    assert (await person.http.get(f"/agent/exports/{job['export_id']}")).json()["archive"] is None
    assert archives(api) != []
    await JobDispatch(api.resources, None).remove_expired()
    assert [path for path in archives(api) if job["export_id"] in str(path)] == []
    await JobDispatch(api.resources, None).remove_expired()


async def test_an_archive_that_is_removed_is_not_there_any_more_and_its_room_is_given_back(
    api: Api, person: Person
) -> None:
    job = await exported(api, person, await with_files(api, person, one=b"first"))
    path = f"/agent/exports/{job['export_id']}"
    removed = await person.http.delete(path)
    assert (removed.status_code, removed.json()["archive"], removed.json()["status"]) == (200, None, "completed")
    assert (await person.http.get(job["archive"])).status_code == 404
    assert (await person.http.delete(path)).json() == removed.json()
    await JobDispatch(api.resources, None).remove_expired()
    assert [path for path in archives(api) if job["export_id"] in str(path)] == []
    user = (await person.access(api)).user
    assert await stored_bytes(api.resources, user.id) == len(b"first")


async def test_an_archive_that_cannot_be_removed_keeps_no_other_one(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await with_files(api, person, one=b"first")
    ids = [(await exported(api, person, run_id))["export_id"] for _ in range(2)]
    for export_id in ids:
        await person.http.delete(f"/agent/exports/{export_id}")
    remove, refused = type(api.resources.workspaces).remove, list[str]()

    async def refuse_the_first(workspaces: Any, user_id: str, run_id: str) -> None:
        if not refused:
            refused.append(run_id)
        if run_id in refused:
            raise Unavailable("no", part="workspace")
        await remove(workspaces, user_id, run_id)

    monkeypatch.setattr(type(api.resources.workspaces), "remove", refuse_the_first)
    await JobDispatch(api.resources, None).remove_expired()
    left = {export_id for export_id in ids if any(export_id in str(path) for path in archives(api))}
    assert left == set(refused)


class _Away:
    """In the place of RQ's queue: its Redis does not answer."""

    def waiting(self) -> int:
        raise Unavailable("away", part="redis")


async def test_an_archive_is_removed_also_while_redis_is_away(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await with_files(api, person, one=b"first")
    made, _ = await exported(api, person, run_id), await asked(person, run_id)
    await person.http.delete(f"/agent/exports/{made['export_id']}")
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.01)
    looking = asyncio.create_task(JobDispatch(api.resources, cast(RqQueue, _Away())).run())
    await wait_until(lambda: not any(made["export_id"] in str(path) for path in archives(api)))
    looking.cancel()
    await asyncio.wait([looking])


async def test_an_export_that_is_removed_before_it_is_made_is_not_made(start_api: StartApi) -> None:
    api = await start_api(jobs_user_max=1)
    person = await api.person()
    run_id = await person.make()
    job = await asked(person, run_id)
    stopped = await person.http.delete(f"/agent/exports/{job['export_id']}")
    assert (stopped.status_code, stopped.json()["status"], stopped.json()["bytes"]) == (200, "stopped", None)
    await carry_out(api.settings, job["export_id"])
    assert archives(api) == []
    assert (await person.http.get(f"/agent/exports/{job['export_id']}/archive")).status_code == 404
    assert (await asked(person, run_id))["status"] == "queued"


async def test_an_archive_that_was_stored_when_its_export_was_stopped_is_removed_later(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first"))
    jobs = type(api.resources.store.background_jobs)
    finish = jobs.finish

    async def stopped_first(*given: Any, **named: Any) -> None:
        await person.http.delete(f"/agent/exports/{job['export_id']}")
        await finish(*given, **named)

    monkeypatch.setattr(jobs, "finish", stopped_first)
    await carry_out(api.settings, job["export_id"])
    assert [path for path in archives(api) if job["export_id"] in str(path)] != []
    past = update(background_jobs).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    this = past.where(background_jobs.c.id == job["export_id"])
    await api.resources.store.database.write(lambda connection: connection.execute(this))
    await JobDispatch(api.resources, None).remove_expired()
    assert [path for path in archives(api) if job["export_id"] in str(path)] == []


async def test_an_export_that_is_stopped_in_the_middle_of_a_large_file_goes_no_further(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PROGRESS_SECONDS", 0.0)
    job = await asked(person, await with_files(api, person, one=b"x" * 4_000_000))
    write, writes = export._ArchiveEntry.write, list[int]()

    async def stopped_meanwhile(entry: export._ArchiveEntry, chunk: bytes) -> None:
        if set(chunk) == {ord("x")}:
            writes.append(len(chunk))
            await person.http.delete(f"/agent/exports/{job['export_id']}")
        await write(entry, chunk)

    monkeypatch.setattr(export._ArchiveEntry, "write", stopped_meanwhile)
    await carry_out(api.settings, job["export_id"])
    assert 0 < sum(writes) < 4_000_000


async def test_the_same_key_is_the_same_export(api: Api, person: Person) -> None:
    first, second = await person.make(), await person.make()
    key = {"Idempotency-Key": "once"}
    answers = [await person.http.post(f"/agent/runs/{run_id}/export", headers=key) for run_id in (first, first, second)]
    assert [answer.status_code for answer in answers] == [202, 202, 409]
    assert answers[0].json() == answers[1].json()
    assert answers[2].json()["code"] == "idempotency_key_reused"


async def test_an_export_that_meets_a_fault_fails_once_and_is_not_tried_for_ever(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first"))

    async def faulty(*_: Any, **__: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(type(api.resources.store.plans), "replaced", faulty)
    assert await carry_out(api.settings, job["export_id"]) is None
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert (shown["status"], "a fault of the platform" in shown["error"]) == ("failed", True)


async def test_a_full_disk_is_a_reason_that_the_person_is_told(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    await carry_out(api.settings, job["export_id"])
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert (shown["status"], "No space left" in shown["error"]) == ("failed", True)


async def test_what_a_killed_export_has_left_on_the_machine_is_removed_by_the_next_and_no_other_folder(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, another = tmp_path / f"{FOLDER_PREFIX}left", tmp_path / "another"
    for folder in (left, another):
        folder.mkdir()
        (folder / "run.zip").write_bytes(b"half")
    (tmp_path / f"{FOLDER_PREFIX}link").symlink_to(another)
    with archive_folder(tmp_path) as busy:
        assert not left.exists()
        job = await exported(api, person, await with_files(api, person, one=b"first"))
        assert (job["status"], busy.exists(), (another / "run.zip").exists()) == ("completed", True, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{FOLDER_PREFIX}link", "another"]


async def test_files_of_an_archive_have_the_times_that_they_have_in_the_workspace(api: Api, person: Person) -> None:
    run_id = await with_files(api, person, one=b"first")
    [file] = (await person.http.get(f"/agent/runs/{run_id}/files")).json()["files"]
    content = (await person.http.get((await exported(api, person, run_id))["archive"])).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        written = datetime(*archive.getinfo("files/folder/one").date_time, tzinfo=UTC)
    assert abs(datetime.fromisoformat(file["modified_at"]) - written) <= timedelta(seconds=2)


async def test_how_many_files_there_are_is_known_before_the_first_is_written(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first", two=b"second"))
    seen: list[Any] = []
    find = type(api.resources.store.model_calls).of_run

    async def looked(*given: Any) -> Any:
        seen.append((await person.http.get(f"/agent/exports/{job['export_id']}")).json())
        return await find(*given)

    monkeypatch.setattr(type(api.resources.store.model_calls), "of_run", looked)
    await carry_out(api.settings, job["export_id"])
    assert [(one["files"], one["files_total"]) for one in seen] == [(0, 2)]


def archives(api: Api) -> list[Path]:
    return list(Path(api.settings.workspace_dir).rglob("run.zip"))


async def test_there_is_no_archive_before_it_is_made(api: Api, person: Person) -> None:
    job = await asked(person, await person.make())
    assert (job["archive"], job["status"]) == (None, "queued")
    answer = await person.http.get(f"/agent/exports/{job['export_id']}/archive")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("spare", "status"), [(0, "completed"), (-1, "failed")])
async def test_an_export_holds_as_many_bytes_as_may_be_and_not_one_more(
    start_api: StartApi, spare: int, status: str
) -> None:
    api = await start_api()
    person = await api.person()
    run_id = await with_files(api, person, one=b"x" * 50_000)
    size = await uncompressed(api, person, run_id)
    limited = api.settings.model_copy(update={"export_max_bytes": size + spare})
    job = await asked(person, run_id)
    await carry_out(limited, job["export_id"])
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert shown["status"] == status
    assert ("EXPORT_MAX_BYTES" in (shown["error"] or "")) == (status == "failed")


async def uncompressed(api: Api, person: Person, run_id: str) -> int:
    job = await exported(api, person, run_id)
    with zipfile.ZipFile(io.BytesIO((await person.http.get(job["archive"])).content)) as archive:
        return sum(entry.file_size for entry in archive.infolist())


async def test_a_run_that_is_removed_meanwhile_is_an_export_that_failed(api: Api, person: Person) -> None:
    run_id = await with_files(api, person)
    job = await asked(person, run_id)
    assert (await person.http.delete(f"/agent/runs/{run_id}")).status_code == 204
    assert await carry_out(api.settings, job["export_id"]) is None
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert (shown["status"], "no run" in shown["error"]) == ("failed", True)


async def test_an_export_that_is_cut_off_is_made_again(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await with_files(api, person, one=b"first")
    job = await asked(person, run_id)

    async def cut_off(*_: Any, **__: Any) -> None:
        raise Unavailable("cut off here", part="database")

    with monkeypatch.context() as patched:
        patched.setattr(type(api.resources.store.background_jobs), "finish", cut_off)
        await carry_out(api.settings, job["export_id"])
    free = update(background_jobs).values(lease_until=None)
    await api.resources.store.database.write(lambda connection: connection.execute(free))
    await carry_out(api.settings, job["export_id"])
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert (shown["status"], (await person.http.get(shown["archive"])).status_code) == ("completed", 200)
    assert len([path for path in archives(api) if job["export_id"] in str(path)]) == 1


@pytest.mark.parametrize(("killed", "status"), [(2, "completed"), (3, "failed")])
async def test_an_export_whose_process_is_killed_each_time_is_given_up_after_three(
    api: Api, person: Person, killed: int, status: str
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first"))
    left = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    for _ in range(killed):
        assert await api.resources.store.background_jobs.claim(job["export_id"], seconds=0.0)
    await carry_out(api.settings, job["export_id"])
    assert not left.exists()
    shown = (await person.http.get(f"/agent/exports/{job['export_id']}")).json()
    assert (shown["status"], "3 times" in (shown["error"] or "")) == (status, status == "failed")


async def test_a_part_that_is_away_many_times_does_not_count_as_a_process_that_was_killed(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asked(person, await with_files(api, person, one=b"first"))

    async def away(*_: Any, **__: Any) -> None:
        raise Unavailable("away", part="database")

    free = update(background_jobs).values(lease_until=None)
    with monkeypatch.context() as patched:
        patched.setattr(type(api.resources.store.plans), "replaced", away)
        for _ in range(4):
            await carry_out(api.settings, job["export_id"])
            await api.resources.store.database.write(lambda connection: connection.execute(free))
    await carry_out(api.settings, job["export_id"])
    assert (await person.http.get(f"/agent/exports/{job['export_id']}")).json()["status"] == "completed"


async def test_an_archive_counts_among_its_users_files_and_no_more_when_it_is_gone(api: Api, person: Person) -> None:
    job = await exported(api, person, await with_files(api, person))
    user = (await person.access(api)).user
    assert (await stored_bytes(api.resources, user.id)) >= job["bytes"]
    past = update(background_jobs).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    this = past.where(background_jobs.c.id == job["export_id"])
    await api.resources.store.database.write(lambda connection: connection.execute(this))
    await JobDispatch(api.resources, None).remove_expired()
    assert await stored_bytes(api.resources, user.id) == 0


async def stored_bytes(resources: Resources, user_id: str) -> int:
    return (await resources.storage.known()).get(user_id, (await resources.storage.of(user_id))).bytes or 0
