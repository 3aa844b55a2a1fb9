"""Docker or Podman through their command line: containers that are labelled as the platform's, and no others.

The command line and not a library, because both have it, and because it leaves it to the engine's own settings where
its server is. The program gets what it needs of this process's environment by name; all else there is the platform's.
Sandboxes have an adapter of their own (`worker.sandbox.container`), whose containers live as long as a step.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backplane.errors import Unavailable

ANSWER_SECONDS = 60.0
RUN_SECONDS = 1800.0
"""To start a container: the engine may pull its image first."""
STOP_SECONDS = 30
"""What a container gets to end by itself, before it is killed."""
LOG_LINES = 20
WORDS_CHARS = 400

_NEEDED = re.compile(
    r"HOME|PATH|USER|LOGNAME|LANG|TMPDIR|DBUS_SESSION_BUS_ADDRESS|REGISTRY_AUTH_FILE|SSL_CERT_\w+"
    r"|(HTTPS?|NO)_PROXY|(https?|no)_proxy|(DOCKER|CONTAINER|CONTAINERS|PODMAN|STORAGE|XDG)_\w+"
)


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
        code, output, error = await self._run("container", "inspect", *ids, seconds=ANSWER_SECONDS)
        try:
            # One that has gone since makes the exit code 1; the others are there.
            found: list[dict[str, Any]] = json.loads(output)
            return [_present(each) for each in found]
        except (ValueError, LookupError, TypeError):
            raise self._refused("inspect", error or output, code) from None

    async def run(self, words: Sequence[str]) -> None:
        """Start a container: `words` are options of `run`, the image and its command."""
        await self._ask("run", "--detach", *words, seconds=RUN_SECONDS)

    async def start(self, container_id: str) -> None:
        """Start one that has ended."""
        await self._ask("start", container_id)

    async def remove(self, container_id: str) -> None:
        """Let it end, and remove it with its unnamed volumes. One that is not there is fine."""
        wait = ANSWER_SECONDS + STOP_SECONDS
        await self._run("stop", "--time", str(STOP_SECONDS), container_id, seconds=wait)
        code, output, error = await self._run("rm", "--force", "--volumes", container_id, seconds=ANSWER_SECONDS)
        if code and "no such container" not in error.lower():
            raise self._refused("rm", error or output, code)

    async def last_lines(self, container_id: str) -> str:
        """What it printed last; empty where the engine does not say."""
        try:
            asked = ("logs", "--tail", str(LOG_LINES), container_id)
            _, output, error = await self._run(*asked, seconds=ANSWER_SECONDS)
        except Unavailable:
            return ""
        return " | ".join(filter(None, (line.strip() for line in (output + error).splitlines())))[-WORDS_CHARS:]

    async def _ask(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> str:
        code, output, error = await self._run(*arguments, seconds=seconds)
        if code:
            raise self._refused(arguments[0], error or output, code)
        return output

    def _refused(self, action: str, words: str, code: int) -> Unavailable:
        why = " ".join(words.split())[-WORDS_CHARS:] or f"it ended with {code} and no word"
        return Unavailable(f"`{self.name} {action}` failed: {why}", part="containers")

    async def _run(self, *arguments: str, seconds: float) -> tuple[int, str, str]:
        """Exit code, output and error output."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)},
                cwd=tempfile.gettempdir(),  # podman's monitor leaves a file `oom` where it was started
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"cannot start {self._words[0]}: {error.strerror}", part="containers") from error
        try:
            async with asyncio.timeout(seconds):
                output, error_output = await process.communicate()
        except TimeoutError:
            late = f"`{self.name} {arguments[0]}` has not answered for {seconds:g} seconds; restart the engine"
            raise Unavailable(late, part="containers") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        return process.returncode, output.decode("utf-8", "replace"), error_output.decode("utf-8", "replace")


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
