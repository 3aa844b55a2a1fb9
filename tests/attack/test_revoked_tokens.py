"""A token that is revoked is revoked: what was opened with it ends within TOKEN_CACHE_SECONDS, and says why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, update

from backplane.store.tables import tokens, users
from tests.integration.api.running import LONGEST_WAIT_SECONDS, Api, Person, StartApi
from tests.integration.api.test_mcp_server import connected, refusal
from tests.waiting import wait_until

CLOSED = ": this stream ends: its token was revoked"


async def revoke(api: Api, person: Person) -> None:
    await api.resources.store.users.revoke_token(person.token_id)


async def demote(api: Api, person: Person) -> None:
    user = (await person.access(api)).user
    change = update(users).where(users.c.id == user.id).values(tier="free")
    await api.resources.store.database.write(lambda connection: connection.execute(change))


async def delete_user(api: Api, person: Person) -> None:
    """As an operator may do by hand, who removes everything of a user; here there is only the token."""
    user = (await person.access(api)).user
    gone = (delete(tokens).where(tokens.c.user_id == user.id), delete(users).where(users.c.id == user.id))
    await api.resources.store.database.write(lambda connection: [connection.execute(one) for one in gone])


@asynccontextmanager
async def opened(person: Person, path: str) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[str]]]:
    async with asyncio.timeout(LONGEST_WAIT_SECONDS), person.http.stream("GET", path) as response:
        text = response.aiter_text()
        await anext(text)
        yield response, text


async def rest_of(text: AsyncIterator[str]) -> str:
    """Until the server ends the stream."""
    return "".join([chunk async for chunk in text])


async def path_of(kind: str, person: Person) -> str:
    if kind == "run":
        return f"/agent/logs/{await person.make('create')}/stream"
    if kind == "bus":
        return "/api/v1/events/stream?after=now"
    await person.make("create")
    return "/agent/events"


@pytest.mark.parametrize("kind", ["run", "feed", "bus"])
@pytest.mark.parametrize("loses", [revoke, pytest.param(demote, marks=pytest.mark.slow)])
async def test_an_open_stream_ends_with_a_word_when_its_token_is_no_longer_good(
    start_api: StartApi, kind: str, loses: Any
) -> None:
    api = await start_api()
    person, other = await api.person(), await api.person()
    async with (
        opened(person, await path_of(kind, person)) as (_, text),
        opened(other, await path_of(kind, other)),
    ):
        await loses(api, person)
        assert CLOSED in await rest_of(text)
        assert api.app.state.context.hub.watchers == 1


@pytest.mark.slow
async def test_a_stream_of_a_user_who_is_gone_ends(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    async with opened(person, "/agent/events?after=now") as (_, text):
        await delete_user(api, person)
        assert CLOSED in await rest_of(text)


async def test_who_connects_again_with_a_revoked_token_is_refused(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    path = await path_of("run", person)
    async with opened(person, path) as (_, text):
        await revoke(api, person)
        await rest_of(text)
    again = await person.http.get(path, headers={"Last-Event-ID": "1"})
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")


@pytest.mark.slow
async def test_another_token_of_the_same_user_goes_on(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    user = (await person.access(api)).user
    second, plain = await api.resources.store.users.create_token(user.name, user.tier)
    other = Person(api.client({"Authorization": f"Bearer {plain}"}), plain, second.id)
    path = await path_of("run", person)
    async with opened(person, path) as (_, text), opened(other, path):
        await revoke(api, person)
        await rest_of(text)
        assert api.app.state.context.hub.watchers == 1


async def test_a_call_of_mcp_that_waits_for_events_ends(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    run_id = await person.make("create")
    async with connected(api, person) as client:
        waiting = asyncio.create_task(refusal(client, "follow_run", run_id=run_id, after=1, wait_seconds=50))
        await wait_until(lambda: api.app.state.context.hub.watchers == 1)
        await revoke(api, person)
        assert "[unauthenticated]" in await waiting


@pytest.mark.slow
async def test_all_tokens_of_all_streams_are_looked_up_in_one_query(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await start_api()
    store = api.resources.store.users
    asked: list[int] = []
    of_digests = store.of_digests

    async def counted(digests: set[str]) -> Any:
        asked.append(len(digests))
        return await of_digests(digests)

    people = [await api.person(), await api.person()]
    paths = [await path_of("run", person) for person in people]
    async with opened(people[0], paths[0]), opened(people[0], paths[0]), opened(people[1], paths[1]):
        monkeypatch.setattr(store, "of_digests", counted)
        await wait_until(lambda: asked)
    assert asked[0] == 2
