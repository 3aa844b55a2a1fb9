"""Other names of tools, for servers and plans that take fewer characters than the tools' authors use. No two tools get
the same."""

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

MAX_CHARS = 64
"""The longest name that a step's `tool` may have and that model servers take."""
MARK_CHARS = 6

_NOT_FOR_MODELS = re.compile(r"[^A-Za-z0-9_-]")
_NOT_FOR_PLANS = re.compile(r"[^A-Za-z0-9_.-]")


def model_names(names: Iterable[str]) -> dict[str, str]:
    """By the name, one that every model server takes: letters, digits, `_` and `-`, a letter
    or `_` first. The same where the name is such a one."""
    return _renamed(names, _NOT_FOR_MODELS, any_first=False)


def plan_names(names: Iterable[str]) -> dict[str, str]:
    """By the name, one that a step of a plan may have: letters, digits, `_`, `-` and `.`."""
    return _renamed(names, _NOT_FOR_PLANS, any_first=True)


def _renamed(names: Iterable[str], other: re.Pattern[str], *, any_first: bool) -> dict[str, str]:
    """A changed name gets a mark only where it would be equal to another one. So it is easy to read, and stays the same
    when the list grows."""
    plain = {name: _plain(name, other, any_first) for name in dict.fromkeys(names)}
    often = Counter(plain.values())
    found = {name: name for name, new in plain.items() if name == new and len(name) <= MAX_CHARS}
    taken = set(found)
    for name, new in plain.items():
        if name in found:
            continue
        mark = name
        while new in taken or len(new) > MAX_CHARS or often[new] > 1:
            mark = sha256(mark.encode("utf-8", "surrogatepass")).hexdigest()
            new = f"{plain[name][: MAX_CHARS - MARK_CHARS - 1]}_{mark[:MARK_CHARS]}"
        found[name] = new
        taken.add(new)
    return found


def _plain(name: str, other: re.Pattern[str], any_first: bool) -> str:
    plain = other.sub("_", name)
    is_fine = any_first or not plain or plain[0].isalpha() or plain[0] == "_"
    return plain if is_fine else f"_{plain}"
