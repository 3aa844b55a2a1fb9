"""Who has no right to something gets nothing, changes nothing, and learns nothing of what there is.

The operations are those of the API's own description, so one that is added is tried here by itself; a parameter of a
new name has to be given a value below.
"""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from redis import Redis

from app.auth import admin_only
from backplane.artifacts.base import AgentId, Author
from backplane.domain.decisions import DecisionKind
from backplane.domain.users import Tier
from backplane.sealing import new_key
from tests.deployments import MANIFEST
from tests.integration.api.live_agents import POOL, spawn
from tests.integration.api.requests.test_decisions import waiting
from tests.integration.api.running import Api, Person, running, settings_on
from tests.integration.api.test_mcp_server import connected, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]

PUBLIC = {"/health/live", "/health/ready"}
NOBODY = "00000000-0000-7000-8000-000000000000"
COMMIT = "0" * 40
HOOK, SCHEDULE = "ci", "weekly"
NAMED = {"/hooks/": HOOK, "/schedules/": SCHEDULE}
EVENT = {"id": "1", "source": "/of/the/owner", "type": "order.created", "data": "a long secret"}
DEPLOYMENT = {"agent_id": "support", "namespace": "team-a", "image": "support:1", "manifest": MANIFEST}
ACTIONS = ("start", "cancel", "retry", "fork", "replay", "status")
TOOLS_OF_A_RUN = ("follow_run", "run_status", "explain_run", "cancel_run", "list_files", "read_file")

Operation = tuple[str, str]


def operations(paths: dict[str, Any]) -> Iterator[Operation]:
    """Every method and path that the API has."""
    for path, methods in paths.items():
        for method in methods:
            yield method.upper(), path


# As it was committed, which `make check` compares with the code: to make it takes each process of the tests a second.
DESCRIBED: dict[str, Any] = json.loads((ROOT / "tests/architecture/wire/openapi.json").read_text())
PATHS = DESCRIBED["paths"]
OPERATIONS = sorted(operations(PATHS))
OF_AN_AGENT = [operation for operation in OPERATIONS if "{agent_id}" in operation[1]]
OF_A_DEPLOYMENT = [operation for operation in OPERATIONS if "{deployment_id}" in operation[1]]
OF_A_RUN = [operation for operation in OPERATIONS if "{run_id}" in operation[1]]
PARTLY_FOR_ADMINS = {
    ("POST", "/agent/bulk"),
    ("DELETE", "/api/deployments/{deployment_id}"),
    ("GET", "/agent/runs"),
    ("GET", "/agent/runs/count"),
    ("GET", "/agent/audit"),
}
"""Users may call it, and a part of what may be asked is for administrators (tests of bulk actions, of lists of runs, of
the audit log)."""
FOR_ADMINS = [
    (method, path)
    for method, path in OPERATIONS
    if "403" in PATHS[path][method.lower()]["responses"] and (method, path) not in PARTLY_FOR_ADMINS
]
SIGNED = {("POST", "/api/v1/hooks/{name}"), ("POST", "/console/session")}
"""Whoever calls it has no token, and signs what is sent, or sends the token in it (tests of hooks and sessions)."""
SESSION = "/console/session"
"""What it answers is for who has a session, and no token does (tests of sessions)."""
WITH_TOKEN = [operation for operation in OPERATIONS if operation[1] not in PUBLIC and operation not in SIGNED] + [
    ("POST", "/mcp"),
    ("GET", "/mcp"),
    ("GET", "/agent/nothing"),
]


@dataclass(frozen=True)
class World:
    """A user with one of everything."""

    api: Api
    owner: Person
    name: str
    run_id: str
    decision_id: str
    agent_id: str
    deployment_id: str
    redis_url: str

    @property
    def values(self) -> dict[str, str]:
        """Of the parameters of paths."""
        return {
            "{run_id}": self.run_id,
            "{decision_id}": self.decision_id,
            "{call_id}": NOBODY,
            "{path}": "a.txt",
            "{name}": "TOKEN",
            "{agent}": "default",
            "{user}": self.name,
            "{account_id}": f"user:{self.name}:tokens",
            "{bulk_id}": NOBODY,
            "{export_id}": NOBODY,
            "{agent_id}": self.agent_id,
            "{deployment_id}": self.deployment_id,
            "{pool}": POOL,
            "{machine}": "0123456789ab",
            "{service}": "cache",
        }

    def snapshot(self) -> tuple[list[str], dict[bytes, bytes | None], list[tuple[str, bytes]]]:
        """All that the platform keeps, but for the counters of rates, and what it notes of who tried what."""
        path = self.api.settings.database_url.get_secret_value().removeprefix("sqlite:///")
        with sqlite3.connect(path) as database:
            rows = [row for row in database.iterdump() if "audit_entries" not in row]
        database.close()
        with Redis.from_url(self.redis_url) as redis:
            keys = sorted(key for key in redis.scan_iter() if not key.startswith(b"rates:"))
            values = {key: redis.dump(key) for key in keys}
        folder = Path(self.api.settings.workspace_dir)
        files = sorted((str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file())
        return rows, values, files


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    redis_of_module: str, sqlite_of_module: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    places = {"redis_url": redis_of_module, "database_url": sqlite_of_module}
    given = {"secrets_key": new_key(), "deploy_target": "kubernetes", **places}
    async with running(settings_on(tmp_path_factory.mktemp("api"), **given)) as api:
        owner = await api.person()
        run_id, [decision_id] = await waiting(api, owner, DecisionKind.APPROVAL)
        assert (await owner.http.put(f"/agent/runs/{run_id}/files/a.txt", content=b"secret")).status_code == 201
        assert (await owner.http.put("/agent/secrets/TOKEN", json={"value": "a long secret"})).status_code == 200
        assert (await owner.http.put(f"/api/v1/hooks/{HOOK}", json={})).status_code == 200
        assert (await owner.http.post("/api/v1/events", json=EVENT)).status_code == 201
        user = await api.resources.store.users.user_of(owner.token)
        assert user is not None
        assert api.resources.artifacts is not None
        await api.resources.artifacts.write(
            AgentId(user.id, "default"), "a.txt", b"mine", Author(run_id=run_id, step_id="a")
        )
        agent_id = await spawn(owner, state={"kept": "a long secret"})
        scheduled = {"agent_id": agent_id, "text": "a long secret", "every_seconds": 3600}
        assert (await owner.http.put(f"/api/v1/schedules/{SCHEDULE}", json=scheduled)).status_code == 201
        deployed = await owner.http.post("/api/deployments", json=DEPLOYMENT)
        assert deployed.status_code == 201
        yield World(api, owner, user.name, run_id, decision_id, agent_id, deployed.json()["id"], redis_of_module)


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    return body


async def call(
    http: httpx.AsyncClient, operation: Operation, values: dict[str, str], headers: dict[bytes, bytes] | None = None
) -> httpx.Response:
    method, path = operation
    filled = path
    for name, value in values.items():
        named = next((own for part, own in NAMED.items() if part in path), value)
        filled = filled.replace(name, named if name == "{name}" else value)
    assert "{" not in filled, f"give {path} a value for its parameters here"
    bodies: dict[str, Any] = {
        "/agent/execute": {"action": "cancel", "run_id": values["{run_id}"]},
        "/agent/runs/{run_id}/decisions/{decision_id}": {"decision": "approve"},
        "/agent/secrets/{name}": {"value": "another secret"},
        "/api/v1/hooks/{name}": {"type": "mine.now"},
        "/api/v1/schedules/{name}": {"agent_id": values["{agent_id}"], "text": "mine", "every_seconds": 60},
        "/api/v1/events": EVENT,
        "/api/v1/agents/pools": {"name": "mine", "role": "developer"},
        "/api/v1/agents/pools/{pool}": {"max_processes": 1},
        "/api/vastai/instances": {},
        "/api/deployments": DEPLOYMENT,
        "/api/deployments/{deployment_id}": {"image": "mine:1"},
        "/api/deployments/{deployment_id}/scale": {"replicas": 1},
        "/api/deployments/{deployment_id}/rollback": {},
        "/api/deployments/{deployment_id}/decision": {"decision": "approve", "revision": 1},
        "/api/v1/agents/pools/{pool}/agents": {"name": "mine"},
        "/api/v1/agents/{agent_id}": {"model": None},
        "/api/v1/agents/{agent_id}/messages": {"text": "hello"},
        "/api/v1/agents/{agent_id}/state": {"state": {}},
        "/agent/accounts/{account_id}/top-up": {"amount": 1, "key": "k"},
        "/agent/accounts/{account_id}/withdraw": {"amount": 1, "key": "k"},
        "/agent/artifacts/{user}/{agent}/rollback": {"commit": COMMIT},
    }
    query = {"commit": COMMIT, "path": "a.txt"} if "/artifacts/" in path else {}
    query |= {"q": "text"} if path.endswith("/search") else {}
    return await http.request(method, filled, params=query, json=bodies.get(path), headers=headers)


# --- wrong tokens ---


async def test_there_are_operations_to_try() -> None:
    assert (len(WITH_TOKEN) >= 46, len(OF_A_RUN) >= 14, len(FOR_ADMINS) >= 17) == (True, True, True)


WRONG: dict[str, Callable[[World], dict[bytes, bytes]]] = {
    "none": lambda _: {},
    "empty": lambda _: {b"Authorization": b""},
    "without a token": lambda _: {b"Authorization": b"Bearer"},
    "another scheme": lambda _: {b"Authorization": b"Basic dXNlcjpwYXNz"},
    "unknown": lambda _: {b"Authorization": b"Bearer agt_" + b"x" * 43},
    "no text": lambda _: {b"Authorization": b"Bearer \xc3\xbcn\xff"},
    "without its scheme": lambda world: {b"Authorization": world.owner.token.encode()},
    "cut short": lambda world: {b"Authorization": b"Bearer " + world.owner.token.encode()[:-1]},
    "with more behind it": lambda world: {b"Authorization": b"Bearer " + world.owner.token.encode() + b"x"},
    "its id": lambda world: {b"Authorization": b"Bearer " + world.owner.token_id.encode()},
    "in a cookie": lambda world: {b"Cookie": b"Authorization=Bearer " + world.owner.token.encode()},
    "in another header": lambda world: {b"X-Authorization": b"Bearer " + world.owner.token.encode()},
}


QUICK = {"none", "unknown"}


@pytest.mark.parametrize(
    "wrong", [pytest.param(wrong, marks=() if wrong in QUICK else pytest.mark.slow) for wrong in WRONG]
)
async def test_a_wrong_token_opens_no_operation_and_changes_nothing(world: World, wrong: str) -> None:
    before = world.snapshot()
    http = world.api.client()
    for operation in WITH_TOKEN:
        answer = await call(http, operation, world.values, WRONG[wrong](world))
        assert (answer.status_code, problem(answer)["code"]) == (401, "unauthenticated"), operation
        assert answer.headers["www-authenticate"] == "Bearer"
        assert world.owner.token not in answer.text
    assert world.snapshot() == before


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_token_is_nobodys(world: World, wrong: str) -> None:
    answer = await world.api.client().get("/agent/me", headers=WRONG[wrong](world))
    assert problem(answer)["code"] == "unauthenticated"


async def test_a_revoked_token_opens_no_operation(world: World) -> None:
    person = await world.api.person()
    assert (await person.http.get("/agent/me")).status_code == 200
    await world.api.resources.store.users.revoke_token(person.token_id)
    for operation in WITH_TOKEN:
        answer = await call(person.http, operation, world.values)
        assert (answer.status_code, problem(answer)["code"]) == (401, "unauthenticated"), operation


async def test_a_token_in_the_address_opens_nothing(world: World) -> None:
    for name in ("token", "access_token", "authorization"):
        answer = await world.api.client().get("/agent/me", params={name: world.owner.token})
        assert problem(answer)["code"] == "unauthenticated"


def routes(world: World) -> list[Any]:
    there = [route for route in world.api.app.router.routes if isinstance(route, APIRoute)]
    return [route for route in there if route.include_in_schema]


async def test_every_operation_of_the_api_is_tried_here(world: World) -> None:
    there = {(method, route.path.replace(":path}", "}")) for route in routes(world) for method in route.methods}
    assert there == set(OPERATIONS)


# --- what is for administrators ---


async def test_what_is_for_administrators_is_what_says_so(world: World) -> None:
    """The description names 403 exactly where the route asks for an administrator, or a part of it does."""

    def asks(dependant: Any) -> bool:
        return dependant.call is admin_only or any(asks(each) for each in dependant.dependencies)

    asking = {(method, route.path) for route in routes(world) if asks(route.dependant) for method in route.methods}
    assert asking == set(FOR_ADMINS)


@pytest.mark.parametrize("tier", [tier for tier in Tier if tier is not Tier.ADMIN])
async def test_what_is_for_administrators_is_for_nobody_else_and_nothing_changes(world: World, tier: Tier) -> None:
    person = await world.api.person(tier)
    before = world.snapshot()
    for operation in FOR_ADMINS:
        answer = await call(person.http, operation, world.values)
        assert (answer.status_code, problem(answer)["code"]) == (403, "forbidden"), operation
        assert world.run_id not in answer.text
    assert world.snapshot() == before


# --- what belongs to another user ---


@pytest.mark.parametrize("tier", [Tier.STANDARD, Tier.ADMIN])
async def test_another_users_run_is_not_there_on_any_operation_and_stays_as_it_is(world: World, tier: Tier) -> None:
    stranger = await world.api.person(tier)
    before = world.snapshot()
    for operation in OF_A_RUN:
        if tier is not Tier.ADMIN and operation in FOR_ADMINS:
            continue
        answer = await call(stranger.http, operation, world.values)
        absent = await call(stranger.http, operation, {**world.values, "{run_id}": NOBODY})
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), operation
        # Not even the difference between what is another's and what is not there can be seen.
        assert answer.text.replace(world.run_id, NOBODY) == absent.text, operation
        assert {*answer.headers} == {*absent.headers}, operation
    assert world.snapshot() == before


@pytest.mark.parametrize("tier", [Tier.STANDARD, Tier.ADMIN])
async def test_another_users_agent_is_not_there_on_any_operation_and_stays_as_it_is(world: World, tier: Tier) -> None:
    stranger = await world.api.person(tier)
    before = world.snapshot()
    assert len(OF_AN_AGENT) >= 12
    for operation in OF_AN_AGENT:
        answer = await call(stranger.http, operation, world.values)
        absent = await call(stranger.http, operation, {**world.values, "{agent_id}": NOBODY})
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), operation
        assert answer.text.replace(world.agent_id, NOBODY) == absent.text, operation
        assert {*answer.headers} == {*absent.headers}, operation
    assert world.snapshot() == before
    assert (await stranger.http.get("/api/v1/agents")).json()["agents"] == []


async def test_another_users_deployment_is_not_there_on_any_operation_and_stays_as_it_is(world: World) -> None:
    stranger = await world.api.person()
    before = world.snapshot()
    assert len(OF_A_DEPLOYMENT) >= 13
    for operation in OF_A_DEPLOYMENT:
        if operation in FOR_ADMINS:
            continue
        answer = await call(stranger.http, operation, world.values)
        absent = await call(stranger.http, operation, {**world.values, "{deployment_id}": NOBODY})
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), operation
        assert answer.text.replace(world.deployment_id, NOBODY) == absent.text, operation
        assert {*answer.headers} == {*absent.headers}, operation
    assert world.snapshot() == before


@pytest.mark.parametrize("action", ACTIONS)
async def test_another_users_run_is_not_there_for_any_action(world: World, action: str) -> None:
    stranger = await world.api.person()
    before = world.snapshot()
    answer = await stranger.act(action, world.run_id)
    absent = await stranger.act(action, NOBODY)
    assert (answer.status_code, problem(answer)["code"]) == (404, "not_found")
    assert answer.text.replace(world.run_id, NOBODY) == absent.text
    assert world.snapshot() == before


async def test_every_action_on_a_run_is_tried_above() -> None:
    acting = {
        model["properties"]["action"]["const"]
        for model in DESCRIBED["components"]["schemas"].values()
        if {"action", "run_id"} <= model.get("properties", {}).keys()
    }
    assert acting == set(ACTIONS)


async def test_another_users_decision_is_not_there_under_a_run_of_ones_own(world: World) -> None:
    stranger = await world.api.person()
    mine = {**world.values, "{run_id}": await stranger.make("create")}
    before = world.snapshot()
    operation = ("POST", "/agent/runs/{run_id}/decisions/{decision_id}")
    answer = await call(stranger.http, operation, mine)
    absent = await call(stranger.http, operation, {**mine, "{decision_id}": NOBODY})
    assert (answer.status_code, answer.text.replace(world.decision_id, NOBODY)) == (404, absent.text)
    assert world.snapshot() == before


async def test_nothing_of_another_user_is_in_any_list(world: World) -> None:
    stranger = await world.api.person()
    lists = [operation for operation in OPERATIONS if operation[0] == "GET" and "{" not in operation[1]]
    for operation in lists:
        if operation in FOR_ADMINS or operation[1] in ("/agent/events", "/api/v1/events/stream", SESSION):
            continue
        answer = await call(stranger.http, operation, world.values)
        assert answer.status_code == 200, operation
        theirs_are = (world.run_id, world.decision_id, world.deployment_id, world.name, "a long secret", "/hooks/")
        for theirs in theirs_are:
            assert theirs not in answer.text, operation


async def test_what_is_named_and_not_numbered_is_the_callers_own(world: World) -> None:
    """Secrets, hooks, schedules and artifacts have names, so the same name is another thing for each user."""
    stranger = await world.api.person()
    before = world.snapshot()
    for path in ("/agent/artifacts/default", "/agent/secrets", "/api/v1/hooks", "/api/v1/schedules"):
        answer = await stranger.http.get(path)
        assert [value for value in answer.json().values() if value] == [], path
    for method, path in (
        ("GET", "/agent/artifacts/default/content?path=a.txt"),
        ("DELETE", "/agent/secrets/TOKEN"),
        ("DELETE", f"/api/v1/hooks/{HOOK}"),
        *((method, f"/api/v1/schedules/{SCHEDULE}") for method in ("GET", "DELETE")),
        *(("POST", f"/api/v1/schedules/{SCHEDULE}/{action}") for action in ("pause", "resume", "fire")),
    ):
        answer = await stranger.http.request(method, path)
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), path
    assert world.snapshot() == before


async def test_another_users_run_is_not_there_for_any_tool_of_the_mcp_server(world: World) -> None:
    stranger = await world.api.person()
    before = world.snapshot()
    async with connected(world.api, stranger) as client:
        tools = [tool for tool in (await client.list_tools()).tools if "run_id" in tool.input_schema["properties"]]
        assert {tool.name for tool in tools} == set(TOOLS_OF_A_RUN)
        for tool in tools:
            more = {"path": "a.txt"} if "path" in tool.input_schema["properties"] else {}
            theirs = await client.call_tool(tool.name, {"run_id": world.run_id, **more})
            absent = await client.call_tool(tool.name, {"run_id": NOBODY, **more})
            assert (theirs.is_error, "not_found" in said(theirs)) == (True, True), tool.name
            assert said(theirs).replace(world.run_id, NOBODY) == said(absent), tool.name
    assert world.snapshot() == before
