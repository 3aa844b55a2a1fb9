"""`agentctl schedules` as people and scripts rely on it."""

import json
from typing import Any

import pytest

from tests.scripted_api import answer, problem
from tests.unit.conftest import Agentctl, Script

AGENT_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
RUN = "01936f80-9f5c-7b3a-8c41-3d5e0f9a2b6c"
TIME = "2026-01-01T00:00:00+00:00"
FOUND = answer(200, {"agents": [{"agent_id": AGENT_ID, "name": "ada", "pool": "developer_pool"}], "next_cursor": None})


def schedule(**values: Any) -> dict[str, Any]:
    times = {"cron": "0 9 * * mon", "timezone": "Europe/Berlin", "every_seconds": None, "at": None}
    ends = {"next_at": TIME, "last_at": None, "last_outcome": None, "last_run_id": None, "sent": 0, "paused_at": None}
    given = {"name": "weekly", "agent_id": AGENT_ID, "text": "Write the report.", "overlap": "skip"}
    return {**given, **times, **ends, **values}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (
            ["--cron", "0 9 * * mon", "--timezone", "Europe/Berlin"],
            {"cron": "0 9 * * mon", "timezone": "Europe/Berlin"},
        ),
        (
            ["--every", "600", "--queue", "--data", '{"a": 1}'],
            {"every_seconds": 600, "overlap": "queue", "data": {"a": 1}},
        ),
        (["--at", "2027-01-01T09:00+01:00"], {"at": "2027-01-01T08:00:00+00:00"}),
    ],
    ids=["cron", "every", "at"],
)
def test_a_schedule_is_set_for_the_agent_of_that_name(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, options: list[str], sent: dict[str, Any]
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    api = script(FOUND, answer(201, schedule()))
    code, printed, _ = agentctl("schedules", "set", "weekly", "ada", "Write the report.", *options)
    asked = api.requests[-1]
    body = {"agent_id": AGENT_ID, "text": "Write the report.", "overlap": "skip", **sent}
    assert (code, asked.method, asked.path) == (0, "PUT", "/api/v1/schedules/weekly")
    assert json.loads(asked.body) == body
    assert "0 9 * * mon Europe/Berlin" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Give one of --cron, --every and --at"),
        (["--cron", "@daily", "--every", "60"], "Give one of"),
        (["--every", "60", "--timezone", "UTC"], "--timezone is for --cron"),
        (["--at", "tomorrow"], "tomorrow is no time"),
    ],
)
def test_a_command_that_does_not_say_when_is_refused(
    script: Script, agentctl: Agentctl, options: list[str], says: str
) -> None:
    script()
    code, _, noted = agentctl("schedules", "set", "weekly", "ada", "Write.", *options)
    assert (code, says in noted) == (2, True), noted


def test_schedules_are_listed_with_their_next_and_last_time(script: Script, agentctl: Agentctl) -> None:
    rest = schedule(name="look", cron=None, every_seconds=600, last_at=TIME, last_outcome="skipped", paused_at=TIME)
    script(answer(200, {"schedules": [schedule(), rest]}))
    code, printed, _ = agentctl("schedules", "list")
    assert code == 0
    for text in ("weekly", "look", "every 10 min", "paused", "skipped"):
        assert text in printed, printed


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_schedule_is_paused_and_resumed(script: Script, agentctl: Agentctl, action: str) -> None:
    api = script(answer(200, schedule()))
    code, printed, _ = agentctl("schedules", action, "weekly", "--json")
    assert (code, json.loads(printed)["name"]) == (0, "weekly")
    assert api.requests[0].path == f"/api/v1/schedules/weekly/{action}"


def test_a_message_that_is_sent_now_is_sent_once_and_its_run_is_printed(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(202, {"run_id": RUN}))
    code, printed, _ = agentctl("schedules", "fire", "weekly")
    assert (code, printed) == (0, f"{RUN}\n")
    assert "idempotency-key" in {name.lower() for name in api.requests[0].headers}


def test_a_schedule_is_deleted_and_one_that_is_not_there_is_refused(script: Script, agentctl: Agentctl) -> None:
    script(answer(204, None), problem(404, "not_found", "no such"))
    assert agentctl("schedules", "delete", "weekly", "--yes")[0] == 0
    assert agentctl("schedules", "delete", "weekly", "--yes")[0] == 4
