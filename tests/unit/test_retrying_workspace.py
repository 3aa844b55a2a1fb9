"""The workspace of a running run: nothing is changed once the run is fenced, and a store that refuses is given up."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from backplane.errors import PartRefuses, Superseded, Unavailable
from backplane.process import retrying as patience
from backplane.process.retrying import FORGOTTEN_SECONDS, WaitRules
from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.local import LocalWorkspaceStore
from worker.files.retrying import RetryingWorkspace


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
def lost(stored: Workspace) -> RetryingWorkspace:
    async def superseded() -> None:
        raise Superseded("another worker has the run")

    return RetryingWorkspace(stored, WaitRules(lambda error, pause: None), superseded, lambda direction, size: None)


async def content(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


CHANGES: dict[str, Callable[[Workspace, Path], Awaitable[object]]] = {
    "write": lambda workspace, _: workspace.write("a.txt", content(b"new")),
    "upload": lambda workspace, source: workspace.upload("a.txt", source),
    "delete": lambda workspace, _: workspace.delete("a.txt"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_run_that_another_worker_has_changes_no_file(
    stored: Workspace, lost: RetryingWorkspace, source: Path, change: Callable[[Workspace, Path], Awaitable[object]]
) -> None:
    with pytest.raises(Superseded):
        await change(lost, source)
    assert b"".join([chunk async for chunk in stored.read("a.txt")]) == b"old"


async def test_reading_is_open_to_all(lost: RetryingWorkspace) -> None:
    assert [file.path for file in await lost.list()] == ["a.txt"]
    assert b"".join([chunk async for chunk in lost.read("a.txt")]) == b"old"


# --- a store that refuses streams ---


REFUSED = Unavailable("The store is full.", part="workspaces", refuses=True)
MOST_SECONDS = 60.0


class Refused:
    """A workspace whose streams are refused as `refuses` says, and the clock by which that is counted."""

    def __init__(self, stored: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.refuses: set[str] = set()
        read, write = stored.read, stored.write

        async def reading(path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
            if "read" in self.refuses:
                raise REFUSED
            async for chunk in read(path, start=start, end=end):
                yield chunk

        async def writing(path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
            if "write" in self.refuses:
                raise REFUSED
            return await write(path, chunks)

        async def ensure_ours() -> None: ...

        monkeypatch.setattr(stored, "read", reading)
        monkeypatch.setattr(stored, "write", writing)
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.workspace = RetryingWorkspace(
            stored, WaitRules(lambda *_: None, MOST_SECONDS), ensure_ours, lambda *_: None
        )

    async def use(self, stream: str) -> None:
        if stream == "read":
            assert b"".join([chunk async for chunk in self.workspace.read("a.txt")]) == b"old"
        else:
            await self.workspace.write("a.txt", content(b"old"))

    async def is_refused(self, stream: str, error: type[Exception]) -> None:
        self.refuses = {stream}
        with pytest.raises(error):
            await self.use(stream)
        self.refuses = set()


@pytest.fixture
def refused(stored: Workspace, monkeypatch: pytest.MonkeyPatch) -> Refused:
    return Refused(stored, monkeypatch)


STREAMS = ["read", "write"]


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_stream_that_succeeds_between_two_refusals_makes_the_second_the_first(
    refused: Refused, stream: str
) -> None:
    await refused.is_refused(stream, Unavailable)
    await refused.use(stream)
    refused.now += MOST_SECONDS
    await refused.is_refused(stream, Unavailable)


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_refusal_of_long_ago_does_not_count(refused: Refused, stream: str) -> None:
    await refused.is_refused(stream, Unavailable)
    refused.now += FORGOTTEN_SECONDS
    await refused.is_refused(stream, Unavailable)


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_stream_that_is_refused_for_too_long_is_given_up_though_the_other_kind_succeeds(
    refused: Refused, stream: str
) -> None:
    [other] = set(STREAMS) - {stream}
    await refused.is_refused(stream, Unavailable)
    await refused.use(other)
    refused.now += MOST_SECONDS
    await refused.is_refused(stream, PartRefuses)
