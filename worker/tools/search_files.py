"""Search the run's files for a text or a pattern, line by line.

Files are streamed, so their size is no matter; what cannot be text is left out. A pattern may be such that matching
takes for ever (`(a|aa)+$`): the library `regex` gives up in time, works without holding the interpreter, and does so in
a thread.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import regex
from pydantic import Field, model_validator

from backplane.domain.sizes import shortened
from backplane.errors import InvalidInput, NotFound
from backplane.process.tasks import in_thread
from backplane.workspace.base import FileInfo, Workspace
from worker.tools.arguments import WorkspaceFolder
from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.globs import compile_glob

MAX_SECONDS = 10.0
"""Of matching alone."""
MAX_FILE_BYTES = 64 * 1024**2
MAX_SCANNED_BYTES = 256 * 1024**2
MAX_LINE_BYTES = 64 * 1024
"""Of a longer line, this much is searched."""
SHOWN_CHARS = 400
NAMED_FILES = 10
MAX_REPETITIONS = 1000
"""A counted repetition is written out when it is compiled: `((a{1000}){1000}){1000}` would take all memory."""

_PROBE_BYTES = 8192
_BATCH_BYTES = 1024**2
_COUNTS = regex.compile(r"\{\s*([0-9]*)\s*(?:,\s*([0-9]*)\s*)?\}")

Search = Callable[[str], int | None]
"""Where in a line the first match begins."""


class SearchFilesArguments(ToolArguments):
    pattern: str = Field(min_length=1, max_length=1000, description="A regular expression, or a text with `literal`.")
    literal: bool = Field(False, description="Look for the pattern as it is.")
    ignore_case: bool = False
    folder: WorkspaceFolder | None = Field(None, description="Only in this folder or file.")
    glob: str | None = Field(
        None, max_length=300, description="Only files that fit: *.py by name, src/**/*.{py,pyi} by path."
    )
    context: int = Field(0, ge=0, le=20, description="Lines to print before and after each match.")
    max_matches: int = Field(100, ge=1, le=1000, description="Lines with a match, at most.")

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        _search(self)
        if self.glob is not None:
            compile_glob(self.glob)
        return self


class SearchFiles(Tool):
    name = "search_files"
    description = (
        "Print the lines of the run's files that match a regular expression (or contain a text), as path:line: text. "
        "Binary files and very large ones are left out, and it says so."
    )
    arguments = SearchFilesArguments
    repeatable = True
    read_only = True

    async def run(self, arguments: SearchFilesArguments, context: ToolContext) -> ToolResult:
        found = _SearchTally(arguments.context, arguments.max_matches, _search(arguments))
        for file in await _selected(context.workspace, arguments):
            if file.size > MAX_FILE_BYTES:
                found.too_large += 1
                continue
            if found.scanned_bytes + file.size > MAX_SCANNED_BYTES:
                found.is_cut = f"the limit of {MAX_SCANNED_BYTES:,} bytes was reached; search in a folder, or by glob"
                break
            await _search_file(context.workspace, file, found, context.output)
            if found.matches >= arguments.max_matches:
                found.is_cut = f"there may be more than {found.matches} matches; see max_matches"
                break
        context.output(f"{found.summary()}\n".encode())
        return ToolResult()


async def _selected(workspace: Workspace, arguments: SearchFilesArguments) -> list[FileInfo]:
    """Raises NotFound when a folder or a glob selects nothing: no match in no file would look like an answer."""
    files = await workspace.list(arguments.folder or "")
    if arguments.folder and not files:
        raise NotFound(f"folder: there is no file below {arguments.folder!r}")
    if arguments.glob is None:
        return files
    fits = compile_glob(arguments.glob)
    selected = [file for file in files if fits(file.path)]
    if not selected:
        some = ", ".join(file.path for file in files[:NAMED_FILES]) or "none"
        raise NotFound(f"glob: none of the {len(files):,} files fits {arguments.glob!r}; there are: {some}")
    return selected


@dataclass
class _SearchTally:
    context_lines: int
    max_matches: int
    search: Search
    matches: int = 0
    files_with_matches: int = 0
    files: int = 0
    binary: int = 0
    too_large: int = 0
    scanned_bytes: int = 0
    is_cut: str = ""

    def summary(self) -> str:
        parts = [f"{self.matches:,} lines match in {self.files_with_matches:,} of {self.files:,} files"]
        if self.binary:
            parts.append(f"{self.binary:,} binary files left out")
        if self.too_large:
            parts.append(f"{self.too_large:,} files over {MAX_FILE_BYTES:,} bytes left out")
        return "; ".join([*parts, *([self.is_cut] if self.is_cut else [])])


@dataclass
class _InFile:
    """Between the batches of a file: what comes before the next match, and how much is still to come after the last."""

    path: str
    before: deque[str]
    number: int = 0
    after: int = 0
    last_shown: int = 0
    matches: int = 0
    shown: list[str] = field(default_factory=list)


async def _search_file(
    workspace: Workspace, file: FileInfo, found: _SearchTally, output: Callable[[bytes], None]
) -> None:
    state = _InFile(file.path, deque(maxlen=found.context_lines))
    found.files += 1
    async for batch in _batches(workspace.read(file.path), found):
        if batch is None:
            found.binary += 1
            break
        await in_thread(_search_lines, batch, state, found)
        if state.shown:
            output("".join(state.shown).encode("utf-8", "replace"))
            state.shown.clear()
        if found.matches >= found.max_matches and not state.after:
            break
    found.files_with_matches += state.matches > 0


def _search_lines(lines: Sequence[bytes], state: _InFile, found: _SearchTally) -> None:
    for line in lines:
        state.number += 1
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        at = found.search(text) if found.matches < found.max_matches else None
        if at is not None:
            found.matches += 1
            state.matches += 1
            if found.context_lines and state.last_shown and state.number - len(state.before) > state.last_shown + 1:
                state.shown.append("--\n")
            first = state.number - len(state.before)
            for number, earlier in enumerate(state.before, first):
                state.shown.append(f"{state.path}-{number}- {shortened(earlier, SHOWN_CHARS)}\n")
            state.before.clear()
            state.shown.append(f"{state.path}:{state.number}: {_around(text, at)}\n")
            state.last_shown, state.after = state.number, found.context_lines
        elif state.after:
            state.after -= 1
            state.shown.append(f"{state.path}-{state.number}- {shortened(text, SHOWN_CHARS)}\n")
            state.last_shown = state.number
        elif found.context_lines:
            state.before.append(text)


def _search(arguments: SearchFilesArguments) -> Search:
    """Raises ValueError for a pattern that is none."""
    if arguments.literal and not arguments.ignore_case:
        return lambda line: at if (at := line.find(arguments.pattern)) >= 0 else None
    compiled, left = _compiled(arguments), MAX_SECONDS

    def search(line: str) -> int | None:
        nonlocal left
        began = time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            match = compiled.search(line, timeout=left, concurrent=True)
        except TimeoutError as error:
            raise InvalidInput(
                f"pattern: it took more than {MAX_SECONDS:g} seconds to match; make it simpler (a repetition within a "
                "repetition takes time that doubles with each character), or search in fewer files",
                field="pattern",
            ) from error
        left -= time.monotonic() - began
        return None if match is None else int(match.start())

    return search


def _compiled(arguments: SearchFilesArguments) -> "regex.Pattern[str]":
    text = regex.escape(arguments.pattern) if arguments.literal else arguments.pattern
    repetitions = 1
    for counts in () if arguments.literal else _COUNTS.findall(text):
        repetitions *= max(1, *(int(count or 1) if len(count) < 10 else MAX_REPETITIONS + 1 for count in counts))
    if repetitions > MAX_REPETITIONS:
        raise ValueError(f"pattern: its counted repetitions make more than {MAX_REPETITIONS:,} in all")
    try:
        return regex.compile(text, regex.IGNORECASE if arguments.ignore_case else 0)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise ValueError(
            f"pattern: it is no regular expression ({shortened(str(error), 200)}); with literal it is taken as it is"
        ) from error


def _around(text: str, at: int) -> str:
    """The line, or the part of a long one where the match is."""
    if len(text) <= SHOWN_CHARS:
        return text
    start = max(0, at - SHOWN_CHARS // 4)
    return f"{'…' if start else ''}{text[start : start + SHOWN_CHARS]}…"


async def _batches(chunks: AsyncIterator[bytes], found: _SearchTally) -> AsyncIterator[list[bytes] | None]:
    """The lines of a file without their breaks, many at a time; None: it is binary, and there is no more."""
    rest, batch, size = b"", list[bytes](), 0
    is_first = True
    async for chunk in chunks:
        found.scanned_bytes += len(chunk)
        if is_first and b"\0" in chunk[:_PROBE_BYTES]:
            yield None
            return
        is_first = False
        *lines, rest = (rest + chunk).split(b"\n")
        batch += [line[:MAX_LINE_BYTES] for line in lines]
        # Of a line without an end, what is not searched is not held; the break after it is still found.
        rest = rest[: MAX_LINE_BYTES + 1]
        size += len(chunk)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if rest:
        batch.append(rest[:MAX_LINE_BYTES])
    if batch:
        yield batch
