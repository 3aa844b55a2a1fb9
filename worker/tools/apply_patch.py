"""Change files by a unified diff: all of them, or none.

Everything is read, checked and worked out before the first write. A store knows no transaction over several files, so a
worker that is lost in between leaves some written; the step is then simply repeated, for a file that is as after the
patch already counts as done (`worker.tools.patching`). Files are written before others are deleted, so that no content
is ever lost.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from backplane.errors import Conflict, NotFound, TooLarge
from backplane.workspace.attributes import FILE_MODE, PROGRAM_MODE
from backplane.workspace.base import Workspace
from backplane.workspace.paths import check_path, folders_above
from backplane.workspace.quota import Quota, check_totals
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.patching import Files, apply_with_notes
from worker.tools.unified_diff import FilePatch, parse_patch

MAX_PATCH_CHARS = 1024**2
MAX_FILE_BYTES = 4 * 1024**2
MAX_TOTAL_BYTES = 32 * 1024**2


class ApplyPatchArguments(ToolArguments):
    patch: str = Field(
        min_length=1,
        max_length=MAX_PATCH_CHARS,
        description="A unified diff of one or several files, as `git diff` prints it; /dev/null for new and deleted "
        "files; exact context. Counts in the heads of hunks may be wrong; line numbers say where to look first.",
    )


class ApplyPatch(Tool):
    name = "apply_patch"
    description = (
        "Change, make, delete and rename files by a unified diff. Every hunk has to fit exactly, at its line or "
        "nearby, or nothing is changed. Applying it twice is as good as once."
    )
    arguments = ApplyPatchArguments
    repeatable = True

    async def run(self, arguments: ApplyPatchArguments, context: ToolContext) -> ToolResult:
        user_id, chars = context.call.user_id, len(arguments.patch)
        patches = await context.parser.call(user_id, "the patch", chars, parse_patch, arguments.patch)
        before = await _contents(context.workspace, patches)
        chars += sum(len(content or b"") for content in before.values())
        after, notes = await context.parser.call(user_id, "the patch", chars, apply_with_notes, patches, before)
        changes = {path: content for path, content in after.items() if content != before[path]}
        modes = await _modes(patches, context)
        if not changes and not modes:
            context.output(b"all of the patch is applied already; nothing was changed\n")
            return ToolResult()
        await _ensure_room(context.workspace, context.quota, changes)
        context.output("".join(f"{note}\n" for note in notes).encode())
        await context.about_to_change()
        for path, content in changes.items():
            if content is not None:
                await context.workspace.put(path, content)
                context.output(f"{'changed' if before[path] is not None else 'made'} {path}\n".encode())
        for path, content in changes.items():
            if content is None:
                await _delete(context.workspace, path)
                context.output(f"deleted {path}\n".encode())
        await _set_modes(modes, context)
        return ToolResult(files_changed=tuple(sorted({*changes, *modes})))


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


async def _modes(patches: Sequence[FilePatch], context: ToolContext) -> dict[str, int]:
    """The modes that the patch gives, and the files do not have yet. One that is renamed keeps its own."""
    record = context.attributes
    wanted = {patch.after: patch.is_program for patch in patches if patch.after and patch.is_program is not None}
    moved = {patch.after: patch.before for patch in patches if patch.before and patch.after and not patch.is_program}
    moved = {after: before for after, before in moved.items() if after != before}
    if record is None or not (wanted or moved):
        if wanted:
            context.output(b"modes are left as they are: none are kept here\n")
        return {}
    await record.load()
    found = {path: PROGRAM_MODE if is_program else FILE_MODE for path, is_program in wanted.items()}
    for after, before in moved.items():
        if (known := record.get(before)) is not None and known.mode is not None:
            found.setdefault(after, known.mode)
    return {path: mode for path, mode in found.items() if (one := record.get(path)) is None or one.mode != mode}


async def _set_modes(modes: dict[str, int], context: ToolContext) -> None:
    if not modes or context.attributes is None:
        return
    known = context.attributes.of_files(await context.workspace.list())
    context.attributes.change({path: replace(known[path], mode=mode) for path, mode in modes.items()})
    for path, mode in modes.items():
        context.output(f"mode of {path}: {mode:o}\n".encode())


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
