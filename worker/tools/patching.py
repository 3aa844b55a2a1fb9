"""Unified diffs, read and applied to texts: pure, so that a patch is known to fit before anything is written.

Context has to be there exactly; where the file has moved on, a hunk is looked for nearby. There is no fuzz: a patch
that does not fit as it is fits by luck. A patch may be applied to what it was applied to before (a worker was lost in
the middle of several files): each file says by itself whether it is as before the patch or as after it. Where it could
be both, nothing is done.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from backplane.errors import Conflict, InvalidInput, NotFound
from backplane.workspace.paths import check_path

MAX_FILES = 100
MAX_HUNKS = 500
MAX_OFFSET_LINES = 1000
_DEV_NULL = "/dev/null"
_SYMLINK, _SUBMODULE = "120000", "160000"
_NO_TEXT = re.compile("[\ud800-\udfff]")
_PREFIXED = re.compile(r"[abciow12]/.")


Files = dict[str, bytes | None]
"""Contents by path; None: there is no such file."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines with their line breaks; `source_at` and `target_at` count from 0. `leading` and `trailing` are the lines of
    context at its ends."""

    source_at: int
    source: tuple[bytes, ...]
    target_at: int
    target: tuple[bytes, ...]
    leading: int
    trailing: int


@dataclass(frozen=True, slots=True)
class FilePatch:
    """`before` is None for a new file, `after` for one that is deleted; they differ where it is renamed."""

    before: str | None
    after: str | None
    hunks: tuple[Hunk, ...]


def parse_patch(text: str) -> list[FilePatch]:
    """Raises InvalidInput for what is no unified diff, or holds what cannot be applied; InvalidPath for a name that a
    workspace cannot hold."""
    if _NO_TEXT.search(text):
        raise _invalid("it holds half of a character (a lone surrogate), which no file can hold")
    lines = text.split("\n")
    if all(line.endswith("\r") for line in lines[:-1]):
        text = text.replace("\r\n", "\n")
    try:
        parsed = PatchSet(text)
    except (UnidiffParseError, ValueError, AssertionError, IndexError) as error:
        raise _invalid(f"it is no unified diff: {str(error).strip()[:300]}") from error
    if not parsed:
        raise _invalid("it names no file: begin each with the lines --- a/PATH and +++ b/PATH")
    if len(parsed) > MAX_FILES or sum(len(file) for file in parsed) > MAX_HUNKS:
        raise _invalid(f"it has more than {MAX_FILES} files or {MAX_HUNKS} hunks: send it in parts")
    patches = [_file_patch(file) for file in parsed]
    for patch in patches:
        for path in (patch.before, patch.after):
            if path is not None:
                check_path(path)
    return patches


def apply_patches(patches: Sequence[FilePatch], before: Files) -> Files:
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


def apply_hunks(hunks: Sequence[Hunk], content: bytes, path: str) -> bytes | None:
    """The text after the patch; None when it is as after the patch already. Raises Conflict when it does not fit."""
    lines = _split(content)
    if lines and all(line.endswith(b"\r\n") for line in lines if line.endswith(b"\n")):
        hunks = [_with_crlf(hunk) for hunk in hunks]
    if lines and any(not hunk.source for hunk in hunks):
        raise Conflict(
            f"a hunk adds lines to {path} without a line of context, so that where is not known; give it some"
        )
    forward, backward = _places(lines, hunks, "source", edges=True), _places(lines, hunks, "target", edges=True)
    if isinstance(forward, int) and isinstance(backward, int):
        forward, backward = _places(lines, hunks, "source", edges=False), _places(lines, hunks, "target", edges=False)
    if isinstance(forward, int) and isinstance(backward, int):
        hunk = hunks[forward]
        raise Conflict(
            f"hunk {forward + 1} does not fit {path}: around line {hunk.source_at + 1} there is other text than it "
            "says; read the file and make the patch anew. Nothing was changed"
        )
    if isinstance(forward, int):
        return None
    if not isinstance(backward, int) and _drift(backward) <= _drift(forward) and not all(map(_only_deletes, hunks)):
        raise Conflict(
            f"{path} is as before the patch and as after it, both: it cannot be told whether it was applied; give the "
            "hunks more lines of context. Nothing was changed"
        )
    result, done = [], 0
    for hunk, (at, _) in zip(hunks, forward, strict=True):
        result += [*lines[done:at], *hunk.target]
        done = at + len(hunk.source)
    return b"".join([*result, *lines[done:]])


def text_of_new_file(patch: FilePatch) -> bytes:
    return b"".join(line for hunk in patch.hunks for line in hunk.target)


def deletes(patch: FilePatch, content: bytes) -> bool:
    """Whether that is what it deletes."""
    text = b"".join(line for hunk in patch.hunks for line in hunk.source)
    return text in (content, content.replace(b"\r\n", b"\n"))


_Place = tuple[int, int]
"""A line, and how far it is from where it was looked for."""


def _places(
    lines: Sequence[bytes], hunks: Sequence[Hunk], side: Literal["source", "target"], *, edges: bool
) -> list[_Place] | int:
    """Where this side of each hunk stands, in this order, none in another; else which of them is nowhere. `edges`: what
    has no context before or after it stands at the file's beginning or end, as in the diffs of whole files."""
    found: list[_Place] = []
    first, drift = 0, 0
    for number, hunk in enumerate(hunks):
        at, sought = (hunk.source_at, hunk.source) if side == "source" else (hunk.target_at, hunk.target)
        place = _nearest(lines, sought, at + drift, first)
        if edges and place is not None:
            if not hunk.leading and min(hunk.source_at, hunk.target_at) == 0 and sought:
                place = 0 if tuple(lines[: len(sought)]) == sought else None
            if not hunk.trailing and place is not None and sought:
                end = len(lines) - len(sought)
                place = end if end >= first and tuple(lines[end:]) == sought else None
        if place is None:
            return number
        found.append((place, place - at))
        first, drift = place + len(sought), place - at
    return found


def _nearest(lines: Sequence[bytes], sought: tuple[bytes, ...], at: int, first: int) -> int | None:
    last = len(lines) - len(sought)
    if not sought:
        # Nothing is nowhere but in nothing: it would fit every place.
        return None if lines else 0
    for distance in range(MAX_OFFSET_LINES + 1):
        for place in {at - distance, at + distance}:
            if not first <= place <= last or lines[place] != sought[0]:
                continue
            if tuple(lines[place : place + len(sought)]) == sought:
                return place
    return None


def _only_deletes(hunk: Hunk) -> bool:
    """And has context on one side only: then what is there after it is there before it, too."""
    kept = hunk.leading + hunk.trailing
    return len(hunk.target) == kept < len(hunk.source) and not (hunk.leading and hunk.trailing)


def _drift(places: Sequence[_Place]) -> int:
    return max((abs(drift) for _, drift in places), default=0)


def _split(content: bytes) -> list[bytes]:
    """At line feeds alone, which is what diffs do."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _with_crlf(hunk: Hunk) -> Hunk:
    """The hunk for a file with CR LF, where it was written without the CR."""
    if any(line.endswith(b"\r\n") for line in (*hunk.source, *hunk.target)):
        return hunk

    def changed(lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(line[:-1] + b"\r\n" if line.endswith(b"\n") else line for line in lines)

    return replace(hunk, source=changed(hunk.source), target=changed(hunk.target))


def _file_patch(file: Any) -> FilePatch:
    info = [str(line) for line in file.patch_info or ()]
    if file.is_binary_file or any(line.startswith(("GIT binary patch", "Binary file")) for line in info):
        raise _invalid(f"{file.path} is binary; write it with file_write instead")
    if {file.source_mode, file.target_mode} & {_SYMLINK, _SUBMODULE}:
        raise _invalid(f"{file.path} is a link or a submodule, which a workspace does not have")
    if any(line.startswith("copy from ") for line in info):
        raise _invalid(f"{file.path} is a copy: give it as a new file")
    before, after = _names(_unquoted(file.source_file), _unquoted(file.target_file))
    renamed = any(line.startswith("rename from ") for line in info)
    if before is not None and after is not None and before != after and not renamed:
        raise _invalid(
            f"{before} becomes {after} without the lines `rename from` and `rename to`: use one name for both"
        )
    if before is None and after is None:
        raise _invalid("a file is /dev/null on both sides")
    hunks = tuple(_hunk(hunk) for hunk in file)
    if not hunks and before == after:
        raise _invalid(f"there is nothing to do for {before}: a change needs a hunk, which begins with @@")
    return FilePatch(before, after, hunks)


def _hunk(hunk: Any) -> Hunk:
    source: list[bytes] = []
    target: list[bytes] = []
    last: list[list[bytes]] = []
    for line in hunk:
        if line.line_type == "\\":
            for side in last:
                side[-1] = side[-1].removesuffix(b"\n")
            continue
        if not line.line_type:  # an empty line between this hunk and what comes next
            continue
        last = {"-": [source], "+": [target]}.get(line.line_type, [source, target])
        for side in last:
            side.append(str(line.value).removesuffix("\n").encode() + b"\n")
    if source == target:
        raise _invalid("a hunk changes nothing: begin the lines to take away with - and those to add with +")
    # A side without lines is told by the line before it.
    return Hunk(
        hunk.source_start - 1 if source else hunk.source_start,
        tuple(source),
        hunk.target_start - 1 if target else hunk.target_start,
        tuple(target),
        _context(hunk),
        _context(reversed(hunk)),
    )


def _context(lines: Iterable[Any]) -> int:
    """How many lines of context come first."""
    kinds = [line.line_type for line in lines if line.line_type not in ("", "\\")]
    return next((number for number, kind in enumerate(kinds) if kind != " "), len(kinds))


def _names(source: str, target: str) -> tuple[str | None, str | None]:
    """Without `a/` and `b/`, where all that are there have them."""
    named = [name for name in (source, target) if name != _DEV_NULL]
    prefixed = all(_PREFIXED.match(name) for name in named) and (len(named) < 2 or source[:2] != target[:2])
    names = [None if name == _DEV_NULL else name[2:] if prefixed else name for name in (source, target)]
    return names[0], names[1]


def _unquoted(name: str) -> str:
    """A name as Git writes it when it is not plain ASCII: in quotes, its bytes as octal numbers."""
    name = name.strip()
    if len(name) < 2 or not (name.startswith('"') and name.endswith('"')):
        return name
    try:
        return name[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise _invalid(f"the name {name[:200]} cannot be read: write it as it is, without quotes") from error


def _invalid(what: str) -> InvalidInput:
    return InvalidInput(f"patch: {what}", field="patch")
