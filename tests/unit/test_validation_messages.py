"""What is said of a value that does not fit: sentences that say what to do, and no word of a library."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.schemas.decisions import DecideRequest
from app.schemas.execute import ExecuteRequest, NewRun
from app.schemas.jobs import RunFilterRequest
from backplane.domain.plans import parse_plan
from backplane.domain.validation_messages import sentence_of
from backplane.errors import InvalidPlan

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
OF_LIBRARY = ("Input should", "Field required", "Extra inputs", "Tuple", "List should", "String should", "dictionary")


def said(kind: Any, value: Any) -> list[str]:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return [sentence_of(fault, kind) for fault in found]
    return []


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (NewRun, {}, "it is missing; give it"),
        (NewRun, "hello", "this is no object; send a JSON object"),
        (NewRun, {"prompt": "p", "plan": "hello"}, "this is no object; send a JSON object"),
        (NewRun, {"prompt": 7}, "this is no text"),
        (NewRun, {"prompt": ""}, "it is too short; give at least 1 character"),
        (NewRun, {"prompt": "p", "mcp_servers": "a"}, "this is no list"),
        (NewRun, {"prompt": "p", "mcp_servers": ["a"] * 11}, "it has too many items; give at most 10"),
        (NewRun, {"prompt": "p", "max_retries": 1.5}, "this is no whole number"),
        (NewRun, {"prompt": "p", "agent": "a b"}, "it is not in the form that is asked for; it must match"),
        (NewRun, {"prompt": "p", "promt": "p"}, "there is no such field; did you mean 'prompt'?"),
        (NewRun, {"prompt": "p", "budget": {"usdd": 1}}, "there is no such field; did you mean 'usd'?"),
        (NewRun, {"prompt": "p", "xyz": 1}, "there is no such field; there are agent, budget"),
        (ExecuteRequest, {"action": "start", "run_id": "01936f7e"}, "this is no whole id; give all its 36 characters"),
        (ExecuteRequest, {"action": "start", "run_id": RUN, "xyz": 1}, "no such field; there are action, run_id"),
        (ExecuteRequest, {"action": "replay", "run_id": RUN, "execute": "yes"}, "this is neither true nor false"),
        (RunFilterRequest, {"created_after": "2026-11-01"}, "it names no zone; give a time with one, like 2026-"),
        (RunFilterRequest, {"created_after": "yesterday"}, "this is no time; give one, like 2026-"),
        (RunFilterRequest, {"created_after": []}, "this is no time; give one, like 2026-"),
        (RunFilterRequest, {"created_after": 0}, "this is no time; give one, like 2026-"),
        (RunFilterRequest, {"created_before": 1.7e9}, "this is no time; give one, like 2026-"),
        (RunFilterRequest, {"created_before": "1700000000"}, "this is no time; give one, like 2026-"),
        (DecideRequest, {"decision": "approve", "argument": {}}, "did you mean 'arguments'?"),
    ],
)
def test_a_value_that_does_not_fit_is_answered_with_what_to_do(kind: Any, value: Any, sentence: str) -> None:
    [message] = said(kind, value)
    assert sentence in message
    assert not any(words in message for words in OF_LIBRARY)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("hello", "plan: this is no object"),
        ({}, "plan.steps: it is missing; give it"),
        ({"steps": []}, "plan.steps: it has too few items; give at least 1"),
        ({"steps": [{"id": "a"}]}, "plan.steps.0.tool: it is missing"),
        ({"steps": [{"id": "a", "tool": "t", "toool": 1}]}, "did you mean 'tool'?"),
        ({"steps": [{"id": "a", "tool": "t", "retry": {"max": 1}}]}, "there are backoff_seconds, max_attempts"),
        ({"steps": [{"id": "a b", "tool": "t"}]}, "plan.steps.0.id: it is not in the form"),
    ],
)
def test_a_plan_that_does_not_fit_is_answered_with_what_to_do(plan: Any, sentence: str) -> None:
    with pytest.raises(InvalidPlan) as raised:
        parse_plan(plan)
    assert sentence in str(raised.value)
    assert not any(words in str(raised.value) for words in OF_LIBRARY)
