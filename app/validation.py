"""What would become of a run before it is one: who would make its plan, of which steps, and all that is wrong.

The answer is a forecast: the worker that takes the run decides who makes the plan, by what it has then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from app.errors import fault_view
from app.known_tools import KnownTools, ToolSets
from app.schemas.execute import NewRun, PlannerName
from app.schemas.problems import FaultView
from app.submission import Submission
from backplane.domain.plans import MAX_STEPS
from backplane.domain.runbook import Block, blocks_of, has_fence, note_on_planner
from backplane.domain.users import User
from backplane.domain.validation_messages import HINTS, sentence_of
from backplane.errors import FAULTS_SHOWN, Conflict, Fault, InvalidInput, InvalidPlan, NotFound, dotted
from backplane.input.parsing import Parser

GIVEN = "given"


class PlannedStep(BaseModel):
    id: str
    tool: str
    title: str = ""
    needs: list[str] | None = Field(None, description="As the plan has it; null: all that are written before it.")
    path: str | None = Field(None, description="The file that it reads or writes, where its arguments name one.")
    line: int | None = Field(None, description="Of a runbook: where its block begins, from 1.")


class Validation(BaseModel):
    """What is wrong with a run that was not made."""

    valid: bool
    errors: list[FaultView] = Field(description="All that is wrong, at most 100.")
    planner: str | None = Field(
        description="Who would make the plan: given, runbook or model; null: nobody can, or it is not known yet.",
        examples=["runbook"],
    )
    planner_note: str | None = Field(None, description="Where there is a choice: how to choose the other planner.")
    steps: list[PlannedStep] = Field(description="Of a plan that was given, and of a runbook. None of a model's.")
    tools_checked: bool = Field(
        description="False while no worker is alive, or one has not published its tools: then no tool and no argument "
        "was looked at."
    )


@dataclass(frozen=True, slots=True)
class Forecast:
    """`planner` is None where nobody can make a plan, or where no worker is alive to ask."""

    planner: str | None
    note: str | None = None
    blocks: Sequence[Block] = ()


class Validator:
    def __init__(self, submission: Submission, known_tools: KnownTools) -> None:
        self._submission = submission
        self._known_tools = known_tools
        self._parser = Parser()

    async def forecast(self, user: User, new: NewRun) -> Forecast:
        """The forecast of a run that was made. A prompt is read only where both planners may take it."""
        if new.plan is not None or new.deployment is not None:
            return Forecast(GIVEN)
        if new.handler is not None:
            return Forecast(None)
        known = await self._known_tools.known()
        if new.planner is None and has_fence(new.prompt) and _has_model(new, known):
            try:
                return await self._of_prompt(user, new, known)
            except InvalidInput:
                return Forecast(PlannerName.RUNBOOK)
        return Forecast(_planner_without_reading(new, known))

    async def validate(self, user: User, given: Mapping[str, Any]) -> Validation:
        """What is wrong with the fields of `create`, and the forecast; `prompt` may be left out where there is a
        plan."""
        given = {"prompt": "-", **given} if given.get("plan") is not None else dict(given)
        faults: list[Fault] = []
        new: NewRun | None = None
        try:
            new = NewRun.model_validate(given)
        except ValidationError as error:
            faults += _faults_of_fields(error)
        if new is not None:
            faults += [*self._submission.faults(new), *await self._submission.queue_faults(new)]
        known = await self._known_tools.known(at_most_seconds_old=0)
        steps: list[PlannedStep] = []
        forecast = Forecast(None)
        plan = given.get("plan")
        if new is not None and new.deployment is not None and not faults:
            try:
                plan = await self._submission.plan_of_deployment(user, new)
            except (NotFound, Conflict) as error:
                faults.append(Fault("deployment", f"deployment: {error.message}"))
        if isinstance(plan, dict):
            forecast = Forecast(GIVEN)
            if not any((fault.field or "").partition(".")[0] == "plan" for fault in faults):
                steps = _steps_of(plan)
                faults += await self._faults_of_plan(plan, given.get("mcp_servers"))
        elif new is not None and new.handler is not None and not faults:
            try:
                await self._known_tools.check_handler(new.handler, new.input)
            except InvalidInput as error:
                faults += error.faults
        elif new is not None and new.deployment is None and not faults:
            try:
                forecast = await self._of_prompt(user, new, known)
                steps = [PlannedStep(**_shown(block.step), line=block.line) for block in forecast.blocks]
                faults += await self._faults_of_blocks(forecast.blocks, new.mcp_servers)
                faults += _faults_of_planner(forecast, new, known)
            except InvalidInput as error:
                faults += error.faults
        return Validation(
            valid=not faults,
            errors=[fault_view(fault) for fault in faults[:FAULTS_SHOWN]],
            planner=forecast.planner,
            planner_note=forecast.note,
            steps=steps,
            tools_checked=known.is_whole,
        )

    async def _of_prompt(self, user: User, new: NewRun, known: ToolSets) -> Forecast:
        """Raises InvalidInput for a runbook that is wrong."""
        if new.planner is PlannerName.MODEL:
            return Forecast(new.planner)
        has_choice = _has_model(new, known) and new.planner is None
        blocks = await self._parser.call(
            user.id, "the prompt", len(new.prompt), blocks_of, new.prompt, only_if_nothing_else=has_choice
        )
        planner = None
        if blocks or new.planner:
            planner = PlannerName.RUNBOOK
        elif _has_model(new, known):
            planner = PlannerName.MODEL
        note = note_on_planner(planner, new.prompt) if has_choice and planner else ""
        return Forecast(planner, note or None, blocks)

    async def _faults_of_plan(self, plan: Mapping[str, Any], mcp_servers: Any) -> Sequence[Fault]:
        servers = [name for name in mcp_servers if isinstance(name, str)] if isinstance(mcp_servers, list) else []
        try:
            await self._known_tools.parse(plan, servers)
        except InvalidPlan as error:
            return error.faults
        return ()

    async def _faults_of_blocks(self, blocks: Sequence[Block], mcp_servers: Sequence[str] | None) -> Iterator[Fault]:
        if len(blocks) > MAX_STEPS:
            message = f"the runbook has {len(blocks)} steps; a plan has at most {MAX_STEPS}"
            return iter([Fault("prompt", message, blocks[MAX_STEPS].line)])
        if not blocks:
            return iter(())
        found = await self._faults_of_plan({"steps": [block.step for block in blocks]}, list(mcp_servers or ()))
        return (replace(fault, line=_line_of(fault, blocks)) for fault in found)


def _has_model(new: NewRun, known: ToolSets) -> bool:
    return known.has_model or new.model is not None


def _planner_without_reading(new: NewRun, known: ToolSets) -> PlannerName | None:
    """By what is known besides the prompt's own words: without a model only a runbook is possible, without a block only
    a model."""
    if new.planner is not None:
        return new.planner
    if not has_fence(new.prompt):
        return PlannerName.MODEL if _has_model(new, known) else None
    return None if _has_model(new, known) or not known.sets else PlannerName.RUNBOOK


def _faults_of_planner(forecast: Forecast, new: NewRun, known: ToolSets) -> Iterator[Fault]:
    if forecast.planner == PlannerName.RUNBOOK and not forecast.blocks:
        yield Fault("prompt", "prompt: it has no block that is a step (```sh, ```python, or ```notes/a.txt)")
    if forecast.planner == PlannerName.MODEL and known.sets and not _has_model(new, known):
        yield Fault("planner", "planner: no live worker has a model (MODEL, OLLAMA_HOST)")
    if forecast.planner is None and known.sets:
        yield Fault(
            "prompt",
            "prompt: no planner understands it: set a model (MODEL, OLLAMA_HOST), give a plan, or write a runbook "
            "(Markdown whose fenced blocks are the steps)",
        )


def _faults_of_fields(error: ValidationError) -> Iterator[Fault]:
    shown = error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_SHOWN]
    for number, found in enumerate(shown):
        field = dotted(str(found["loc"][0]), found["loc"][1:]) if found["loc"] else "body"
        yield Fault(field, f"{field}: {sentence_of(found, NewRun, with_hint=number < HINTS)}")


def _steps_of(plan: Mapping[str, Any]) -> list[PlannedStep]:
    """The steps of a plan that can be shown, though the plan may be wrong."""
    steps = plan.get("steps")
    found = [_shown(step) for step in steps[:MAX_STEPS] if isinstance(step, dict)] if isinstance(steps, list) else []
    return [PlannedStep(**step) for step in found if step["id"] and step["tool"]]


def _shown(step: Mapping[str, Any]) -> dict[str, Any]:
    texts: dict[str, Any] = {
        name: value if isinstance(value := step.get(name), str) else "" for name in ("id", "tool", "title")
    }
    needs = step.get("needs")
    arguments = step.get("arguments")
    path = arguments.get("path") if isinstance(arguments, dict) else None
    texts["path"] = path if isinstance(path, str) else None
    return {**texts, "needs": list(map(str, needs)) if isinstance(needs, list) else None}


def _line_of(fault: Fault, blocks: Sequence[Block]) -> int | None:
    parts = (fault.field or "").split(".")
    return blocks[int(parts[2])].line if len(parts) > 2 and parts[2].isdigit() else None
