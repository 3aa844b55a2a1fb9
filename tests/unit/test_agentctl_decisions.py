"""Deciding, forking and replaying on the command line: what is sent, and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentctl.commands.derived_runs import compared
from tests.scripted_api import ScriptedApi, answer, stream
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
NEW = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6f"


def decision(number: int = 1, kind: str = "approval", status: str = "pending", **asked: Any) -> dict[str, Any]:
    return {
        "decision_id": f"01936f7e-9f5c-7b3a-8c41-00000000000{number}",
        "run_id": RUN,
        "step": "a",
        "kind": kind,
        "asked": asked or {"tool": "shell", "arguments": {"script": "true"}},
        "status": status,
        "answer": None,
        "created_at": "2026-01-01T00:00:00+00:00",
    }


def listed(*decisions: dict[str, Any]) -> bytes:
    return answer(200, {"decisions": list(decisions), "runs": [], "next_cursor": None})


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (["approve", RUN], {"decision": "approve"}),
        (["approve", RUN, "--arguments", '{"a": 1}'], {"decision": "approve", "arguments": {"a": 1}}),
        (
            ["approve", RUN, "--add-usd", "1.5", "--add-steps", "3"],
            {"decision": "approve", "budget": {"usd": 1.5, "steps": 3}},
        ),
        (["reject", RUN, "--reason", "no"], {"decision": "reject", "reason": "no"}),
        (["answer", RUN, "blue"], {"decision": "answer", "text": "blue"}),
    ],
)
def test_the_only_decision_need_not_be_named(
    script: Script, agentctl: Agentctl, command: list[str], body: dict[str, Any]
) -> None:
    api = script(listed(decision()), answer(200, decision(status="approved")))
    assert agentctl(*command)[0] == 0
    assert api.requests[1].path == f"/agent/runs/{RUN}/decisions/{decision()['decision_id']}"
    assert json.loads(api.requests[1].body) == body


def test_of_several_one_is_to_be_named(script: Script, agentctl: Agentctl) -> None:
    script(listed(decision(1), decision(2), decision(3, "question", question="red?")))
    code, _, notes = agentctl("approve", RUN)
    assert (code, decision(1)["decision_id"] in notes, "red?" in notes) == (2, True, True)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["answer", RUN, "red"], 2),
        (["approve", RUN, "--arguments", "{}"], 1),
        (["approve", RUN, "--add-usd", "1"], 3),
    ],
)
def test_of_several_the_only_one_that_takes_such_an_answer_need_not_be_named(
    script: Script, agentctl: Agentctl, command: list[str], number: int
) -> None:
    asked = [decision(1), decision(2, "question", question="red?"), decision(3, "budget", message="no dollars")]
    api = script(listed(*asked), answer(200, decision(status="approved")))
    assert agentctl(*command)[0] == 0
    assert api.requests[1].path.endswith(asked[number - 1]["decision_id"])


EDITED = {**decision(status="approved"), "answer": {"arguments": {"script": "false"}}}


def test_an_edited_approval_shows_what_was_approved(script: Script, agentctl: Agentctl) -> None:
    script(listed(decision()), answer(200, EDITED))
    edited = agentctl("approve", RUN, "--arguments", '{"script": "false"}')[1]
    script(listed(EDITED), answer(200, run_view()))
    for printed in (edited, agentctl("decisions", RUN)[1]):
        assert 'use shell {"script": "false"}, edited; asked was {"script": "true"}' in printed


def test_a_script_of_several_lines_is_shown_as_lines_that_cannot_pass_for_ours(
    script: Script, agentctl: Agentctl
) -> None:
    text = "echo 1\n\x1b[2Jecho 2\n● completed\n"
    script(listed(decision(tool="shell", arguments={"script": text, "x": 1})), answer(200, run_view()))
    printed = agentctl("decisions", RUN)[1]
    assert 'use shell {"x": 1} and script of 3 lines' in printed
    for line in ("    │ echo 1\n", "    │ \\x1b[2Jecho 2\n", "    │ ● completed\n"):
        assert line in printed


@pytest.mark.parametrize("given", ['{"script": "a", "script": "b"}', '{"env": {"A": "1", "A": "2"}}'])
def test_arguments_with_a_name_twice_are_refused_and_nothing_is_decided(
    script: Script, agentctl: Agentctl, given: str
) -> None:
    api = script(listed(decision()))
    code, _, notes = agentctl("approve", RUN, "--arguments", given)
    assert (code, "twice" in notes, api.requests) == (2, True, [])


def test_a_run_that_asks_nothing_cannot_be_answered(script: Script, agentctl: Agentctl) -> None:
    script(listed())
    assert agentctl("reject", RUN)[0] == 4


def test_arguments_come_from_a_file(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text('{"script": "ls"}')
    api = script(answer(200, decision(status="approved")))
    assert agentctl("approve", RUN, decision()["decision_id"], "--arguments", f"@{tmp_path / 'new.json'}")[0] == 0
    assert json.loads(api.requests[0].body)["arguments"] == {"script": "ls"}


@pytest.mark.parametrize("given", ["nonsense", "[1]", "@/nowhere/at/all", '{"a": NaN}', '{"a":' * 100_000])
def test_arguments_that_are_no_object_are_refused_here(agentctl: Agentctl, given: str) -> None:
    assert agentctl("approve", RUN, decision()["decision_id"], "--arguments", given)[0] == 2


def test_pending_decisions_are_listed_with_what_is_asked(script: Script, agentctl: Agentctl) -> None:
    api = script(listed(decision(), decision(2, "question", question="red?", choices=["yes", "no"])))
    code, printed, _ = agentctl("decisions")
    assert code == 0
    assert "status=pending" in api.requests[0].path
    for expected in ("use shell", "red? [yes, no]", decision(2)["decision_id"]):
        assert expected in printed


UNCERTAIN = {"code": "step_uncertain", "message": "step 'pay' may have happened", "retryable": False, "step": "pay"}
WAITS = {"code": "approval_required", "message": "step 'b' is to be approved", "retryable": False, "step": "b"}


def test_runs_of_which_a_step_may_have_happened_are_listed_with_the_commands_that_answer_them(
    script: Script, agentctl: Agentctl
) -> None:
    waiting = [
        {"run_id": NEW, "status": "waiting", "error": WAITS},
        {"run_id": RUN, "status": "waiting", "error": UNCERTAIN},
    ]
    page = answer(200, {"runs": waiting, "next_cursor": None})
    for flags in ((), ("--json",)):
        api = script(listed(), page)
        code, printed, _ = agentctl("decisions", *flags)
        assert code == 0
        assert "status=waiting" in api.requests[1].path
        for command in (f"retry {RUN} --repeat", f"retry {RUN} --take-as-done"):
            assert command in printed
        assert NEW not in printed
    [found] = json.loads(printed)
    assert (found["run_id"], found["kind"], found["decision_id"]) == (RUN, "step_uncertain", None)


def test_a_run_of_which_a_step_may_have_happened_shows_the_commands_that_answer_it(
    script: Script, agentctl: Agentctl
) -> None:
    shown: dict[str, Any] = {
        "cancel_requested": False,
        "prompt": "p",
        "created_at": None,
        "queued_at": None,
        "started_at": None,
        "finished_at": None,
        "attempt": 1,
        "max_retries": 0,
        "timeout_seconds": 60,
        "priority": "normal",
        "metadata": {},
        "worker": "vm-7-abc",
        "steps": [],
    }
    script(answer(200, run_view(**shown, status="waiting", error=UNCERTAIN)))
    code, printed, _ = agentctl("show", RUN)
    assert code == 0
    for text in (f"retry {RUN} --repeat", f"retry {RUN} --take-as-done", "vm-7-abc"):
        assert text in printed


def test_a_run_that_went_on_shows_its_whole_time_and_few_of_many_files(script: Script, agentctl: Agentctl) -> None:
    at = "2026-01-01T00:{}:00+00:00".format
    times = {"created_at": at("00"), "queued_at": at("30"), "started_at": at("31"), "finished_at": at("32")}
    taken_over = {"id": "0", "status": "completed", "tool": "shell", "title": "", "result": None}
    steps = [
        {**taken_over, "started_at": "2025-12-31T00:00:00+00:00"},
        {**taken_over, "id": "a", "started_at": at("02")},
    ]
    more: dict[str, Any] = {
        "cancel_requested": False,
        "prompt": "p",
        "attempt": 1,
        "max_retries": 0,
        "timeout_seconds": 60,
    }
    files = [f"venv/{number}.py" for number in range(500)]
    result = {"summary": "", "files": files, "files_left_out": 100}
    view = run_view(**times, **more, priority="normal", metadata={}, steps=steps, result=result)
    script(answer(200, view))
    printed = agentctl("show", RUN)[1]
    assert "took      30 min 00 s\n" in printed
    assert "600: venv/0.py, venv/1.py, venv/2.py, venv/3.py, venv/4.py and 595 more" in printed
    script(answer(200, view))
    assert json.loads(agentctl("show", RUN, "--json")[1])["result"]["files"] == files


# --- fork, replay ---


def run_view(run_id: str = RUN, **values: Any) -> dict[str, Any]:
    step = {"id": "a", "status": "completed", "result": {"exit_code": 0, "output": "1\n", "files_changed": ["a.txt"]}}
    whole = {"run_id": run_id, "status": "completed", "steps": [step], "error": None, "result": {"summary": "done"}}
    return {**whole, **values}


PLANS = {"plans": [{"version": 1, "plan": {"steps": []}, "replaced_at": None, "reason": None}]}
END = stream(
    {"id": 1, "run_id": NEW, "type": "end", "at": "2026-01-01T00:00:00+00:00", "data": {"status": "completed"}}
)
MADE = answer(201, {"run_id": NEW, "status": "queued"})


def replayed(script: Script, again: dict[str, Any]) -> ScriptedApi:
    views = [answer(200, body) for body in (run_view(), PLANS, again, PLANS)]
    return script(MADE, END, answer(200, again), *views)


def test_a_replay_that_is_equal_ends_well(script: Script, agentctl: Agentctl) -> None:
    replayed(script, run_view(NEW))
    code, printed, notes = agentctl("replay", RUN)
    assert (code, "= step a: output" in printed, "all is equal" in notes) == (0, True, True)


@pytest.mark.parametrize(("flags", "sent"), [((), {}), (("--execute",), {"execute": True})])
def test_a_replay_carries_steps_out_only_where_that_is_asked_for(
    script: Script, agentctl: Agentctl, flags: tuple[str, ...], sent: dict[str, bool]
) -> None:
    api = replayed(script, run_view(NEW))
    agentctl("replay", RUN, *flags)
    assert json.loads(api.requests[0].body) == {"action": "replay", "run_id": RUN, **sent}


def test_a_replay_that_differs_says_where_and_fails(script: Script, agentctl: Agentctl) -> None:
    step = {"id": "a", "status": "completed", "result": {"exit_code": 0, "output": "2\n", "files_changed": ["a.txt"]}}
    replayed(script, run_view(NEW, steps=[step]))
    code, printed, _ = agentctl("replay", RUN)
    assert (code, '≠ step a: output: "2\\n", was "1\\n"' in printed) == (1, True)


def test_a_replay_as_json_is_one_document(script: Script, agentctl: Agentctl) -> None:
    replayed(script, run_view(NEW, status="failed"))
    code, printed, _ = agentctl("replay", RUN, "--json")
    found = json.loads(printed)
    assert (code, found["equal"], found["run_id"]) == (1, False, NEW)
    assert found["differences"] == [{"what": "status", "original": "completed", "replayed": "failed"}]


def test_steps_and_plans_that_only_one_has_differ() -> None:
    first = (run_view(), PLANS["plans"])
    second: tuple[dict[str, Any], list[dict[str, Any]]] = (run_view(steps=[]), [])
    assert [one.what for one in compared(first, second) if not one.is_equal] == [
        "plan 1",
        "step a: status",
        "step a: exit code",
        "step a: output",
        "step a: files changed",
    ]


def test_a_fork_names_its_step_and_is_followed(script: Script, agentctl: Agentctl) -> None:
    api = script(MADE, END, answer(200, run_view(NEW)))
    assert agentctl("fork", RUN, "--step", "a", "--prompt", "again")[0] == 0
    assert json.loads(api.requests[0].body) == {
        "action": "fork",
        "run_id": RUN,
        "step": "a",
        "start": True,
        "prompt": "again",
    }
    assert api.requests[0].headers["Idempotency-Key"]


def test_a_retry_can_name_a_step(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"run_id": RUN, "status": "queued"}))
    assert agentctl("retry", RUN, "--from-step", "a")[0] == 0
    assert json.loads(api.requests[0].body) == {"action": "retry", "run_id": RUN, "from_step": "a"}


def test_a_run_names_its_agent_model_and_budget(script: Script, agentctl: Agentctl) -> None:
    api = script(MADE)
    options = [
        "--agent",
        "helper",
        "--model",
        "s/m",
        "--planner",
        "model",
        "--budget-usd",
        "0.5",
        "--budget-steps",
        "9",
    ]
    assert agentctl("run", "x", "--no-follow", *options)[0] == 0
    assert json.loads(api.requests[0].body) == {
        "action": "run",
        "prompt": "x",
        "agent": "helper",
        "model": "s/m",
        "planner": "model",
        "budget": {"usd": 0.5, "steps": 9},
    }


def test_a_model_s_call_is_shown_with_its_texts(script: Script, agentctl: Agentctl) -> None:
    call_id = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6d"
    call = {"call_id": call_id, "request": {"messages": []}, "response": {"text": "hello"}}
    api = script(answer(200, call))
    code, printed, _ = agentctl("model-calls", RUN, call_id)
    assert (code, json.loads(printed)) == (0, call)
    assert api.requests[0].path == f"/agent/runs/{RUN}/model-calls/{call_id}"
