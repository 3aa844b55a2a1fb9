"""What pydantic says of a value that does not fit, as a sentence that says what to do.

One table by pydantic's own types of errors, for the API, plans, and settings. What is not in the table is said as
pydantic says it ("Input should be less than or equal to 200"), which is plain. A message never holds the value, which
may be a secret; so the limits are read out of pydantic's message, and not out of its context.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

NAMES_SHOWN = 20
HINTS = 5
"""Of one input, unknown names for which a like one is searched: each search takes some 10 ms at worst."""
MOST_COMPARED = 50_000
"""Pairs of characters of a name and of all those it may be like: some 10 ms at worst. 200 ids of 15 are less."""
_ID_FORM = "{8}(-[0-9a-f]{4}){3}-"
_OBJECT = 'send a JSON object, like {"name": "value"}'
_SENTENCES = {
    "missing": "it is missing; give it",
    "dict_type": f"this is no object; {_OBJECT}",
    "model_type": f"this is no object; {_OBJECT}",
    "model_attributes_type": f"this is no object; {_OBJECT}",
    "mapping_type": f"this is no object; {_OBJECT}",
    "dataclass_type": f"this is no object; {_OBJECT}",
    "list_type": "this is no list; send a JSON list, like [1, 2]",
    "tuple_type": "this is no list; send a JSON list, like [1, 2]",
    "set_type": "this is no list; send a JSON list, like [1, 2]",
    "string_type": 'this is no text; send a JSON string, like "text"',
    "bool_type": "this is neither true nor false; send one of them",
    "bool_parsing": "this is neither true nor false; give one of them",
    "int_type": "this is no whole number; send one, like 7",
    "int_parsing": "this is no whole number; give one, like 7",
    "int_from_float": "this is no whole number; give one, like 7",
    "float_type": "this is no number; send one, like 0.5",
    "float_parsing": "this is no number; give one, like 0.5",
    "timezone_aware": "it names no zone; give a time with one, like 2026-11-01T00:00:00Z",
    "datetime_type": "this is no time; give one, like 2026-11-01T00:00:00Z",
    "datetime_parsing": "this is no time; give one, like 2026-11-01T00:00:00Z",
    "datetime_from_date_parsing": "this is no time; give one, like 2026-11-01T00:00:00Z",
    "extra_forbidden": "there is no such field; leave it out",
}
_WITH_NUMBER = {
    "too_short": "it has too few items; give at least {0}",
    "too_long": "it has too many items; give at most {0}",
    "string_too_short": "it is too short; give at least {0} character(s)",
    "string_too_long": "it is too long; give at most {0} character(s)",
}
_FIRST_NUMBER = re.compile(r"at (?:least|most) (\d+)")


def sentence_of(fault: Mapping[str, Any], kind: Any = None, *, with_hint: bool = True) -> str:
    """Of one of pydantic's errors. `kind`: the model, or the union of models, that was asked of the whole value; where
    it is given, an unknown field is answered with the names that there are. The fault's `loc` begins below it.
    `with_hint`: whether a name that is like the unknown one is searched."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    found = str(fault["type"])
    if found == "extra_forbidden" and kind is not None:
        *above, name = fault["loc"]
        if names := names_at(kind, above):
            hint = (
                near(str(name), names) if with_hint else ""
            ) or f"; there are {', '.join(sorted(names)[:NAMES_SHOWN])}"
            return f"there is no such field{hint}"
    if found == "string_pattern_mismatch":
        if _ID_FORM in message:
            return "this is no whole id; give all its 36 characters, as the API answered them"
        return f"it is not in the form that is asked for; it must match {message.partition('pattern ')[2]}"
    if found in _WITH_NUMBER and (number := _FIRST_NUMBER.search(message)):
        return _WITH_NUMBER[found].format(number[1])
    return _SENTENCES.get(found, message)


def names_at(kind: Any, path: Sequence[Any]) -> set[str]:
    """The fields that may stand at this place of a value of this kind. Tags of unions, which pydantic has in its paths,
    choose the model; numbers of lists are passed over. Empty where it is no model."""
    models = list(_models(kind))
    for part in path:
        if isinstance(part, int):
            continue
        if tagged := [model for model in models if _is_tag(model, part)]:
            models = tagged
        else:
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in _models(field.annotation)]
    return {name for model in models for name in model.model_fields}


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        return
    for inner in get_args(kind):
        yield from _models(inner)


def _is_tag(model: type[BaseModel], part: Any) -> bool:
    return any(
        get_origin(field.annotation) is Literal and part in get_args(field.annotation)
        for field in model.model_fields.values()
    )


def near(name: str, names: Iterable[str]) -> str:
    """A question to put behind an unknown name; empty where none of the names is like it, or there is too much to
    compare."""
    ordered = sorted(names)
    if len(name) * sum(map(len, ordered)) > MOST_COMPARED:
        return ""
    found = difflib.get_close_matches(name, ordered, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
