"""`agentctl dlq` as scripts rely on it."""

import io
import json
import sys
from typing import Any

import pytest

from tests.scripted_api import NOTHING, answer, problem, raw
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
ERROR = {"code": "internal_error", "message": "A fault.", "retryable": True, "step": None}
LETTER: dict[str, Any] = {
    "run_id": RUN,
    "reason": "internal_error",
    "at": "2026-01-01T00:00:00+00:00",
    "attempts": 2,
    "crashes": 0,
    "user_id": "u",
    "user": "ada",
    "created_at": "2026-01-01T00:00:00+00:00",
    "prompt": "\n# Count words\n\nmore",
    "error": ERROR,
}


def page(*letters: dict[str, Any], cursor: str | None = None) -> bytes:
    return answer(200, {"dead_letters": letters, "next_cursor": cursor})


def test_dead_letters_are_a_table(script: Script, agentctl: Agentctl) -> None:
    api = script(page(LETTER))
    code, printed, _ = agentctl("dlq", "list", "--reason", "internal_error")
    [head, row] = printed.splitlines()
    assert (code, head.split()) == (0, ["RUN", "REASON", "DIED", "ATTEMPTS", "USER", "ERROR", "PROMPT"])
    assert row.split() == [RUN, "internal_error", "2026-01-01", "2", "ada", "internal_error", "#", "Count", "words"]
    assert api.requests[0].path == "/agent/dead-letters?reason=internal_error&limit=20"


def test_dead_letters_follow_the_cursor_up_to_the_limit(script: Script, agentctl: Agentctl) -> None:
    api = script(page(LETTER, cursor="one"), page({**LETTER, "run_id": "two"}, cursor="two"))
    code, printed, _ = agentctl("dlq", "list", "--limit", "2", "--json")
    assert (code, [letter["run_id"] for letter in json.loads(printed)]) == (0, [RUN, "two"])
    assert [request.path.split("?")[1] for request in api.requests] == ["limit=2", "cursor=one&limit=1"]


def test_a_dead_letter_is_shown_with_what_each_attempt_died_of(script: Script, agentctl: Agentctl) -> None:
    hostile = 'Traceback\n  File "a.py"\nKeyError: \x1b[31mred'
    first = {"attempt": 1, "at": LETTER["at"], "error": ERROR, "worker_id": "w-1", "traceback": hostile}
    second = {**first, "attempt": 2, "worker_id": None, "traceback": None, "error": {**ERROR, "step": "count"}}
    script(answer(200, {**LETTER, "failures": [first, second]}))
    code, printed, _ = agentctl("dlq", "show", RUN)
    assert code == 0
    assert [line.split() for line in printed.splitlines() if line.startswith(("attempt ", "worker", "step"))] == [
        ["attempt", "1"],
        ["worker", "w-1"],
        ["attempt", "2"],
        ["step", "count"],
    ]
    assert '\n  File "a.py"\nKeyError: red\n' in printed


def test_one_is_redriven(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"run_id": RUN, "status": "queued"}))
    code, printed, _ = agentctl("dlq", "redrive", RUN)
    assert (code, printed.split()) == (0, ["run", RUN, "status", "queued"])
    assert (api.requests[0].method, api.requests[0].path) == ("POST", f"/agent/dead-letters/{RUN}/redrive")


@pytest.mark.parametrize("arguments", [["redrive", RUN], ["purge", RUN, "--yes"]])
def test_what_may_have_happened_is_not_asked_for_again(
    script: Script, agentctl: Agentctl, arguments: list[str]
) -> None:
    api = script(NOTHING)
    assert agentctl("dlq", *arguments)[0] == 5
    assert len(api.requests) == 1


def redriven(count: int, left: int) -> bytes:
    return answer(200, {"redriven": count, "left": left})


def test_all_are_redriven_in_batches(script: Script, agentctl: Agentctl) -> None:
    api = script(redriven(100, 150), redriven(100, 50), redriven(50, 0))
    code, printed, _ = agentctl("dlq", "redrive", "--all", "--json")
    assert (code, json.loads(printed)) == (0, {"redriven": 250, "left": 0})
    assert [request.path.split("=")[1] for request in api.requests] == ["100", "100", "50"]


def test_redriving_all_ends_when_the_queue_is_full(script: Script, agentctl: Agentctl) -> None:
    api = script(redriven(20, 30), redriven(0, 30))
    code, printed, _ = agentctl("dlq", "redrive", "--all", "--json")
    assert (code, json.loads(printed), len(api.requests)) == (0, {"redriven": 20, "left": 30}, 2)


def test_what_dies_again_meanwhile_is_not_redriven_for_ever(script: Script, agentctl: Agentctl) -> None:
    api = script(redriven(100, 20), redriven(20, 100))
    code, printed, _ = agentctl("dlq", "redrive", "--all", "--json")
    assert (code, json.loads(printed), len(api.requests)) == (0, {"redriven": 120, "left": 100}, 2)


@pytest.mark.parametrize(
    ("arguments", "path"), [([RUN], f"/agent/dead-letters/{RUN}"), (["--all"], "/agent/dead-letters")]
)
def test_purging_asks_first(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, arguments: list[str], path: str
) -> None:
    api = script(answer(200, {"purged": 1}))
    for said, code, requests in (("n\n", 2, 0), ("", 2, 0), ("y\n", 0, 1)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        assert agentctl("dlq", "purge", *arguments)[0] == code
        assert len(api.requests) == requests
    assert (api.requests[0].method, api.requests[0].path) == ("DELETE", path)


def test_purging_with_yes_asks_nobody_and_prints_json_alone(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"purged": 7}))
    code, printed, notes = agentctl("dlq", "purge", "--all", "--yes", "--json")
    assert (code, json.loads(printed), notes) == (0, {"purged": 7}, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["redrive"],
        ["redrive", RUN, "--all"],
        ["purge", "--yes"],
        ["purge", RUN, "--all", "--yes"],
        ["list", "--reason", "bad_luck"],
        ["show"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_asks_nobody(
    script: Script, agentctl: Agentctl, arguments: list[str]
) -> None:
    api = script(raw(500, b""))
    code, printed, notes = agentctl("dlq", *arguments)
    assert (code, printed, api.requests) == (2, "", [])
    assert notes


def test_who_is_no_admin_is_refused_with_exit_code_4_and_how_to_become_one(script: Script, agentctl: Agentctl) -> None:
    script(problem(403, "forbidden", "This is for admins."))
    code, printed, noted = agentctl("dlq", "list")
    refusal, advised = noted.splitlines()
    assert (code, printed, refusal) == (4, "", "This is for admins. [forbidden]")
    assert "token create --user NAME --tier admin" in advised


def test_a_full_queue_is_exit_code_5(script: Script, agentctl: Agentctl) -> None:
    script(problem(503, "queue_full", "The queue is full."))
    assert agentctl("dlq", "redrive", RUN) == (5, "", "The queue is full. [queue_full]\n")


def test_a_run_that_failed_more_than_once_shows_its_owner_each_failure(script: Script, agentctl: Agentctl) -> None:
    failure = {"attempt": 1, "at": LETTER["at"], "error": ERROR, "worker_id": None, "traceback": None}
    times = dict.fromkeys(("created_at", "queued_at", "started_at", "finished_at"))
    run = {"run_id": RUN, "status": "failed", "cancel_requested": False, "prompt": "x", **times, "attempt": 2}
    more = {"max_retries": 1, "timeout_seconds": 1, "priority": "low", "metadata": {}, "error": ERROR, "steps": []}
    script(answer(200, {**run, **more, "failures": [failure, {**failure, "attempt": 2}]}))
    code, printed, _ = agentctl("show", RUN)
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["ATTEMPT", "1", "2"]
