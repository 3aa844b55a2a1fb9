"""All that is wrong with a run, and what would become of it, before it is one."""

from typing import Any

import pytest

from backplane.tool_catalogue.base import ToolSet
from tests.integration.api.running import PLAN, Api, Person
from tests.unit.test_known_tools import WORKER

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 600.0
WITH_MODEL = ToolSet(WORKER.tools, has_model=True)
RUNBOOK = "# Count\n\n```sh\nwc -l a.txt\n```\n\n```out/b.txt\nx\n```\n"
WORDS = f"Look at this, do not run it:\n\n{RUNBOOK}"


async def validated(person: Person, **fields: Any) -> Any:
    answer = await person.act("validate", **fields)
    assert answer.status_code == 200, answer.text
    assert (await person.http.get("/agent/runs")).json()["runs"] == []
    body = answer.json()
    assert body["valid"] == (body["errors"] == [])
    return body


def fields_of(body: Any) -> list[str]:
    return [fault["field"] for fault in body["errors"]]


async def test_what_is_right_makes_no_run_either(api: Api, person: Person) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=SECONDS)
    body = await validated(person, plan=PLAN)
    assert (body["valid"], body["planner"], body["tools_checked"]) == (True, "given", True)
    assert body["steps"] == [
        {"id": "only", "tool": "file_write", "title": "", "needs": None, "path": "a.txt", "line": None}
    ]


async def test_all_that_is_wrong_is_reported_at_once(api: Api, person: Person) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=SECONDS)
    steps = [
        {"id": "a", "tool": "shel", "needs": ["z"]},
        {"id": "b", "tool": "shell", "arguments": {"scrip": "true"}, "aproval": True},
        {"id": "c", "tool": "file_read", "arguments": {"path": "/etc/passwd"}},
    ]
    body = await validated(person, plan={"steps": steps}, timeout_seconds=0, max_retires=1)
    assert fields_of(body) == [
        "timeout_seconds",
        "max_retires",
        "plan.steps.1.aproval",
        "plan.steps.0.needs",
        "plan.steps.0.tool",
        "plan.steps.2.arguments.path",
    ]
    assert [step["id"] for step in body["steps"]] == ["a", "b", "c"]


async def test_limits_of_the_server_are_reported_together(person: Person) -> None:
    body = await validated(
        person, plan=PLAN, timeout_seconds=10**8, max_retries=10**6, resource="gpu", mcp_servers=["none"]
    )
    assert fields_of(body) == ["timeout_seconds", "resource", "max_retries", "mcp_servers"]
    refused = (await person.act("create", prompt="x", plan=PLAN, timeout_seconds=10**8, resource="gpu")).json()
    assert (refused["field"], [fault["field"] for fault in refused["errors"]]) == (
        "timeout_seconds",
        ["timeout_seconds", "resource"],
    )


async def test_the_steps_of_a_runbook_are_shown_with_their_lines(api: Api, person: Person) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=SECONDS)
    body = await validated(person, prompt=RUNBOOK)
    assert (body["planner"], body["planner_note"]) == ("runbook", None)
    assert [(step["line"], step["tool"], step["title"]) for step in body["steps"]] == [
        (3, "shell", "Count"),
        (7, "file_write", "Count"),
    ]


async def test_all_that_is_wrong_with_a_runbook_is_reported_with_its_lines(api: Api, person: Person) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=SECONDS)
    body = await validated(person, prompt="```rust\nx\n```\n\n```sh -x\ny\n```\n")
    assert [(fault["field"], fault["line"]) for fault in body["errors"]] == [("prompt", 1), ("prompt", 5)]
    body = await validated(person, prompt="# A\n\n```../out.txt\nx\n```\n")
    assert [(fault["field"], fault["line"]) for fault in body["errors"]] == [("plan.steps.0.arguments.path", 3)]


@pytest.mark.parametrize(
    ("tools", "prompt", "planner", "expected", "note"),
    [
        (WORKER, RUNBOOK, None, "runbook", ""),
        (WORKER, WORDS, None, "runbook", ""),
        (WITH_MODEL, RUNBOOK, None, "runbook", "name the planner model"),
        (WITH_MODEL, WORDS, None, "model", "name the planner runbook"),
        (WITH_MODEL, "Count the words.", None, "model", ""),
        (WITH_MODEL, WORDS, "runbook", "runbook", ""),
        (WITH_MODEL, RUNBOOK, "model", "model", ""),
    ],
)
async def test_the_answer_names_the_planner_and_how_to_choose_the_other(
    api: Api, person: Person, tools: ToolSet, prompt: str, planner: str | None, expected: str, note: str
) -> None:
    await api.resources.tool_catalogue.publish(tools, worker_id="worker-1", seconds=SECONDS)
    body = await validated(person, prompt=prompt, planner=planner)
    assert (body["planner"], body["valid"]) == (expected, True)
    assert note in (body["planner_note"] or "")
    assert bool(note) == bool(body["planner_note"])
    made = (await person.act("create", prompt=prompt, planner=planner)).json()
    assert (made["planner"], made.get("planner_note")) == (expected, body["planner_note"])


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": "Count the words."}, "prompt", "no planner understands it"),
        ({"prompt": "Count the words.", "planner": "runbook"}, "prompt", "no block that is a step"),
        ({"prompt": RUNBOOK, "planner": "model"}, "planner", "no live worker has a model"),
        ({}, "prompt", "it is missing; give it"),
        ({"plan": 7}, "plan", "no object"),
        ({"plan": {"steps": []}}, "plan.steps", "at least 1"),
    ],
)
async def test_what_nobody_can_plan_is_reported(
    api: Api, person: Person, fields: dict[str, Any], field: str, words: str
) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=SECONDS)
    body = await validated(person, **fields)
    assert fields_of(body) == [field]
    assert words in body["errors"][0]["detail"]


async def test_without_a_worker_it_says_that_tools_were_not_looked_at(person: Person) -> None:
    body = await validated(person, plan={"steps": [{"id": "a", "tool": "teleport"}]})
    assert (body["valid"], body["tools_checked"]) == (True, False)
