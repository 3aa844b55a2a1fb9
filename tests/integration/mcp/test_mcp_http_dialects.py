"""What MCP servers over HTTP differ in: how they answer (JSON, events), sessions, versions, pages, and what they say of
a tool's result. The server follows a table, byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import Unavailable
from tests.integration.mcp.test_mcp_tools import OneSecret
from tests.integration.tools.site import Answer, Asked, Site, site_on
from tests.tool_bench import MIB, Bench, tool_bench
from worker.mcp.connection import LISTED_MAX, PAGES_MAX
from worker.mcp.offered import McpServers
from worker.mcp.servers import servers_of
from worker.mcp.tools import TOOLS_MAX
from worker.tools.base import ToolResult
from worker.tools.registry import ToolRegistry

SESSION = "session-7"
SAYS_YES = {"content": [{"type": "text", "text": "yes"}]}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": {}}, **more}


def raw(head: list[str], body: bytes, status: str = "200 OK") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", *head, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return answer


def event(message: Any, name: str = "message") -> bytes:
    return f"event: {name}\ndata: {json.dumps(message)}\n\n".encode()


def as_json(message: Any, head: list[str]) -> Answer:
    return raw(["Content-Type: application/json", *head], json.dumps(message).encode())


def as_events(message: Any, head: list[str]) -> Answer:
    return raw(["Content-Type: text/event-stream", *head], b": hello\n\n" + event(message))


def behind_others(message: Any, head: list[str]) -> Answer:
    """After a priming event, notifications, a request of the server's own and an event of another kind."""
    before = [
        b"id: 1\nretry: 10\ndata: \n\n",
        event({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 0.5}}),
        event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "hm"}}),
        event({"jsonrpc": "2.0", "id": 1, "method": "ping"}),
        event({"jsonrpc": "2.0", "id": 2, "method": "roots/list"}),
        event({}, "heartbeat"),
    ]
    return raw(["Content-Type: text/event-stream; charset=utf-8", *head], b"".join(before) + event(message))


@dataclass
class Dialect:
    """`wraps`: how an answer is sent. `version`: the one that it speaks; empty: the one it is asked for. `pages`: of
    tools, by cursor. `keeps_session`: it wants its session's id back."""

    site: Site
    wraps: Callable[[Any, list[str]], Answer] = as_json
    version: str = ""
    pages: Callable[[str | None], dict[str, Any]] = lambda cursor: {"tools": [tool("t")]}
    result: Any = field(default_factory=lambda: dict(SAYS_YES))
    keeps_session: bool = False
    empty: str = "202 Accepted"

    def __post_init__(self) -> None:
        async def answer(writer: asyncio.StreamWriter) -> None:
            await self._answer(next(one for one in reversed(self.site.asked) if one.target == "/mcp"))(writer)

        self.site.pages["/mcp"] = answer

    def _answer(self, asked: Asked) -> Answer:
        if asked.method != "POST":
            return raw([], b"", "405 Method Not Allowed")
        message = json.loads(asked.body)
        id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
        is_of_session = method not in ("initialize", "server/discover")
        if self.keeps_session and is_of_session and asked.headers.get("mcp-session-id") != SESSION:
            return raw([], b"", "400 Bad Request")
        if id is None or method is None:
            return raw([], b"", self.empty)
        match method:
            case "initialize":
                version = self.version or params["protocolVersion"]
                value: Any = {"protocolVersion": version, "capabilities": {"tools": {}}}
                result: Any = {**value, "serverInfo": {"name": "s", "version": "1"}}
            case "tools/list":
                result = self.pages(params.get("cursor"))
            case "tools/call":
                result = self.result
            case _:
                error = {"code": -32601, "message": "Method not found"}
                return as_json({"jsonrpc": "2.0", "id": id, "error": error}, [])
        head = [f"Mcp-Session-Id: {SESSION}"] if self.keeps_session and method == "initialize" else []
        return self.wraps({"jsonrpc": "2.0", "id": id, "result": result}, head)

    def asked(self, method: str) -> list[Any]:
        messages = [json.loads(one.body) for one in self.site.asked if one.body]
        return [message for message in messages if message.get("method") == method]


@pytest.fixture
async def dialect() -> AsyncIterator[Dialect]:
    async with site_on() as site:
        yield Dialect(site)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    none_of_its_business: Any = None
    async with tool_bench(none_of_its_business, tmp_path, OneSecret()) as bench:
        yield bench


async def offered(dialect: Dialect, bench: Bench, **more: Any) -> ToolRegistry:
    entry = {"url": dialect.site.url("/mcp"), **more}
    servers = McpServers(servers_of({"s": entry}), allow_private=True, timeout_seconds=20.0, max_bytes=4 * MIB)
    return ToolRegistry(await servers.tools(["s"], bench.context))


async def call(dialect: Dialect, bench: Bench) -> tuple[ToolResult, str]:
    bench.tools = await offered(dialect, bench)
    return await bench.step("s__t"), bench.said.decode()


@pytest.mark.parametrize(("wraps", "keeps_session"), [(as_json, True), (as_events, False), (behind_others, True)])
async def test_a_server_may_answer_in_either_form_with_a_session_or_without(
    dialect: Dialect, bench: Bench, wraps: Any, keeps_session: bool
) -> None:
    dialect.wraps, dialect.keeps_session = wraps, keeps_session
    assert await call(dialect, bench) == (ToolResult(), "yes\n")
    assert len(dialect.asked("tools/call")) == 1


@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25"])
async def test_a_server_may_speak_an_older_version(dialect: Dialect, bench: Bench, version: str) -> None:
    dialect.version = version
    assert (await call(dialect, bench))[1] == "yes\n"


async def test_a_server_of_a_version_that_nobody_knows_is_named(dialect: Dialect, bench: Bench) -> None:
    dialect.version = "1999-01-01"
    with pytest.raises(Unavailable, match="Unsupported protocol version from the server: 1999-01-01"):
        await call(dialect, bench)


async def test_notifications_may_be_answered_by_a_plain_200(dialect: Dialect, bench: Bench) -> None:
    dialect.empty = "200 OK"
    assert (await call(dialect, bench))[1] == "yes\n"


async def test_an_event_may_be_as_long_as_an_answer_may_be(dialect: Dialect, bench: Bench) -> None:
    dialect.wraps = as_events
    dialect.result = {"content": [{"type": "text", "text": "x" * (2 * MIB)}]}
    assert len((await call(dialect, bench))[1]) == 2 * MIB + 1


# --- its tools ---


def numbered(last: int, *, then: Any = None) -> Callable[[str | None], dict[str, Any]]:
    """One tool a page, up to the last; its cursor is `then`."""

    def page(cursor: str | None) -> dict[str, Any]:
        number = int(cursor or 0)
        return {"tools": [tool(f"t{number}")], "nextCursor": str(number + 1) if number < last else then}

    return page


async def test_all_pages_of_tools_are_offered(dialect: Dialect, bench: Bench) -> None:
    dialect.pages = numbered(3)
    assert (await offered(dialect, bench)).names == ("s__t0", "s__t1", "s__t2", "s__t3")


@pytest.mark.parametrize(("then", "pages"), [("0", 4), ("2", 3), ("", 3)])
async def test_a_cursor_that_leads_back_is_followed_once(dialect: Dialect, bench: Bench, then: str, pages: int) -> None:
    dialect.pages = numbered(2, then=then)
    assert set((await offered(dialect, bench)).names) == {"s__t0", "s__t1", "s__t2"}
    assert len(dialect.asked("tools/list")) == pages


async def test_a_list_without_end_is_ended(dialect: Dialect, bench: Bench) -> None:
    dialect.pages = numbered(10_000)
    assert len((await offered(dialect, bench)).names) == PAGES_MAX
    assert len(dialect.asked("tools/list")) == PAGES_MAX


@pytest.mark.slow
async def test_a_run_has_so_many_tools_of_a_server_and_those_named_come_first(dialect: Dialect, bench: Bench) -> None:
    dialect.pages = lambda cursor: {"tools": [tool(f"t{number}") for number in range(LISTED_MAX + 1)]}
    assert len((await offered(dialect, bench)).names) == TOOLS_MAX
    named = await offered(dialect, bench, tools=[f"t{LISTED_MAX - 1}", f"t{LISTED_MAX}"])
    assert named.names == (f"s__t{LISTED_MAX - 1}",)


async def test_names_that_a_plan_cannot_have_are_changed_and_sent_as_they_are(dialect: Dialect, bench: Bench) -> None:
    names = ["files.read", "files/read", "files read", "lesen für alle", "x" * 80]
    dialect.pages = lambda cursor: {"tools": [tool(name) for name in names]}
    bench.tools = await offered(dialect, bench)
    assert len(bench.tools.names) == len(names)
    assert bench.tools.names[0] == "s__files.read"
    assert bench.tools.names[3] == "s__lesen_f_r_alle"
    for name in bench.tools.names:
        await bench.step(name)
    assert [message["params"]["name"] for message in dialect.asked("tools/call")] == names


# --- a call's result ---


async def test_resources_and_structured_content_are_kept(dialect: Dialect, bench: Bench) -> None:
    notes = {"type": "resource", "resource": {"uri": "file:///notes", "text": "notes"}}
    dialect.result = {"content": [notes], "structuredContent": {"count": 1}}
    assert (await call(dialect, bench))[1] == '[the resource file:///notes]\nnotes\n{"count": 1}\n'


@pytest.mark.parametrize("content", [SAYS_YES["content"], []])
async def test_an_answer_that_is_not_as_the_server_said_is_an_answer(
    dialect: Dialect, bench: Bench, content: Any
) -> None:
    wants = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    dialect.pages = lambda cursor: {"tools": [tool("t", outputSchema=wants)]}
    dialect.result = {"content": content, "structuredContent": {"b": 1}}
    result, said = await call(dialect, bench)
    assert (result, said.endswith('{"b": 1}\n')) == (ToolResult(), True)
    assert len(dialect.asked("tools/list")) == 1


async def test_what_a_tool_says_failed_is_reported_with_its_words(dialect: Dialect, bench: Bench) -> None:
    dialect.result = {"content": [{"type": "text", "text": "no such file"}], "isError": True}
    result, said = await call(dialect, bench)
    assert (result.error and result.error.code, said) == ("mcp_tool_failed", "no such file\n")


@pytest.mark.parametrize("result", [{"content": "yes"}, {"content": [{"type": "hologram"}]}, {"content": None}])
async def test_an_answer_of_another_form_is_named_as_that(dialect: Dialect, bench: Bench, result: Any) -> None:
    dialect.result = result
    with pytest.raises(Unavailable, match="the MCP server s answers in a form that is none"):
        await call(dialect, bench)


async def test_a_redirect_to_another_host_is_named_and_not_followed(dialect: Dialect, bench: Bench) -> None:
    dialect.site.redirects("/mcp", "https://elsewhere.example/mcp", "307 Temporary Redirect")
    with pytest.raises(Unavailable, match=r"Redirect to https://elsewhere.example/mcp not followed"):
        await call(dialect, bench)


async def test_a_redirect_within_the_server_is_followed(dialect: Dialect, bench: Bench) -> None:
    serve = dialect.site.pages["/mcp"]
    dialect.site.pages["/mcp/"] = serve
    dialect.site.redirects("/old", "/mcp", "307 Temporary Redirect")
    entry = {"url": dialect.site.url("/old")}
    servers = McpServers(servers_of({"s": entry}), allow_private=True, timeout_seconds=20.0, max_bytes=MIB)
    assert [one.name for one in await servers.tools(["s"], bench.context)] == ["s__t"]


PAGE = b"<html><title>502 Bad Gateway</title>"
JSON, EVENTS = "Content-Type: application/json", "Content-Type: text/event-stream"


def left_open(body: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\n{EVENTS}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        await asyncio.sleep(60)

    return answer


UNREADABLE = {
    "broken JSON": (raw([JSON], b'{"jsonrpc": "2.0", "id": 3, "resu'), '{"jsonrpc": "2.0", "id": 3, "resu'),
    "JSON of another shape": (raw([JSON], b'{"hello": 1}'), '{"hello": 1}'),
    "nothing": (raw([JSON], b""), "cannot be understood"),
    "an answer to another request": (raw([JSON], b'{"jsonrpc": "2.0", "id": 99, "result": {}}'), '"id": 99'),
    "a message that is no answer": (raw([JSON], b'{"jsonrpc": "2.0", "method": "notifications/x"}'), "notifications/x"),
    "a refusal without an id": (
        raw([JSON], b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "Parse error"}}'),
        "refuses: Parse error",
    ),
    "a page": (raw(["Content-Type: text/html"], PAGE), PAGE.decode()),
    "a page that is called JSON": (raw([JSON], PAGE), PAGE.decode()),
    "a page with an error's status": (raw(["Content-Type: text/html"], PAGE, "502 Bad Gateway"), PAGE.decode()),
    "JSON with an error's status": (raw([JSON], b'{"detail": "down"}', "500 Oops"), '{"detail": "down"}'),
    "a page that is called events": (left_open(PAGE), PAGE.decode()),
    "broken events": (left_open(b'data: {"jsonrpc": "2.0", "id\n\n'), 'data: {"jsonrpc": "2.0", "id'),
    "what a terminal obeys": (raw([JSON], b"\x1b[2Jgone\x07"), "it sent: gone"),
    "much": (raw([JSON], b"x" * 5000), f"it sent: {'x' * 200}…; see"),
}


@pytest.mark.parametrize(("answer", "shown"), UNREADABLE.values(), ids=UNREADABLE)
async def test_an_answer_that_cannot_be_read_ends_the_call_at_once_and_is_shown(
    dialect: Dialect, bench: Bench, answer: Answer, shown: str
) -> None:
    bench.tools = await offered(dialect, bench)
    dialect.wraps = lambda message, head: answer if "content" in message["result"] else as_json(message, head)
    with pytest.raises(Unavailable) as error:
        async with asyncio.timeout(5):
            await bench.step("s__t")
    assert shown in error.value.message
    assert "pydantic" not in error.value.message
