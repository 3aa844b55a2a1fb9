"""Sub-steps: the tool calls of an agent's step, each written to the journal and carried out as any other step.

Their ids come from the step above. So a step that is called again, because its worker was lost or because it waited for
a person, finds the sub-steps that it has done and does not repeat them. A sub-step that was not finished is repeated,
asked about or waited for by the same rules as a step of the plan.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from backplane.domain.plans import Step, SubStep
from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import PlatformError
from worker.run.interruption import Interruption
from worker.steps.outcomes import StepFailed
from worker.tools.base import StepReport, SubSteps

PERSON_CONFIRMED = "(cut off; a person looked, and said that it was done)"


class StepExecutor(Protocol):
    """Carries steps out (`worker.steps.runner`). `records`: the journal as it is, by step."""

    interruption: Interruption
    records: dict[str, StepRecord]

    async def run(self, step: Step) -> None: ...

    def add(self, record: StepRecord) -> None: ...


class StepChanged(PlatformError):
    """A model was asked anew, because its request has changed with the worker's version, and now wants another call in
    the place of one that was done. The other call has no result."""

    code = "step_changed"
    retryable = True


class RunSubSteps(SubSteps):
    """The sub-steps of one try of a step. `halt` is called with the error that ends or suspends that step too, whatever
    its tool makes of it."""

    def __init__(self, runner: StepExecutor, above: Step, halt: Callable[[Exception], None]) -> None:
        self._runner = runner
        self._above = above
        self._halt = halt

    async def run(self, step: SubStep) -> StepReport:
        if step.parent != self._above.id:
            raise ValueError(f"{step.id!r} is no step below {self._above.id!r}")
        try:
            self._runner.interruption.check()
            await self._carry_out(step)
            # The sub-step's end is written. What the tool does next is another piece of work, which may not begin any
            # more.
            self._runner.interruption.check()
        except Exception as error:
            self._halt(error)
            raise
        return report_of(self._runner.records[step.id])

    async def _carry_out(self, step: SubStep) -> None:
        records = self._runner.records
        known = records.get(step.id)
        if known is not None and (known.tool, known.title) != (step.tool, step.title):
            raise StepChanged(
                f"step {step.id!r} was another one ({known.tool} {known.title!r}) before another worker took the run; "
                "the step above begins anew when it is tried again"
            )
        if known is None:
            position = 1 + max(record.position for record in records.values())
            record = StepRecord(step.id, position, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
            self._runner.add(replace(record, parent=step.parent, round=step.round))
        if records[step.id].status not in (StepStatus.COMPLETED, StepStatus.FAILED):
            try:
                await self._runner.run(step)
            except StepFailed:
                return


class NoSubSteps(SubSteps):
    """Stands where there is no step that could have sub-steps."""

    async def run(self, step: SubStep) -> StepReport:
        raise ValueError(f"{step.id!r}: no step is carried out here")


def report_of(record: StepRecord) -> StepReport:
    """The report of a step that has ended."""
    result = record.result or {}
    error = result.get("error")
    if record.status is StepStatus.COMPLETED:
        return StepReport(
            True,
            str(result.get("output", PERSON_CONFIRMED)),
            tuple(result.get("files_changed", ())),
            seconds=result.get("duration_ms", 0) / 1000,
            files_left_out=result.get("files_left_out", 0),
        )
    return StepReport(
        False,
        str(result.get("output", "")),
        tuple(result.get("files_changed", ())),
        RunError(**error) if error else None,
        result.get("duration_ms", 0) / 1000,
        result.get("files_left_out", 0),
    )
