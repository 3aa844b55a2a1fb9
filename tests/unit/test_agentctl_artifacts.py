"""`agentctl artifacts` as scripts rely on it."""

import io
import json
import sys
from typing import Any

import pytest

from tests.scripted_api import NOTHING, answer, problem, raw
from tests.unit.conftest import Agentctl, Script

COMMIT = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"
CHANGE: dict[str, Any] = {
    "commit": COMMIT,
    "at": "2026-01-01T00:00:00+00:00",
    "summary": "write notes.md",
    "run_id": "run-1",
    "step_id": "s1",
    "administrator": None,
}
FILES = answer(200, {"artifacts": [{"path": "notes.md", "size": 2048}]})


def test_the_files_of_an_agent_are_a_table_or_json(script: Script, agentctl: Agentctl) -> None:
    api = script(FILES)
    code, printed, _ = agentctl("artifacts", "list", "writer")
    assert (code, [line.split() for line in printed.splitlines()]) == (
        0,
        [["PATH", "SIZE"], ["notes.md", "2.0", "KiB"]],
    )
    code, printed, _ = agentctl("artifacts", "files", "ada", "writer", COMMIT, "--json")
    assert json.loads(printed) == [{"path": "notes.md", "size": 2048}]
    assert [request.path for request in api.requests] == [
        "/agent/artifacts/writer",
        f"/agent/artifacts/ada/writer/files?commit={COMMIT}",
    ]


def test_a_file_is_printed_as_it_is(script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch) -> None:
    api = script(raw(200, b"\xff\x1b[2Jtext"))
    for command in (["get", "writer", "a b/ü"], ["show", "ada", "writer", COMMIT, "a b/ü"]):
        binary = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdout", binary)
        assert agentctl("artifacts", *command)[0] == 0
        assert isinstance(binary.buffer, io.BytesIO)
        assert binary.buffer.getvalue() == b"\xff\x1b[2Jtext"
    assert [request.path for request in api.requests] == [
        "/agent/artifacts/writer/content?path=a+b%2F%C3%BC",
        f"/agent/artifacts/ada/writer/show?commit={COMMIT}&path=a+b%2F%C3%BC",
    ]


def test_a_terminal_is_not_steered_by_a_file(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(raw(200, b"\xff\x1b[2Jtext\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, printed, _ = agentctl("artifacts", "get", "writer", "a")
    assert "\x1b" not in printed
    assert "text" in printed


def test_the_log_is_fetched_page_by_page(script: Script, agentctl: Agentctl) -> None:
    by_person = {**CHANGE, "run_id": None, "step_id": None, "administrator": "eve"}
    api = script(
        answer(200, {"changes": [by_person], "next_cursor": COMMIT}),
        answer(200, {"changes": [CHANGE], "next_cursor": None}),
    )
    code, printed, _ = agentctl("artifacts", "log", "ada", "writer")
    head, first, second = printed.splitlines()
    assert (code, head.split()) == (0, ["COMMIT", "AT", "RUN", "STEP", "WHAT"])
    assert "by eve" in first
    assert second.split() == [COMMIT, "2026-01-01", "run-1", "s1", "write", "notes.md"]
    assert api.requests[1].path == f"/agent/artifacts/ada/writer/log?cursor={COMMIT}&limit=49"


def test_a_rollback_is_sent_again_when_the_line_breaks(script: Script, agentctl: Agentctl) -> None:
    api = script(NOTHING, answer(200, {"commit": "a" * 40}))
    code, printed, _ = agentctl("artifacts", "rollback", "ada", "writer", COMMIT[:8], "--json")
    assert (code, json.loads(printed)) == (0, {"commit": "a" * 40})
    assert [json.loads(request.body) for request in api.requests] == [{"commit": COMMIT[:8]}] * 2


def test_a_refusal_is_exit_code_4(script: Script, agentctl: Agentctl) -> None:
    script(problem(403, "forbidden", "this is for admins"))
    code, _, said = agentctl("artifacts", "rollback", "ada", "writer", COMMIT)
    assert (code, "this is for admins" in said) == (4, True)
