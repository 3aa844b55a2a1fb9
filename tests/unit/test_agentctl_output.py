"""What a person sees of a run: every event in a line, and nothing that could play with the terminal."""

import fcntl
import os
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentctl.commands.up import curl_lines
from agentctl.exit_codes import CommandError
from agentctl.local import data_folder
from agentctl.local.platform import Locations
from agentctl.local.redis_cli import redis_cli_line
from agentctl.local.sandbox_check import check_sandbox
from agentctl.terminal.follow import FollowedRun, LiveLine, OpenSteps, describe
from agentctl.terminal.output import Output, duration
from backplane.domain.events import EventType
from backplane.domain.runbook import note_on_planner
from backplane.domain.sizes import readable_size
from backplane.process.supervisor import child_environment, how_it_ended, last_lines
from backplane.process.terminal_text import printable

EVENTS: dict[str, dict[str, Any]] = {
    "status": {"status": "running", "attempt": 2},
    "position": {"position": 3, "estimated_wait_seconds": 12.5},
    "plan": {"planner": "runbook", "steps": [{"id": "a", "title": "A", "tool": "shell"}]},
    "step": {"step": "a", "title": "A", "tool": "shell", "status": "failed", "exit_code": 2, "duration_ms": 10},
    "decision": {
        "decision": "d1",
        "step": "a",
        "kind": "approval",
        "status": "pending",
        "asked": {"tool": "shell", "arguments": {}, "reason": "the plan asks for it"},
    },
    "model": {
        "step": "a",
        "purpose": "turn",
        "number": 1,
        "model": "ollama/tiny",
        "status": "completed",
        "input_tokens": 1200,
        "output_tokens": 34,
        "usd": 0.0021,
        "duration_ms": 1500,
    },
    "progress": {
        "step": "a",
        "purpose": "turn",
        "number": 1,
        "model": "local/m",
        "output_tokens": 1234,
        "seconds": 7.5,
        "text": "…and so\non\x1b[31m",
    },
    "log": {"line": "hello", "step": "a"},
    "gap": {"after": 3, "before": 9, "reason": "not kept"},
    "end": {"status": "failed", "error": {"code": "c", "message": "m", "retryable": False, "step": None}},
}


def lines(kind: str, data: dict[str, Any]) -> list[str]:
    return [line.plain.strip() for line in describe(kind, data)]


def test_every_kind_of_event_has_a_line_but_what_is_over_in_a_moment() -> None:
    assert set(EVENTS) == set(EventType)
    assert {kind: lines(kind, data) for kind, data in EVENTS.items()} == {
        "status": ["● running (attempt 2)"],
        "position": ["○ position 3 in the queue, about 12.5 s"],
        "plan": ["● plan: 1 step, planner runbook"],
        "step": ["✗ A  (exit code 2; 10 ms)"],
        "decision": ["? step a is to be approved: use shell {} (the plan asks for it)  [d1]"],
        "model": ["◇ turn by ollama/tiny  (1,200 + 34 tokens; 1.5 s; $0.002100)"],
        "progress": [],
        "log": ["│ hello"],
        "gap": ["… events 4 to 8 are not to be had: not kept"],
        "end": ["● failed", "m [c]"],
    }


def live_line(*events: tuple[str, dict[str, Any]], width: int = 200) -> str:
    line, file = LiveLine(), StringIO()
    for kind, data in events:
        line.follow(kind, data)
    Console(file=file, width=width).print(line)
    return file.getvalue()


def test_the_live_line_says_what_a_model_has_so_far_until_its_call_is_over() -> None:
    started = ("step", {**EVENTS["step"], "status": "started"})
    thinks, ended = ("progress", EVENTS["progress"]), ("model", EVENTS["model"])
    assert "A  turn by local/m  about 1,234 tokens  7.5 s  …and so on\n" in live_line(started, thinks)
    assert " A  0.0 s" in live_line(started, thinks, ended)
    assert " turn by local/m  about 1,234 tokens" in live_line(thinks)
    assert " running  0.0 s" in live_line(thinks, ended)


@pytest.mark.parametrize("text", ["word " * 100, "x" * 1000, "", "\n\n"])
def test_the_live_line_stays_one_line(text: str) -> None:
    thinks = ("progress", {**EVENTS["progress"], "text": text})
    for width in (10, 20, 40, 60, 80, 200):
        shown = live_line(
            ("step", {**EVENTS["step"], "title": "A title" * 3, "status": "started"}), thinks, width=width
        )
        assert shown.count("\n") == 1
        assert len(shown) <= width + 1


@pytest.mark.parametrize("json_output", [False, True])
def test_what_a_model_has_so_far_goes_into_no_pipe(json_output: bool, capsys: pytest.CaptureFixture[str]) -> None:
    at = "2026-01-01T00:00:00+00:00"
    with FollowedRun(Output(json_output)) as view:
        view.show({"id": 0, "type": "progress", "at": at, "data": EVENTS["progress"]})
        assert capsys.readouterr().out == ""
        view.show({"id": 7, "type": "log", "at": at, "data": EVENTS["log"]})
    assert "hello" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["started", "completed", "failed", "retrying", "skipped", "uncertain"])
def test_every_state_of_a_step_has_a_line(status: str) -> None:
    assert "Title" in lines("step", {"step": "a", "title": "Title", "tool": "shell", "status": status})[0]


def test_what_a_newer_server_sends_is_passed_over() -> None:
    assert lines("unheard-of", {}) == []
    assert lines("step", {"step": "a", "title": "", "tool": "t", "status": "unheard-of"}) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;never ended", ""),
        ("50%\r100%\n", "50% 100%"),
        ("bell\x07 back\x08 csi\x9b31m", "bell� back� csi"),
        ("turned \u202egnp.exe", "turned �gnp.exe"),
        ("tab\tand ünïcödé 木", "tab\tand ünïcödé 木"),
        ("half \ud800", "half �"),
    ],
)
def test_text_of_a_run_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_durations_and_sizes_are_for_people() -> None:
    assert [duration(s) for s in (0.0124, 1.44, 59.99, 185, 7800)] == [
        "12 ms",
        "1.4 s",
        "60.0 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
    assert [readable_size(n) for n in (0, 1023, 1536, 5 * 1024**3)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_a_data_folder_full_of_something_else_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CommandError, match="holds other things"):
        data_folder.prepare(tmp_path)
    assert (tmp_path.stat().st_mode & 0o777, len(list(tmp_path.iterdir()))) == (0o755, 1)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_data_folder_that_is_a_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="is no folder, or a part of its path is a file"):
        data_folder.prepare(tmp_path / name)


def test_the_line_that_reaches_redis_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = redis_cli_line(Path(".data"), Path(".data/redis/redis.sock"))
    assert f"cat {tmp_path}/.data/redis.password" in line
    assert line.endswith(f"-s {tmp_path}/.data/redis/redis.sock")


async def test_a_check_of_the_sandbox_that_takes_too_long_is_distinguished_from_a_silent_one() -> None:
    with pytest.raises(TimeoutError):
        await check_sandbox(dict(os.environ), seconds=0.001)


def test_a_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    data_folder.prepare(folder)
    folder.chmod(0o777)
    data_folder.prepare(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_data_folder_is_used_by_one_process_which_is_named(tmp_path: Path) -> None:
    with (
        data_folder.locked(tmp_path),
        pytest.raises(CommandError, match=str(os.getpid())),
        data_folder.locked(tmp_path),
    ):
        pass
    assert not (tmp_path / "lock").exists()
    with data_folder.locked(tmp_path):
        pass


def test_a_lock_file_that_a_killed_process_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n")
    with data_folder.locked(tmp_path), (tmp_path / "lock").open() as file:
        assert file.read() == f"{os.getpid()}\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_secret_replaces_an_open_file_by_a_closed_one(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    data_folder.write_secret(file, "new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_childs_settings_win_over_any_spelling_in_the_environment() -> None:
    environment = child_environment({"REDIS_URL": "new"}, {"redis_url": "old", "Redis_Url": "older", "HOME": "/h"})
    assert {name: value for name, value in environment.items() if name.lower() == "redis_url"} == {"REDIS_URL": "new"}
    assert environment["HOME"] == "/h"


def test_the_end_of_a_log_is_what_the_last_start_wrote(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("before\nafter\n")
    assert last_lines(log, start=7).splitlines()[1:] == ["    after"]
    assert last_lines(log, start=13) == ""
    assert last_lines(tmp_path / "none") == ""


def test_the_end_of_a_process_is_said_in_words() -> None:
    assert [how_it_ended(code) for code in (0, 3, -9, -120)] == [
        "ended with exit code 0",
        "ended with exit code 3",
        "was ended by SIGKILL",
        "was ended by signal 120",
    ]


def test_the_lines_to_paste_reach_a_server_that_listens_everywhere() -> None:
    assert Locations("0.0.0.0", 80, Path("d"), 1).url == "http://127.0.0.1:80"
    assert Locations("::", 80, Path("d"), 1).url == "http://[::1]:80"
    lines = curl_lines(Locations("127.0.0.1", 80, Path("my data"), 1))
    # Whole: they are pasted into another terminal, which may stand in another folder.
    assert f"$(cat '{Path.cwd()}/my data/token')" in lines[0]
    assert [line for line in lines if "cat 'my data" in line] == []


def stepped(step: str, status: str, title: str = "") -> tuple[str, dict[str, Any]]:
    return "step", {"step": step, "title": title, "tool": "shell", "status": status}


def line(step: str, text: str) -> tuple[str, dict[str, Any]]:
    return "log", {"step": step, "line": text}


OVERLAPPING = [
    stepped("a", "started"),
    line("a", "alone"),
    stepped("b", "started"),
    line("a", "1"),
    line("b", "2"),
    line("b", "3"),
    stepped("a", "completed"),
    line("b", "after a"),
    line("b", "still"),
    stepped("b", "completed"),
    ("log", {"line": "of no step"}),
    line("b", "late"),
]
LABELS = ["", "a", "b", "b", "b", "", "", ""]


def test_lines_carry_the_name_of_their_step_while_steps_overlap_and_until_it_is_clear_whose_they_are() -> None:
    steps = OpenSteps()
    labels = [steps.label(kind, data, narrow=False) for kind, data in OVERLAPPING]
    assert [label for label, (kind, _) in zip(labels, OVERLAPPING, strict=True) if kind == "log"] == LABELS


def test_lines_of_a_step_below_another_carry_no_name_unless_that_has_two_at_once() -> None:
    steps = OpenSteps()
    happened = [
        stepped("agent", "started"),
        stepped("agent/0.1.1", "started"),
        line("agent/0.1.1", "one"),
        stepped("agent/0.1.2", "started"),
        line("agent/0.1.1", "two"),
    ]
    assert [steps.label(kind, data, narrow=False) for kind, data in happened] == ["", "", "", "", "agent/0.1.1"]


@pytest.mark.parametrize(
    ("narrow", "names", "label"),
    [
        (False, ("Count the night", "Count the day"), "Count the night"),
        (True, ("Count the night", "Count the day"), "Count …ght"),
        (False, ("Count what there is in the night", "Count the day"), "Count what th… night"),
        (False, ("Count", "Count"), "a"),
    ],
)
def test_the_name_is_the_title_as_far_as_there_is_room_and_the_id_where_titles_are_alike(
    narrow: bool, names: tuple[str, str], label: str
) -> None:
    steps = OpenSteps()
    for step, title in zip("ab", names, strict=True):
        steps.label(*stepped(step, "started", title), narrow=narrow)
    assert steps.label(*line("a", "x"), narrow=narrow) == label


def test_a_decision_that_was_made_says_what_was_answered() -> None:
    approved = {"kind": "approval", "decision": "1", "step": "s", "status": "approved"}
    assert lines("decision", {**approved, "answer": {}}) == ["● approval of step s: approved"]
    assert lines("decision", {**approved, "answer": {"arguments": {"script": "a\nb"}}}) == [
        "● approval of step s: approved with script of 2 lines",
        "script:",
        "│ a",
        "│ b",
    ]
    assert lines("decision", {**approved, "status": "rejected", "answer": {"reason": "no"}}) == [
        '● approval of step s: rejected: "no"'
    ]


@pytest.mark.parametrize(("planner", "flag"), [("runbook", "--planner model"), ("model", "--planner runbook")])
def test_the_note_on_the_planner_names_the_option(planner: str, flag: str) -> None:
    note = note_on_planner(planner, "```sh\ntrue\n```")
    [_, shown] = lines("plan", {"steps": [1], "planner": planner, "note": note})
    assert flag in shown
    assert "name the planner" not in shown


def test_a_run_that_goes_on_after_a_loss_says_why() -> None:
    reason = "its worker vm-1 was lost; it goes on behind the last step that has ended"
    assert lines("status", {"status": "running", "attempt": 1, "reason": reason}) == [f"● running: {reason}"]
