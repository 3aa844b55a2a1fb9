"""What a refusal looks like: one form, a stable code, and nothing that helps a stranger. Who is let in is tried by
`tests/attack/test_authorization.py`."""

import re
from typing import Any

import httpx
import pytest

from app import errors
from backplane.domain.users import Tier
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "detail"} <= body.keys() <= {*body, "field"}
    assert body["status"] == answer.status_code
    return body


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


async def test_the_patterns_of_paths_are_compiled_once_for_all_answers_405(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await person.http.delete("/agent/queue")

    def compile_again(path: str) -> None:
        raise AssertionError(f"{path} is compiled a second time")

    monkeypatch.setattr(errors, "compile_path", compile_again)
    second = await person.http.delete("/agent/queue")
    assert (first.status_code, second.status_code) == (405, 405)
    assert second.headers["allow"] == first.headers["allow"]


async def test_a_fault_of_the_platform_is_a_problem_without_its_reason(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(api.resources.store.run_lists, "page", fault)
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
