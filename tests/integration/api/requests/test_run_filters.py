"""Lists and counts of runs by what a person looks for, and searches in a run's log."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from backplane.domain.users import Tier
from backplane.store import Store
from backplane.store.tables import model_calls, runs
from tests.integration.api.running import Api, Person
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def found(person: Person, **conditions: Any) -> list[str]:
    answer = await person.http.get("/agent/runs", params=conditions)
    assert answer.status_code == 200, answer.text
    listed = [run["run_id"] for run in answer.json()["runs"]]
    count = await person.http.get("/agent/runs/count", params=conditions)
    assert count.json() == {"count": len(listed), "is_more": False}
    return listed


async def costs(store: Store, run_id: str, micro_usd: int) -> None:
    """The run has a call of a model that cost so much."""
    values = {
        "run_id": run_id,
        "step_id": "think",
        "purpose": "agent",
        "number": 1,
        "id": run_id,
        "generation": 1,
        "status": "completed",
        "server": "a",
        "model": "b",
        "request": {},
        "request_digest": "",
        "micro_usd": micro_usd,
        "started_at": datetime.now(UTC),
    }
    await store.database.write(lambda connection: connection.execute(insert(model_calls).values(values)))


async def test_runs_are_found_by_a_text_in_their_prompt_whatever_its_capitals(person: Person) -> None:
    one = await person.make("create", prompt="Count the WORDS of 100% of the_pages")
    await person.make("create", prompt="count the lines")
    for text in ("words", "WORDS", "100% of", "the_page"):
        assert await found(person, text=text) == [one]
    assert await found(person, text="100_ of") == []


async def test_runs_are_found_by_queue_handler_and_agent(api: Api, person: Person) -> None:
    of_agent = await person.make("create", agent="writer")
    other = await person.make("create")
    values = update(runs).where(runs.c.id == other).values(queue="gpu", handler="crawl")
    await api.resources.store.database.write(lambda connection: connection.execute(values))
    assert await found(person, agent="writer") == [of_agent]
    assert await found(person, queue="gpu") == await found(person, handler="crawl") == [other]
    assert await found(person, queue="gpu", agent="writer") == []


async def test_runs_are_found_by_several_states(person: Person) -> None:
    created, queued = await person.make("create"), await person.make()
    cancelled = await person.make("create")
    await person.act("cancel", cancelled)
    assert await found(person, status=["created", "queued"]) == [queued, created]
    assert await found(person, status=["cancelled", "cancelled"]) == [cancelled]


async def test_runs_are_found_by_when_they_were_created(person: Person) -> None:
    run_id = await person.make("create")
    at = datetime.fromisoformat((await person.show(run_id))["created_at"])
    moment = timedelta(microseconds=1)
    assert await found(person, created_from=at.isoformat(), created_to=(at + moment).isoformat()) == [run_id]
    assert await found(person, created_to=at.isoformat()) == []
    assert await found(person, created_from=(at + moment).isoformat()) == []


async def test_runs_are_found_by_what_they_cost_and_lists_show_it(api: Api, person: Person) -> None:
    cheap, costly = await person.make("create"), await person.make("create")
    await costs(api.resources.store, costly, 250_000)
    assert await found(person, cost_min=0.25) == [costly]
    assert await found(person, cost_min=0.250001) == []
    assert await found(person, cost_max=0.249999) == [cheap]
    listed = (await person.http.get("/agent/runs")).json()["runs"]
    assert [run["cost_usd"] for run in listed] == ["0.25", "0"]


async def test_an_administrator_finds_the_runs_of_others_and_nobody_else_does(api: Api, person: Person) -> None:
    admin = await api.person(Tier.ADMIN)
    run_id = await person.make("create", prompt="unlike any other")
    me = (await person.http.get("/agent/me")).json()
    for user in (me["name"], me["user_id"], "*"):
        assert await found(admin, user=user, text="unlike any other") == [run_id]
    listed = (await admin.http.get("/agent/runs", params={"user": "*", "text": "unlike any other"})).json()
    assert listed["runs"][0]["user"] == me["name"]
    assert await found(admin) == []
    assert await found(person, user=me["name"]) == [run_id]
    for path in ("/agent/runs", "/agent/runs/count"):
        for user in ("*", (await admin.http.get("/agent/me")).json()["name"], "nobody"):
            answer = await person.http.get(path, params={"user": user})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        missing = await admin.http.get(path, params={"user": "nobody"})
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": "x" * 201}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"cost_min": "nan"}, "cost_min"),
        ({"cost_min": -1}, "cost_min"),
        ({"cost_min": 2, "cost_max": 1}, "cost_max"),
        ({"status": "lost"}, "status"),
        ({"queue": "a b"}, "queue"),
        ({"created_from": "2026-01-02"}, "created_from"),
        ({"created_from": "2026-01-02T00:00:00Z", "created_to": "2026-01-02T00:00:00Z"}, "created_to"),
    ],
)
async def test_a_condition_that_no_run_can_fulfil_is_named(
    person: Person, conditions: dict[str, Any], field: str
) -> None:
    for path in ("/agent/runs", "/agent/runs/count"):
        answer = await person.http.get(path, params=conditions)
        assert (answer.status_code, answer.json()["field"].split(".")[0]) == (422, field), answer.text


async def test_a_page_looks_through_so_many_runs_and_says_where_to_go_on(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backplane.store.run_lists.LOOKED_THROUGH", 3)
    wanted = await person.make("create", prompt="a needle")
    others = [await person.make("create", prompt="hay") for _ in range(4)]
    first = (await person.http.get("/agent/runs", params={"text": "needle"})).json()
    assert (first["runs"], first["next_cursor"]) == ([], others[1])
    assert (await person.http.get("/agent/runs/count", params={"text": "needle"})).json() == {
        "count": 0,
        "is_more": True,
    }
    second = await person.http.get("/agent/runs", params={"text": "needle", "cursor": first["next_cursor"]})
    assert [run["run_id"] for run in second.json()["runs"]] == [wanted]
    assert second.json()["next_cursor"] is None


async def test_runs_are_counted_up_to_a_number(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backplane.store.run_lists.COUNTED_MAX", 2)
    for expected in ({"count": 1, "is_more": False}, {"count": 2, "is_more": False}, {"count": 2, "is_more": True}):
        await person.make("create")
        assert (await person.http.get("/agent/runs/count")).json() == expected


# --- logs ---


async def a_log(api: Api, person: Person, lines: list[str]) -> str:
    """A run whose step has written these lines."""
    run_id = await person.make()
    worker = await api.worker()
    await worker.say(*lines)
    await worker.end()
    whole = f"/agent/logs/{run_id}"

    async def is_kept() -> bool:
        return bool((await person.http.get(whole, params={"after": len(lines)})).json()["ended"])

    await wait_until(is_kept)
    return run_id


async def search(person: Person, run_id: str, **asked: Any) -> Any:
    answer = await person.http.get(f"/agent/logs/{run_id}/search", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_lines_are_found_by_a_text_whatever_its_capitals(api: Api, person: Person) -> None:
    run_id = await a_log(api, person, ["one Straße", "two", "ONE STRASSE more"])
    answer = await search(person, run_id, q="strasse")
    assert [match["line"] for match in answer["matches"]] == ["one Straße", "ONE STRASSE more"]
    assert answer["next_after"] is None
    assert (await search(person, run_id, q="completed"))["matches"] == []


async def test_a_search_goes_on_where_it_ended(api: Api, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.routes.logs.PAGES_SEARCHED", 1)
    run_id = await a_log(api, person, [f"line {number}" for number in range(600)])
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        answer = await search(person, run_id, q="line 5", after=after, limit=40)
        seen += [match["line"] for match in answer["matches"]]
        after = answer["next_after"]
    assert seen == [f"line {number}" for number in range(600) if str(number).startswith("5")]


async def test_nobody_searches_the_log_of_another_user(api: Api, person: Person) -> None:
    run_id = await person.make()
    stranger = await api.person()
    answer = await stranger.http.get(f"/agent/logs/{run_id}/search", params={"q": "a"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "asked", [{}, {"q": ""}, {"q": "x" * 201}, {"q": "a", "level": "loud"}, {"q": "a", "limit": 0}]
)
async def test_a_search_that_cannot_be_is_refused(person: Person, asked: dict[str, Any]) -> None:
    run_id = await person.make("create")
    assert (await person.http.get(f"/agent/logs/{run_id}/search", params=asked)).status_code == 422
