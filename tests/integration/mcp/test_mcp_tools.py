"""Tools of MCP servers: a program in the real sandbox, and a server over HTTP made with the official library."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from backplane.errors import InvalidInput, InvalidPlan, Unavailable
from backplane.net.egress import OutsideRefused
from tests.tool_bench import MIB, Bench, tool_bench
from tests.waiting import wait_until
from worker.mcp.offered import McpServers
from worker.mcp.servers import servers_of
from worker.sandbox.local.sandbox import open_local_sandbox
from worker.tools.base import Risk, ToolResult
from worker.tools.registry import ToolRegistry

CALCULATOR = (Path(__file__).parent / "calculator.py").read_bytes()
CALC = {"command": ["python3", "calc.py"], "environment": {"CALC_KEY": "${secrets.KEY}"}}


class OneSecret:
    """`${secrets.KEY}`, which says for which host it was opened."""

    async def fill(self, text: str, *, host: str | None = None) -> str:
        return text.replace("${secrets.KEY}", f"opened for {host or 'the sandbox'}")


@dataclass
class Servers:
    bench: Bench

    async def tools(self, name: str = "calc", entry: Any = CALC, **limits: Any) -> ToolRegistry:
        values = {"allow_private": True, "timeout_seconds": 20.0, "max_bytes": MIB, **limits}
        servers = McpServers(servers_of({name: entry}), **values)
        return ToolRegistry(await servers.tools([name], self.bench.context))

    async def call(self, tools: ToolRegistry, tool: str, **arguments: Any) -> tuple[ToolResult, str]:
        self.bench.tools = tools
        result = await self.bench.step(tool, **arguments)
        return result, self.bench.said.decode()


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    sandbox = await open_local_sandbox(require_isolation=False)
    async with tool_bench(sandbox, tmp_path, OneSecret()) as bench:
        await bench.context.workspace.put("calc.py", CALCULATOR)
        yield Servers(bench)
    await sandbox.close()


# --- a program in the sandbox ---


async def test_a_program_of_the_workspace_offers_its_tools_and_is_called(servers: Servers) -> None:
    tools = await servers.tools()
    assert tools.names == ("calc__add", "calc__behave", "calc__bare.name", "calc__odd_name_")
    assert await servers.call(tools, "calc__add", a=2, b=40) == (ToolResult(), "42\n")


async def test_the_operator_decides_which_tools_and_what_risk(servers: Servers) -> None:
    tools = await servers.tools(entry={**CALC, "tools": ["add"], "risk": "high", "repeatable": ["add"]})
    [tool] = tools.tools()
    assert (tool.name, tool.risk, tool.repeatable) == ("calc__add", Risk.HIGH, True)


async def test_arguments_that_do_not_fit_are_refused_before_the_server_is_asked(servers: Servers) -> None:
    tools = await servers.tools()
    with pytest.raises(InvalidPlan, match="is not of type 'integer'"):
        tools.resolve("calc__add", {"a": "2", "b": 1}, field="plan.steps.0")
    with pytest.raises(InvalidPlan, match="required property"):
        tools.resolve("calc__add", {"a": 2}, field="plan.steps.0")
    assert tools.schemas()[0]["parameters"]["required"] == ["a", "b"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("garbage", "too much to its standard output"),
        ("die", "the server ended with 3"),
        ("endless", "more than 1,048,576 bytes in a line"),
    ],
)
async def test_a_program_that_misbehaves_is_unavailable(servers: Servers, how: str, why: str) -> None:
    tools = await servers.tools()
    with pytest.raises(Unavailable, match=why) as error:
        await servers.call(tools, "calc__behave", how=how)
    assert error.value.part == "mcp"


async def test_a_program_that_hangs_is_ended(servers: Servers) -> None:
    tools = await servers.tools(timeout_seconds=3.0)
    with pytest.raises(Unavailable, match="took too long"):
        await servers.call(tools, "calc__behave", how="hang")


async def test_what_it_says_failed_is_a_failed_step(servers: Servers) -> None:
    result, said = await servers.call(await servers.tools(), "calc__behave", how="fail")
    assert (result.exit_code, result.error and result.error.code) == (1, "mcp_tool_failed")
    assert said == "it does not work\n"


async def test_an_answer_that_it_forges_is_none(servers: Servers) -> None:
    tools = await servers.tools(timeout_seconds=3.0)
    with pytest.raises(Unavailable, match="MCP server calc"):
        await servers.call(tools, "calc__behave", how="forge")


async def test_files_that_it_writes_are_kept(servers: Servers) -> None:
    await servers.call(await servers.tools(), "calc__behave", how="write")
    assert (await servers.bench.context.workspace.get("made.txt"))[1] == b"made"
    assert servers.bench.changing == ["now"]


async def test_it_gets_the_secrets_of_its_entry_and_no_other_environment(servers: Servers) -> None:
    _, said = await servers.call(await servers.tools(), "calc__behave", how="environment")
    assert said == "opened for the sandbox\n"


async def test_what_it_says_beside_is_the_steps_output(servers: Servers) -> None:
    said = (await servers.call(await servers.tools(), "calc__behave", how="stderr"))[1]
    assert said == "said beside\n[an image is left out: image/png, 0 bytes]\n"


async def test_a_line_of_noise_fails_no_call(servers: Servers) -> None:
    result, said = await servers.call(await servers.tools(), "calc__behave", how="noise")
    assert (result, said.splitlines()[0]) == (ToolResult(), "no json")


async def test_a_tool_is_called_by_the_name_that_its_server_knows(servers: Servers) -> None:
    tools = await servers.tools(entry={**CALC, "tools": ["odd name!"]})
    [tool] = tools.tools()
    assert tool.description.endswith("(The server calls it odd name!.)")
    with pytest.raises(Unavailable, match=r"ended with 1.*KeyError: 'how'"):
        await servers.call(tools, "calc__odd_name_")


async def test_what_it_asks_of_us_is_refused(servers: Servers) -> None:
    said = (await servers.call(await servers.tools(), "calc__behave", how="ask"))[1]
    assert said.startswith("refused: ")
    assert "not supported here" in said


async def test_a_command_that_is_not_there_is_unavailable(servers: Servers) -> None:
    with pytest.raises(Unavailable, match="cannot be started: No such file or directory: no-such-program"):
        await servers.tools(entry={"command": ["no-such-program"]})


# --- over HTTP ---


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server made with the official library."""
    from mcp.server.mcpserver import Context, MCPServer  # noqa: PLC0415 - takes a second

    server: MCPServer[Any] = MCPServer("docs", log_level="ERROR")

    async def greet(name: str, ctx: Context[Any, Any]) -> str:
        """Greets."""
        request = ctx.request_context.request
        return f"hello {name}, {request.headers.get('x-key') if request else None}"

    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    async def flood() -> str:
        return "x" * (2 * MIB)

    for tool in (greet, hang, flood):
        server.add_tool(tool)
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        app = server.streamable_http_app(stateless_http=True, json_response=True)
        serving = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        task = asyncio.create_task(serving.serve(sockets=[listening]))
        await wait_until(lambda: serving.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        serving.should_exit = True
        await task


async def test_a_server_over_http_is_asked_with_its_headers(servers: Servers, url: str) -> None:
    tools = await servers.tools("docs", {"url": url, "headers": {"X-Key": "${secrets.KEY}"}})
    result, said = await servers.call(tools, "docs__greet", name="you")
    assert (result, said) == (ToolResult(), f"hello you, opened for {url.split('/')[2]}\n")
    # What it did out there nobody knows, so a crash from here on is asked about.
    assert servers.bench.changing == ["now"]


async def test_a_call_that_may_be_repeated_is_not_asked_about(servers: Servers, url: str) -> None:
    tools = await servers.tools("docs", {"url": url, "repeatable": ["greet"]})
    await servers.call(tools, "docs__greet", name="you")
    assert servers.bench.changing == []


async def test_a_server_that_hangs_is_given_up(servers: Servers, url: str) -> None:
    tools = await servers.tools("docs", {"url": url}, timeout_seconds=1.0)
    with pytest.raises(Unavailable, match="MCP_TIMEOUT_SECONDS"):
        await servers.call(tools, "docs__hang")


async def test_a_server_that_sends_too_much_is_cut_off(servers: Servers, url: str) -> None:
    tools = await servers.tools("docs", {"url": url}, max_bytes=64 * 1024)
    with pytest.raises(Unavailable, match="MCP server docs"):
        await servers.call(tools, "docs__flood")


async def test_a_server_on_a_private_address_needs_permission(servers: Servers, url: str) -> None:
    with pytest.raises(OutsideRefused, match="not public"):
        await servers.tools("docs", {"url": url}, allow_private=False)


async def test_a_secret_is_sent_by_https_only(servers: Servers) -> None:
    entry = {"url": "http://docs.example/mcp", "headers": {"X-Key": "${secrets.KEY}"}}
    with pytest.raises(InvalidInput, match="https only"):
        await servers.tools("docs", entry, allow_private=False)


async def test_a_server_that_is_not_there_is_unavailable(servers: Servers) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await servers.tools("docs", {"url": "http://127.0.0.1:9/mcp"})


# --- the configuration ---


async def test_a_server_that_is_not_configured_is_named(servers: Servers) -> None:
    known = McpServers(servers_of({"calc": CALC}), allow_private=True, timeout_seconds=1, max_bytes=1)
    with pytest.raises(InvalidInput, match=r"'other' is not configured here.*calc"):
        await known.tools(["other"], servers.bench.context)


@pytest.mark.parametrize(
    ("name", "entry", "why"),
    [
        ("a", {}, "either url"),
        ("a", {"url": "ftp://x"}, "https://"),
        ("a", {"url": "http://x", "command": ["x"]}, "either url"),
        ("a", {"command": []}, "too few items; give at least 1"),
        ("a", {"command": ["x"], "headers": {"a": "b"}}, "headers go with url"),
        ("a", {"url": "http://x", "risk": "none"}, "risk"),
        ("A b", {"url": "http://x"}, "it must match"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(name: str, entry: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        servers_of({name: entry})
