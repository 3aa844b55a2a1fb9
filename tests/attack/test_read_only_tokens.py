"""A read-only token, and its session, change nothing, by whatever way they ask."""

import json
from typing import Any

import httpx
import pytest

from backplane.domain.users import Tier
from tests.attack.test_authorization import NOBODY, OPERATIONS, SIGNED
from tests.integration.api.conftest import api, settings_with, start_api
from tests.integration.api.running import Api, Person

__all__ = ["api", "settings_with", "start_api"]

SIGN_IN = ("POST", "/console/session")
SIGN_OUT = ("DELETE", "/console/session")
CHANGES = [
    operation
    for operation in OPERATIONS
    if operation[0] not in ("GET", "HEAD") and operation not in (*SIGNED, SIGN_IN, SIGN_OUT)
]


@pytest.fixture
async def looking(api: Api) -> httpx.AsyncClient:
    """An administrator who only looks."""
    _, plain = await api.resources.store.users.create_token("watcher", Tier.ADMIN, is_read_only=True)
    return api.client({"Authorization": f"Bearer {plain}"})


@pytest.fixture
async def looking_page(api: Api) -> httpx.AsyncClient:
    """The same in a browser."""
    _, plain = await api.resources.store.users.create_token("watcher", Tier.ADMIN, is_read_only=True)
    client = api.client({"Origin": api.url})
    answer = await client.post("/console/session", json={"token": plain})
    assert answer.json()["is_read_only"] is True
    return client


def filled(path: str) -> str:
    for name in ("run_id", "decision_id", "agent_id", "deployment_id", "bulk_id", "export_id"):
        path = path.replace(f"{{{name}}}", NOBODY)
    return path.replace("{path}", "a.txt").replace("{", "").replace("}", "")


async def test_it_is_refused_whatever_changes_something(
    api: Api, looking: httpx.AsyncClient, looking_page: httpx.AsyncClient
) -> None:
    assert len(CHANGES) >= 45
    for client in (looking, looking_page):
        for method, path in CHANGES:
            body = {"action": "create", "prompt": "say hello"} if path == "/agent/execute" else {}
            answer = await client.request(method, filled(path), json=body)
            assert (answer.status_code, answer.json()["code"]) == (403, "read_only"), (method, path)
    assert await api.resources.store.runs.under_way() == dict.fromkeys(await api.resources.store.runs.under_way(), 0)


@pytest.mark.parametrize("action", ["create", "run", "start", "cancel", "retry", "fork", "replay"])
async def test_it_is_refused_each_action_on_a_run(looking: httpx.AsyncClient, action: str) -> None:
    more = {"prompt": "say hello"} if action in ("create", "run") else {"run_id": NOBODY}
    more |= {"step": "a"} if action == "fork" else {}
    answer = await looking.post("/agent/execute", json={"action": action, **more})
    assert (answer.status_code, answer.json()["code"]) == (403, "read_only")


async def test_it_sees_what_its_user_sees(api: Api) -> None:
    owner = await api.person()
    user = await api.resources.store.users.user_of(owner.token)
    assert user is not None
    _, plain = await api.resources.store.users.create_token(user.name, user.tier, is_read_only=True)
    looking = Person(api.client({"Authorization": f"Bearer {plain}"}), plain, "")
    run_id = await owner.make("create")
    assert (await looking.show(run_id))["run_id"] == run_id
    for action in ("status", "validate"):
        more = {"run_id": run_id} if action == "status" else {"prompt": "say hello"}
        assert (await looking.http.post("/agent/execute", json={"action": action, **more})).status_code == 200
    for path in ("/agent/runs", "/agent/decisions", f"/agent/logs/{run_id}", "/agent/secrets", "/agent/budget"):
        assert (await looking.http.get(path)).status_code == 200


async def test_it_gets_no_secret_to_sign_with(looking: httpx.AsyncClient) -> None:
    answer = await looking.get("/agent/webhook-secret")
    assert (answer.status_code, answer.json()["code"]) == (403, "read_only")


async def called(client: httpx.AsyncClient, tool: str, **arguments: Any) -> str:
    """What a tool of the MCP server answers."""
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments},
    }
    answer = await client.post("/mcp", json=message, headers={"Accept": "application/json, text/event-stream"})
    return json.dumps(answer.json())


@pytest.mark.slow
async def test_tools_of_mcp_change_nothing_for_it_and_tell_what_there_is(
    api: Api, looking: httpx.AsyncClient, looking_page: httpx.AsyncClient
) -> None:
    for client in (looking, looking_page):
        assert "[read_only]" in await called(client, "create_run", prompt="say hello")
        assert "[read_only]" in await called(client, "cancel_run", run_id=NOBODY)
        assert "[not_found]" in await called(client, "run_status", run_id=NOBODY)
