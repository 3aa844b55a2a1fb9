"""Fields that the requests of several resources have, and the request that refuses what it does not know.

Requests are strict, so that a misspelt `max_retires` is an error and not silence. A text or a JSON value is taken only
when every database and every JSON reader takes it as it is.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

ID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

RunId = Annotated[
    str,
    Field(
        pattern=ID_PATTERN,
        examples=["01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"],
        description="Id of a run, as `create` gave it.",
    ),
]

Limit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
"""Entries on a page of a list."""
_NEXT = Field(description="Give it as `cursor` for the next page; null on the last one.")
NextCursor = Annotated[str | None, _NEXT]
NextNumber = Annotated[int | None, _NEXT]

MAX_DEPTH = 64
"""Objects and lists within one another: more than anybody means, less than any JSON library refuses."""
MAX_VALUES = 50_000
"""The most keys and values in one JSON value: what is looked through here holds up everybody else meanwhile (some 20
ms)."""

_YEAR = re.compile("[0-9]{4}-")
_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(value: Any) -> Any:
    """The value, when every database and every JSON reader takes it as it is: what is accepted can be given back."""
    # Only lists and objects are kept for later, since there may be many values and all others wait for this.
    pending: list[tuple[Iterable[Any], int]] = [((value,), 0)]
    left = MAX_VALUES
    while pending:
        parts, depth = pending.pop()
        for part in parts:
            if isinstance(part, str):
                _check_text(part)
            elif isinstance(part, dict | list):
                if depth > MAX_DEPTH:
                    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels; make it flatter")
                left -= len(part) * (2 if isinstance(part, dict) else 1)
                if left < 0:
                    raise ValueError(f"it holds more than {MAX_VALUES:,} values; put large data into a file of the run")
                if part:
                    pending.append((part, depth + 1))
                    if isinstance(part, dict):
                        pending.append((part.values(), depth + 1))
            elif isinstance(part, float) and not isfinite(part):
                raise ValueError("it contains a number that JSON does not have (NaN or infinite); leave it out")
    return value


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("it contains a NUL character (U+0000); remove it")
    if not text.isascii() and _SURROGATE.search(text):
        raise ValueError("it contains a lone surrogate, which is no character; send valid UTF-8")


Text = Annotated[str, AfterValidator(storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(storable)]
JsonValue = Annotated[Any, AfterValidator(storable)]


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is outside of the years 1 to 9999 in UTC; give a time within them") from None


def _written_out(moment: object) -> object:
    """pydantic would take a number, and a text of digits, as seconds or milliseconds since 1970."""
    if isinstance(moment, int | float) or (isinstance(moment, str) and not _YEAR.match(moment)):
        raise PydanticCustomError("datetime_type", "Input should be a valid datetime")
    return moment


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_written_out), AfterValidator(_in_utc)]
"""A point in time, in UTC, whatever the zone was that it was given in."""


class StrictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
