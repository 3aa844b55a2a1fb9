"""What stands for the result of another step is filled in where it is data, and refused where it would be a program."""

from typing import Any

import pytest

from backplane.domain.plans import Plan, Step, parse_plan
from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import InvalidPlan, TooLarge
from worker.steps.references import FILLED_MAX_BYTES, check_arguments, check_references, fill
from worker.tools.agent import AgentArguments, AgentTool
from worker.tools.base import Tool
from worker.tools.file_read import FileRead
from worker.tools.file_write import FileWrite
from worker.tools.python import Python
from worker.tools.shell import Shell


def record(**result: Any) -> dict[str, StepRecord]:
    whole = {"exit_code": 0, "output": "", "files_changed": [], **result}
    return {"a": StepRecord("a", 0, "", "shell", StepStatus.COMPLETED, 1, None, None, whole)}


def filled(arguments: dict[str, Any], **result: Any) -> dict[str, Any]:
    return fill(Step(id="b", tool="shell", arguments=arguments), record(**result))


def test_a_list_of_files_that_is_cut_is_refused_and_not_taken_for_the_whole() -> None:
    with pytest.raises(InvalidPlan, match="changed 1,234 more files than its result names"):
        filled({"x": "${steps.a.files}"}, files_changed=["b.txt"], files_left_out=1_234)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${steps.a.output}", "two\nlines"),
        ("<${steps.a.output}>", "<two\nlines>"),
        ("${steps.a.exit_code}${steps.a.exit_code}", "00"),
        ("${steps.a.files}", '["b/ä.txt"]'),
        ("$${steps.a.output}", "${steps.a.output}"),
        ("$${steps.a.output}${steps.a.exit_code}", "${steps.a.output}0"),
        ("${steps.a.other} ${HOME} $1", "${steps.a.other} ${HOME} $1"),
    ],
)
def test_a_reference_in_a_string_becomes_the_result(text: str, expected: str) -> None:
    assert filled({"x": text}, output="two\nlines\n", files_changed=["b/ä.txt"]) == {"x": expected}


def test_strings_inside_lists_and_objects_are_filled_and_keys_and_numbers_are_left_alone() -> None:
    arguments = {"environment": {"A": "${steps.a.output}"}, "args": ["1", ["${steps.a.output}"]], "n": 3, "no": None}
    assert filled(arguments, output="x\n") == {"environment": {"A": "x"}, "args": ["1", ["x"]], "n": 3, "no": None}


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert filled({"x": "${steps.a.output}"}, output="${steps.a.exit_code} $${steps.a.output}") == {
        "x": "${steps.a.exit_code} $${steps.a.output}"
    }


def test_an_output_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="write a file"):
        filled({"x": "${steps.a.output}"}, output="be…", output_cut=True)
    assert filled({"x": "${steps.a.files}"}, output="be…", output_cut=True) == {"x": "[]"}


def test_only_so_much_is_filled_in_in_all() -> None:
    half = "x" * (FILLED_MAX_BYTES // 2)
    assert filled({"x": "${steps.a.output}", "y": ["${steps.a.output}"]}, output=half)["x"] == half
    with pytest.raises(TooLarge, match="pass large ones on as files"):
        filled({"x": "${steps.a.output}", "y": ["${steps.a.output}"], "z": "${steps.a.exit_code}"}, output=half)


TEXT = "echo ${steps.a.output}"


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [(Shell(), {"script": TEXT}), (Python(), {"code": TEXT})],
)
def test_a_result_does_not_become_a_part_of_a_program(tool: Tool, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidPlan, match="pass it through environment") as refused:
        check_references(Step(id="b", tool=tool.name, arguments=arguments), tool, "plan.steps.1")
    assert refused.value.field == f"plan.steps.1.arguments.{next(iter(arguments))}"


def test_a_reference_in_an_agents_goal_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="inputs"):
        check_references(Step(id="b", tool="agent", arguments={"goal": TEXT}), _agent(), "plan.steps.1")
    check_references(
        Step(id="b", tool="agent", arguments={"goal": "Sum up.", "inputs": {"text": TEXT}}), _agent(), "plan.steps.1"
    )


def _agent() -> Tool:
    agent = object.__new__(AgentTool)
    assert agent.arguments is AgentArguments
    return agent


def test_a_reference_in_a_key_is_refused() -> None:
    step = Step(id="b", tool="shell", arguments={"script": "true", "environment": {"${steps.a.output}": "x"}})
    with pytest.raises(InvalidPlan, match="only values may"):
        check_references(step, Shell(), "plan.steps.1")


def test_it_may_stand_in_an_environment() -> None:
    step = Step(id="b", tool="shell", arguments={"script": 'echo "$A"', "environment": {"A": TEXT}})
    check_references(step, Shell(), "plan.steps.1")
    check_arguments(step, Shell(), "plan.steps.1")


def test_what_is_not_known_yet_does_not_make_an_argument_wrong() -> None:
    write = Step(id="b", tool="file_write", arguments={"path": "/${steps.a.output}", "content": "x"})
    check_arguments(write, FileWrite(), "plan.steps.1")
    for arguments in (
        {"path": "/abs", "content": "${steps.a.output}"},
        {"content": "${steps.a.output}"},
        {"path": "${steps.a.output}", "content": "x", "mode": "${steps.a.output}"},
        {"path": "${steps.a.output}", "max_bytes": 0},
    ):
        tool: Tool = FileRead() if "max_bytes" in arguments else FileWrite()
        with pytest.raises(InvalidPlan) as refused:
            check_arguments(Step(id="b", tool=tool.name, arguments=arguments), tool, "plan.steps.1")
        assert refused.value.field in {f"plan.steps.1.arguments.{name}" for name in ("path", "mode", "max_bytes")}


def test_a_reference_to_a_step_that_is_not_in_the_plan_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="'b' needs 'z'"):
        parse_plan({"steps": [{"id": "b", "tool": "shell", "arguments": {"environment": {"A": "${steps.z.output}"}}}]})


def requirements(*steps: dict[str, Any]) -> dict[str, set[str]]:
    plan = Plan.model_validate({"steps": [{"tool": "shell", **step} for step in steps]})
    return {name: set(required) for name, required in plan.requirements().items()}


def test_a_step_that_does_not_say_what_it_needs_waits_for_all_before_it() -> None:
    assert requirements({"id": "a"}, {"id": "b"}, {"id": "c"}) == {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert requirements({"id": "a"}, {"id": "b", "needs": []}, {"id": "c", "needs": ["b"]}, {"id": "d"}) == {
        "a": set(),
        "b": set(),
        "c": {"b"},
        "d": {"a", "b", "c"},
    }


def test_a_step_waits_for_those_it_refers_to() -> None:
    refers = {"arguments": {"environment": {"A": ["${steps.b.output}"]}}}
    assert requirements({"id": "a", "needs": [], **refers}, {"id": "b", "needs": []}) == {"a": {"b"}, "b": set()}


def test_a_step_that_is_needed_by_one_written_before_it_does_not_wait_for_that() -> None:
    assert requirements({"id": "a", "needs": ["c"]}, {"id": "b"}, {"id": "c"}) == {
        "b": set(),
        "c": {"b"},
        "a": {"c"},
    }
