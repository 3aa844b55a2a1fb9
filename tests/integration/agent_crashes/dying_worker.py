"""`python -m worker`, which kills itself (SIGKILL) at a transaction of its own choice.

DIES_AT says at which: `after begin_step 2` is behind the commit of the second transaction on a run in which a step is
begun, `before begin_step 2` at its end, when nothing of it is committed yet. `any` in place of a name counts them all.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from backplane.domain.secrets import Redact
from backplane.store.run_transaction import RunningRuns, RunTransaction
from worker.__main__ import main


class _Noting:
    """A held run that notes what is called of it."""

    def __init__(self, held: RunTransaction, called: set[str]) -> None:
        self._held = held
        self._called = called

    def __getattr__(self, name: str) -> Any:
        self._called.add(name)
        return getattr(self._held, name)


def kill_at(side: str, name: str, number: int) -> None:
    """Let this process die there."""
    whole, seen = RunningRuns.write, 0

    async def write(
        self: RunningRuns,
        run_id: str,
        generation: int,
        work: Callable[[RunTransaction], None],
        redact: Redact | None = None,
    ) -> None:
        called: set[str] = set()

        def is_there() -> bool:
            return name in ("any", *called) and seen + 1 == number

        def cut_off(held: Any) -> None:
            called.clear()
            work(_Noting(held, called))  # type: ignore[arg-type]
            if side == "before" and is_there():
                os.kill(os.getpid(), signal.SIGKILL)

        nonlocal seen
        await whole(self, run_id, generation, cut_off, redact)
        if side == "after" and is_there():
            os.kill(os.getpid(), signal.SIGKILL)
        seen += name in ("any", *called)

    RunningRuns.write = write  # type: ignore[method-assign]


if __name__ == "__main__":
    side, name, number = os.environ["DIES_AT"].split()
    kill_at(side, name, int(number))
    sys.exit(main())
