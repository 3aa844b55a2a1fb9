"""How wide the columns of a table are on a terminal.

Ids and other short values are never cut: who reads one wants to copy it. Long text goes on in the next line
(`folding`), or is cut where its beginning says enough (`cutting`). Where even that leaves no room, the table is no
table any more: each row is shown as a list of names and values.
"""

from collections.abc import Collection, Sequence

from rich.cells import cell_len

GAP = 2
FOLDED_MIN, CUT_MIN = 24, 12
"""Less than this is not readable, unless no cell is longer."""


def natural_widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of a text in cells of a terminal; a Chinese character takes two."""
    return [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]


def column_widths(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    folding: Collection[str] = (),
    cutting: Collection[str] = (),
) -> list[int] | None:
    """The widths by which the table is at most `width` wide; None when it cannot be."""
    natural = natural_widths(columns, rows)
    least = [
        min(wide, FOLDED_MIN if name in folding else CUT_MIN) if name in folding or name in cutting else wide
        for name, wide in zip(columns, natural, strict=True)
    ]
    room = width - GAP * (len(columns) - 1) - sum(least)
    if room < 0:
        return None
    widths = least
    # A column at a time, the narrowest first, so that one long text takes only what the others leave.
    for place in sorted(range(len(columns)), key=lambda place: natural[place]):
        more = min(natural[place] - widths[place], room)
        widths[place] += more
        room -= more
    return widths


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, broken between words only: one that is longer than `width` stays whole, to be copied."""
    lines, used = [""], 0
    for place, word in enumerate(text.split(" ")):
        size = cell_len(word)
        if place and used + 1 + size > width:
            lines.append(word)
            used = size
        else:
            gap = " " if place else ""
            lines[-1] += gap + word
            used += len(gap) + size
    return lines
