"""Where workers keep their files: each its own folder, and none left for ever."""

import asyncio
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import worker.files.scratch
from backplane.domain.sandbox_labels import SCRATCH_PREFIX as PREFIX
from backplane.workspace.files import empty
from worker.files.scratch import WAITING_MAX, FolderRemoval, scratch_folder


def test_a_scratch_folder_is_there_for_its_block_and_gone_after_it(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as scratch:
        (scratch.folder / "run").mkdir()
        assert scratch.folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_it_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(tmp_path):
        raise KeyError("the worker has a fault")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_has_locked_is_removed_and_a_locked_one_stays(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "file").touch()
    with scratch_folder(tmp_path) as held, scratch_folder(tmp_path):
        assert not abandoned.exists()
        assert held.folder.exists()


def test_a_sandbox_that_outlived_its_worker_is_ended_and_other_programs_in_its_folder_are_not(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{PREFIX}abandoned"
    abandoned.mkdir()
    sandbox = shutil.copy(shutil.which("sh") or "/bin/sh", tmp_path / "bwrap")
    waiting = [
        subprocess.Popen([program, "-c", "read -r _", "sh", str(abandoned / "run" / "files")], stdin=subprocess.PIPE)
        for program in (sandbox, "sh")
    ]
    try:
        with scratch_folder(tmp_path):
            assert waiting[0].wait(10) == -signal.SIGKILL
            assert waiting[1].poll() is None
    finally:
        for process in waiting:
            process.kill()
            process.communicate()


def test_what_is_not_a_workers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other")
    with scratch_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"other", f"{PREFIX}file", f"{PREFIX}link"}


def test_workers_that_start_at_one_moment_do_not_take_each_others_folder_for_an_abandoned_one(tmp_path: Path) -> None:
    def start_and_end(_: int) -> bool:
        with scratch_folder(tmp_path) as scratch:
            return scratch.folder.exists()

    with ThreadPoolExecutor(8) as workers:
        assert all(workers.map(start_and_end, range(400)))
    assert list(tmp_path.iterdir()) == []


async def test_a_large_folder_is_deleted_behind_the_back_of_its_run_and_nobody_waits_for_it_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(worker.files.scratch, "PATIENCE_SECONDS", 0.01)

    def empty_later(folder: int) -> None:
        go.wait()
        empty(folder)

    monkeypatch.setattr(worker.files.scratch, "empty", empty_later)
    (tmp_path / "run").mkdir()
    with scratch_folder(tmp_path) as scratch:
        await scratch.removal.remove_when_few_wait(tmp_path / "run")
    assert (tmp_path / "run").exists()
    assert scratch.folder.exists()
    with scratch_folder(tmp_path) as other:
        assert scratch.folder.exists()  # its lock is held as long as it is being deleted
    go.set()
    assert scratch.removal.wait(10)
    assert other.removal.wait(10)
    assert list(tmp_path.iterdir()) == []


async def test_a_run_waits_when_too_many_folders_wait_to_be_deleted_but_not_at_the_end_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(worker.files.scratch, "empty", lambda folder: go.wait())
    removal = FolderRemoval()
    (tmp_path / "run").mkdir()
    for _ in range(WAITING_MAX):
        async with asyncio.timeout(5):
            await removal.remove_when_few_wait(tmp_path / "run")
    one_more = asyncio.create_task(removal.remove_when_few_wait(tmp_path / "run"))
    done, _ = await asyncio.wait([one_more], timeout=0.2)
    assert not done
    removal.end()
    async with asyncio.timeout(5):
        await one_more
    go.set()
    assert removal.wait(10)
