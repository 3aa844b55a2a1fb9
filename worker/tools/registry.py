"""The tools by name. A new tool is a file beside this one and a line here."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from backplane.errors import InvalidPlan
from worker.tools.base import Tool, ToolArguments
from worker.tools.file_delete import FileDelete
from worker.tools.file_list import FileList
from worker.tools.file_read import FileRead
from worker.tools.file_write import FileWrite
from worker.tools.python import Python
from worker.tools.shell import Shell


class ToolRegistry:
    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def resolve(self, name: str, arguments: Mapping[str, Any], *, field: str) -> tuple[Tool, ToolArguments]:
        """The tool of a step and its validated arguments. `field` says where the step stands, e.g. `plan.steps.3`;
        raises InvalidPlan, whose own field is below it: `plan.steps.3.tool`, `plan.steps.3.arguments.path`."""
        tool = self._tools.get(name)
        if tool is None:
            where = f"{field}.tool"
            raise InvalidPlan(f"{where}: there is no tool {name!r}; there are {', '.join(self._tools)}", field=where)
        return tool, validate_arguments(tool, arguments, f"{field}.arguments")


def builtin_tools() -> ToolRegistry:
    return ToolRegistry((Shell(), Python(), FileWrite(), FileRead(), FileList(), FileDelete()))


def validate_arguments(tool: Tool, raw: Mapping[str, Any], field: str) -> ToolArguments:
    """Raises InvalidPlan whose `field` is below the given one, e.g. `plan.steps.3.arguments.path`."""
    try:
        return tool.arguments.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join([field, *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"the tool {tool.name} does not take this; it takes {', '.join(tool.arguments.model_fields)}"
        raise InvalidPlan(f"{where}: {message}", field=where) from error
