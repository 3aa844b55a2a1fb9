"""How many values a JSON text holds, counted while it comes: right in whatever chunks, and never too low for a
parser."""

import json
from typing import Any

import pytest

from app.edge.body_limit import JsonValues

TEXTS: dict[str, tuple[str, int]] = {
    "one number": ("1", 1),
    "a list": ("[1,2,3]", 4),
    "an object": ('{"a":1,"b":[1,2]}', 5),
    "commas in a string": ('["a,b,[{"]', 2),
    "an escaped quote": (r'["a\",\"b",1]', 3),
    "a backslash at the end of a string": (r'["a\\",1,2]', 4),
    "many backslashes": (r'["\\\\\\\",",1]', 3),
    "escapes of other kinds": (r'["\n\t\u002c\/","x"]', 3),
    "characters of several bytes": ('["é,😀",1]', 3),
    "empty strings": ('["","",""]', 4),
}


def counted(text: bytes, *cuts: int) -> int:
    values = JsonValues()
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        values.add(text[start:end])
    return values.count


def size(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(size, inner))


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_holds_as_many_values_wherever_it_is_cut(name: str) -> None:
    text, expected = TEXTS[name]
    assert size(json.loads(text)) == expected
    body = text.encode()
    # An opening bracket stands for the list and for its first value, which has no comma before it.
    most = expected + text.count("[") + text.count("{")
    whole = counted(body)
    assert expected <= whole <= most
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            assert counted(body, first, second) == whole


@pytest.mark.parametrize("text", ['["a', '["a\\', "[1,2", '{"a":{"b"', '"a" "b", "c"', "\\\\[1,2]"])
def test_what_is_no_json_is_counted_all_the_same(text: str) -> None:
    body = text.encode()
    assert {counted(body, cut) for cut in range(len(body) + 1)} == {counted(body)}
