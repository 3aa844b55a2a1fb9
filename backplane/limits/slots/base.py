"""The port of model slots: how many calls a model server gets at once, over all workers together.

Users take turns at a server, whatever the priority of their runs: the queue has weighed that already, and a call that
waits keeps a worker's slot, so holding it back would waste what the priority was given. A call that waits is not lost
by anything but its own end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """`call_id` is for the log: what a slot belongs to is the block that holds it, so equal ids do no harm."""

    server: str
    model: str
    user_id: str
    run_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class WaitingForModel:
    """What a run's model call waits for: its turn at a server, or tokens of its agent or user.

    Of a slot: `position` counts from 1 among the `waiting` calls, and the server takes `slots` calls at once. It is as
    old as the last renewal. Of tokens: `seconds` until there are enough, as it was reported last.
    """

    what: Literal["slot", "tokens"]
    server: str
    model: str
    position: int | None
    since: datetime
    seconds: float | None
    waiting: int | None = None
    slots: int | None = None


class Slots(ABC):
    @abstractmethod
    def hold(
        self, request: SlotRequest, *, parallel: int, models: int, on_wait: Callable[[int], None]
    ) -> AbstractAsyncContextManager[None]:
        """Waits until the server takes the call: at most `parallel` at once (0: any number, nobody is asked), of at
        most `models` different models (0: any number). The slot is held for the block.

        `on_wait` gets the call's position, from 1, when it has to wait and when that changes notably; it returns at
        once and raises nothing. Nothing is raised while Redis is away: who waits goes on waiting, who holds a slot goes
        on. Needs `run` to be running.
        """

    @abstractmethod
    async def run(self) -> None:
        """Renews what this process holds and receives what is granted to it, until it is cancelled. Once a process."""

    @abstractmethod
    async def waiting(self, run_id: str) -> WaitingForModel | None:
        """What the run's model call waits for, of several the one that waits longest; None: nothing. Raises
        Unavailable."""
