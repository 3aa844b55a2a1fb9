"""The summary of a run that is over, for people. It is a courtesy: no run fails for want of one."""

from collections.abc import Mapping, Sequence
from typing import Any

from backplane.domain.model_calls import CallKey
from backplane.domain.plans import Plan
from backplane.domain.runs import Run
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import BudgetExhausted, ModelError
from worker.llm import prompts
from worker.llm.base import Message, ModelRequest, Models
from worker.llm.untrusted_json import storable

PROMPT_CHARS = 8_000
RESULTS_CHARS = 24_000
"""How much of the results of all steps together the model is shown; each step has its share."""

OUTPUT_TOKENS = 400
SUMMARY_CHARS = 4_000


async def summarize(run: Run, plan: Plan, journal: Sequence[StepRecord], models: Models | None) -> str | None:
    """A few sentences on the run. None: there is no model, or it gave no answer, or the budget does not allow the call.
    Raises Superseded."""
    if models is None:
        return None
    messages = (Message("system", prompts.SUMMARY), Message("user", _notes(run, plan, journal)))
    try:
        key = CallKey("", "summary", _ordinal(plan, journal))
        response = await models.ask(ModelRequest(messages, OUTPUT_TOKENS), key)
    except (ModelError, BudgetExhausted):
        return None
    text = storable(response.text).strip()
    return prompts.head_and_tail(text, SUMMARY_CHARS) or None


def _ordinal(plan: Plan, journal: Sequence[StepRecord]) -> int:
    """The ordinal of the model call. It is 1 for a run that is completed, which happens once. A run that failed may be
    retried, and is then summed up anew: its steps have been tried more often by then."""
    done = {record.step_id for record in journal if record.status in (StepStatus.COMPLETED, StepStatus.SKIPPED)}
    return 1 if done.issuperset(step.id for step in plan.steps) else 2 + sum(record.tries for record in journal)


def _notes(run: Run, plan: Plan, journal: Sequence[StepRecord]) -> str:
    records = {record.step_id: record for record in journal}
    share = max(100, RESULTS_CHARS // len(plan.steps))
    lines = [f"What was asked:\n\n{prompts.head_and_tail(storable(run.prompt), PROMPT_CHARS)}\n\nWhat was done:\n"]
    for step in plan.ordered():
        record = records.get(step.id)
        result = (record.result if record else None) or {}
        status = record.status if record else StepStatus.PENDING
        # A plan may be a model's: what its steps are called is data as well.
        notes = [
            step.title,
            *(f"changed {path}" for path in result.get("files_changed", [])),
            *_left_out(result),
            result.get("output", ""),
        ]
        error = result.get("error")
        if error:
            notes.append(f"error {error.get('code')}: {error.get('message')}")
        text = prompts.head_and_tail("\n".join(part for part in notes if part), share)
        lines.append(f"- step {step.id} ({step.tool}): {status}")
        if text:
            lines.append(prompts.data(text, source=step.tool, place=f"step {step.id}"))
    return "\n".join(lines)


def _left_out(result: Mapping[str, Any]) -> list[str]:
    return [f"changed {result['files_left_out']:,} more files"] if result.get("files_left_out") else []
