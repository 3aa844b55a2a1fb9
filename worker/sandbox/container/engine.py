"""Docker or Podman, asked through their command line: what differs between the two, and what their refusals mean.

The command line and not a library, because it is the one interface that both have, that brings rootless Podman without
a service, and that leaves it to the engine's own settings where its server is and who may talk to it.

How the program is run: `backplane.containers.program`. Proxies are kept away but for pulls.
"""

import asyncio
import errno
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import structlog

from backplane.containers.program import EngineResult, ask, engine_environment
from backplane.errors import InvalidInput, PlatformError, Unavailable
from worker.sandbox.base import SandboxImageNotFound, SandboxRefused
from worker.sandbox.local.process import COMMAND_TOO_LONG

_HOSTS = Path(__file__).parents[1] / "etc" / "hosts"
_PULL_SECONDS = 1800.0
_OUTPUT_CHARS = 500
_NO_IMAGE = re.compile(
    r"no such image|image not known|unable to find image|manifest unknown|name unknown|repository does not exist"
    r"|requested access to the resource is denied|invalid reference format",
    re.IGNORECASE,
)
_NO_SHELL = re.compile(r'"?/bin/sh"?: (stat /bin/sh: )?no such file|exec: "/bin/sh"', re.IGNORECASE)
_NO_SERVER = re.compile(
    r"cannot connect to|is the docker daemon running|connection refused|docker\.sock", re.IGNORECASE
)

log = structlog.get_logger(__name__)


class Kind(StrEnum):
    DOCKER = "docker"
    PODMAN = "podman"


@dataclass(frozen=True, slots=True)
class Engine:
    """`words` begin every call: the program and its own options. `runtime` is an OCI runtime's name, or empty.

    `keeps_user`: user numbers inside are others outside, and the worker's has to be asked for. `system_calls`: path of
    the list of those that are allowed, where it is Podman's and may be changed by a file of this process.
    """

    words: tuple[str, ...]
    kind: Kind
    runtime: str
    keeps_user: bool = False
    system_calls: str = ""

    @property
    def name(self) -> str:
        return " ".join(self.words)

    def run_words(self) -> list[str]:
        """`run` with what only this kind of engine knows."""
        if self.kind is Kind.DOCKER:
            return [*self.words, "run", *(["--runtime", self.runtime] if self.runtime else [])]
        words = [*self.words, *(["--runtime", self.runtime] if self.runtime else []), "run"]
        # Its own defaults: folders without a limit in memory beside /tmp, proxies and the names of other machines.
        words += ["--read-only-tmpfs=false", "--http-proxy=false", "--no-hosts", "--volume", f"{_HOSTS}:/etc/hosts:ro"]
        return [*words, "--userns", "keep-id"] if self.keeps_user else words

    async def start(
        self, words: Sequence[str], *, stdout: int, stderr: int, pass_fds: Sequence[int]
    ) -> asyncio.subprocess.Process:
        """Raises InvalidInput for a command that is too long, Unavailable when the program cannot be started."""
        try:
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                env=engine_environment(os.environ),
                cwd=tempfile.gettempdir(),  # podman's monitor leaves a file `oom` where it was started
                start_new_session=True,
            )
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise InvalidInput(COMMAND_TOO_LONG) from error
            raise Unavailable(f"cannot start {words[0]}: {error.strerror}", part="sandbox") from error

    async def ask(self, *arguments: str) -> EngineResult:
        """Raises Unavailable when the engine does not answer."""
        return await ask([*self.words, *arguments], part="sandbox")

    async def image_volumes(self, image: str) -> tuple[str, ...] | None:
        """Folders for which the image asks for volumes; None when the image is not here."""
        answer = await self.ask("image", "inspect", "--format", "{{json .Config.Volumes}}", image)
        if answer.code == 0:
            return tuple(json.loads(answer.output) or ())
        if _NO_IMAGE.search(answer.error):
            return None
        raise refusal(self, image, answer.error)

    async def pull(self, image: str) -> None:
        """Raises SandboxImageNotFound, or Unavailable when the registry cannot be reached."""
        words = [*self.words, "pull", "--quiet", image]
        answer = await ask(words, part="sandbox", seconds=_PULL_SECONDS, with_proxies=True)
        if answer.code == 0:
            return
        if _NO_IMAGE.search(answer.error):
            raise image_not_found(self, image, answer.error)
        raise Unavailable(
            f"cannot pull the image {image}: {_shortened(answer.error)}; mend that, load the image yourself "
            f"({self.words[0]} load), or set SANDBOX_IMAGE to one that is here",
            part="sandbox",
        )

    async def remove(self, *containers: str) -> bool:
        """End and remove them at once; True when none is left. One that is not there is fine."""
        try:
            answer = await self.ask("rm", "--force", "--volumes", *containers)
        except Unavailable as error:
            log.error("a container could not be removed", engine=self.name, containers=containers, why=error.message)
            return False
        lines = [line for line in answer.error.splitlines() if "no such container" not in line.lower()]
        if answer.code != 0 and lines:
            why = _shortened("\n".join(lines))
            log.error("a container could not be removed", engine=self.name, containers=containers, why=why)
            return False
        return True


async def identify(words: Sequence[str], runtime: str) -> Engine:
    """Which engine a program is; a `docker` may be Podman's. Raises Unavailable when it is neither, or fails."""
    answer = await ask([*words, "--version"], part="sandbox")
    output = answer.output.lower()
    if answer.code == 0 and Kind.PODMAN in output:
        return await _identify_podman(Engine(tuple(words), Kind.PODMAN, runtime))
    if answer.code == 0 and Kind.DOCKER in output:
        return Engine(tuple(words), Kind.DOCKER, runtime)
    output = answer.error or answer.output
    raise Unavailable(
        f"`{' '.join(words)} --version` names neither docker nor podman: {_shortened(output)}", part="sandbox"
    )


async def _identify_podman(engine: Engine) -> Engine:
    answer = await engine.ask("info", "--format", "json")
    try:
        host = json.loads(answer.output)["host"]
        security, is_service = host["security"], host["serviceIsRemote"]
        # A service reads files by itself, and sees none of this process's.
        changeable = security["seccompEnabled"] and not is_service
        return replace(
            engine,
            keeps_user=security["rootless"],
            system_calls=security.get("seccompProfilePath", "") if changeable else "",
        )
    except (ValueError, LookupError, TypeError) as error:
        why = _shortened(answer.error or f"`info` is not as expected ({error!r})")
        raise Unavailable(f"{engine.name} does not say what it can: {why}", part="sandbox") from error


def refusal(engine: Engine, image: str, output: str) -> PlatformError:
    """What an engine means by the words with which it starts no container."""
    if "argument list too long" in output.lower():
        return InvalidInput(COMMAND_TOO_LONG)
    if _NO_SHELL.search(output):
        return SandboxRefused(f"the image {image} has no /bin/sh: set SANDBOX_IMAGE to one with sh and python3")
    if _NO_IMAGE.search(output):
        return image_not_found(engine, image, output)
    if _NO_SERVER.search(output):
        return Unavailable(
            f"{engine.name} does not reach its engine: {_shortened(output)} Start it, and let this user talk to it",
            part="sandbox",
        )
    return Unavailable(f"{engine.name} could not start a container: {_shortened(output)}", part="sandbox")


def image_not_found(engine: Engine, image: str, output: str) -> SandboxImageNotFound:
    return SandboxImageNotFound(
        f"the image {image} is not to be had: {_shortened(output)}; `{engine.name} pull {image}`, or set SANDBOX_IMAGE "
        "to one that exists (a worker pulls it when it starts)"
    )


def _shortened(output: str) -> str:
    return " ".join(output.split())[-_OUTPUT_CHARS:] or "it says nothing."
