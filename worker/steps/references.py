"""What a step's arguments refer to: the results of steps before it, put in just before it is carried out.

`${steps.ID.output}` is what the step wrote, without the line break at its end, `${steps.ID.exit_code}` a number, and
`${steps.ID.files}` a JSON list of the paths that it changed. They stand in strings, also inside objects and lists.
Results are data: they are never put into a program, where they would be carried out, but into its environment, its
arguments or a file.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backplane.domain.plans import REFERENCE, Step
from backplane.domain.sizes import readable_size
from backplane.domain.steps import StepRecord
from backplane.errors import InvalidPlan, TooLarge
from backplane.input.tool_arguments import reference_faults, refers
from worker.tools.base import Tool
from worker.tools.registry import faults_of, invalid_arguments, programs_of

ESCAPED = "$${steps."
FILLED_MAX_BYTES = 1024 * 1024
"""All that is put into one step's arguments."""


def check_references(step: Step, tool: Tool, field: str) -> None:
    """Raises InvalidPlan for references where none may stand. That the steps exist is the plan's own rule."""
    # Few arguments refer to anything, and to find out which are programs takes longer than the rest.
    faults = list(reference_faults(step.arguments, lambda name: name in programs_of(tool), f"{field}.arguments"))
    if faults:
        raise InvalidPlan.of(faults)


def check_arguments(step: Step, tool: Tool, field: str) -> None:
    """Raises InvalidPlan for arguments that the tool does not take, as far as that can be known before the references
    in them are filled in."""
    try:
        tool.arguments.model_validate(step.arguments)
    except ValidationError as error:
        found = [fault for fault in faults_of(error) if not _may_be_right(step.arguments, fault)]
        if found:
            raise invalid_arguments(tool, found, f"{field}.arguments") from error


def fill(step: Step, records: Mapping[str, StepRecord]) -> dict[str, Any]:
    """The step's arguments with what they refer to. All those steps are completed.

    Raises InvalidPlan when a result is not whole, and TooLarge.
    """
    left = FILLED_MAX_BYTES

    def filled(text: str) -> str:
        nonlocal left
        parts, done = [], 0
        for match in REFERENCE.finditer(text):
            value = _value(step, records[match[1]], match[2])
            left -= len(value.encode())
            if left < 0:
                raise TooLarge(
                    f"step {step.id!r}: the results that its arguments refer to are over "
                    f"{readable_size(FILLED_MAX_BYTES)} in all; pass large ones on as files"
                )
            parts += [_unescaped(text[done : match.start()]), value]
            done = match.end()
        return "".join([*parts, _unescaped(text[done:])])

    arguments: dict[str, Any] = _each_string(step.arguments, filled)
    return arguments


def _value(step: Step, record: StepRecord, what: str) -> str:
    result = record.result or {}
    if what == "exit_code":
        return str(result.get("exit_code", 0))
    if what == "files":
        if left_out := result.get("files_left_out"):
            raise InvalidPlan(
                f"step {step.id!r}: {record.step_id!r} changed {left_out:,} more files than its result names; let that "
                "step write their names to a file, and read the file here",
                field=f"plan.{step.id}.arguments",
            )
        return json.dumps(result.get("files_changed", []), ensure_ascii=False)
    if result.get("output_cut"):
        raise InvalidPlan(
            f"step {step.id!r}: the output of {record.step_id!r} is not whole in its result (STEP_RESULT_MAX_BYTES); "
            "let that step write a file, and read the file here",
            field=f"plan.{step.id}.arguments",
        )
    output = str(result.get("output", ""))
    return output.removesuffix("\n").removesuffix("\r")


def _unescaped(text: str) -> str:
    return text.replace(ESCAPED, ESCAPED[1:])


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {key: _each_string(inner, change) for key, inner in value.items()}
        case list() | tuple():
            return [_each_string(inner, change) for inner in value]
    return value


def _may_be_right(arguments: Any, fault: ErrorDetails) -> bool:
    """Whether what is wrong lies in, or above, a value that is not known yet."""
    value = arguments
    for part in fault["loc"]:
        match value:
            case dict() if part in value:
                value = value[part]
            case list() | tuple() if isinstance(part, int) and part < len(value):
                value = value[part]
            case _:
                return False  # it is missing, not wanted, or a key
    return fault["type"] != "extra_forbidden" and refers(value)
