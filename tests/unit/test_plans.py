"""What is a plan, what is none, and in which order its steps are carried out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backplane.domain.plans import Plan, parse_plan
from backplane.errors import FAULTS_SHOWN, InvalidPlan


def step(id: str, *needs: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "tool": "shell", "needs": list(needs), **more}


def plan(*steps: dict[str, Any]) -> Plan:
    return parse_plan({"steps": list(steps)})


def order(plan: Plan) -> list[str]:
    return [step.id for step in plan.ordered()]


def test_steps_are_carried_out_as_written() -> None:
    assert order(plan(step("c"), step("a"), step("b"))) == ["c", "a", "b"]


def test_a_step_waits_for_those_it_needs() -> None:
    assert order(plan(step("a", "c"), step("b"), step("c"))) == ["b", "c", "a"]


@st.composite
def written_plans(draw: st.DrawFn) -> Plan:
    """Plans without a circle, written down in any order."""
    count = draw(st.integers(1, 12))
    needs = {
        number: draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set[int]()
        for number in range(count)
    }
    written = draw(st.permutations(range(count)))
    return plan(*(step(f"s{number}", *(f"s{need}" for need in needs[number])) for number in written))


@given(written_plans())
def test_in_any_plan_each_step_comes_once_and_after_all_it_needs(plan: Plan) -> None:
    carried_out = order(plan)
    assert sorted(carried_out) == sorted(step.id for step in plan.steps)
    for step in plan.steps:
        assert all(carried_out.index(need) < carried_out.index(step.id) for need in step.needs or ())


@given(written_plans())
def test_a_plan_that_is_written_in_a_possible_order_is_carried_out_in_that_order(written: Plan) -> None:
    possible = Plan(steps=tuple(written.ordered()))
    assert possible.ordered() == list(possible.steps)


def test_steps_that_need_each_other_in_a_circle_are_refused_and_the_circle_is_shown() -> None:
    with pytest.raises(InvalidPlan, match=r"circle: (a → b → a|b → a → b)"):
        plan(step("a", "b"), step("b", "a"))


def test_a_step_that_needs_itself_is_a_circle() -> None:
    with pytest.raises(InvalidPlan, match="circle"):
        plan(step("a", "a"))


def test_a_need_that_is_no_step_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="'a' needs 'z', which is no step of this plan"):
        plan(step("a", "z"))


def test_two_steps_with_one_id_are_refused() -> None:
    with pytest.raises(InvalidPlan, match="two steps have the id 'a'"):
        plan(step("a"), step("a"))


def test_a_plan_has_200_steps_at_most() -> None:
    steps = [step(f"s{number}") for number in range(201)]
    assert len(plan(*steps[:200]).steps) == 200
    with pytest.raises(InvalidPlan, match="at most 200"):
        plan(*steps)


@pytest.mark.parametrize("value", [None, [], "steps", {}, {"steps": []}, {"steps": "a"}])
def test_what_has_no_steps_is_no_plan(value: Any) -> None:
    with pytest.raises(InvalidPlan):
        parse_plan(value)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (step("a", typo=1), "plan.steps.1.typo"),
        (step("a b"), "plan.steps.1.id"),
        (step("a", timeout_seconds=0), "plan.steps.1.timeout_seconds"),
        (step("a", retry={"max_attempts": 21}), "plan.steps.1.retry.max_attempts"),
        ({"id": "a"}, "plan.steps.1.tool"),
    ],
)
def test_the_error_names_the_value_at_fault(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        plan(step("first"), wrong)
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{field}: ")


def test_a_plan_survives_its_way_through_json() -> None:
    made = plan(step("a", arguments={"script": "true"}, title="A"), step("b", "a", repeatable=True))
    assert Plan.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("steps", "where"),
    [([1] * 300_000, "plan.steps"), ([{"id": "a", "tool": "t", "needs": [1] * 300_000}], "plan.steps.0.needs")],
)
def test_a_list_of_hundreds_of_thousands_is_refused_before_its_items_are_looked_at(
    steps: list[Any], where: str
) -> None:
    with pytest.raises(InvalidPlan, match="it has 300,000 items; at most 200") as refused:
        parse_plan({"steps": steps})
    assert (refused.value.field, refused.value.__cause__) == (where, None)


def test_of_many_wrong_steps_the_first_is_named_and_the_others_are_not_looked_at() -> None:
    with pytest.raises(InvalidPlan, match=r"plan\.steps\.0") as refused:
        parse_plan({"steps": [1] * 200})
    assert isinstance(refused.value.__cause__, ValidationError)
    assert refused.value.__cause__.error_count() <= 2


def test_all_that_is_wrong_with_a_plan_is_reported_at_once() -> None:
    steps = [
        {"id": "a", "tool": "shell", "aproval": True, "needs": ["bb"]},
        {"id": "b", "tool": "shell", "retry": {"max_attempts": 21, "pause": 1}},
        {"id": "b", "timeout_seconds": 0},
        {"id": "c", "tool": "shell", "needs": ["z"]},
    ]
    with pytest.raises(InvalidPlan) as refused:
        parse_plan({"steps": steps, "stepz": 1})
    assert [fault.field for fault in refused.value.faults] == [
        "plan.stepz",
        "plan.steps.0.aproval",
        "plan.steps.1.retry.max_attempts",
        "plan.steps.1.retry.pause",
        "plan.steps.2.tool",
        "plan.steps.2.timeout_seconds",
        "plan.steps.2.id",
        "plan.steps.0.needs",
        "plan.steps.3.needs",
    ]
    assert all(fault.message in refused.value.message for fault in refused.value.faults)
    assert "did you mean 'approval'?" in refused.value.message
    assert "needs 'bb', which is no step of this plan; did you mean 'b'?" in refused.value.message


def test_of_thousands_of_faults_a_hundred_are_reported() -> None:
    steps = [{"id": f"s{number}", "tool": "shell", "needs": [f"x{need}" for need in range(200)]} for number in range(9)]
    with pytest.raises(InvalidPlan, match=r"and more$") as refused:
        parse_plan({"steps": steps})
    assert len(refused.value.faults) == FAULTS_SHOWN
