"""The port of model slots: how many calls a model server gets at once, over all workers together.

Users take turns at a server, whatever the priority of their runs: the queue has considered that already, and a call
that waits keeps a worker's slot, so to hold it back would waste that slot. A waiting call is lost only when it ends
itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """`call_id` is for the log alone: a slot belongs to the block that has acquired it, so equal ids do no harm."""

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


NO_SLOTS = -1
"""As `parallel`: the server takes no call now, and calls wait until it does."""


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """Calls of live workers at a server: those with a slot, and those that wait for one."""

    running: int
    waiting: int


class Slots(ABC):
    @abstractmethod
    def hold(
        self, request: SlotRequest, *, parallel: int, models: int, on_wait: Callable[[int], None]
    ) -> AbstractAsyncContextManager[None]:
        """Waits until the server takes the call: at most `parallel` at once (0: any number, nobody is asked), of at
        most `models` different models (0: any number). The slot is held for the block. NO_SLOTS: none is granted until
        `resize`, or another call, says how many there are.

        `on_wait` gets the call's position, from 1, when it has to wait and when that changes notably; it returns at
        once and raises nothing. Nothing is raised while Redis is away: calls that wait go on waiting, and calls with a
        slot go on. `run` must be running.
        """

    @abstractmethod
    def resize(self, server: str, *, parallel: int) -> None:
        """A server takes another number of calls from now on: those of this process that wait get what is free."""

    @abstractmethod
    async def load(self, servers: Sequence[str]) -> Mapping[str, SlotLoad]:
        """By server. Raises Unavailable."""

    @abstractmethod
    async def forget(self, server: str) -> None:
        """Remove what is kept of a server that is gone for ever. Raises Unavailable."""

    @abstractmethod
    async def run(self) -> None:
        """Renew this process's slots and receive those that are granted to it, until this is cancelled. Call it once in
        each process."""

    @abstractmethod
    async def renew_for(self, blocked: "Slots") -> None:
        """Renew the slots of another one of these, whose process cannot do so because its event loop is blocked. It is
        called in another thread, on a loop of its own. Raises Unavailable."""

    @abstractmethod
    async def waiting(self, run_id: str) -> WaitingForModel | None:
        """What the run's model call waits for, of several the one that waits longest; None: nothing. Raises
        Unavailable."""
