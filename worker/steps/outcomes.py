"""How a step, or a run, ends or stops otherwise than well."""

from collections.abc import Sequence

from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord
from backplane.errors import Refused


class StepFailed(Exception):
    """A step failed for good; the run cannot go on as planned."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class StepUncertain(Exception):
    """A step may have happened, or has, and repeating it may not be safe. `trace`: of what it raised, for the
    operator."""

    def __init__(self, error: RunError, trace: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.trace = trace


class ToolFault(Exception):
    """A tool raised what no tool may, and has done nothing that could not be repeated. `error` says whose fault it is;
    `trace` is of what it raised, for the operator."""

    def __init__(self, error: RunError, trace: str) -> None:
        super().__init__(error.message)
        self.error = error
        self.trace = trace


class Suspended(Exception):
    """The step, and all above it, can go on only when a person has decided this."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.id)
        self.decision = decision


class RunWaits(Exception):
    """Nothing of the run can go on before one of these is decided, of which there is one at least."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__(", ".join(decision.id for decision in decisions))
        self.decisions = decisions


class Rejected(Refused):
    """By a person. The step fails, and is not tried again by itself."""

    code = "rejected"


def unless_open(decision: Decision, record: StepRecord) -> None:
    """Raises Suspended while it is not decided, Rejected when it was refused since the step last failed."""
    if decision.status is DecisionStatus.PENDING:
        raise Suspended(decision)
    if decision.status is DecisionStatus.REJECTED and decision.asked.get("round", 0) == record.failed_tries:
        reason = (decision.answer or {}).get("reason")
        raise Rejected(f"a person rejected step {record.step_id!r}" + (f": {reason}" if reason else ""))
