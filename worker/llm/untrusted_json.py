"""JSON as models write it: it may be no JSON at all, stand in a Markdown fence, or be made to harm its reader.

What comes out of here can be stored, sent and walked through: no depth that exhausts a stack, no number that JSON does
not have, no character that a database or an encoding refuses. Whether it makes sense is checked elsewhere.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from backplane.domain.sizes import shortened
from backplane.input.unique_json import DuplicateName, unique

MAX_CHARS = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 100_000
STARTS_TRIED = 32
"""A text may begin any number of objects and end none; each try may read it to its end."""

_FENCED = re.compile(r"```[A-Za-z]*\n(.*)\n```", re.DOTALL)
_STORABLE = re.compile("[\0\ud800-\udfff]")


class NotJson(ValueError):
    """The message says what is wrong, in words for the model that wrote it."""


def parse_object(text: str) -> dict[str, Any]:
    """The whole text as an object, for the arguments of a call. An empty text and `null` are an empty object. The
    object may stand in one Markdown fence, or in a JSON string, as models write it too. Raises NotJson."""
    _check_length(text)
    value = _value(_without_fence(text))
    if isinstance(value, str):
        value = _value(_without_fence(value))
    if not isinstance(value, dict):
        raise NotJson("it is JSON, and no object: it must begin with { and end with }")
    _check_values(value)
    return value


def parse_value(text: str) -> Any:
    """The whole text as any JSON value. Raises NotJson."""
    _check_length(text)
    text = text.strip()
    if not text:
        raise NotJson("it is empty")
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJson(_what_is_wrong(error)) from error
    if end != len(text):
        raise NotJson(f"there is more text after the JSON value, from character {end} on")
    _check_values(value)
    return value


def _without_fence(text: str) -> str:
    text = text.strip()
    fenced = _FENCED.fullmatch(text) if text.startswith("```") else None
    return fenced[1].strip() if fenced else text


def _value(text: str) -> Any:
    """The whole text as a JSON value; an empty text is an empty object."""
    if not text:
        return {}
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJson(_what_is_wrong(error)) from error
    if end != len(text):
        raise NotJson(f"there is more text after the JSON object, from character {end} on")
    return {} if value is None else value


def find_object(text: str, is_meant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The one object in a text for which `is_meant` is true, whatever prose or fences are around it. Raises NotJson
    when there is none, or a second one that differs."""
    _check_length(text)
    found: list[dict[str, Any]] = []
    reason = ""
    start = text.find("{")
    for _ in range(STARTS_TRIED):
        if start < 0:
            break
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            reason = reason or _what_is_wrong(error)
            end = start + 1
        else:
            if not is_meant(value):
                reason = reason or "the JSON object in it is another than was asked for"
            elif value not in found:
                _check_values(value)
                found.append(value)
        start = text.find("{", end)
    if len(found) > 1:
        raise NotJson(f"there are {len(found)} different ones in it; give one")
    if not found:
        raise NotJson(reason or "there is no JSON object in it")
    return found[0]


def storable(text: str) -> str:
    """The same text, with U+FFFD for each character that UTF-8 or a database cannot hold."""
    return _STORABLE.sub("\ufffd", text)


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARS:
        raise NotJson(f"it is {len(text):,} characters long; the most are {MAX_CHARS:,}")


def _check_values(value: Any) -> None:
    """Without recursion, so that no depth is too deep to be found out."""
    seen = 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        inner, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise NotJson(f"it is nested more than {MAX_DEPTH} levels deep")
        if seen > MAX_VALUES:
            raise NotJson(f"it holds more than {MAX_VALUES:,} values")
        match inner:
            case str():
                bad = _STORABLE.search(inner)
                if bad:
                    raise NotJson(f"a text in it contains U+{ord(bad[0]):04X}, which cannot be kept")
            case dict():
                pending.extend((part, depth + 1) for pair in inner.items() for part in pair)
            case list():
                pending.extend((part, depth + 1) for part in inner)


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {MAX_DEPTH} levels deep"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, DuplicateName):
        return f"in an object of it the name {shortened(error.name, 100)!r} stands twice; give each name once"
    return shortened(f"it is no valid JSON: {error}", 200)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shortened(text, 20)} is too large")
    return number


def _short_integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"the number {text[:20]}… is too large")
    return int(text)


_DECODER = json.JSONDecoder(
    parse_constant=_no_number, parse_float=_finite, parse_int=_short_integer, object_pairs_hook=unique
)
