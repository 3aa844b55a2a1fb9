"""The queue port: which runs wait, who holds which, and when a hold ends by itself.

The database knows what a run is; the queue only dispatches ids. Everything in it can be rebuilt from the database
(`worker.reaper`), so no method here is the place where a run is kept. Times are the queue's own clock, in seconds.
All methods raise Unavailable when it does not answer.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from backplane.runs import Priority


@dataclass(frozen=True, slots=True)
class Job:
    """A run as the queue knows it. `generation` is the last that the database saw."""

    run_id: str
    user_id: str
    priority: Priority
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to carry out a run, for one lease, in a generation that no other claim has.

    `crashes` is how many claims before this one ended without a word.
    """

    job: Job
    crashes: int = 0

    @property
    def run_id(self) -> str:
        return self.job.run_id

    @property
    def generation(self) -> int:
        return self.job.generation


@dataclass(frozen=True, slots=True)
class Reaped:
    """`lost`: runs whose lease had ended; `due`: runs whose next attempt had come. Both are queued again."""

    lost: int
    due: int


@dataclass(frozen=True, slots=True)
class Standing:
    """`position` from 1, in the order in which runs are taken; `wait_seconds` is an estimate."""

    position: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    queued: dict[Priority, int]
    running: int
    scheduled: int
    workers: int
    slots: int
    run_seconds: float
    """What a run takes: the mean of the last ones, or the initial estimate."""

    def wait_seconds(self, position: int) -> float:
        """About how long until the run at this position (from 1) is taken: free slots at once, then a slot at a
        time."""
        turns = max(0, position - (self.slots - self.running))
        return turns * self.run_seconds / max(self.slots, 1)


class Queue(ABC):
    @abstractmethod
    async def enqueue(self, job: Job) -> bool:
        """Let a run wait. False when it waits or is held already."""

    @abstractmethod
    async def claim(self, worker_id: str, limit: int) -> list[Claim]:
        """Take up to `limit` runs with their leases, highest priority first, oldest first. Does not block."""

    @abstractmethod
    async def wait(self, seconds: float) -> None:
        """Return when a run may be waiting, or after so long."""

    @abstractmethod
    async def renew(self, worker_id: str, slots: int, claims: Sequence[Claim]) -> frozenset[str]:
        """Tell that this worker lives and renew its leases. Answers the ids of runs that are no longer its own."""

    @abstractmethod
    async def finish(self, claim: Claim, duration_seconds: float | None) -> None:
        """The run is over, or waits for a person: give up the hold. The duration counts for the estimate."""

    @abstractmethod
    async def release(self, claim: Claim, delay_seconds: float = 0.0) -> None:
        """Queue the run again: at the front, or after the delay."""

    @abstractmethod
    async def forget(self, run_id: str) -> None:
        """Take a run that nobody holds out of the queue."""

    @abstractmethod
    async def reap(self, limit: int) -> Reaped:
        """Queue again up to `limit` runs each whose lease ended or whose next attempt is due."""

    @abstractmethod
    async def known(self, run_ids: Sequence[str]) -> list[bool]:
        """Which of these runs wait, are scheduled or are held."""

    @abstractmethod
    async def leave(self, worker_id: str) -> None:
        """The worker ends: it counts no longer."""

    @abstractmethod
    async def announce_cancel(self, run_id: str) -> None:
        """Tell whoever holds the run, now. May be lost; the database has the intent."""

    @abstractmethod
    def cancels(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The run ids that are announced, for as long as the context is open. Reconnects by itself."""

    @abstractmethod
    async def statistics(self) -> Statistics: ...

    @abstractmethod
    async def standing(self, run_ids: Sequence[str]) -> list[Standing | None]:
        """Where waiting runs stand; None for those that do not wait."""
