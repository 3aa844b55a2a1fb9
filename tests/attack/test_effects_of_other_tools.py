"""What reaches outside happens once, also by tools of others: plug-ins, MCP servers, and commands that nothing keeps
in. `test_effects_happen_once.py` has the platform's own."""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest

from backplane.domain.runs import RunError, RunStatus
from backplane.errors import Unavailable
from tests.attack import mcp_site
from tests.attack.outside import RETRY, cuts, ended, hangs, is_uncertain, outside, posts, status
from tests.integration.tools.site import Site
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import Platform, worker
from tests.submitted import shell
from worker.sandbox.local import sandbox as local
from worker.tools.base import Effect, Risk, ToolContext, ToolResult

# --- tools of others ---


class Outside(Scripted):
    """Of a plug-in: it changes something outside, and says nothing of it beforehand."""

    risk: ClassVar[Risk] = Risk.HIGH
    package = "bank-tools 1.2"


def failing(effect: Effect | None) -> Callable[[int, ToolContext], Awaitable[ToolResult]]:
    async def act(call: int, context: ToolContext) -> ToolResult:
        return ToolResult(1, error=RunError("bank_closed", "come back", retryable=True), effect=effect)

    return act


async def raises(call: int, context: ToolContext) -> ToolResult:
    raise KeyError("a secret detail")


STEP: dict[str, Any] = {"id": "pay", "tool": "scripted"}
SAID_BY_TOOLS: dict[Effect | None, tuple[int, RunStatus]] = {
    Effect.NONE: (3, RunStatus.FAILED),
    Effect.ANSWERED: (1, RunStatus.FAILED),
    Effect.POSSIBLE: (1, RunStatus.WAITING),
    Effect.CERTAIN: (1, RunStatus.WAITING),
    None: (1, RunStatus.FAILED),
}
"""How often it is called with two more tries, and what becomes of the run."""


@pytest.mark.parametrize("layer", ["step", "run"])
async def test_a_tool_says_what_its_failure_did_and_is_called_again_only_where_it_did_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    tools = {}
    for number, effect in enumerate(SAID_BY_TOOLS):
        tools[effect] = type(f"Outside{number}", (Outside,), {"name": f"outside{number}"})(failing(effect))
    equip(monkeypatch, *tools.values())
    more: dict[str, Any] = {"retry": RETRY} if layer == "step" else {}
    async with worker(platform.settings):
        run_ids = [
            await platform.submit({**STEP, "tool": tool.name, **more}, max_retries=0 if more else 2)
            for tool in tools.values()
        ]
        runs = [await ended(platform, run_id) for run_id in run_ids]
    found = {effect: (tool.calls, run.status) for (effect, tool), run in zip(tools.items(), runs, strict=True)}
    assert found == SAID_BY_TOOLS


@pytest.mark.slow
async def test_a_failure_that_the_tool_answered_for_is_not_reopened_with_the_attempt_of_another_step(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Scripted):
        name: ClassVar[str] = "broken"

    equip(monkeypatch, tool := Outside(failing(None)), Broken(raises))
    async with worker(platform.settings):
        run_id = await platform.submit({**STEP, "needs": []}, {"id": "b", "tool": "broken", "needs": []}, max_retries=3)
        run = await ended(platform, run_id)
    assert (tool.calls, run.status) == (1, RunStatus.FAILED)


async def test_a_plug_in_that_raises_is_named_at_once_and_what_is_known_is_said(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    equip(monkeypatch, tool := Outside(raises))
    async with worker(platform.settings):
        run_id = await platform.submit(STEP, max_retries=3)
        run = await ended(platform, run_id)
    assert (tool.calls, run.attempt, is_uncertain(run)) == (1, 1, True)
    assert run.error is not None
    assert "a fault of the plug-in bank-tools 1.2, not of the platform" in run.error.message
    assert "'scripted' raised KeyError" in run.error.message
    assert "may have happened" in run.error.message
    assert "the worker was lost" not in str(await platform.history(run_id))
    assert "a secret detail" not in str([event.line for event in await platform.history(run_id)])
    [failure] = await platform.resources.store.dead_letters.failures(run_id)
    assert "KeyError" in failure.traceback


@pytest.mark.slow
async def test_a_plug_in_that_stays_in_the_runs_files_is_tried_again_and_named_in_the_end(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inside(Outside):
        risk: ClassVar[Risk] = Risk.LOW

    equip(monkeypatch, tool := Inside(raises))
    async with worker(platform.settings):
        run = await ended(platform, await platform.submit(STEP, max_retries=1))
    assert (tool.calls, run.status) == (2, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.error.retryable) == ("plugin_failed", True)
    assert "a fault of the plug-in bank-tools 1.2, not of the platform" in run.error.message


# --- MCP servers ---

MCP_CALLS: dict[str, tuple[mcp_site.Call, RunStatus, int]] = {
    "500": (mcp_site.whatever(status("500 Internal Server Error")), RunStatus.WAITING, 1),
    "timeout after the body": (mcp_site.whatever(hangs), RunStatus.WAITING, 1),
    "cut connection": (mcp_site.whatever(cuts), RunStatus.WAITING, 1),
    "what is no answer": (mcp_site.whatever(status("202 Accepted")), RunStatus.WAITING, 1),
    "an error within": (mcp_site.error(-32603), RunStatus.WAITING, 1),
    "it says that it failed": (mcp_site.says_it_failed, RunStatus.FAILED, 1),
    "429": (mcp_site.whatever(status("429 Too Many Requests")), RunStatus.FAILED, 4),
    "501": (mcp_site.whatever(status("501 Not Implemented")), RunStatus.FAILED, 2),
    "arguments are refused": (mcp_site.error(-32602), RunStatus.FAILED, 2),
}
"""How a server answers a call; what becomes of the run, and how often it was called by two tries in two attempts."""


@pytest.mark.slow
async def test_a_call_of_an_mcp_server_that_may_have_happened_is_not_made_again(
    start_platform: StartPlatform, site: Site
) -> None:
    servers = {}
    for number, (call, _, _) in enumerate(MCP_CALLS.values()):
        mcp_site.serve(site, f"/{number}", call)
        servers[f"bank{number}"] = {"url": site.url(f"/{number}")}
    platform = await start_platform(**outside(site, mcp_servers=servers, mcp_timeout_seconds=8.0))
    async with worker(platform.settings):
        run_ids = [
            await platform.submit(
                {"id": "pay", "tool": f"{name}__pay", "retry": {**RETRY, "max_attempts": 2}},
                mcp_servers=[name],
                max_retries=1,
            )
            for name in servers
        ]
        runs = [await ended(platform, run_id) for run_id in run_ids]
    found = {
        how: (run.status, mcp_site.calls(site, f"/{number}"))
        for number, (how, run) in enumerate(zip(MCP_CALLS, runs, strict=True))
    }
    assert found == {how: (end, calls) for how, (_, end, calls) in MCP_CALLS.items()}
    assert all(is_uncertain(run) for run in runs if run.status is RunStatus.WAITING)


REPEATABLE_CALLS: dict[str, tuple[mcp_site.Call, int]] = {
    "500": (mcp_site.whatever(status("500 Internal Server Error")), 4),
    "cut connection": (mcp_site.whatever(cuts), 4),
    "what is no answer": (mcp_site.whatever(status("202 Accepted")), 4),
    "an error within": (mcp_site.error(-32603), 4),
    "arguments are refused": (mcp_site.error(-32602), 2),
}
"""How a server answers a call that may be repeated, and how often two tries in two attempts make it."""
TWO_TRIES = {**RETRY, "max_attempts": 2}


@pytest.mark.slow
async def test_a_call_of_an_mcp_server_that_may_be_repeated_is_made_as_often_as_its_policies_allow(
    start_platform: StartPlatform, site: Site
) -> None:
    servers = {}
    for number, (call, _) in enumerate(REPEATABLE_CALLS.values()):
        mcp_site.serve(site, f"/{number}", call)
        servers[f"bank{number}"] = {"url": site.url(f"/{number}"), "repeatable": ["pay"]}
    platform = await start_platform(**outside(site, mcp_servers=servers, mcp_timeout_seconds=10.0))
    async with worker(platform.settings):
        run_ids = [
            await platform.submit(
                {"id": "pay", "tool": f"{name}__pay", "retry": TWO_TRIES}, mcp_servers=[name], max_retries=1
            )
            for name in servers
        ]
        runs = [await ended(platform, run_id) for run_id in run_ids]
    found = {how: mcp_site.calls(site, f"/{number}") for number, how in enumerate(REPEATABLE_CALLS)}
    assert found == {how: calls for how, (_, calls) in REPEATABLE_CALLS.items()}
    assert {run.status for run in runs} == {RunStatus.FAILED}


PROGRAM = """
import json, sys
def hear():
    return json.loads(sys.stdin.readline())
def write(line):
    print(line, flush=True)
def say(asked, **more):
    write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **more}))
asked = hear()
version = asked["params"]["protocolVersion"]
say(asked, result={"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}})
hear()
asked = hear()
if asked["method"] == "tools/list":
    say(asked, result={"tools": [{"name": "pay", "inputSchema": {"type": "object"}}]})
else:
    print("called", file=sys.stderr, flush=True)
    id = json.dumps(asked["id"])
"""
PROGRAM_CALLS: dict[str, tuple[str, str]] = {
    "arguments are refused": (
        "say(asked, error={'code': -32602, 'message': 'no'})", "mcp_call_not_taken"),
    "there is no such method": (
        "say(asked, error={'code': -32601, 'message': 'no'})", "mcp_call_not_taken"),
    "an error within": (
        "say(asked, error={'code': -32603, 'message': 'no'})", "part_unavailable"),
    "a code that is none": (
        "say(asked, error={'code': [], 'message': 'no'})", "part_unavailable"),
    "it ends": ("sys.exit(3)", "part_unavailable"),
    "what is no result": ("say(asked, result=7)", "part_unavailable"),
    "a number of 5,000 digits": (
        "write('{\"id\": %s, \"result\": {\"content\": ' % id + '9' * 5000 + '}}'); sys.stdin.read()",
        "part_unavailable"),
    "nested too deeply": (
        "write('{\"id\": %s, \"result\": ' % id + '[' * 100000 + ']' * 100000 + '}'); sys.stdin.read()",
        "part_unavailable"),
    "it asks and reads nothing": (
        "[write(json.dumps({'id': n, 'method': 'ping'})) for n in range(5000)]; __import__('time').sleep(60)",
        "part_unavailable"),
    "it says that it failed": (
        "say(asked, result={'content': [], 'isError': True})", "mcp_tool_failed"),
}  # fmt: skip
"""What a program does when it is called, and the run's error."""


@pytest.mark.slow
async def test_a_program_that_fails_is_called_as_often_as_its_policies_allow(start_platform: StartPlatform) -> None:
    servers = {
        f"bank{number}": {"command": ["python3", "-c", f"{PROGRAM}    {acts}\n"]}
        for number, (acts, _) in enumerate(PROGRAM_CALLS.values())
    }
    platform = await start_platform(mcp_servers=servers, mcp_timeout_seconds=5.0)
    async with worker(platform.settings):
        run_ids = [
            await platform.submit(
                {"id": "pay", "tool": f"{name}__pay", "retry": TWO_TRIES}, mcp_servers=[name], max_retries=0
            )
            for name in servers
        ]
        runs = [await platform.until(run_id, RunStatus.FAILED) for run_id in run_ids]
    found = {}
    for how, run in zip(PROGRAM_CALLS, runs, strict=True):
        assert run.error is not None
        found[how] = (run.error.code, (await platform.lines(run.id)).count("called"))
    assert found == {how: (code, 2) for how, (_, code) in PROGRAM_CALLS.items()}


async def test_a_program_that_may_change_something_outside_is_not_called_again(start_platform: StartPlatform) -> None:
    server = {"command": ["python3", "-c", f"{PROGRAM}    sys.exit(3)\n"], "risk": "high"}
    platform = await start_platform(mcp_servers={"bank": server}, approval_risk="never")
    async with worker(platform.settings):
        run_id = await platform.submit(
            {"id": "pay", "tool": "bank__pay", "retry": RETRY}, mcp_servers=["bank"], max_retries=1
        )
        run = await ended(platform, run_id)
    assert (is_uncertain(run), (await platform.lines(run_id)).count("called")) == (True, 1)


async def test_a_plug_in_that_cannot_reach_its_own_server_is_called_as_often_as_its_policies_allow(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inside(Outside):
        risk: ClassVar[Risk] = Risk.LOW

    async def is_away(call: int, context: ToolContext) -> ToolResult:
        raise Unavailable("the bank does not answer", part="bank")

    equip(monkeypatch, tool := Inside(is_away))
    async with worker(platform.settings):
        run = await ended(platform, await platform.submit({**STEP, "retry": TWO_TRIES}, max_retries=1))
    assert (tool.calls, run.status) == (4, RunStatus.FAILED)


# --- commands where nothing keeps them in ---


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{}, {"repeatable": True}], ids=["as it is", "repeatable"])
async def test_a_command_that_is_not_isolated_and_fails_is_tried_again_only_where_the_plan_says_it_is_safe(
    platform: Platform, site: Site, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [])
    site.pages["/pay"] = status("200 OK")
    send = f"exec 3<>/dev/tcp/127.0.0.1/{site.port}; printf 'POST /pay HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3; exit 7"
    async with worker(platform.settings):
        run_id = await platform.submit(shell("pay", send, retry=RETRY, **policy), max_retries=3)
        run = await ended(platform, run_id)
    assert (posts(site), run.status) == (3 if policy else 1, RunStatus.FAILED)
