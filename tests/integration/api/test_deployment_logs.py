"""The stream of what replicas print: every line once and in order, and a gap where old ones went."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.deployments import LOG_BATCH_LINES, LOG_LINES_KEPT, Deployment, PrintedLine
from tests.deployments import new_deployment
from tests.integration.api.running import LONGEST_WAIT_SECONDS, Api, Frame, Person, frames

AT = datetime(2026, 11, 30, tzinfo=UTC)
Take = Callable[[int], Any]


@pytest.fixture
async def deployment(api: Api, person: Person) -> Deployment:
    user = await api.resources.store.users.user_of(person.token)
    assert user is not None
    made, _ = await api.resources.store.deployments.create(user, new_deployment(), most=5)
    return made


async def printed(api: Api, deployment: Deployment, *texts: str) -> None:
    lines = [PrintedLine("support-1", text, AT) for text in texts]
    await api.resources.store.deployments.add_log_lines(deployment.id, lines)


@asynccontextmanager
async def stream(
    person: Person, deployment: Deployment, last_event_id: str | None = None, **parameters: Any
) -> AsyncIterator[AsyncIterator[Frame]]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    url = f"/api/deployments/{deployment.id}/logs"
    async with (
        asyncio.timeout(LONGEST_WAIT_SECONDS),
        person.http.stream("GET", url, headers=headers, params=parameters) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield frames(response)


async def lines(received: AsyncIterator[Frame], count: int) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = []
    while len(found) < count:
        frame = await anext(received)
        if frame.event:
            found.append((frame.id, frame.data["line"] if frame.event == "log" else frame.event))
    return found


async def all_of(person: Person, deployment: Deployment, **parameters: Any) -> list[Frame]:
    async with stream(person, deployment, follow=False, **parameters) as received:
        return [frame async for frame in received]


async def test_lines_that_are_kept_come_first_and_then_those_that_are_printed(
    api: Api, person: Person, deployment: Deployment
) -> None:
    await printed(api, deployment, "one", "two")
    async with stream(person, deployment) as received:
        assert await lines(received, 2) == [(1, "one"), (2, "two")]
        for number in range(3, 8):
            await printed(api, deployment, f"line {number}")
        assert await lines(received, 5) == [(number, f"line {number}") for number in range(3, 8)]


async def test_a_line_says_who_printed_it_and_when(api: Api, person: Person, deployment: Deployment) -> None:
    await printed(api, deployment, "a\u2028b\r\nc")
    [frame] = await all_of(person, deployment)
    assert frame.body == {
        "id": 1,
        "deployment_id": deployment.id,
        "type": "log",
        "at": AT.isoformat(),
        "data": {"replica": "support-1", "line": "a\u2028b\r\nc", "left_out": 0},
    }


async def test_a_stream_goes_on_behind_the_last_line_that_was_received(
    api: Api, person: Person, deployment: Deployment
) -> None:
    await printed(api, deployment, "one", "two", "three")
    async with stream(person, deployment, last_event_id="2", cursor=1) as received:
        assert await lines(received, 1) == [(3, "three")]
    assert [frame.id for frame in await all_of(person, deployment, cursor=1)] == [2, 3]
    assert [frame.id for frame in await all_of(person, deployment, tail=1)] == [3]
    assert await all_of(person, deployment, tail=0) == []


async def test_a_line_that_was_not_printed_yet_is_a_gap(api: Api, person: Person, deployment: Deployment) -> None:
    await printed(api, deployment, "one")
    async with stream(person, deployment, last_event_id="9") as received:
        assert await lines(received, 1) == [(1, "gap")]
        await printed(api, deployment, "two")
        assert await lines(received, 1) == [(2, "two")]


async def test_lines_that_went_are_a_gap(api: Api, person: Person, deployment: Deployment) -> None:
    for _ in range(LOG_LINES_KEPT // LOG_BATCH_LINES):
        await printed(api, deployment, *["x"] * LOG_BATCH_LINES)
    await printed(api, deployment, "a", "b")
    found = await all_of(person, deployment)
    assert (found[0].event, found[0].id) == ("gap", 2)
    assert {name: found[0].data[name] for name in ("after", "before")} == {"after": 0, "before": 3}
    assert [frame.id for frame in found[1:]] == list(range(3, LOG_LINES_KEPT + 3))


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", str(2**64)])
async def test_a_cursor_that_is_no_number_is_refused(person: Person, deployment: Deployment, cursor: str) -> None:
    url = f"/api/deployments/{deployment.id}/logs"
    for answer in (
        await person.http.get(url, headers={"Last-Event-ID": cursor}),
        await person.http.get(url, params={"cursor": cursor}),
    ):
        assert answer.status_code == 422


async def test_a_stream_ends_when_the_deployment_is_gone(api: Api, person: Person, deployment: Deployment) -> None:
    await printed(api, deployment, "one")
    async with stream(person, deployment) as received:
        assert await lines(received, 1) == [(1, "one")]
        await api.resources.store.deployments.forget(deployment.id)
        assert [frame.event async for frame in received if frame.event] == ["end"]


async def test_a_flood_of_lines_reaches_who_watches_at_once(api: Api, person: Person, deployment: Deployment) -> None:
    async with stream(person, deployment) as received:
        await printed(api, deployment, "first")
        assert await lines(received, 1) == [(1, "first")]
        for number in range(3):
            await printed(api, deployment, *[f"{number}"] * LOG_BATCH_LINES)
        found = await lines(received, 3 * LOG_BATCH_LINES)
    assert [number for number, _ in found] == list(range(2, 3 * LOG_BATCH_LINES + 2))


async def test_all_who_watch_a_deployment_get_each_line_once(api: Api, person: Person, deployment: Deployment) -> None:
    async def watch(number: int) -> list[tuple[int | None, str]]:
        async with stream(person, deployment) as received:
            return await lines(received, 50)

    watching = [asyncio.create_task(watch(number)) for number in range(5)]
    for number in range(50):
        await printed(api, deployment, f"line {number}")
    expected = [(number + 1, f"line {number}") for number in range(50)]
    assert await asyncio.gather(*watching) == [expected] * 5
