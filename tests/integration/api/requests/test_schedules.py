"""Schedules as users of the API see them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.api.live_agents import act, spawn
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEDULES = "/api/v1/schedules"
DAILY = {"text": "Write the report.", "cron": "0 9 * * *", "timezone": "Europe/Berlin"}


async def put(person: Person, agent_id: str, name: str = "daily", status: int = 201, **body: Any) -> Any:
    answer = await person.http.put(f"{SCHEDULES}/{name}", json={"agent_id": agent_id, **(body or DAILY)})
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_schedule_is_made_shown_changed_and_deleted(person: Person) -> None:
    agent_id = await spawn(person)
    made = await put(person, agent_id)
    at = datetime.fromisoformat(made["next_at"])
    assert datetime.now(UTC) < at <= datetime.now(UTC) + timedelta(hours=25)
    assert at.minute == 0
    assert (await person.http.get(f"{SCHEDULES}/daily")).json() == made
    assert (await person.http.get(SCHEDULES)).json()["schedules"] == [made]
    changed = await put(person, agent_id, status=200, text="Look.", every_seconds=60, data={"a": 1})
    assert (changed["cron"], changed["every_seconds"], changed["data"]) == (None, 60, {"a": 1})
    assert (await person.http.delete(f"{SCHEDULES}/daily")).status_code == 204
    assert (await person.http.get(f"{SCHEDULES}/daily")).status_code == 404


async def test_a_schedule_is_paused_and_resumed(person: Person) -> None:
    await put(person, await spawn(person))
    paused = (await person.http.post(f"{SCHEDULES}/daily/pause")).json()
    assert paused["next_at"] is None
    assert paused["paused_at"] is not None
    resumed = (await person.http.post(f"{SCHEDULES}/daily/resume")).json()
    assert resumed["next_at"] is not None
    assert resumed["paused_at"] is None


async def test_its_message_can_be_sent_now_once_for_a_key(person: Person) -> None:
    agent_id = await spawn(person)
    await put(person, agent_id)
    answers = [await person.http.post(f"{SCHEDULES}/daily/fire", headers={"Idempotency-Key": "now"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    first, second = (answer.json() for answer in answers)
    assert first["run_id"] == second["run_id"]
    assert (first["text"], first["agent_id"]) == ("Write the report.", agent_id)


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        ({"text": "x"}, "cron", "give one of cron"),
        ({"text": "x", "cron": "0 25 * * *"}, "cron", "hour: 25 is no number from 0 to 23"),
        ({"text": "x", "every_seconds": 59}, "every_seconds", "60"),
        ({"text": "x", "at": "2020-01-01T00:00:00Z"}, "at", "past"),
        ({"text": "x", "at": "2999-01-01T00:00:00"}, "at", ""),
        ({"text": "", "every_seconds": 60}, "text", ""),
        ({"text": "x" * 100_001, "every_seconds": 60}, "text", "at most"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_field(
    person: Person, body: dict[str, Any], field: str, sentence: str
) -> None:
    problem = await put(person, await spawn(person), status=422, **body)
    assert (problem["field"], sentence in problem["detail"]) == (field, True), problem


async def test_an_agent_of_another_user_is_not_found_and_one_that_was_terminated_takes_none(
    api: Api, person: Person
) -> None:
    theirs = await spawn(await api.person())
    assert (await put(person, theirs, status=404))["code"] == "not_found"
    mine = await spawn(person)
    await act(person, mine, "terminate")
    assert (await put(person, mine, status=409))["code"] == "agent_terminated"
