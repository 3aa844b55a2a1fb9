"""What a table shows, however narrow the terminal: every id whole, and all of what a person is asked to decide."""

import json
import re
from typing import Any

import pytest

from agentctl.terminal.tables import GAP, column_widths
from tests.scripted_api import answer, problem, stream
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
OTHER = "01936f80-0000-7b3a-8c41-3d5e0f9a2b6d"
COMMIT = "3f2a91c0" * 5
SCRIPT = "curl -X POST https://deploy.example.org/releases -d version=1.2.3 -d region=eu-central-1 && echo 完成 done"
AT = "2026-01-01T00:00:00+00:00"
ERROR = {"code": "command_failed", "message": "It ended with exit code 3, and nobody knows why.", "step": "a"}
PAGE = {"next_cursor": None}

TABLES: dict[str, tuple[tuple[str, ...], dict[str, Any], list[str]]] = {
    "runs": (
        ("runs",),
        {
            "runs": [
                {
                    "run_id": RUN,
                    "status": "completed",
                    "created_at": AT,
                    "started_at": AT,
                    "finished_at": AT,
                    "prompt": "word " * 30,
                }
            ],
            **PAGE,
        },
        [RUN, "completed"],
    ),
    "decisions": (
        ("decisions",),
        {
            "decisions": [
                {
                    "run_id": RUN,
                    "decision_id": OTHER,
                    "status": "pending",
                    "created_at": AT,
                    "step": "deploy-to-production",
                    "kind": "approval",
                    "asked": {"tool": "shell", "arguments": {"script": SCRIPT}, "reason": "the plan says so"},
                }
            ],
            "runs": [],
            **PAGE,
        },
        [RUN, OTHER, "deploy-to-production", *SCRIPT.replace('"', "").split()],
    ),
    "dlq": (
        ("dlq", "list"),
        {
            "dead_letters": [
                {
                    "run_id": RUN,
                    "reason": "crashed",
                    "at": AT,
                    "attempts": 3,
                    "user": "somebody-with-a-long-name",
                    "error": ERROR,
                    "prompt": "x" * 60,
                }
            ],
            **PAGE,
        },
        [RUN, "crashed", "somebody-with-a-long-name", "command_failed"],
    ),
    "plans": (
        ("plans", RUN),
        {
            "plans": [
                {
                    "version": 1,
                    "replaced_at": None,
                    "reason": None,
                    "plan": {
                        "planner": "given",
                        "steps": [
                            {"id": "first-of-all-the-steps", "tool": "shell", "title": "t " * 40},
                            {"id": "b", "tool": "python", "title": "", "needs": ["first-of-all-the-steps"]},
                        ],
                    },
                }
            ]
        },
        ["first-of-all-the-steps", "python"],
    ),
    "model-calls": (
        ("model-calls", RUN),
        {
            "calls": [
                {
                    "call_id": OTHER,
                    "step": "a",
                    "purpose": "turn",
                    "number": 1,
                    "status": "completed",
                    "server": "ollama",
                    "model": "qwen2.5:7b-instruct-q4_K_M",
                    "input_tokens": 1200,
                    "output_tokens": 30,
                    "usd": 0.002,
                }
            ],
            **PAGE,
        },
        [OTHER, "ollama/qwen2.5:7b-instruct-q4_K_M"],
    ),
    "files": (
        ("files", "ls", RUN),
        {"files": [{"path": f"out/{'long-name-' * 6}.txt", "size": 12, "modified_at": AT}], **PAGE},
        ["12", "B"],
    ),
    "artifacts log": (
        ("artifacts", "log", "ada", "writer"),
        {
            "changes": [
                {
                    "commit": COMMIT,
                    "at": AT,
                    "run_id": RUN,
                    "step_id": "write",
                    "administrator": None,
                    "summary": "s " * 50,
                }
            ],
            **PAGE,
        },
        [COMMIT, RUN, "write"],
    ),
    "ledger entries": (
        ("ledger", "entries", "ada", "usd"),
        {
            "entries": [
                {
                    "at": AT,
                    "kind": "reserve",
                    "balance_change": "-1",
                    "reserved_change": "1",
                    "spent_change": "0",
                    "balance_after": "10",
                    "run_id": RUN,
                    "step_id": "write",
                    "transfer_id": None,
                    "note": "n " * 30,
                }
            ],
            **PAGE,
        },
        [RUN, "reserve", "write"],
    ),
    "secrets": (
        ("secrets", "list"),
        {
            "secrets": [
                {
                    "name": "A_SECRET_WITH_A_LONG_NAME",
                    "tools": ["shell", "python", "http_fetch"],
                    "hosts": ["api.example.org", "other.example.org"],
                    "updated_at": AT,
                }
            ]
        },
        ["A_SECRET_WITH_A_LONG_NAME", "http_fetch", "other.example.org"],
    ),
}


@pytest.mark.parametrize("width", [120, 80, 40, 0])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_ids_whole_at_any_width(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    """0: in a pipe."""
    command, page, whole = TABLES[name]
    if width:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
    script(answer(200, page))
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    code, printed, notes = agentctl(*command)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert (code, notes) == (0, "")
    assert [word for word in whole if word not in shown] == []
    if width:
        # What is longer than the terminal is one word, which can be copied when the terminal has broken it.
        assert [line for line in shown.splitlines() if len(line) > width and " " in line.strip()] == []


def test_a_decision_is_shown_whole_in_a_followed_run(script: Script, agentctl: Agentctl) -> None:
    asked = {"tool": "shell", "arguments": {"script": SCRIPT}, "reason": "the plan says so"}
    event = {
        "id": 1,
        "run_id": RUN,
        "type": "decision",
        "at": AT,
        "data": {"decision": OTHER, "step": "a", "kind": "approval", "status": "pending", "asked": asked},
    }
    script(answer(200, {"events": [event], "next_after": 1}), answer(200, {"events": [], "next_after": 1}))
    _, printed, _ = agentctl("logs", RUN)
    assert json.dumps(SCRIPT, ensure_ascii=False) in printed
    assert OTHER in printed


COLUMNS = ["ID", "STATE", "TEXT"]


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (200, [36, 7, 100]),
        (36 + 7 + 100 + 2 * GAP, [36, 7, 100]),
        (36 + 7 + 99 + 2 * GAP, [36, 7, 99]),
        (36 + 7 + 24 + 2 * GAP, [36, 7, 24]),
        (36 + 7 + 23 + 2 * GAP, None),
        (1, None),
    ],
)
def test_a_column_gives_way_to_the_ids_until_it_cannot_be_read(width: int, widths: list[int] | None) -> None:
    assert column_widths(COLUMNS, [[RUN, "waiting", "x" * 100]], width, folding=["TEXT"]) == widths


def test_characters_of_two_cells_count_twice() -> None:
    assert column_widths(["A"], [["完成"]], 10) == [4]
    assert column_widths(["A"], [["完成"]], 3) is None


def test_on_a_terminal_the_run_of_events_is_named_when_another_one_speaks(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    events = [
        {"id": number, "run_id": run_id, "type": "log", "at": AT, "data": {"line": f"line {number}"}}
        for number, run_id in enumerate([RUN, RUN, OTHER, RUN], 1)
    ]
    script(stream(*events), problem(401, "unauthenticated", "no"))
    _, printed, _ = agentctl("events", "--after", "all")
    words = [line.split()[-1] for line in re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()]
    assert words == [RUN, "1", "2", OTHER, "3", RUN, "4"]
