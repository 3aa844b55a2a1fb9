"""A step that writes more than its watchers are shown: the whole is a file of the run, and costs the run nothing."""

from pathlib import Path

import pytest

from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus
from backplane.workspace.base import FileInfo
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import Platform, worker
from tests.submitted import shell
from tests.waiting import wait_until
from worker.files.retrying import RetryingWorkspace
from worker.steps.capture import LINE_COST

CHATTY = "(yes || true) | head -c 200000"
WHOLE = b"y\n" * 100_000
LIMIT = 16 * 1024
LINES = LIMIT // (1 + LINE_COST)
FILE = ".output/chatty.log"


@pytest.fixture
async def platform(start_platform: StartPlatform) -> Platform:
    return await start_platform(step_output_max_bytes=LIMIT, workspace_max_bytes=1_000_000)


async def warnings(platform: Platform, run_id: str) -> list[str]:
    return [data["line"] for data in await platform.event_data(run_id, EventType.LOG) if data.get("level") == "warning"]


async def test_a_cut_output_says_how_much_is_missing_and_where_all_of_it_lies(platform: Platform) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(shell("chatty", CHATTY), shell("after", "ls -A"))
        await platform.completed(run_id)
    logs = [data for data in await platform.event_data(run_id, EventType.LOG) if data["line"] != "y"]
    assert [(data["step"], data["level"]) for data in logs] == [("chatty", "warning")] * 2
    assert logs[0]["dropped_lines"] == 100_000 - LINES
    assert logs[1]["file"] == FILE
    assert await platform.read(run_id, FILE) == WHOLE
    await platform.ends_whole(run_id)


async def test_a_step_that_failed_has_its_file_too(platform: Platform) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(shell("chatty", f"{CHATTY}; exit 3"))
        await platform.until(run_id, RunStatus.FAILED)
    assert await platform.read(run_id, FILE) == WHOLE


async def test_the_step_is_over_before_its_file_is_on_its_way(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no worker that is lost meanwhile leaves it in doubt."""
    upload = RetryingWorkspace.upload
    seen: list[StepStatus] = []

    async def noted(self: RetryingWorkspace, path: str, source: Path) -> FileInfo:
        [record] = await platform.journal(run_id)
        seen.append(record.status)
        return await upload(self, path, source)

    monkeypatch.setattr(RetryingWorkspace, "upload", noted)
    run_id = await platform.submit(shell("chatty", CHATTY))
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert seen == [StepStatus.COMPLETED]


async def test_a_file_for_which_there_is_no_room_does_not_fail_the_run(platform: Platform) -> None:
    run_id = await platform.submit(shell("chatty", CHATTY))
    await platform.write(run_id, "large", b"x" * 900_000)
    async with worker(platform.settings):
        await platform.completed(run_id)
    [_, last] = await warnings(platform, run_id)
    assert "could not be kept" in last
    assert "WORKSPACE_MAX_BYTES" in last


async def test_a_run_that_is_cancelled_ends_without_the_file_and_says_so(platform: Platform) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(shell("chatty", f"{CHATTY}; echo begun; sleep 600"))

        async def has_said_all_it_may() -> bool:
            return (await platform.lines(run_id)).count("y") == LINES

        await wait_until(has_said_all_it_may)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    assert "could not be kept: the run was cancelled" in (await warnings(platform, run_id))[-1]
    await platform.ends_whole(run_id)
