"""The workspace port: the files of one run, wherever they lie.

The runs of an agent share one workspace, named by the agent's id in place of a run's (`Run.workspace_id`).

A run's files live under `users/{user_id}/runs/{run_id}/` of a store (an S3 bucket, a folder). Paths are relative, with
forward slashes, and already checked by `paths.check_path`; adapters may rely on that. A file becomes visible whole or
not at all. This port neither locks nor counts: quotas are `quota.py`'s, and who may write is decided by the run's
generation.

What files were before they changed lies beside them, under `users/{user_id}/versions/{run_id}/` (`Versions`). Nothing
is kept by itself: whoever changes a file says what is worth keeping.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`etag` changes whenever the content does; it is opaque and only comparable with itself. `size` is in bytes.

    `digest`: BLAKE2b of the content, where a download computed it on the way.
    """

    path: str
    size: int
    modified_at: datetime
    etag: str
    digest: bytes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class WorkspaceUsage:
    """What all workspaces hold together, or those of one user."""

    files: int
    bytes: int


def total(users: Mapping[str, WorkspaceUsage]) -> WorkspaceUsage:
    """Of all users together."""
    return WorkspaceUsage(sum(one.files for one in users.values()), sum(one.bytes for one in users.values()))


class Workspace(ABC):
    """The files of one run. Raises NotFound for a file that is not there, Unavailable when the store does not
    answer."""

    @abstractmethod
    async def list(self, prefix: str = "") -> list[FileInfo]:
        """All files whose path is `prefix` or lies below it, sorted by path. Folders are not listed: they do not
        exist."""

    @abstractmethod
    async def stat(self, path: str) -> FileInfo: ...

    @abstractmethod
    def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end` (None: to the end of the file), in chunks."""

    @abstractmethod
    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        """Replace the file by what `chunks` gives. When `chunks` raises, the file stays as it was."""

    @abstractmethod
    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        """The whole of a file, in memory: for small ones."""

    @abstractmethod
    async def put(self, path: str, content: bytes) -> FileInfo:
        """Replace the file by `content`."""

    @abstractmethod
    async def delete(self, path: str) -> None: ...

    @abstractmethod
    async def download(self, path: str, target: Path) -> FileInfo:
        """Copy a file to `target`, whose folder exists."""

    @abstractmethod
    async def upload(self, path: str, source: Path) -> FileInfo:
        """Replace the file by the content of `source`."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The files that a run began with, each with its etag. `runs`: where they came from, when they are another run's:
    the nearest first. `times`: when they were changed, in nanoseconds since 1970, as far as it is known.

    Turns of an agent share its files, and each notes its own beginning in place of the one before: `run` is the turn,
    and `attributes` what was known of the files by then, as the journal keeps it."""

    files: dict[str, str]
    runs: tuple[str, ...] = ()
    times: dict[str, int] = field(default_factory=dict)
    run: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, content: bytes) -> "Beginning":
        found = json.loads(content)
        return cls(
            found["files"],
            tuple(found["runs"]),
            found.get("times", {}),
            found.get("run", ""),
            found.get("attributes", {}),
        )


class Versions(ABC):
    """What files of one run were. A version is named by its path and the etag that the file had. Raises Unavailable
    when the store does not answer."""

    @abstractmethod
    async def keep(self, path: str, etag: str) -> None:
        """Keep the present content of a file, which has this etag. Kept again, nothing changes. Raises NotFound when
        the file is not there, or has another etag by now."""

    @abstractmethod
    async def bring_back(self, path: str, etag: str, run_id: str) -> bool:
        """Make the file of that run (of the same user, or this one) what it was here in this version. False, and
        nothing is changed, when this run neither keeps the version nor has it at present."""

    @abstractmethod
    async def size(self) -> int:
        """Bytes of all kept versions. Costs one listing."""

    @abstractmethod
    async def beginning(self) -> Beginning | None:
        """What was noted with `begin`."""

    @abstractmethod
    async def begin(self, beginning: Beginning) -> None: ...


class WorkspaceStore(ABC):
    """Where all workspaces lie. Opened and closed by `backplane.resources`."""

    @abstractmethod
    def workspace(self, user_id: str, run_id: str) -> Workspace: ...

    @abstractmethod
    def versions(self, user_id: str, run_id: str) -> Versions: ...

    @abstractmethod
    async def remove(self, user_id: str, run_id: str) -> None:
        """Remove a run's workspace with all that is in it, and its versions. Done again, and by several at once, it is
        no error."""

    @abstractmethod
    async def usage_by_user(self) -> dict[str, WorkspaceUsage]:
        """Count all files, those of kept versions too. Walks the whole store, a piece at a time, so it takes long, and
        is true only of a store in which nothing changes meanwhile."""

    @abstractmethod
    async def prepare(self) -> None:
        """Make the store usable at start-up, and try it; raises Unavailable with what to do when it cannot be used."""

    @abstractmethod
    async def check(self) -> None:
        """One cheap call to the store, and now and then a file that is written, read and deleted; raises Unavailable
        when it does not answer, or refuses one of these."""

    @abstractmethod
    async def close(self) -> None: ...


def run_prefix(user_id: str, run_id: str) -> str:
    return f"users/{user_id}/runs/{run_id}/"


PROBE = b"written to see whether it can be"
"""What is in the file by which a store is tried out."""

BEGINNING = "beginning.json"
"""Among the versions of a run."""


def versions_prefix(user_id: str, run_id: str) -> str:
    return f"users/{user_id}/versions/{run_id}/"


def version_name(path: str, etag: str) -> str:
    """Of one length, whatever the path: a key of S3 has room for one path, not for what is added to it."""
    return f"{_digest(path)}-{_digest(etag)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
