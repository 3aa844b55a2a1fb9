"""Checks arguments against a JSON schema: a worker before it asks an MCP server, the API when a person changes the
arguments of a step. The schema may be a stranger's.

Nothing is fetched. Whether a schema is one is found out apart from the event loop (`backplane.input.parsing`);
arguments are checked on it, and the work is counted. What one keyword alone can make long is left to the server, which
checks its arguments itself: regular expressions, the comparison of all items with each other, and what depends on both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from backplane.domain.sizes import shortened
from backplane.errors import FAULTS_SHOWN

MOST_CHECKS = 20_000
"""Of single keywords, for one set of arguments: two tenths of a second at worst."""

_LEFT_TO_THE_SERVER = frozenset(
    {"pattern", "patternProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"}
)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]


def are_usable(schemas: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each, whether it is a JSON schema of an object that refers to nothing outside. A schema of 30 KB may take half
    a second."""
    return [_is_usable(schema) for schema in schemas]


def _is_usable(schema: Mapping[str, Any]) -> bool:
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
        return schema.get("type") == "object" and not _refers_outside(schema)
    except (SchemaError, RecursionError, ValueError, TypeError):
        return False


class ArgumentsSchema:
    """Of a schema that is usable. `of_tool`: of one of the platform's tools, made from a model of its arguments, where
    a pattern of names says what their values must be and not which names there may be."""

    def __init__(self, schema: Mapping[str, Any], *, of_tool: bool = False) -> None:
        self._of_tool = of_tool
        known = validator_for(schema, default=jsonschema.Draft202012Validator)
        keywords = {name: self._counted(name, check) for name, check in known.VALIDATORS.items()}
        self._validator = extend(known, keywords)(schema, registry=Registry())
        self._left = 0

    def faults(self, value: Any, most_checks: int) -> tuple[list[ValidationError], int]:
        """What does not fit, as far as it is found in so many checks, and at most FAULTS_SHOWN and one; and how many
        of the checks are left."""
        self._left = most_checks
        found: list[ValidationError] = []
        try:
            # One by one, so that those found before the checks are used up count.
            for error in islice(self._validator.iter_errors(value), FAULTS_SHOWN + 1):
                found.append(error)
        except (ValueError, Unresolvable, RecursionError):
            pass
        return found, self._left

    def check(self, value: Any) -> None:
        """Raises ValueError, which says where the value does not fit."""
        self._left = MOST_CHECKS
        try:
            self._validator.validate(value)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.absolute_path)
            message = shortened(error.message, 300)
            raise ValueError(f"{where}: {message}" if where else message) from None
        except Unresolvable:
            raise ValueError("cannot be checked: the server's schema refers to what is not there") from None
        except RecursionError:
            raise ValueError("is nested too deeply") from None

    def _counted(self, name: str, check: Keyword) -> Keyword:
        def counted(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterable[ValidationError] | None:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"is too much to check: more than {MOST_CHECKS:,} steps of the server's schema")
            # It needs the regular expressions to know which properties are additional.
            if name == "patternProperties" and self._of_tool and len(wanted) == 1 and isinstance(instance, dict):
                [values] = wanted.values()
                return (
                    error for key, value in instance.items() for error in validator.descend(value, values, path=key)
                )
            needs_patterns = name == "additionalProperties" and "patternProperties" in schema
            return () if needs_patterns or name in _LEFT_TO_THE_SERVER else check(validator, wanted, instance, schema)

        return counted


def _refers_outside(part: Any) -> bool:
    """What it refers to would have to be fetched."""
    if isinstance(part, Mapping):
        named = [part.get(keyword, "#") for keyword in _REFERENCES]
        return not all(str(name).startswith("#") for name in named) or any(map(_refers_outside, part.values()))
    return isinstance(part, list) and any(map(_refers_outside, part))
