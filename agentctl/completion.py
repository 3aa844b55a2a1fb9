"""Completion for shells: the script that a shell reads, and the ids of runs that it offers.

What a person sees while typing must not be an error, nor take long: where the API does not answer within a second,
nothing is offered.
"""

import asyncio
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer._completion_shared import get_completion_script

from agentctl.api.address import find_token, find_url
from agentctl.api.client import connect
from agentctl.terminal.output import Output, first_line
from agentctl.terminal.questions import asked_in_words

ANSWER_SECONDS = 1.0
OFFERED = 50


class ShellName(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[ShellName, typer.Argument(help="The shell that is to read it.")]) -> None:
    """Print the script by which a shell completes commands, options and ids of runs."""
    script = get_completion_script(prog_name="agentctl", complete_var="_AGENTCTL_COMPLETE", shell=shell.value)
    output = Output()
    for line in script.splitlines():
        output.line(line)


def run_ids(incomplete: str) -> list[tuple[str, str]]:
    """The newest of the user's runs whose ids begin so, each with its state and its prompt."""

    async def ask() -> list[tuple[str, str]]:
        async with asyncio.timeout(ANSWER_SECONDS), connect(find_url(), find_token(), lambda _: None) as client:
            page = await client.runs(limit=OFFERED, id_beginning=incomplete.lower() or None)
        return [(run["run_id"], f"{run['status']}: {first_line(run['prompt'])}") for run in page["runs"]]

    return _answered(ask)


def asking_run_ids(incomplete: str) -> list[tuple[str, str]]:
    """The user's runs that ask something and whose ids begin so, each with what it asks."""

    async def ask() -> list[tuple[str, str]]:
        async with asyncio.timeout(ANSWER_SECONDS), connect(find_url(), find_token(), lambda _: None) as client:
            page = await client.decisions(None, "pending", None, OFFERED)
        found: dict[str, str] = {}
        for decision in page["decisions"]:
            if decision["run_id"].startswith(incomplete.lower()):
                found.setdefault(decision["run_id"], first_line(asked_in_words(decision)))
        return list(found.items())

    return _answered(ask)


def _answered(ask: Callable[[], Coroutine[Any, Any, list[tuple[str, str]]]]) -> list[tuple[str, str]]:
    try:
        return asyncio.run(ask())
    except Exception:
        return []
