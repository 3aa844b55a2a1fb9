"""Values of handlers as JSON: what they are given, what their effects give, what they return.

What an effect gave comes back as JSON has it, the first time too (a date is a text then, a tuple a list): so the code
sees the same when it is run again after a crash.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from backplane.domain.sizes import readable_size
from backplane.settings import fixed

SHOWN_CHARS = 40
"""Of an argument, in the title of an effect."""
TITLE_CHARS = 200


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
    return json.loads(text)


def kept_bytes(result: Mapping[str, Any] | None) -> int:
    """About how much of a step's result is as large as its effect makes it."""
    found = result or {}
    value, output = found.get("value"), str(found.get("output", ""))
    return len(output) + (0 if value is None or isinstance(value, bool | int | float) else len(json.dumps(value)))


def arguments_of(values: Any) -> Any:
    """Arguments of a function, as its effect is compared with the journal and shown. What is no JSON is named by its
    type alone."""
    try:
        return to_jsonable_python(values, fallback=lambda value: f"<{type(value).__qualname__}>")
    except (PydanticSerializationError, ValueError, RecursionError):
        return f"<{type(values).__qualname__}>"


def digest_of(tool: str, arguments: Any) -> str:
    """By which it is known whether code that is run again asks for the same."""
    text = json.dumps([tool, arguments], sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def title_of(name: str, arguments: Any) -> str:
    """What an effect is for people: its name, and the beginning of each argument."""
    given = arguments.get("args") if isinstance(arguments, dict) else None
    if isinstance(given, list):
        return f"{name}({', '.join(map(_beginning, given))})"[:TITLE_CHARS]
    named = arguments.items() if isinstance(arguments, dict) else ()
    shown = ", ".join(f"{key}: {_beginning(value)}" for key, value in named if value not in (None, "", [], {}))
    return f"{name}: {shown}"[:TITLE_CHARS] if shown else name


def _beginning(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
