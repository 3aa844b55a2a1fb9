"""The limits of a step do not depend on what they limit: whatever shape a tree has, too much of it ends the command."""

import asyncio
import ctypes
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.contracts.sandbox.conftest import (
    Run,
    bubblewrap,
    folder,
    kubeconfig,
    local_sandbox,
    namespace,
    nearby,
    run,
    sandbox_image,
)
from tests.contracts.sandbox.sandboxes import LIMITS, MIB, Running
from tests.waiting import wait_until
from worker.sandbox.base import Ending, Sandbox
from worker.sandbox.kubernetes.pod.disk import (
    BLOCK_BYTES,
    FIRST_LOOK_SECONDS,
    MAX_DEPTH,
    PAUSE_MAX_SECONDS,
    Measured,
    Pace,
    Space,
    measure,
)
from worker.sandbox.kubernetes.pod.machine import clear, walk
from worker.sandbox.local import disk
from worker.sandbox.local.bubblewrap import crowded_place

__all__ = ["bubblewrap", "folder", "kubeconfig", "local_sandbox", "namespace", "nearby", "run", "sandbox_image"]

OVERSHOOT_BYTES = 300 * MIB
"""What a command that writes 100 MiB a second writes in a look, a pause as long, and a kill, on a busy machine."""
FALLOC_FL_KEEP_SIZE = 1


def measured(root: Path, *, most_bytes: int = 10**9, most_files: int = 10**6) -> Measured:
    return measure(str(root), most_bytes, most_files)


def nest(root: Path, *names: str) -> int:
    """Make folders inside each other, of any depth and any length of path, and give the last one's descriptor."""
    at = os.open(root, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    return at


def write_at(at: int, name: str, size: int) -> None:
    with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at), "wb") as file:
        file.write(b"x" * size)


# --- what a look sees ---


def small_files(root: Path) -> None:
    for number in range(10):
        (root / str(number)).write_bytes(b"x" * 100)


def one_sparse_file(root: Path) -> None:
    with open(root / "sparse", "wb") as file:
        file.truncate(1000)


def hard_links(root: Path) -> None:
    (root / "first").write_bytes(b"x" * 100)
    for number in range(9):
        os.link(root / "first", root / str(number))


def one_deep_below_long_names(root: Path) -> None:
    at = nest(root, *("n" * 200 for _ in range(40)))
    write_at(at, "deep", 1000)
    os.close(at)


def one_in_a_folder_that_nobody_may_read(root: Path) -> None:
    (root / "closed").mkdir()
    (root / "closed" / "file").write_bytes(b"x" * 1000)
    (root / "closed").chmod(0)


@pytest.mark.parametrize(
    "shape",
    [small_files, one_sparse_file, hard_links, one_deep_below_long_names, one_in_a_folder_that_nobody_may_read],
)
def test_a_thousand_bytes_are_seen_in_every_shape(folder: Path, shape: Callable[[Path], None]) -> None:
    shape(folder)
    assert measured(folder, most_bytes=1000)[0::3] == (1000, "")
    assert measured(folder, most_bytes=999).over == "more than 999 bytes"


def reserve(path: Path, size: int) -> None:
    """Space on the disk for a file that stays empty."""
    with open(path, "wb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = file.fileno(), FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)
        if libc.fallocate(*arguments) != 0:
            pytest.skip("this file system reserves nothing")


def test_space_that_is_reserved_behind_the_end_of_a_file_is_seen(folder: Path) -> None:
    reserve(folder / "reserved", 8 * MIB)
    assert measured(folder).size == 0
    assert measured(folder, most_bytes=8 * MIB).over == ""
    assert measured(folder, most_bytes=7 * MIB).over == f"more than {7 * MIB:,} bytes"


def test_many_small_files_count_by_their_length_and_not_by_the_blocks_they_take(folder: Path) -> None:
    for number in range(200):
        (folder / str(number)).write_bytes(b"x")
    assert measured(folder, most_bytes=200).over == ""


@pytest.mark.parametrize("removed", [False, True], ids=["kept", "removed"])
def test_long_names_count_by_the_blocks_that_their_folders_take_also_when_they_are_removed(
    folder: Path, removed: bool
) -> None:
    taken = 0
    for number in range(2):
        inner = folder / str(number)
        inner.mkdir()
        names = [inner / f"{name:04}{'n' * 246}" for name in range(400)]
        for name in names:
            name.touch()
        if removed:
            for name in names:
                name.unlink()
        taken += inner.stat().st_blocks * 512 - BLOCK_BYTES
    if taken < BLOCK_BYTES:
        pytest.skip("folders take no blocks on this file system")
    assert measured(folder).size == 0
    assert measured(folder, most_bytes=taken).over == ""
    assert measured(folder, most_bytes=taken - 1).over == f"more than {taken - 1:,} bytes"


def test_empty_files_leave_no_room_for_a_file_that_takes_more_than_its_length(folder: Path) -> None:
    for number in range(300):
        (folder / str(number)).touch()
    reserve(folder / "reserved", MIB)
    assert measured(folder, most_bytes=MIB // 2).over == f"more than {MIB // 2:,} bytes"


def test_files_and_folders_are_counted_up_to_their_limit(folder: Path) -> None:
    for number in range(5):
        (folder / f"folder-{number}").mkdir()
        (folder / f"file-{number}").touch()
    assert measured(folder, most_files=5) == (0, 5, 5, "")
    assert measured(folder, most_files=4).over == "more than 4 files or folders"


def test_folders_inside_each_other_are_counted_up_to_their_limit(folder: Path) -> None:
    at = nest(folder, *("d" for _ in range(MAX_DEPTH)))
    assert measured(folder).over == ""
    os.mkdir("one-more", dir_fd=at)
    os.close(at)
    assert measured(folder).over == f"more than {MAX_DEPTH} folders inside each other"


def test_a_symbolic_link_is_a_file_and_leads_nowhere(folder: Path) -> None:
    (folder / "root").symlink_to("/")
    (folder / "loop").symlink_to(".")
    assert (measured(folder).files, measured(folder).folders) == (2, 0)


def test_no_descriptor_stays_open_after_a_look(folder: Path) -> None:
    os.close(nest(folder, *("d" for _ in range(MAX_DEPTH + 1))))
    before = os.listdir("/proc/self/fd")
    measured(folder)
    measured(folder / "not-there")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_tree_whose_folders_change_their_names_all_the_time_is_measured(folder: Path) -> None:
    """The path of every file changes while it is looked for; none of them moves into another folder."""
    for number in range(20):
        (folder / f"a{number}" / "b" / "c").mkdir(parents=True)
        (folder / f"a{number}" / "b" / "c" / "file").write_bytes(b"x" * 100)
    done = threading.Event()

    def rename() -> None:
        while not done.is_set():
            for number in range(20):
                b, other = folder / f"a{number}" / "b" / "c", folder / f"a{number}" / "b" / "d"
                b.rename(other)
                other.rename(b)

    renaming = threading.Thread(target=rename)
    renaming.start()
    try:
        most = max(measured(folder).size for _ in range(50))
    finally:
        done.set()
        renaming.join()
    assert most == 2000


def test_a_look_at_a_tree_costs_the_same_for_each_folder_however_deep_it_lies(folder: Path) -> None:
    """Counted in opened folders: one for each, where paths would need a hundred for each of the deep ones."""
    for chain in range(3):
        os.close(nest(folder, f"chain-{chain}", *("d" for _ in range(200))))
    opened = 0
    real_open = os.open

    def counting(*arguments: object, **keywords: object) -> int:
        nonlocal opened
        opened += 1
        return real_open(*arguments, **keywords)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", counting)
        assert measured(folder).folders == 3 * 201
    assert opened == 3 * 201 + 1


def test_a_pod_clears_and_lists_what_no_path_can_name(folder: Path) -> None:
    one_deep_below_long_names(folder)
    os.close(nest(folder, *("d" for _ in range(1500))))
    (folder / "closed").mkdir(mode=0)
    (shallow := folder / "shallow").mkdir()
    one_deep_below_long_names(shallow)
    assert [len(path) > 8000 for path, _ in walk(str(shallow))] == [True]
    clear(str(folder))
    assert os.listdir(folder) == []


# --- when it looks ---


@pytest.mark.parametrize("lasted", [0.001, 0.1, 1.0, 60.0])
def test_the_pause_between_two_looks_has_an_upper_limit_however_long_a_look_takes(lasted: float) -> None:
    pace = Pace(0.0, 0, 100)
    assert not pace.is_due(FIRST_LOOK_SECONDS - 0.01, 0)
    assert pace.is_due(FIRST_LOOK_SECONDS, 0)
    pace.looked(1.0, 1.0 + lasted, 0, 100)
    assert pace.is_due(1.0 + lasted + PAUSE_MAX_SECONDS, 0)


def test_growth_of_the_file_system_by_what_is_left_makes_a_look_due_at_once() -> None:
    pace = Pace(0.0, 1000, 100)
    assert not pace.is_due(0.05, 1099)
    assert pace.is_due(0.05, 1100)
    pace.looked(1.0, 1.001, 1100, 50)
    assert not pace.is_due(1.1, 1149)
    assert pace.is_due(1.1, 1150)


def test_looks_for_growth_leave_half_of_the_time_free() -> None:
    pace = Pace(0.0, 0, 100)
    pace.looked(1.0, 1.5, 0, 0)
    assert not pace.is_due(1.9, 10**9)
    assert pace.is_due(2.0, 10**9)


# --- for whom it looks ---


class SlowTrees:
    """Looks at folders that are called `slow-…` do not end before the test does."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.test_is_over = threading.Event()

    def measure(self, root: str, most_bytes: int, most_files: int, stopped: Callable[[], bool]) -> Measured:
        name = os.path.basename(root)
        self.begun.append(name)
        if name.startswith("slow-"):
            assert self.test_is_over.wait(60)
            return Measured(0, 0, 0, "")
        return measure(root, most_bytes, most_files, stopped)


@pytest.fixture
def slow_trees(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowTrees]:
    trees = SlowTrees()
    monkeypatch.setattr(disk, "measure", trees.measure)
    yield trees
    trees.test_is_over.set()


@asynccontextmanager
async def watching(watch: disk.DiskWatch, folders: Mapping[Path, str]) -> AsyncIterator[None]:
    """Commands in these folders, of these users."""
    watches = [asyncio.create_task(watch.full(user, path, LIMITS, disk.Unseen())) for path, user in folders.items()]
    try:
        yield
    finally:
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def slow_folders(folder: Path, users: Sequence[str]) -> dict[Path, str]:
    folders = {folder / f"slow-{number}": user for number, user in enumerate(users)}
    for path in folders:
        path.mkdir()
    return folders


def full_folder(folder: Path) -> Path:
    (full := folder / "full").mkdir()
    with open(full / "big", "wb") as file:
        file.truncate(LIMITS.disk_bytes + 1)
    return full


async def test_the_slow_trees_of_one_user_delay_no_look_at_anothers_folder(slow_trees: SlowTrees, folder: Path) -> None:
    watch = disk.DiskWatch()
    async with watching(watch, slow_folders(folder, ["hostile"] * 5)):
        await wait_until(lambda: slow_trees.begun)
        async with asyncio.timeout(10):
            assert "more than" in await watch.full("other", full_folder(folder), LIMITS, disk.Unseen())
        assert len(slow_trees.begun) == 2, "one look at a slow tree, and one at the full folder"


@pytest.mark.parametrize("space", [Space(10**12, 10**12, 10**13), Space(0, 0, 10**13)], ids=["growth", "low disk"])
async def test_a_look_that_growth_or_a_full_disk_makes_due_waits_for_no_slow_tree(
    slow_trees: SlowTrees, folder: Path, monkeypatch: pytest.MonkeyPatch, space: Space
) -> None:
    full, asked = full_folder(folder), 0

    def space_of_disk(path: Path) -> Space:
        """What changes has changed after the look at the full folder has begun to wait for its place."""
        nonlocal asked
        asked += path == full
        return space if asked > 10 else Space(0, 10**13, 10**13)

    monkeypatch.setattr(disk, "_space", space_of_disk)
    watch = disk.DiskWatch()
    async with watching(watch, slow_folders(folder, ["one", "two"])):
        await wait_until(lambda: len(slow_trees.begun) == 2)
        async with asyncio.timeout(10):
            assert "more than" in await watch.full("other", full, LIMITS, disk.Unseen())
        assert asked > 10


# --- in a sandbox ---

WRITE = """
import os, sys, time
def write(file, mib):
    for _ in range(mib):
        file.write(b"x" * 1048576)
        file.flush()
        time.sleep(0.01)
"""
LARGE_TREE = (
    WRITE
    + """
for chain in range(120):
    os.makedirs(f"{chain}/" + "/".join("d" * 100))
for number in range(int(sys.argv[1])):
    with open(f"big-{number}", "wb") as file:
        write(file, 8)
print("wrote all")
"""
)


def bytes_in(root: Path) -> int:
    return measured(root).size


@pytest.mark.slow
async def test_a_tree_of_many_deep_folders_delays_no_look(nearby: Sandbox, run: Run, folder: Path) -> None:
    outcome, said = await run(nearby, "python3", "-c", LARGE_TREE, "75", files=13_000)
    assert (outcome.ending, outcome.exit_code, said) == (Ending.DISK, 137, "")
    assert "more than" in outcome.detail
    assert bytes_in(folder) < LIMITS.disk_bytes + OVERSHOOT_BYTES


@pytest.mark.slow
async def test_a_tree_of_many_deep_folders_that_is_just_below_its_limit_is_fine(
    nearby: Sandbox, run: Run, folder: Path
) -> None:
    outcome, said = await run(nearby, "python3", "-c", LARGE_TREE, "4", files=13_000)
    assert (outcome.ending, outcome.exit_code, said) == (Ending.EXITED, 0, "wrote all\n")
    assert bytes_in(folder) == LIMITS.disk_bytes


DELETED = (
    WRITE
    + """
files = []
for number in range(int(sys.argv[1])):
    files.append(open(f"big-{number}", "wb"))
    os.unlink(f"big-{number}")
    write(files[-1], 8)
time.sleep(float(sys.argv[2]))
"""
)


@pytest.mark.slow
async def test_files_that_are_deleted_and_open_count_too(local_sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(local_sandbox, "python3", "-c", DELETED, "75", "60")
    assert (outcome.ending, outcome.exit_code) == (Ending.DISK, 137)
    assert "deleted but open" in outcome.detail
    assert outcome.duration_seconds < 45  # It would have slept for 60.


async def test_files_that_are_deleted_and_open_are_fine_below_the_limit(local_sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(local_sandbox, "python3", "-c", DELETED, "3", "0.3")
    assert (outcome.ending, outcome.exit_code) == (Ending.EXITED, 0)


RESERVED = """
import ctypes, os, time
file = os.open("reserved", os.O_RDWR | os.O_CREAT)
print(ctypes.CDLL(None).fallocate(file, 1, ctypes.c_int64(0), ctypes.c_int64(2**27)), flush=True)
time.sleep(60)
"""


async def test_space_that_is_reserved_and_not_written_ends_the_command(local_sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(local_sandbox, "python3", "-c", RESERVED)
    if said != "0\n":
        pytest.skip("this file system reserves nothing")
    assert (outcome.ending, outcome.exit_code) == (Ending.DISK, 137)
    assert outcome.duration_seconds < 45  # It would have slept for 60.


async def test_empty_files_in_a_place_in_memory_are_counted(bubblewrap: Sandbox, run: Run) -> None:
    script = """
import sys, time
for number in range(int(sys.argv[1])):
    open(f"{sys.argv[2]}/{number}", "w").close()
time.sleep(float(sys.argv[3]))
"""
    for place in ("/tmp", "/dev/shm"):
        outcome, _ = await run(bubblewrap, "python3", "-c", script, "1100", place, "10")
        assert (outcome.ending, outcome.detail) == (Ending.DISK, f"{place} holds more than 1,000 files")
    outcome, _ = await run(bubblewrap, "python3", "-c", script, "900", "/tmp", "0.4")
    assert outcome.ending is Ending.EXITED


def test_the_machines_own_files_are_not_counted_for_a_sandbox_whose_walls_do_not_stand_yet() -> None:
    """Its first process sees them until then, as this one does: a step was ended for them on a busy machine."""
    assert os.statvfs("/tmp").f_files > os.statvfs("/tmp").f_ffree
    assert crowded_place(os.getpid(), 0) == ""


# --- when the machine's disk runs full ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", f"test-{uuid.uuid4().hex}", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


FILL = (
    WRITE
    + """
with open("big", "wb") as file:
    write(file, int(sys.argv[1]))
print("done", flush=True)
time.sleep(float(sys.argv[2]))
"""
)


@pytest.mark.slow
async def test_before_the_disk_is_full_the_command_that_has_added_most_is_ended_and_no_other(
    bubblewrap: Sandbox, small_disk: Path
) -> None:
    for name in ("greedy", "modest"):
        (small_disk / name).mkdir()
    modest = Running(bubblewrap, small_disk / "modest", "python3", "-c", FILL, "4", "4", disk_bytes=1024 * MIB)
    await modest.says(b"done\n")
    greedy = Running(bubblewrap, small_disk / "greedy", "python3", "-c", FILL, "57", "60", disk_bytes=1024 * MIB)
    outcome, _ = await greedy.ends()
    shutil.rmtree(small_disk / "greedy")
    assert (outcome.ending, outcome.exit_code) == (Ending.DISK, 137)
    assert "this command has added most" in outcome.detail
    outcome, _ = await modest.ends()
    assert (outcome.ending, outcome.exit_code) == (Ending.EXITED, 0)


@pytest.mark.slow
async def test_a_disk_that_others_fill_ends_no_command_that_adds_nothing(bubblewrap: Sandbox, small_disk: Path) -> None:
    (small_disk / "innocent").mkdir()
    innocent = Running(bubblewrap, small_disk / "innocent", "sh", "-c", "echo on; sleep 2", disk_bytes=1024 * MIB)
    await innocent.says(b"on\n")
    await asyncio.to_thread((small_disk / "others").write_bytes, b"x" * (62 * MIB))
    outcome, _ = await innocent.ends()
    assert (outcome.ending, outcome.exit_code) == (Ending.EXITED, 0)
