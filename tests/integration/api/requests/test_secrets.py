"""Secrets as the API's users see them: kept, listed by name, forgotten, never given back."""

import logging
from typing import Any

import httpx
import pytest

from backplane.sealing import new_key
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUE = "the-very-secret-value"


async def put(person: Person, name: str = "TOKEN", **body: Any) -> httpx.Response:
    return await person.http.put(f"/agent/secrets/{name}", json={"value": VALUE, **body})


async def names(person: Person) -> list[str]:
    return [secret["name"] for secret in (await person.http.get("/agent/secrets")).json()["secrets"]]


async def test_a_secret_is_kept_sealed_and_never_given_back(keeping: Api, ada: Person) -> None:
    kept = await put(ada, hosts=["*.example.org"], tools=["http_fetch"])
    assert kept.status_code == 200
    assert (kept.json()["name"], kept.json()["tools"], kept.json()["hosts"]) == (
        "TOKEN",
        ["http_fetch"],
        ["*.example.org"],
    )
    listed = await ada.http.get("/agent/secrets")
    assert listed.json() == {"secrets": [kept.json()]}
    assert VALUE not in kept.text + listed.text
    user = await keeping.resources.store.users.user_of(ada.token)
    assert user is not None
    row = await keeping.resources.store.secrets.get(user.id, "TOKEN")
    assert VALUE not in row.sealed
    assert keeping.resources.seal is not None
    assert keeping.resources.seal.open(row.sealed, user_id=user.id, name="TOKEN") == VALUE


async def test_without_tools_and_hosts_it_is_for_the_sandbox_and_for_no_host(ada: Person) -> None:
    kept = (await put(ada)).json()
    assert (kept["tools"], kept["hosts"]) == (["shell", "python", "http_fetch"], [])


async def test_a_secret_is_forgotten_once(ada: Person) -> None:
    await put(ada)
    assert (await ada.http.delete("/agent/secrets/TOKEN")).status_code == 204
    assert await names(ada) == []
    assert (await ada.http.delete("/agent/secrets/TOKEN")).status_code == 404


async def test_nobody_else_sees_or_forgets_it(keeping: Api, ada: Person) -> None:
    await put(ada)
    eve = await keeping.person()
    assert await names(eve) == []
    assert (await eve.http.delete("/agent/secrets/TOKEN")).status_code == 404
    assert await names(ada) == ["TOKEN"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"value": "hush!"}, "value"),
        ({"value": "hush" * 10_000}, "value"),
        ({"value": "hush-hush\0"}, "value"),
        ({"value": ["hush-hush"]}, "value"),
        ({"value": {"hush-hush": 1}}, "value"),
        ({"value": "hush-hush", "tools": ["a b"]}, "tools"),
        ({"value": "hush-hush", "tools": ["t"] * 51}, "tools"),
        ({"value": "hush-hush", "hosts": ["*"]}, "hosts"),
        ({"value": "hush-hush", "hosts": ["https://example.org/"]}, "hosts"),
        ({"value": "hush-hush", "hosts": "example.org"}, "hosts"),
        ({"value": "hush-hush", "more": 1}, "more"),
        ({"valu": "hush-hush"}, "value"),
        ("hush-hush", "body"),
        (["hush-hush"], "body"),
    ],
)
async def test_what_is_not_taken_is_named_without_the_value(
    ada: Person, body: Any, field: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await ada.http.put("/agent/secrets/TOKEN", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    said = answer.text + caplog.text + "".join(capfd.readouterr())
    assert "hush-hush" not in said
    assert "hush!" not in said


async def test_a_broken_body_is_refused_without_being_repeated(ada: Person) -> None:
    answer = await ada.http.put(
        "/agent/secrets/TOKEN", content=b'{"value": "hush-hush', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert "hush" not in answer.text


@pytest.mark.parametrize("name", ["token", "1TOKEN", "TO-KEN", "T" * 65, "T%20"])
async def test_a_name_that_is_none_is_refused(ada: Person, name: str) -> None:
    assert (await put(ada, name)).status_code == 422


async def test_a_body_over_the_limit_is_refused_though_it_is_a_put(start_api: StartApi) -> None:
    person = await (await start_api(request_max_bytes=1024, secrets_key=new_key())).person()
    assert (await put(person, value="x" * 900)).status_code == 200
    assert (await put(person, value="x" * 1024)).status_code == 413


@pytest.mark.slow
async def test_there_are_a_hundred_at_most(ada: Person) -> None:
    for number in range(100):
        assert (await put(ada, f"T{number}")).status_code == 200
    assert (await put(ada, "ONE_MORE")).status_code == 413
    assert (await put(ada, "T7")).status_code == 200


async def test_without_a_key_it_says_what_to_set(person: Person) -> None:
    answer = await put(person)
    assert (answer.status_code, answer.json()["code"]) == (409, "secrets_not_kept")
    assert "SECRETS_KEY" in answer.json()["detail"]
    assert await names(person) == []
