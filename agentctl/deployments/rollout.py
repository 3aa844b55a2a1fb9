"""A rollout as a person sees it: its events as lines above one live line, until it has ended or waits for somebody.

A pipe gets the events alone. The API is asked once a second: a rollout takes seconds at least, and its state is one
small answer.
"""

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.api.client import Client
from agentctl.exit_codes import ExitCode
from agentctl.terminal.output import Output, local_time
from backplane.process.terminal_text import printable

LOOK_SECONDS = 1.0
_ENDS = {"failed": ExitCode.RUN_FAILED, "running": ExitCode.OK, "stopped": ExitCode.OK}


class RolloutLine:
    """How far it is, in one line, however narrow the terminal."""

    def __init__(self, deployment: JsonObject) -> None:
        self.deployment = deployment
        self._spinner = Spinner("dots", style="blue")
        self._since = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        elapsed = f"{time.monotonic() - self._since:.0f} s"
        line = Text(printable(progress(self.deployment, elapsed)), style="dim")
        line.truncate(max(options.max_width - 2, 1), overflow="ellipsis")
        self._spinner.update(text=line)
        yield self._spinner


def progress(deployment: JsonObject, elapsed: str = "") -> str:
    ready = f"{deployment['ready_replicas']} of {deployment['replicas']} ready"
    parts = (deployment["status"], f"revision {deployment['revision']}", ready, elapsed, deployment["reason"])
    return "  ".join(filter(None, parts))


async def follow_rollout(
    client: Client, output: Output, deployment: JsonObject, *, seconds: float, seen: int = 0
) -> ExitCode:
    """Until it runs, has failed or stopped, or waits for a person. `seen`: the number of the last event that is known
    already. GAVE_UP where it waits, or after `seconds`; RUN_FAILED also where another revision runs in the end: the
    platform went back, an administrator rejected this one, or somebody else made one."""
    line, deadline, wanted = RolloutLine(deployment), time.monotonic() + seconds, deployment["revision"]
    shown = ""
    live: AbstractContextManager[object] = nullcontext()
    if output.live:
        live = Live(line, console=output.out, transient=True, refresh_per_second=8)
    with live:
        while True:
            deployment = line.deployment = await client.deployment(deployment["id"])
            seen, newest = await _show_events(client, output, deployment["id"], seen)
            shown = newest or shown
            if (code := _end_of(deployment)) is not None:
                break
            if time.monotonic() >= deadline:
                code = ExitCode.GAVE_UP
                break
            await asyncio.sleep(LOOK_SECONDS)
    output.json_line(deployment) if output.json else output.line(progress(_without(deployment, shown)))
    if deployment["revision"] != wanted:
        output.note(
            f"Revision {wanted} was followed by revision {deployment['revision']}: agentctl deployments events."
        )
        code = ExitCode.RUN_FAILED if code is ExitCode.OK else code
    if code is ExitCode.GAVE_UP and time.monotonic() >= deadline:
        output.note(f"It is still on its way after {seconds:g} s, and goes on without being watched.")
    return code


async def follow_deletion(client: Client, output: Output, deployment_id: str, *, seconds: float) -> ExitCode:
    """Until nothing of it is left."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            deployment = await client.deployment(deployment_id)
        except ApiError as error:
            if error.status == 404:
                return ExitCode.OK
            raise
        if time.monotonic() >= deadline:
            output.note(f"It is not gone after {seconds:g} s. {deployment['reason']}".strip())
            return ExitCode.GAVE_UP
        await asyncio.sleep(LOOK_SECONDS)


def _end_of(deployment: JsonObject) -> ExitCode | None:
    """None: it goes on by itself."""
    if deployment["approval"] == "pending" or deployment["paused"]:
        return ExitCode.GAVE_UP
    return _ENDS.get(deployment["status"])


async def _show_events(client: Client, output: Output, deployment_id: str, seen: int) -> tuple[int, str]:
    """The number of the newest event, and its message, where it is new."""
    found, message = (await client.deployment_events(deployment_id, limit=50))["events"], ""
    for event in reversed(found):
        if event["number"] > seen and not output.json:
            message = str(event["message"])
            output.line(f"{local_time(event['at'])[11:]}  {event['type']}  {message}")
    return max(seen, *(int(event["number"]) for event in found), 0), message


def _without(deployment: JsonObject, shown: str) -> JsonObject:
    """The deployment, whose reason does not say once more what the last line says: words of an engine are long."""
    words = shown.partition(": ")[2]
    if not words or words not in deployment["reason"]:
        return deployment
    return {**deployment, "reason": deployment["reason"].replace(words, "").rstrip(": ")}
