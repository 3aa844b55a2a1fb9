"""Retention from the outside: what is old is gone everywhere, what is not is untouched, whoever looks and however
often."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backplane.domain.events import EventType, encode
from backplane.domain.runs import Run, RunStatus
from backplane.errors import NotFound
from backplane.settings import fixed
from backplane.store.tables import events, runs
from backplane.workspace.base import Workspace
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.servers import S3Server
from tests.submitted import new_run
from tests.waiting import wait_until

OLD = timedelta(days=31)
LINES, BATCH = 25, 10
"""More events than a batch has room for, and not a multiple of it."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "RETENTION_BATCH", BATCH)


@pytest.fixture(params=["folder", "S3"])
def workspace_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where workspaces lie: in the test's own folder, or in a bucket."""
    if request.param == "folder":
        return {}
    server: S3Server = request.getfixturevalue("s3_server")
    return {
        "s3_bucket": request.getfixturevalue("bucket"),
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
    }


def workspace_of(platform: Platform, run: Run) -> Workspace:
    return platform.workspaces.workspace(run.user_id, run.id)


async def content() -> AsyncIterator[bytes]:
    yield b"kept for a while"


async def put_files(platform: Platform, run: Run) -> None:
    for path in ("result.txt", "deep/er/result.txt"):
        await workspace_of(platform, run).write(path, content())


async def ended_run(platform: Platform, age: timedelta, *, files: bool = True) -> Run:
    run = await platform.store.runs.create(new_run(platform.user), start=True)
    await platform.store.running_runs.take(run.id, 1)
    if files:
        await put_files(platform, run)

    def end(transaction: Any) -> None:
        transaction.add_events([encode(run.id, number, EventType.LOG, {"line": "x"}) for number in range(3, 3 + LINES)])
        transaction.add_events([encode(run.id, 3 + LINES, EventType.END, {"status": "completed"})])
        transaction.finish(RunStatus.COMPLETED, None)

    await platform.store.running_runs.write(run.id, 1, end)
    ended = update(runs).where(runs.c.id == run.id).values(finished_at=datetime.now(UTC) - age)
    await platform.store.database.write(lambda connection: connection.execute(ended))
    return run


async def unstarted_run(platform: Platform, age: timedelta) -> Run:
    run = await platform.store.runs.create(new_run(platform.user, created_at=datetime.now(UTC) - age))
    await put_files(platform, run)
    return run


async def is_there(platform: Platform, run: Run) -> bool:
    try:
        await platform.store.runs.get(platform.user.id, run.id)
    except NotFound:
        return False
    return True


async def event_ids(platform: Platform, run: Run) -> list[int]:
    return [event.id for event in await platform.store.events.after(run.id, 0, 1000)]


async def files(platform: Platform, run: Run) -> list[str]:
    return [file.path for file in await workspace_of(platform, run).list()]


async def test_an_old_run_goes_with_its_events_and_files_and_a_younger_one_stays(
    start_platform: StartPlatform, controllers: Controllers, workspace_settings: dict[str, Any]
) -> None:
    platform = await start_platform(**workspace_settings)
    old = [await ended_run(platform, OLD) for _ in range(3)] + [await unstarted_run(platform, OLD)]
    young = [await ended_run(platform, OLD - timedelta(days=2)), await unstarted_run(platform, OLD - timedelta(days=2))]
    controllers.start(platform.settings)
    for run in old:
        await wait_until(lambda run=run: _not(is_there(platform, run)))  # type: ignore[misc]
        assert await event_ids(platform, run) == []
        assert await files(platform, run) == []
    for run in young:
        assert await is_there(platform, run)
        assert len(await files(platform, run)) == 2
    assert len(await event_ids(platform, young[0])) == 3 + LINES


async def _not(answer: Any) -> bool:
    return not await answer


async def test_files_may_go_before_their_run(
    start_platform: StartPlatform, controllers: Controllers, workspace_settings: dict[str, Any]
) -> None:
    platform = await start_platform(retention_workspace_days=7, **workspace_settings)
    old, young = await ended_run(platform, timedelta(days=8)), await ended_run(platform, timedelta(days=6))
    controllers.start(platform.settings)
    await wait_until(lambda: _not(files(platform, old)))
    assert await is_there(platform, old)
    assert len(await event_ids(platform, old)) == 3 + LINES
    assert len(await files(platform, young)) == 2
    kept = await platform.store.runs.get(platform.user.id, young.id)
    assert kept.files_expired_at is None


async def test_events_may_go_before_their_run_but_for_the_last(
    start_platform: StartPlatform, controllers: Controllers
) -> None:
    platform = await start_platform(retention_events_days=7)
    old, young = await ended_run(platform, timedelta(days=8)), await ended_run(platform, timedelta(days=6))
    controllers.start(platform.settings)
    await wait_until(lambda: _has_one(platform, old))
    assert await event_ids(platform, old) == [3 + LINES]
    assert len(await files(platform, old)) == 2
    assert len(await event_ids(platform, young)) == 3 + LINES


async def _has_one(platform: Platform, run: Run) -> bool:
    return len(await event_ids(platform, run)) == 1


async def test_with_limits_of_nought_everything_is_kept(
    start_platform: StartPlatform, controllers: Controllers
) -> None:
    never = {"retention_runs_days": 0, "retention_created_days": 0, "retention_workspace_days": 0}
    platform = await start_platform(**never, retention_events_days=7)
    kept = [await ended_run(platform, timedelta(days=6)), await unstarted_run(platform, timedelta(days=4000))]
    old = await ended_run(platform, timedelta(days=4000))
    controllers.start(platform.settings)
    await wait_until(lambda: _has_one(platform, old))
    for run in [*kept, old]:
        assert await is_there(platform, run)
        assert len(await files(platform, run)) == 2
    assert len(await event_ids(platform, kept[0])) == 3 + LINES


async def test_three_controllers_remove_everything_and_do_not_get_in_each_others_way(
    start_platform: StartPlatform,
    controllers: Controllers,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    platform = await start_platform(database_url=database_url, retention_events_days=7)
    for number in range(12):
        await ended_run(platform, OLD if number % 2 else timedelta(days=8), files=False)
    for _ in range(3):
        controllers.start(platform.settings)
    left = select(func.count()).select_from(events)

    async def only_ends() -> bool:
        return await platform.store.database.read(lambda connection: connection.execute(left).scalar_one()) == 6

    await wait_until(only_ends, timeout=20.0)
    await controllers.end()
    said = "".join(capsys.readouterr())
    assert "held up" not in said
    assert said.count("removed what is past its time") >= 2


async def test_what_a_crash_left_half_removed_is_removed_by_the_next(
    start_platform: StartPlatform, controllers: Controllers
) -> None:
    platform = await start_platform()
    run = await ended_run(platform, OLD)
    # As a controller leaves it that is killed between the files and the row; its lease is over.
    ended = update(runs).where(runs.c.id == run.id)
    ended = ended.values(files_expired_at=datetime.now(UTC) - OLD, retention_lease=datetime.now(UTC) - OLD)
    await platform.store.database.write(lambda connection: connection.execute(ended))
    await platform.workspaces.remove(run.user_id, run.id)
    controllers.start(platform.settings)
    await wait_until(lambda: _not(is_there(platform, run)))


async def test_while_the_workspaces_store_is_away_rows_stay_and_go_when_it_is_back(
    start_platform: StartPlatform, controllers: Controllers, own_s3: Callable[[], S3Server], capsys: Any
) -> None:
    server = own_s3()
    platform = await start_platform(
        s3_bucket=server.create_bucket(),
        s3_endpoint=server.endpoint,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
        retention_events_days=7,
    )
    old, trimmed = await ended_run(platform, OLD), await ended_run(platform, timedelta(days=8))
    # `prepare` has gone by when the first thing is sent.
    controllers.start(platform.settings)
    await wait_until(lambda: _not(is_there(platform, old)))
    server.stop()
    second = await ended_run(platform, OLD, files=False)
    third = await ended_run(platform, timedelta(days=8), files=False)
    # What needs no files goes on.
    await wait_until(lambda: _has_one(platform, third), timeout=60.0)
    assert await is_there(platform, second)
    assert await is_there(platform, trimmed)
    server.start()
    # Its lease ends; without waiting for it.
    ended = update(runs).where(runs.c.id == second.id).values(retention_lease=None)

    async def goes() -> bool:
        await platform.store.database.write(lambda connection: connection.execute(ended))
        return not await is_there(platform, second)

    await wait_until(goes, timeout=30.0)


async def test_a_workspace_that_cannot_be_removed_does_not_keep_others(
    start_platform: StartPlatform, controllers: Controllers, tmp_path: Path
) -> None:
    platform = await start_platform()
    stuck = await ended_run(platform, OLD + timedelta(days=1))
    folder = tmp_path / "workspaces" / "users" / stuck.user_id / "runs"
    # A link where the folder should be is never followed, nor removed.
    (folder / stuck.id).rename(tmp_path / "elsewhere")
    (folder / stuck.id).symlink_to(tmp_path / "elsewhere")
    other = await ended_run(platform, OLD)
    task = controllers.start(platform.settings)
    await wait_until(lambda: _is_leased(platform, stuck))
    assert not task.done()
    ended = update(runs).where(runs.c.id == other.id).values(retention_lease=None)
    await platform.store.database.write(lambda connection: connection.execute(ended))
    await wait_until(lambda: _not(is_there(platform, other)))
    assert await is_there(platform, stuck)
    assert (tmp_path / "elsewhere" / "result.txt").exists()


async def _is_leased(platform: Platform, run: Run) -> bool:
    query = select(runs.c.retention_lease).where(runs.c.id == run.id)
    return await platform.store.database.read(lambda connection: connection.scalar(query)) is not None
