"""The workspace of a running run, in which earlier states of the files can be had again.

Each step's end is bound to what it changed (`take_changes`, kept in `steps.files`), and a file that is part of a state
which some step left, or which the run began with, is kept aside before it is replaced or removed. So a fork or a retry
from a step finds the files as they were then. A run that changes no file costs nothing here. One that does costs one
listing (a checkout's own will do) and one small file that lists what it began with, before its first change.

Times, modes, folders and links are noted with the step in the same way (`backplane.workspace.attributes`): a later
claim loads them from the journal and from what the run began with, which is read at most once a claim.

Changes that came from outside, or from a worker that was lost before it could note them, are found by that listing and
belong to the step that ends next; so do those of steps that are carried out at the same time. Step logs are no state.

Turns of an agent share its files. The first change of a turn notes what it began with in place of what the turn before
had noted, together with the times and modes that the earlier turns have left; so versions are kept for all turns
together, and of the steps of one turn a retry knows.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from backplane.domain.runs import Run
from backplane.domain.sizes import readable_size
from backplane.domain.steps import StepRecord
from backplane.errors import NotFound
from backplane.process.retrying import WaitRules
from backplane.process.tasks import in_thread
from backplane.workspace.attributes import (
    AttributeRecord,
    Attributes,
    decoded,
    encoded,
    stored_path_bytes,
    total_bytes,
)
from backplane.workspace.base import Beginning, FileInfo, Versions, Workspace
from backplane.workspace.quota import Quota, check_attributes
from worker.files.paths import OUTPUT_FOLDER

Result = TypeVar("Result")
JournalOf = Callable[[str], Awaitable[Sequence[StepRecord]]]

_AT_ONCE = 16
"""Changes under way at once; a checkout brings more, but each version kept holds a thread or a connection."""


def state_after(beginning: dict[str, str], journal: Iterable[StepRecord]) -> dict[str, str]:
    """The files that the steps with an end have left, each with its etag."""
    state = dict(beginning)
    for record in _ended(journal):
        for path, etag in (record.files or {}).items():
            if etag is None:
                state.pop(path, None)
            else:
                state[path] = etag
    return state


def attributes_after(beginning: Beginning, journal: Iterable[StepRecord]) -> dict[str, Attributes]:
    """What is known of the times, modes, folders and links that the steps with an end have left. A file that a worker
    of an older release has changed is another content than its entry names."""
    state = {
        path: Attributes(modified, etag=beginning.files[path])
        for path, modified in beginning.times.items()
        if path in beginning.files
    }
    for path, known in decoded(beginning.attributes).items():
        if known is not None:
            state[path] = known
    for record in _ended(journal):
        for path, etag in (record.files or {}).items():
            if etag is None:
                state.pop(path, None)
        for path, attributes in decoded(record.attributes or {}).items():
            if attributes is None:
                state.pop(path, None)
            else:
                state[path] = attributes
    return state


def _ended(journal: Iterable[StepRecord]) -> list[StepRecord]:
    """The steps that have ended, in that order."""
    ended = ((record.finished_at, record.position, record) for record in journal if record.finished_at is not None)
    return [record for _, _, record in sorted(ended, key=lambda one: one[:2])]


def _path_bytes(journal: Iterable[StepRecord]) -> int:
    return sum(stored_path_bytes(path) for record in journal for path in record.files or ())


def is_log(path: str) -> bool:
    return path.split("/", 1)[0] == OUTPUT_FOLDER


@dataclass(frozen=True, slots=True)
class EarlierSteps:
    """What came before this worker had the run. `journal`: its steps when it was taken (and after `restore`). `begun`:
    whether files may have been changed already, by the worker that had the run before, or by `restore`.

    `turn`: the run's id, where it is a turn of an agent, whose files other turns had before. `journal_of` gives the
    steps of one of these, and of those after it."""

    journal: Sequence[StepRecord]
    begun: bool
    turn: str | None = None
    journal_of: "JournalOf | None" = None

    @classmethod
    def of(cls, run: Run, journal: Sequence[StepRecord], journal_of: "JournalOf | None" = None) -> "EarlierSteps":
        has_begun = any(record.tries for record in journal)
        if run.agent_id is not None:
            return cls(journal, has_begun, run.id, journal_of)
        return cls(journal, run.origin is not None or has_begun)


class VersionedWorkspace(Workspace):
    """`inner` waits while its store is away, and so do the calls of `versions` here, by `waits`. `log_line` is called
    with a line for the run's log once no more versions are kept, because there are `max_bytes` of them; 0: none are
    kept."""

    def __init__(
        self,
        inner: Workspace,
        versions: Versions,
        earlier: EarlierSteps,
        *,
        max_bytes: int,
        quota: Quota,
        log_line: Callable[[str], None],
        waits: WaitRules,
    ) -> None:
        self._inner = inner
        self._versions = versions
        self._journal = earlier.journal
        self._begun = earlier.begun
        self._earlier = earlier
        self._max_bytes = max_bytes
        self._quota = quota
        self._log_line = log_line
        self._waits = waits
        self.attributes = AttributeRecord(self._attributes_before)
        self._noted: Beginning | None = None
        self._inherited: dict[str, Attributes] = {}
        """What earlier turns of the agent have left."""
        self._looking = asyncio.Lock()
        self._has_looked = False
        self._listed: dict[str, FileInfo] | None = None
        self._present: dict[str, FileInfo] | None = None
        """As listed before the first change, and changed since."""
        self._changes: dict[str, str | None] = {}
        self._step_bytes = self._run_bytes = 0
        """Of the paths in `_changes`, and in what all steps have left, as the journal has them."""
        self._kept_bytes: int | None = None
        self._is_full = False
        self._beginning = asyncio.Lock()
        self._keeping = asyncio.Semaphore(_AT_ONCE)

    def take_changes(self, earlier: Mapping[str, str | None] | None = None) -> dict[str, str | None] | None:
        """What changed since this was last asked: each path with its etag, or None where it was deleted. None: nothing
        did. To be called at each step's end, for `RunTransaction.end_step`.

        `earlier`: what the journal has of the step already, from tries before; it stays a part of it.
        """
        changes, self._changes = self._changes, {}
        self._run_bytes += self._step_bytes
        self._step_bytes = 0
        before = dict(earlier or {})
        if self._present is not None:
            before = {path: self._present[path].etag if path in self._present else None for path in before}
        return {**before, **changes} or None

    def take_attributes(self, earlier: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The same of times, modes, folders and links, as the journal keeps them."""
        return {**(earlier or {}), **encoded(self.attributes.take_changed())} or None

    async def list(self, prefix: str = "") -> list[FileInfo]:
        found = await self._inner.list(prefix)
        if not prefix and self._present is None:
            self._listed = {file.path: file for file in found}
        return found

    async def stat(self, path: str) -> FileInfo:
        return await self._inner.stat(path)

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        async for chunk in self._inner.read(path, start=start, end=end):
            yield chunk

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        return await self._inner.get(path)

    async def download(self, path: str, target: Path) -> FileInfo:
        return await self._inner.download(path, target)

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        return await self._changing(path, lambda: self._inner.write(path, chunks))

    async def put(self, path: str, content: bytes) -> FileInfo:
        return await self._changing(path, lambda: self._inner.put(path, content))

    async def upload(self, path: str, source: Path) -> FileInfo:
        return await self._changing(path, lambda: self._inner.upload(path, source))

    async def delete(self, path: str) -> None:
        await self._changing(path, lambda: self._inner.delete(path))

    async def bring(self, path: str, etag: str, source: Versions, run_id: str) -> bool:
        """Make the file what it was in another run (`source`: its versions; `run_id`: this run). False: that run does
        not keep it any more, and nothing has changed."""

        async def bring_back() -> FileInfo:
            if not await self._waits.until_available(lambda: source.bring_back(path, etag, run_id)):
                raise NotFound(f"{path} is not kept")
            return await self._inner.stat(path)

        try:
            await self._changing(path, bring_back)
        except NotFound:
            return False
        return True

    async def _changing(self, path: str, change: Callable[[], Awaitable[Result]]) -> Result:
        if is_log(path):
            return await change()
        present = self._present if self._present is not None else await self._begin()
        size = 0 if path in self._changes else stored_path_bytes(path)
        if size:
            # Before anything is done: what has happened must be in the journal.
            step = self._step_bytes + size
            check_attributes(self._quota, step=step, run=self._run_bytes + step)
        before = present.get(path)
        if before is not None and path not in self._changes:
            async with self._keeping:
                await self._keep(before)
        done = await change()
        self._step_bytes += size
        if isinstance(done, FileInfo):
            present[path], self._changes[path] = done, done.etag
            self.attributes.written(done)
        else:
            present.pop(path, None)
            self._changes[path] = None
            self.attributes.change({path: None})
        return done

    async def _begin(self) -> dict[str, FileInfo]:
        """What is there, and was noted as there when the run began; what differs from what its steps left is a change
        already."""
        async with self._beginning:
            if self._present is not None:
                return self._present
            if self._listed is None:
                self._listed = {file.path: file for file in await self._inner.list()}
            present = {path: file for path, file in self._listed.items() if not is_log(path)}
            self._listed = None
            await self.attributes.load()
            beginning = await self._beginning_before()
            if beginning is None:
                files = {path: file.etag for path, file in present.items()}
                noted = Beginning(
                    files,
                    times=self.attributes.times_at_first(present.values()),
                    run=self._earlier.turn or "",
                    attributes=encoded(self._inherited),
                )
                await self._waits.until_available(lambda: self._versions.begin(noted))
            else:
                expected = state_after(beginning.files, self._journal)
                for path in expected.keys() | present.keys():
                    etag = present[path].etag if path in present else None
                    if etag != expected.get(path):
                        self._changes[path] = etag
                        self._step_bytes += stored_path_bytes(path)
                self._run_bytes += await in_thread(_path_bytes, self._journal)
            self._present = present
            return present

    async def _attributes_before(self) -> tuple[dict[str, Attributes], int]:
        if not self._begun and self._earlier.turn is None:
            return {}, 0
        stored = sum(total_bytes(decoded(record.attributes or {})) for record in self._journal)
        beginning = await self._beginning_before()
        if beginning is None:
            beginning = Beginning({}, attributes=encoded(self._inherited))
        return attributes_after(beginning, self._journal), stored

    async def _beginning_before(self) -> Beginning | None:
        """What was noted of the run's beginning before this worker had it."""
        if not self._begun and self._earlier.turn is None:
            return None
        async with self._looking:
            if not self._has_looked:
                noted = await self._waits.until_available(self._versions.beginning)
                turn, journal_of = self._earlier.turn, self._earlier.journal_of
                if noted is not None and turn is not None and noted.run != turn:
                    journal = await journal_of(noted.run) if journal_of is not None else ()
                    self._inherited, noted = attributes_after(noted, journal), None
                self._noted, self._has_looked = noted, True
        return self._noted

    async def _keep(self, file: FileInfo) -> None:
        if not self._max_bytes:
            return
        if self._kept_bytes is None:
            self._kept_bytes = (
                await self._waits.until_available(self._versions.size)
                if self._begun or self._earlier.turn is not None
                else 0
            )
        if self._is_full or self._kept_bytes + file.size > self._max_bytes:
            if not self._is_full:
                self._is_full = True
                self._log_line(
                    f"no more of what files were is kept: {readable_size(self._max_bytes)} of it is there "
                    "(WORKSPACE_VERSIONS_MAX_BYTES); forks and retries from before this step may not be possible"
                )
            return
        self._kept_bytes += file.size
        try:
            await self._waits.until_available(lambda: self._versions.keep(file.path, file.etag))
        except NotFound:
            # Somebody outside has replaced it since it was listed: what it was is gone.
            self._kept_bytes -= file.size
