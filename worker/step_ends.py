"""How a step, or a run, ends or stops otherwise than well."""

from collections.abc import Sequence

from backplane.decisions import Decision
from backplane.runs import RunError


class StepFailed(Exception):
    """A step failed for good; the run cannot go on as planned."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class StepUncertain(Exception):
    """It is not known whether a step happened, and repeating it may not be safe."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


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
