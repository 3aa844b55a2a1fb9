"""How much a run's workspace may hold, and the checks before and during a write.

Three moments: `ensure_room` before one file is written, `limited` while its bytes arrive (what a header announced is
no proof), `check_totals` for what a command left in a checkout. Nothing is counted between calls: the store's listing
is the truth. So two writes at the same moment can each be allowed, unless each reserves its room first and says what
others had `reserved` before (`backplane.limits.storage`), as uploads do.
"""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from backplane.domain.stored import Reserved
from backplane.errors import Conflict, QuotaExceeded
from backplane.workspace.base import Workspace
from backplane.workspace.paths import check_path, folders_above

NOTHING_RESERVED = Reserved()

MAX_STEP_ATTRIBUTES = 32 * 1024 * 1024
"""In bytes. 100,000 files (WORKSPACE_MAX_FILES) that one step makes, with paths of 60 bytes, need 15 MB."""

MAX_RUN_ATTRIBUTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Quota:
    """`max_bytes` and `max_files` are for the whole workspace of a run; `max_depth` is in folders above a file.
    `max_step_attributes` and `max_run_attributes`: bytes in the journal of the times, modes, folders and links that
    changed (`backplane.workspace.attributes`) in one step, and in all steps of a run together."""

    max_bytes: int
    max_files: int
    max_depth: int
    max_step_attributes: int = MAX_STEP_ATTRIBUTES
    max_run_attributes: int = MAX_RUN_ATTRIBUTES


def check_totals(quota: Quota, *, files: int, size: int) -> None:
    """Raises QuotaExceeded when a workspace of so many files and bytes is over the quota."""
    if files > quota.max_files:
        raise QuotaExceeded(
            f"The workspace would hold more than {quota.max_files} files (WORKSPACE_MAX_FILES): "
            "delete some, or pack them into one archive."
        )
    if size > quota.max_bytes:
        raise QuotaExceeded(
            f"The workspace would hold more than {quota.max_bytes} bytes (WORKSPACE_MAX_BYTES): delete files first."
        )


def check_attributes(quota: Quota, *, step: int, run: int) -> None:
    """Raises QuotaExceeded when the journal would have more than the quota of what changed beside the content of files,
    in bytes: of one step, or of all steps of the run."""
    if step > quota.max_step_attributes:
        raise QuotaExceeded(
            "The names, times, modes and links of what this step changed take more than "
            f"{quota.max_step_attributes} bytes: change fewer files, folders and "
            "links, give them shorter names, or pack them into one archive."
        )
    if run > quota.max_run_attributes:
        raise QuotaExceeded(
            "The names, times, modes and links of what all steps of this run changed take more than "
            f"{quota.max_run_attributes} bytes: let each step change fewer files, "
            "folders and links, pack them into one archive, or do the rest in a new run."
        )


@dataclass(frozen=True, slots=True)
class Room:
    """For one file: the most bytes that it may have once written, and those that it has now (0: it is not there)."""

    bytes: int
    replaced: int


async def ensure_room(
    workspace: Workspace, quota: Quota, path: str, size: int | None, reserved: Reserved = NOTHING_RESERVED
) -> Room:
    """The room for `path`; `size` is what was announced, None when nothing was. `reserved` is for other files.

    Raises InvalidPath, QuotaExceeded, and Conflict where a file would have to be a folder too. Costs one listing
    (one request to S3 per 1,000 files).
    """
    check_path(path, max_depth=quota.max_depth)
    if size is not None:
        check_totals(quota, files=1, size=size)

    others = {file.path: file.size for file in await workspace.list()}
    replaced = others.pop(path, 0)
    for folder in folders_above(path):
        if folder in others:
            raise Conflict(
                f"{folder!r} is a file, so nothing can be written below it: delete it or choose another name."
            )
    if any(other.startswith(f"{path}/") for other in others):
        raise Conflict(f"{path!r} is a folder with files in it: delete them or choose another name.")

    used = sum(others.values()) + reserved.bytes
    check_totals(quota, files=len(others) + reserved.files + 1, size=used + (size or 0))
    return Room(max(quota.max_bytes - used, 0), replaced)


async def limited(chunks: AsyncIterable[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The same chunks; raises QuotaExceeded instead of passing on the one that goes over `max_bytes`."""
    passed = 0
    async for chunk in chunks:
        passed += len(chunk)
        if passed > max_bytes:
            raise QuotaExceeded(
                f"The file is larger than the {max_bytes} bytes left in the workspace (WORKSPACE_MAX_BYTES): "
                "delete files first, or send a smaller one."
            )
        yield chunk
