"""What every workspace does alike with its files."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backplane.errors import Conflict, InvalidPath, NotFound, QuotaExceeded
from backplane.workspace.base import Workspace, WorkspaceStore
from backplane.workspace.quota import Quota, Room, ensure_room, limited
from backplane.workspace.s3 import PART
from backplane.workspace.transfer import LARGE
from tests.contracts.workspace.workspaces import MIB, chunks, paths, read

QUOTA = Quota(max_bytes=100, max_files=3, max_depth=4)


# --- files ---


async def test_what_is_written_is_read_back(workspace: Workspace) -> None:
    info = await workspace.write("src/main.py", chunks(b"print", b"(1)"))
    assert (info.path, info.size) == ("src/main.py", 8)
    assert await read(workspace, "src/main.py") == b"print(1)"


async def test_a_file_can_be_empty(workspace: Workspace, tmp_path: Path) -> None:
    assert (await workspace.write("empty", chunks())).size == 0
    assert await read(workspace, "empty") == b""
    await workspace.download("empty", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


async def test_a_small_file_is_put_and_got_whole(workspace: Workspace) -> None:
    put = await workspace.put("folder/file", b"one")
    got, content = await workspace.get("folder/file")
    assert (content, got.size, got.etag) == (b"one", 3, put.etag)
    [listed] = await workspace.list()
    assert (listed.path, listed.etag) == ("folder/file", put.etag)


async def test_a_put_takes_the_place_of_what_was_there(workspace: Workspace) -> None:
    first = await workspace.put("file", b"one")
    second = await workspace.put("file", b"")
    assert (await workspace.get("file"))[1] == b""
    assert first.etag != second.etag


async def test_what_is_not_there_cannot_be_got(workspace: Workspace) -> None:
    with pytest.raises(NotFound):
        await workspace.get("none")


async def test_a_file_larger_than_one_part_keeps_every_byte(workspace: Workspace) -> None:
    content = os.urandom(2 * PART + 12_345)
    pieces = [content[at : at + 300_000] for at in range(0, len(content), 300_000)]
    info = await workspace.write("large", chunks(*pieces))
    assert info.size == len(content)
    assert info == await workspace.stat("large")
    assert await read(workspace, "large") == content


async def test_stat_and_list_say_the_same(workspace: Workspace) -> None:
    written = await workspace.write("a", chunks(b"one"))
    found = await workspace.stat("a")
    [listed] = await workspace.list()
    assert (found.size, found.etag) == (listed.size, listed.etag) == (written.size, written.etag)
    assert abs(listed.modified_at - datetime.now(UTC)) < timedelta(minutes=5)


async def test_the_etag_changes_with_the_content(workspace: Workspace) -> None:
    before = await workspace.write("a", chunks(b"one"))
    after = await workspace.write("a", chunks(b"two"))
    assert before.etag != after.etag


async def test_the_list_is_sorted_and_complete(workspace: Workspace) -> None:
    names = ["b/2", "b/10", "a", "b.txt", "ü", "b/c/d"]
    for name in names:
        await workspace.write(name, chunks(b"x"))
    assert await paths(workspace) == sorted(names)


async def test_a_list_can_be_of_one_folder_or_one_file(workspace: Workspace) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "c"):
        await workspace.write(name, chunks(b"x"))
    assert await paths(workspace, "a") == ["a/1", "a/b/2"]
    assert await paths(workspace, "c") == ["c"]
    assert await paths(workspace, "nothing") == []


async def test_an_empty_workspace_lists_nothing(workspace: Workspace) -> None:
    assert await workspace.list() == []


@pytest.mark.parametrize("name", ["a%20b #?&.txt", "ünï/文件😀", "*[x]{y}~^|'\"`", " lead", "...", "e\u0301"])
async def test_unusual_names_come_back_as_they_are(workspace: Workspace, name: str) -> None:
    await workspace.write(name, chunks(b"content"))
    assert await paths(workspace) == [name]
    assert await read(workspace, name) == b"content"
    await workspace.delete(name)
    assert await workspace.list() == []


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (2, 5, b"234"),
        (0, 3, b"012"),
        (7, None, b"789"),
        (7, 100, b"789"),
        (10, None, b""),
        (99, None, b""),
        (99, 100, b""),
        (4, 4, b""),
    ],
)
async def test_a_range_is_read(workspace: Workspace, start: int, end: int | None, expected: bytes) -> None:
    await workspace.write("digits", chunks(b"0123456789"))
    assert await read(workspace, "digits", start, end) == expected


async def test_a_reader_may_stop_in_the_middle(workspace: Workspace) -> None:
    await workspace.write("large", chunks(b"x" * 3 * MIB))
    reading = workspace.read("large")
    assert await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert (await workspace.stat("large")).size == 3 * MIB


async def test_what_is_not_there_is_not_found(workspace: Workspace, tmp_path: Path) -> None:
    await workspace.write("folder/file", chunks(b"x"))
    for name in ("nothing", "folder", "folder/nothing", "folder/file/below"):
        with pytest.raises(NotFound):
            await workspace.stat(name)
        with pytest.raises(NotFound):
            await read(workspace, name)
        with pytest.raises(NotFound):
            await workspace.delete(name)
        with pytest.raises(NotFound):
            await workspace.download(name, tmp_path / "copy")
    assert await read(workspace, "folder/file") == b"x"


async def test_a_deleted_file_is_gone_with_its_folder(workspace: Workspace) -> None:
    await workspace.write("a/b/c", chunks(b"x"))
    await workspace.delete("a/b/c")
    assert await workspace.list() == []
    await workspace.write("a", chunks(b"now a file"))
    assert await paths(workspace) == ["a"]


@pytest.mark.parametrize("size", [0, 5, 3 * MIB])
async def test_a_file_goes_up_from_the_disk_and_down_again(workspace: Workspace, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    up = await workspace.upload("a", tmp_path / "source")
    down = await workspace.download("a", tmp_path / "target")
    assert (up.size, up.etag) == (down.size, down.etag)
    assert (tmp_path / "target").read_bytes() == content


async def test_a_digest_that_comes_with_a_download_is_that_of_what_arrived(
    workspace: Workspace, tmp_path: Path
) -> None:
    for size in (5, LARGE - 1, LARGE, 9 * MIB + 1):
        content = os.urandom(size)
        await workspace.write("a", chunks(content))
        down = await workspace.download("a", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == content
        assert down.digest in (None, hashlib.blake2b(content).digest())


async def test_a_large_download_to_where_nothing_can_be_written_is_an_error(
    workspace: Workspace, tmp_path: Path
) -> None:
    await workspace.write("a", chunks(b"x" * 9 * MIB))
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(InvalidPath):
        await workspace.download("a", tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


async def test_a_download_replaces_a_longer_file(workspace: Workspace, tmp_path: Path) -> None:
    await workspace.write("a", chunks(b"short"))
    (tmp_path / "target").write_bytes(b"much longer than that")
    await workspace.download("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"short"


async def test_runs_do_not_see_each_others_files(store: WorkspaceStore) -> None:
    await store.workspace("user-1", "run-1").write("a", chunks(b"x"))
    for user, run in (("user-1", "run-2"), ("user-2", "run-1"), ("user-1", "run-10")):
        assert await store.workspace(user, run).list() == []


# --- whole or not at all ---


@pytest.mark.parametrize("size", [MIB, 2 * PART])
async def test_a_write_whose_chunks_fail_leaves_the_file_as_it_was(workspace: Workspace, size: int) -> None:
    class ClientGone(Exception):
        pass

    async def breaking_off() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield b"x" * MIB
        raise ClientGone

    await workspace.write("a", chunks(b"old"))
    for name in ("a", "new"):
        with pytest.raises(ClientGone):
            await workspace.write(name, breaking_off())
    assert await read(workspace, "a") == b"old"
    assert await paths(workspace) == ["a"]


async def test_a_file_is_visible_whole_or_not_at_all(workspace: Workspace) -> None:
    half, go_on = asyncio.Event(), asyncio.Event()

    async def two_halves() -> AsyncIterator[bytes]:
        yield b"new " * PART
        half.set()
        await go_on.wait()
        yield b"content"

    await workspace.write("a", chunks(b"old"))
    writing = asyncio.create_task(workspace.write("a", two_halves()))
    await half.wait()
    assert await read(workspace, "a") == b"old"
    assert await paths(workspace) == ["a"]
    go_on.set()
    info = await writing
    assert info.size == (await workspace.stat("a")).size == 4 * PART + 7


async def test_a_cancelled_write_leaves_the_file_as_it_was(workspace: Workspace) -> None:
    sent = asyncio.Event()

    async def never_ending() -> AsyncIterator[bytes]:
        yield b"x" * 2 * PART
        sent.set()
        await asyncio.Event().wait()

    await workspace.write("a", chunks(b"old"))
    writing = asyncio.create_task(workspace.write("a", never_ending()))
    await sent.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await read(workspace, "a") == b"old"


async def test_the_last_of_many_writers_at_once_is_whole(workspace: Workspace) -> None:
    await asyncio.gather(*(workspace.write("a", chunks(bytes([n]) * MIB)) for n in range(8)))
    content = await read(workspace, "a")
    assert len(content) == MIB
    assert len(set(content)) == 1


# --- room ---


async def test_room_is_what_the_other_files_leave(workspace: Workspace) -> None:
    assert await ensure_room(workspace, QUOTA, "a", None) == Room(100, 0)
    await workspace.write("a", chunks(b"x" * 40))
    assert await ensure_room(workspace, QUOTA, "b", 60) == Room(60, 0)
    assert await ensure_room(workspace, QUOTA, "a", 100) == Room(100, 40)


async def test_bytes_over_the_quota_are_refused_before_they_are_sent(workspace: Workspace) -> None:
    await workspace.write("a", chunks(b"x" * 40))
    for path, size in (("b", 61), ("a", 101), ("b", 5 * 1024**3)):
        with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_BYTES"):
            await ensure_room(workspace, QUOTA, path, size)


async def test_one_file_over_the_quota_is_refused_and_an_old_one_is_not(workspace: Workspace) -> None:
    for name in "abc":
        await ensure_room(workspace, QUOTA, name, 1)
        await workspace.write(name, chunks(b"x"))
    await ensure_room(workspace, QUOTA, "c", 1)
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_FILES"):
        await ensure_room(workspace, QUOTA, "d", 1)


async def test_more_bytes_than_announced_stop_the_write_and_keep_the_old_file(workspace: Workspace) -> None:
    await workspace.write("a", chunks(b"old"))
    room = (await ensure_room(workspace, QUOTA, "a", None)).bytes
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_BYTES"):
        await workspace.write("a", limited(chunks(b"x" * 60, b"x" * 41), room))
    assert await read(workspace, "a") == b"old"
    assert (await workspace.write("a", limited(chunks(b"x" * 60, b"x" * 40), room))).size == 100


async def test_a_name_is_a_file_or_a_folder_not_both(workspace: Workspace) -> None:
    await workspace.write("a/b", chunks(b"x"))
    for path in ("a", "a/b/c"):
        with pytest.raises(Conflict, match=r"delete"):
            await ensure_room(workspace, QUOTA, path, 1)
    with pytest.raises(InvalidPath):
        await ensure_room(workspace, QUOTA, "1/2/3/4/5/too-deep", 1)
