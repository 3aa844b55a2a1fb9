"""What commands print: for people on a terminal, plain lines in a pipe, JSON when asked for.

Standard output carries the answer and nothing else; notes, warnings and errors go to standard error. Text that came
from a run is hostile: control characters and what turns the reading direction are taken out before a terminal sees
them. JSON is printed in ASCII, which escapes the same characters without losing them.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one line for each event.")]

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

STATUS_STYLES = {
    "created": "dim",
    "queued": "cyan",
    "running": "blue",
    "waiting": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
}


def program() -> str:
    """How a person calls this program from here: what hints to the next command begin with."""
    if shutil.which("agentctl"):
        return "agentctl"
    beside = Path(sys.executable).with_name("agentctl")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m agentctl"
    return shlex.quote(min(str(beside), os.path.relpath(beside), key=len))


def printable(text: str) -> str:
    """One line that a terminal can be given."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", _ESCAPE_SEQUENCE.sub("", text).rstrip("\r\n").replace("\r", " "))


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


class Output:
    """`json` says which of the two a command prints. Made by each command, as its flag says."""

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.out = Console(highlight=False, markup=False, emoji=False)
        self.err = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def live(self) -> bool:
        """A person looks at it: what moves and what is coloured is welcome."""
        return self.out.is_terminal and not self.json

    def line(self, text: str | Text = "", style: str = "") -> None:
        """One line, however wide the terminal: lines that are copied must not be broken."""
        self.out.print(text, style=style, soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        self.err.print(printable(text), style=style, soft_wrap=True)

    def document(self, value: Any) -> None:
        print(json.dumps(value, indent=2), flush=True)

    def json_line(self, value: Any) -> None:
        print(json.dumps(value, separators=(",", ":")), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, folding: Sequence[str] = ()) -> None:
        """A table, in a pipe as wide as it needs to be. On a terminal that is too narrow, cells of the columns
        `folding` go on in the next line, others are cut."""
        clean = [[printable(cell) for cell in row] for row in rows]
        if not self.out.is_terminal:
            widths = [max(map(cell_len, cells)) for cells in zip(columns, *clean, strict=True)]
            for row in [list(columns), *clean]:
                self.line("  ".join(set_cell_size(*cell) for cell in zip(row, widths, strict=True)).rstrip())
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(
                column, overflow="fold" if column in folding else "ellipsis", no_wrap=column not in folding
            )
        for row in clean:
            table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
        self.out.print(table)

    def fields(self, values: dict[str, str]) -> None:
        """Names and values, one a line; empty values are left out."""
        shown = {name: value for name, value in values.items() if value}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            value = printable(value)
            self.line(Text.assemble((name.ljust(width) + "  ", "bold"), (value, STATUS_STYLES.get(value, ""))))
