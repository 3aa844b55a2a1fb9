"""Jobs that a person asks for and watches: bulk actions on many runs, and exports of one.

A job is a row with its progress. What it does to each run is a row of its own (`JobItem`), written before and after, so
that a job that was cut off goes on where it was, and an action is not done a second time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import FINAL, RunStatus
from backplane.errors import InvalidInput


class BulkAction(StrEnum):
    CANCEL = "cancel"
    RETRY = "retry"
    REDRIVE = "redrive"
    REPLAY = "replay"
    REMOVE = "remove"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


ARCHIVE = "run.zip"
"""Name of an export's file in its workspace."""
NO_ARCHIVE = {"bytes": 0, "files": 0}
"""Result of an export that was not completed: an archive may lie in the store all the same, and is to be removed."""

TRIES = 3
"""So many processes in a row may be killed in the middle of the same work. The next one gives it up: a run that takes
more memory than there is would else kill one after the other, and hold up what comes after it."""
TRIED_ENOUGH = (
    f"the process that worked on it was killed in the middle {TRIES} times in a row; whoever runs the platform finds "
    "out why: too little memory, as a rule"
)

UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING)

JobKind = Literal["bulk", "export"]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that a user asks for. `idempotency`: the key that the user has sent, and a digest of the request."""

    id: str
    user_id: str
    idempotency: tuple[str, str] | None = None


class ItemStatus(StrEnum):
    PENDING = "pending"
    BEGUN = "begun"
    DONE = "done"
    REFUSED = "refused"


POSSIBLE: Mapping[BulkAction, frozenset[RunStatus]] = {
    BulkAction.CANCEL: frozenset({RunStatus.CREATED, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING}),
    BulkAction.RETRY: frozenset({RunStatus.FAILED, RunStatus.WAITING}),
    BulkAction.REDRIVE: frozenset({RunStatus.FAILED}),
    BulkAction.REPLAY: frozenset(FINAL),
    BulkAction.REMOVE: frozenset(FINAL),
}
"""The states of a run in which an action is possible."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are meant: those to which every given condition applies. Times are those of the run's creation,
    `after` included. `reason` is a dead letter's."""

    statuses: tuple[RunStatus, ...] = ()
    run_ids: tuple[str, ...] = ()
    agent: str | None = None
    reason: DeadReason | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def for_action(self, action: BulkAction) -> "RunFilter":
        """The filter, with the states in which the action is possible where none are named. Raises InvalidInput for a
        filter that names nothing, for a state in which the action is not possible, for a reason with another action
        than redrive, and for times between which there is none."""
        if self == RunFilter():
            raise InvalidInput("filter: name at least one thing, such as statuses", field="filter")
        if self.reason is not None and action is not BulkAction.REDRIVE:
            raise InvalidInput(
                "filter.reason: only dead letters have one, and only redrive is about them", field="filter.reason"
            )
        if self.created_after and self.created_before and self.created_after >= self.created_before:
            raise InvalidInput(
                "filter.created_before: it is not later than created_after, so that no run could be meant",
                field="filter.created_before",
            )
        possible = POSSIBLE[action]
        if wrong := [status for status in self.statuses if status not in possible]:
            raise InvalidInput(
                f"filter.statuses: {action} is not possible for a run that is {wrong[0]}; possible: "
                f"{', '.join(sorted(possible))}",
                field="filter.statuses",
            )
        statuses = self.statuses or tuple(sorted(possible))
        return RunFilter(statuses, self.run_ids, self.agent, self.reason, self.created_after, self.created_before)

    def as_dict(self) -> dict[str, Any]:
        """The filter as it is stored: JSON, without conditions that are not given."""
        kept = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in kept.items()}


@dataclass(frozen=True, slots=True)
class JobItem:
    """What a bulk action does to one run. `began_at` was written before it was done. `detail`: why it was refused, or
    the id of the run that a replay made."""

    position: int
    run_id: str
    user_id: str
    status: ItemStatus
    began_at: datetime | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """`user_id`: who asked. `total`, `done` and `refused` count runs; of an export, files. `generation` grows with each
    claim, so that of two who carry it out only the newer one writes. `result` is an export's: `bytes`, `files`. `tries`
    counts the claims since the last one that was given back, or got something done to a run: this one, and those whose
    process was killed."""

    id: str
    kind: JobKind
    user_id: str
    action: str
    request: dict[str, Any]
    status: JobStatus
    total: int
    done: int
    refused: int
    generation: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    error: str | None
    result: dict[str, Any] | None
    tries: int

    @property
    def is_over(self) -> bool:
        return self.status not in UNFINISHED

    @property
    def is_tried_enough(self) -> bool:
        """Of a job that was claimed: whether TRIES processes before this one were killed in the middle of it."""
        return self.tries > TRIES

    @property
    def has_archive(self) -> bool:
        """Of an export: whether there is one to be fetched now."""
        return self.status is JobStatus.COMPLETED and self.result is not None and not self.is_expired()

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether what it made is not kept any more."""
        return self.expires_at is not None and self.expires_at <= (now or datetime.now(UTC))


def was_done(item: JobItem, action: BulkAction, status: RunStatus | None, queued_at: datetime | None) -> bool:
    """Whether an action that had begun, and of whose end nothing is known, has been done: by what the run is now.

    `status` is None for a run that is not there. Cancel is safe to do twice and replay knows its own run by an
    idempotency key, so they are done again. A run that was queued after the action had begun was queued by it: doing
    that again would give a run that has failed once more a second life that nobody asked for.
    """
    if item.began_at is None:
        return False
    match action:
        case BulkAction.REMOVE:
            return status is None
        case BulkAction.RETRY | BulkAction.REDRIVE:
            return queued_at is not None and queued_at >= item.began_at
        case _:
            return False
