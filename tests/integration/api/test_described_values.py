"""What the API passes on as it is kept (events, plans, results, questions) is described field by field."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.described_schemas import DescribedSchemas
from tests.integration.api.running import Api, Person, StartWorker
from tests.waiting import wait_until

COPY = {
    "steps": [
        {"id": "write", "tool": "file_write", "arguments": {"path": "a.txt", "content": "a\n"}, "title": "Write it"},
        {"id": "read", "tool": "file_read", "arguments": {"path": "a.txt"}, "needs": ["write"]},
    ]
}
FAIL = {
    "steps": [
        {
            "id": "read",
            "tool": "file_read",
            "arguments": {"path": "missing.txt"},
            "retry": {"max_attempts": 2, "backoff_seconds": 0.01},
        }
    ]
}
ASK = {"steps": [{**COPY["steps"][0], "approval": True, "limits": {"memory_bytes": 2**25}}]}


async def status_of(person: Person, run_id: str) -> str:
    return str((await person.show(run_id))["status"])


def ends_as(person: Person, run_id: str, status: str) -> Callable[[], Any]:
    async def is_so() -> bool:
        return await status_of(person, run_id) == status

    return is_so


@pytest.fixture(scope="module")
def schemas() -> DescribedSchemas:
    return DescribedSchemas()


@pytest.mark.slow
async def test_what_real_runs_leave_is_described_field_by_field(
    api: Api, person: Person, start_worker: StartWorker, schemas: DescribedSchemas
) -> None:
    created = await person.make("create", budget={"steps": 5}, metadata={"ticket": [42]})
    waiting = await person.make(plan=ASK)
    copied, failed = await person.make(plan=COPY), await person.make(plan=FAIL)
    start_worker(api.settings)
    await wait_until(ends_as(person, copied, "completed"))
    await wait_until(ends_as(person, failed, "failed"))
    await wait_until(ends_as(person, waiting, "waiting"))
    assert (await person.act("cancel", created)).status_code == 200
    forked = (await person.act("fork", copied, step="write")).json()["run_id"]
    replayed = (await person.act("replay", copied)).json()["run_id"]
    for run_id in (forked, replayed):
        await wait_until(ends_as(person, run_id, "completed"))

    seen = set()
    for run_id in (created, waiting, copied, failed, forked, replayed):
        for path, name in {
            f"/agent/runs/{run_id}": "RunView",
            f"/agent/runs/{run_id}/plans": "PlanVersions",
            f"/agent/runs/{run_id}/decisions": "DecisionPage",
            f"/agent/runs/{run_id}/explain": "Explanation",
            f"/agent/runs/{run_id}/files": "FileList",
            f"/agent/logs/{run_id}": "EventPage",
        }.items():
            answer = (await person.http.get(path)).json()
            events = answer["events"] if name == "EventPage" else []
            for event in events:
                assert schemas.faults_of_event(event) == [], event
                seen.add((event["type"], event["data"].get("status")))
            assert schemas.faults(name, answer) == [], (path, answer)

    [question] = (await person.http.get("/agent/decisions")).json()["decisions"]
    decision = f"/agent/runs/{waiting}/decisions/{question['decision_id']}"
    answered = await person.http.post(decision, json={"decision": "approve", "arguments": {"path": "b", "content": ""}})
    assert schemas.faults("DecisionView", answered.json()) == []
    await wait_until(ends_as(person, waiting, "completed"))
    for event in (await person.http.get(f"/agent/logs/{waiting}")).json()["events"]:
        assert schemas.faults_of_event(event) == [], event
        seen.add((event["type"], event["data"].get("status")))
    # That all of these were looked at, not that there are no others.
    assert seen >= {
        ("status", "created"),
        ("status", "waiting"),
        ("plan", None),
        ("step", "started"),
        ("step", "retrying"),
        ("step", "failed"),
        ("decision", "pending"),
        ("decision", "approved"),
        ("log", None),
        ("end", "completed"),
        ("end", "failed"),
        ("end", "cancelled"),
    }


async def test_what_is_shown_to_watchers_alone_is_described(
    api: Api, person: Person, schemas: DescribedSchemas
) -> None:
    run_id = await person.make()
    async with person.stream(run_id) as stream:
        async for frame in stream:
            if frame.event == "position":
                assert schemas.faults_of_event(json.loads(frame.text)) == []
                break
    async with person.stream(run_id, after=10_000) as stream:
        gap = await anext(stream)
        assert gap.event == "gap"
        assert schemas.faults_of_event(json.loads(gap.text)) == []


async def test_every_answer_to_a_question_without_parameters_is_described(
    api: Api, person: Person, schemas: DescribedSchemas
) -> None:
    await person.make("create")
    asked = 0
    for path, methods in api.app.openapi()["paths"].items():
        operation = methods.get("get")
        if operation is None or "{" in path or path in ("/agent/events", "/api/v1/events/stream"):
            continue
        answer = await person.http.get(path)
        if answer.status_code in (401, 403):
            continue  # for administrators, or for a browser that is signed in
        asked += 1
        content = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        if "$ref" in content:
            assert schemas.faults(content["$ref"].rpartition("/")[2], answer.json()) == [], (path, answer.json())
    assert asked >= 12
