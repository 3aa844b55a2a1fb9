"""JSON in which no object has a name twice.

Of two equal names a parser keeps the last and is silent, so `"approval": true` could be undone further on, and two
programs that read the same text could see two plans. Here it is an error that says where. Text comes as bytes of a
request, or as a string that a model wrote; files of plans are `agentctl.plan_file`'s, which knows their lines.
"""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any


class DuplicateName(ValueError):
    """`name` stands twice in one object. `place` is the dotted path of the name, e.g. `plan.steps.1.approval`; empty
    where it was not looked for."""

    def __init__(self, name: str, place: str = "") -> None:
        super().__init__(f"{(place or name)[:200]}: this name stands twice in its object; keep one")
        self.name = name
        self.place = place


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`. Raises DuplicateName without a place."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DuplicateName(_twice(pairs))
    return found


# Made once: `json.loads` would make one for each call, which costs more than all the comparisons.
_DECODER = json.JSONDecoder(object_pairs_hook=unique)


def loads(body: bytes) -> Any:
    """As `json.loads`. Raises DuplicateName with its place, JSONDecodeError, UnicodeDecodeError, RecursionError."""
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    try:
        return _DECODER.decode(text)
    except DuplicateName as error:
        raise DuplicateName(error.name, place_of_duplicate(text) or error.name) from None


class _Marked(dict[str, Any]):
    name = ""


def place_of_duplicate(text: str) -> str:
    """The dotted path of the first name that stands twice, the outermost of them first; empty: there is none."""

    def marking(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = _Marked(pairs)
        if len(found) != len(pairs):
            found.name = _twice(pairs)
        return found

    pending: deque[tuple[str, Any]] = deque([("", json.loads(text, object_pairs_hook=marking))])
    while pending:
        path, value = pending.popleft()
        if isinstance(value, _Marked) and value.name:
            return f"{path}{value.name}"
        if isinstance(value, dict):
            pending += [(f"{path}{name}.", inner) for name, inner in value.items() if isinstance(inner, dict | list)]
        elif isinstance(value, list):
            pending += [(f"{path}{at}.", inner) for at, inner in enumerate(value) if isinstance(inner, dict | list)]
    return ""


def _twice(pairs: Sequence[tuple[str, Any]]) -> str:
    seen = set[str]()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("asked only where one stands twice")
