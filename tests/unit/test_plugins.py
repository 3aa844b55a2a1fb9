"""Tools of other packages: what a worker takes, and what it does not start with."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from worker.tools.base import Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.plugins import GROUP, PluginRefused, with_plugins
from worker.tools.registry import ToolRegistry, builtin_tools

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plugin"


class Nothing(ToolArguments):
    pass


class Good(Tool):
    name: ClassVar[str] = "good"
    description: ClassVar[str] = "Does nothing."
    arguments: ClassVar[type[ToolArguments]] = Nothing

    async def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        return ToolResult()


def tool(**attributes: Any) -> Tool:
    made: Tool = type("Made", (Good,), attributes)()
    return made


class Found(EntryPoint):
    """An entry point whose module is this test."""

    loaded: object = None

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def found(loaded: object, name: str = "it") -> EntryPoint:
    entry_point = Found(name, "some.module:Thing", GROUP)
    object.__setattr__(entry_point, "loaded", loaded)
    return entry_point


def refusal(*entry_points: EntryPoint) -> str:
    with pytest.raises(PluginRefused) as refused:
        with_plugins(builtin_tools(), entry_points)
    message = refused.value.message
    assert "some.module:Thing" in message
    assert "Mend or uninstall" in message
    return message


def test_a_class_is_a_tool_and_a_function_may_give_several() -> None:
    def several() -> Iterable[Tool]:
        yield tool(name="second")
        yield tool(name="third")

    tools = with_plugins(builtin_tools(), [found(Good), found(several, "others")])
    assert tools.names == (*builtin_tools().names, "good", "second", "third")


def test_without_plugins_the_registry_is_what_it_was() -> None:
    assert with_plugins(builtin_tools(), []).names == builtin_tools().names


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (ModuleNotFoundError("No module named 'missing'"), "cannot be loaded (ModuleNotFoundError: No module named"),
        (SyntaxError("invalid syntax"), "cannot be loaded (SyntaxError"),
        (lambda: sys.exit("the end"), "cannot be loaded (SystemExit: the end)"),
        (Tool, "cannot be loaded (TypeError"),
        (lambda: 1 / 0, "cannot be loaded (ZeroDivisionError"),
        (7, "cannot be loaded (TypeError"),
        (lambda: "text", "it gives a str, not a worker.tools.base.Tool"),
        (lambda: [Good()  , None], "it gives a NoneType"),
        (lambda: tool(name="shell"), "there is a tool named 'shell' already"),
        (lambda: [Good(), Good()], "there is a tool named 'good' already"),
        (lambda: tool(name="No Name"), "its name 'No Name' is not of the form"),
        (lambda: tool(name=None), "its name None is not of the form"),
        (lambda: tool(description=" "), "the tool good has no description"),
        (lambda: tool(arguments=dict), "the arguments of the tool good are no subclass"),
        (lambda: tool(risk=2), "the risk of the tool good is no worker.tools.base.Risk"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_wrong_is_refused_with_what_is_wrong(loaded: object, reason: str) -> None:
    assert reason in refusal(found(loaded))


def test_two_packages_cannot_bring_the_same_name() -> None:
    assert "there is a tool named 'good' already" in refusal(found(Good), found(Good, "later"))


# --- as it is installed ---


def install(folder: Path, *, source: Path = EXAMPLE, module: str = "") -> None:
    """What an installer leaves of the example: its module, and a description of the package from its pyproject.toml."""
    about = tomllib.loads((source / "pyproject.toml").read_text())
    project = about["project"]
    for name in about["tool"]["setuptools"]["py-modules"]:
        text = (source / "src" / f"{name}.py").read_text()
        (folder / f"{name}.py").write_text(module or text)
    described = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    [(group, entries)] = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")


def start_worker(folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "ARTIFACTS_DIR": "", "MEMORY_DIR": ""}
    return subprocess.run(
        [sys.executable, "-m", "worker"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_a_worker_does_not_start_with_a_plugin_that_is_wrong_and_says_why(tmp_path: Path) -> None:
    install(tmp_path, module="import something_that_is_missing\n")
    ended = start_worker(tmp_path)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last == (
        "the plug-in word_count = word_count_tool:WordCount of word-count-tool 1.0.0 cannot be used: it cannot be "
        "loaded (ModuleNotFoundError: No module named 'something_that_is_missing'). Mend or uninstall that package; "
        "the worker does not start with it."
    )
    assert "Traceback" not in ended.stderr


# --- the registry ---


def test_two_tools_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two tools have the name 'good'"):
        ToolRegistry([Good(), Good()])


def test_a_registry_with_more_tools_is_another_one() -> None:
    tools = builtin_tools()
    more = tools.with_tools([Good()])
    assert (tools.get("good"), type(more.get("good"))) == (None, Good)
    assert more.without(["good", "unknown"]).names == tools.names


def test_schemas_say_what_a_model_needs() -> None:
    [schema] = builtin_tools().schemas(["file_read", "unknown"])
    assert (schema["name"], schema["risk"], schema["repeatable"]) == ("file_read", "low", True)
    assert schema["parameters"]["required"] == ["path"]
    assert schema["parameters"]["additionalProperties"] is False
    assert [one["name"] for one in builtin_tools().schemas()] == list(builtin_tools().names)


def test_a_tool_knows_the_package_that_it_is_from_and_one_of_the_platform_is_from_none() -> None:
    @dataclass(frozen=True)
    class Frozen(Good):
        name: ClassVar[str] = "frozen"

    tools = with_plugins(builtin_tools(), [found(Good), found(Frozen, "other")])
    assert {tool.name: tool.package for tool in tools.tools() if tool.package} == {
        "good": "an unknown package",
        "frozen": "an unknown package",
    }


def test_one_that_is_unclear_about_the_outside_is_refused() -> None:
    assert "changes_outside" in refusal(found(lambda: tool(changes_outside="maybe")))
