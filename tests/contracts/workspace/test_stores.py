"""What every store of workspaces does alike, and what each does in its own way."""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import ANY

import pytest

from backplane.errors import Conflict, InvalidPath, NotFound, Unavailable
from backplane.workspace.base import WorkspaceStore, WorkspaceUsage, total
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.s3 import PART, bucket_endpoint
from tests.contracts.workspace.workspaces import MIB, chunks, paths, read, s3_store
from tests.servers import S3Server
from tests.waiting import wait_until

# --- the store ---


async def test_a_store_that_is_there_passes_its_check(store: WorkspaceStore) -> None:
    await store.prepare()
    await store.check()


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = LocalWorkspaceStore(tmp_path / "file" / "workspaces")
    for call in (store.prepare, store.check):
        with pytest.raises(Unavailable, match="WORKSPACE_DIR") as raised:
            await call()
        assert raised.value.part == "workspace"


async def test_local_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    await store.workspace("u", "r").write("a/b", chunks(b"x"))
    for path in (tmp_path / "workspaces").rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_local_writes_leave_nothing_beside_the_tree(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    workspace = store.workspace("u", "r")
    await workspace.write("a", chunks(b"x"))
    with pytest.raises(Conflict, match="folder"):
        await workspace.write("a/b", chunks(b"x"))
    assert [path.name for path in (tmp_path / "workspaces" / ".incoming").iterdir()] == []


async def test_a_link_in_the_local_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    workspace = store.workspace("u", "r")
    await workspace.write("a", chunks(b"x"))
    tree = tmp_path / "workspaces" / "users" / "u" / "runs" / "r"
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "file-link").symlink_to(tmp_path / "outside" / "secret")
    assert await paths(workspace) == ["a"]
    for name in ("link/secret", "file-link"):
        with pytest.raises((NotFound, InvalidPath)):
            await read(workspace, name)
    with pytest.raises((Conflict, InvalidPath)):
        await workspace.write("link/secret", chunks(b"changed"))
    assert (tmp_path / "outside" / "secret").read_text() == "secret"


async def test_keys_in_the_bucket_are_the_paths(s3_server: S3Server, bucket: str) -> None:
    store = s3_store(s3_server.endpoint, bucket)
    await store.workspace("user-1", "run-1").write("a%20b/ü #?.txt", chunks(b"x"))
    with closing(s3_server.client()) as client:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["users/user-1/runs/run-1/a%20b/ü #?.txt"]
    await store.close()


async def test_a_cancelled_upload_leaves_no_parts_in_the_bucket(s3_server: S3Server, bucket: str) -> None:
    store = s3_store(s3_server.endpoint, bucket)

    async def never_ending() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * PART
        await asyncio.Event().wait()

    with closing(s3_server.client()) as client:

        def unfinished() -> int:
            try:
                return len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))
            except client.exceptions.NoSuchUpload:  # rclone's way of saying none
                return 0

        writing = asyncio.create_task(store.workspace("u", "r").write("a", never_ending()))
        await wait_until(unfinished)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert unfinished() == 0
    await store.close()


async def test_a_missing_bucket_is_made_when_asked_and_else_named(s3_server: S3Server, bucket: str) -> None:
    missing = f"{bucket}-2"
    store = s3_store(s3_server.endpoint, missing)
    for call in (store.prepare(), store.check(), store.workspace("u", "r").list()):
        with pytest.raises(Unavailable, match="S3_CREATE_BUCKET"):
            await call
    with pytest.raises(Unavailable, match="S3_CREATE_BUCKET"):
        await store.workspace("u", "r").write("a", chunks(b"x"))
    making = s3_store(s3_server.endpoint, missing, create=True)
    await asyncio.gather(making.prepare(), making.prepare())
    await store.check()
    await store.close()


async def test_a_wrong_key_is_unavailable_and_says_nothing_secret(s3_server: S3Server, bucket: str) -> None:
    store = s3_store(s3_server.endpoint, bucket, secret_key="wrong-secret-key")
    for call in (store.prepare(), store.check(), store.workspace("u", "r").stat("a")):
        with pytest.raises(Unavailable, match="S3_ACCESS_KEY") as raised:
            await call
        assert "wrong-secret-key" not in repr(raised.value)
        assert S3Server.access_key not in raised.value.message
        assert raised.value.__cause__ is None
    await store.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The URL of a server that gives this to whoever asks."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def everything_is_unavailable(store: WorkspaceStore, tmp_path: Path) -> None:
    workspace = store.workspace("u", "r")
    calls = (
        store.prepare(),
        store.check(),
        workspace.list(),
        workspace.stat("a"),
        read(workspace, "a"),
        read(workspace, "a", 1, 2),
        workspace.write("a", chunks(b"x")),
        workspace.write("a", chunks(*[b"x" * MIB] * 20)),
        workspace.delete("a"),
        workspace.download("a", tmp_path / "a"),
    )
    raised = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in raised] == [Unavailable] * len(calls)
    assert {error.part for error in raised if isinstance(error, Unavailable)} == {"workspace"}


async def test_a_server_that_answers_500_is_unavailable(tmp_path: Path) -> None:
    async with answering(
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ) as url:
        store = s3_store(url, "bucket")
        await everything_is_unavailable(store, tmp_path)
        with pytest.raises(Unavailable, match="500"):
            await store.workspace("u", "r").list()
        await store.close()


async def test_a_server_that_hangs_up_is_unavailable(tmp_path: Path) -> None:
    async with answering(b"") as url:
        store = s3_store(url, "bucket")
        await everything_is_unavailable(store, tmp_path)
        await store.close()


async def test_a_server_that_is_away_is_unavailable_and_used_again_when_it_is_back(
    own_s3: Callable[[], S3Server], tmp_path: Path
) -> None:
    server = own_s3()
    store = s3_store(server.endpoint, "bucket", create=True)
    await store.prepare()
    await store.workspace("u", "r").write("a", chunks(b"x"))
    server.kill()
    await everything_is_unavailable(store, tmp_path)
    await asyncio.to_thread(server.start)
    assert await paths(store.workspace("u", "r")) == ["a"]
    await store.close()


def test_a_virtual_host_has_the_bucket_before_the_endpoints_name() -> None:
    assert bucket_endpoint("https://s3.example.org:9000", "b") == "https://b.s3.example.org:9000"


# --- the whole workspace ---


async def test_a_workspace_is_removed_with_all_that_is_in_it_and_no_other_is(store: WorkspaceStore) -> None:
    gone, kept = store.workspace("user-1", "run-1"), store.workspace("user-1", "run-10")
    for path in ("a.txt", "deep/er/b.txt", "deep/c.txt"):
        await gone.write(path, chunks(b"x"))
    await kept.write("a.txt", chunks(b"x"))
    await store.remove("user-1", "run-1")
    assert await paths(gone) == []
    assert await paths(kept) == ["a.txt"]


async def test_removing_a_workspace_again_or_one_that_never_was_is_no_error(store: WorkspaceStore) -> None:
    await store.workspace("user-1", "run-1").write("a.txt", chunks(b"x"))
    await store.remove("user-1", "run-1")
    await store.remove("user-1", "run-1")
    await store.remove("user-2", "run-2")


async def test_several_may_remove_a_workspace_at_once(store: WorkspaceStore) -> None:
    workspace = store.workspace("user-1", "run-1")
    for number in range(30):
        await workspace.write(f"{number % 3}/{number}.txt", chunks(b"x"))
    await asyncio.gather(*(store.remove("user-1", "run-1") for _ in range(4)))
    assert await paths(workspace) == []


async def test_the_usage_is_that_of_all_files_of_all_runs(store: WorkspaceStore) -> None:
    assert total(await store.usage_by_user()) == WorkspaceUsage(0, 0)
    for user, run, path in (("1", "1", "a.txt"), ("1", "2", "deep/er/b.txt"), ("2", "3", ".output/c"), ("2", "3", "d")):
        await store.workspace(f"user-{user}", f"run-{run}").write(path, chunks(b"x" * 10))
    await store.workspace("user-1", "run-1").write("empty", chunks())
    assert total(await store.usage_by_user()) == WorkspaceUsage(5, 40)
    await store.remove("user-2", "run-3")
    assert total(await store.usage_by_user()) == WorkspaceUsage(3, 20)


async def test_the_usage_is_counted_over_more_than_one_page(store: WorkspaceStore) -> None:
    workspaces = [store.workspace("user-1", f"run-{number}") for number in range(11)]
    await asyncio.gather(*(workspace.write(f"{n}", chunks(b"x")) for workspace in workspaces for n in range(95)))
    assert total(await store.usage_by_user()) == WorkspaceUsage(1045, 1045)


async def test_a_store_that_is_away_has_no_usage(tmp_path: Path) -> None:
    root = tmp_path / "workspaces"
    root.write_bytes(b"no folder")
    with pytest.raises(Unavailable):
        await LocalWorkspaceStore(root).usage_by_user()


async def test_a_link_in_the_tree_is_not_counted(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    await store.workspace("user-1", "run-1").write("a", chunks(b"x"))
    (tmp_path / "workspaces/users/user-1/runs/run-1/link").symlink_to("/etc")
    (tmp_path / "workspaces/users/user-2").symlink_to(tmp_path / "workspaces/users/user-1")
    assert total(await store.usage_by_user()) == WorkspaceUsage(1, 1)


async def test_a_workspace_is_not_removed_through_a_link(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("x")
    runs = tmp_path / "workspaces" / "users" / "user-1" / "runs"
    runs.mkdir(parents=True)
    (runs / "run-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        await store.remove("user-1", "run-1")
    assert (tmp_path / "elsewhere" / "kept.txt").exists()


async def copied(tmp_path: Path, *options: str) -> LocalWorkspaceStore:
    """A copy of the folder in which a run has written `a.txt`, made by `cp`, as its platform finds it."""
    process = await asyncio.create_subprocess_exec("cp", *options, str(tmp_path / "one"), str(tmp_path / "two"))
    assert await process.wait() == 0
    store = LocalWorkspaceStore(tmp_path / "two")
    await store.prepare()
    return store


@pytest.mark.parametrize("options", [("-r",), ("-a",)], ids=" ".join)
async def test_what_a_run_s_files_are_is_known_in_a_copy_of_the_folder(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    one = LocalWorkspaceStore(tmp_path / "one")
    await one.prepare()
    file = await one.workspace("ada", "run").put("a.txt", b"first")
    two = await copied(tmp_path, *options)
    versions = two.versions("ada", "run")
    assert await versions.bring_back("a.txt", file.etag, "other")
    assert await two.workspace("ada", "other").get("a.txt") == (ANY, b"first")
    # It stays known when the file changes in the copy.
    await two.workspace("ada", "run").put("a.txt", b"other")
    assert await versions.bring_back("a.txt", file.etag, "run")
    assert (await two.workspace("ada", "run").get("a.txt"))[1] == b"first"


async def test_what_was_replaced_in_a_copy_of_the_folder_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    one = LocalWorkspaceStore(tmp_path / "one")
    await one.prepare()
    file = await one.workspace("ada", "run").put("a.txt", b"first")
    two = await copied(tmp_path, "-r")
    await two.workspace("ada", "run").put("a.txt", b"other")
    assert not await two.versions("ada", "run").bring_back("a.txt", file.etag, "run")


async def test_in_a_folder_that_is_no_copy_a_file_of_another_etag_is_another_file(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "one")
    await store.prepare()
    file = await store.workspace("ada", "run").put("a.txt", b"first")
    await store.workspace("ada", "run").put("a.txt", b"other")
    await store.prepare()
    assert not await store.versions("ada", "run").bring_back("a.txt", file.etag, "run")
