"""Values of handlers as JSON: what they are given, what their effects give, what they return.

What an effect gave comes back as JSON has it, the first time too (a date is a text then, a tuple a list): so the code
sees the same when it is run again after a crash.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import isfinite
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from backplane.domain.events import whole_characters
from backplane.domain.sizes import readable_size
from backplane.errors import InvalidInput
from backplane.settings import fixed
from worker.llm.untrusted_json import storable

SHOWN_CHARS = 40
"""Of an argument, in the title of an effect."""
TITLE_CHARS = 200
DEPTH_MAX = 200
"""Objects and lists within one another. What stands around a value in an answer of the API makes it deeper, and no
answer is deeper than 255."""
LONGEST_SECONDS = 10 * 365 * 86_400.0
"""How long an effect may sleep or wait."""

_MAY_BE_HALF = "\\ud"


class NotStorable(Exception):
    """The value is no JSON, or too large. The message says what to do."""


def as_json(value: Any, what: str, most: int = fixed.HANDLER_VALUE_MAX_BYTES) -> Any:
    """The value as JSON has it; models, dataclasses, dates and sets become what pydantic makes of them. `what`: whose
    value it is, for the message. Raises NotStorable."""
    try:
        plain = to_jsonable_python(value)
        text = json.dumps(plain, allow_nan=False)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise NotStorable(
            f"{what} is a {type(value).__name__} that is no JSON ({reason}): give dicts, lists, texts, numbers, "
            "dataclasses or pydantic models"
        ) from None
    if len(text) > most:
        raise NotStorable(
            f"{what} has {readable_size(len(text))} of JSON; at most {readable_size(most)} are kept: put it into a "
            "file of the run, and give its path"
        )
    if text.count("[") + text.count("{") > DEPTH_MAX and _is_deep(plain):
        raise NotStorable(f"{what} is nested deeper than {DEPTH_MAX} levels: make it flatter")
    if _MAY_BE_HALF in text:
        # No answer of the API could hold half a character.
        return json.loads(whole_characters(json.dumps(plain, ensure_ascii=False)))
    return json.loads(text)


def _is_deep(plain: Any) -> bool:
    pending: list[tuple[Any, int]] = [(plain, 1)]
    while pending:
        value, depth = pending.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if depth > DEPTH_MAX and inner:
            return True
        pending += [(one, depth + 1) for one in inner if isinstance(one, dict | list)]
    return False


def due_after(seconds: Any, what: str) -> datetime:
    """The time so many seconds from now. Raises InvalidInput unless it can be waited for."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= LONGEST_SECONDS:
        raise InvalidInput(
            f"{what}: {str(seconds)[:SHOWN_CHARS]} is no number of seconds from 0 to {LONGEST_SECONDS:.0f}"
        )
    return datetime.now(UTC) + timedelta(seconds=seconds)


def kept_bytes(result: Mapping[str, Any] | None) -> int:
    """About how much of a step's result is as large as its effect makes it."""
    found = result or {}
    value, output = found.get("value"), str(found.get("output", ""))
    return len(output) + (0 if value is None or isinstance(value, bool | int | float) else len(json.dumps(value)))


def arguments_of(values: Any) -> Any:
    """Arguments of a function, as its effect is compared with the journal and shown. What is no JSON is named by its
    type alone, and a number that JSON does not have by its name."""
    try:
        return _with_names(to_jsonable_python(values, fallback=lambda value: f"<{type(value).__qualname__}>"))
    except (PydanticSerializationError, ValueError, RecursionError):
        return f"<{type(values).__qualname__}>"


def _with_names(value: Any) -> Any:
    match value:
        case float() if not isfinite(value):
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        case list():
            return [_with_names(inner) for inner in value]
        case dict():
            return {key: _with_names(inner) for key, inner in value.items()}
    return value


def digest_of(tool: str, arguments: Any) -> str:
    """By which it is known whether code that is run again asks for the same."""
    text = json.dumps([tool, arguments], sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def title_of(name: str, arguments: Any) -> str:
    """What an effect is for people: its name, and the beginning of each argument. It is kept in a column of text."""
    return storable(_title_of(name, arguments))[:TITLE_CHARS]


def _title_of(name: str, arguments: Any) -> str:
    given = arguments.get("args") if isinstance(arguments, dict) else None
    if isinstance(given, list):
        return f"{name}({', '.join(map(_beginning, given))})"
    named = arguments.items() if isinstance(arguments, dict) else ()
    shown = ", ".join(f"{key}: {_beginning(value)}" for key, value in named if value not in (None, "", [], {}))
    return f"{name}: {shown}" if shown else name


def _beginning(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
