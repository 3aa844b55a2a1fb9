"""Docker or Podman through their command line: containers that are labelled as the platform's, and no others.

The command line and not a library, because both have it, and because it leaves it to the engine's own settings where
its server is. Sandboxes have an adapter of their own (`worker.sandbox.container`), whose containers live as long as a
step.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from backplane.containers.program import ANSWER_SECONDS, PROXY_NAMES, EngineResult, ask, lines
from backplane.containers.use import FORMAT, ContainerUse, parse_use
from backplane.domain.sizes import shortened
from backplane.errors import Unavailable

RUN_SECONDS = 1800.0
"""To start a container: the engine may pull its image first."""
STOP_SECONDS = 30
"""What a container gets to end by itself, before it is killed."""
LOG_LINES = 20
WORDS_CHARS = 400
LINE_BYTES = 4 * (WORDS_CHARS + 1)
"""Of a line of these: a character has at most 4 bytes, and one more shows that there was more."""
LOG_FILE = "10m"


@dataclass(frozen=True, slots=True)
class PresentContainer:
    """One that the engine has. `state` is the engine's own word, as running, exited, created or restarting."""

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    exit_code: int = 0
    error: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)
    """The host's port of each of the container's that is published."""
    restarts: int = 0
    """By the engine itself."""
    made_at: datetime | None = None


def log_words() -> list[str]:
    """Options of `run` that keep the engine's file of what a container prints small. Docker and Podman both know this
    driver and this limit; Podman calls the driver k8s-file."""
    return ["--log-driver=json-file", f"--log-opt=max-size={LOG_FILE}"]


def without_proxies(environment: Mapping[str, str], files: Iterable[str] = ()) -> dict[str, str]:
    """The environment of a container, with the proxies empty that it does not set itself: engines hand their own ones
    on inside, with the passwords in them, where nothing else is set. `files`: the texts of its `--env-file`s, over
    which what is set here goes."""
    own = {line.partition("=")[0].strip() for text in files for line in text.splitlines()}
    return {**{name: "" for name in PROXY_NAMES if name not in own}, **environment}


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

    async def use(self, label: str) -> Sequence[ContainerUse]:
        """What each running container with this label uses. One that ends meanwhile may be left out."""
        ids = (await self._ask("ps", "--quiet", "--no-trunc", "--filter", f"label={label}")).split()
        if not ids:
            return []
        answer = await self._answer("stats", "--no-stream", "--format", FORMAT, *ids)
        try:
            found = parse_use(answer.output)
        except ValueError:
            raise self._refused("stats", answer) from None
        if answer.code and not found and await self._any(label):
            raise self._refused("stats", answer)
        return found

    async def _any(self, label: str) -> bool:
        return bool((await self._ask("ps", "--quiet", "--filter", f"label={label}")).split())

    async def run(self, words: Sequence[str]) -> None:
        """Start a container: `words` are options of `run`, the image and its command."""
        await self._ask("run", "--detach", *words, seconds=RUN_SECONDS)

    async def start(self, container_id: str) -> None:
        """Start one that has ended."""
        await self._ask("start", container_id)

    async def restart(self, container_id: str) -> None:
        wait = ANSWER_SECONDS + STOP_SECONDS
        await self._ask("restart", "--time", str(STOP_SECONDS), container_id, seconds=wait)

    async def remove(self, container_id: str, grace_seconds: int | None = None) -> None:
        """Let it end, and remove it with its unnamed volumes. One that is not there is fine."""
        grace = STOP_SECONDS if grace_seconds is None else grace_seconds
        wait = ANSWER_SECONDS + grace
        await self._answer("stop", "--time", str(grace), container_id, seconds=wait)
        answer = await self._answer("rm", "--force", "--volumes", container_id)
        if answer.code and "no such container" not in answer.error.lower():
            raise self._refused("rm", answer)

    async def follow(self, container_id: str, since: str, *, most: int) -> AsyncGenerator[bytes, None]:
        """The lines that it prints, each with its time before it, from `since` on (RFC 3339; empty: all), until it
        ends. Of a line that is longer than `most` bytes, those."""
        asked = ("logs", "--follow", "--timestamps", *(("--since", since) if since else ()), container_id)
        async with contextlib.aclosing(lines((*self._words, *asked), part="containers", most=most)) as printed:
            async for line in printed:
                yield line

    async def last_lines(self, container_id: str) -> str:
        """What it printed last; empty where the engine does not say. A line that is too long to be kept as a whole
        ends with `…`."""
        asked = (*self._words, "logs", "--tail", str(LOG_LINES), container_id)
        kept: deque[str] = deque(maxlen=LOG_LINES)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                # By the line, for one may have any length.
                async with contextlib.aclosing(lines(asked, part="containers", most=LINE_BYTES)) as printed:
                    async for line in printed:
                        kept.append(shortened(line.decode("utf-8", "replace").strip(), WORDS_CHARS))
        except (Unavailable, TimeoutError):
            return ""
        return " | ".join(filter(None, kept))[-WORDS_CHARS:]

    async def _ask(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> str:
        answer = await self._answer(*arguments, seconds=seconds)
        if answer.code:
            raise self._refused(arguments[0], answer)
        return answer.output

    async def _answer(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> EngineResult:
        return await ask([*self._words, *arguments], part="containers", seconds=seconds, with_proxies=True)

    def _refused(self, action: str, answer: EngineResult) -> Unavailable:
        why = _judgement(answer.error or answer.output)[-WORDS_CHARS:] or f"it ended with {answer.code} and no word"
        return Unavailable(f"`{self.name} {action}` failed: {why}", part="containers")


def _judgement(printed: str) -> str:
    """In one line, what a program that failed has printed, without its log of the tries before: each has the same words
    again."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    judged = [line for line in lines if line and not line.startswith(("time=", "level="))]
    return " ".join(dict.fromkeys(judged or lines))


def _present(found: Mapping[str, Any]) -> PresentContainer:
    state = found["State"]
    return PresentContainer(
        id=found["Id"],
        name=str(found["Name"]).removeprefix("/"),
        labels=found["Config"].get("Labels") or {},
        state=str(state["Status"]),
        exit_code=int(state.get("ExitCode") or 0),
        error=str(state.get("Error") or ""),
        ports=_published(found),
        restarts=int(found.get("RestartCount") or 0),
        made_at=_time(found.get("Created")),
    )


def _published(found: Mapping[str, Any]) -> dict[int, int]:
    ports: dict[int, int] = {}
    for inside, hosts in ((found.get("NetworkSettings") or {}).get("Ports") or {}).items():
        number, _, protocol = str(inside).partition("/")
        if hosts and protocol in ("", "tcp"):
            ports[int(number)] = int(hosts[0]["HostPort"])
    return ports


def _time(written: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(written))
    except ValueError:
        return None
