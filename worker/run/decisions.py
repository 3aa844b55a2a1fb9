"""What the run asks people, and what they answered.

A question is written in one transaction with the state that it leaves the step in, and published with it. An answer may
come at any moment: it is read when the run is taken, when a step ends, and at last in the transaction that would make
the run wait (`RunTransaction.unless_decided`). So nobody polls, and no answer is overlooked.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.runs import Run, RunError, new_run_id
from backplane.domain.sizes import shortened
from backplane.errors import BudgetExhausted
from backplane.process.retrying import until_available
from backplane.store import Decisions
from worker.run.events import RunEvents, Write

CODES = {
    DecisionKind.APPROVAL: "approval_required",
    DecisionKind.QUESTION: "answer_required",
    DecisionKind.BUDGET: "budget_exhausted",
}
BY_TOOL = "tool"
"""The value of `by` in a question that the step's tool asked, and not the policy."""

PUBLISHED_MAX_CHARS = 1000
"""The longest text of a question in its event; the decision keeps the whole text."""


class RunDecisions:
    """The decisions of one running run."""

    def __init__(self, events: RunEvents, decisions: Decisions, run: Run) -> None:
        self._events = events
        self._store = decisions
        self._run = run
        self._decisions: dict[str, Decision] = {}

    async def look(self) -> None:
        """Read all decisions; publish those that were made since the last look. Waits while the database is away."""
        decisions = await until_available(lambda: self._store.of_run(self._run.id))
        for decision in decisions:
            before = self._decisions.get(decision.id)
            self._decisions[decision.id] = decision
            if before and before.status is DecisionStatus.PENDING and decision.status is not DecisionStatus.PENDING:
                self._events.emit(EventType.DECISION, {**_named(decision), "answer": decision.answer})

    def get(self, decision_id: str) -> Decision:
        return self._decisions[decision_id]

    def last(self, step_id: str, kind: DecisionKind, *, by_tool: bool = False) -> Decision | None:
        """The step's newest decision of this kind, asked by its tool or by the platform. An expired approval does not
        count."""
        return self._newest(step_id, kind, by_tool=by_tool, expired=False)

    def expired_approval(self, step_id: str) -> Decision | None:
        """The step's newest approval that expired when a person retried the run."""
        return self._newest(step_id, DecisionKind.APPROVAL, by_tool=False, expired=True)

    def _newest(self, step_id: str, kind: DecisionKind, *, by_tool: bool, expired: bool) -> Decision | None:
        if not self._decisions:
            return None
        found = [
            decision
            for decision in self._decisions.values()
            if (decision.step_id, decision.kind, decision.asked.get("by") == BY_TOOL) == (step_id, kind, by_tool)
            and (decision.expired_at is not None) is expired
        ]
        return max(found, key=lambda decision: decision.id, default=None)

    def last_of_tool(self, step_id: str) -> Decision | None:
        """The newest decision of any kind that the step's tool asked for."""
        if not self._decisions:
            return None
        found = [self.last(step_id, kind, by_tool=True) for kind in DecisionKind]
        return max((decision for decision in found if decision), key=lambda decision: decision.id, default=None)

    async def ask(
        self, step_id: str, kind: DecisionKind, asked: Mapping[str, Any], *writes: Write, parent: str | None = None
    ) -> Decision:
        """Ask a person, in one transaction with these writes. `parent`: the step above. Raises Superseded."""
        decision = Decision(
            id=new_run_id(),
            run_id=self._run.id,
            user_id=self._run.user_id,
            step_id=step_id,
            kind=kind,
            # Secrets are taken out before the texts are cut for the event, perhaps in the middle of a secret.
            asked=self._events.redactor.value(dict(asked)),
            status=DecisionStatus.PENDING,
            created_at=datetime.now(UTC),
            parent=parent,
        )
        data = {**_named(decision), "asked": _shortened(_without_schema(asked))}
        await self._events.record(
            *writes, lambda transaction: transaction.ask(decision), publish=[(EventType.DECISION, data)]
        )
        self._decisions[decision.id] = decision
        return decision


def _without_schema(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The question without its schema, which is for whoever answers, and may be large."""
    return {name: value for name, value in asked.items() if name != "schema"}


def asked_for_budget(error: BudgetExhausted, round: int) -> dict[str, Any]:
    return {
        "resource": error.account.rpartition(":")[2],
        "account": error.account,
        "needed": error.needed,
        "left": error.left,
        "round": round,
        "message": error.message,
    }


def why_waiting(decisions: Sequence[Decision]) -> RunError:
    """The error of a run that waits for these decisions. There is one at least."""
    first = decisions[0]
    what = {
        DecisionKind.APPROVAL: f"step {first.step_id!r} is to be approved or rejected",
        DecisionKind.QUESTION: f"step {first.step_id!r} asks a question",
        DecisionKind.BUDGET: str(first.asked.get("message", "a budget is used up")),
    }[first.kind]
    more = f", and {len(decisions) - 1} more to decide" if len(decisions) > 1 else ""
    return RunError(
        CODES[first.kind],
        f"{what} (decision {first.id}){more}; the run goes on when it is decided",
        step=first.step_id or None,
    )


def _named(decision: Decision) -> dict[str, Any]:
    return {
        "decision": decision.id,
        "step": decision.step_id,
        "kind": decision.kind.value,
        "status": decision.status.value,
    }


def _shortened(value: Any) -> Any:
    match value:
        case str():
            return shortened(value, PUBLISHED_MAX_CHARS)
        case dict():
            return {key: _shortened(inner) for key, inner in value.items()}
        case list():
            return [_shortened(inner) for inner in value]
    return value
