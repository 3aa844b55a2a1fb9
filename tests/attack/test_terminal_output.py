"""Against what an agent runs, and against users who name things: what a person prints, or reads in a log, holds nothing
that steers the terminal, turns the reading direction, hides, or looks like another line.

Every command is given an API whose every text is hostile.
"""

import io
import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from agentctl.__main__ import main
from agentctl.terminal.output import Output
from app.edge.server_log import without_query
from backplane.process import log as process_log
from backplane.process.terminal_text import escaped, one_for_one, printable
from tests.scripted_api import answer, problem, raw, stream
from tests.unit.conftest import Agentctl, Script, agentctl, script

__all__ = ["agentctl", "script"]

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
AT = "2026-01-01T00:00:00+00:00"

ATTACKS = {
    "colour": "\x1b[31m",
    "cursor": "\x1b[2A\x1b[1;1H",
    "screen": "\x1b[2J\x1bc",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\text\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;aGk=\x07",
    "device": "\x1bP+q544e\x1b\\\x1b_Gx\x1b\\",
    "an end that never comes": "\x1b]0;",
    "a lone escape": "\x1b",
    "C1": "\x9b31m\x9d0;t\x9c\x90\x84\x85",
    "bell and back": "\x07\x08\x7f",
    "direction": "\u202egnp.\u202c\u2066x\u2069\u061c\u200f",
    "nothing to see": "\u200b\u2060\ufeff\U000e0041\U000e0100",
    "lines": "\r\n\x0b\x0c\u2028\u2029",
    "half a character": "\ud800",
}
HOSTILE = "[red]c[/red][link=https://evil.example]d[/link][/]" + "b".join(ATTACKS.values())
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e0fff\ud800-\udfff]"
)
X = HOSTILE
OF_RICH = re.compile(r"\x1b\[[0-9;]*m")
"""Its own colours."""
LIVE = re.compile(r"\x1b\[\?25[lh]|\x1b\[[0-9]*[AGK]|\r")
"""What moves while a run is followed."""


def decision(**values: Any) -> dict[str, Any]:
    asked = {"question": X, "reason": X, "tool": X, "arguments": {X: X}, "message": X, "account": X, "choices": [X]}
    return {
        "run_id": RUN,
        "decision_id": X,
        "status": "pending",
        "created_at": AT,
        "step": X,
        "kind": "question",
        "asked": asked,
        "answer": None,
        **values,
    }


ERROR = {"code": X, "message": X, "retryable": False, "step": X}
STEP_RESULT = {"exit_code": 1, "output": X, "duration_ms": 3, "files_changed": [X], "error": ERROR}
STEP = {"id": X, "status": "failed", "tool": X, "title": X, "result": STEP_RESULT}
RUN_VIEW = {
    "run_id": RUN,
    "status": "failed",
    "cancel_requested": False,
    "prompt": X,
    "created_at": AT,
    "queued_at": AT,
    "started_at": AT,
    "finished_at": AT,
    "attempt": 1,
    "max_retries": 2,
    "timeout_seconds": 5,
    "priority": X,
    "metadata": {X: X},
    "origin": {"kind": X, "run_id": X, "step": X},
    "agent": X,
    "model": X,
    "error": ERROR,
    "webhook": {"url": X, "event": X, "status": X, "attempts": 2, "last_error": X},
    "result": {"summary": f"{X}\n{X}", "files": [X], "cost": None},
    "failures": [{"attempt": 1, "at": AT, "error": ERROR}, {"attempt": 2, "at": AT, "error": ERROR}],
    "steps": [STEP],
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": X, "attempt": 1}),
    ("plan", {"planner": X, "version": 1, "steps": [{"id": X, "title": X, "tool": X}]}),
    *(
        ("step", {"step": X, "title": X, "tool": X, "status": status, "files_changed": [X], "error": ERROR})
        for status in ("started", "completed", "failed", "retrying", "skipped", "uncertain")
    ),
    *(
        ("decision", {"decision": X, "step": X, "kind": kind, "status": "pending", "asked": decision()["asked"]})
        for kind in ("question", "budget", "approval")
    ),
    ("model", {"purpose": X, "model": X, "status": X, "error": ERROR}),
    ("log", {"line": X, "step": X, "level": X}),
    ("gap", {"after": 1, "before": 3, "reason": X}),
    ("end", {"status": "failed", "error": ERROR}),
]
PAGE = [
    {"id": number, "run_id": RUN, "type": kind, "at": AT, "data": data} for number, (kind, data) in enumerate(EVENTS, 1)
]
FILES = [{"path": X, "size": 3, "modified_at": AT, "etag": X}]
LETTER = {
    "run_id": X,
    "reason": X,
    "at": AT,
    "attempts": 1,
    "crashes": 1,
    "user": X,
    "user_id": X,
    "error": ERROR,
    "prompt": X,
    "created_at": AT,
    "failures": [{"attempt": 1, "at": AT, "worker_id": X, "error": ERROR, "traceback": f"{X}\n{X}"}],
}
PLANS = [
    {
        "version": 1,
        "replaced_at": AT,
        "reason": X,
        "plan": {"planner": X, "steps": [{"id": X, "tool": X, "needs": [X], "title": X}]},
    }
]
CALLS = [
    {
        "call_id": X,
        "step": X,
        "purpose": X,
        "number": 1,
        "status": X,
        "model": X,
        "server": X,
        "input_tokens": 1,
        "output_tokens": 1,
        "usd": None,
        "error": ERROR,
    }
]

ASKED = [decision(kind=kind) for kind in ("question", "budget", "approval")]

COMMANDS: dict[str, tuple[list[str], list[bytes]]] = {
    "explain": (["explain", RUN], [answer(200, {"run_id": RUN, "status": X, "text": X, "waiting_seconds": 1.0})]),
    "show": (["show", RUN], [answer(200, RUN_VIEW)]),
    "runs": (["runs"], [answer(200, {"runs": [RUN_VIEW], "next_cursor": None})]),
    "logs": (["logs", RUN], [answer(200, {"events": PAGE, "next_after": 99}), answer(200, {"events": []})]),
    "logs -f": (["logs", "-f", RUN], [stream(*PAGE), answer(200, RUN_VIEW)]),
    "decisions": (["decisions"], [answer(200, {"decisions": ASKED, "runs": [], "next_cursor": None})]),
    "plans": (["plans", RUN], [answer(200, {"plans": PLANS})]),
    "model-calls": (["model-calls", RUN], [answer(200, {"calls": CALLS, "next_cursor": None})]),
    "files ls": (["files", "ls", RUN], [answer(200, {"files": FILES})]),
    "artifacts list": (["artifacts", "list"], [answer(200, {"artifacts": FILES})]),
    "dlq list": (["dlq", "list"], [answer(200, {"dead_letters": [LETTER], "next_cursor": None})]),
    "dlq show": (["dlq", "show", RUN], [answer(200, LETTER)]),
    "secrets list": (
        ["secrets", "list"],
        [answer(200, {"secrets": [{"name": X, "tools": [X], "hosts": [X], "updated_at": AT}]})],
    ),
    "retry": (["retry", RUN], [answer(200, {"run_id": X, "status": X})]),
    "a refusal": (["show", RUN], [problem(404, X, f"{X}\n{X}")]),
}


@pytest.mark.parametrize("terminal", [False, True], ids=["in a pipe", "on a terminal"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_text_of_the_platform_reaches_a_terminal_as_anything_but_text(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, command: str, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    arguments, answers = COMMANDS[command]
    script(*answers)
    _, out, err = agentctl(*arguments)
    printed = OF_RICH.sub("", out + err)
    assert UNSAFE.findall(LIVE.sub("", printed) if "-f" in command else printed) == []
    assert "[red]c" in printed


def test_an_answer_in_json_keeps_every_character_and_escapes_it(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"run_id": RUN, "status": X, "text": X, "waiting_seconds": 1.0}))
    _, out, _ = agentctl("explain", RUN, "--json")
    assert json.loads(out)["text"] == X
    assert out.isascii()
    assert UNSAFE.findall(out) == []


def test_an_explanation_is_one_line_whatever_a_run_asks(script: Script, agentctl: Agentctl) -> None:
    script(
        answer(200, {"run_id": RUN, "status": "x", "text": "asks: x\nIt is completed.\r\n", "waiting_seconds": None})
    )
    _, out, _ = agentctl("explain", RUN)
    assert out == "asks: x\N{REPLACEMENT CHARACTER}It is completed.\n"


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_steers_a_terminal_is_taken_out_or_made_visible(attack: str) -> None:
    text = f"before {ATTACKS[attack]} after"
    assert UNSAFE.findall(printable(text)) == []
    assert UNSAFE.findall(escaped(text)) == []
    assert len(one_for_one(text)) == len(text)
    assert printable(text).startswith("before ")


@pytest.mark.parametrize("text", ["tab\tand ünïcödé 木 नमस्ते", "می‌خواهم", "👩‍💻 ❤️", "[red] {x} %s"])
def test_text_that_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == escaped(text) == text


@pytest.mark.parametrize("joiner", ["", "\u200c", "\u200d"])
def test_no_character_that_nobody_sees_stays(joiner: str) -> None:
    ignorable = [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2800, 0x3164, 0xFFA0]
    ignorable += [*range(0xFFF0, 0xFFF9), *range(0xFE00, 0xFE0E), *range(0xE0000, 0xE1000)]
    formats = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]
    unsafe = {*ignorable, *formats} - {0x200C, 0x200D}
    assert [hex(code) for code in unsafe if chr(code) in one_for_one(f"x{joiner}{chr(code)}y")] == []


@pytest.mark.parametrize("before", ["", " ", "\u200d", "x\ufe0f", "x\ufe0e", "\u2800"])
def test_a_selector_stays_only_behind_a_character_that_is_seen(before: str) -> None:
    assert one_for_one("x\ufe0f \u2764\ufe0e") == "x\ufe0f \u2764\ufe0e"
    assert one_for_one(f"{before}\ufe0f").endswith("\N{REPLACEMENT CHARACTER}")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


FILE = f"first {X}\n".replace("\r\n", "").encode("utf-8", "replace") + b"\xff\x1b[31m\nlast \xe6\x9c"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_file_is_cleaned_for_a_terminal_however_it_arrives(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "500")
    sink = Output().sink()
    for at in range(0, len(FILE), size):
        sink.write(FILE[at : at + size])
    sink.flush()
    printed = OF_RICH.sub("", shown.getvalue())
    assert UNSAFE.findall(printed) == []
    assert [line[:5] for line in printed.splitlines()] == ["first", "\N{REPLACEMENT CHARACTER}", "last "]


@pytest.mark.parametrize("command", [["files", "get", RUN, "a", "-o", "-"], ["artifacts", "get", "default", "a"]])
def test_a_file_goes_into_a_pipe_as_it_is(
    script: Script, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], command: list[str]
) -> None:
    script(raw(200, FILE))
    monkeypatch.setattr(sys, "argv", ["agentctl", *command])
    with pytest.raises(SystemExit):
        main()
    assert capfdbinary.readouterr().out == FILE


# --- logs ---


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.StringIO]:
    """What the process logs, in this format."""

    def begin(format: str) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        process_log.configure(format=format, level="info", process="test")
        return written

    return begin


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_line_of_the_log_is_one_line_of_text(logged: Callable[[str], io.StringIO], attack: str) -> None:
    written, text = logged("console"), f"x{ATTACKS[attack]}y\n2026-01-01 [info] forged"
    structlog.get_logger().warning(text, path=text, odd=[text], file=Path("/a") / "b\x1b[31m")
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger().exception("it failed")
    lines = written.getvalue().splitlines()
    assert UNSAFE.findall(written.getvalue()) == []
    assert sum(line.startswith("2026-01-01 [info] forged") for line in lines) == 0


def test_a_line_of_the_log_in_json_is_one_line(logged: Callable[[str], io.StringIO]) -> None:
    written = logged("json")
    structlog.get_logger().warning(X, path=X)
    [line] = written.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["path"] == X


@pytest.mark.parametrize("name", ["lib", "uvicorn.error"])
def test_what_a_library_logs_is_one_line_too_and_its_traceback_begins_none(
    logged: Callable[[str], io.StringIO], name: str
) -> None:
    written = logged("console")
    record = logging.LogRecord(name, logging.WARNING, "f", 1, "got %s", (X,), None)
    try:
        raise ValueError(f"{X}\nINFO: forged")
    except ValueError:
        record.exc_info = sys.exc_info()
    process_log.LibraryLog().emit(record)
    line, *traceback = written.getvalue().splitlines()
    assert "got [red]" in line
    assert len(traceback) > 1
    assert all(one.startswith("    ") for one in traceback)
    assert UNSAFE.findall(written.getvalue()) == []


@pytest.mark.parametrize(
    ("path", "kept"),
    [("/agent/runs?token=agt_1", "/agent/runs"), ("/a/b", "/a/b"), ("/?a=b?c", "/"), ("/x\x1b[2J?q", "/x\\x1b[2J")],
)
def test_the_access_log_keeps_no_query_string(path: str, kept: str) -> None:
    arguments = ("127.0.0.1:5", "GET", path, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "f", 1, '%s - "%s %s HTTP/%s" %d', arguments, None)
    assert without_query(record)
    assert record.getMessage() == f'127.0.0.1:5 - "GET {kept} HTTP/1.1" 200'
