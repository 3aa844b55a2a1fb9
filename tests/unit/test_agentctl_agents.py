"""`agentctl agents`, `pools` and `chat` as people and scripts rely on them."""

import io
import json
import sys
from typing import Any

import pytest

from tests.scripted_api import answer, problem, raw, stream
from tests.unit.conftest import Agentctl, Script

AGENT_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
RUN = "01936f80-9f5c-7b3a-8c41-3d5e0f9a2b6c"
TIME = "2026-01-01T00:00:00+00:00"
AGENT = {
    "agent_id": AGENT_ID,
    "name": "ada",
    "pool": "developer_pool",
    "number": 1,
    "status": "idle",
    "model": None,
    "metadata": {},
    "turns": 2,
    "open_run_id": None,
    "process": "p1",
    "created_at": TIME,
    "last_active_at": TIME,
    "paused_at": None,
    "terminated_at": None,
}
FOUND = answer(200, {"agents": [AGENT], "next_cursor": None})
NOBODY = answer(200, {"agents": [], "next_cursor": None})


def message(status: str = "completed", turn: int = 3, **values: Any) -> dict[str, Any]:
    given = {"run_id": RUN, "turn": turn, "status": status, "text": "hello", "data": None, "answer": "Hello, you."}
    given |= {"value": None, "error": None, "sender": {"kind": "user"}, "created_at": TIME}
    return {**given, **values}


def event(number: int, kind: str, **data: Any) -> dict[str, Any]:
    return {"id": number, "run_id": RUN, "type": kind, "at": TIME, "data": data}


TURN = stream(event(1, "status", status="queued"), event(2, "log", line="at work"), event(3, "end", status="completed"))


def one_page(*messages: dict[str, Any]) -> bytes:
    return answer(200, {"messages": list(messages), "next_cursor": None})


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives what is piped into the command."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_an_agent_is_found_by_its_name(script: Script, agentctl: Agentctl) -> None:
    api = script(FOUND, answer(200, AGENT))
    code, printed, _ = agentctl("agents", "show", "ada")
    assert (code, AGENT_ID in printed, "developer_pool, number 1" in printed) == (0, True, True)
    assert [request.path for request in api.requests] == [
        "/api/v1/agents?limit=11&name=ada",
        f"/api/v1/agents/{AGENT_ID}",
    ]


def test_a_name_that_two_agents_have_is_refused_with_their_ids(script: Script, agentctl: Agentctl) -> None:
    other = {**AGENT, "agent_id": RUN, "pool": "tester_pool"}
    script(answer(200, {"agents": [AGENT, other], "next_cursor": None}))
    code, _, notes = agentctl("agents", "pause", "ada")
    assert (code, AGENT_ID in notes, "ada in tester_pool" in notes) == (2, True, True)


def test_an_agent_is_found_by_how_its_id_begins_where_none_has_that_name(script: Script, agentctl: Agentctl) -> None:
    api = script(NOBODY, NOBODY, FOUND, answer(200, AGENT))
    assert agentctl("agents", "show", "01936f7e")[0] == 0
    assert "id_beginning=01936f7e" in api.requests[2].path


def test_an_agent_is_found_by_its_pool_and_name(script: Script, agentctl: Agentctl) -> None:
    api = script(FOUND, answer(200, AGENT))
    assert agentctl("agents", "show", "developer_pool/ada")[0] == 0
    assert api.requests[0].path == "/api/v1/agents?limit=11&name=ada&pool=developer_pool"


def test_an_agent_that_was_terminated_is_found_by_its_name_where_none_lives(script: Script, agentctl: Agentctl) -> None:
    ended = {**AGENT, "status": "terminated", "terminated_at": TIME}
    api = script(NOBODY, answer(200, {"agents": [ended], "next_cursor": None}), answer(200, ended))
    assert agentctl("agents", "show", "ada")[0] == 0
    assert "terminated=true" in api.requests[1].path.lower()


@pytest.mark.parametrize("given", ["../ada", "a/b/ada", "Ada", "a b", "nobody"])
def test_a_name_that_no_agent_has_is_refused(script: Script, agentctl: Agentctl, given: str) -> None:
    script(NOBODY, NOBODY)
    code, printed, notes = agentctl("agents", "show", given)
    assert (code, printed, "agentctl agents list" in notes) == (4, "", True)


def test_agents_are_listed_by_name_with_what_they_do(script: Script, agentctl: Agentctl) -> None:
    asking = {**AGENT, "name": "grace", "status": "waiting_for_person"}
    script(answer(200, {"agents": [AGENT, asking], "next_cursor": None}))
    _, printed, _ = agentctl("agents", "list")
    rows = [line.split() for line in printed.splitlines()]
    assert rows[1] == ["ada", "developer_pool", "idle", "2", AGENT_ID]
    assert rows[2] == ["grace", "developer_pool", "asks", "a", "person", "2", AGENT_ID]


def test_a_message_is_sent_with_its_data_and_prints_its_run(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(202, message("queued", answer=None)))
    code, printed, _ = agentctl("agents", "send", AGENT_ID, "hello", "--data", '{"a": 1}', "--ttl", "60")
    [asked] = api.requests
    assert (code, printed) == (0, f"{RUN}\n")
    assert json.loads(asked.body) == {"text": "hello", "data": {"a": 1}, "ttl_seconds": 60}
    assert asked.headers["Idempotency-Key"]


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("cancelled", 3), ("queued", 6)])
def test_whoever_waits_gets_the_answer_and_an_exit_code(
    script: Script, agentctl: Agentctl, status: str, code: int
) -> None:
    script(answer(202 if status == "queued" else 200, message(status)))
    assert agentctl("agents", "send", AGENT_ID, "hello", "--wait", "5")[:2] == (code, "Hello, you.\n")


def test_a_full_mailbox_is_not_tried_again_by_itself(script: Script, agentctl: Agentctl) -> None:
    api = script(problem(429, "mailbox_full", "1,000 messages wait.", retry_after="5"))
    code, _, notes = agentctl("agents", "send", AGENT_ID, "hello")
    assert (code, len(api.requests), "1,000 messages wait." in notes) == (4, 1, True)


def test_a_conversation_is_shown_with_the_newest_last(script: Script, agentctl: Agentctl) -> None:
    script(one_page(message(turn=2, text="second", answer="two"), message(turn=1, text="first", answer="one")))
    _, printed, _ = agentctl("agents", "messages", AGENT_ID)
    assert [line for line in printed.splitlines() if RUN not in line] == ["you: first", "one", "you: second", "two"]


def test_terminating_asks_before(script: Script, agentctl: Agentctl, typed: Any) -> None:
    api = script(answer(200, {**AGENT, "status": "terminated"}))
    typed("n\n")
    assert agentctl("agents", "terminate", AGENT_ID)[0] == 2
    assert api.requests == []
    assert agentctl("agents", "terminate", AGENT_ID, "--yes", "--force")[1] == "ada is terminated.\n"
    assert api.requests[0].path == f"/api/v1/agents/{AGENT_ID}/terminate?force=true"


def test_a_state_is_put_where_it_has_the_version_that_was_read(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"state": {"a": 1}, "version": 4}))
    code, printed, _ = agentctl("agents", "state", AGENT_ID, "--set", '{"a": 1}', "--version", "3")
    assert (code, json.loads(printed)) == (0, {"a": 1})
    assert json.loads(api.requests[0].body) == {"state": {"a": 1}, "version": 3}


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["--model", "ollama/small"], {"model": "ollama/small"}),
        (["--no-model"], {"model": None}),
        (["--metadata", "team=7", "--metadata", "city=Bonn"], {"metadata": {"team": "7", "city": "Bonn"}}),
        (["--no-metadata", "--model", "ollama/small"], {"metadata": {}, "model": "ollama/small"}),
    ],
)
def test_an_agent_is_changed_in_what_is_named_alone(
    script: Script, agentctl: Agentctl, arguments: list[str], change: dict[str, Any]
) -> None:
    api = script(answer(200, {**AGENT, "model": "ollama/small"}))
    code, printed, _ = agentctl("agents", "set", AGENT_ID, *arguments)
    assert (code, "ollama/small" in printed) == (0, True)
    [request] = api.requests
    assert (request.method, request.path, json.loads(request.body)) == ("PATCH", f"/api/v1/agents/{AGENT_ID}", change)


@pytest.mark.parametrize(
    "arguments",
    [
        ["agents", "state", AGENT_ID, "--version", "3"],
        ["agents", "state", AGENT_ID, "--set", "{"],
        ["agents", "send", AGENT_ID, "x", "--data", "no json"],
        ["agents", "send", AGENT_ID, "x", "--wait", "61"],
        ["agents", "set", AGENT_ID],
        ["agents", "set", AGENT_ID, "--model", "a/b", "--no-model"],
        ["agents", "set", AGENT_ID, "--metadata", "a=1", "--no-metadata"],
        ["agents", "set", AGENT_ID, "--metadata", "a"],
        ["pools", "change", "developer_pool"],
        ["pools", "create", "p"],
        ["chat"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_asks_nobody(
    script: Script, agentctl: Agentctl, arguments: list[str]
) -> None:
    api = script(raw(500, b""))
    assert agentctl(*arguments)[0] == 2
    assert api.requests == []


def test_pools_are_shown_with_how_full_they_are(script: Script, agentctl: Agentctl) -> None:
    pool = {"pool_name": "developer_pool", "role": "developer", "process_count": 2, "total_capacity": 20}
    pool |= {"used_capacity": 11, "available_capacity": 9, "agent_count": 12, "utilization": 0.55}
    pool |= {"active_worker_processes": 2, "max_processes": 4, "shortage": "pod a has no node"}
    script(answer(200, {"pools": [pool, {**pool, "pool_name": "tester_pool", "shortage": None}]}))
    _, printed, _ = agentctl("pools", "list")
    lines = printed.splitlines()
    assert lines[1].split() == ["developer_pool", "developer", "2/4", "11/20", "55%", "12"]
    assert lines[3:] == ["developer_pool has fewer processes than its agents need: pod a has no node"]


def test_a_pool_that_is_made_with_a_role_that_nobody_has_is_warned_of(script: Script, agentctl: Agentctl) -> None:
    pool = {"pool_name": "p", "role": "writr", "min_processes": 0, "max_processes": 4, "agents_per_process": 10}
    script(answer(201, {**pool, "sleep_after_seconds": 600, "warning": "no live worker has a role 'writr'"}))
    code, _, notes = agentctl("pools", "create", "p", "--role", "writr")
    assert (code, "Warning: no live worker has a role 'writr'." in notes) == (0, True)


EXPLAINED = answer(200, {"status": "paused", "text": "The agent ada is paused.", "open_run_id": None})


def test_whoever_sends_is_answered_what_the_message_waits_for(script: Script, agentctl: Agentctl) -> None:
    waits = answer(202, message("waiting", answer=None, in_mailbox=True))
    script(waits, EXPLAINED)
    code, printed, notes = agentctl("agents", "send", AGENT_ID, "hello")
    assert (code, printed, "The agent ada is paused." in notes) == (0, f"{RUN}\n", True)
    script(waits, EXPLAINED)
    code, _, notes = agentctl("agents", "send", AGENT_ID, "hello", "--wait", "1")
    assert (code, "waiting, in the mailbox" in notes, "is paused" in notes) == (6, True, True)


def test_an_agent_that_asks_a_person_is_explained_with_the_commands_that_answer(
    script: Script, agentctl: Agentctl
) -> None:
    explained = {"status": "waiting_for_person", "text": "It asks.", "open_run_id": RUN}
    run = {"run_id": RUN, "status": "waiting", "error": {"code": "answer_required", "message": "it asks"}}
    script(answer(200, explained), answer(200, run))
    _, printed, _ = agentctl("agents", "explain", AGENT_ID)
    assert f"answer {RUN} TEXT" in printed


@pytest.mark.parametrize(
    ("sender", "who"),
    [
        ({"kind": "user"}, "you: hello"),
        ({"kind": "agent", "name": "lea"}, "agent lea: hello"),
        ({"kind": "schedule", "name": "weekly"}, "schedule weekly: hello"),
    ],
)
def test_a_conversation_says_who_has_written(
    script: Script, agentctl: Agentctl, sender: dict[str, Any], who: str
) -> None:
    script(one_page(message(sender=sender)))
    assert who in agentctl("agents", "messages", AGENT_ID)[1]


# --- chat ---


def test_each_line_of_a_pipe_is_a_message_and_its_answer_comes_before_the_next(
    script: Script, agentctl: Agentctl, typed: Any
) -> None:
    sent, done = answer(202, message("queued")), one_page(message())
    api = script(answer(200, AGENT), sent, TURN, done, sent, TURN, done)
    typed("first\n\n  \nsecond\n")
    code, printed, notes = agentctl("chat", AGENT_ID)
    assert (code, printed.count("Hello, you."), printed.count("at work")) == (0, 2, 2)
    assert notes.count(f"turn 3, run {RUN}") == 2
    texts = [json.loads(request.body)["text"] for request in api.requests if request.method == "POST"]
    assert texts == ["first", "second"]


def test_a_quiet_chat_prints_the_answers_alone(script: Script, agentctl: Agentctl, typed: Any) -> None:
    script(answer(200, AGENT), answer(202, message("queued")), TURN, one_page(message()))
    typed("first\n")
    assert agentctl("chat", AGENT_ID, "--quiet") == (0, "Hello, you.\n", "")


def test_a_chat_in_json_is_a_line_for_each_message(script: Script, agentctl: Agentctl, typed: Any) -> None:
    script(answer(200, AGENT), answer(202, message("queued")), TURN, one_page(message()))
    typed("first\n")
    _, printed, _ = agentctl("chat", AGENT_ID, "--json")
    assert [json.loads(line)["answer"] for line in printed.splitlines()] == ["Hello, you."]


def test_a_turn_that_fails_ends_a_pipe_with_its_exit_code(script: Script, agentctl: Agentctl, typed: Any) -> None:
    failed = message("failed", answer=None, error={"code": "handler_failed", "message": "It broke."})
    api = script(answer(200, AGENT), answer(202, message("queued")), TURN, one_page(failed))
    typed("first\nsecond\n")
    code, _, notes = agentctl("chat", AGENT_ID)
    assert (code, "It broke. [handler_failed]" in notes, len(api.requests)) == (1, True, 4)


@pytest.mark.parametrize("others", [(), (message(turn=2, run_id=AGENT_ID, answer="of another"),)])
def test_a_turn_that_was_deleted_meanwhile_has_no_answer_of_another(
    script: Script, agentctl: Agentctl, typed: Any, others: Any
) -> None:
    script(answer(200, AGENT), answer(202, message("queued")), TURN, one_page(*others))
    typed("first\n")
    code, printed, notes = agentctl("chat", AGENT_ID, "--quiet")
    assert (code, printed, "has been deleted" in notes) == (4, "", True)


def test_a_turn_that_waits_in_the_mailbox_is_followed(script: Script, agentctl: Agentctl, typed: Any) -> None:
    waits = {"code": "in_mailbox", "message": "its agent is busy"}
    events = stream(event(1, "status", status="waiting", error=waits), event(2, "end", status="completed"))
    run = answer(200, {"run_id": RUN, "status": "waiting", "error": waits})
    script(answer(200, AGENT), answer(202, message("waiting")), events, run, one_page(message()))
    typed("first\n")
    code, printed, notes = agentctl("chat", AGENT_ID)
    assert (code, "waiting: its agent is busy" in printed, "It waits for you" in notes) == (0, True, False)


def test_a_turn_that_asks_a_person_ends_a_pipe(script: Script, agentctl: Agentctl, typed: Any) -> None:
    asks = {"code": "approval_required", "message": "a step is to be approved"}
    events = stream(event(1, "status", status="waiting", error=asks), whole=False)
    run = answer(200, {"run_id": RUN, "status": "waiting", "error": asks})
    waiting = one_page(message("waiting", answer=None, error=asks))
    script(answer(200, AGENT), answer(202, message("queued")), events, run, run, waiting)
    typed("first\nsecond\n")
    code, _, notes = agentctl("chat", AGENT_ID)
    assert (code, "It waits for you" in notes) == (6, True)


ASKS = {"code": "answer_required", "message": "it asks a question"}
QUESTION = {"decision_id": AGENT_ID, "kind": "question", "asked": {"question": "Which?", "choices": ["red", "blue"]}}


def test_what_a_turn_asks_is_answered_in_the_chat_and_a_wrong_answer_is_asked_again(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["paint it", "green", "blue"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    asks = stream(event(1, "status", status="waiting", error=ASKS), whole=False)
    run = answer(200, {"run_id": RUN, "status": "waiting", "error": ASKS})
    pending = answer(200, {"decisions": [QUESTION], "next_cursor": None})
    goes_on = stream(event(2, "end", status="completed"))
    decided = (problem(422, "invalid_input", "answer with one of: red, blue"), answer(200, QUESTION))
    api = script(
        answer(200, AGENT), answer(202, message("queued")), asks, run, pending, *decided, goes_on, one_page(message())
    )
    code, printed, _ = agentctl("chat", AGENT_ID)
    answers = [json.loads(request.body) for request in api.requests if "/decisions/" in request.path]
    assert (code, [one["text"] for one in answers]) == (0, ["green", "blue"])
    assert printed.count("Which? [red, blue]") == 2
    assert "Hello, you." in printed


def test_a_chat_says_why_a_message_stays_in_the_mailbox(script: Script, agentctl: Agentctl, typed: Any) -> None:
    script(answer(200, AGENT), answer(202, message("waiting", in_mailbox=True)), EXPLAINED, TURN, one_page(message()))
    typed("first\n")
    _, _, notes = agentctl("chat", AGENT_ID)
    assert "The agent ada is paused." in notes


def test_what_an_agent_says_cannot_steer_the_terminal(script: Script, agentctl: Agentctl, typed: Any) -> None:
    hostile = one_page(message(answer="a\x1b[2Jb\u202ec"))
    script(answer(200, AGENT), answer(202, message("queued")), TURN, hostile)
    typed("first\n")
    _, printed, _ = agentctl("chat", AGENT_ID, "--quiet")
    assert "\x1b" not in printed
    assert "\u202e" not in printed


def test_what_is_piped_and_is_no_text_is_refused(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(answer(200, AGENT))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8"))
    code, _, notes = agentctl("chat", AGENT_ID)
    assert (code, "not UTF-8" in notes) == (2, True)
