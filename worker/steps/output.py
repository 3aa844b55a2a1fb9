"""Where a step's output goes: as lines to the watchers, as a text into its result, and, when lines were dropped, as a
whole into a file of the run's workspace.

So the whole output is kept while the step runs: in memory at first, then on the worker's disk, in a file without a name
that the system removes together with the process. It goes into the workspace only when something is missing from the
lines, and only after the step's end has been committed: a worker that is lost while a log is on its way has not lost
the step. Nothing that goes wrong here fails the step; an event says so.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backplane.domain.events import EventType
from backplane.domain.sizes import readable_size
from backplane.errors import PlatformError, Superseded
from backplane.process.tasks import in_thread
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota, ensure_room
from worker.files.paths import OUTPUT_FOLDER
from worker.run.interruption import Cause, Interrupted, Interruption
from worker.steps.capture import OutputCapture

RESULT_FILES, RESULT_FILES_BYTES = 1_000, 64 * 1024
"""How many paths the result of a step or a run names, and their bytes in UTF-8. The paths that are left out are
counted."""

MEMORY_BYTES = 1024 * 1024
"""How much of a step's output stays in memory before it goes to the disk; most steps write less. Chunks are written
without a thread: they go to the system's cache, which is quicker."""


def first_paths(paths: Sequence[str]) -> list[str]:
    """As many of them as a result names, in their order."""
    left, named = RESULT_FILES_BYTES, list[str]()
    for path in paths[:RESULT_FILES]:
        left -= len(path.encode("utf-8", "surrogatepass"))
        if left < 0:
            break
        named.append(path)
    return named


class TokenBucket:
    """How many log lines a run may publish, on whatever clock its caller reads. `rate` tokens a second, at most `burst`
    at once, which it begins with. A rate of 0: there is always one."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one. `now` is in seconds; a clock that goes back gives none."""
        if not self._rate:
            return True
        self._tokens = min(self._burst, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = max(now, self._at)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """In bytes: how much of a step's output becomes events, how much stays in its result, the longest line, and the
    file of the whole. The run may publish `lines_per_second` (0: any number), and `lines_burst` at once. To store the
    file may take `file_seconds`."""

    events: int
    result: int
    line: int
    file: int
    file_seconds: float
    lines_per_second: int
    lines_burst: int


class StepOutput:
    """The output of a step. `emit` makes an event of the run. `discard` it in the end, whatever happened."""

    def __init__(
        self,
        step_id: str,
        limits: OutputLimits,
        lines: TokenBucket,
        emit: Callable[[EventType, dict[str, Any]], None],
    ) -> None:
        self._step_id = step_id
        self._limits = limits
        self._lines = lines
        self._emit = emit
        self._begin()

    def _begin(self) -> None:
        self._capture = OutputCapture(
            lambda line: self._emit(EventType.LOG, {"line": line, "step": self._step_id}),
            lambda line, dropped: self._warn(line, dropped_lines=dropped),
            may_emit=lambda: self._lines.take(time.monotonic()),
            clock=time.monotonic,
            line_max_bytes=self._limits.line,
            max_bytes=self._limits.events,
            result_max_bytes=self._limits.result,
        )
        self._whole = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - `discard` closes it
        self._size = 0
        self._left_out = 0
        self._is_cut: bool | None = None
        self._broken: OSError | None = None

    def restart(self) -> None:
        """Forget the output so far: the step begins anew."""
        self.discard()
        self._begin()

    @property
    def is_incomplete(self) -> bool:
        """Whether lines were dropped; known after `finish`."""
        return self._capture.dropped_lines > 0

    @property
    def is_cut(self) -> bool:
        """Whether the text for the result is not the whole."""
        return self._capture.is_cut if self._is_cut is None else self._is_cut

    def cut(self, text: str) -> str:
        """As much of another text as a result keeps."""
        kept = text.encode()[: self._limits.result].decode("utf-8", "ignore")
        self._is_cut = len(kept) < len(text)
        return kept

    def write(self, chunk: bytes) -> None:
        self._put_aside(chunk)
        self._capture.write(chunk)

    def finish(self) -> str:
        """Publish what is left, and how much was dropped; returns the text for the result."""
        return self._capture.finish()

    async def store(self, workspace: Workspace, quota: Quota, interruption: Interruption) -> None:
        """Put the whole output into the workspace and publish where it lies, or why it is missing. Raises nothing but
        Superseded."""
        path = f"{OUTPUT_FOLDER}/{self._step_id}.log"
        try:
            async with asyncio.timeout(self._limits.file_seconds):
                size = await interruption.guard(self._store(path, workspace, quota))
        except Superseded:
            raise
        except Interrupted as interrupted:
            if interrupted.cause is Cause.SUPERSEDED:
                raise Superseded("another worker has the run") from interrupted
            self.report_not_kept(f"the run was interrupted ({interrupted.cause})")
        except TimeoutError:
            self.report_not_kept(f"it took longer than {self._limits.file_seconds:g} s")
        except PlatformError as error:
            self.report_not_kept(error.message)
        except OSError as error:
            self.report_not_kept(f"the worker's disk does not take part: {error.strerror or type(error).__name__}")
        else:
            part = f"; {readable_size(self._left_out)} more are over STEP_OUTPUT_FILE_MAX_BYTES"
            line = f"the full output of the step ({readable_size(size)}) is in {path}{part if self._left_out else ''}"
            self._warn(line, file=path)

    def report_not_kept(self, reason: str) -> None:
        self._warn(f"the full output of the step could not be kept: {reason}")

    def discard(self) -> None:
        self._whole.close()

    def _put_aside(self, chunk: bytes) -> None:
        kept = chunk[: self._limits.file - self._size]
        self._left_out += len(chunk) - len(kept)
        if kept and self._broken is None:
            try:
                self._whole.write(kept)
            except OSError as error:
                self._broken = error
        self._size += len(kept)

    async def _store(self, path: str, workspace: Workspace, quota: Quota) -> int:
        file = await in_thread(self._on_disk)
        size = self._size
        await ensure_room(workspace, quota, path, size)
        # By descriptor: the file has no name.
        await workspace.upload(path, file)
        return size

    def _on_disk(self) -> Path:
        if self._broken:
            raise self._broken
        if self._left_out:
            note = (
                f"\n… {readable_size(self._left_out)} more left out; the limit is STEP_OUTPUT_FILE_MAX_BYTES\n".encode()
            )
            self._whole.write(note)
            self._size += len(note)
        descriptor = self._whole.fileno()
        self._whole.flush()
        self._whole.seek(0)
        return Path(f"/dev/fd/{descriptor}")

    def _warn(self, line: str, **more: Any) -> None:
        self._emit(EventType.LOG, {"line": line, "step": self._step_id, "level": "warning", **more})
