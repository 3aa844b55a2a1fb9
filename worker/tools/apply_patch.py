"""Change files by a unified diff: all of them, or none.

Everything is read, checked and worked out before the first write. A store knows no transaction over several files, so
a worker that is lost in between leaves some written; the step is then simply repeated, for a file that is as after the
patch already counts as done (`worker.tools.patching`). What is written goes before what is deleted, so that no content
is ever nowhere.
"""

from collections.abc import Sequence

from pydantic import Field, field_validator

from backplane.errors import Conflict, InvalidInput, InvalidPath, NotFound, TooLarge
from backplane.workspace.base import Workspace
from backplane.workspace.files import in_thread
from backplane.workspace.paths import check_path, folders_above
from backplane.workspace.quota import Quota, check_totals
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.patching import FilePatch, apply_hunks, deletes, parse_patch, text_of_new_file

MAX_PATCH_CHARS = 1024**2
MAX_FILE_BYTES = 4 * 1024**2
MAX_TOTAL_BYTES = 32 * 1024**2

Files = dict[str, bytes | None]
"""Contents by path; None: there is no such file."""


class ApplyPatchArguments(ToolArguments):
    patch: str = Field(
        min_length=1,
        max_length=MAX_PATCH_CHARS,
        description="A unified diff of one or several files, as `git diff` prints it; /dev/null for new and deleted "
        "files; exact context.",
    )

    @field_validator("patch")
    @classmethod
    def _can_be_applied(cls, text: str) -> str:
        try:
            for file in parse_patch(text):
                for path in (file.before, file.after):
                    if path is not None:
                        check_path(path)
        except (InvalidInput, InvalidPath) as error:
            raise ValueError(error.message.removeprefix("patch: ")) from error
        return text


class ApplyPatch(Tool):
    name = "apply_patch"
    description = (
        "Change, make, delete and rename files by a unified diff. Every hunk has to fit exactly, at its line or "
        "nearby, or nothing is changed. Applying it twice is as good as once."
    )
    arguments = ApplyPatchArguments
    repeatable = True

    async def run(self, arguments: ApplyPatchArguments, context: ToolContext) -> ToolResult:
        patches = parse_patch(arguments.patch)
        before = await _contents(context.workspace, patches)
        after = await in_thread(_patched, patches, before)
        changes = {path: content for path, content in after.items() if content != before[path]}
        if not changes:
            context.output(b"all of the patch is applied already; nothing was changed\n")
            return ToolResult()
        await _ensure_room(context.workspace, context.quota, changes)
        await context.about_to_change()
        for path, content in changes.items():
            if content is not None:
                await context.workspace.put(path, content)
                context.output(f"{'changed' if before[path] is not None else 'made'} {path}\n".encode())
        for path, content in changes.items():
            if content is None:
                await _delete(context.workspace, path)
                context.output(f"deleted {path}\n".encode())
        return ToolResult(files_changed=tuple(sorted(changes)))


async def _contents(workspace: Workspace, patches: Sequence[FilePatch]) -> Files:
    paths = dict.fromkeys(path for file in patches for path in (file.before, file.after) if path is not None)
    found: Files = {}
    total = 0
    for path in paths:
        try:
            total += (size := (await workspace.stat(path)).size)
            if size > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES:
                raise TooLarge(
                    f"{path}: files to patch have at most {MAX_FILE_BYTES:,} bytes, and {MAX_TOTAL_BYTES:,} in all; "
                    "change it with a program instead"
                )
            found[path] = (await workspace.get(path))[1]
        except NotFound:
            found[path] = None
    return found


def _patched(patches: Sequence[FilePatch], before: Files) -> Files:
    """All files as they are after the patch. Raises Conflict when one does not fit."""
    files = dict(before)
    for patch in patches:
        if patch.before is None and patch.after is not None:
            files[patch.after] = _made(patch, patch.after, files[patch.after])
        elif patch.after is None and patch.before is not None:
            _check_deleted(patch, patch.before, files[patch.before])
            files[patch.before] = None
        elif patch.before == patch.after and patch.before is not None:
            files[patch.before] = _changed(patch, patch.before, files[patch.before])
        elif patch.before is not None and patch.after is not None:
            files[patch.after] = _renamed(patch, patch.before, patch.after, files)
            files[patch.before] = None
    return files


def _made(patch: FilePatch, path: str, present: bytes | None) -> bytes:
    new = text_of_new_file(patch)
    if present is not None and present != new:
        raise Conflict(f"{path} is a new file in the patch, and is there already with other content")
    return new


def _check_deleted(patch: FilePatch, path: str, present: bytes | None) -> None:
    if present is not None and not deletes(patch, present):
        raise Conflict(f"{path} is to be deleted, and its content is not what the patch says; nothing was changed")


def _changed(patch: FilePatch, path: str, present: bytes | None) -> bytes:
    if present is None:
        raise NotFound(f"there is no file {path}, which the patch changes; nothing was changed")
    new = apply_hunks(patch.hunks, present, path)
    return present if new is None else new


def _renamed(patch: FilePatch, before: str, after: str, files: Files) -> bytes:
    source, target = files[before], files[after]
    if source is None:
        if target is None or (patch.hunks and apply_hunks(patch.hunks, target, after) is not None):
            raise NotFound(f"there is no file {before}, which the patch renames; nothing was changed")
        return target
    new = _changed(patch, before, source) if patch.hunks else source
    if target is not None and target != new:
        raise Conflict(f"{before} is to become {after}, which is there already; nothing was changed")
    return new


async def _ensure_room(workspace: Workspace, quota: Quota, changes: Files) -> None:
    sizes = {file.path: file.size for file in await workspace.list()}
    for path, content in changes.items():
        if content is None:
            sizes.pop(path, None)
        else:
            sizes[check_path(path, max_depth=quota.max_depth)] = len(content)
    check_totals(quota, files=len(sizes), size=sum(sizes.values()))
    folders = {folder for path in sizes for folder in folders_above(path)}
    for path in folders.intersection(sizes):
        raise Conflict(f"{path!r} would be a file and a folder at once: use another name")


async def _delete(workspace: Workspace, path: str) -> None:
    try:
        await workspace.delete(path)
    except NotFound:
        return
