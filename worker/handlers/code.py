"""Code that carries out a run, as a driver sees it: a handler's function, or a role's (`worker.roles`)."""

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from backplane.domain.plans import EffectStep, Step
from backplane.domain.runs import Run, RunError
from worker.handlers.registry import Handler
from worker.handlers.run import Driver, EffectRequest, HandlerRun
from worker.handlers.values import title_of
from worker.steps.journal import StepJournal
from worker.steps.outcomes import StepFailed

_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9_.-]")
_STEP_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class OpenEffect:
    """An effect that is to be carried out. `noted`: what it has noted of itself before (`StepJournal.note`), since it
    last failed. `round`: how often it has failed."""

    step: Step
    request: EffectRequest
    journal: StepJournal
    noted: Mapping[str, Any] | None
    round: int

    @classmethod
    def of(cls, step: Step, request: EffectRequest, journal: StepJournal) -> "OpenEffect":
        record = journal.records[step.id]
        result = record.result or {}
        return cls(step, request, journal, None if "error" in result or not result else result, record.failed_tries)


CarryOut = Callable[[OpenEffect], Awaitable[None]]
"""Carries an effect out and ends its step. Raises StepFailed, and EffectWaits where it cannot go on yet."""


@dataclass(frozen=True, slots=True)
class Code:
    """`kind`: a handler, or a role, and its `name`. `digest`: of the file that it is written in,
    and `file` its name. `begin`: makes the coroutine that asks a driver for effects, and raises StepFailed for an input
    that does not fit. `failed`: the code of the run's error where it raises. `effects`: by kind, those that neither the
    driver nor a tool carries out."""

    kind: str
    name: str
    digest: str
    begin: Callable[[Driver], Coroutine[Any, Any, Any]]
    failed: str
    file: str = ""
    effects: Mapping[str, CarryOut] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages call it: the handler 'weekly-report'."""
        return f"the {self.kind} {self.name!r}"


def given(value: Any) -> dict[str, Any]:
    """The result of an effect that no tool has carried out."""
    return {"exit_code": 0, "output": "", "value": value, "duration_ms": 0, "files_changed": []}


def step_of(ordinal: int, request: EffectRequest, redact: Callable[[str], str] = str) -> EffectStep:
    """The step that carries the effect out. Its id begins with its number. `redact`: takes the run's secrets out of
    names. Raises StepFailed for options and names that no step can have."""
    named = redact(str(request.name))
    name = _NOT_IN_AN_ID.sub("-", named)
    options, id = request.options, f"{ordinal}.{name}"[:_STEP_ID_CHARS]
    try:
        return EffectStep(
            id=id,
            tool=request.kind,
            arguments=request.arguments,
            title=title_of(named, request.arguments),
            timeout_seconds=options.timeout_seconds,
            retry=options.retry,
            approval=options.approval,
            repeatable=options.repeatable,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        message = f"effect {ordinal}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise StepFailed(RunError("invalid_input", message, step=id)) from None


def code_of(handler: Handler, run: Run) -> Code:
    """The handler, with the input of this run."""

    def begin(driver: Driver) -> Coroutine[Any, Any, Any]:
        return _called(handler, HandlerRun(driver, run.id), _arguments(handler, run))

    return Code("handler", handler.name, handler.code, begin, "handler_failed", file_of(handler.function))


def file_of(function: Callable[..., Any]) -> str:
    """The file that the function is written in; empty where that is not known."""
    try:
        return inspect.getfile(function)
    except TypeError:
        return ""


def in_words_blocked(place: str, seconds: float) -> str:
    """For the log of a run whose code has blocked the event loop."""
    return (
        f"the code blocked the event loop of its process for {seconds:.1f} s, and all other runs there with it: "
        f"{place}. Give what takes long to `step` as a function that is not async: it runs in a thread"
    )


async def _called(handler: Handler, run: HandlerRun, arguments: list[Any]) -> Any:
    return await handler.function(run, *arguments)


def _arguments(handler: Handler, run: Run) -> list[Any]:
    """What the function is called with after the run. Raises StepFailed for an input that does not fit."""
    if handler.input is None:
        return []
    try:
        return [handler.input.validate_python(run.input)]
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, ('input', *fault['loc'])))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise StepFailed(RunError("invalid_input", f"handler {handler.name!r}: {faults}")) from None
