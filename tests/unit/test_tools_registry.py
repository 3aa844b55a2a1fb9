"""Steps are refused before the first of them runs, and the answer names the value at fault."""

import base64
from typing import Any

import pytest

from backplane.errors import InvalidPlan
from worker.tools.file_write import FileWriteArguments
from worker.tools.registry import builtin_tools


def refusal(tool: str, arguments: dict[str, Any]) -> InvalidPlan:
    with pytest.raises(InvalidPlan) as refused:
        builtin_tools().resolve(tool, arguments, field="plan.steps.3")
    return refused.value


def test_an_unknown_tool_is_refused_with_those_that_there_are() -> None:
    error = refusal("shel", {})
    assert error.field == "plan.steps.3.tool"
    assert "shell, python, file_write, file_read, file_list, file_delete" in error.message


def test_a_known_tool_comes_with_its_validated_arguments() -> None:
    tool, arguments = builtin_tools().resolve("file_write", {"path": "a/b", "content": "é"}, field="plan.steps.0")
    assert tool.name == "file_write"
    assert isinstance(arguments, FileWriteArguments)
    assert arguments.data() == "é".encode()


def test_content_may_be_any_bytes() -> None:
    encoded = base64.b64encode(b"\xff\x00").decode()
    _, arguments = builtin_tools().resolve("file_write", {"path": "a", "content_base64": encoded}, field="")
    assert isinstance(arguments, FileWriteArguments)
    assert arguments.data() == b"\xff\x00"


@pytest.mark.parametrize(
    ("tool", "arguments", "field"),
    [
        ("shell", {}, "arguments.script"),
        ("shell", {"script": ""}, "arguments.script"),
        ("shell", {"script": 7}, "arguments.script"),
        ("shell", {"script": "a\0b"}, "arguments.script"),
        ("shell", {"script": "x" * 100_001}, "arguments.script"),
        ("shell", {"script": "true", "shell": "fish"}, "arguments.shell"),
        ("shell", {"script": "true", "environment": {"A": 1}}, "arguments.environment.A"),
        ("shell", {"script": "true", "environment": {"A=B": "1"}}, "arguments.environment.A=B.[key]"),
        ("shell", {"script": "true", "environment": {"A": "x" * 40_000}}, "arguments.environment"),
        ("python", {"code": "pass", "args": "abc"}, "arguments.args"),
        ("python", {"code": "pass", "args": ["a", "b\0"]}, "arguments.args.1"),
        ("file_write", {"path": "../x", "content": ""}, "arguments.path"),
        ("file_write", {"path": "/x", "content": ""}, "arguments.path"),
        ("file_write", {"path": "/".join(["d"] * 1000), "content": ""}, "arguments.path"),
        ("file_write", {"path": "x"}, "arguments"),
        ("file_write", {"path": "x", "content": "", "content_base64": ""}, "arguments"),
        ("file_write", {"path": "x", "content_base64": "???"}, "arguments"),
        ("file_write", {"path": "x", "content": "\ud800"}, "arguments.content"),
        ("file_read", {"path": "x", "start": -1}, "arguments.start"),
        ("file_read", {"path": "x", "max_bytes": 10**9}, "arguments.max_bytes"),
        ("file_list", {"prefix": "../a"}, "arguments.prefix"),
        ("file_delete", {}, "arguments.path"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(tool: str, arguments: dict[str, Any], field: str) -> None:
    error = refusal(tool, arguments)
    assert error.field == f"plan.steps.3.{field}"
    assert error.message.startswith(f"plan.steps.3.{field}: ")


def test_a_refusal_does_not_repeat_the_value() -> None:
    assert "secret-value" not in refusal("shell", {"script": "true", "environment": ["secret-value"]}).message


def test_an_argument_that_does_not_exist_is_refused_with_those_that_do() -> None:
    assert "it takes script, environment" in refusal("shell", {"script": "true", "cwd": "/"}).message


def test_tools_that_only_touch_whole_files_can_be_repeated() -> None:
    some = {"shell": {"script": "true"}, "python": {"code": "pass"}, "file_list": {}}
    file = {"path": "x"}
    some |= {"file_write": {**file, "content": ""}, "file_read": file, "file_delete": file}
    repeatable = {name: builtin_tools().resolve(name, given, field="")[0].repeatable for name, given in some.items()}
    assert {name for name, value in repeatable.items() if not value} == {"shell", "python"}
