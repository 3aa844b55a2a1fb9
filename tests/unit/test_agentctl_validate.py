"""What is wrong with a plan or a prompt, and what a step can use, as the command line shows it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_api import answer
from tests.unit.conftest import Agentctl, Script

STEP = {"id": "a", "tool": "shell", "title": "Count", "needs": ["b"], "line": 3}


def validation(*errors: dict[str, Any], **changes: Any) -> bytes:
    body = {
        "valid": not errors,
        "errors": list(errors),
        "planner": "runbook",
        "planner_note": None,
        "steps": [STEP],
        "tools_checked": True,
    }
    return answer(200, {**body, **changes})


def test_a_plan_with_nothing_wrong_ends_with_0_and_shows_its_steps(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    api = script(validation(planner="given"))
    (tmp_path / "plan.yaml").write_text("steps:\n- {id: a, tool: shell}\n")
    code, out, err = agentctl("validate", "plan.yaml", "--mcp-server", "calc")
    assert (code, out) == (0, "    3  a  shell  Count  after b\n")
    assert "Nothing is wrong." in err
    assert json.loads(api.requests[0].body) == {
        "action": "validate",
        "plan": {"steps": [{"id": "a", "tool": "shell"}]},
        "mcp_servers": ["calc"],
    }


def test_a_step_that_writes_a_file_is_shown_with_its_path(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    script(validation(steps=[{**STEP, "tool": "file_write", "path": "data/a.txt", "needs": None}]))
    (tmp_path / "book.md").write_text("x")
    assert agentctl("validate", "book.md")[1] == "    3  a  file_write data/a.txt  Count\n"


def test_each_fault_is_a_line_with_its_place_and_the_command_ends_with_1(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    faults: list[dict[str, Any]] = [
        {"detail": "the block is no step", "line": 7},
        {"detail": "planner: no model", "line": None},
    ]
    script(validation(*faults, steps=[], planner=None, tools_checked=False))
    (tmp_path / "book.md").write_text("# A runbook\n")
    code, out, err = agentctl("validate", "book.md")
    assert (code, out) == (1, "book.md:7: the block is no step\nbook.md: planner: no model\n")
    assert "2 faults." in err
    assert "Tools and their arguments were not looked at" in err


def test_the_other_planner_is_named(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    script(validation(planner_note="to choose the other, do this"))
    (tmp_path / "book.md").write_text("x")
    assert "planner runbook: to choose the other, do this" in agentctl("validate", "book.md")[2]


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ('{"steps": []}', {"plan": {"steps": []}}),
        ("steps:\n- id: a\n", {"plan": {"steps": [{"id": "a"}]}}),
        ("# Title\n\n```sh\nx\n```\n", {"prompt": "# Title\n\n```sh\nx\n```\n"}),
        ("Count the words.", {"prompt": "Count the words."}),
    ],
)
def test_standard_input_is_a_plan_or_a_prompt(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, text: str, sent: dict[str, Any]
) -> None:
    api = script(validation())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert agentctl("validate", "-")[0] == 0
    assert json.loads(api.requests[0].body) == {"action": "validate", **sent}


def test_a_plan_on_standard_input_has_each_key_once(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = script(validation())
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"steps:\n- id: a\n  approval: true\n  approval: false\n"))
    )
    code, _, err = agentctl("validate", "-")
    assert (code, api.requests) == (2, [])
    assert "standard input: line 4: 'approval'" in err


def test_json_is_what_the_api_said(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    script(validation({"field": "prompt", "detail": "no", "line": 1}))
    (tmp_path / "book.md").write_text("x")
    code, out, _ = agentctl("validate", "book.md", "--json")
    assert (code, json.loads(out)["errors"]) == (1, [{"field": "prompt", "detail": "no", "line": 1}])


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_a_wrong_command(script: Script, agentctl: Agentctl, name: str) -> None:
    api = script(validation())
    assert agentctl("validate", name)[0] == 2
    assert api.requests == []


SHELL = {
    "name": "shell",
    "description": "Run a script. In a sandbox.",
    "parameters": {
        "required": ["script"],
        "properties": {
            "script": {"type": "string", "description": "What is run."},
            "mode": {"enum": ["a", "b"]},
            "args": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
    },
    "risk": "medium",
    "repeatable": False,
    "package": None,
}


def test_tools_are_listed_with_the_servers_that_offer_more(script: Script, agentctl: Agentctl) -> None:
    servers = [{"name": "calc", "tools": None}, {"name": "find", "tools": ["one"]}]
    script(answer(200, {"tools": [SHELL], "mcp_servers": servers, "complete": False}))
    code, out, err = agentctl("tools")
    assert code == 0
    assert out.splitlines()[1].split(maxsplit=2) == ["shell", "medium", "Run a script"]
    assert "MCP server calc (name it in mcp_servers): all that it offers, as calc__…" in err
    assert "MCP server find (name it in mcp_servers): one, as find__…" in err
    assert "no worker is alive" in err


def test_a_tool_is_shown_with_its_arguments(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, SHELL))
    code, out, _ = agentctl("tools", "shell")
    assert (code, api.requests[0].path) == (0, "/agent/tools/shell")
    assert out.startswith("Run a script. In a sandbox.\nrisk        medium\nrepeatable  no\nfrom        the platform\n")
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["script", "yes", "string", "What", "is", "run."],
        ["mode", "no", '"a"', "|", '"b"'],
        ["args", "no", "array", "of", "string", "|", "null"],
    ]


def test_all_that_is_wrong_with_a_refused_plan_is_a_line_each(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    errors = [{"field": "plan.a", "detail": "plan.a: one"}, {"field": "plan.b", "detail": "plan.b: two"}]
    body = {"title": "x", "status": 422, "code": "invalid_plan", "detail": "plan.a: one | also: plan.b: two"}
    script(answer(422, {**body, "field": "plan.a", "errors": errors}))
    (tmp_path / "plan.json").write_text('{"steps": []}')
    code, _, err = agentctl("run", "--plan", "plan.json")
    assert code == 4
    assert err.splitlines() == ["plan.a: one", "plan.b: two [invalid_plan]"]


def test_a_new_run_says_how_to_choose_the_other_planner(script: Script, agentctl: Agentctl) -> None:
    made = {"run_id": "0", "status": "queued", "planner": "model", "planner_note": "name the planner runbook"}
    script(answer(201, made))
    _, out, err = agentctl("run", "Do not run this: ```sh x```", "--no-follow")
    assert (out, err) == ("0\n", "planner model: add --planner runbook\n")
