"""An MCP server that is a program: started in the run's sandbox for each call, over the run's files.

It is foreign code like any other, so it has no network, no credential but what its entry names, and the limits of the
step. What it writes to its standard error is the step's output; files that it changes are kept when the call succeeds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from backplane.domain.sizes import shortened
from backplane.errors import PlatformError
from backplane.process.terminal_text import printable
from worker.mcp.connection import (
    NOT_TAKEN,
    PAGES_MAX,
    BeforeCall,
    CallNotTaken,
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
from worker.tools.in_sandbox import keep_changes

DRIVER = Path(__file__).with_name("driver.py").read_text("utf-8")
MARK_BYTES = MARK.encode()
FAILURE_CHARS = 400
BESIDE_BYTES = 400
"""How much the error shows of what a server wrote before it failed."""

log = structlog.get_logger()


class SandboxedConnection(McpConnection):
    """`timeout_seconds` for the server's answers; `max_bytes` of its answer, and of what it says beside it."""

    def __init__(self, server: McpServer, secrets: Secrets, *, timeout_seconds: float, max_bytes: int) -> None:
        self._server = server
        self._secrets = secrets
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes

    async def list_tools(self, context: ToolContext) -> list[RemoteTool]:
        pages = await self._ask("tools/list", {}, context, keeps_files=False)
        if pages[-1].get("nextCursor"):
            log.warning("an MCP server's list of tools has no end", server=self._server.name, pages=len(pages))
        return tools_from(self._server.name, [page.get("tools") for page in pages])

    async def call(
        self, tool: str, arguments: Mapping[str, Any], context: ToolContext, before_call: BeforeCall
    ) -> RemoteResult:
        await before_call()
        answers = await self._ask("tools/call", {"name": tool, "arguments": arguments}, context, keeps_files=True)
        return result_from(self._server.name, answers[0])

    async def _ask(
        self, method: str, params: Mapping[str, Any], context: ToolContext, *, keeps_files: bool
    ) -> list[Mapping[str, Any]]:
        """The results: one, or one a page of a list."""
        asked = {
            "command": self._server.command,
            "method": method,
            "params": params,
            "seconds": min(self._timeout_seconds, context.limits.wall_seconds),
            "max_bytes": self._max_bytes,
            "most_pages": PAGES_MAX,
        }
        environment = {name: await self._secrets.fill(value) for name, value in self._server.environment.items()}
        await context.checkout.pull()
        output = _ProgramOutput(context, self._max_bytes)
        command = Command(
            ("python3", "-u", "-B", "-c", DRIVER),
            context.limits,
            context.call,
            stdin=json.dumps(asked).encode(),
            environment=environment,
        )
        outcome = await context.sandbox.run(command, context.checkout.folder, output.write, context.notice)
        if outcome.exit_code != 0 or outcome.ending is not Ending.EXITED:
            raise unavailable(self._server.name, f"ended with {outcome.exit_code} ({outcome.detail or outcome.ending})")
        answers = self._answers(output.last_line(), output.beside())
        if keeps_files:
            await keep_changes(outcome, context)
        return answers

    def _answers(self, line: bytes, beside: str) -> list[Mapping[str, Any]]:
        # The program can write this line as well as the driver can.
        try:
            answered = json.loads(line)
            answers, failure, noise = answered["answers"], answered["failure"], answered["noise"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise unavailable(self._server.name, f"sent more than {self._max_bytes:,} bytes, or no answer") from None
        if noise:
            log.info("an MCP server writes to its output what is no message", server=self._server.name, lines=noise)
        if failure is not None or not isinstance(answers, list) or not answers:
            words = f"; the last that it wrote: {beside}" if beside else ""
            raise unavailable(
                self._server.name, f"gave no answer: {printable(shortened(str(failure), FAILURE_CHARS))}{words}"
            )
        return [self._result(answer) for answer in answers]

    def _result(self, answer: Any) -> Mapping[str, Any]:
        if isinstance(answer, Mapping) and isinstance(answer.get("error"), Mapping):
            raise self._refused(answer["error"])
        if not isinstance(answer, Mapping) or not isinstance(answer.get("result"), Mapping):
            raise unavailable(self._server.name, "answers in a form that is none")
        result: Mapping[str, Any] = answer["result"]
        return result

    def _refused(self, error: Mapping[str, Any]) -> PlatformError:
        refused = unavailable(self._server.name, f"refuses: {shortened(str(error.get('message')), 300)}")
        return CallNotTaken(refused.message, later=False) if error.get("code") in NOT_TAKEN else refused


class _ProgramOutput:
    """Passes on what comes before the mark, and keeps what comes after it, up to a limit."""

    def __init__(self, context: ToolContext, max_bytes: int) -> None:
        self._context = context
        self._max_bytes = max_bytes
        self._pending = b""
        self._beside = b""
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
            self._pass_on(before)
            self._keep(after)
            self._pending = b""
            return
        # The mark may be cut in two.
        keep = next((size for size in range(len(MARK_BYTES) - 1, 0, -1) if whole.endswith(MARK_BYTES[:size])), 0)
        self._pass_on(whole[: len(whole) - keep])
        self._pending = whole[len(whole) - keep :]

    def _pass_on(self, chunk: bytes) -> None:
        self._beside = (self._beside + chunk)[-BESIDE_BYTES:]
        self._context.output(chunk)

    def beside(self) -> str:
        """The end of what it wrote beside its answer, in one line."""
        return " ".join(self._beside.decode("utf-8", "replace").split())

    def _keep(self, chunk: bytes) -> None:
        self._answer += chunk[: max(self._max_bytes - len(self._answer), 0)]

    def last_line(self) -> bytes:
        return bytes(self._answer)
