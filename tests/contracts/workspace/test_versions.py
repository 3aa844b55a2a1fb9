"""What files were: kept when asked, found again by path and etag, and gone with the run."""

from pathlib import Path

import pytest

from backplane.errors import NotFound
from backplane.workspace.base import Beginning, Workspace, WorkspaceStore, total
from backplane.workspace.local import LocalWorkspaceStore
from tests.contracts.workspace.workspaces import MIB, chunks, paths, read


async def test_a_version_that_was_kept_can_be_brought_back(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    old = await workspace.put("folder/a.txt", b"old")
    await versions.keep(old.path, old.etag)
    await workspace.put("folder/a.txt", b"new")
    assert await versions.bring_back(old.path, old.etag, "run-1")
    assert await read(workspace, "folder/a.txt") == b"old"


async def test_a_version_is_kept_of_a_file_that_is_then_deleted(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    old = await workspace.put("a.txt", b"old")
    await versions.keep(old.path, old.etag)
    await versions.keep(old.path, old.etag)
    await workspace.delete("a.txt")
    assert await versions.bring_back(old.path, old.etag, "run-1")
    assert await read(workspace, "a.txt") == b"old"


async def test_a_version_can_be_brought_into_another_run(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    kept = await workspace.put("kept.txt", b"kept")
    await versions.keep(kept.path, kept.etag)
    await workspace.put("kept.txt", b"changed")
    present = await workspace.put("present.txt", b"present")
    for file in (kept, present):
        assert await versions.bring_back(file.path, file.etag, "run-2")
    other = store.workspace("user-1", "run-2")
    assert [await read(other, path) for path in await paths(other)] == [b"kept", b"present"]
    await other.put("present.txt", b"of the other run")
    assert await read(workspace, "present.txt") == b"present"


async def test_what_has_changed_meanwhile_is_not_kept(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    old = await workspace.put("a.txt", b"old")
    await workspace.put("a.txt", b"new")
    with pytest.raises(NotFound):
        await versions.keep("a.txt", old.etag)
    assert not await versions.bring_back("a.txt", old.etag, "run-2")
    assert await paths(store.workspace("user-1", "run-2")) == []
    with pytest.raises(NotFound):
        await versions.keep("never-there.txt", old.etag)


async def test_versions_are_no_files_of_the_workspace_but_are_counted(
    store: WorkspaceStore, workspace: Workspace
) -> None:
    versions = store.versions("user-1", "run-1")
    assert await versions.size() == 0
    old = await workspace.put("a.txt", b"12345")
    await versions.keep(old.path, old.etag)
    await versions.begin(Beginning({"a.txt": old.etag}))
    assert await paths(workspace) == ["a.txt"]
    assert await versions.size() == 5
    assert total(await store.usage_by_user()).files == 3


async def test_a_run_s_versions_go_with_its_files(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    old = await workspace.put("a.txt", b"old")
    await versions.keep(old.path, old.etag)
    await versions.begin(Beginning({}))
    await store.remove("user-1", "run-1")
    assert not await versions.bring_back(old.path, old.etag, "run-2")
    assert await versions.beginning() is None
    assert total(await store.usage_by_user()).files == 0


async def test_what_a_run_began_with_is_noted(store: WorkspaceStore) -> None:
    versions = store.versions("user-1", "run-1")
    assert await versions.beginning() is None
    beginning = Beginning({"ä/b.txt": "etag"}, ("run-0",))
    await versions.begin(beginning)
    assert await versions.beginning() == beginning


async def test_a_long_path_has_versions_too(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    path = "/".join(["n" * 200] * 4)
    old = await workspace.write(path, chunks(b"old"))
    await versions.keep(path, old.etag)
    await workspace.delete(path)
    assert await versions.bring_back(path, old.etag, "run-1")


async def test_a_file_that_went_up_in_parts_has_versions_too(store: WorkspaceStore, workspace: Workspace) -> None:
    versions = store.versions("user-1", "run-1")
    old = await workspace.write("large", chunks(*[bytes(MIB)] * 9))
    await versions.keep("large", old.etag)
    await workspace.put("large", b"new")
    assert await versions.bring_back("large", old.etag, "run-2")
    assert (await store.workspace("user-1", "run-2").stat("large")).size == 9 * MIB


async def test_a_link_in_the_place_of_a_file_is_not_kept(tmp_path: Path) -> None:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    old = await store.workspace("u", "r").put("a.txt", b"old")
    (tmp_path / "secret").write_text("secret")
    file = tmp_path / "workspaces/users/u/runs/r/a.txt"
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound):
        await store.versions("u", "r").keep("a.txt", old.etag)
