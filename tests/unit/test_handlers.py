"""Handlers as they are found and published, and their values as JSON."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from backplane.domain.users import Tier, User
from backplane.errors import InvalidInput
from backplane.settings import fixed
from backplane.tool_catalogue.base import ToolSet, decoded
from tests.submitted import new_run
from worker.handlers import Handler, Run, handler
from worker.handlers.children import ChildRuns, check
from worker.handlers.registry import GROUP, HandlerRegistry, installed_handlers
from worker.handlers.values import (
    DEPTH_MAX,
    LONGEST_SECONDS,
    NotStorable,
    arguments_of,
    as_json,
    digest_of,
    due_after,
    title_of,
)
from worker.tools.plugins import PluginRefused


class Given(BaseModel):
    week: int


@handler("of-this-file")
async def of_this_file(run: Run, input: Given) -> list[int]:
    """Says what it does."""
    return [input.week]


@handler("without-input")
async def without_input(run: Run) -> None: ...


both = [of_this_file, without_input]
not_handlers = [len]


# --- finding them ---


def entry(value: str) -> EntryPoint:
    return EntryPoint("reports", f"{__name__}{value}", GROUP)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ("of-this-file", "without-input")),
        (":of_this_file", ("of-this-file",)),
        (":both", ("of-this-file", "without-input")),
    ],
)
def test_an_entry_point_names_a_module_a_handler_or_a_list(value: str, names: tuple[str, ...]) -> None:
    assert installed_handlers("", [entry(value)]).names == names


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (":not_handlers", "it gives a builtin_function_or_method, not a function with @handler"),
        (":Given", "it gives a ModelMetaclass"),
        (":nothing", "it cannot be loaded (AttributeError"),
    ],
)
def test_an_entry_point_that_is_wrong_is_refused_with_the_reason(value: str, reason: str) -> None:
    with pytest.raises(PluginRefused) as refused:
        installed_handlers("", [entry(value)])
    assert reason in str(refused.value)
    assert "Mend or uninstall that package" in str(refused.value)


def test_two_handlers_of_one_name_are_refused() -> None:
    with pytest.raises(PluginRefused, match="two handlers have the name 'of-this-file'"):
        installed_handlers("", [entry(""), entry(":of_this_file")])


def test_a_file_is_loaded_with_the_models_of_its_annotations(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\n"
        "from worker.handlers import Run, handler\n"
        "class Mine(BaseModel):\n    number: int\n"
        "@handler('mine')\nasync def mine(run: Run, input: Mine) -> int:\n    return input.number\n"
    )
    found = installed_handlers(str(file), []).get("mine")
    assert found is not None
    assert found.input_schema["properties"] == {"number": {"title": "Number", "type": "integer"}}
    assert (found.package, len(found.code)) == ("mine.py", 64)


@pytest.mark.parametrize("text", ["x = (", "raise SystemExit", "import nothing_like_this", "x = 1"])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(PluginRefused, match=r"broken\.py cannot be used"):
        installed_handlers(str(file), [])


async def plain(run: Run) -> None: ...


def not_async(run: Run) -> None: ...


async def takes_too_much(run: Run, one: int, two: int) -> None: ...


@pytest.mark.parametrize(
    ("name", "function", "reason"),
    [
        ("Capital", plain, "a name has small letters"),
        ("", plain, "a name has small letters"),
        ("fine", not_async, "is no `async def`"),
        ("fine", takes_too_much, r"\(run, input\)"),
    ],
)
def test_what_can_be_no_handler_is_refused(name: str, function: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        handler(name)(function)


# --- publishing them ---


def test_handlers_are_published_with_the_schemas_of_what_they_take_and_give() -> None:
    published = HandlerRegistry(both).published()
    of_file, without = decoded(ToolSet((), False, published).encoded()[1]).handlers
    assert of_file.description == "Says what it does."
    assert of_file.input["required"] == ["week"]
    assert of_file.result == {"items": {"type": "integer"}, "type": "array"}
    assert without.input == {"type": "null"}


def test_a_set_of_an_older_release_has_no_handlers() -> None:
    assert decoded('{"tools": [], "has_model": false}').handlers == ()


async def test_a_handler_can_be_called_in_a_test_of_its_own() -> None:
    assert isinstance(of_this_file, Handler)
    assert await of_this_file(SimpleNamespace(), Given(week=3)) == [3]


# --- values ---


@dataclass
class Point:
    x: int
    at: date


@pytest.mark.parametrize(
    ("value", "plain_value"),
    [
        (None, None),
        ((1, 2.5), [1, 2.5]),
        ({1: {"a"}}, {"1": ["a"]}),
        (Point(1, date(2026, 1, 2)), {"x": 1, "at": "2026-01-02"}),
        (Given(week=4), {"week": 4}),
        ("\u00e4\0", "\u00e4\0"),
        ("a\ud800b", "a\ufffdb"),
        (["\U0001f600", "\\ud800"], ["\U0001f600", "\\ud800"]),
    ],
)
def test_a_value_comes_back_as_json_has_it(value: Any, plain_value: Any) -> None:
    assert as_json(value, "it") == plain_value


@pytest.mark.parametrize("value", [object(), {"a": object()}, float("nan"), b"\xff", lambda: 1])
def test_a_value_that_is_no_json_is_refused_in_words(value: Any) -> None:
    with pytest.raises(NotStorable, match=r"it is a .* that is no JSON"):
        as_json(value, "it")


@pytest.mark.parametrize(("depth", "fits"), [(DEPTH_MAX, True), (DEPTH_MAX + 1, False)])
def test_a_value_may_be_so_deep(depth: int, fits: bool) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    if fits:
        assert as_json(value, "it") == value
        return
    with pytest.raises(NotStorable, match="it is nested deeper than"):
        as_json(value, "it")


@pytest.mark.parametrize(("size", "fits"), [(98, True), (99, False)])
def test_a_value_may_be_so_large(size: int, fits: bool) -> None:
    if fits:
        assert as_json("x" * size, "it", most=100) == "x" * size
    else:
        with pytest.raises(NotStorable, match="put it into a file of the run"):
            as_json("x" * size, "it", most=100)


def test_arguments_that_are_no_json_are_named_by_their_type() -> None:
    assert arguments_of([1, object(), datetime(2026, 1, 1, tzinfo=UTC)]) == [1, "<object>", "2026-01-01T00:00:00Z"]


def test_numbers_that_json_does_not_have_are_named_in_arguments() -> None:
    assert arguments_of({"a": [float("nan"), float("-inf")]}) == {"a": ["NaN", "-Infinity"]}


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e13, "5", True, None, [1]])
def test_a_time_that_cannot_be_waited_for_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidInput, match="is no number of seconds from 0 to 315360000"):
        due_after(seconds, "sleep")


@pytest.mark.parametrize("seconds", [0, 0.5, LONGEST_SECONDS])
def test_a_time_may_be_so_long(seconds: float) -> None:
    assert due_after(seconds, "sleep") > datetime.now(UTC) + timedelta(seconds=seconds - 60)


def test_the_digest_of_a_request_does_not_depend_on_the_order_of_names() -> None:
    assert digest_of("shell", {"a": 1, "b": 2}) == digest_of("shell", {"b": 2, "a": 1})
    assert digest_of("shell", {"a": 1}) != digest_of("python", {"a": 1})


@pytest.mark.parametrize(
    ("name", "arguments", "title"),
    [
        ("load", {"args": [48, "a" * 50]}, f"load(48, {'a' * 39}…)"),
        ("shell", {"script": "echo  a\n", "environment": {}}, "shell: script: echo a"),
        ("sleep", {}, "sleep"),
        ("a\0", {"args": ["\0\ud800"]}, "a\ufffd(\ufffd\ufffd)"),
        ("many", {str(number): "x" * 40 for number in range(9)}, None),
    ],
)
def test_the_title_of_an_effect_says_what_it_is_in_one_line(name: str, arguments: Any, title: str | None) -> None:
    found = title_of(name, arguments)
    assert len(found) <= 200
    assert title is None or found == title


# --- runs that a handler starts ---


def child_of(**asked: Any) -> Any:
    parent = new_run(User("u", "ada", Tier.STANDARD), handler="parent")
    return ChildRuns(SimpleNamespace(), parent, SimpleNamespace()).new("1.start", asked)[0]  # type: ignore[arg-type]


SHELL = {"steps": [{"id": "a", "tool": "shell"}]}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"handler": "No Such"}, "handler: 'No Such' is no name of a handler"),
        ({"handler": "x" * 65}, "is no name of a handler"),
        ({"handler": "fine\n"}, "is no name of a handler"),
        ({"handler": 3}, "handler: 3 is no name"),
        ({"prompt": "x", "queue": "GPU"}, "queue: 'GPU' is no name of a queue"),
        ({"prompt": "x", "queue": "a:b"}, "is no name of a queue"),
        ({"prompt": "x" * (fixed.PROMPT_MAX_CHARS + 1)}, "prompt: give a text of at most 100,000 characters"),
        ({"prompt": "x", "timeout_seconds": 0}, "timeout_seconds: 0 is no whole number from 1 on"),
        ({"prompt": "x", "timeout_seconds": 2**31}, "is no whole number"),
        ({"prompt": "x", "timeout_seconds": "5"}, "timeout_seconds: '5' is no whole number"),
        ({"prompt": "x", "max_retries": -1}, "max_retries: -1 is no whole number from 0 on"),
        ({"plan": {"steps": []}}, "plan"),
        ({"plan": {"steps": [*SHELL["steps"], *SHELL["steps"]]}}, "'a'"),
        ({"handler": "a", "input": "x" * fixed.HANDLER_VALUE_MAX_BYTES}, "input: it has 256.0 KiB of JSON"),
    ],
)
def test_a_run_that_the_api_would_refuse_is_not_started_by_a_handler_either(
    asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        check(child_of(**asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"handler": "a", "input": {"x": [1, None]}},
        {"prompt": "x" * fixed.PROMPT_MAX_CHARS},
        {"plan": SHELL, "timeout_seconds": 1, "max_retries": 0, "queue": "gpu.2"},
    ],
)
def test_what_a_handler_may_start(asked: dict[str, Any]) -> None:
    check(child_of(**asked))


def test_a_prompt_of_a_run_that_is_started_has_no_character_that_a_database_refuses() -> None:
    assert child_of(prompt="a\0b\ud800").prompt == "a\ufffdb\ufffd"
