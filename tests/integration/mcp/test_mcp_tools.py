"""Tools of MCP servers: a program in the real sandbox, and a server over HTTP made with the official library."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import Context, MCPServer

from backplane.egress import OutsideRefused
from backplane.errors import InvalidInput, InvalidPlan, Unavailable
from backplane.plans import Step
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.quota import Quota
from tests.waiting import wait_until
from worker.checkout import Checkout
from worker.mcp.offered import McpServers
from worker.mcp.servers import servers_of
from worker.sandbox.base import Call, Limits
from worker.sandbox.local import open_local_sandbox
from worker.tools.base import Risk, StepReport, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry

MIB = 1024 * 1024
QUOTA = Quota(max_bytes=8 * MIB, max_files=100, max_depth=8)
LIMITS = Limits(30, 256 * MIB, 1, 20, 32, 64 * MIB, QUOTA.max_bytes, QUOTA.max_files)
CALCULATOR = (Path(__file__).parent / "calculator.py").read_bytes()
CALC = {"command": ["python3", "calc.py"], "environment": {"CALC_KEY": "${secrets.KEY}"}}


class NoSubSteps:
    async def run(self, step: Step) -> StepReport:
        raise AssertionError("no tool here has steps below it")


class OneSecret:
    """`${secrets.KEY}`, for one host."""

    async def fill(self, text: str, *, host: str | None = None) -> str:
        return text.replace("${secrets.KEY}", f"opened for {host or 'the sandbox'}")


class Bench:
    def __init__(self, context: ToolContext, said: bytearray, changing: list[str]) -> None:
        self.context = context
        self.said = said
        self.changing = changing

    async def tools(self, name: str = "calc", entry: Any = CALC, **limits: Any) -> ToolRegistry:
        values = {"allow_private": True, "timeout_seconds": 20.0, "max_bytes": MIB, **limits}
        return ToolRegistry(await McpServers(servers_of({name: entry}), **values).tools([name], self.context))

    async def call(self, tools: ToolRegistry, tool: str, **arguments: Any) -> tuple[ToolResult, str]:
        self.said.clear()
        found, valid = tools.resolve(tool, arguments, field="plan.steps.0")
        result = await found.run(valid, self.context)
        return result, self.said.decode()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = LocalWorkspaceStore(tmp_path / "store")
    await store.prepare()
    workspace = store.workspace("user", "run")
    await workspace.put("calc.py", CALCULATOR)
    sandbox = await open_local_sandbox(require_isolation=False)
    checkout = Checkout(workspace, QUOTA, tmp_path / "checkout")
    said, changing = bytearray(), list[str]()

    async def about_to_change() -> None:
        changing.append("now")

    context = ToolContext(
        call=Call("user", "run", "step", 1, 1), workspace=workspace, checkout=checkout, sandbox=sandbox, quota=QUOTA,
        limits=LIMITS, output=said.extend, notice=lambda line: None, about_to_change=about_to_change, agent="default",
        models=None, sub_steps=NoSubSteps(), secrets=OneSecret(), answer=None,
    )  # fmt: skip
    yield Bench(context, said, changing)
    await checkout.discard()
    await sandbox.close()


# --- a program in the sandbox ---


async def test_a_program_of_the_workspace_offers_its_tools_and_is_called(bench: Bench) -> None:
    tools = await bench.tools()
    assert tools.names == ("calc__add", "calc__behave")
    assert await bench.call(tools, "calc__add", a=2, b=40) == (ToolResult(), "42\n")


async def test_the_operator_decides_which_tools_and_what_risk(bench: Bench) -> None:
    tools = await bench.tools(entry={**CALC, "tools": ["add"], "risk": "high", "repeatable": ["add"]})
    [tool] = tools.tools()
    assert (tool.name, tool.risk, tool.repeatable) == ("calc__add", Risk.HIGH, True)


async def test_arguments_that_do_not_fit_are_refused_before_the_server_is_asked(bench: Bench) -> None:
    tools = await bench.tools()
    with pytest.raises(InvalidPlan, match="is not of type 'integer'"):
        tools.resolve("calc__add", {"a": "2", "b": 1}, field="plan.steps.0")
    with pytest.raises(InvalidPlan, match="required property"):
        tools.resolve("calc__add", {"a": 2}, field="plan.steps.0")
    assert tools.schemas()[0]["parameters"]["required"] == ["a", "b"]


@pytest.mark.parametrize(
    ("how", "why"),
    [("garbage", "is no JSON"), ("die", "the server ended with 3"), ("endless", "more than 1,048,576 bytes")],
)
async def test_a_program_that_misbehaves_is_unavailable(bench: Bench, how: str, why: str) -> None:
    tools = await bench.tools()
    with pytest.raises(Unavailable, match=why) as error:
        await bench.call(tools, "calc__behave", how=how)
    assert error.value.part == "mcp"


async def test_a_program_that_hangs_is_ended(bench: Bench) -> None:
    tools = await bench.tools(timeout_seconds=1.0)
    with pytest.raises(Unavailable, match="took too long"):
        await bench.call(tools, "calc__behave", how="hang")


async def test_what_it_says_failed_is_a_failed_step(bench: Bench) -> None:
    result, said = await bench.call(await bench.tools(), "calc__behave", how="fail")
    assert (result.exit_code, result.error and result.error.code) == (1, "mcp_tool_failed")
    assert said == "it does not work\n"


async def test_files_that_it_writes_are_kept(bench: Bench) -> None:
    await bench.call(await bench.tools(), "calc__behave", how="write")
    assert (await bench.context.workspace.get("made.txt"))[1] == b"made"
    assert bench.changing == ["now"]


async def test_it_gets_the_secrets_of_its_entry_and_no_other_environment(bench: Bench) -> None:
    assert (await bench.call(await bench.tools(), "calc__behave", how="environment"))[1] == "opened for the sandbox\n"


async def test_what_it_says_beside_is_the_steps_output(bench: Bench) -> None:
    said = (await bench.call(await bench.tools(), "calc__behave", how="stderr"))[1]
    assert said == "said beside\n[a part of the kind image is left out]\n"


async def test_what_it_asks_of_us_is_refused(bench: Bench) -> None:
    said = (await bench.call(await bench.tools(), "calc__behave", how="ask"))[1]
    assert said.startswith("refused: ")
    assert "not supported here" in said


async def test_a_command_that_is_not_there_is_unavailable(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="MCP server calc"):
        await bench.tools(entry={"command": ["no-such-program"]})


# --- over HTTP ---


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server made with the official library."""
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
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = server.streamable_http_app(stateless_http=True, json_response=True)
        serving = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        task = asyncio.create_task(serving.serve(sockets=[listening]))
        await wait_until(lambda: serving.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        serving.should_exit = True
        await task


async def test_a_server_over_http_is_asked_with_its_headers(bench: Bench, url: str) -> None:
    tools = await bench.tools("docs", {"url": url, "headers": {"X-Key": "${secrets.KEY}"}})
    result, said = await bench.call(tools, "docs__greet", name="you")
    assert (result, said) == (ToolResult(), f"hello you, opened for {url.split('/')[2]}\n")
    # What it did out there nobody knows, so a crash from here on is asked about.
    assert bench.changing == ["now"]


async def test_a_call_that_may_be_repeated_is_not_asked_about(bench: Bench, url: str) -> None:
    tools = await bench.tools("docs", {"url": url, "repeatable": ["greet"]})
    await bench.call(tools, "docs__greet", name="you")
    assert bench.changing == []


async def test_a_server_that_hangs_is_given_up(bench: Bench, url: str) -> None:
    tools = await bench.tools("docs", {"url": url}, timeout_seconds=1.0)
    with pytest.raises(Unavailable, match="MCP_TIMEOUT_SECONDS"):
        await bench.call(tools, "docs__hang")


async def test_a_server_that_sends_too_much_is_cut_off(bench: Bench, url: str) -> None:
    tools = await bench.tools("docs", {"url": url}, max_bytes=64 * 1024)
    with pytest.raises(Unavailable, match="MCP server docs"):
        await bench.call(tools, "docs__flood")


async def test_a_server_on_a_private_address_needs_leave(bench: Bench, url: str) -> None:
    with pytest.raises(OutsideRefused, match="not public"):
        await bench.tools("docs", {"url": url}, allow_private=False)


async def test_a_server_that_is_not_there_is_unavailable(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await bench.tools("docs", {"url": "http://127.0.0.1:9/mcp"})


# --- the configuration ---


async def test_a_server_that_is_not_configured_is_named(bench: Bench) -> None:
    servers = McpServers(servers_of({"calc": CALC}), allow_private=True, timeout_seconds=1, max_bytes=1)
    with pytest.raises(InvalidInput, match=r"'other' is not configured here.*calc"):
        await servers.tools(["other"], replace(bench.context))


@pytest.mark.parametrize(
    ("name", "entry", "why"),
    [
        ("a", {}, "either url"),
        ("a", {"url": "ftp://x"}, "https://"),
        ("a", {"url": "http://x", "command": ["x"]}, "either url"),
        ("a", {"command": []}, "at least 1 item"),
        ("a", {"command": ["x"], "headers": {"a": "b"}}, "headers go with url"),
        ("a", {"url": "http://x", "risk": "none"}, "risk"),
        ("A b", {"url": "http://x"}, "pattern"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(name: str, entry: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        servers_of({name: entry})
