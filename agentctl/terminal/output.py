"""What commands print: for people on a terminal, plain lines in a pipe, JSON when asked for.

Standard output carries the answer and nothing else; notes, warnings and errors go to standard error. Text that came
from a run, a file or a server is hostile: what could steer a terminal, or hide in it, is taken out here, whatever a
command passes on (`backplane.process.terminal_text`). Markup in it is text. JSON is printed in ASCII, which escapes the
same characters without losing them; the bytes of a file are cleaned for a terminal and go into a pipe as they are.
"""

import codecs
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from agentctl.terminal.tables import GAP, column_widths, natural_widths, wrapped
from backplane.process.log_stream import keep_standard_descriptors
from backplane.process.terminal_text import one_for_one, printable

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one line for each event.")]

_LINE_MAX_CHARS = 64 * 1024
"""How long a line of a file is waited for when the file is shown on a terminal, in seconds."""

LISTED = 5
"""Names of a list that stand in one line; `--json` has all."""

STATUS_STYLES = {
    "created": "dim",
    "queued": "cyan",
    "running": "blue",
    "waiting": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
}


class ReaderGone(Exception):
    """Nobody reads standard output or error any more. No OSError, since libraries make an exit code of those."""


class _TerminalStream(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGone from None


def open_streams() -> None:
    """Make the standard streams fit for use: those that are closed lead nowhere, what cannot be encoded is replaced,
    and a reader that has gone is a ReaderGone. To be called before anything is opened."""
    keep_standard_descriptors()
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # 0 columns is what some terminals say that do not know; nothing would be shown
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
            buffer = io.BufferedWriter(_TerminalStream(stream.fileno(), "w", closefd=False))
            encoding, by_line = stream.encoding, name == "stderr" or stream.isatty()
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "replace", line_buffering=by_line))


def program() -> str:
    """How a person calls this program from here: what hints to the next command begin with."""
    if shutil.which("agentctl"):
        return "agentctl"
    beside = Path(sys.executable).with_name("agentctl")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m agentctl"
    return shlex.quote(min(str(beside), os.path.relpath(beside), key=len))


def duration(seconds: float) -> str:
    """`12 ms`, `1.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def local_time(moment: str | None) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def short_time(moment: str | None) -> str:
    """The time of day for today, else the date."""
    if not moment:
        return ""
    local = datetime.fromisoformat(moment).astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now(local.tzinfo).date() else "%Y-%m-%d")


def some_of(names: Sequence[str], more: int = 0) -> str:
    """A list as one line: the first few, and how many follow; `more` of them are not in the list."""
    rest = len(names) - LISTED + more if len(names) > LISTED else more
    return ", ".join(names[:LISTED]) + (f" and {rest:,} more" if rest else "")


def first_line(prompt: str) -> str:
    """The first line that has something in it, cut to what a table has room for."""
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "")
    return line if len(line) <= 60 else f"{line[:59]}…"


class _CleanConsole(Console):
    """Whatever is printed, its own control codes alone reach the terminal. Texts keep their width."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            clean = text if control else "\n".join(map(one_for_one, text.split("\n")))
            yield Segment(clean, style, control)


class Sink(Protocol):
    """Takes the bytes of a file; `flush` it in the end."""

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class _TerminalSink:
    """Shows a file on a terminal, line by line."""

    def __init__(self, output: "Output") -> None:
        self._output = output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def write(self, data: bytes, /) -> int:
        *lines, self._line = (self._line + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._output.line(line)
        if len(self._line) > _LINE_MAX_CHARS:
            self._output.line(self._line)
            self._line = ""
        return len(data)

    def flush(self) -> None:
        rest = self._line + self._decoder.decode(b"", final=True)
        self._line = ""
        if rest:
            self._output.line(rest)


class Output:
    """`json` says which of the two a command prints. Made by each command, as its flag says."""

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.out = _CleanConsole(highlight=False, markup=False, emoji=False)
        self.err = _CleanConsole(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def live(self) -> bool:
        """A person looks at it: what moves and what is coloured is welcome."""
        return self.out.is_terminal and not self.json

    def line(self, text: str | Text = "", style: str = "") -> None:
        """One line, however wide the terminal: lines that are copied must not be broken. Line breaks may stand before
        it, and within it they are no line breaks."""
        if isinstance(text, str):
            line = text.lstrip("\n")
            text = "\n" * (len(text) - len(line)) + printable(line)
        self.out.print(text, style=style, soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        self.err.print(printable(text), style=style, soft_wrap=True)

    def document(self, value: Any) -> None:
        print(_in_ascii(json.dumps(value, indent=2)), flush=True)

    def json_line(self, value: Any) -> None:
        print(_in_ascii(json.dumps(value, separators=(",", ":"))), flush=True)

    def sink(self) -> Sink:
        """Standard output for the bytes of a file."""
        return _TerminalSink(self) if sys.stdout.isatty() else sys.stdout.buffer

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        folding: Sequence[str] = (),
        cutting: Sequence[str] = (),
    ) -> None:
        """A table, in a pipe as wide as it needs to be. On a terminal that is too narrow, cells of the columns
        `folding` go on in the next line, those of `cutting` are cut, others never (`agentctl.terminal.tables`)."""
        clean = [[printable(cell) for cell in row] for row in rows]
        if not self.out.is_terminal:
            widths = natural_widths(columns, clean)
            for row in [list(columns), *clean]:
                self.line("  ".join(set_cell_size(*cell) for cell in zip(row, widths, strict=True)).rstrip())
            return
        fitting = column_widths(columns, clean, self.out.width, folding=folding, cutting=cutting)
        if fitting is None:
            self._records(columns, clean)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, width in zip(columns, fitting, strict=True):
            overflow: OverflowMethod = "fold" if column in folding else "ellipsis"
            table.add_column(column, width=width, overflow=overflow, no_wrap=column not in folding)
        for row in clean:
            table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
        self.out.print(table)

    def _records(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Each row as names and values. No word is broken, however narrow the terminal, so that it can be copied: where
        one does not fit beside the names, the value stands below its name."""
        label = max(map(len, columns)) + GAP
        for number, row in enumerate(rows):
            if number:
                self.line()
            for column, cell in zip(columns, row, strict=True):
                if not cell:
                    continue
                name, style = Text(column.lower(), "bold"), STATUS_STYLES.get(cell, "")
                room = self.out.width - label
                if max(map(cell_len, cell.split(" "))) > room:
                    self.line(name)
                    name, room = Text(), self.out.width
                else:
                    name.pad_right(label - len(column))
                for part in wrapped(cell, room):
                    self.line(name + Text(part, style))
                    name = Text(" " * len(name))

    def fields(self, values: dict[str, str]) -> None:
        """Names and values, one a line; empty values are left out."""
        shown = {name: value for name, value in values.items() if value}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            value = printable(value)
            self.line(Text.assemble((name.ljust(width) + "  ", "bold"), (value, STATUS_STYLES.get(value, ""))))


def _in_ascii(document: str) -> str:
    """DEL is ASCII, and the one control character that JSON does not escape."""
    return document.replace("\x7f", "\\u007f")
