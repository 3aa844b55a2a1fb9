"""Schemas of MCP servers are a stranger's: arguments must fit them, and they can neither reach anything nor stop a
worker."""

from typing import Any

import pytest

from backplane.input.argument_schemas import MOST_CHECKS, ArgumentsSchema, are_usable

ELSEWHERE = "http://127.0.0.1:9/schema"
DOUBLING = {
    f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} if level < 40 else {"type": "string"}
    for level in range(41)
}


def schema(**properties: Any) -> ArgumentsSchema:
    return ArgumentsSchema({"type": "object", "properties": properties, "additionalProperties": False})


def test_arguments_are_held_to_the_schema() -> None:
    numbers = schema(a={"type": "array", "items": {"type": "integer"}})
    numbers.check({"a": [1, 2]})
    with pytest.raises(ValueError, match=r"a\.1: 'x' is not of type 'integer'"):
        numbers.check({"a": [1, "x"]})
    with pytest.raises(ValueError, match="'b' was unexpected"):
        numbers.check({"b": 1})


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$recursiveRef"])
def test_one_that_refers_elsewhere_is_refused(keyword: str) -> None:
    assert are_usable([{"type": "object", "properties": {"a": {"allOf": [{keyword: ELSEWHERE}]}}}]) == [False]


def test_one_that_calls_a_part_of_itself_an_address_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*args: object, **options: object) -> None:
        raise AssertionError("the schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", reached)
    hidden = {"$id": ELSEWHERE, "$ref": "#/x"}
    given = {"type": "object", "properties": {"a": {"$ref": "#/hidden"}}, "hidden": hidden}
    with pytest.raises(ValueError, match="refers to what is not there"):
        ArgumentsSchema(given).check({"a": 1})


def test_a_reference_within_it_is_followed() -> None:
    given = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    with pytest.raises(ValueError, match="is not of type 'integer'"):
        ArgumentsSchema(given).check({"a": "x"})


def test_one_that_doubles_at_each_level_is_given_up() -> None:
    given = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": DOUBLING}
    with pytest.raises(ValueError, match="too much to check"):
        ArgumentsSchema(given).check({"a": "x"})


def test_a_large_value_may_be_checked() -> None:
    schema(a={"type": "array", "items": {"type": "integer"}}).check({"a": [1] * (MOST_CHECKS // 2)})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "object", "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"type": "object", "patternProperties": {"^(a+)+$": {}}, "unevaluatedProperties": False},
    ],
)
def test_a_regular_expression_without_an_end_is_not_tried(part: dict[str, Any]) -> None:
    word = "a" * 60 + "b"
    schema(a=part).check({"a": {word: 1} if part["type"] == "object" else word})


def test_one_that_has_no_end_in_itself_is_refused() -> None:
    given = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}
    with pytest.raises(ValueError, match="nested too deeply"):
        ArgumentsSchema(given).check({"a": 1})


def test_what_is_no_schema_of_an_object_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"not": deep}
    wrong: list[dict[str, Any]] = [{"type": "array"}, {"type": 7}, {}, {"type": "object", **deep}]
    assert are_usable([*wrong, {"type": "object"}]) == [*[False] * len(wrong), True]
