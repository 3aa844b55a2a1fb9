"""The platform as an MCP server, used by the official client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from app.edge import turns
from backplane.domain.runs import RunStatus
from tests.integration.api.running import PLAN, Api, Person, StartApi, StartWorker
from tests.waiting import wait_until

if TYPE_CHECKING:
    from mcp.client.client import Client


@asynccontextmanager
async def connected(api: Api, person: Person) -> AsyncIterator["Client"]:
    from mcp.client.client import Client  # noqa: PLC0415 - takes a second
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    headers = {"Authorization": f"Bearer {person.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{api.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def call(client: "Client", tool: str, **arguments: Any) -> Any:
    """What the tool answers, which must be no error."""
    result = await client.call_tool(tool, arguments)
    text = said(result)
    assert not result.is_error, text
    return text if tool == "explain_run" else json.loads(text)


def said(result: Any) -> str:
    assert result.content[0].type == "text"
    text: str = result.content[0].text
    return text


async def refusal(client: "Client", tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return said(result)


async def test_a_run_is_made_followed_to_its_end_and_its_files_read(
    api: Api, person: Person, start_worker: StartWorker
) -> None:
    start_worker(api.settings)
    async with connected(api, person) as client:
        made = await call(client, "create_run", prompt="say hello", plan=PLAN)
        events: list[Any] = []
        after, ended = 0, False
        while not ended:
            answer = await call(client, "follow_run", run_id=made["run_id"], after=after)
            events += answer["events"]
            after, ended = answer["next_after"], answer["ended"]
        assert [event["id"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["type"] == "end"
        status = await call(client, "run_status", run_id=made["run_id"])
        assert (status["status"], status["steps"][0]["status"]) == ("completed", "completed")
        assert await call(client, "list_files", run_id=made["run_id"]) == {
            "files": [{"path": "a.txt", "size": 1}],
            "more": 0,
        }
        read = await call(client, "read_file", run_id=made["run_id"], path="a.txt")
        assert read == {"text": "a", "start": 0, "end": 1, "size": 1}


async def test_a_call_that_waits_for_events_keeps_no_turn(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 1)
    run_id = await person.make("create")
    async with connected(api, person) as client, connected(api, person) as other:
        follow = call(client, "follow_run", run_id=run_id, after=1)
        waiting = asyncio.create_task(follow)
        await wait_until(lambda: api.app.state.context.hub.watchers == 1)
        async with asyncio.timeout(10):
            assert (await call(other, "run_status", run_id=run_id))["status"] == "created"
        await person.act("cancel", run_id)
        await waiting


async def test_its_tools_say_what_they_are_for(api: Api, person: Person) -> None:
    async with connected(api, person) as client:
        tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == {
        "create_run", "follow_run", "run_status", "explain_run", "cancel_run", "list_files", "read_file",
    }  # fmt: skip
    assert all(tool.description and "ctx" not in tool.input_schema["properties"] for tool in tools)


async def test_following_waits_for_what_comes(api: Api, person: Person) -> None:
    run_id = await person.make()
    worker = await api.worker()
    async with connected(api, person) as client:
        before = await call(client, "follow_run", run_id=run_id)
        waiting = asyncio.create_task(call(client, "follow_run", run_id=run_id, after=before["next_after"]))
        await worker.say("hello")
        answer = await waiting
    assert [event["data"]["line"] for event in answer["events"]] == ["hello"]
    assert (answer["ended"], answer["status"]) == (False, "running")


async def test_who_follows_is_counted_as_a_watcher(start_api: StartApi) -> None:
    api = await start_api(stream_watchers_max=1)
    person = await api.person()
    run_id = await person.make("create")
    async with connected(api, person) as client:
        waiting = asyncio.create_task(call(client, "follow_run", run_id=run_id, after=1))
        await wait_until(lambda: api.app.state.context.hub.watchers == 1)
        assert "STREAM_WATCHERS_MAX" in await refusal(client, "follow_run", run_id=run_id, after=1)
        await person.act("cancel", run_id)
        assert (await waiting)["status"] == "cancelled"


async def test_nothing_new_within_the_time_is_no_error(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    async with connected(api, person) as client:
        answer = await call(client, "follow_run", run_id=run_id, after=1, wait_seconds=0.05)
    assert answer == {"events": [], "next_after": 1, "ended": False, "status": "created"}


async def test_a_run_is_cancelled_and_explained(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    async with connected(api, person) as client:
        assert "created and not started" in await call(client, "explain_run", run_id=run_id)
        assert (await call(client, "cancel_run", run_id=run_id))["status"] == RunStatus.CANCELLED


async def test_another_users_run_is_not_there(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    async with connected(api, await api.person()) as client:
        for tool in ("follow_run", "run_status", "explain_run", "cancel_run", "list_files"):
            assert "not_found" in await refusal(client, tool, run_id=run_id), tool


async def test_a_file_that_is_no_text_comes_as_base64(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    await person.http.put(f"/agent/runs/{run_id}/files/x.bin", content=b"\xff\x00")
    async with connected(api, person) as client:
        read = await call(client, "read_file", run_id=run_id, path="x.bin")
        assert "not_found" in await refusal(client, "read_file", run_id=run_id, path="y.bin")
        assert "invalid_path" in await refusal(client, "read_file", run_id=run_id, path="../x")
    assert read == {"base64": "/wA=", "start": 0, "end": 2, "size": 2}


async def test_a_plan_that_is_none_says_what_is_wrong(api: Api, person: Person) -> None:
    async with connected(api, person) as client:
        assert "[invalid_plan]" in await refusal(client, "create_run", prompt="x", plan={"steps": []})


async def test_without_a_token_nothing_is_answered(api: Api) -> None:
    answer = await api.client().post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    answer = await api.client({"Authorization": "Bearer agt_x"}).post("/mcp", json={})
    assert answer.status_code == 401


async def test_it_can_be_switched_off(start_api: StartApi) -> None:
    api = await start_api(api_mcp=False)
    assert (await (await api.person()).http.post("/mcp", json={})).status_code == 404


STEP = '{"id": "a", "tool": "shell", "approval": true, "arguments": {"script": "true"}, "approval": false}'


@pytest.mark.parametrize(
    ("plan", "place"),
    [
        (f'{{"steps": [{STEP}]}}', "params.arguments.plan.steps.0.approval"),
        (json.dumps(f'{{"steps": [{STEP}]}}'), "params.arguments.plan.steps.0.approval"),
    ],
    ids=["as an object", "as a text that is JSON"],
)
async def test_a_name_that_stands_twice_in_a_plan_given_by_mcp_is_refused(
    person: Person, plan: str, place: str
) -> None:
    arguments = f'{{"prompt": "x", "plan": {plan}}}'
    body = (
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", '
        f'"params": {{"name": "create_run", "arguments": {arguments}}}}}'
    )
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    answer = await person.http.post("/mcp", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(f"{place}: this name stands twice")
    assert (await person.http.get("/agent/runs")).json()["runs"] == []
