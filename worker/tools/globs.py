"""Which paths a glob selects, by the rules that editors, git and shells share.

`*`, `?` and `[…]` stay within a name; `**` stands for any number of folders, none included; `{a,b}` for one of several.
A glob without a slash is about the name alone, wherever the file is. A leading `./` means nothing, and a slash at the
end everything below. There is no `!`.

Each name is matched by the standard library's translation, which takes no time that grows with the number of stars, and
braces are written out up to MAX_ALTERNATIVES.
"""

import itertools
import re
from collections.abc import Callable
from fnmatch import translate
from functools import cache

MAX_ALTERNATIVES = 100
_ANY_FOLDERS = "**"


def compile_glob(glob: str) -> Callable[[str], bool]:
    """A function of a path (`src/a.py`). Raises ValueError for a glob with too many alternatives."""
    globs = [_Glob(alternative) for alternative in expand_braces(glob)]
    return lambda path: any(one.selects(path) for one in globs)


class _Glob:
    def __init__(self, glob: str) -> None:
        while glob.startswith("./"):
            glob = glob[2:]
        if glob.endswith("/"):
            glob += _ANY_FOLDERS
        self._is_of_names = "/" not in glob and glob != _ANY_FOLDERS
        self._parts = [
            None if part == _ANY_FOLDERS else re.compile(translate(part)) for part in glob.lstrip("/").split("/")
        ]

    def selects(self, path: str) -> bool:
        names = path.split("/")
        return self._fits(names[-1:] if self._is_of_names else names)

    def _fits(self, names: list[str]) -> bool:
        parts = self._parts

        @cache
        def fits(part: int, name: int) -> bool:
            if part == len(parts):
                return name == len(names)
            wanted = parts[part]
            if wanted is None:
                return fits(part + 1, name) or (name < len(names) and fits(part, name + 1))
            return name < len(names) and bool(wanted.match(names[name])) and fits(part + 1, name + 1)

        return fits(0, 0)


def expand_braces(glob: str) -> list[str]:
    """`a{b,c{d,e}}` gives ab, acd, ace; a brace without a comma or without its end stands for itself. Raises
    ValueError."""
    found, pending = list[str](), [glob]
    while pending:
        one = pending.pop()
        if (brace := _first_brace(one)) is None:
            found.append(one)
        else:
            start, end, alternatives = brace
            pending += [f"{one[:start]}{alternative}{one[end:]}" for alternative in reversed(alternatives)]
        if len(found) + len(pending) > MAX_ALTERNATIVES:
            raise ValueError(f"its braces stand for more than {MAX_ALTERNATIVES} globs; search in a folder instead")
    return found


def _first_brace(glob: str) -> tuple[int, int, list[str]] | None:
    """Where the first brace that has alternatives begins and ends, and these."""
    start = glob.find("{")
    while start >= 0:
        depth, commas, at = 0, [start], start
        for at in range(start, len(glob)):
            if glob[at] == "{":
                depth += 1
            elif glob[at] == "}":
                depth -= 1
                if not depth:
                    break
            elif glob[at] == "," and depth == 1:
                commas.append(at)
        if not depth and len(commas) > 1:
            edges = [*commas, at]
            pairs = itertools.pairwise(edges)
            return start, at + 1, [glob[before + 1 : after] for before, after in pairs]
        start = glob.find("{", start + 1)
    return None
