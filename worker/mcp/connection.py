"""The port to one MCP server: what it offers, and a call. A connection lasts for one of these, so that nothing is held
between the steps of a run, and a run that moves to another worker notices nothing.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backplane.errors import PlatformError, Unavailable
from worker.tools.base import ToolContext

SCHEMA_MAX_BYTES = 32 * 1024
DESCRIPTION_MAX_CHARS = 1000
TOOLS_MAX = 100


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """As the server describes it: words of a stranger. `schema` is a JSON schema of an object."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RemoteResult:
    text: str
    is_error: bool


BeforeCall = Callable[[], Awaitable[None]]


class CallNotTaken(PlatformError):
    """The server did not carry the call out: it refused it, or was not reached any more. `later`: the same call may be
    taken then."""

    code = "mcp_call_not_taken"

    def __init__(self, message: str, *, later: bool) -> None:
        super().__init__(message)
        self.later = later


class McpConnection(ABC):
    """Raises Unavailable (part `mcp`) when the server cannot be reached, breaks off or answers what is no answer."""

    @abstractmethod
    async def list_tools(self, context: ToolContext) -> list[RemoteTool]: ...

    @abstractmethod
    async def call(
        self, tool: str, arguments: Mapping[str, Any], context: ToolContext, before_call: BeforeCall
    ) -> RemoteResult:
        """`before_call` is awaited after all that can fail without the tool being called; what it raises is passed on.
        Raises CallNotTaken when the call was not carried out."""
        ...


def unavailable(server: str, why: str) -> Unavailable:
    return Unavailable(
        f"the MCP server {server} {why}; see that it runs, and its entry in MCP_SERVERS", part="mcp", retry_after=5
    )


def tools_from(server: str, listed: Any) -> list[RemoteTool]:
    """Of the result of tools/list. What cannot be offered (no name, a schema too large) is left out."""
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise unavailable(server, "lists its tools in a form that is none")
    found = []
    for raw in listed[:TOOLS_MAX]:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            continue
        schema = raw.get("inputSchema")
        if not isinstance(schema, Mapping) or _size(schema) > SCHEMA_MAX_BYTES:
            continue
        description = raw.get("description")
        words = description[:DESCRIPTION_MAX_CHARS] if isinstance(description, str) else ""
        found.append(RemoteTool(raw["name"], words, dict(schema)))
    return found


def _size(schema: Mapping[str, Any]) -> float:
    """In bytes of JSON; no end of them when it is nested too deeply to be counted."""
    try:
        return len(json.dumps(schema))
    except RecursionError:
        return math.inf


def result_from(server: str, answer: Any) -> RemoteResult:
    """Of the result of tools/call: its texts; other parts are named, not kept."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("content"), Sequence):
        raise unavailable(server, "answers in a form that is none")
    parts = []
    for part in answer["content"]:
        kind = str(part.get("type")) if isinstance(part, Mapping) else "unknown"
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            parts.append(f"[a part of the kind {kind[:32]} is left out]")
    return RemoteResult("\n".join(parts), bool(answer.get("isError")))
