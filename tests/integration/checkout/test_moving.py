"""A run's files on the disk of a worker: brought down, brought up, restored, deleted."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from backplane.errors import Conflict, InvalidPath, QuotaExceeded
from backplane.workspace.base import FileInfo
from backplane.workspace.paths import folders_above
from backplane.workspace.quota import Quota
from backplane.workspace.s3 import S3WorkspaceStore
from tests.integration.checkout.counted import NOTHING, QUOTA, Counting, contents, on_disk, pushed, put
from tests.servers import S3Server
from worker.files.checkout import LARGE_AT_ONCE, Changes, Checkout
from worker.files.tree import LARGE

# --- down ---


async def test_the_folder_becomes_the_workspace(checkout: Checkout, workspace: Counting) -> None:
    files = {"a": b"1", "src/main.py": b"print(1)", "src/deep/er/x": b"", "ünï 😀": b"x"}
    for path, content in files.items():
        await put(workspace, path, content)
    await checkout.pull()
    assert on_disk(checkout.folder) == files
    assert stat.S_IMODE(checkout.folder.stat().st_mode) == 0o700
    assert await checkout.changes() == NOTHING


async def test_an_empty_workspace_gives_an_empty_folder(checkout: Checkout) -> None:
    await checkout.pull()
    assert on_disk(checkout.folder) == {}
    assert await checkout.changes() == NOTHING


async def test_only_what_differs_is_downloaded(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, "same", b"same")
    await put(workspace, "other", b"before")
    await put(workspace, "gone", b"gone")
    await checkout.pull()
    workspace.downloads.clear()
    await put(workspace, "other", b"after.")
    await put(workspace, "new", b"new")
    await workspace.delete("gone")
    await checkout.pull()
    assert sorted(workspace.downloads) == ["new", "other"]
    assert on_disk(checkout.folder) == {"same": b"same", "other": b"after.", "new": b"new"}


async def test_what_was_pushed_is_not_downloaded_again(checkout: Checkout, workspace: Counting) -> None:
    await checkout.pull()
    (checkout.folder / "made").write_bytes(b"here")
    await pushed(checkout)
    await checkout.pull()
    assert workspace.downloads == []
    assert on_disk(checkout.folder) == {"made": b"here"}


async def test_a_pull_undoes_what_was_not_pushed(checkout: Checkout, workspace: Counting) -> None:
    files = {"kept": b"kept", "changed": b"before", "deleted": b"x", "folder/file": b"x", "touched": b"x"}
    for path, content in files.items():
        await put(workspace, path, content)
    await checkout.pull()
    folder = checkout.folder
    (folder / "changed").write_bytes(b"after!")
    (folder / "deleted").unlink()
    (folder / "new/empty").mkdir(parents=True)
    (folder / "new/file").write_bytes(b"x")
    (folder / "folder/file").unlink()
    (folder / "folder/file").mkdir()
    os.utime(folder / "touched", (1, 1))
    await checkout.pull()
    assert on_disk(folder) == files
    assert await checkout.changes() == NOTHING


async def test_a_change_behind_a_restored_time_is_still_seen(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, "a", b"before")
    await checkout.pull()
    file = checkout.folder / "a"
    times = file.stat()
    file.write_bytes(b"after!")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (await checkout.changes()).written == ("a",)


async def test_a_file_that_is_also_a_folder_in_the_workspace_is_named(tmp_path: Path, workspace: Counting) -> None:
    class Both(Counting):
        async def list(self, prefix: str = "") -> list[FileInfo]:
            [file] = await super().list()
            return [file, FileInfo("a/b", file.size, file.modified_at, file.etag)]

    await put(workspace, "a", b"x")
    with pytest.raises(Conflict, match="'a' is a file and a folder"):
        await Checkout(Both(workspace), QUOTA, tmp_path / "both").pull()


async def test_a_workspace_with_a_path_that_leads_out_is_not_pulled(tmp_path: Path, workspace: Counting) -> None:
    class Traversing(Counting):
        async def list(self, prefix: str = "") -> list[FileInfo]:
            [file] = await super().list()
            return [FileInfo("../../out", file.size, file.modified_at, file.etag)]

    await put(workspace, "a", b"x")
    with pytest.raises(InvalidPath):
        await Checkout(Traversing(workspace), QUOTA, tmp_path / "out" / "checkout").pull()


# --- up ---


async def test_changes_name_what_was_written_and_deleted(checkout: Checkout, workspace: Counting) -> None:
    for path in ("same", "changed", "deleted"):
        await put(workspace, path, b"before")
    await checkout.pull()
    (checkout.folder / "changed").write_bytes(b"after")
    (checkout.folder / "deleted").unlink()
    (checkout.folder / "folder").mkdir()
    (checkout.folder / "folder/new").write_bytes(b"new")
    changes = await checkout.changes()
    assert changes == Changes(written=("changed", "folder/new"), deleted=("deleted",), bytes=8)
    assert await checkout.push(changes) == ("changed", "deleted", "folder/new")
    assert await contents(workspace) == {"same": b"before", "changed": b"after", "folder/new": b"new"}
    assert await checkout.changes() == NOTHING


async def test_a_file_touched_or_rewritten_with_the_same_content_is_not_uploaded(
    checkout: Checkout, workspace: Counting
) -> None:
    await put(workspace, "touched", b"x")
    await put(workspace, "rewritten", b"x")
    await checkout.pull()
    os.utime(checkout.folder / "touched", (1, 1))
    (checkout.folder / "rewritten").unlink()
    (checkout.folder / "rewritten").write_bytes(b"x")
    assert await checkout.changes() == NOTHING
    await checkout.pull()
    assert sorted(workspace.downloads) == ["rewritten", "touched"]


async def test_a_script_made_executable_stays_so_and_is_so_on_another_worker(
    checkout: Checkout, workspace: Counting, tmp_path: Path
) -> None:
    await checkout.pull()
    (checkout.folder / "run.sh").write_bytes(b"#!/bin/sh")
    (checkout.folder / "run.sh").chmod(0o755)
    await pushed(checkout)
    await checkout.pull()
    other = Checkout(workspace, QUOTA, tmp_path / "other")
    await other.pull()
    for folder in (checkout.folder, other.folder):
        assert os.access(folder / "run.sh", os.X_OK)


async def test_a_file_may_become_a_folder_and_a_folder_a_file(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, "file", b"x")
    await put(workspace, "folder/a", b"x")
    await put(workspace, "folder/b/c", b"x")
    await checkout.pull()
    folder = checkout.folder
    (folder / "file").unlink()
    (folder / "file").mkdir()
    (folder / "file/inside").write_bytes(b"1")
    (folder / "folder/a").unlink()
    (folder / "folder/b/c").unlink()
    (folder / "folder/b").rmdir()
    (folder / "folder").rmdir()
    (folder / "folder").write_bytes(b"2")
    await pushed(checkout)
    assert await contents(workspace) == {"file/inside": b"1", "folder": b"2"}


async def test_no_two_files_arrive_at_once_in_a_folder_that_is_new(tmp_path: Path, workspace: Counting) -> None:
    made = {"", "old"}
    arriving: list[str] = []

    class MakingFolders(Counting):
        async def put(self, path: str, content: bytes) -> FileInfo:
            new = {"", *folders_above(path)} - made
            arriving.extend(new)
            assert len(arriving) == len(set(arriving)), arriving
            info = await super().put(path, content)
            made.update(new)
            return info

    await put(workspace, "old/file", b"x")
    making = Checkout(MakingFolders(workspace), QUOTA, tmp_path / "checkout")
    await making.pull()
    names = [f"{a}/{b}/{c}" for a in ("old", "new", "newer") for b in "12" for c in "xyz"] + ["top", "new/top"]
    for name in names:
        (making.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (making.folder / name).touch()
    assert await pushed(making) == tuple(sorted(names))
    assert sorted(file.path for file in await workspace.list()) == sorted([*names, "old/file"])


async def test_hard_links_become_two_files(checkout: Checkout, workspace: Counting) -> None:
    await checkout.pull()
    (checkout.folder / "a").write_bytes(b"x")
    (checkout.folder / "b").hardlink_to(checkout.folder / "a")
    await pushed(checkout)
    assert await contents(workspace) == {"a": b"x", "b": b"x"}


async def test_a_folder_without_permissions_is_still_read(checkout: Checkout, workspace: Counting) -> None:
    await checkout.pull()
    (checkout.folder / "locked").mkdir()
    (checkout.folder / "locked/file").write_bytes(b"x")
    (checkout.folder / "locked/file").chmod(0)
    (checkout.folder / "locked").chmod(0)
    checkout.folder.chmod(0)
    await pushed(checkout)
    assert await contents(workspace) == {"locked/file": b"x"}


async def test_a_large_file_changed_while_it_is_sent_is_an_error_and_sent_by_the_next_push(
    tmp_path: Path, workspace: Counting
) -> None:
    class Changing(Counting):
        async def upload(self, path: str, source: Path) -> FileInfo:
            if not self.uploads:
                with (changing.folder / "large").open("r+b") as file:
                    file.write(b"y")
            return await super().upload(path, source)

    changing = Checkout(Changing(workspace), Quota(10 * LARGE, 10, 8), tmp_path / "changing")
    await changing.pull()
    (changing.folder / "large").write_bytes(b"x" * LARGE)
    with pytest.raises(Conflict):
        await pushed(changing)
    assert await pushed(changing) == ("large",)
    assert await contents(workspace) == {"large": b"y" + b"x" * (LARGE - 1)}


async def test_a_large_file_rewritten_with_the_same_content_is_not_uploaded(
    tmp_path: Path, workspace: Counting
) -> None:
    here, there = (Checkout(workspace, Quota(10 * LARGE, 10, 8), tmp_path / name) for name in ("here", "there"))
    content = os.urandom(3 * LARGE + 1)
    await here.pull()
    (here.folder / "large").write_bytes(content)
    await pushed(here)
    await there.pull()
    for each in (here, there):
        (each.folder / "large").write_bytes(content)
        assert await each.changes() == NOTHING
        (each.folder / "large").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert (await each.changes()).written == ("large",)


async def test_only_a_few_large_files_are_sent_at_once(tmp_path: Path, workspace: Counting) -> None:
    under_way: list[str] = []
    most = 0

    class Watching(Counting):
        async def upload(self, path: str, source: Path) -> FileInfo:
            nonlocal most
            under_way.append(path)
            most = max(most, len(under_way))
            info = await super().upload(path, source)
            under_way.remove(path)
            return info

    watching = Checkout(Watching(workspace), Quota(30 * LARGE, 30, 8), tmp_path / "watching")
    await watching.pull()
    for number in range(20):
        (watching.folder / f"{number}").write_bytes(b"x" * LARGE)
    await pushed(watching)
    assert most == LARGE_AT_ONCE


async def test_an_upload_that_fails_is_pushed_by_the_next_push(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, "a", b"old")
    await checkout.pull()
    (checkout.folder / "a").write_bytes(b"new")
    changes = await checkout.changes()
    (checkout.folder / "a").unlink()
    with pytest.raises(Conflict):
        await checkout.push(changes)
    assert await contents(workspace) == {"a": b"old"}
    (checkout.folder / "a").write_bytes(b"new")
    assert await checkout.push(changes) == ("a",)
    assert await contents(workspace) == {"a": b"new"}


async def test_a_folder_that_went_missing_is_not_read_as_every_file_deleted(
    checkout: Checkout, workspace: Counting
) -> None:
    await put(workspace, "a", b"x")
    await checkout.pull()
    checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    with pytest.raises(Conflict):
        await checkout.changes()


# --- the end ---


async def test_a_cancelled_pull_can_be_repeated(tmp_path: Path, workspace: Counting) -> None:
    started = asyncio.Event()

    class Hanging(Counting):
        async def get(self, path: str) -> tuple[FileInfo, bytes]:
            got = await super().get(path)
            if not started.is_set():
                started.set()
                await asyncio.Event().wait()
            return got

    for number in range(20):
        await put(workspace, f"{number}", b"x")
    checkout = Checkout(Hanging(workspace), QUOTA, tmp_path / "checkout", parallel=4)
    pulling = asyncio.create_task(checkout.pull())
    await started.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await checkout.pull()
    assert len(on_disk(checkout.folder)) == 20
    assert os.listdir(tmp_path / "checkout" / "incoming") == []


# --- S3 ---


@pytest.mark.slow
async def test_a_thousand_files_go_up_to_s3_and_down_on_another_worker(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    store = S3WorkspaceStore(
        bucket,
        endpoint=s3_server.endpoint,
        region=s3_server.region,
        access_key=s3_server.access_key,
        secret_key=s3_server.secret_key,
    )
    quota = Quota(max_bytes=10**9, max_files=2000, max_depth=8)
    workspace = Counting(store.workspace("u", "r"))
    here = Checkout(workspace, quota, tmp_path / "here")
    await here.pull()
    for number in range(1000):
        path = here.folder / f"{number % 10}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(100))
    assert len(await pushed(here)) == 1000

    there = Checkout(workspace, quota, tmp_path / "there")
    await there.pull()
    assert on_disk(there.folder) == on_disk(here.folder)

    workspace.downloads.clear()
    workspace.uploads.clear()
    (there.folder / "0/0").unlink()
    (there.folder / "1/1").write_bytes(os.urandom(9 * 1024**2))  # in parts
    assert await pushed(there) == ("0/0", "1/1")
    await there.pull()
    assert workspace.downloads == []
    await here.pull()
    assert workspace.uploads == workspace.downloads == ["1/1"]
    assert on_disk(there.folder) == on_disk(here.folder)
    await store.close()


# --- the logs of steps ---


async def test_logs_of_steps_stay_in_the_workspace(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, ".output/a.log", b"log")
    await put(workspace, ".outputs", b"1")
    await put(workspace, "b/.output/c", b"2")
    await checkout.pull()
    assert on_disk(checkout.folder) == {".outputs": b"1", "b/.output/c": b"2"}
    assert await checkout.changes() == NOTHING


async def test_a_command_can_neither_change_nor_delete_them(checkout: Checkout, workspace: Counting) -> None:
    await put(workspace, ".output/a.log", b"log")
    await checkout.pull()
    (checkout.folder / ".output").mkdir()
    (checkout.folder / ".output/a.log").write_bytes(b"forged")
    (checkout.folder / ".output/link").symlink_to("/etc/passwd")
    (checkout.folder / "made").write_bytes(b"here")
    assert await pushed(checkout) == ("made",)
    assert await contents(workspace) == {".output/a.log": b"log", "made": b"here"}
    await checkout.pull()
    assert on_disk(checkout.folder) == {"made": b"here"}


async def test_they_count_for_the_quota(workspace: Counting, tmp_path: Path) -> None:
    await put(workspace, ".output/a.log", b"x" * 60)
    checkout = Checkout(workspace, Quota(max_bytes=100, max_files=2, max_depth=8), tmp_path / "checkout")
    await checkout.pull()
    (checkout.folder / "made").write_bytes(b"x" * 40)
    await pushed(checkout)
    (checkout.folder / "made").write_bytes(b"x" * 41)
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_BYTES"):
        await checkout.changes()
    (checkout.folder / "made").write_bytes(b"")
    (checkout.folder / "one more").write_bytes(b"")
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_FILES"):
        await checkout.changes()
