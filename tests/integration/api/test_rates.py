"""A token that calls too often has to wait, on whichever API process it calls; nobody else has to."""

import asyncio

import httpx
import pytest

from backplane.limits.rates import redis as rates
from tests.integration.api.running import Api, Person, StartApi

SLOW = {"api_rate_per_second": 0.01, "api_rate_burst": 20}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests count calls. On a slow machine permits that were drawn ahead would be lost before their calls come,
    and calls would pass while Redis takes a second to answer."""
    monkeypatch.setattr(rates, "AHEAD_SECONDS", 60.0)
    monkeypatch.setattr(rates, "ANSWER_SECONDS", 60.0)


async def statuses(*people: Person, path: str = "/agent/queue") -> list[int]:
    return [answer.status_code for answer in await asyncio.gather(*(person.http.get(path) for person in people))]


def at(api: Api, person: Person) -> Person:
    """The same person, calling another API process."""
    return Person(api.client({"Authorization": f"Bearer {person.token}"}), person.token, person.token_id)


async def test_a_token_may_call_so_often_over_all_processes(start_api: StartApi) -> None:
    one, other = await start_api(**SLOW), await start_api(**SLOW)
    person = await one.person()
    found = await statuses(*[person, at(other, person)] * 25)
    assert sorted(found) == [200] * 20 + [429] * 30


async def test_a_refusal_says_when_to_come_back(start_api: StartApi) -> None:
    api = await start_api(api_rate_per_second=0.5, api_rate_burst=1)
    person = await api.person()
    first, second = [await person.http.get("/agent/queue") for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.headers["Content-Type"] == "application/problem+json"
    assert second.json()["code"] == "rate_limited"
    assert second.headers["Retry-After"] == "2"


async def test_another_token_is_not_affected(start_api: StartApi) -> None:
    api = await start_api(**SLOW)
    loud, quiet = await api.person(), await api.person()
    assert 429 in await statuses(*[loud] * 25)
    assert await statuses(quiet) == [200]


async def test_health_is_not_limited(start_api: StartApi) -> None:
    api = await start_api(**SLOW)
    person = await api.person()
    await statuses(*[person] * 25)
    assert await statuses(*[person] * 25, path="/health/live") == [200] * 25


async def test_what_needs_no_token_is_limited_for_whoever_sends_one_all_the_same(start_api: StartApi) -> None:
    api = await start_api(**{**SLOW, "api_rate_burst": 4})
    person = await api.person()
    assert await statuses(person) == [200]
    for path in ("/openapi.json", "/metrics", "/docs", "/health/ready"):
        assert 429 in await statuses(*[person] * 8, path=path)


async def test_a_revoked_token_asks_as_a_stranger_for_what_needs_no_token(start_api: StartApi) -> None:
    api = await start_api(
        token_cache_seconds=0, api_anonymous_rate_per_second=0.01, api_anonymous_rate_burst=3, api_rate_per_second=0
    )
    person = await api.person()
    assert await statuses(person) == [200]
    await api.resources.store.users.revoke_token(person.token_id)
    found = [(await person.http.get("/docs")).status_code for _ in range(4)]
    assert found == [200] * 3 + [429]


async def test_an_unknown_token_is_refused_as_unknown(start_api: StartApi) -> None:
    api = await start_api(**SLOW)
    stranger = Person(api.client({"Authorization": "Bearer agt_nobody"}), "agt_nobody", "")
    assert set(await statuses(*[stranger] * 25)) == {401}


async def test_without_a_limit_nobody_is_refused(start_api: StartApi) -> None:
    api = await start_api(api_rate_per_second=0, api_rate_burst=1)
    person = await api.person()
    assert set(await statuses(*[person] * 50)) == {200}


async def test_an_answer_that_says_to_wait_is_one_that_the_documentation_names(start_api: StartApi) -> None:
    api = await start_api(**SLOW)
    async with httpx.AsyncClient(base_url=api.url) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    assert "Retry-After" in paths["/agent/queue"]["get"]["responses"]["429"]["headers"]
