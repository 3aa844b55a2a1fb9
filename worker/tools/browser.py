"""Use a real browser (Chromium, by Playwright) in the sandbox: open pages, act on them, read them, keep what they show.

The browser is foreign code that meets foreign pages. It runs where commands run, with no network but the proxy that
the worker answers (`worker.browser.egress_proxy`), so it reaches the hosts that the operator named and nothing else;
screenshots and downloads are files of the run. A step is one visit: cookies last to the next one only where a `session`
is named.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from backplane.errors import InvalidInput
from backplane.net.egress import OutsidePolicy
from backplane.net.hosts import host_and_port
from worker.browser.egress_proxy import EgressProxy, ProxyLimits
from worker.sandbox.base import Command
from worker.tools.arguments import WorkspacePath
from worker.tools.base import Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.in_sandbox import run_command

DRIVER = (Path(__file__).parents[1] / "browser" / "driver.py").read_text("utf-8")
MAX_ACTIONS = 100
ACTION_SECONDS = 30.0
TEXT_BYTES = 100_000
SESSIONS = ".browser"
CONNECTIONS = 64

Selector = Annotated[str, Field(min_length=1, max_length=1000, description="CSS, or text=… for what a person reads.")]
Url = Annotated[str, Field(max_length=8000, pattern=r"^https?://")]


class Open(ToolArguments):
    do: Literal["open"]
    url: Url


class Click(ToolArguments):
    do: Literal["click", "wait_for"]
    selector: Selector


class Fill(ToolArguments):
    do: Literal["fill"]
    selector: Selector
    value: str = Field(max_length=100_000, description="May be `${secrets.NAME}`: typed only at a host it may go to.")


class Press(ToolArguments):
    do: Literal["press"]
    selector: Selector
    key: str = Field(min_length=1, max_length=50, examples=["Enter"])


class Select(ToolArguments):
    do: Literal["select"]
    selector: Selector
    value: str = Field(max_length=1000)


class Text(ToolArguments):
    do: Literal["text"]
    selector: Selector | None = Field(None, description="The whole page when left out.")


class Look(ToolArguments):
    do: Literal["links", "back"]


class Screenshot(ToolArguments):
    do: Literal["screenshot"]
    path: WorkspacePath = Field(examples=["shots/home.png"])
    full_page: bool = False


class Download(ToolArguments):
    do: Literal["download"]
    selector: Selector = Field(description="What starts the download when it is clicked.")
    path: WorkspacePath


Action = Annotated[
    Open | Click | Fill | Press | Select | Text | Look | Screenshot | Download, Field(discriminator="do")
]


class BrowserArguments(ToolArguments):
    actions: list[Action] = Field(min_length=1, max_length=MAX_ACTIONS)
    session: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        description="Cookies of this name are used and kept, in the run's files.",
    )


class Browser(Tool):
    """`python` is one with Playwright inside the sandbox; `executable` a Chromium there, empty for Playwright's own."""

    name = "browser"
    description = "Open web pages in a browser and act on them: click, fill, read, screenshot, download."
    arguments = BrowserArguments
    announces_changes = True
    risk = Risk.HIGH

    def __init__(
        self, policy: OutsidePolicy, *, python: str, executable: str, max_bytes: int, timeout_seconds: float
    ) -> None:
        self._policy = policy
        self._python = python or "python3"
        self._executable = executable
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds

    async def run(self, arguments: BrowserArguments, context: ToolContext) -> ToolResult:
        actions = [await self._ready(action, arguments, context) for action in arguments.actions]
        asked = {
            "actions": actions,
            "executable": self._executable,
            "session": f"{SESSIONS}/{arguments.session}.json" if arguments.session else "",
            "seconds": context.limits.wall_seconds * 0.95,
            "action_seconds": ACTION_SECONDS,
            "text_bytes": TEXT_BYTES,
        }
        limits = ProxyLimits(CONNECTIONS, self._max_bytes, self._timeout_seconds, context.limits.wall_seconds)
        proxy = EgressProxy(self._policy, limits, context.notice)
        # From the first click on, something may have happened outside.
        await context.about_to_change()
        command = Command(
            (self._python, "-u", "-B", "-c", DRIVER),
            # Chromium alone is some fifty processes and threads for each page.
            replace(context.limits, processes=max(context.limits.processes, 512)),
            context.call,
            stdin=json.dumps(asked).encode(),
            egress=proxy.serve,
        )
        return await run_command(command, context)

    async def _ready(self, action: Any, arguments: BrowserArguments, context: ToolContext) -> Mapping[str, Any]:
        filled: dict[str, Any] = action.model_dump()
        if isinstance(action, Open):
            self._policy.check(action.url)
        if isinstance(action, Fill) and "${secrets." in action.value:
            host = self._host_before(action, arguments)
            filled |= {"value": await context.secrets.fill(action.value, host=host), "only_host": host}
        return filled

    def _host_before(self, fill: Fill, arguments: BrowserArguments) -> str:
        """The host of the page that was opened last: only its fields get a secret."""
        opened = None
        for action in arguments.actions:
            if action is fill:
                break
            if isinstance(action, Open):
                opened = action
        if opened is None:
            raise InvalidInput("a secret is typed into a page that the same step has opened: begin with open")
        return host_and_port(self._policy.check(opened.url))
