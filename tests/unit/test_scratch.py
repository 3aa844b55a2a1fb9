"""Where workers keep their files: each its own folder, and none left for ever."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backplane.sandbox_labels import SCRATCH_PREFIX as PREFIX
from worker.scratch import scratch_folder


def test_a_scratch_folder_is_there_for_its_block_and_gone_after_it(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "run").mkdir()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_it_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(tmp_path):
        raise KeyError("the worker has a fault")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_holds_is_removed_and_one_that_is_held_stays(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "file").touch()
    with scratch_folder(tmp_path) as held, scratch_folder(tmp_path):
        assert not abandoned.exists()
        assert held.exists()


def test_what_is_not_a_workers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other")
    with scratch_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"other", f"{PREFIX}file", f"{PREFIX}link"}


def test_workers_that_start_at_one_moment_do_not_take_each_others_folder_for_an_abandoned_one(tmp_path: Path) -> None:
    def start_and_end(_: int) -> bool:
        with scratch_folder(tmp_path) as folder:
            return folder.exists()

    with ThreadPoolExecutor(8) as workers:
        assert all(workers.map(start_and_end, range(400)))
    assert list(tmp_path.iterdir()) == []
