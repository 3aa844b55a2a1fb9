"""Reads unified diffs as people, git and models write them.

Models miscount. So the numbers of a hunk's head are believed only where the hunk's lines agree with them; else the
lines themselves say where the hunk ends. No line of a patch is passed over: what is no part of a hunk, of a file's head
or of the text around a mail is an error that names its line. Where in a file a hunk belongs is found by
`worker.tools.patching`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backplane.domain.sizes import shortened
from backplane.errors import InvalidInput
from backplane.workspace.paths import file_path

MAX_FILES = 100
MAX_HUNKS = 500
_DEV_NULL = "/dev/null"
_SYMLINK, _SUBMODULE = "120000", "160000"
_NO_TEXT = re.compile("[\ud800-\udfff]")
_PREFIXED = re.compile(r"[abciow12]/.")
_COUNTED = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_MAIL = re.compile(r"From [0-9a-f]{7,64} ")
_EXTENDED = re.compile(
    r"(old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from|rename to|similarity index"
    r"|dissimilarity index|index) (.*)"
)
_OTHER_FORMAT = ("*** Begin Patch", "*** Update File:", "*** Add File:", "<<<<<<< SEARCH")
_WRAPPING = ("*** Begin Patch", "*** End Patch")
_NO_BREAK = "\\"


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines with their line breaks. `source_at` and `target_at` count from 0 and are None where the head has no
    numbers. `leading` and `trailing` are the lines of context at its ends. `line` is the line of its head in the patch,
    from 1."""

    source_at: int | None
    source: tuple[bytes, ...]
    target_at: int | None
    target: tuple[bytes, ...]
    leading: int
    trailing: int
    line: int = 0


@dataclass(frozen=True, slots=True)
class FilePatch:
    """`before` is None for a new file, `after` for one that is deleted; they differ where it is renamed. `is_program`:
    whether the file can be executed after the patch; None: as before."""

    before: str | None
    after: str | None
    hunks: tuple[Hunk, ...]
    is_program: bool | None = None


@dataclass(slots=True)
class _File:
    """One file of a patch while it is read."""

    line: int
    source: str | None = None
    target: str | None = None
    named: tuple[str, str] | None = None
    extended: dict[str, str] = field(default_factory=dict)
    is_binary: bool = False
    hunks: list[Hunk] = field(default_factory=list)


def parse_patch(text: str) -> list[FilePatch]:
    """Raises InvalidInput for what is no unified diff, or holds what cannot be applied; InvalidPath for a name that a
    workspace cannot hold."""
    if _NO_TEXT.search(text):
        raise _invalid("it holds half of a character (a lone surrogate), which no file can hold")
    raw = text.split("\n")
    lines = _lines(text)
    is_diff = any(line.startswith(("--- ", "diff --git ")) for line in lines)
    other = next((line for line in raw if line.startswith(_OTHER_FORMAT)), None)
    files = [] if other and not is_diff else _Reader(lines).files()
    if not files:
        raise _invalid(
            (f"{shortened(other, 100)!r} belongs to another format; " if other else "it names no file; ")
            + "begin each file with the lines --- a/PATH and +++ b/PATH, each hunk with @@ -LINE,COUNT +LINE,COUNT @@"
        )
    if len(files) > MAX_FILES or sum(len(file.hunks) for file in files) > MAX_HUNKS:
        raise _invalid(f"it has more than {MAX_FILES} files or {MAX_HUNKS} hunks: send it in parts")
    return [_file_patch(file) for file in files]


def _lines(text: str) -> list[str]:
    """Without their breaks, without a fence of Markdown around them."""
    lines = text.split("\n")
    if all(line.endswith("\r") for line in lines[:-1]):
        lines = [line.removesuffix("\r") for line in lines]
    if lines and not lines[-1]:
        lines.pop()
    return _inside_fences(["" if line.rstrip() in _WRAPPING else line for line in lines])


def _inside_fences(lines: list[str]) -> list[str]:
    """All but what stands in fences made empty, where one opens before the first file. A part of the patch outside of
    them is an error: it would be passed over."""
    first = next((at for at, line in enumerate(lines) if line.startswith(("```", "--- ", "diff --git "))), None)
    if first is None or not lines[first].startswith("```"):
        return lines
    kept, is_inside = list[str](), False
    for number, line in enumerate(lines, 1):
        if line.startswith("```") and (not is_inside or line.strip() == "```"):
            is_inside = not is_inside
            kept.append("")
            continue
        if not is_inside and line.startswith(("--- ", "+++ ", "@@", "diff --git ")):
            raise _invalid(
                f"line {number} stands outside of the fence (```): put the whole patch into it, or leave it out"
            )
        kept.append(line if is_inside else "")
    return kept


class _Reader:
    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._filled = _filled(lines)
        self._at = 0
        self._files: list[_File] = []
        self._is_around = True
        """In text that belongs to no file: before the first one, and in a mail between two."""

    def files(self) -> list[_File]:
        while self._at < len(self._lines):
            self._read()
        return self._files

    def _read(self) -> None:
        line, file = self._lines[self._at], self._files[-1] if self._files else None
        if line.startswith("diff --git "):
            self._begin(named=_git_names(line))
        elif self._is_head(self._at):
            if file is None or file.source is not None or file.hunks or self._is_around:
                file = self._begin()
                self._at -= 1
            file.source, file.target = _name(line), _name(self._lines[self._at + 1])
            self._at += 2
        elif line.startswith("@@"):
            if file is None or self._is_around:
                raise _invalid(f"line {self._at + 1}: a hunk without the lines --- a/PATH and +++ b/PATH before it")
            file.hunks.append(self._hunk())
        elif (extended := _EXTENDED.fullmatch(line)) and file and not file.hunks and not self._is_around:
            file.extended[extended[1]] = extended[2]
            self._at += 1
        elif line.startswith(("GIT binary patch", "Binary files ")) and file:
            file.is_binary = True
            self._is_around = True
            self._at += 1
        elif _MAIL.match(line) or line.rstrip() == "--" or line.startswith(("Index: ", "diff ", "Only in ")):
            self._is_around = True
            self._at += 1
        elif self._is_around or not line.strip() or line.startswith("====="):
            self._at += 1
        else:
            raise _invalid(
                f"line {self._at + 1} is part of no hunk: {shortened(line, 100)!r}; within a hunk each line begins "
                "with a space, - or +"
            )

    def _begin(self, named: tuple[str, str] | None = None) -> _File:
        file = _File(self._at + 1, named=named)
        self._files.append(file)
        self._is_around = False
        self._at += 1
        return file

    def _is_head(self, at: int) -> bool:
        """Of a file: the line --- and the line +++ after it."""
        return (
            at + 1 < len(self._lines) and self._lines[at].startswith("--- ") and self._lines[at + 1].startswith("+++ ")
        )

    def _ends(self, at: int) -> bool:
        """Whether no line of a hunk can stand there, nor behind the empty lines there."""
        if at < len(self._lines):
            at = self._filled[at]
        if at >= len(self._lines):
            return True
        line = self._lines[at]
        if line.startswith(("@@", "diff ", "Index: ")) or _MAIL.match(line) or self._is_head(at):
            return True
        # "-- ", and the version of git that follows: the end of a mail.
        return line.rstrip() == "--" and line != "--"

    def _hunk(self) -> Hunk:
        head, start = self._lines[self._at], self._at + 1
        counted = _COUNTED.match(head)
        end = self._counted_end(start, counted) if counted else None
        if end is None:
            end = self._end_by_lines(start)
        source: list[bytes] = []
        target: list[bytes] = []
        kinds: list[str] = []
        last: list[list[bytes]] = []
        for number, line in enumerate(self._lines[start:end], start + 1):
            kind = line[:1] or " "
            if kind == _NO_BREAK:
                for side in last:
                    side[-1] = side[-1].removesuffix(b"\n")
                continue
            if kind not in " +-":
                raise _invalid(f"line {number}: {shortened(line, 100)!r} begins with neither a space, - nor +")
            last = {"-": [source], "+": [target]}.get(kind, [source, target])
            for side in last:
                side.append(line[1:].encode() + b"\n")
            kinds.append(kind)
        self._at = end
        if source == target:
            raise _invalid(
                f"line {start}: the hunk changes nothing: begin the lines to take away with - and those to add with +"
            )
        # A side without lines is named by the line before it.
        source_at = int(counted[1]) - (1 if source else 0) if counted else None
        target_at = int(counted[3]) - (1 if target else 0) if counted else None
        return Hunk(source_at, tuple(source), target_at, tuple(target), _context(kinds), _context(kinds[::-1]), start)

    def _counted_end(self, start: int, counted: "re.Match[str]") -> int | None:
        """The end of the hunk by the numbers of its head; None when its lines do not agree with them."""
        source, target = (int(count) if count is not None else 1 for count in (counted[2], counted[4]))
        at = start
        while source > 0 or target > 0:
            if at >= len(self._lines):
                return None
            kind = self._lines[at][:1] or " "
            if kind not in " +-\\":
                return None
            source -= kind in " -"
            target -= kind in " +"
            at += 1
        while at < len(self._lines) and self._lines[at].startswith(_NO_BREAK):
            at += 1
        if source or target or (not self._ends(at) and self._lines[at][:1] in tuple(" +-")):
            return None
        return at

    def _end_by_lines(self, start: int) -> int:
        at = start
        while not self._ends(at):
            at += 1
        return at


def _filled(lines: Sequence[str]) -> list[int]:
    """For each line the number of the first one from there on that is not empty. Found once for all lines, so that many
    empty lines cost no more than others."""
    found, filled = [0] * len(lines), len(lines)
    for at in range(len(lines) - 1, -1, -1):
        if lines[at]:
            filled = at
        found[at] = filled
    return found


def _context(kinds: Sequence[str]) -> int:
    """How many lines of context come first."""
    return next((number for number, kind in enumerate(kinds) if kind != " "), len(kinds))


def _file_patch(file: _File) -> FilePatch:
    kinds = file.extended
    if "copy from" in kinds:
        raise _invalid(f"line {file.line}: copies are not supported (copy from, copy to); give it as a new file")
    before, after = _paths(file)
    shown = after or before
    if file.is_binary:
        raise _invalid(f"{shown} is binary; write it with file_write instead")
    if {mode.split(" ")[0] for name, mode in kinds.items() if name.endswith("mode")} & {_SYMLINK, _SUBMODULE}:
        raise _invalid(f"{shown} is a link or a submodule, which a workspace does not have")
    if before is None and after is None:
        raise _invalid(f"line {file.line}: a file is /dev/null on both sides")
    if before is not None and after is not None and before != after and "rename from" not in kinds:
        raise _invalid(
            f"{before} becomes {after} without the lines `rename from` and `rename to`: use one name for both"
        )
    is_program = _is_program(kinds)
    if not file.hunks and before == after and is_program is None:
        raise _invalid(f"there is nothing to do for {before}: a change needs a hunk, which begins with @@")
    return FilePatch(before, after, _in_order(file.hunks), is_program)


def _is_program(extended: Mapping[str, str]) -> bool | None:
    """By the executable bit of the owner, the only one that git keeps; None for a new file of the usual mode."""
    mode = extended.get("new mode") or extended.get("new file mode")
    if mode is None or not re.fullmatch(r"[0-7]{3,6}", mode.strip()):
        return None
    can_be_run = bool(int(mode, 8) & 0o100)
    return can_be_run if can_be_run or "new mode" in extended else None


def _in_order(hunks: Sequence[Hunk]) -> tuple[Hunk, ...]:
    """Of the file, where all say where they belong."""
    if all(hunk.source_at is not None for hunk in hunks):
        return tuple(sorted(hunks, key=lambda hunk: hunk.source_at or 0))
    return tuple(hunks)


def _paths(file: _File) -> tuple[str | None, str | None]:
    if file.source is not None and file.target is not None:
        before, after = _without_prefixes(file.source, file.target)
    elif "rename from" in file.extended and "rename to" in file.extended:
        before, after = (file_path(_unquoted(file.extended[name])) for name in ("rename from", "rename to"))
    elif file.named is not None:
        before, after = _without_prefixes(*file.named)
    else:
        raise _invalid(f"line {file.line}: it cannot be seen which file is meant; write the lines --- and +++")
    if file.source is None and "new file mode" in file.extended:
        before = None
    if file.source is None and "deleted file mode" in file.extended:
        after = None
    return before, after


def _without_prefixes(source: str, target: str) -> tuple[str | None, str | None]:
    """Without `a/` and `b/`, where all that are there have them."""
    named = [name for name in (source, target) if name != _DEV_NULL]
    prefixed = all(_PREFIXED.match(name) for name in named) and (len(named) < 2 or source[:2] != target[:2])
    names = [None if name == _DEV_NULL else name[2:] if prefixed else name for name in (source, target)]
    return (None if names[0] is None else file_path(names[0])), (None if names[1] is None else file_path(names[1]))


def _git_names(line: str) -> tuple[str, str] | None:
    """Of the line `diff --git a/x b/x`, which does not say where the first name ends: where both are the same."""
    names = line.removeprefix("diff --git ")
    middle = len(names) // 2
    first, second = _unquoted(names[:middle]), _unquoted(names[middle + 1 :])
    return (first, second) if names[middle : middle + 1] == " " and first[2:] == second[2:] else None


def _name(line: str) -> str:
    """Of a line --- or +++, without the time that may stand behind it."""
    return _unquoted(line[4:].split("\t")[0].rstrip("\r"))


def _unquoted(name: str) -> str:
    """A name as Git writes it when it is not plain ASCII: in quotes, its bytes as octal numbers."""
    name = name.strip()
    if len(name) < 2 or not (name.startswith('"') and name.endswith('"')):
        return name
    try:
        return name[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise _invalid(f"the name {shortened(name, 200)} cannot be read: write it as it is, without quotes") from error


def _invalid(what: str) -> InvalidInput:
    return InvalidInput(f"patch: {what}", field="patch")
