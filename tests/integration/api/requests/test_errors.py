"""Who is let in, and what a refusal looks like: one form, a stable code, and nothing that helps a stranger."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from backplane.settings import Settings
from backplane.users import Tier
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = {"/health/live", "/health/ready"}
ACTIONS = ("start", "cancel", "retry", "fork", "replay", "status")
VALUES = {
    "{name}": "TOKEN",
    "{path}": "a.txt",
    "{agent}": "default",
    "{user}": "ada",
    "{account_id}": "user:ada:tokens",
    "{decision_id}": "00000000-0000-7000-8000-000000000001",
    "{call_id}": "00000000-0000-7000-8000-000000000002",
}
"""Of the parameters of paths, but for the run."""


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the API has."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


OPERATIONS = sorted(operations(create_app(Settings.model_validate({}))))
WITH_TOKEN = [operation for operation in OPERATIONS if operation[1] not in PUBLIC]
OF_A_RUN = [operation for operation in OPERATIONS if "{run_id}" in operation[1]]


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "detail"} <= body.keys() <= {*body, "field"}
    assert body["status"] == answer.status_code
    return body


async def call(http: httpx.AsyncClient, method: str, path: str, run_id: str) -> httpx.Response:
    filled = path.replace("{run_id}", run_id)
    for name, value in VALUES.items():
        filled = filled.replace(name, value)
    assert "{" not in filled, f"give {path} a value for its parameters here"
    body = {"action": "status", "run_id": run_id} if path == "/agent/execute" else None
    if path.endswith("/{decision_id}"):
        body = {"decision": "approve"}
    return await http.request(method, filled, json=body)


async def test_there_are_routes_to_try() -> None:
    assert len(OF_A_RUN) >= 6


async def test_every_route_but_health_wants_a_token(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    for method, path in WITH_TOKEN:
        answer = await call(api.client(), method, path, run_id)
        assert (answer.status_code, problem(answer)["code"]) == (401, "unauthenticated"), path
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", b"Basic dXNlcjpwYXNz", b"Bearer agt_wrong", b"Bearer \xc3\xbcn\xff", b"agt_x"],
)
async def test_what_is_no_token_lets_nobody_in(api: Api, header: bytes) -> None:
    answer = await api.client().get("/agent/me", headers={b"Authorization": header})
    assert problem(answer)["code"] == "unauthenticated"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "agt_wrong" not in answer.text


async def test_a_revoked_token_lets_nobody_in(api: Api, person: Person) -> None:
    assert (await person.http.get("/agent/me")).status_code == 200
    await api.resources.store.users.revoke_token(person.token_id)
    answer = await person.http.get("/agent/me")
    assert (answer.status_code, problem(answer)["code"]) == (401, "unauthenticated")
    assert person.token not in answer.text


async def test_a_token_that_was_checked_is_trusted_for_no_longer_than_the_setting_says(
    start_api: StartApi,
) -> None:
    api = await start_api(token_cache_seconds=3600.0)
    person = await api.person()
    assert (await person.http.get("/agent/me")).status_code == 200
    await api.resources.store.users.revoke_token(person.token_id)
    assert (await person.http.get("/agent/me")).status_code == 200


@pytest.mark.parametrize("tier", list(Tier))
async def test_a_token_says_whose_it_is(api: Api, tier: Tier) -> None:
    person = await api.person(tier)
    me = (await person.http.get("/agent/me")).json()
    assert me["tier"] == tier
    shown = await person.show(await person.make("create"))
    assert shown["priority"] == {"free": "low", "standard": "normal", "beta": "high", "admin": "critical"}[tier]


async def test_another_users_run_is_not_there_on_any_route(api: Api, person: Person) -> None:
    run_id = await person.make()
    await person.http.put(f"/agent/runs/{run_id}/files/a.txt", content=b"secret")
    stranger = await api.person(Tier.ADMIN)
    nobody = "00000000-0000-7000-8000-000000000000"
    for method, path in OF_A_RUN:
        answer = await call(stranger.http, method, path, run_id)
        absent = await call(stranger.http, method, path, nobody)
        assert (answer.status_code, problem(answer)["code"]) == (404, "not_found"), path
        # Not even the difference between a run that is another's and one that is not there is told.
        assert answer.text.replace(run_id, nobody) == absent.text, path


@pytest.mark.parametrize("action", ACTIONS)
async def test_another_users_run_is_not_there_for_any_action(api: Api, person: Person, action: str) -> None:
    run_id = await person.make()
    stranger = await api.person()
    answer = await stranger.act(action, run_id)
    assert (answer.status_code, problem(answer)["code"]) == (404, "not_found")
    shown = await person.show(run_id)
    assert (shown["status"], shown["cancel_requested"]) == ("queued", False)


async def test_every_action_on_a_run_is_tried_above() -> None:
    schema = create_app(Settings.model_validate({})).openapi()["components"]["schemas"]
    acting = {
        model["properties"]["action"]["const"]
        for model in schema.values()
        if {"action", "run_id"} <= model.get("properties", {}).keys()
    }
    assert acting == set(ACTIONS)


async def test_another_users_runs_are_in_no_list(api: Api, person: Person) -> None:
    run_id = await person.make()
    stranger = await api.person()
    assert (await stranger.http.get("/agent/runs")).json()["runs"] == []
    assert (await stranger.http.get(f"/agent/runs?cursor=f{run_id[1:]}")).json()["runs"] == []


async def test_a_path_that_is_not_there_is_a_problem(person: Person) -> None:
    assert problem(await person.http.get("/agent/nothing"))["code"] == "not_found"


async def test_a_method_that_a_path_does_not_take_is_a_problem_that_names_those_it_takes(person: Person) -> None:
    answer = await person.http.delete("/agent/runs")
    assert (answer.status_code, problem(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


async def test_a_fault_of_the_platform_is_a_problem_without_its_reason(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(api.resources.store.runs, "page", fault)
    answer = await person.http.get("/agent/runs")
    assert (answer.status_code, problem(answer)["code"]) == (500, "internal_error")
    assert "hunter2" not in answer.text


async def test_every_code_is_a_name(person: Person) -> None:
    answers = [
        await person.http.get("/nothing"),
        await person.http.get("/agent/runs/x"),
        await person.http.delete("/agent/queue"),
        await person.http.post("/agent/execute", content=b"{"),
    ]
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", problem(answer)["code"]) for answer in answers)
