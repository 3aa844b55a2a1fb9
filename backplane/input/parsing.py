"""Reads foreign text apart from the event loop, within a time and a size.

A page, a patch or a schema can be made so that reading it takes minutes, all memory, or an error that nobody expected.
On the loop that would stop the heartbeats of all runs of the worker. So only a very short text
is read on the loop. A short one is read in a thread, where its length bounds the work, and a longer one in a process of
its own, which has a limit on its time and its memory. Every error becomes one that names the text.

Of each user one text is read in a process and one in a thread at a time, so that who sends many waits for himself. A
worker has one parser (`worker.context`), so that its bounds hold for all that is read there.

It is no sandbox: the process runs the platform's own code, with the platform's own rights.
"""

import asyncio
import pickle
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakValueDictionary

from backplane.domain.sizes import shortened
from backplane.errors import InvalidInput, PlatformError
from backplane.process.tasks import in_thread

P = ParamSpec("P")
T = TypeVar("T")

VERY_SHORT_CHARS = 2 * 1024
"""Up to here the worst text takes about a millisecond, and a thread would cost more."""
SHORT_CHARS = 64 * 1024
"""Up to here a process would cost more (50 ms) than the worst text takes in a thread."""
MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 1024**3
PROCESSES_AT_ONCE = 4
THREADS_AT_ONCE = 4
"""They hold one interpreter."""


class _ParsingTurns:
    """For `at_once` texts at a time, and one of each user."""

    def __init__(self, at_once: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._of_users: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def place(self, user_id: str) -> AsyncIterator[None]:
        of_user = self._of_users.setdefault(user_id, asyncio.Lock())
        async with of_user, self._all:
            yield


class Parser:
    """Calls pure functions of modules on foreign text, at most PROCESSES_AT_ONCE of them in processes and
    THREADS_AT_ONCE in threads at a time. `seconds` and `memory_bytes` bound a call in a process, which imports the
    function's module first."""

    def __init__(self, *, seconds: float = MAX_SECONDS, memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._processes = _ParsingTurns(PROCESSES_AT_ONCE)
        self._threads = _ParsingTurns(THREADS_AT_ONCE)

    async def call(
        self, user_id: str, what: str, chars: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `function` returns. `user_id`: for whom the text is read; texts of one user wait for each other. `what`
        names the text in errors ("the patch"); `chars` is its length.

        Raises the platform's own errors as the function raises them, and InvalidInput for every other error and for a
        text that takes more than the time or the memory.
        """
        if chars <= VERY_SHORT_CHARS:
            result, error = _outcome(what, function, args, kwargs)
        elif chars <= SHORT_CHARS:
            async with self._threads.place(user_id):
                result, error = await in_thread(_outcome, what, function, args, kwargs)
        else:
            async with self._processes.place(user_id):
                result, error = await self._in_process(what, (what, function, args, kwargs))
        if error is not None:
            raise error
        return cast(T, result)

    async def _in_process(self, what: str, call: tuple[Any, ...]) -> tuple[Any, PlatformError | None]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "backplane.input.parsing", str(self._memory_bytes), str(self._seconds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        )
        try:
            async with asyncio.timeout(self._seconds):
                answer, _ = await process.communicate(pickle.dumps(call))
        except TimeoutError:
            return None, InvalidInput(f"{what} takes more than {self._seconds:g} s to read: make it shorter")
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            return None, InvalidInput(f"{what} takes too much memory or time to read: make it shorter")
        outcome: tuple[Any, PlatformError | None] = pickle.loads(answer)  # noqa: S301 - it is this program's own
        return outcome


def _outcome(what: str, function: Callable[..., T], args: Any, kwargs: Any) -> tuple[T | None, PlatformError | None]:
    try:
        return function(*args, **kwargs), None
    except PlatformError as error:
        return None, error
    except Exception as error:
        return None, InvalidInput(f"{what} cannot be read: {type(error).__name__}: {shortened(str(error), 200)}")


def main() -> None:
    """The process: one call from standard input, its outcome to standard output."""
    memory_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    call = pickle.load(sys.stdin.buffer)  # noqa: S301 - it is this program's own
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # When the parent is gone, nobody else ends this.
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    sys.stdout.buffer.write(pickle.dumps(_outcome(*call)))


if __name__ == "__main__":
    main()
