"""A model makes the plan, and mends it after a failure.

What it answers is taken for what it is: text from outside. It has to be one JSON object, a valid Plan, and one that
this worker can carry out; where it is not, the model is given the validator's words and may answer again, a few times.
So a plan by a model is the same frozen value as one by a person, held to the same rules.

It never sees what a plan costs or may cost: budgets are not a matter of good will.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from backplane.domain.model_calls import FAILURES_A_VERSION, CallKey
from backplane.domain.plans import MAX_STEPS, Plan, parse_plan
from backplane.domain.runs import Run, RunError
from backplane.domain.secrets import SECRET_REFERENCE
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import InvalidPlan
from worker.llm import prompts
from worker.llm.base import Message, ModelOutputInvalid, ModelRequest
from worker.llm.untrusted_json import NotJson, find_object, storable
from worker.planner.base import Planner, Planning, Replanner

ANSWER_SHOWN_CHARS = 20_000
WORDS_CHARS = 2_000
DESCRIPTION_CHARS = 1_000
RESULTS_CHARS = 40_000
"""Of the results of all steps together, what a replanner is shown; each step has its share."""

DONE = frozenset({StepStatus.COMPLETED, StepStatus.SKIPPED})

_POINTLESS = frozenset(
    {
        "budget_exhausted",
        "cancelled",
        "rejected",
        "replay_diverged",
        "superseded",
        "run_timeout",
        "step_uncertain",
        "worker_lost",
        "internal_error",
        "part_unavailable",
        "workspace_quota_exceeded",
        "storage_quota_exceeded",
        "forbidden",
        "unauthenticated",
        "rate_limited",
        "agent_token_limit",
        "agent_cost_limit",
        "agent_time_limit",
    }
)


class ModelPlanner(Planner, Replanner):
    """`repairs`: how often an answer may be mended; `files_listed`: of the workspace; `output_tokens`: of an answer."""

    name = "model"

    def __init__(self, *, repairs: int, files_listed: int, output_tokens: int) -> None:
        self._repairs = repairs
        self._files_listed = files_listed
        self._output_tokens = output_tokens

    async def plan(self, run: Run, planning: Planning) -> Plan | None:
        """Raises InvalidPlan when no answer was a plan, ModelError, BudgetExhausted, Unavailable."""
        if planning.models is None:
            return None
        asked = [Message("system", prompts.PLANNER), Message("user", await self._task(run, planning))]

        def accept(steps: list[Any]) -> Plan:
            plan = parse_plan({"steps": steps, "planner": self.name})
            planning.check(plan)
            _check_secrets(plan, run)
            return plan

        calls = [CallKey("", "plan", 1), *(CallKey("", "repair", ordinal) for ordinal in range(1, self._repairs + 1))]
        return await self._until_accepted(asked, calls, planning, accept)

    async def replan(
        self, run: Run, plan: Plan, journal: Sequence[StepRecord], error: RunError, planning: Planning
    ) -> Plan | None:
        """Also None when the model sees no way on. `run.plan_version` is that of `plan`. Raises as `plan` does."""
        if planning.models is None or not is_worth_replanning(error):
            return None
        task = f"{await self._task(run, planning)}\n\n{_progress(plan, journal, error)}\n\n{prompts.REPLAN}"
        asked = [Message("system", prompts.PLANNER), Message("user", task)]

        def accept(steps: list[Any]) -> Plan | None:
            if not steps:
                return None
            composed = continued(plan, journal, steps, self.name)
            planning.check(composed)
            _check_secrets(composed, run)
            return composed

        calls = replan_calls(run.plan_version, journal, error, self._repairs + 1)
        return await self._until_accepted(asked, calls, planning, accept)

    async def _until_accepted(
        self,
        asked: list[Message],
        calls: Sequence[CallKey],
        planning: Planning,
        accept: Callable[[list[Any]], Plan | None],
    ) -> Plan | None:
        """Only the last answer and what was wrong with it are shown again: a conversation that grows with each answer
        would grow with what a broken model writes."""
        assert planning.models is not None
        schema = plan_schema(planning.tools.names)
        messages, wrong = asked, ""
        for call in calls:
            answer = ""
            try:
                request = ModelRequest(messages, self._output_tokens, schema=schema)
                response = await planning.models.ask(request, call)
                answer = response.text
                if response.finish == "length":
                    raise NotJson(f"it was cut off after {response.usage.output_tokens:,} tokens; make it shorter")
                steps = find_object(answer, lambda value: "steps" in value)["steps"]
                if not isinstance(steps, list):
                    raise NotJson("`steps` must be a list")
                return accept(steps)
            except NotJson as error:
                wrong = f"your answer is no plan: {error}"
            except InvalidPlan as error:
                wrong = error.message
            except ModelOutputInvalid:
                # Its message names servers and tries, which differ when the run is replayed.
                wrong = "your answer broke off, or did not fit the JSON schema"
            wrong = prompts.head_and_tail(storable(wrong), WORDS_CHARS)
            messages = [*asked, Message("assistant", _shown(answer)), Message("user", prompts.REPAIR + wrong)]
        raise InvalidPlan(
            f"the model made no plan that can be carried out, in {len(calls)} answers. The last was wrong in this: "
            f"{wrong}. Write the prompt more clearly, name a stronger model, or give a plan with the run",
            field="prompt",
        )

    async def _task(self, run: Run, planning: Planning) -> str:
        parts = [f"The task:\n\n{storable(run.prompt)}", f"The tools:\n\n{_tools(planning)}"]
        files = sorted(await planning.workspace.list(), key=lambda file: file.path)
        if files:
            listed = [f"{file.size:,} bytes  {file.path}" for file in files[: self._files_listed]]
            if len(files) > len(listed):
                listed.append(f"… and {len(files) - len(listed):,} more files")
            marked = prompts.data("\n".join(listed), source="workspace", place="files")
            parts.append(f"The files in the workspace:\n\n{marked}")
        else:
            parts.append("The workspace is empty.")
        return "\n\n".join(parts)


def plan_schema(tool_names: Iterable[str]) -> dict[str, Any]:
    """What a model has to give of a plan: small, and without the bounds (lengths, patterns) that servers turn into
    large grammars or refuse. The Plan holds the answer to those."""
    text = {"type": "string"}
    properties = {
        "id": text,
        "tool": {"type": "string", "enum": sorted(tool_names)},
        "arguments": {"type": "object"},
        "title": text,
        "needs": {"type": "array", "items": text},
        "approval": {"type": "boolean"},
    }
    step = {
        "type": "object",
        "properties": properties,
        "required": ["id", "tool", "arguments"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": step}},
        "required": ["steps"],
        "additionalProperties": False,
    }


def is_worth_replanning(error: RunError) -> bool:
    """Whether another plan may do what this one could not: not when something ran out or was refused, when the
    platform or the model is at fault, or when the same may succeed later (`retryable`)."""
    return not (error.retryable or error.code in _POINTLESS or error.code.startswith(("model_", "sandbox_")))


def replan_calls(plan_version: int, journal: Sequence[StepRecord], error: RunError, count: int) -> list[CallKey]:
    """A resumed run finds the same calls. One that its user retries asks anew: its step has failed once more."""
    failed = next((record.failed_tries for record in journal if record.step_id == error.step), 0)
    round = min(failed, FAILURES_A_VERSION - 1)
    return [CallKey("", "replan", ordinal, round, plan_version) for ordinal in range(1, count + 1)]


def continued(plan: Plan, journal: Sequence[StepRecord], new: Sequence[Any], planner: str) -> Plan:
    """The completed steps of `plan` as they are, then the new ones. Raises InvalidPlan."""
    done = {record.step_id for record in journal if record.status in DONE}
    completed = [step.model_dump(mode="json") for step in plan.steps if step.id in done]
    if len(completed) + len(new) > MAX_STEPS:
        raise InvalidPlan(
            f"plan.steps: {len(completed)} steps are done and {len(new)} are new; a plan has at most {MAX_STEPS}",
            field="plan.steps",
        )
    composed = parse_plan({"steps": [*completed, *new], "planner": planner})
    taken = {record.step_id for record in journal} | {step.id for step in plan.steps}
    again = [step.id for step in composed.steps[len(completed) :] if step.id in taken]
    if again:
        raise InvalidPlan(
            f"plan.steps: there was a step {again[0]!r} before; give new steps new ids", field="plan.steps"
        )
    return composed


def _check_secrets(plan: Plan, run: Run) -> None:
    """Only who wrote the prompt can let a secret be used: a model that has read something since cannot. Raises
    InvalidPlan."""
    named = set(SECRET_REFERENCE.findall(run.prompt))
    for index, step in enumerate(plan.steps):
        others = sorted(set(SECRET_REFERENCE.findall(json.dumps(step.arguments))) - named)
        if others:
            where = f"plan.steps.{index}.arguments"
            raise InvalidPlan(f"{where}: the prompt does not name the secret ${{secrets.{others[0]}}}", field=where)


def _tools(planning: Planning) -> str:
    lines = []
    for tool in sorted(planning.tools.schemas(), key=lambda tool: str(tool["name"])):
        described = {**tool, "description": prompts.head_and_tail(tool["description"], DESCRIPTION_CHARS)}
        lines.append(json.dumps(described, ensure_ascii=True, sort_keys=True))
    return "\n".join(lines)


def _progress(plan: Plan, journal: Sequence[StepRecord], error: RunError) -> str:
    records = {record.step_id: record for record in journal}
    share = max(200, RESULTS_CHARS // len(plan.steps))
    lines = ["Your plan so far, and what became of it:"]
    for step in plan.steps:
        record = records.get(step.id)
        wanted = step.model_dump(mode="json", exclude_defaults=True)
        lines.append(f"- {prompts.head_and_tail(json.dumps(wanted, sort_keys=True), share)}")
        lines.append(f"  status: {record.status if record else StepStatus.PENDING}")
        if record and record.result:
            result = {key: value for key, value in record.result.items() if key != "duration_ms"}
            text = prompts.head_and_tail(_result_text(result), share)
            lines.append(prompts.data(text, source=step.tool, place=f"step {step.id}"))
    failure = prompts.data(prompts.head_and_tail(error.message, WORDS_CHARS), source="error", place="error")
    lines.append(f"What failed: step {error.step or 'unknown'}, with the error {error.code}:\n{failure}")
    return "\n".join(lines)


def _result_text(result: dict[str, Any]) -> str:
    output = str(result.pop("output", ""))
    return f"{json.dumps(result, sort_keys=True)}\n{output}"


def _shown(answer: str) -> str:
    return storable(prompts.head_and_tail(answer, ANSWER_SHOWN_CHARS)).strip() or "(no answer)"
