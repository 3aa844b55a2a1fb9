"""An export: a run with its plans, steps, decisions, events, model calls and files, as one ZIP archive.

    manifest.json  run.json  plans.json  steps.json  decisions.json  events.jsonl  model-calls.jsonl  files/…

It is what the database and the workspace hold at that moment; of a run that goes on, what is stored by then. Secrets
were redacted before they were stored. The archive lies in the workspaces' store, as a workspace under the export's id,
and so counts among its user's files until it is removed.

The archive is written to a temporary file first: its size is not known before, and a store takes a file as a whole.
What a killed process has left of such a file, the next export on the machine removes.
"""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from backplane import VERSION
from backplane.domain.background_jobs import ARCHIVE, TRIED_ENOUGH, BackgroundJob, JobStatus
from backplane.domain.stored import StorageQuota
from backplane.errors import NotFound, Refused, TooLarge, Unavailable
from backplane.resources import Resources
from backplane.store import BackgroundJobs
from backplane.workspace.base import FileInfo, Workspace

EVENTS_AT_ONCE = 500
PROGRESS_SECONDS = 1.0
CLAIM_SECONDS = 60.0
GIVE_UP = timedelta(days=1)
"""An export that was begun again and again for so long is not tried any more."""
FOLDER_PREFIX = "agent-export-"
COMPRESSION = 1
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FIRST_TIME, _LAST_TIME = datetime(1980, 1, 1, tzinfo=UTC), datetime(2107, 12, 31, tzinfo=UTC)
"""Those that a ZIP archive can hold."""

log = structlog.get_logger()


class Exporter:
    """`most_bytes` is what an archive may hold before it is compressed; `kept_seconds` is how long it is kept."""

    def __init__(self, resources: Resources, *, most_bytes: int, kept_seconds: float, quota: StorageQuota) -> None:
        self._resources = resources
        self._jobs = resources.store.background_jobs
        self._most_bytes = most_bytes
        self._kept_seconds = kept_seconds
        self._quota = quota

    async def carry_out(self, job: BackgroundJob) -> None:
        """Make the archive, and say where it lies. Done again, it replaces the archive. Raises NotFound (the run is not
        there any more), TooLarge, StorageExceeded, NoRoomForArchive, Superseded, Unavailable, and Refused for one
        that was tried enough."""
        if datetime.now(UTC) - job.created_at > GIVE_UP:
            raise Refused("the archive could not be made within a day; whoever runs the platform finds out why")
        run_id = str(job.request["run_id"])
        with _full_disk_is_refused(), archive_folder(Path(tempfile.gettempdir())) as folder:
            if job.is_tried_enough:  # what the killed processes have left is removed by now
                raise Refused(TRIED_ENOUGH)
            path = folder / ARCHIVE
            files = await self._write(job, run_id, path)
            size = path.stat().st_size
            # The claim is looked at before anything outside is changed.
            await self._jobs.progress(job, files, files, seconds=CLAIM_SECONDS)
            with suppress(Unavailable):
                await self._resources.storage.grow(job.user_id, size, self._quota)
            await self._resources.workspaces.workspace(job.user_id, job.id).upload(ARCHIVE, path)
        await self._jobs.finish(
            job, JobStatus.COMPLETED, result={"bytes": size, "files": files}, kept_seconds=self._kept_seconds
        )
        log.info("a run is exported", job=job.id, run=run_id, bytes=size, files=files)

    async def _write(self, job: BackgroundJob, run_id: str, path: Path) -> int:
        """How many files of the run's workspace are in it."""
        store = self._resources.store
        run = await store.runs.get(job.user_id, run_id)
        workspace = self._resources.workspaces.workspace(job.user_id, run.workspace_id)
        listed = await workspace.list()
        if (together := sum(file.size for file in listed)) > self._most_bytes:
            raise too_large(together, self._most_bytes)
        await self._jobs.progress(job, 0, len(listed), seconds=CLAIM_SECONDS)
        progress = _ExportProgress(self._jobs, job, len(listed))
        with path.open("wb") as file, closing(_RunArchive(file, self._most_bytes, progress)) as archive:
            await archive.add_json("run.json", asdict(run))
            plans = [asdict(old) for old in await store.plans.replaced(run_id)]
            await archive.add_json("plans.json", {"replaced": plans, "in_force": run.plan or run.given_plan})
            await archive.add_json("steps.json", [asdict(step) for step in await store.journal.steps(run_id)])
            await archive.add_json("decisions.json", [asdict(one) for one in await store.decisions.of_run(run_id)])
            await self._add_events(archive, run_id)
            await self._add_model_calls(archive, run_id)
            missing = list[str]()
            for entry in listed:
                if not await archive.add_file(f"files/{entry.path}", workspace, entry):
                    missing.append(entry.path)
                progress.files += 1
            manifest = {
                "format": 1,
                "run_id": run_id,
                "exported_at": job.started_at,
                "platform": VERSION,
                "removed_meanwhile": missing,
            }
            await archive.add_json("manifest.json", manifest)
        return len(listed) - len(missing)

    async def _add_events(self, archive: "_RunArchive", run_id: str) -> None:
        async with archive.entry("events.jsonl") as entry:
            cursor = 0
            while events := await self._resources.store.events.after(run_id, cursor, EVENTS_AT_ONCE):
                await entry.write("".join(f"{event.line}\n" for event in events).encode())
                cursor = events[-1].id

    async def _add_model_calls(self, archive: "_RunArchive", run_id: str) -> None:
        calls = self._resources.store.model_calls
        async with archive.entry("model-calls.jsonl") as entry:
            for brief in await calls.of_run(run_id):
                call = await calls.find(run_id, brief.key)
                if call is not None:
                    await entry.write(_json({**asdict(call), "key": call.key._asdict()}) + b"\n")


class _ExportProgress:
    """How many `files` are in the archive. Looked at with each part that is written, so that an export that was stopped
    ends also in the middle of a large file."""

    def __init__(self, jobs: BackgroundJobs, job: BackgroundJob, total: int) -> None:
        self.files = 0
        self._jobs, self._job, self._total = jobs, job, total
        self._reported_at = time.monotonic()

    async def report(self) -> None:
        """At most once in PROGRESS_SECONDS. Raises Superseded and Unavailable."""
        if time.monotonic() - self._reported_at > PROGRESS_SECONDS:
            await self._jobs.progress(self._job, self.files, self._total, seconds=CLAIM_SECONDS)
            self._reported_at = time.monotonic()


class NoRoomForArchive(Refused):
    """A disk is full, of the process that makes archives or of the workspaces."""


@contextmanager
def _full_disk_is_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoRoomForArchive(
            f"there is no room for the archive ({error.strerror}): whoever runs the platform makes some, in TMPDIR of "
            "the process controller.jobs and where workspaces are kept"
        ) from error


@contextmanager
def archive_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`, locked until this process ends. Those that nobody has locked are removed before."""
    for left in parent.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            lock = _lock(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder, lock = _new_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(parent: Path) -> tuple[Path, int]:
    # Until it is locked, another export that begins at the same moment takes the folder for one that was left.
    while True:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Raises OSError for one that another process has locked, that is another user's, or that is no folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            raise PermissionError(folder)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def too_large(size: int, most: int) -> TooLarge:
    return TooLarge(f"the run holds {size} bytes, and an export may hold {most} (EXPORT_MAX_BYTES)")


class _RunArchive:
    """A ZIP file that is written in threads, and counts what it holds. Raises TooLarge over `most` bytes."""

    def __init__(self, file: BinaryIO, most: int, progress: _ExportProgress) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION)
        self._most = most
        self._size = 0
        self.progress = progress
        self._made_at = datetime.now(UTC)

    async def add_json(self, name: str, value: Any) -> None:
        async with self.entry(name) as entry:
            await entry.write(_json(value, indent=2))

    async def add_file(self, name: str, workspace: Workspace, file: FileInfo) -> bool:
        """Whether it was there; one that was removed meanwhile may have left a part."""
        try:
            async with self.entry(name, file.modified_at) as entry:
                async for chunk in workspace.read(file.path):
                    await entry.write(chunk)
        except NotFound:
            return False
        return True

    def entry(self, name: str, modified_at: datetime | None = None) -> "_ArchiveEntry":
        return _ArchiveEntry(self, name, modified_at or self._made_at)

    def close(self) -> None:
        """Write the table of contents, which is short."""
        self._zip.close()

    def count(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            raise too_large(self._size, self._most)

    def open(self, name: str, modified_at: datetime) -> Any:
        moment = min(max(modified_at.astimezone(UTC), _FIRST_TIME), _LAST_TIME)
        info: Any = zipfile.ZipInfo(name, moment.timetuple()[:6])
        info.compress_type, info._compresslevel = zipfile.ZIP_DEFLATED, COMPRESSION
        return self._zip.open(info, "w", force_zip64=True)


class _ArchiveEntry:
    def __init__(self, archive: _RunArchive, name: str, modified_at: datetime) -> None:
        self._archive = archive
        self._name = name
        self._modified_at = modified_at
        self._file: Any = None

    async def __aenter__(self) -> "_ArchiveEntry":
        self._file = self._archive.open(self._name, self._modified_at)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._file.close)

    async def write(self, chunk: bytes) -> None:
        self._archive.count(len(chunk))
        await self._archive.progress.report()
        await asyncio.to_thread(self._file.write, chunk)


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain).encode("utf-8", "replace")


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case Enum():
            return value.value
        case set() | frozenset() | tuple():
            return list(value) if isinstance(value, Iterable) else []
        case _:
            return str(value)
