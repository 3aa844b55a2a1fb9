"""The queue port: which runs wait, which worker has claimed which run, and when a claim's lease ends.

The database knows what a run is; the queue only dispatches ids. Everything in it can be rebuilt from the database
(`worker.reaper`), so no method here is the place where a run is kept. Times are the queue's own clock, in seconds.
All methods raise Unavailable when it does not answer.

Order. A run counts from when it may run. Each priority step is worth as much as `ageing_seconds` of waiting; critical
runs come first whatever the others have waited. Where a cap is reached (runs of one user, of one tier, of one named
resource, each counted from when they may run until they are settled) further runs are parked; each one that is settled
lets the next one in. So of a user with a thousand runs only a few stand in the way of others, and no claim has to
search for a run that may be taken.

Queues. Each run waits in one named queue, and a worker takes runs of the queues that it serves, in this order over all
of them. Caps count over all queues. Room for waiting runs is counted by queue, so a queue that nobody serves is in no
other's way; only a user's own limit counts over all queues. Each agent has a queue of its own (AGENT_QUEUES and its
id): they are listed as one, ALL_AGENT_QUEUES, because there are as many as agents. A worker that serves some of them
serves no other queue.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from backplane.domain.runs import DEFAULT_QUEUE, Priority, RunStatus
from backplane.queue.estimate import Wait, estimated_wait

PUSH_SECONDS = 2.0
"""How long a run may be queued in the database and not be known here: the API is between commit and push. After that it
is lost, and the leading worker queues it again."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How many runs may be under way at once, by priority (each tier has one) or by resource. What is not named has no
    cap."""

    user: Mapping[Priority, int] = field(default_factory=dict)
    tier: Mapping[Priority, int] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueRoom:
    """How many runs may wait: those of one user in all queues; in each queue those of all users, and of all users of a
    priority. 0: no limit.

    Runs that a user's own cap holds back count for that user alone. Of the other two no user gets more than half, and
    the last tenths of `overall` are kept for higher priorities: low fills seven of them, normal eight, high nine.
    """

    user: int = 0
    overall: int = 0
    tier: Mapping[Priority, int] = field(default_factory=dict)


class Limit(StrEnum):
    """Which limit of what may wait is reached."""

    USER = "user"
    TIER = "tier"
    OVERALL = "overall"
    SHARE = "share"
    """The part of TIER or OVERALL that one user may take."""


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room for one more run: `waiting` of them count under this limit, and `most` may. `cap`: how many runs
    of the user may be under way at once (0: any number)."""

    limit: Limit
    waiting: int
    most: int
    cap: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A run as the queue knows it. `generation` is the last that the database saw. `since`: since when it waits, in
    seconds since the epoch, for one that the queue has lost and that goes where it stood; 0: it comes now."""

    run_id: str
    user_id: str
    priority: Priority
    generation: int = 0
    resource: str = ""
    since: float = 0.0
    queue: str = DEFAULT_QUEUE


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to carry out a run, for one lease, in a generation that no other claim has.

    `crashes` is how many claims before this one ended without a settlement.
    """

    job: Job
    crashes: int = 0

    @property
    def run_id(self) -> str:
        return self.job.run_id

    @property
    def generation(self) -> int:
        return self.job.generation


class RunOutcome(StrEnum):
    FINISHED = "finished"
    """The run is over, or waits for a person."""
    HANDED_BACK = "handed back"
    """The run waits again at its old place, as if it had not been claimed."""
    POSTPONED = "postponed"
    """The run waits again after the delay."""
    SET_ASIDE = "set aside"
    """The same, and the workers that were lost with it still count: it has not begun."""
    DISOWNED = "disowned"
    """Another worker has the run, and the queue does not know it (Redis has lost the last write). The queue forgets the
    run, and the other worker's next heartbeat writes it again."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of a claim. `status` and `error` (a code) are shown with finished jobs; the duration, in seconds, is
    used for estimates where there is one."""

    claim: Claim
    outcome: RunOutcome
    status: RunStatus | None = None
    error: str = ""
    duration_seconds: float | None = None
    delay_seconds: float = 0.0
    is_dead: bool = False


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run whose lease has ended. `worker_id`: who had it, empty where that is not known. `crashes`: of workers while
    they had it, this one included."""

    run_id: str
    worker_id: str
    crashes: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """`lost`: runs whose lease had ended; `due`: runs whose next attempt had come; `let_in`: parked runs for which
    there was room. All may be taken now. `next_seconds`: when the next lease or pause ends; None: there is none.
    `losses`: those that are `lost`, one by one."""

    lost: int
    due: int
    let_in: int
    next_seconds: float | None
    losses: tuple[LostRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Renewed:
    """`lost`: the runs that are no longer the worker's own. `leads`: it is the one worker that compares the database
    with the queue, until its next heartbeat is due."""

    lost: frozenset[str]
    leads: bool


class Compared(IntEnum):
    """What the queue knows of a run that is queued or running in the database."""

    WHOLE = 0
    MENDED = 1
    MISSING = 2
    """The queue has nothing of the run that can be used."""
    OVER = 3
    """The run is over in the queue."""


@dataclass(frozen=True, slots=True)
class Swept:
    """`mended`: how many entries were wrong and are not any more. `let_in`: parked runs for which there was room.
    `waiting`: all runs that wait or are scheduled. `unleased`: runs that the queue takes for running, and that have no
    lease."""

    mended: int
    let_in: int
    waiting: frozenset[str]
    unleased: frozenset[str]


class Whereabouts(StrEnum):
    """Where the queue has a run."""

    WAITS = "waits"
    SCHEDULED = "scheduled"
    CLAIMED = "claimed"
    OVER = "over"
    LOST = "lost"
    """The queue knows the run, or a part of it, and would never give it to a worker."""
    UNKNOWN = "unknown"


class Gate(StrEnum):
    """What a parked run waits for."""

    USER = "user"
    TIER = "tier"
    RESOURCE = "resource"


@dataclass(frozen=True, slots=True)
class Standing:
    """`position` from 1, in the order in which the runs of its queue are taken as things stand. `wait` is None while no
    live worker serves the queue: nobody knows when one comes. `gate`: the cap that holds it back."""

    position: int
    wait: Wait | None
    gate: Gate | None = None
    cap: int = 0


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """Times are seconds since the epoch."""

    run_id: str
    user_id: str
    status: RunStatus
    error: str
    queued_at: float
    claimed_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of one queue. `queued` may be taken at once, `parked` wait for room under a cap. `workers`: the live
    ones that serve the queue; `slots` and `running`: theirs, whatever queue the runs are of. `scheduled` and `dead`:
    those of all queues. `durations`: how long the last runs of the queue took, in seconds; `remaining`: how much longer
    those that run now last by them, a sample where they are many.

    `competing`: runs of other queues that these workers take before one that comes now. `busy_with`: runs that they
    have claimed, by queue, and `served`: the queues that live workers serve; both empty while all workers serve the
    default queue alone."""

    queued: dict[Priority, int]
    parked: dict[Priority, int]
    running: int
    scheduled: int
    dead: int
    workers: int
    slots: int
    durations: tuple[float, ...]
    initial_run_seconds: float
    remaining: tuple[float, ...] = ()
    queue: str = DEFAULT_QUEUE
    competing: float = 0.0
    busy_with: Mapping[str, int] = field(default_factory=dict)
    served: frozenset[str] = frozenset()

    @property
    def waiting(self) -> int:
        return sum(self.queued.values()) + sum(self.parked.values())

    def wait(
        self,
        position: int,
        *,
        competing: float | None = None,
        at_gate: int = 0,
        cap: int = 0,
        remaining_at_gate: Sequence[float] = (),
    ) -> Wait:
        """How long until the run at this position (from 1) of the queue is claimed. `competing`: runs of other queues
        before it (when left out, those before one that comes now). `at_gate`: its position (from 1) among the runs that
        a cap holds back; 0: none does. `remaining_at_gate`: how much longer the runs under that cap last."""
        durations = self.durations or (self.initial_run_seconds,)
        others = self.competing if competing is None else competing
        turns = position + round(others) - (self.slots - self.running)
        for_slot = estimated_wait(turns, self.slots, durations, self.remaining)
        for_room = estimated_wait(at_gate, cap, durations, remaining_at_gate)
        return Wait(max(for_slot.p50, for_room.p50), max(for_slot.p90, for_room.p90))


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that sent a heartbeat within one lease. `running`: the runs that it has claimed."""

    id: str
    slots: int
    running: int


@dataclass(frozen=True, slots=True)
class Depth:
    """Of one priority: how many runs may be taken, how many a cap holds back, and how long the one to be taken next has
    been allowed to run; 0: there is none."""

    waiting: int
    parked: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """A queue in which runs wait or run, or that a live worker serves. `workers` and `slots`: of the live workers that
    serve it, perhaps beside others. `running`: its own runs that a worker has claimed."""

    queue: str
    workers: int
    slots: int
    running: int
    by_priority: Mapping[Priority, Depth]


class Queue(ABC):
    @property
    @abstractmethod
    def platform(self) -> str:
        """Whose queue this is, as `open` has found it; empty until then."""

    @abstractmethod
    async def open(self, database: str, *, take_over: bool = False) -> None:
        """Make sure that this is the queue of the database with this id, and in the layout that this release knows: an
        older one is migrated. From then on all calls that change it raise Unavailable when it is another's by then.
        Raises QueueOfAnother when it is already. `take_over`: empty it then, and go on."""

    @abstractmethod
    async def examine(self, database: str) -> None:
        """Raises QueueOfAnother when the database with this id could not `open` the queue. Changes nothing."""

    @abstractmethod
    async def admit(self, run_id: str, user_id: str, priority: Priority, queue: str = DEFAULT_QUEUE) -> Full | None:
        """Reserve a place for a run that is about to be queued; None: it has one. `enqueue` takes it up; left alone it
        is free again after some seconds."""

    @abstractmethod
    async def give_up_place(self, run_id: str, user_id: str, priority: Priority, queue: str = DEFAULT_QUEUE) -> None:
        """Free a reserved place that `enqueue` has not taken up."""

    @abstractmethod
    async def enqueue(self, jobs: Sequence[Job]) -> list[bool]:
        """Let runs wait, in this order. False for a run that waits or is running already."""

    @abstractmethod
    async def claim(
        self, worker_id: str, limit: int, wait_seconds: float = 0.0, *, queues: Sequence[str] = (DEFAULT_QUEUE,)
    ) -> list[Claim]:
        """Take up to `limit` runs of these queues with their leases, in order. With nothing there, look once more when
        something may be waiting, or after so long. Without queues it takes nothing."""

    @abstractmethod
    async def end_wait(self, worker_id: str) -> None:
        """Let this worker's `claim` that waits return now."""

    @abstractmethod
    async def renew(
        self,
        worker_id: str,
        slots: int,
        claims: Sequence[Claim],
        *,
        queues: Sequence[str] = (DEFAULT_QUEUE,),
        may_lead: bool = True,
    ) -> Renewed:
        """Report that this worker lives and serves these queues, and renew its leases. `may_lead`: whether it can be
        the leader; one that is and may not stays so until the leader's lease ends."""

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """End claims. Those of an older generation are passed over, so a call whose answer was lost can be repeated."""

    @abstractmethod
    async def forget(self, run_id: str, status: RunStatus | None = RunStatus.CANCELLED) -> None:
        """Take a run that no worker has out of the queue. `status`: what became of it; None: there is no such run."""

    @abstractmethod
    async def reap(self, limit: int) -> Reaped:
        """Let wait again up to `limit` runs each whose lease ended or whose next attempt is due."""

    @abstractmethod
    async def compare(self, jobs: Sequence[Job]) -> list[Compared]:
        """Mend what the queue has of these runs, which are queued or running in the database: all entries that such a
        run must have. None of them is queued by this; `enqueue` does that with what is missing."""

    @abstractmethod
    async def sweep(self, user_ids: Iterable[str]) -> Swept:
        """Compare the parts of the queue with one another, page by page, and take out what contradicts; also what is
        counted as waiting for these users."""

    @abstractmethod
    async def whereabouts(self, run_id: str) -> Whereabouts: ...

    @abstractmethod
    async def crashes(self, run_id: str) -> int:
        """How many workers were lost with the run since it last began a try, was postponed or was handed back. 0 for
        one that the queue does not know."""

    @abstractmethod
    async def deregister(self, worker_id: str) -> None:
        """Take a worker that ends out of the list of live workers."""

    @abstractmethod
    async def announce_cancel(self, run_id: str) -> None:
        """Publishes the cancel to the worker that has the run. It may be lost; the database has the intent."""

    @abstractmethod
    def cancels(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The ids of runs whose cancel is announced while the context is open. It reconnects by itself."""

    @abstractmethod
    async def workers(self) -> list[LiveWorker]: ...

    @abstractmethod
    async def worker_ids(self) -> frozenset[str]:
        """The ids of the live workers; cheaper than `workers`."""

    @abstractmethod
    async def statistics(self, queue: str = DEFAULT_QUEUE) -> Statistics: ...

    @abstractmethod
    async def served(self) -> frozenset[str]:
        """The queues that live workers serve, without those of agents."""

    @abstractmethod
    async def depths(self) -> list[QueueDepths]:
        """Every queue, by name, those of agents as one, the default one always; as cheap with a million waiting runs as
        with one."""

    @abstractmethod
    async def standing(self, run_ids: Sequence[str]) -> list[Standing | None]:
        """Where waiting runs stand; None for those that do not wait."""

    @abstractmethod
    async def nearest_of(self, user_id: str) -> Standing | None:
        """Of the user's runs that wait, the one that is taken first, as things stand; None: none waits. Of very many
        runs only some are looked at."""

    @abstractmethod
    async def next_attempt(self, run_id: str) -> float | None:
        """When a postponed run waits again, in seconds since the epoch; None: it is not postponed."""

    @abstractmethod
    async def finished(self) -> list[FinishedJob]:
        """The last ones, newest first."""

    @abstractmethod
    async def mirror_dead(self, dead: Mapping[str, float]) -> None:
        """Make the list of dead runs (id → seconds since the epoch) that operators see in Redis this one."""
