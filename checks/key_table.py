"""Compares the table of Redis keys in docs/internals.md with `backplane.redis.declared_keys`, or writes it (`--write`).

The code is the source: a key is declared once, with its lifetime and who touches it, and the document shows that.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from backplane.redis.declared_keys import KEYS, Key

DOCUMENT = Path(__file__).parents[1] / "docs" / "internals.md"
START, END = "<!-- keys -->", "<!-- /keys -->"
HEADING = ("Key", "Type", "Lifetime", "Written by", "Read by", "What for")


def table(keys: Iterable[Key]) -> str:
    """The keys as a Markdown table, in the order of the code."""
    rows = [HEADING, ("---",) * len(HEADING)]
    rows += [(f"`{key.pattern}`", key.type, key.lifetime, key.writer, key.reader, key.purpose) for key in keys]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def with_table(document: str, keys: Iterable[Key]) -> str:
    """`document` with the table between its markers made anew. Raises ValueError when the markers are not there."""
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the document has no {START} … {END} block for the table of keys")
    return f"{before}{START}\n{table(keys)}\n{END}{after}"


def main(arguments: list[str]) -> int:
    written = DOCUMENT.read_text(encoding="utf-8")
    expected = with_table(written, KEYS)
    if written == expected:
        print(f"The table of Redis keys shows all {len(KEYS)} keys.")
        return 0
    if arguments == ["--write"]:
        DOCUMENT.write_text(expected, encoding="utf-8")
        return 0
    print(f"{DOCUMENT.name} differs from backplane/redis/declared_keys.py; run: python -m checks.key_table --write")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
