"""An MCP server that is a program: started in the run's sandbox for each call, over the run's files.

It is foreign code like any other, so it has no network, no credential but what its entry names, and the limits of the
step. What it writes to its standard error is the step's output; files that it changes are kept when the call succeeds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backplane.errors import Unavailable
from worker.mcp.connection import (
    BeforeCall,
    McpConnection,
    RemoteResult,
    RemoteTool,
    result_from,
    tools_from,
    unavailable,
)
from worker.mcp.driver import MARK
from worker.mcp.servers import McpServer
from worker.sandbox.base import Command, Ending
from worker.tools.base import Secrets, ToolContext

DRIVER = Path(__file__).with_name("driver.py").read_text()
MARK_BYTES = MARK.encode()


class SandboxedConnection(McpConnection):
    """`timeout_seconds` for the server's answers; `max_bytes` of its answer, and of what it says beside it."""

    def __init__(self, server: McpServer, secrets: Secrets, *, timeout_seconds: float, max_bytes: int) -> None:
        self._server = server
        self._secrets = secrets
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes

    async def list_tools(self, context: ToolContext) -> list[RemoteTool]:
        answer = await self._ask("tools/list", {}, context, keeps_files=False)
        return tools_from(self._server.name, answer.get("tools"))

    async def call(
        self, tool: str, arguments: Mapping[str, Any], context: ToolContext, before_call: BeforeCall
    ) -> RemoteResult:
        await before_call()
        answer = await self._ask("tools/call", {"name": tool, "arguments": arguments}, context, keeps_files=True)
        return result_from(self._server.name, answer)

    async def _ask(
        self, method: str, params: Mapping[str, Any], context: ToolContext, *, keeps_files: bool
    ) -> Mapping[str, Any]:
        asked = {
            "command": self._server.command,
            "requests": [[method, params]],
            "seconds": min(self._timeout_seconds, context.limits.wall_seconds),
        }
        environment = {name: await self._secrets.fill(value) for name, value in self._server.environment.items()}
        await context.checkout.pull()
        said = _Said(context, self._max_bytes)
        command = Command(
            ("python3", "-u", "-B", "-c", DRIVER),
            context.limits,
            context.call,
            stdin=json.dumps(asked).encode(),
            environment=environment,
        )
        outcome = await context.sandbox.run(command, context.checkout.folder, said.write, context.notice)
        if outcome.exit_code != 0 or outcome.ending is not Ending.EXITED:
            raise unavailable(self._server.name, f"ended with {outcome.exit_code} ({outcome.detail or outcome.ending})")
        answer = self._answer(said.last_line())
        if keeps_files and (changes := await context.checkout.changes()):
            await context.about_to_change()
            await context.checkout.push(changes)
        return answer

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        # The program can write this line as well as the driver can.
        try:
            told = json.loads(line)
            answers, failure = told["answers"], told["failure"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise unavailable(self._server.name, f"sent more than {self._max_bytes:,} bytes, or no answer") from None
        if failure is not None or not isinstance(answers, list) or not answers:
            raise unavailable(self._server.name, f"gave no answer: {str(failure)[:300]}")
        answer = answers[0] if isinstance(answers[0], Mapping) else {}
        if isinstance(answer.get("error"), Mapping):
            raise _refused(self._server.name, answer["error"])
        if not isinstance(answer.get("result"), Mapping):
            raise unavailable(self._server.name, "answers in a form that is none")
        result: Mapping[str, Any] = answer["result"]
        return result


def _refused(server: str, error: Mapping[str, Any]) -> Unavailable:
    return unavailable(server, f"refuses: {str(error.get('message'))[:300]}")


class _Said:
    """Passes on what comes before the mark, and keeps what comes after it, up to a limit."""

    def __init__(self, context: ToolContext, max_bytes: int) -> None:
        self._context = context
        self._max_bytes = max_bytes
        self._pending = b""
        self._answer = bytearray()
        self._marked = False

    def write(self, chunk: bytes) -> None:
        if self._marked:
            self._keep(chunk)
            return
        whole = self._pending + chunk
        before, mark, after = whole.partition(MARK_BYTES)
        if mark:
            self._marked = True
            self._context.output(before)
            self._keep(after)
            self._pending = b""
            return
        # The mark may be cut in two.
        keep = next((size for size in range(len(MARK_BYTES) - 1, 0, -1) if whole.endswith(MARK_BYTES[:size])), 0)
        self._context.output(whole[: len(whole) - keep])
        self._pending = whole[len(whole) - keep :]

    def _keep(self, chunk: bytes) -> None:
        self._answer += chunk[: max(self._max_bytes - len(self._answer), 0)]

    def last_line(self) -> bytes:
        return bytes(self._answer)
