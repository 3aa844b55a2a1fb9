"""`python -m worker`, which kills itself (SIGKILL) at a transaction of its own choice.

DIES_AT says at which: `after begin_step 2` is behind the commit of the second transaction on a run in which a step is
begun, `before begin_step 2` ahead of it, when nothing of it is committed yet. `any` in place of a name counts them all.
"""

import os
import signal
import sys
from collections.abc import Sequence

from backplane.domain.steps import StepStatus
from backplane.settings import fixed
from backplane.store.run_writes import ChangeStep, EndModelCall, RunWrite
from backplane.store.running_runs import RunningRuns
from worker.__main__ import main


def _is(name: str, write: RunWrite) -> bool:
    match name:
        case "any":
            return True
        case "begin_step":
            return isinstance(write, ChangeStep) and write.values["status"] == StepStatus.STARTED.value
        case "end_model_call":
            return isinstance(write, EndModelCall)
    raise ValueError(f"DIES_AT: {name} is no write that is known here")


def kill_at(side: str, name: str, number: int) -> None:
    """Let this process die there."""
    whole, seen = RunningRuns.commit, 0

    async def commit(self: RunningRuns, run_id: str, generation: int, writes: Sequence[RunWrite]) -> None:
        nonlocal seen
        is_counted = any(_is(name, write) for write in writes)
        is_there = is_counted and seen + 1 == number
        if side == "before" and is_there:
            os.kill(os.getpid(), signal.SIGKILL)
        await whole(self, run_id, generation, writes)
        if side == "after" and is_there:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += is_counted

    RunningRuns.commit = commit  # type: ignore[method-assign]


if __name__ == "__main__":
    side, name, number = os.environ["DIES_AT"].split()
    fixed.EVENTS_FLUSH_SECONDS = 60.0  # no transactions but the worker's own
    kill_at(side, name, int(number))
    sys.exit(main())
