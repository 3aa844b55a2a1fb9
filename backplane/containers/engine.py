"""Docker or Podman through their command line: containers that are labelled as the platform's, and no others.

The command line and not a library, because both have it, and because it leaves it to the engine's own settings where
its server is. Sandboxes have an adapter of their own (`worker.sandbox.container`), whose containers live as long as a
step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backplane.containers.program import ANSWER_SECONDS, EngineResult, ask
from backplane.errors import Unavailable

RUN_SECONDS = 1800.0
"""To start a container: the engine may pull its image first."""
STOP_SECONDS = 30
"""What a container gets to end by itself, before it is killed."""
LOG_LINES = 20
WORDS_CHARS = 400


@dataclass(frozen=True, slots=True)
class PresentContainer:
    """One that the engine has. `state` is the engine's own word, as running, exited, created or restarting."""

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    exit_code: int = 0
    error: str = ""


class ContainerEngine:
    """Everything raises Unavailable, with the engine's own words, for what it refuses or does not answer. `words` begin
    every call: the program and its own options."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)

    @property
    def name(self) -> str:
        return " ".join(self._words)

    async def labelled(self, label: str) -> list[PresentContainer]:
        """All with this label (`NAME=VALUE`), also those that do not run."""
        listed = await self._ask("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}")
        ids = listed.split()
        if not ids:
            return []
        answer = await self._answer("container", "inspect", *ids)
        try:
            # One that has gone since makes the exit code 1; the others are there.
            found: list[dict[str, Any]] = json.loads(answer.output)
            return [_present(each) for each in found]
        except (ValueError, LookupError, TypeError):
            raise self._refused("inspect", answer) from None

    async def run(self, words: Sequence[str]) -> None:
        """Start a container: `words` are options of `run`, the image and its command."""
        await self._ask("run", "--detach", *words, seconds=RUN_SECONDS)

    async def start(self, container_id: str) -> None:
        """Start one that has ended."""
        await self._ask("start", container_id)

    async def remove(self, container_id: str) -> None:
        """Let it end, and remove it with its unnamed volumes. One that is not there is fine."""
        wait = ANSWER_SECONDS + STOP_SECONDS
        await self._answer("stop", "--time", str(STOP_SECONDS), container_id, seconds=wait)
        answer = await self._answer("rm", "--force", "--volumes", container_id)
        if answer.code and "no such container" not in answer.error.lower():
            raise self._refused("rm", answer)

    async def last_lines(self, container_id: str) -> str:
        """What it printed last; empty where the engine does not say."""
        try:
            answer = await self._answer("logs", "--tail", str(LOG_LINES), container_id)
        except Unavailable:
            return ""
        return " | ".join(filter(None, (line.strip() for line in (answer.output + answer.error).splitlines())))[
            -WORDS_CHARS:
        ]

    async def _ask(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> str:
        answer = await self._answer(*arguments, seconds=seconds)
        if answer.code:
            raise self._refused(arguments[0], answer)
        return answer.output

    async def _answer(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> EngineResult:
        return await ask([*self._words, *arguments], part="containers", seconds=seconds, with_proxies=True)

    def _refused(self, action: str, answer: EngineResult) -> Unavailable:
        words = (answer.error or answer.output).split()
        why = " ".join(words)[-WORDS_CHARS:] or f"it ended with {answer.code} and no word"
        return Unavailable(f"`{self.name} {action}` failed: {why}", part="containers")


def _present(found: Mapping[str, Any]) -> PresentContainer:
    state = found["State"]
    return PresentContainer(
        id=found["Id"],
        name=str(found["Name"]).removeprefix("/"),
        labels=found["Config"].get("Labels") or {},
        state=str(state["Status"]),
        exit_code=int(state.get("ExitCode") or 0),
        error=str(state.get("Error") or ""),
    )
