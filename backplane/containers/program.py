"""The program of a container engine, docker or podman: its answer gathered, or read as it comes.

The program gets what it needs of this process's environment by name. Whatever else stands there is the platform's, and
would be seen in the environment of the engine's helpers. Proxies go along only where the caller says so: engines hand
them on inside.
"""

import asyncio
import contextlib
import os
import re
import signal
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from backplane.errors import Unavailable
from backplane.process.supervisor import keep_descriptors_from_children

ANSWER_SECONDS = 60.0
READ_BYTES = 64 * 1024
END_SECONDS = 5.0
"""For a program that was killed to be gone. What it left behind may keep its output open for longer."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY")
PROXY_NAMES = (*PROXIES, *(name.lower() for name in PROXIES))

_NEEDED = re.compile(
    r"HOME|PATH|USER|LOGNAME|LANG|TMPDIR|DBUS_SESSION_BUS_ADDRESS|REGISTRY_AUTH_FILE|SSL_CERT_\w+"
    r"|(DOCKER|CONTAINER|CONTAINERS|PODMAN|STORAGE|XDG)_\w+"
)


@dataclass(frozen=True, slots=True)
class EngineResult:
    """`code`: the exit status, negative for a signal."""

    code: int
    output: str
    error: str


def engine_environment(environment: Mapping[str, str], *, with_proxies: bool = False) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if _NEEDED.fullmatch(name)}
    if with_proxies:
        kept |= {name: environment[name] for name in PROXY_NAMES if name in environment}
    return kept


async def ask(
    words: Sequence[str], *, part: str, seconds: float = ANSWER_SECONDS, with_proxies: bool = False
) -> EngineResult:
    """Run the program once and gather its output. Raises Unavailable, with `part`, when it cannot be started or takes
    longer than `seconds`; it is killed then with all that it started."""
    process = await _start(words, part, with_proxies=with_proxies)
    try:
        async with asyncio.timeout(seconds):
            output, error_output = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"{words[0]} has not answered for {seconds:g} seconds; restart it", part=part) from error
    finally:
        await _kill(process)
    assert process.returncode is not None
    return EngineResult(process.returncode, output.decode("utf-8", "replace"), error_output.decode("utf-8", "replace"))


async def lines(words: Sequence[str], *, part: str, most: int) -> AsyncGenerator[bytes, None]:
    """Run the program, and read both its outputs as one, by the line, until it ends. Of a line that is longer than
    `most` bytes, those. Raises Unavailable, with `part`, when it cannot be started."""
    process = await _start(words, part, together=True)
    assert process.stdout is not None
    try:
        begun = b""
        while chunk := await process.stdout.read(READ_BYTES):
            *ended, begun = (begun + chunk).split(b"\n")
            for line in ended:
                yield line[:most]
            begun = begun[:most]
        if begun:
            yield begun
    finally:
        await _kill(process)


async def _start(
    words: Sequence[str], part: str, *, with_proxies: bool = False, together: bool = False
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if together else asyncio.subprocess.PIPE,
            env=engine_environment(os.environ, with_proxies=with_proxies),
            cwd=tempfile.gettempdir(),  # podman's monitor leaves a file `oom` where it was started
            start_new_session=True,
            # uvloop leaves a second copy of the pipes open in a child. Podman's monitor, which outlives it, would keep
            # them, and nobody would see the end of the answer as long as the container runs.
            preexec_fn=keep_descriptors_from_children,
        )
    except OSError as error:
        raise Unavailable(f"cannot start {words[0]}: {error.strerror}", part=part) from error


async def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started, unless it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    # Its end is seen when its output is at an end, and of that nobody reads on where the caller has left in the middle.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            for output in filter(None, (process.stdout, process.stderr)):
                while await output.read(READ_BYTES):
                    pass
            await process.wait()
