"""Runs and events in pages: newest first, oldest first, nothing left out and nothing twice."""

import pytest

from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_runs_are_listed_newest_first(person: Person) -> None:
    made = [await person.make("create") for _ in range(5)]
    listed = (await person.http.get("/agent/runs")).json()
    assert [run["run_id"] for run in listed["runs"]] == made[::-1]
    assert listed["next_cursor"] is None


@pytest.mark.parametrize("limit", [1, 2, 6, 7, 8])
async def test_pages_have_every_run_once(person: Person, limit: int) -> None:
    made = [await person.make("create") for _ in range(7)]
    seen: list[str] = []
    page = (await person.http.get("/agent/runs", params={"limit": limit})).json()
    while True:
        assert len(page["runs"]) <= limit
        seen += [run["run_id"] for run in page["runs"]]
        if not page["next_cursor"]:
            break
        page = (await person.http.get("/agent/runs", params={"limit": limit, "cursor": page["next_cursor"]})).json()
    assert seen == made[::-1]


async def test_runs_that_are_made_meanwhile_change_no_page_that_follows(person: Person) -> None:
    made = [await person.make("create") for _ in range(4)]
    first = (await person.http.get("/agent/runs", params={"limit": 2})).json()
    await person.make("create")
    second = (await person.http.get("/agent/runs", params={"cursor": first["next_cursor"]})).json()
    assert [run["run_id"] for run in second["runs"]] == made[1::-1]


async def test_runs_are_listed_by_status_with_pages(person: Person) -> None:
    queued = []
    for _ in range(3):
        await person.make("create")
        queued.append(await person.make())
    first = (await person.http.get("/agent/runs", params={"status": "queued", "limit": 2})).json()
    cursor = first["next_cursor"]
    second = (await person.http.get("/agent/runs", params={"status": "queued", "cursor": cursor})).json()
    assert [run["run_id"] for run in first["runs"] + second["runs"]] == queued[::-1]
    assert {run["status"] for run in first["runs"]} == {"queued"}


async def test_a_list_shows_the_beginning_of_a_prompt_and_a_run_all_of_it(person: Person) -> None:
    run_id = await person.make("create", prompt="x" * 500, metadata={"ticket": 42})
    [listed] = (await person.http.get("/agent/runs")).json()["runs"]
    assert (listed["prompt"], listed["metadata"]) == ("x" * 200, {"ticket": 42})
    assert (await person.show(run_id))["prompt"] == "x" * 500


@pytest.mark.parametrize("limit", [1, 3, 500])
async def test_pages_of_events_have_every_event_once(api: Api, person: Person, limit: int) -> None:
    await person.make()
    worker = await api.worker()
    await worker.say("one", "two", "three")
    await worker.end()
    seen, after, ended = [], 0, False
    while not ended:
        page = (await person.http.get(f"/agent/logs/{worker.run_id}", params={"after": after, "limit": limit})).json()
        assert 1 <= len(page["events"]) <= limit
        seen += [event["id"] for event in page["events"]]
        after, ended = page["next_after"], page["ended"]
    assert seen == [1, 2, 3, 4, 5, 6, 7]


async def test_events_of_a_live_run_are_readable_before_the_database_has_them(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    await worker.publish(worker.lines("one"))
    page = (await person.http.get(f"/agent/logs/{worker.run_id}", params={"after": 2})).json()
    assert [event["data"]["line"] for event in page["events"]] == ["one"]
    assert page["ended"] is False


async def test_a_page_after_the_last_event_is_empty_and_keeps_the_cursor(person: Person) -> None:
    run_id = await person.make("create")
    page = (await person.http.get(f"/agent/logs/{run_id}", params={"after": 1})).json()
    assert page == {"events": [], "next_after": 1, "ended": False}
