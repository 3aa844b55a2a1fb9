"""A run: its states, the transitions that exist, and what is known of it.

    created → queued → running → completed | failed | cancelled
              queued ← running            handed back by a worker that leaves, or until its next attempt
                       running → waiting  a person has to decide; waiting holds no worker
    failed | waiting → queued             its user said how to go on
    completed → queued                    its user wants it done again from one of its steps on
    created | queued | waiting → cancelled

A transition that is not drawn here raises; nothing else decides about states. `queued → failed` and `waiting → failed`
do not exist: only the worker that holds a run can say that it failed. A message whose agent is busy is `waiting` where
another run would be queued; it is in the agent's mailbox (`backplane.domain.agents`).
"""

import os
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from backplane.domain.events import Event, whole_characters
from backplane.errors import TransitionNotAllowed

AGENT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of agents. They become names of folders too (`backplane.artifacts`)."""

DEFAULT_QUEUE = "default"
"""The queue of a run that names none, and of a worker that names none."""
QUEUE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of queues. They become parts of Redis keys and labels of metrics."""

AGENT_QUEUES = "agent:"
"""What the names of the agents' own queues begin with, before the agent's id: no other queue's name can."""
ALL_AGENT_QUEUES = "agent:*"
"""All of these as one, where queues are listed: there are as many as agents with a message."""

HANDLER_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of handlers."""

WAITS_FOR_EVENT = "event_required"
"""The code of the error with which a run waits for an event of its user."""
WAITS_FOR_RUN = "waits_for_run"
"""The code of the error with which a run waits that its handler has let wait for another run."""
IN_MAILBOX = "in_mailbox"
"""The code of the error with which a message waits until its agent comes to it."""

MESSAGE_CHARS = 4_000
"""Of an error's message, what is kept with a run or a step."""


class RunStatus(StrEnum):
    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.CREATED: frozenset({RunStatus.QUEUED, RunStatus.CANCELLED}),
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset(
        {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.WAITING, RunStatus.QUEUED}
    ),
    RunStatus.WAITING: frozenset({RunStatus.QUEUED, RunStatus.CANCELLED}),
    RunStatus.COMPLETED: frozenset({RunStatus.QUEUED}),
    RunStatus.FAILED: frozenset({RunStatus.QUEUED}),
    RunStatus.CANCELLED: frozenset(),
}

FINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})


def check_transition(run_id: str, old: RunStatus, new: RunStatus) -> None:
    """Raises TransitionNotAllowed, naming what would be possible instead."""
    if new not in TRANSITIONS[old]:
        possible = ", ".join(sorted(TRANSITIONS[old])) or "nothing: it is over"
        if old is RunStatus.COMPLETED:
            possible = "nothing but queued: it is over, unless a step of it is to be done again"
        raise TransitionNotAllowed(f"run {run_id} is {old} and cannot become {new}; from here it can become {possible}")


def new_run_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): sorts by time of creation, so a run's id is also its cursor in a list."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    return str(uuid.UUID(int=value))


_LOWEST_ID, _HIGHEST_ID = ("-".join(digit * count for count in (8, 4, 4, 4, 12)) for digit in "0f")


def ids_beginning_with(beginning: str) -> tuple[str, str] | None:
    """The lowest and the highest id that begins so; None where no id can. Both have the shape of an id, so that what is
    between them does not depend on how a database orders hyphens."""
    low, high = (beginning + rest[len(beginning) :] for rest in (_LOWEST_ID, _HIGHEST_ID))
    return (low, high) if _ID.fullmatch(low) else None


CODE_CHARS = 64
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NOT_IN_CODE = re.compile(r"[^\w.-]", re.ASCII)


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run or a step failed, as users see it. `retryable`: the same run may succeed later. `retry_after`: seconds
    for which the other side asks to be left alone, where it says so; it counts for the next try and is not kept."""

    code: str
    message: str
    retryable: bool = False
    step: str | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        """Tools and plug-ins word errors: what is kept of them is a word and a text that every part can store."""
        if not _CODE.fullmatch(self.code):
            object.__setattr__(self, "code", _NOT_IN_CODE.sub("_", self.code)[:CODE_CHARS] or "failed")
        if not self.message.isascii():
            object.__setattr__(self, "message", whole_characters(self.message))

    def as_dict(self) -> dict[str, Any]:
        """The error as it is stored and published."""
        return {"code": self.code, "message": self.kept_message, "retryable": self.retryable, "step": self.step}

    @property
    def kept_message(self) -> str:
        """Its begin and its end: what somebody named, at any length, may be part of it."""
        message, half = self.message, MESSAGE_CHARS // 2
        return message if len(message) <= MESSAGE_CHARS else f"{message[:half]} … {message[-half:]}"


@dataclass(frozen=True, slots=True)
class Run:
    """The row of a run. `generation` counts the claims; `attempt` the tries that its retries allow, from 1.
    `resource`: what it needs that only so many runs may use at once. `files_expired_at`: since when its files are gone,
    or going; such a run is not started or retried any more.

    `agent`: the name, among its user's, under which it keeps memory and artifacts. `origin`: what it was made from,
    {"kind": "fork" | "replay", "run_id", "step"?, "execute"?}. `restore`: {"run_id", "steps"}: before it goes on, its
    files become what those steps of that run left. `result`: {"summary", "files", "cost"}, once it is over.
    `worker_id`: the worker that took it last. `queue`: where it waits; it never changes.

    `handler`: the name of the function that carries it out, in place of a plan; `input`: what that is called with.
    `handler_code`: a digest of the code with which it began. `parent_id`: the run whose handler has started it.
    `queued_at` is in the future while its handler sleeps.

    A message to an agent (`backplane.domain.agents`) has `agent_id`, and `turn`, its number among the agent's messages
    from 1. `in_mailbox`: it waits until the agent comes to it. `expires_at`: when it is cancelled if it is not over."""

    id: str
    user_id: str
    status: RunStatus
    priority: Priority
    prompt: str
    created_at: datetime
    timeout_seconds: int
    max_retries: int
    attempt: int = 1
    generation: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    given_plan: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    error: RunError | None = None
    resource: str | None = None
    webhook_url: str | None = None
    files_expired_at: datetime | None = None
    agent: str = "default"
    model: str | None = None
    planner: str | None = None
    budget: dict[str, Any] | None = None
    mcp_servers: list[str] | None = None
    plan_version: int = 1
    origin: dict[str, Any] | None = None
    restore: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    worker_id: str | None = None
    queue: str = DEFAULT_QUEUE
    handler: str | None = None
    input: Any = None
    handler_code: str | None = None
    parent_id: str | None = None
    agent_id: str | None = None
    turn: int | None = None
    in_mailbox: bool = False
    expires_at: datetime | None = None

    @property
    def workspace_id(self) -> str:
        """Whose files it works on: all messages to an agent share the agent's."""
        return self.agent_id or self.id

    @property
    def is_of_code(self) -> bool:
        """Whether code carries it out (a handler, or the role of an agent) in place of a plan."""
        return self.handler is not None or self.agent_id is not None


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """Of a queued or running run, what the queue has to know. `queued_at`: since when it waits; later than now where
    its handler sleeps until then, which only a run that `may_sleep` does: clocks of machines differ."""

    id: str
    user_id: str
    status: RunStatus
    priority: Priority
    generation: int
    resource: str | None
    queued_at: datetime
    queue: str = DEFAULT_QUEUE
    may_sleep: bool = False


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whether a worker has a run, and in which generation."""

    status: RunStatus
    generation: int

    def is_of(self, generation: int) -> bool:
        """Whether the worker with this generation may still be at work. It is not when a newer one has claimed the
        run."""
        return self.status is RunStatus.RUNNING and self.generation <= generation


@dataclass(frozen=True, slots=True)
class Taken:
    """A run as it was when it was claimed. `last_event_id`: the last in the database. `tier`: its user's.
    `has_accounts`: whether the run, its user or the tier has an account in the ledger. `knows_secrets`: whether values
    of secrets are kept with it (`SecretStore.of_run`). `lost_worker`: the worker that had the run, where that was lost
    and is known."""

    run: Run
    last_event_id: int
    from_lost_worker: bool
    tier: str
    has_accounts: bool
    knows_secrets: bool
    lost_worker: str | None = None


class CancelRequested(Exception):
    """A run that is about to be left to the queue or to a person is to be cancelled instead."""


class RunIsOver(Exception):
    """A run for which another one is about to wait is over: the other one goes on instead."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Of the runs that were asked about: those that another worker took or that are over, and those to be cancelled."""

    superseded: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its status, None when there is no such run, and the events that say so. `user_id`: the run's
    user. `stored_id`: the database has all events up to this number, but for those that a `gap` names."""

    status: RunStatus | None
    events: tuple[Event, ...] = ()
    user_id: str = ""
    stored_id: int = 0


Changed = tuple[Run, list[Event]]
"""A run after a change, and the new events of it."""
