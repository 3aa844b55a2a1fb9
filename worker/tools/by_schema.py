"""Arguments of a tool that has a JSON schema instead of a pydantic model: a tool of an MCP server, now or in a recorded
run.

The library that checks by a schema is loaded with this module, so code that seldom needs it imports it only then.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from backplane.input.argument_schemas import ArgumentsSchema
from worker.tools.base import ToolArguments


def arguments_of(given: Mapping[str, Any]) -> type[ToolArguments]:
    """Arguments that are checked by a JSON schema, which is one (`backplane.input.argument_schemas.are_usable`)."""
    schema = ArgumentsSchema(given)

    class McpArguments(ToolArguments):
        model_config = ConfigDict(extra="allow")

        @model_validator(mode="before")
        @classmethod
        def _fit(cls, value: Any) -> Any:
            schema.check(value)
            return value

        @classmethod
        def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
            return dict(given)

    return McpArguments
