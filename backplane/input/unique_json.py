"""JSON in which no object has a name twice.

Of two equal names a parser keeps the last and is silent, so `"approval": true` could be undone further on, and two
programs that read the same text could see two plans. Here it is an error that says where. Text comes as bytes of a
request, or as a string that a model wrote; files of plans are `agentctl.plan_file`'s, which knows their lines.
"""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from backplane.errors import FIELD_CHARS, printable


class DuplicateName(ValueError):
    """`name` stands twice in one object. `place` is the dotted path of the name, e.g. `plan.steps.1.approval`, cut at
    FIELD_CHARS; empty where it was not looked for. The message has lone surrogates escaped."""

    def __init__(self, name: str, place: str = "") -> None:
        super().__init__(f"{printable((place or name)[:FIELD_CHARS])}: this name stands twice in its object; keep one")
        self.name = name
        self.place = place[:FIELD_CHARS]


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

    root = _Node(None, "", json.loads(text, object_pairs_hook=marking))
    pending = deque([root])
    while pending:
        node = pending.popleft()
        if isinstance(node.value, _Marked) and node.value.name:
            return _path(_Node(node, node.value.name, None))
        inside: Iterable[tuple[str | int, Any]] = ()
        if isinstance(node.value, dict):
            inside = node.value.items()
        elif isinstance(node.value, list):
            inside = enumerate(node.value)
        pending += [_Node(node, name, inner) for name, inner in inside if isinstance(inner, dict | list)]
    return ""


class _Node(NamedTuple):
    """A value, its own name, and what it stands in. A path is made of one only: each value that carried its own would
    cost the length of all names above it."""

    parent: "_Node | None"
    name: str | int
    value: Any


def _path(node: _Node) -> str:
    """Dotted, and cut at FIELD_CHARS."""
    names = deque[str]()
    while node.parent is not None:
        names.appendleft(str(node.name)[:FIELD_CHARS])
        node = node.parent
    return ".".join(islice(names, FIELD_CHARS))[:FIELD_CHARS]


def _twice(pairs: Sequence[tuple[str, Any]]) -> str:
    seen = set[str]()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("asked only where one stands twice")
