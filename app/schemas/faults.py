"""What is wrong with a step's arguments, by the JSON schema that a worker has published of the step's tool.

A schema says less than the tool's own model, so what is refused here a worker refuses too, and what passes here a
worker looks at again. Messages say what is expected and never repeat a value, which may be a secret.

Its library takes 0.04 s to load, so who needs this seldom loads it when it is needed.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from jsonschema.exceptions import ValidationError

from backplane.domain.validation_messages import HINTS
from backplane.errors import FAULTS_SHOWN, Fault, InvalidPath, dotted
from backplane.input.argument_schemas import ArgumentsSchema
from backplane.input.tool_arguments import refers, unknown_argument
from backplane.tool_catalogue.base import PublishedTool
from backplane.workspace.paths import file_path, folder_path

_WORDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} names",
}
_OF_TEXTS = frozenset(
    {"type", "title", "description", "default", "examples", "minLength", "maxLength", "patternProperties"}
)
DEPTH = 4
"""How many levels of an expected value are described."""


def argument_faults(
    tool: PublishedTool, schema: ArgumentsSchema, arguments: Mapping[str, Any], field: str, most_checks: int
) -> tuple[list[Fault], int]:
    """Faults of a step's arguments, and how many of the checks are left; with none left, nothing more is looked at.
    Where a reference stands in a value, or below it, the value is not known yet, and it is not checked."""
    errors: list[ValidationError] = []
    left = most_checks
    if not _plainly_fits(tool.parameters, arguments):
        errors, left = schema.faults(arguments, most_checks)
    hints = iter(range(HINTS))
    reported = (found for error in errors for found in _reported(tool.name, error, hints))
    found = list(islice(reported, FAULTS_SHOWN + 1))
    for name in (*tool.paths, *tool.folders):
        if isinstance(value := arguments.get(name), str):
            try:
                folder_path(value) if name in tool.folders else file_path(value)
            except InvalidPath as error:
                found.append(([name], error.message))
    known = [(place, message) for place, message in found if not _refers_at(arguments, place)]
    wheres = [dotted(field, place) for place, _ in known]
    return [Fault(where, f"{where}: {message}") for where, (_, message) in zip(wheres, known, strict=True)], left


def _plainly_fits(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Whether they are all texts that the schema takes. Most are, and this is ten times as quick as its library."""
    properties = schema.get("properties", {})
    return all(name in arguments for name in schema.get("required", ())) and all(
        _is_plain(properties.get(name), value) for name, value in arguments.items()
    )


def _is_plain(schema: Any, value: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    if isinstance(value, dict):
        values = list(schema.get("patternProperties", {}).values())
        is_of_texts = len(values) == 1 and _OF_TEXTS.issuperset(schema)
        return is_of_texts and all(_is_plain(values[0], inner) for inner in value.values())
    if not isinstance(value, str):
        return False
    if "anyOf" in schema:
        return any(_is_plain(part, value) for part in schema["anyOf"])
    is_text = schema.get("type") == "string" and _OF_TEXTS.issuperset(schema)
    return is_text and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))


def _reported(tool: str, error: ValidationError, hints: Iterator[int]) -> Iterator[tuple[list[str | int], str]]:
    """Places and messages of one error of the schema's library. As many unknown names get a hint as there are
    `hints`."""
    place, schema = list(error.absolute_path), error.schema
    assert isinstance(schema, Mapping)
    match error.validator:
        case "required":
            for name in error.validator_value:
                if name not in error.instance:
                    yield [*place, name], f"it is missing; expected: {_expected(schema['properties'].get(name, {}))}"
        case "additionalProperties":
            names = schema.get("properties", {})
            for name in error.instance:
                if name not in names:
                    yield [*place, name], unknown_argument(tool, name, names, with_hint=next(hints, None) is not None)
        case "anyOf" | "oneOf":
            fitting = _branch_that_is_meant(error)
            if fitting:
                for inner in fitting:
                    yield from _reported(tool, inner, hints)
            else:
                yield place, f"expected: {_expected(schema)}"
        case _:
            yield place, f"expected: {_expected(schema)}"


def _branch_that_is_meant(error: ValidationError) -> list[ValidationError]:
    """The errors of the one alternative whose type, and whose own names (`do: open`), fit the value; none: it is not
    clear which one is meant."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    fitting = [errors for errors in branches.values() if not any(map(_is_of_another, errors))]
    return fitting[0] if len(fitting) == 1 else []


def _is_of_another(error: ValidationError) -> bool:
    depth = len(error.relative_path)
    return (error.validator in ("type", "$ref") and depth == 0) or (error.validator in ("const", "enum") and depth <= 1)


def _expected(schema: Any, depth: int = DEPTH) -> str:
    """What is expected of one value, in words."""
    if not isinstance(schema, Mapping) or depth == 0:
        return "another value"
    if "const" in schema:
        return repr(schema["const"])
    if "discriminator" in schema:
        discriminator = schema["discriminator"]
        names = ", ".join(map(repr, discriminator.get("mapping", {})))
        return f"an object whose {discriminator.get('propertyName')!r} is one of {names}"
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return " or ".join(dict.fromkeys(_expected(part, depth - 1) for part in schema[name]))
    if "$ref" in schema:
        return "an object"
    kinds = schema.get("type", "a value")
    words = [" or ".join(kinds) if isinstance(kinds, list) else str(kinds)]
    if isinstance(schema.get("items"), Mapping):
        words.append(f"of {_expected(schema['items'], depth - 1)}")
    if isinstance(schema.get("additionalProperties"), Mapping):
        words.append(f"with values: {_expected(schema['additionalProperties'], depth - 1)}")
    limits = [form.format(schema[name]) for name, form in _WORDS.items() if name in schema]
    return " ".join(words) + (f" ({', '.join(limits)})" if limits else "")


def _refers_at(arguments: Any, place: list[str | int]) -> bool:
    value = arguments
    for part in place:
        match value:
            case dict() if part in value:
                value = value[part]
            case list() if isinstance(part, int) and part < len(value):
                value = value[part]
            case _:
                return False  # it is missing
    return refers(value)
