"""What a worker writes about a running run, in one transaction.

Each method notes what happened as values (`store.run_writes`); nothing is written before `RunningRuns.commit` gets
them. So a transaction that is tried again writes the same, at the same times.

Texts of a run are redacted here, on their way into the database: results, errors, questions, records of model calls,
titles. The plan is not redacted, because it is what is carried out (a model's was redacted when it was answered, a
person's is theirs), and neither are the paths in `steps.files` and `steps.attributes` (with the targets of links), by
which files are found again and which nobody is shown. Events are redacted before they are numbered
(`worker.run.events`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, overload

from backplane.domain.budgets import Amounts, Resource
from backplane.domain.bus import EventWait
from backplane.domain.dead_letters import DeadReason
from backplane.domain.decisions import Decision
from backplane.domain.events import Event
from backplane.domain.model_calls import BeginningCall, CallKey, CallStatus, CallTotals
from backplane.domain.plans import Plan
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.secrets import Redact
from backplane.domain.steps import StepRecord, StepStatus
from backplane.store import run_writes
from backplane.store.run_writes import RunWrite

Value = TypeVar("Value")


def unchanged(value: Value, /) -> Value:
    """The `Redact` of a run without secrets."""
    return value


class RunTransaction:
    """The writes of one transaction, in their order. `redact`: takes the run's secrets out of a JSON value."""

    def __init__(self, redact: Redact = unchanged) -> None:
        self._redact = redact
        self.writes: list[RunWrite] = []

    def add_events(self, events: Iterable[Event]) -> None:
        self.writes.append(run_writes.AddEvents(tuple(events)))

    def save_plan(self, plan: Plan, journal: Iterable[StepRecord]) -> None:
        """Save the plan and its first journal. Saved again, after a commit whose answer was lost, it changes
        nothing."""
        self.writes.append(run_writes.SavePlan(plan, self._redacted_records(journal)))

    def begin_step(self, step_id: str, tries: int) -> None:
        self._step(step_id, status=StepStatus.STARTED.value, tries=tries, started_at=datetime.now(UTC))

    def step_is_changing(self, step_id: str) -> None:
        self._step(step_id, status=StepStatus.CHANGING.value)

    def end_step(
        self,
        step_id: str,
        status: StepStatus,
        result: Mapping[str, Any] | None = None,
        files: Mapping[str, str | None] | None = None,
        failed_tries: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """`files`, `attributes`: what changed in the workspace since the step before it ended (`StepRecord`)."""
        values: dict[str, Any] = {} if files is None else {"files": dict(files)}
        if attributes is not None:
            values["attributes"] = dict(attributes)
        if failed_tries is not None:
            values["failed_tries"] = failed_tries
        result = self._redact(result)
        self._step(step_id, status=status.value, result=result, finished_at=datetime.now(UTC), **values)

    def note_step(self, step_id: str, result: Mapping[str, Any]) -> None:
        """Keep what a step that is not over has to know when it goes on."""
        self._step(step_id, result=self._redact(result))

    def suspend_step(self, step_id: str) -> None:
        """Let the step wait: it is called again when a person has decided; nothing of it is in doubt."""
        self._step(step_id, status=StepStatus.PENDING.value)

    def add_step(self, record: StepRecord) -> None:
        """Add a sub-step, which is in no plan. Added again, it changes nothing."""
        self.writes.append(run_writes.AddStep(self._redacted_record(record)))

    def begin_model_call(self, call: BeginningCall) -> None:
        self.writes.append(run_writes.BeginModelCall(replace(call, request=self._redact(call.request))))

    def end_model_call(
        self,
        key: CallKey,
        status: CallStatus,
        totals: CallTotals,
        *,
        response: Mapping[str, Any] | None = None,
        error: RunError | None = None,
        was_made: bool = True,
    ) -> None:
        """A call that stays `started` is tried again. `was_made`: False where a record of another run gave the answer:
        what it took then is no usage of a model."""
        self.writes.append(
            run_writes.EndModelCall(key, status, totals, self._redact(response), self._redacted_error(error), was_made)
        )

    def open_budget(self, tier: str, limits: Mapping[Resource, int]) -> None:
        """Give the run accounts of its own. It is done once, however often the run is claimed. `tier`, here and below:
        its user's."""
        self.writes.append(run_writes.OpenBudget(tier, limits))

    def reserve_budget(self, tier: str, reservation_id: str, step_id: str, amounts: Amounts) -> None:
        """The commit raises BudgetExhausted where an account cannot pay. While a reservation of this id is open, it
        changes nothing."""
        self.writes.append(run_writes.ReserveBudget(tier, reservation_id, step_id, amounts))

    def settle_budget(self, tier: str, reservation_id: str, spent: Amounts) -> None:
        """Changes nothing when there is no such reservation (any more); so does a release."""
        self.writes.append(run_writes.SettleBudget(tier, reservation_id, spent))

    def release_budget(self, tier: str, reservation_id: str) -> None:
        self.writes.append(run_writes.ReleaseBudget(tier, reservation_id))

    def settle_lost_budget(self, tier: str) -> None:
        """What older generations left reserved: tokens and dollars count as spent, steps and seconds go back."""
        self.writes.append(run_writes.SettleLostBudget(tier))

    def note_tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Keep the tools of MCP servers that the run is offered, in place of those noted before."""
        self.writes.append(run_writes.NoteTools(tuple(tools)))

    def replace_plan(self, plan: Plan, version: int, reason: str, journal: Iterable[StepRecord]) -> None:
        """Go on with another plan, the run's `version`th, and keep the one before. `journal`: the steps that are new in
        it. Steps that are not in it and were not begun are skipped; what they asked a person is rejected. Done again,
        it changes nothing."""
        self.writes.append(run_writes.ReplacePlan(plan, version, self._redact(reason), self._redacted_records(journal)))

    def skip_pending_steps(self) -> None:
        self.writes.append(run_writes.SkipPendingSteps())

    def reopen_steps(self, failed_effect: str | None = None) -> None:
        """Prepare another attempt: steps that failed or were skipped are to be done again, but for those that only a
        person may have done again (FINAL_FAILURE). A step that was interrupted stays as it is, and the supervisor
        decides whether it may be repeated. `failed_effect`: of a handler's run, the effect that it failed of."""
        self.writes.append(run_writes.ReopenSteps(failed_effect))

    def begin_with_code(self, digest: str) -> None:
        """Keep with which code its handler began."""
        self._run(handler_code=digest)

    def add_child_run(self, run: Run, events: Iterable[Event]) -> None:
        """Make a run, queued, that the handler starts. Made again, by its id, it changes nothing."""
        self.writes.append(run_writes.AddChildRun(run, tuple(events)))

    def note_failure(self, attempt: int, error: RunError, traceback: str = "", worker_id: str | None = None) -> None:
        """Keep the failure of this attempt. Written again, it replaces what was written."""
        error, trace = self._redacted_error(error), self._redact(traceback)
        self.writes.append(run_writes.NoteFailure(attempt, error, trace, worker_id))

    def dead_letter(self, reason: DeadReason, crashes: int = 0) -> None:
        """Leave the run to an operator; `finish` is still to be called. `crashes`: workers that were lost with it."""
        self.writes.append(run_writes.AddDeadLetter(reason, crashes))

    def ask(self, decision: Decision) -> None:
        """Write down what a person is asked. Asked again, by its id, it changes nothing."""
        self.writes.append(run_writes.Ask(replace(decision, asked=self._redact(decision.asked))))

    def unless_cancelled(self) -> None:
        """The commit raises CancelRequested when the user has asked for the end of the run; nothing is written then."""
        self.writes.append(run_writes.UnlessCancelled())

    def unless_decided(self, decision_ids: Iterable[str]) -> None:
        """The commit raises DecisionMade when one of these is not pending any more; nothing is written then. The worker
        publishes its event, as the answer came while the run was running."""
        if awaited := frozenset(decision_ids):
            self.writes.append(run_writes.UnlessDecided(awaited))

    def restored(self) -> None:
        """The files are what `Run.restore` asked for."""
        self._run(restore=None)

    def finish(
        self,
        status: RunStatus,
        error: RunError | None,
        result: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
    ) -> None:
        self._run(
            status=status.value,
            finished_at=datetime.now(UTC),
            error=self._kept_error(error),
            result=self._redact(dict(result)) if result is not None else None,
        )
        self.writes += [run_writes.SettleAll(), run_writes.NotifyWebhook()]
        if parent_id is not None:
            self.writes.append(run_writes.WakeParent(parent_id))

    def end_turn(
        self, agent_id: str, *, state: Mapping[str, Any] | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        """Besides `finish`, of a run that is a message: the agent's next one is opened. `state` and `summary` replace
        the agent's; None: they stay. The caller pushes what was opened (`run_actions.push_open_message`)."""
        given = {"state": state, "summary": summary}
        changes = {name: self._redact(dict(value)) for name, value in given.items() if value is not None}
        self.writes.append(run_writes.EndTurn(agent_id, changes))

    def send_message(self, step_id: str, run: Run, *, mailbox_max: int) -> None:
        """Send a message to the agent that `run.agent_id` names, from this step. Sent again, it changes nothing: what
        was sent is `AgentMessages.sent`. With `run.parent_id` this run is woken when the message is over. The
        commit raises NotFound, AgentTerminated, MailboxFull or AskCircle, and writes nothing then. The caller pushes
        the message (`run_actions.push_open_message`)."""
        message = replace(run, prompt=self._redact(run.prompt), input=self._redact(run.input))
        self.writes.append(run_writes.SendMessage(step_id, message, mailbox_max))

    def wait_for_runs(self, error: RunError, run_ids: Iterable[str]) -> None:
        """Let the run wait until one of these is over. The commit raises RunIsOver when one of them is already."""
        self._run(status=RunStatus.WAITING.value, error=self._kept_error(error))
        self.writes += [run_writes.UnlessOver(frozenset(run_ids)), run_writes.SettleAll()]

    def sleep_until(self, due: datetime) -> None:
        """Let the run wait in the queue until then. Its attempt's clock begins anew: sleeping takes no time of it."""
        self._run(status=RunStatus.QUEUED.value, queued_at=due, started_at=None, error=None)
        self.writes.append(run_writes.SettleAll())

    def wait_for_person(self, error: RunError, decision_ids: Iterable[str] = ()) -> None:
        """The commit raises DecisionMade when one of these decisions, which the run would wait for, is made already."""
        self.unless_decided(decision_ids)
        self._run(status=RunStatus.WAITING.value, error=self._kept_error(error))
        self.writes += [run_writes.SettleAll(), run_writes.NotifyWebhook()]

    def wait_for_event(self, wait: EventWait, error: RunError) -> None:
        """Stop until the event comes, or its time is up (`store.bus.waits`). The commit raises EventArrived when it
        is there already; nothing is written then."""
        self.writes.append(run_writes.WaitForEvent(wait))
        self._run(status=RunStatus.WAITING.value, error=self._kept_error(error))
        self.writes.append(run_writes.SettleAll())

    def queue_again(self, *, attempt: int | None, error: RunError | None) -> None:
        """Give the run back: for its next attempt, whose clock begins anew, or (None) in the middle of this one."""
        values: dict[str, Any] = {"status": RunStatus.QUEUED.value, "error": self._kept_error(error)}
        if attempt is not None:
            values |= {"attempt": attempt, "started_at": None}
            self.writes.append(run_writes.PlanAnew())
        self._run(queued_at=datetime.now(UTC), **values)
        self.writes.append(run_writes.SettleAll())

    def _redacted_records(self, records: Iterable[StepRecord]) -> tuple[StepRecord, ...]:
        return tuple([self._redacted_record(record) for record in records])

    def _redacted_record(self, record: StepRecord) -> StepRecord:
        if self._redact is unchanged:
            return record
        return replace(record, title=self._redact(record.title), result=self._redact(record.result))

    @overload
    def _redacted_error(self, error: RunError) -> RunError: ...
    @overload
    def _redacted_error(self, error: RunError | None) -> RunError | None: ...
    def _redacted_error(self, error: RunError | None) -> RunError | None:
        return replace(error, message=self._redact(error.message)) if error else None

    def _kept_error(self, error: RunError | None) -> dict[str, Any] | None:
        return self._redacted_error(error).as_dict() if error else None

    def _run(self, **values: Any) -> None:
        self.writes.append(run_writes.ChangeRun(values))

    def _step(self, step_id: str, **values: Any) -> None:
        self.writes.append(run_writes.ChangeStep(step_id, values))
