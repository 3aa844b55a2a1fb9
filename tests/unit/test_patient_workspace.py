"""The workspace of a held run: nothing is changed once the run is in newer hands."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from backplane.errors import Superseded
from backplane.workspace.base import Workspace
from backplane.workspace.local import LocalWorkspaceStore
from worker.patient_workspace import PatientWorkspace


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Workspace]:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    workspace = store.workspace("user", "run")
    await workspace.write("a.txt", content(b"old"))
    yield workspace
    await store.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "new"
    path.write_bytes(b"new")
    return path


@pytest.fixture
def lost(stored: Workspace) -> PatientWorkspace:
    async def superseded() -> None:
        raise Superseded("the run is in newer hands")

    return PatientWorkspace(stored, lambda error, pause: None, superseded, lambda direction, size: None)


async def content(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


CHANGES: dict[str, Callable[[Workspace, Path], Awaitable[object]]] = {
    "write": lambda workspace, _: workspace.write("a.txt", content(b"new")),
    "upload": lambda workspace, source: workspace.upload("a.txt", source),
    "delete": lambda workspace, _: workspace.delete("a.txt"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_run_in_newer_hands_changes_no_file(
    stored: Workspace, lost: PatientWorkspace, source: Path, change: Callable[[Workspace, Path], Awaitable[object]]
) -> None:
    with pytest.raises(Superseded):
        await change(lost, source)
    assert b"".join([chunk async for chunk in stored.read("a.txt")]) == b"old"


async def test_reading_is_open_to_all(lost: PatientWorkspace) -> None:
    assert [file.path for file in await lost.list()] == ["a.txt"]
    assert b"".join([chunk async for chunk in lost.read("a.txt")]) == b"old"
