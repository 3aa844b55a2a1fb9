"""A plan: frozen steps, each a tool and its arguments.

Everybody who makes a plan (a person, the runbook planner, a model) makes this one, and it is validated here, once.
Whether a tool exists and takes these arguments is not known here: the worker that has the tools checks that before the
first step.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from backplane.domain.validation_messages import HINTS, near, sentence_of
from backplane.errors import FAULTS_SHOWN, Fault, InvalidPlan, dotted

MAX_STEPS = 200

MAX_REFERENCES = 10_000
"""The most references of one plan. Each of them is read several times."""
MAX_NAMES = 100
"""The most names in an object whose fields are known. Each unknown name is an error of its own, which takes time to
describe."""

REFERENCE_BEGINS = "${steps."
REFERENCE = re.compile(r"(?<!\$)\$\{steps\.([A-Za-z0-9][A-Za-z0-9_.-]*)\.(output|exit_code|files)\}")
"""In a string of a step's arguments: what another step gave. `$${steps…` stays as it is, without its first `$`."""

StepId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class _Frozen(BaseModel):
    # One JSON schema, of what is taken: what is given back is the same.
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_mode_override="validation")


class StepRetry(_Frozen):
    """How often a step that failed is tried within the run, and how long the first pause is; pauses double."""

    max_attempts: int = Field(1, ge=1, le=20, description="Tries in all, the first one included.")
    backoff_seconds: float = Field(1.0, ge=0, le=300, description="Seconds before the second try; doubles each time.")


class StepLimits(_Frozen):
    """What a step's command may use in its sandbox, where the server's own limits do not do."""

    memory_bytes: int | None = Field(None, ge=16 * 1024**2, description="Memory; the server's when left out.")
    cpus: float | None = Field(
        None, gt=0, le=1024, description="Processors, in a container or Job; the server's when left out."
    )


class Step(_Frozen):
    id: StepId = Field(description="Unique in the plan.", examples=["write-input"])
    tool: str = Field(min_length=1, max_length=64, description="Name of a tool.", examples=["shell"])
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="What the tool takes.", examples=[{"script": "wc -l input.txt"}]
    )
    title: str = Field("", max_length=200, description="What a person reads.")
    needs: tuple[StepId, ...] | None = Field(
        None,
        max_length=MAX_STEPS,
        description="Steps that must have been completed before; all that are written before it when left out. "
        "Steps that do not need each other are carried out at the same time.",
    )
    timeout_seconds: int | None = Field(
        None, ge=1, le=86_400, description="Limit of each try; the server's when left out."
    )
    limits: StepLimits = Field(StepLimits(), description="Memory and processors of its command.")
    retry: StepRetry = Field(StepRetry(), description="How often it is tried.")
    approval: bool = Field(False, description="Ask a person before it is carried out.")
    repeatable: bool = Field(
        False,
        description="Safe to carry out again when a crash left it unknown whether it happened. "
        "Where it is not, such a run waits for a person.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields that are not set, so that an older release reads the plan too, as long as it uses no new
        field."""
        fields: dict[str, Any] = serialize(self)
        left_out = {"needs": self.needs is None, "approval": not self.approval}
        return {name: value for name, value in fields.items() if not left_out.get(name)}

    def requires(self) -> frozenset[str]:
        """The ids of the steps that it names: those that it needs, and those whose results its arguments refer to."""
        return frozenset(self.needs or ()).union(
            match.group(1)
            for text in _strings(self.arguments)
            if REFERENCE_BEGINS in text  # To look for this alone takes a fiftieth of the time.
            for match in REFERENCE.finditer(text)
        )


SUB_STEP_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}$"


class SubStep(Step):
    """A step that another one, its `parent`, has carried out below itself: the `ordinal`th of a turn, in the parent's
    try after `round` failed ones. No plan holds one, and nothing in it is a reference. Its id is composed of these
    fields and never taken apart."""

    id: str = Field("", pattern=SUB_STEP_ID)
    parent: StepId
    round: int = Field(ge=0)
    turn: int = Field(ge=1)
    ordinal: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _with_id(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        place = "{}/{}.{}.{}".format(*(values.get(name) for name in ("parent", "round", "turn", "ordinal")))
        return {**values, "id": place}


class EffectStep(Step):
    """A step that a handler asks for. No plan holds one, and nothing in it is a reference."""


class Plan(_Frozen):
    steps: Annotated[tuple[Step, ...], FailFast()] = Field(
        min_length=1, max_length=MAX_STEPS, description="What is done, each with a tool."
    )
    planner: str = Field("given", max_length=64, description="Who made it.")

    @model_validator(mode="after")
    def _steps_form_an_order(self) -> Self:
        steps = [(str(number), step.id, step.requires()) for number, step in enumerate(self.steps)]
        for fault in _of_order(steps, "steps"):
            raise ValueError(fault.message)
        return self

    def requirements(self) -> dict[str, frozenset[str]]:
        """For each step, those that must be completed before it: the steps that it names, or, where it has no `needs`,
        all that come before it in the order."""
        before: set[str] = set()
        requirements = {}
        for step in self.ordered():
            requirements[step.id] = step.requires() | before if step.needs is None else step.requires()
            before.add(step.id)
        return requirements

    def ordered(self) -> list[Step]:
        """The steps in an order in which they can be carried out: as written, each after those it requires."""
        requires = {step.id: step.requires() for step in self.steps}
        pending, done, order = list(self.steps), set[str](), list[Step]()
        while pending:
            step = next(step for step in pending if done.issuperset(requires[step.id]))
            pending.remove(step)
            done.add(step.id)
            order.append(step)
        return order


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys left out."""
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text:
                yield text
            case dict() as inner:
                pending += inner.values()
            case list() | tuple() as inner:
                pending += inner


def right_plan(value: Any) -> Plan | None:
    """The plan, where it is right; what is wrong with one, `parse_plan` says, which takes much longer."""
    try:
        _check_lengths(value, "")
        return Plan.model_validate(value)
    except (InvalidPlan, ValidationError):
        return None


def parse_plan(value: Any, field: str = "plan") -> Plan:
    """Validate a plan that came from outside. Raises InvalidPlan with all that is wrong; each fault's `field` is below
    the given one."""
    _check_lengths(value, field)
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        raise InvalidPlan.of(list(islice(_faults(value, error, field), FAULTS_SHOWN + 1))) from error


def _faults(value: Any, error: ValidationError, field: str) -> Iterator[Fault]:
    """The plan itself stops at the first step that is wrong, so they are looked at one by one."""
    steps = value.get("steps") if isinstance(value, dict) else None
    if not isinstance(steps, list | tuple) or not steps:
        yield from _of_fields(error.errors(include_url=False, include_context=False, include_input=False), field, Plan)
        return
    of_plan = error.errors(include_url=False, include_context=False, include_input=False)
    yield from _of_fields([fault for fault in of_plan if fault["loc"] and fault["loc"][0] != "steps"], field, Plan)
    known = list[tuple[str, str, frozenset[str]]]()
    for number, raw in enumerate(steps):
        requires = frozenset(need for need in _needs(raw) if isinstance(need, str))
        try:
            requires = Step.model_validate(raw).requires()
        except ValidationError as wrong:
            of_step = wrong.errors(include_url=False, include_context=False, include_input=False)
            yield from _of_fields(of_step, f"{field}.steps.{number}", Step)
        if isinstance(raw, dict) and isinstance(raw.get("id"), str):
            known.append((str(number), raw["id"], requires))
    yield from _of_order(known, f"{field}.steps")


def valid_steps(value: Any) -> list[tuple[int, Step]]:
    """With their numbers, those steps of a plan that is wrong which are right by themselves. None of one that has too
    much of anything."""
    try:
        _check_lengths(value, "")
    except InvalidPlan:
        return []
    steps, found = value.get("steps") if isinstance(value, dict) else None, list[tuple[int, Step]]()
    for number, raw in enumerate(steps[:MAX_STEPS] if isinstance(steps, list) else ()):
        with suppress(ValidationError):
            found.append((number, Step.model_validate(raw)))
    return found


def _of_fields(found: Sequence[ErrorDetails], field: str, model: type[BaseModel]) -> Iterator[Fault]:
    hints = HINTS
    for fault in found:
        where = dotted(field, fault["loc"])
        hints -= 1
        yield Fault(where, f"{where}: {sentence_of(fault, model, with_hint=hints >= 0)}")


def _of_order(steps: Sequence[tuple[str, str, frozenset[str]]], field: str) -> Iterator[Fault]:
    """`steps`: of each its number, its id and the ids that it requires."""
    known: set[str] = set()
    for number, step, _ in steps:
        if step in known:
            where = f"{field}.{number}.id"
            yield Fault(where, f"{where}: two steps have the id {step!r}; give each its own")
        known.add(step)
    is_whole, hints = True, HINTS
    for number, step, requires in steps:
        for missing in sorted(requires - known):
            is_whole, where = False, f"{field}.{number}.needs"
            hints -= 1
            hint = near(missing, known) if hints >= 0 else ""
            what = f"step {step!r} needs {missing!r}, which is no step of this plan{hint}"
            yield Fault(where, f"{where}: {what}")
    if is_whole:
        try:
            TopologicalSorter({step: requires for _, step, requires in steps}).prepare()
        except CycleError as error:
            yield Fault(field, f"{field}: steps need each other in a circle: {' → '.join(error.args[1])}")


def _check_lengths(value: Any, field: str) -> None:
    """Check the lengths before any item is looked at: a list may have millions."""
    steps = value.get("steps") if isinstance(value, dict) else None
    if not isinstance(steps, list | tuple):
        return
    lists = [("steps", steps), *((f"steps.{at}.needs", _needs(step)) for at, step in enumerate(steps[: MAX_STEPS + 1]))]
    for name, items in lists:
        if len(items) > MAX_STEPS:
            where = f"{field}.{name}"
            raise InvalidPlan(f"{where}: it has {len(items):,} items; at most {MAX_STEPS} are possible", field=where)
    for where, part in [(field, value), *((f"{field}.steps.{at}", step) for at, step in enumerate(steps))]:
        if (names := _most_names(part)) > MAX_NAMES:
            raise InvalidPlan(f"{where}: it has {names:,} names; at most {MAX_NAMES} are possible", field=where)
    references = 0
    for at, step in enumerate(steps):
        references += sum(text.count(REFERENCE_BEGINS) for text in _strings(step))
        if references > MAX_REFERENCES:
            where = f"{field}.steps.{at}.arguments"
            message = (
                f"{where}: the plan has more than {MAX_REFERENCES:,} references to steps; pass results on by files"
            )
            raise InvalidPlan(message, field=where)


def _most_names(part: Any) -> int:
    """Of an object that is a plan or a step, or of its largest field that is a model itself."""
    if not isinstance(part, dict):
        return 0
    inner = (value for name in ("limits", "retry") if isinstance(value := part.get(name), dict))
    return max(map(len, (part, *inner)))


def _needs(step: Any) -> Sequence[Any]:
    found = step.get("needs") if isinstance(step, dict) else None
    return found if isinstance(found, list | tuple) else ()


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """`reason`: why it was replaced, at `replaced_at`."""

    version: int
    plan: dict[str, Any]
    replaced_at: datetime
    reason: str
