"""What hostile code may have made of a checkout: names, links, devices, depth and size that a workspace cannot hold."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from backplane.errors import Conflict, InvalidPath, QuotaExceeded
from backplane.workspace.base import FileInfo
from tests.integration.checkout.counted import QUOTA, Counting, contents, on_disk, put
from worker.files.checkout import Checkout
from worker.files.scratch import remove_folder

# --- what a workspace cannot hold ---


def make_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def make_folder_symlink(path: Path) -> None:
    path.symlink_to("/etc")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_symlink, "symbolic link"),
        (make_dangling_symlink, "symbolic link"),
        (make_folder_symlink, "symbolic link"),
        (os.mkfifo, "pipe"),
        (make_socket, "socket"),
        (make_device, "device"),
    ],
)
async def test_only_plain_files_are_taken_and_a_pull_clears_the_rest(
    checkout: Checkout, workspace: Counting, make: Callable[[Path], None], kind: str
) -> None:
    await put(workspace, "file", b"x")
    await checkout.pull()
    (checkout.folder / "file").unlink()
    make(checkout.folder / "file")
    with pytest.raises(InvalidPath, match=f"'file' is a {kind}"):
        await checkout.changes()
    await checkout.pull()
    assert on_disk(checkout.folder) == {"file": b"x"}


@pytest.mark.parametrize("name", [b"not-utf-8-\xff", b"back\\slash", b"line\nfeed", b"bell\x07"])
async def test_a_name_that_a_bucket_cannot_hold_is_refused(checkout: Checkout, name: bytes) -> None:
    await checkout.pull()
    (checkout.folder / os.fsdecode(name)).touch()
    with pytest.raises(InvalidPath):
        await checkout.changes()
    await checkout.pull()
    assert on_disk(checkout.folder) == {}


def make_deep(folder: Path, depth: int) -> None:
    """Folders in folders, deeper than any path can name."""
    above = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("folder", dir_fd=above)
        inner = os.open("folder", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=above))
    os.close(above)


async def test_a_folder_a_thousand_deep_is_refused_and_cleared(checkout: Checkout) -> None:
    await checkout.pull()
    make_deep(checkout.folder, 1000)
    with pytest.raises(InvalidPath, match="folders deep"):
        await checkout.changes()
    await checkout.pull()
    assert on_disk(checkout.folder) == {}


async def test_files_are_counted_up_to_the_quota_and_not_over_it(checkout: Checkout) -> None:
    await checkout.pull()
    for number in range(QUOTA.max_files):
        (checkout.folder / f"{number}").touch()
    assert len((await checkout.changes()).written) == QUOTA.max_files
    (checkout.folder / "one-more").touch()
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_FILES"):
        await checkout.changes()


async def test_folders_are_counted_like_files(checkout: Checkout) -> None:
    await checkout.pull()
    for number in range(QUOTA.max_files + 1):
        (checkout.folder / f"{number}").mkdir()
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_FILES"):
        await checkout.changes()


async def test_bytes_are_counted_up_to_the_quota_and_not_over_it(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, "old", b"x" * 400_000)
    await checkout.pull()
    (checkout.folder / "new").write_bytes(b"x" * 600_000)
    assert (await checkout.changes()).bytes == 600_000
    with (checkout.folder / "new").open("ab") as file:
        file.write(b"x")
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_BYTES"):
        await checkout.changes()


async def test_a_file_with_holes_counts_with_its_whole_size(checkout: Checkout) -> None:
    await checkout.pull()
    with (checkout.folder / "sparse").open("wb") as file:
        file.truncate(1024**4)
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_BYTES"):
        await checkout.changes()


# --- hostile ---


async def test_a_folder_swapped_for_a_link_is_not_written_through(
    checkout: Checkout, workspace: Counting, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    await put(workspace, "folder/file", b"before")
    await checkout.pull()
    (checkout.folder / "folder").rename(checkout.folder / "aside")
    (checkout.folder / "folder").symlink_to(outside)
    await put(workspace, "folder/file", b"after")
    await checkout.pull()
    assert (outside / "file").read_bytes() == b"precious"
    assert os.listdir(outside) == ["file"]
    assert on_disk(checkout.folder) == {"folder/file": b"after"}


async def test_a_link_put_in_place_while_files_arrive_is_not_written_through(
    tmp_path: Path, workspace: Counting
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    class Swapping(Counting):
        async def get(self, path: str) -> tuple[FileInfo, bytes]:
            (swapped.folder / "folder").symlink_to(outside)
            return await super().get(path)

    await put(workspace, "folder/file", b"x")
    swapped = Checkout(Swapping(workspace), QUOTA, tmp_path / "checkout")
    with pytest.raises(Conflict):
        await swapped.pull()
    assert os.listdir(outside) == []


async def test_a_file_swapped_for_a_link_after_the_scan_is_not_sent(
    checkout: Checkout, workspace: Counting, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    await checkout.pull()
    (checkout.folder / "folder").mkdir()
    for name in ("file", "folder/file"):
        (checkout.folder / name).write_bytes(b"x")
    changes = await checkout.changes()
    (checkout.folder / "file").unlink()
    (checkout.folder / "file").symlink_to(tmp_path / "secret")
    (checkout.folder / "folder").rename(checkout.folder / "aside")
    (checkout.folder / "folder").symlink_to(tmp_path)
    with pytest.raises((InvalidPath, Conflict)):
        await checkout.push(changes)
    assert b"secret" not in (await contents(workspace)).values()


async def test_the_checkout_itself_swapped_for_a_link_is_replaced(
    checkout: Checkout, workspace: Counting, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    await put(workspace, "file", b"x")
    await checkout.pull()
    checkout.folder.rename(tmp_path / "aside")
    checkout.folder.symlink_to(outside)
    with pytest.raises(Conflict):
        await checkout.changes()
    await checkout.pull()
    assert os.listdir(outside) == []
    assert not checkout.folder.is_symlink()
    assert on_disk(checkout.folder) == {"file": b"x"}


async def test_a_checkout_is_deleted_whatever_was_left_in_it(
    checkout: Checkout, workspace: Counting, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    await put(workspace, "file", b"x")
    await checkout.pull()
    make_deep(checkout.folder, 1500)
    make_folder_symlink(checkout.folder / "link")
    (checkout.folder / "outside").symlink_to(outside)
    os.mkfifo(checkout.folder / "pipe")
    (checkout.folder / "locked/inner").mkdir(parents=True)
    (checkout.folder / "locked/inner/file").touch(0)
    (checkout.folder / "locked/inner").chmod(0)
    (checkout.folder / "locked").chmod(0)
    remove_folder(checkout.base)
    remove_folder(checkout.base)
    assert not (tmp_path / "checkout").exists()
    assert (outside / "file").read_bytes() == b"precious"
    assert await contents(workspace) == {"file": b"x"}
