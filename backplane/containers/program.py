"""The program of a container engine, docker or podman: run once, with its answer gathered.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backplane.errors import Unavailable

ANSWER_SECONDS = 60.0
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
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=engine_environment(os.environ, with_proxies=with_proxies),
            cwd=tempfile.gettempdir(),  # podman's monitor leaves a file `oom` where it was started
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"cannot start {words[0]}: {error.strerror}", part=part) from error
    try:
        async with asyncio.timeout(seconds):
            output, error_output = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"{words[0]} has not answered for {seconds:g} seconds; restart it", part=part) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return EngineResult(process.returncode, output.decode("utf-8", "replace"), error_output.decode("utf-8", "replace"))
