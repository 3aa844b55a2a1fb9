"""The tools that live workers have, shown; and plans that none of them could carry out, refused."""

from typing import Any

import pytest

from tests.integration.api.running import PLAN, Api, Person, StartWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG = {"steps": [{"id": "a", "tool": "shel"}, {"id": "b", "tool": "shell", "arguments": {"scrip": "true"}}]}


async def until_published(person: Person) -> list[Any]:
    async def published() -> list[Any]:
        tools: list[Any] = (await person.http.get("/agent/tools")).json()["tools"]
        return tools

    await wait_until(published)
    return await published()


async def test_a_plan_that_no_live_worker_can_carry_out_is_refused_with_all_that_is_wrong(
    api: Api, person: Person, start_worker: StartWorker
) -> None:
    start_worker(api.settings)
    await until_published(person)
    for body in ({"action": "create", "prompt": "x"}, {"action": "run", "prompt": "x"}):
        answer = await person.http.post("/agent/execute", json={**body, "plan": WRONG})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["field"]) == (422, "invalid_plan", "plan.steps.0.tool")
        assert [fault["field"] for fault in problem["errors"]] == [
            "plan.steps.0.tool",
            "plan.steps.1.arguments.scrip",
            "plan.steps.1.arguments.script",
        ]
    assert (await person.http.get("/agent/runs")).json()["runs"] == []


async def test_a_fork_with_such_a_plan_is_refused(api: Api, person: Person, start_worker: StartWorker) -> None:
    run_id = await person.make()
    start_worker(api.settings)
    await person.watch(run_id)
    await until_published(person)
    answer = await person.act("fork", run_id, plan=WRONG)
    assert (answer.status_code, answer.json()["field"]) == (422, "plan.steps.0.tool")


async def test_a_request_that_made_a_run_before_gives_it_whatever_the_workers_have_by_now(
    api: Api, person: Person, start_worker: StartWorker
) -> None:
    body, key = {"action": "create", "prompt": "x", "plan": WRONG}, {"Idempotency-Key": "the same"}
    made = await person.http.post("/agent/execute", json=body, headers=key)
    assert made.status_code == 201
    start_worker(api.settings)
    await until_published(person)
    again = await person.http.post("/agent/execute", json=body, headers=key)
    assert (again.status_code, again.json()["run_id"]) == (201, made.json()["run_id"])


async def test_each_tool_is_shown_with_its_schema(api: Api, person: Person, start_worker: StartWorker) -> None:
    start_worker(api.settings)
    tools = {tool["name"]: tool for tool in await until_published(person)}
    assert {"shell", "python", "file_write", "http_request", "agent"} <= tools.keys()
    assert list(tools) == sorted(tools)
    shown = (await person.http.get("/agent/tools/shell")).json()
    assert shown == tools["shell"]
    assert shown["parameters"]["required"] == ["script"]
    assert (shown["risk"], shown["repeatable"], shown["package"]) == ("medium", False, None)


async def test_a_tool_that_no_worker_has_is_not_found(api: Api, person: Person, start_worker: StartWorker) -> None:
    start_worker(api.settings)
    await until_published(person)
    answer = await person.http.get("/agent/tools/shel")
    assert answer.status_code == 404
    assert "did you mean 'shell'" in answer.json()["detail"]


async def test_without_a_worker_no_tool_is_known_and_plans_are_taken(person: Person) -> None:
    shown = (await person.http.get("/agent/tools")).json()
    assert (shown["tools"], shown["complete"]) == ([], False)
    assert (await person.act("create", prompt="x", plan=PLAN)).status_code == 201
