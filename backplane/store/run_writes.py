"""What can be written of a running run, as values.

`RunTransaction` makes them. Two executors carry them out: `store.one_statement`, which knows the few that almost every
transaction consists of, and `store.in_transaction`, which knows all. No value holds a connection, and none is made
twice: a transaction that is tried again writes the same values. Their texts are redacted already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backplane.domain.budgets import Amounts, Resource
from backplane.domain.bus import EventWait
from backplane.domain.dead_letters import DeadReason
from backplane.domain.decisions import Decision
from backplane.domain.events import Event
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import Plan
from backplane.domain.runs import Run, RunError
from backplane.domain.steps import StepRecord


class RunWrite:
    """One write. All writes of a transaction are committed together, or not at all."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class AddEvents(RunWrite):
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class SavePlan(RunWrite):
    """Changes nothing where the run has a plan: the answer of a commit may have been lost."""

    plan: Plan
    journal: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class ChangeStep(RunWrite):
    """`values`: by column."""

    step_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChangeRun(RunWrite):
    """`values`: by column."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SettleAll(RunWrite):
    """Nothing stays reserved for a run that no worker has."""


@dataclass(frozen=True, slots=True)
class NotifyWebhook(RunWrite):
    """Puts the run's state, as it is then, into the outbox for the run's webhook, if it has one, and notes it for the
    event bus."""


@dataclass(frozen=True, slots=True)
class AddStep(RunWrite):
    record: StepRecord


@dataclass(frozen=True, slots=True)
class SkipPendingSteps(RunWrite):
    pass


@dataclass(frozen=True, slots=True)
class ReopenSteps(RunWrite):
    """`failed_effect`: the effect of a handler that the attempt failed of."""

    failed_effect: str | None = None


@dataclass(frozen=True, slots=True)
class AddChildRun(RunWrite):
    """A run that a handler starts. Added again, it changes nothing."""

    run: Run
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class WakeParent(RunWrite):
    """The run is over: queues the run that waits for it, where one does."""

    parent_id: str


@dataclass(frozen=True, slots=True)
class EndTurn(RunWrite):
    """The message is over, and the agent's next one is opened. `changes`: of the agent's row, by column: its `state`,
    its `summary`."""

    agent_id: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SendMessage(RunWrite):
    """A message to the agent that `run` names, from this step of the run. Sent again, by the same step, it changes
    nothing. Refuses the whole transaction with NotFound, AgentTerminated, MailboxFull, or AskCircle."""

    step_id: str
    run: Run
    mailbox_max: int


@dataclass(frozen=True, slots=True)
class UnlessOver(RunWrite):
    """Writes nothing; raises RunIsOver, and so refuses the whole transaction, when one of these is over. It comes after
    the write that lets the run wait: whoever ends one of them afterwards sees that the run waits."""

    run_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class ReplacePlan(RunWrite):
    plan: Plan
    version: int
    reason: str
    journal: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class NoteTools(RunWrite):
    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class BeginModelCall(RunWrite):
    call: BeginningCall


@dataclass(frozen=True, slots=True)
class EndModelCall(RunWrite):
    """`was_made`: False where a record of another run gave the answer, so that nothing was spent."""

    key: CallKey
    status: CallStatus
    totals: CallTotals
    response: Mapping[str, Any] | None
    error: RunError | None
    was_made: bool = True


@dataclass(frozen=True, slots=True)
class PlanAnew(RunWrite):
    """The planner's recorded calls are not used as answers by the next attempt, where the run has no plan yet."""


@dataclass(frozen=True, slots=True)
class OpenBudget(RunWrite):
    tier: str
    limits: Mapping[Resource, int]


@dataclass(frozen=True, slots=True)
class ReserveBudget(RunWrite):
    tier: str
    reservation_id: str
    step_id: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class SettleBudget(RunWrite):
    tier: str
    reservation_id: str
    spent: Amounts


@dataclass(frozen=True, slots=True)
class ReleaseBudget(RunWrite):
    tier: str
    reservation_id: str


@dataclass(frozen=True, slots=True)
class SettleLostBudget(RunWrite):
    tier: str


@dataclass(frozen=True, slots=True)
class NoteFailure(RunWrite):
    attempt: int
    error: RunError
    traceback: str
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class AddDeadLetter(RunWrite):
    reason: DeadReason
    crashes: int


@dataclass(frozen=True, slots=True)
class Ask(RunWrite):
    decision: Decision


@dataclass(frozen=True, slots=True)
class UnlessCancelled(RunWrite):
    """Writes nothing; raises CancelRequested, and so refuses the whole transaction."""


@dataclass(frozen=True, slots=True)
class UnlessDecided(RunWrite):
    """Writes nothing; raises DecisionMade, and so refuses the whole transaction."""

    decision_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class WaitForEvent(RunWrite):
    """Raises EventArrived, and so refuses the whole transaction, where the event is there already."""

    wait: EventWait
