"""The port to one MCP server: what it offers, and a call. A connection lasts for one of these, so that nothing is held
between the steps of a run, and a run that moves to another worker notices nothing.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backplane.domain.sizes import shortened
from backplane.errors import PlatformError, Unavailable
from backplane.process.terminal_text import printable
from worker.mcp.results import text_of
from worker.tools.base import ToolContext

SCHEMA_MAX_BYTES = 32 * 1024
DESCRIPTION_MAX_CHARS = 1000
NAME_MAX_CHARS = 256
PAGES_MAX = 50
"""Of a list of tools."""
LISTED_MAX = 1000
"""Tools that are looked at; `worker.mcp.tools` says how many of them a run has."""


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


NOT_TAKEN = (-32601, -32602)
"""The errors of JSON-RPC by which a call was not carried out: no such method or tool, and arguments that do not fit."""

BEGINNING_BYTES = 400
BEGINNING_CHARS = 200
"""Of an answer that cannot be read: so much is kept, and shown."""

BeforeCall = Callable[[], Awaitable[None]]


class CallNotTaken(PlatformError):
    """The server did not carry the call out: it refused it, or was not reached any more. `later`: the same call may be
    taken then, where the server says so after these seconds (`retry_after`)."""

    code = "mcp_call_not_taken"

    def __init__(self, message: str, *, later: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.later = later
        self.retry_after = retry_after


class McpConnection(ABC):
    """Raises Unavailable (part `mcp`) when the server cannot be reached, breaks off or answers what is no answer. It is
    no part of the platform: the try of a step ends with that."""

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


def beginning_of(sent: bytes | str) -> str:
    """What a server sent, in one line that is safe to show."""
    text = sent.decode("utf-8", "replace") if isinstance(sent, bytes) else sent
    return shortened(printable(" ".join(text.split())), BEGINNING_CHARS)


def tools_from(server: str, pages: Iterable[Any]) -> list[RemoteTool]:
    """Of the pages of tools/list. What cannot be offered (no name, a schema too large) is left out."""
    found: list[RemoteTool] = []
    for page in pages:
        if not isinstance(page, Sequence) or isinstance(page, str):
            raise unavailable(server, f"lists its tools in a form that is none: {_as_sent(page)}")
        found += [tool for raw in page[: LISTED_MAX - len(found)] if (tool := _tool(raw)) is not None]
    return found


def _tool(raw: Any) -> RemoteTool | None:
    if not isinstance(raw, Mapping):
        return None
    name, description, schema = raw.get("name"), raw.get("description"), raw.get("inputSchema")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX_CHARS:
        return None
    if schema is None:
        schema = {}
    if not isinstance(schema, Mapping) or _size(schema) > SCHEMA_MAX_BYTES:
        return None
    if "type" not in schema and "$ref" not in schema:
        # Arguments are an object, and some do not say so, of a tool without arguments above all.
        schema = {"type": "object", "properties": {}, **schema}
    words = shortened(description, DESCRIPTION_MAX_CHARS) if isinstance(description, str) else ""
    return RemoteTool(name, words, dict(schema))


def _size(schema: Mapping[str, Any]) -> float:
    """In bytes of JSON; no end of them when it is nested too deeply to be counted."""
    try:
        return len(json.dumps(schema))
    except RecursionError:
        return math.inf


def _as_sent(value: Any) -> str:
    try:
        return beginning_of(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return "JSON that is nested too deeply"


def result_from(server: str, answer: Any) -> RemoteResult:
    """Of the result of tools/call."""
    text = text_of(answer) if isinstance(answer, Mapping) else None
    if text is None:
        raise unavailable(server, f"answers in a form that is none: {_as_sent(answer)}")
    return RemoteResult(text, bool(answer.get("isError")))
