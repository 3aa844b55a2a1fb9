"""Handlers by HTTP: those that live workers have, and runs that name one."""

from typing import Any

import pytest

from backplane.tool_catalogue.base import PublishedHandler, ToolSet
from tests.integration.api.running import PLAN, Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = {"type": "object", "properties": {"week": {"type": "integer", "maximum": 53}}, "required": ["week"]}
WORKER = ToolSet(
    (), False, (PublishedHandler("weekly-report", "The numbers of a week.", SCHEMA, {"type": "string"}, "reports 1.0"),)
)


async def publish(api: Api) -> None:
    await api.resources.tool_catalogue.publish(WORKER, worker_id="worker-1", seconds=60)


async def execute(person: Person, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await person.http.post("/agent/execute", json={"action": "create", **body})
    return answer.status_code, answer.json()


async def test_the_handlers_of_live_workers_are_listed_with_their_schemas(api: Api, person: Person) -> None:
    assert (await person.http.get("/agent/handlers")).json() == {"handlers": [], "complete": False}
    await publish(api)
    listed = (await person.http.get("/agent/handlers")).json()
    assert listed["complete"] is True
    [one] = listed["handlers"]
    assert one == (await person.http.get("/agent/handlers/weekly-report")).json()
    assert (one["input"], one["result"], one["package"]) == (SCHEMA, {"type": "string"}, "reports 1.0")
    answer = await person.http.get("/agent/handlers/weekly-repord")
    assert (answer.status_code, "weekly-report" in answer.json()["detail"]) == (404, True)


async def test_a_run_names_a_handler_and_needs_no_prompt(api: Api, person: Person) -> None:
    await publish(api)
    status, made = await execute(person, handler="weekly-report", input={"week": 48})
    assert (status, made["planner"]) == (201, None)
    run = (await person.http.get(f"/agent/runs/{made['run_id']}")).json()
    assert (run["handler"], run["input"], run["prompt"]) == ("weekly-report", {"week": 48}, "handler weekly-report")


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"handler": "weekly-repord"}, "handler", "did you mean 'weekly-report'?"),
        ({"handler": "weekly-report", "input": {"week": 54}}, "input.week", "54 is greater than the maximum of 53"),
        ({"handler": "weekly-report"}, "input", "None is not of type 'object'"),
        ({"handler": "weekly-report", "input": {"week": 1}, "plan": PLAN}, "plan", "has no plan"),
        ({"handler": "weekly-report", "input": {"week": 1}, "planner": "model"}, "planner", "has no plan"),
        ({"handler": "weekly-report", "input": "x" * 262_144}, "input", "at most 262144 bytes"),
        ({"handler": "Weekly Report"}, "handler", "it must match '^[a-z0-9]"),
        ({"prompt": "x", "input": {}}, "input", "name one"),
        ({}, "prompt", "prompt"),
    ],
)
async def test_a_handler_that_could_not_begin_is_refused_with_the_reason(
    api: Api, person: Person, body: dict[str, Any], field: str, words: str
) -> None:
    await publish(api)
    status, problem = await execute(person, **body)
    assert (status, problem["field"]) == (422, field), problem
    assert words in problem["detail"]
    validated = await person.http.post("/agent/execute", json={**body, "action": "validate"})
    assert validated.json()["valid"] is False
    assert (await person.http.get("/agent/runs")).json()["runs"] == []


async def test_while_no_worker_has_published_a_handler_is_taken_as_it_is(person: Person) -> None:
    status, _ = await execute(person, handler="of-a-worker-that-is-yet-to-start", input=[1])
    assert status == 201
