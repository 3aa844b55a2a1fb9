"""The tools by name. A new tool is a file beside this one and a line here, or a plug-in (`worker.tools.plugins`).

A registry never changes: what a run has beyond the worker's tools (those of its MCP servers) makes a new one. It knows
no policy, which is the supervisor's.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backplane.domain.validation_messages import HINTS
from backplane.errors import FAULTS_SHOWN, Fault, InvalidPlan, dotted
from backplane.input.tool_arguments import unknown_argument, unknown_tool
from worker.tools.apply_patch import ApplyPatch
from worker.tools.arguments import is_program
from worker.tools.ask_person import AskPerson
from worker.tools.base import Tool, ToolArguments
from worker.tools.file_delete import FileDelete
from worker.tools.file_list import FileListTool
from worker.tools.file_read import FileRead
from worker.tools.file_write import FileWrite
from worker.tools.python import Python
from worker.tools.search_files import SearchFiles
from worker.tools.shell import Shell


class ToolRegistry:
    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ValueError(f"two tools have the name {tool.name!r}: rename one, or leave it out")
            self._tools[tool.name] = tool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def tools(self) -> Iterable[Tool]:
        """In the order in which they were given."""
        return self._tools.values()

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def schemas(self, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """For models and people: `name`, `description`, `parameters` (the JSON schema of the arguments), `risk` (low,
        medium, high) and `repeatable` of all tools, or of those named; names that are not there are left out."""
        wanted = self.names if names is None else set(names)
        return [describe(tool) for tool in self._tools.values() if tool.name in wanted]

    def with_tools(self, extra: Iterable[Tool]) -> "ToolRegistry":
        """These and others. Raises ValueError when a name is taken."""
        return ToolRegistry((*self._tools.values(), *extra))

    def without(self, names: Iterable[str]) -> "ToolRegistry":
        left_out = set(names)
        return ToolRegistry(tool for tool in self._tools.values() if tool.name not in left_out)

    def resolve(self, name: str, arguments: Mapping[str, Any], *, field: str) -> tuple[Tool, ToolArguments]:
        """The tool of a step and its validated arguments. `field` says where the step stands, e.g. `plan.steps.3`;
        raises InvalidPlan, whose own field is below it: `plan.steps.3.tool`, `plan.steps.3.arguments.path`."""
        tool = self._tools.get(name)
        if tool is None:
            raise InvalidPlan.of([unknown_tool(name, self._tools, f"{field}.tool")])
        return tool, validate_arguments(tool, arguments, f"{field}.arguments")


def describe(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": _schema_of(tool.arguments),
        "risk": tool.risk.name.lower(),
        "repeatable": tool.repeatable,
    }


@lru_cache(maxsize=64)  # tools of MCP servers have a class for each run
def _schema_of(arguments: type[ToolArguments]) -> dict[str, Any]:
    """To make it takes 1 ms. Nobody changes it."""
    return arguments.model_json_schema()


def builtin_tools() -> ToolRegistry:
    """Those that need nothing but the run's own parts."""
    files = (FileWrite(), FileRead(), FileListTool(), FileDelete(), SearchFiles(), ApplyPatch())
    return ToolRegistry((Shell(), Python(), *files, AskPerson()))


def programs_of(tool: Tool) -> frozenset[str]:
    """The arguments that are executed or followed as instructions: nothing from outside may be put into them."""
    return frozenset(name for name, field in tool.arguments.model_fields.items() if is_program(field))


def validate_arguments(tool: Tool, raw: Mapping[str, Any], field: str) -> ToolArguments:
    """Raises InvalidPlan whose `field` is below the given one, e.g. `plan.steps.3.arguments.path`."""
    try:
        return tool.arguments.model_validate(dict(raw))
    except ValidationError as error:
        raise invalid_arguments(tool, faults_of(error), field) from error


def faults_of(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def invalid_arguments(tool: Tool, found: Sequence[ErrorDetails], field: str) -> InvalidPlan:
    """What is wrong, in words that say what would be right."""
    faults = []
    for number, fault in enumerate(found[: FAULTS_SHOWN + 1]):
        where = dotted(field, fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            names = tool.arguments.model_fields
            message = unknown_argument(tool.name, str(fault["loc"][0]), names, with_hint=number < HINTS)
        faults.append(Fault(where, f"{where}: {message}"))
    return InvalidPlan.of(faults)
