"""How a step, or a run, stops without being completed."""

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
    """A step may have happened, or has happened, and repeating it may not be safe. `trace`: the traceback, for the
    operator."""

    def __init__(self, error: RunError, trace: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.trace = trace


class ToolFault(Exception):
    """A tool raised an error that no tool may raise, and has done nothing that could not be repeated. `error` says
    whose fault it is; `trace` is the traceback, for the operator."""

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
    """No step of the run can go on before one of these is decided. There is one at least."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__(", ".join(decision.id for decision in decisions))
        self.decisions = decisions


class Rejected(Refused):
    """A person refused. The step fails, and is not tried again by itself."""

    code = "rejected"


def unless_open(decision: Decision, record: StepRecord) -> None:
    """Raises Suspended while the decision is open, and Rejected when a person has refused since the step last
    failed."""
    if decision.status is DecisionStatus.PENDING:
        raise Suspended(decision)
    if decision.status is DecisionStatus.REJECTED and decision.asked.get("round", 0) == record.failed_tries:
        reason = (decision.answer or {}).get("reason")
        raise Rejected(f"a person rejected step {record.step_id!r}" + (f": {reason}" if reason else ""))
