"""The command line as scripts rely on it: what it takes, what it prints where, and how it exits."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from agentctl import new_run
from agentctl.__main__ import app
from agentctl.command_table import COMMANDS
from agentctl.commands import files
from agentctl.exit_codes import MEANINGS, CommandError, ExitCode
from agentctl.plan_file import read_plan
from tests.scripted_api import NOTHING, answer, problem, raw, stream
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
CREATED = answer(201, {"run_id": RUN, "status": "queued", "position": None, "estimated_wait_seconds": None})


def event(number: int, kind: str, **data: Any) -> dict[str, Any]:
    return {"id": number, "run_id": RUN, "type": kind, "at": f"2026-01-01T00:00:0{number}+00:00", "data": data}


def ending(status: str) -> tuple[bytes, bytes]:
    """The stream and the view of a run that ended so."""
    error = {"code": "command_failed", "message": "It broke.", "retryable": False, "step": "a"}
    data = {"status": status, "error": error if status == "failed" else None}
    return stream(event(1, "status", **data), event(2, "end", **data)), answer(200, {"run_id": RUN, "status": status})


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("cancelled", 3)])
def test_a_followed_run_decides_the_exit_code(script: Script, agentctl: Agentctl, status: str, code: int) -> None:
    script(CREATED, *ending(status))
    assert agentctl("run", "# x")[0] == code


def test_a_run_that_waits_for_a_person_is_not_followed_for_ever(script: Script, agentctl: Agentctl) -> None:
    waiting = answer(200, {"run_id": RUN, "status": "waiting"})
    script(stream(event(1, "status", status="waiting")), waiting)
    code, _, notes = agentctl("logs", "-f", RUN)
    assert (code, "--take-as-done" in notes) == (6, True)


def test_a_run_that_has_waited_and_went_on_is_followed_to_its_end(script: Script, agentctl: Agentctl) -> None:
    view = answer(200, {"run_id": RUN, "status": "completed"})
    script(stream(event(1, "status", status="waiting"), event(2, "end", status="completed")), view)
    assert agentctl("logs", "-f", RUN)[0] == 0


def test_a_run_that_was_retried_is_followed_behind_its_first_end(script: Script, agentctl: Agentctl) -> None:
    queued = answer(200, {"run_id": RUN, "status": "queued"})
    api = script(stream(event(1, "end", status="failed")), queued, *ending("completed"))
    assert agentctl("logs", "-f", RUN)[0] == 0
    assert api.requests[2].headers["Last-Event-ID"] == "1"


def test_following_ends_when_the_wait_is_over(script: Script, agentctl: Agentctl) -> None:
    running = answer(200, {"run_id": RUN, "status": "running"})
    script(stream(event(1, "status", status="running"), whole=False), running)
    assert agentctl("logs", "-f", RUN, "--wait", "0.1")[0] == 6


@pytest.mark.parametrize("status", [401, 403, 404, 409, 413, 422])
def test_a_refusal_is_exit_code_4_and_says_why(script: Script, agentctl: Agentctl, status: int) -> None:
    script(problem(status, "some_code", "Do that instead."))
    assert agentctl("show", RUN) == (4, "", "Do that instead. [some_code]\n")


def test_an_api_that_does_not_answer_is_exit_code_5(script: Script, agentctl: Agentctl) -> None:
    script(NOTHING)
    code, printed, _ = agentctl("retry", RUN)
    assert (code, printed) == (5, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["show"],
        ["run"],
        ["run", "nowhere.md"],
        ["run", "x", "--metadata", "novalue"],
        ["run", "x", "--metadata", "a=1", "--metadata", "a=2"],
        ["run", "/"],
        ["run", "--plan", "/dev/null"],
        ["run", "x", "--file", "nowhere.bin"],
        ["run", "x", "--plan", "nowhere.yaml"],
        ["run", "x", "--timeout", "0"],
        ["runs", "--status", "lost"],
        ["files", "put", RUN, "-"],
        ["files", "put", RUN, "nowhere.bin"],
        ["run", "x", "--timeout", "1", "--timeout", "2"],
        ["run", "x", "--agent=a", "--agent=b"],
        ["files", "get", RUN, "a", "-o", "b", "--output=c"],
        ["runs", "--status", "failed", "--status", "running"],
        ["files", "get", RUN, "a", "-o", "-", "--json"],
        ["files", "get", RUN, "a", "-o", "no/such/folder"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_asks_nobody(
    script: Script, agentctl: Agentctl, arguments: list[str]
) -> None:
    api = script(raw(500, b""))
    code, printed, notes = agentctl(*arguments)
    assert (code, printed, api.requests) == (2, "", [])
    assert notes


@pytest.mark.parametrize("second", ["other.txt:data.txt", "./data.txt", "other.txt:./data.txt", "data.txt"])
def test_two_files_for_one_path_are_refused_by_its_name(
    script: Script, agentctl: Agentctl, tmp_path: Path, second: str
) -> None:
    (tmp_path / "data.txt").write_text("first")
    (tmp_path / "other.txt").write_text("second")
    api = script(raw(500, b""))
    code, _, notes = agentctl("run", "x", "--file", "data.txt", "--file", second)
    assert (code, "'data.txt' twice" in notes, api.requests) == (2, True, []), notes


def test_an_option_that_takes_one_value_and_is_given_twice_is_refused_by_its_name(
    script: Script, agentctl: Agentctl
) -> None:
    script(raw(500, b""))
    code, _, notes = agentctl("run", "x", "--timeout", "1", "--timeout", "2")
    assert (code, "--timeout is given twice" in notes) == (2, True), notes


def test_flags_and_options_that_may_be_given_often_may_stand_twice(script: Script, agentctl: Agentctl) -> None:
    api = script(CREATED, *ending("completed"))
    twice = ["--mcp-server", "a", "--mcp-server", "b", "--metadata", "a=1", "--metadata", "b=2", "--json", "--json"]
    assert (agentctl("run", "x", *twice)[0], len(api.requests)) == (0, 3)


def test_without_a_token_it_is_said_where_one_comes_from(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(raw(500, b""))
    monkeypatch.delenv("AGENT_TOKEN")
    code, _, notes = agentctl("runs")
    assert (code, "agentctl up" in notes) == (2, True)


def test_settings_that_do_not_fit_together_are_exit_code_2_and_show_no_value(
    agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden-one@127.0.0.1")
    monkeypatch.setenv("LEASE_SECONDS", "1")
    code, printed, notes = agentctl("settings")
    assert (code, printed) == (2, "")
    assert "LEASE_SECONDS" in notes
    assert "hidden-one" not in notes


def test_followed_json_is_the_events_line_by_line_and_nothing_else(script: Script, agentctl: Agentctl) -> None:
    script(CREATED, *ending("failed"))
    code, printed, _ = agentctl("run", "x", "--json")
    assert code == 1
    assert [json.loads(line)["type"] for line in printed.splitlines()] == ["status", "end"]


def test_notes_about_a_broken_stream_stay_out_of_the_json(script: Script, agentctl: Agentctl) -> None:
    script(stream(event(1, "log", line="a"), whole=False), *ending("completed"))
    code, printed, notes = agentctl("logs", "-f", RUN, "--json")
    assert (code, "after event 1" in notes) == (0, True)
    assert [json.loads(line)["id"] for line in printed.splitlines()] == [1, 2]


def test_the_events_of_all_runs_are_shown_with_their_runs_and_in_json_with_their_cursors(
    script: Script, agentctl: Agentctl
) -> None:
    notes = stream(event(1, "log", line="a\x1b[2J"), event(2, "end", status="failed"))
    refused = problem(401, "unauthenticated", "no")
    script(notes, refused)
    code, printed, _ = agentctl("events", "--after", "all")
    assert code != 0
    assert [line.split()[-1] for line in printed.splitlines()] == ["a", "failed"]
    assert all(RUN in line for line in printed.splitlines())
    script(notes, refused)
    _, printed, _ = agentctl("events", "--json")
    assert [json.loads(line)["cursor"] for line in printed.splitlines()] == ["1", "2"]


def test_logs_are_fetched_page_by_page(script: Script, agentctl: Agentctl) -> None:
    first = answer(200, {"events": [event(1, "log", line="a")], "next_after": 1, "ended": False})
    second = answer(200, {"events": [event(2, "log", line="b")], "next_after": 2, "ended": True})
    api = script(first, second, answer(200, {"events": [], "next_after": 2, "ended": True}))
    code, printed, _ = agentctl("logs", RUN)
    assert (code, [line.split()[-1] for line in printed.splitlines()]) == (0, ["a", "b"])
    assert [request.path.split("?")[1] for request in api.requests] == [f"after={n}&limit=500" for n in (0, 1, 2)]


def test_runs_follow_the_cursor_up_to_the_limit(script: Script, agentctl: Agentctl) -> None:
    def page(number: int, cursor: str | None) -> bytes:
        run = {
            "run_id": str(number),
            "status": "completed",
            "created_at": "2026-01-01T00:00:00+00:00",
            "started_at": None,
            "finished_at": None,
            "prompt": "# Title\n\nmore",
        }
        return answer(200, {"runs": [run], "next_cursor": cursor})

    api = script(page(3, "three"), page(2, "two"), page(1, None))
    code, printed, _ = agentctl("runs", "--limit", "2", "--json")
    assert (code, [run["run_id"] for run in json.loads(printed)]) == (0, ["3", "2"])
    assert "cursor=three" in api.requests[1].path


FULL = problem(429, "too_many_waiting", "20 runs of yours wait already; come back in about 1 s", retry_after="1")
LATE = problem(503, "queue_full", "the platform's queue is full; come back in about 3600 s", retry_after="3600")


def test_a_run_waits_for_room_in_a_full_queue_and_says_so_once(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("agentctl.terminal.queue_room.asyncio.sleep", pause)
    api = script(FULL, FULL, CREATED)
    code, printed, notes = agentctl("run", "x", "--no-follow")
    assert (code, printed) == (0, f"{RUN}\n")
    assert pauses == [1.0, 1.0]
    assert notes.count("Waiting for room") == 1
    assert "20 runs of yours wait already" in notes
    assert len(api.requests) == 3


@pytest.mark.parametrize(
    ("refusal", "arguments", "code"), [(FULL, ["--no-wait"], 4), (LATE, [], 5), (LATE, ["--no-wait"], 5)]
)
def test_a_run_does_not_wait_longer_than_it_may(
    script: Script, agentctl: Agentctl, refusal: bytes, arguments: list[str], code: int
) -> None:
    api = script(refusal)
    found, _, notes = agentctl("run", "x", "--no-follow", *arguments)
    assert (found, "come back in about" in notes, "Waiting" in notes) == (code, True, False)
    assert len(api.requests) == 1


def test_who_gives_up_while_waiting_for_room_reads_what_there_is(
    script: Script, agentctl: Agentctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentctl.terminal.queue_room.asyncio.sleep", interrupted)
    (tmp_path / "a").write_text("a")
    script(answer(201, {"run_id": RUN, "status": "created"}), answer(201, {"path": "a", "size": 1}), FULL)
    code, _, notes = agentctl("run", "x", "--file", "a")
    assert (code, f"Run {RUN} is created and not started" in notes) == (130, True)


def test_files_are_put_before_the_run_is_started(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.csv").write_text("a,b\n")
    (tmp_path / "other").write_text("o")
    put = answer(201, {"path": "x", "size": 1})
    api = script(answer(201, {"run_id": RUN, "status": "created"}), put, put, CREATED)
    arguments = ["run", "x", "--no-follow", "--file", "data/in.csv", "--file", f"{tmp_path}/other:conf/name"]
    assert agentctl(*arguments) == (0, f"{RUN}\n", "")
    asked = [(request.method, request.path, request.body) for request in api.requests]
    assert json.loads(asked[0][2]) == {"action": "create", "prompt": "x"}
    assert asked[1:3] == [
        ("PUT", f"/agent/runs/{RUN}/files/data/in.csv", b"a,b\n"),
        ("PUT", f"/agent/runs/{RUN}/files/conf/name", b"o"),
    ]
    assert json.loads(asked[3][2]) == {"action": "start", "run_id": RUN}


def test_a_fetched_file_replaces_the_old_one_only_when_it_is_whole(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    target = tmp_path / "report.txt"
    target.write_text("old")
    script(raw(200, b"half", length=8))
    assert agentctl("files", "get", RUN, "out/report.txt", "--force")[0] == 5
    assert (target.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["report.txt"])
    script(raw(200, b"new"))
    code, printed, _ = agentctl("files", "get", RUN, "out/report.txt", "--force", "--json")
    assert (code, json.loads(printed)["size"], target.read_text()) == (0, 3, "new")


@pytest.mark.parametrize("options", [(), ("-o", "report.txt"), ("-o", ".")])
def test_a_file_that_is_there_is_not_overwritten_unasked(
    script: Script, agentctl: Agentctl, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "report.txt").write_text("mine")
    api = script(raw(200, b"new"))
    code, printed, notes = agentctl("files", "get", RUN, "out/report.txt", *options)
    assert (code, printed, api.requests, "--force" in notes) == (2, "", [], True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_that_is_made_while_another_is_fetched_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "report.txt"

    def fetch() -> None:
        with files.whole_or_not_at_all(target, force=False) as sink:
            sink.write(b"new")
            target.write_text("mine")

    with pytest.raises(FileExistsError):
        fetch()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_device_is_written_to_and_not_replaced(script: Script, agentctl: Agentctl) -> None:
    script(raw(200, b"bytes"))
    assert agentctl("files", "get", RUN, "x", "-o", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_retry_says_what_becomes_of_the_uncertain_step_only_when_asked(script: Script, agentctl: Agentctl) -> None:
    api = script(CREATED)
    agentctl("retry", RUN)
    agentctl("retry", RUN, "--take-as-done")
    agentctl("retry", RUN, "--repeat")
    assert agentctl("retry", RUN, "--repeat", "--take-as-done")[0] == 2
    assert [json.loads(request.body) for request in api.requests] == [
        {"action": "retry", "run_id": RUN},
        {"action": "retry", "run_id": RUN, "uncertain_step": "done"},
        {"action": "retry", "run_id": RUN, "uncertain_step": "repeat"},
    ]


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_a_byte_order_mark_is_no_part_of_a_plan_or_a_prompt(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"steps": []}')
    (tmp_path / "prompt.md").write_bytes(b"\xef\xbb\xbf# Title\n")
    assert read_plan(tmp_path / name) == {"steps": []}
    assert new_run.text_of(str(tmp_path / "prompt.md")) == "# Title\n"


TWICE = {
    "in YAML": (
        "plan.yaml",
        "steps:\n- id: a\n  approval: true\n  tool: shell\n  approval: false\n",
        "line 5: 'approval'",
    ),
    "in JSON": ("plan.json", '{"steps": [\n{"id": "a", "approval": true,\n"approval": false}]}', "line 3: 'approval'"),
    "at the top": ("plan.yaml", "steps: []\nsteps: []\n", "line 2: 'steps' stands there twice, first in line 1"),
    "in JSON with tabs": ("plan.json", '{\n\t"a": {"b": 1,\n\t"b": 2}}', "line 3: 'b'"),
    "in arguments": ("plan.yaml", "steps:\n- arguments: {script: a, script: b}\n", "line 2: 'script'"),
}


@pytest.mark.parametrize(("name", "content", "words"), TWICE.values(), ids=TWICE)
def test_a_key_that_stands_twice_in_a_plan_file_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CommandError, match=words) as refused:
        read_plan(tmp_path / name)
    assert refused.value.exit_code is ExitCode.USAGE


def test_the_keys_of_a_merged_mapping_may_be_written_over(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("base: &base {tool: shell, retry: 1}\nsteps:\n- {<<: *base, retry: 2}\n")
    assert read_plan(plan)["steps"] == [{"tool": "shell", "retry": 2}]


def test_a_plan_needs_no_prompt(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("steps:\n  - {id: a, tool: shell, arguments: {script: 'true'}}\n")
    body = new_run.new_run_of(None, plan, 5, 0, ["a=b=c"])
    assert body["plan"] == {"steps": [{"id": "a", "tool": "shell", "arguments": {"script": "true"}}]}
    assert (body["prompt"], body["timeout_seconds"], body["max_retries"]) == ("Carry out plan.yaml.", 5, 0)
    assert body["metadata"] == {"a": "b=c"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", "{"),
        ("p.json", "steps: []"),
        ("p.yaml", "a: [b"),
        ("p.yaml", "at: 2026-01-01"),
        ("p.yaml", "a: .nan"),
    ],
)
def test_a_plan_file_that_json_cannot_hold_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CommandError) as failure:
        read_plan(tmp_path / name)
    assert failure.value.exit_code is ExitCode.USAGE


def test_a_prompt_is_a_text_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.md"
    file.write_text("# From a file\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"# From a pipe\n")))
    assert new_run.text_of("# Text\n") == "# Text\n"
    assert new_run.text_of(str(file)) == "# From a file\n"
    assert new_run.text_of("-") == "# From a pipe\n"
    assert new_run.text_of("x" * 100_000) == "x" * 100_000


def test_a_prompt_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompt.md"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="UTF-8"):
        new_run.text_of(str(file))


def test_the_help_names_every_exit_code_and_every_command(agentctl: Agentctl) -> None:
    code, printed, _ = agentctl("--help")
    assert code == 0
    assert all(f"{number.value}: " in printed for number in MEANINGS)
    assert all(f" {command} " in printed for command in ("up", "run", "queue", "files", "token", "doctor", "version"))


def test_every_setting_is_listed_and_no_secret(agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hidden-one@127.0.0.1/db?sslpassword=hidden-two")
    monkeypatch.setenv("REDIS_URL", "redis://:hidden-three@127.0.0.1:1/0")
    monkeypatch.setenv("S3_ACCESS_KEY", "hidden-four")
    monkeypatch.setenv("S3_SECRET_KEY", "hidden-five")
    _, as_json, _ = agentctl("settings", "--json")
    _, as_table, _ = agentctl("settings")
    assert "hidden" not in as_json + as_table
    assert "postgresql://user:***@127.0.0.1/db" in as_table
    listed = {setting["name"]: setting for setting in json.loads(as_json)}
    assert listed["LEASE_SECONDS"]["default"] == "15.0"
    assert [name for name, setting in listed.items() if not setting["meaning"]] == []


def test_the_commands_of_a_client_start_without_the_libraries_of_the_platform() -> None:
    heavy = "{'sqlalchemy', 'alembic', 'boto3', 'redis'}"
    program = f"import agentctl.__main__, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("words", "offered"), [("agentctl ", list(COMMANDS)), ("agentctl lo", ["logs"])])
def test_names_of_commands_are_completed_without_loading_a_command(words: str, offered: list[str]) -> None:
    program = """if True:
        import atexit, sys
        heavy = {"httpx", "yaml", "sqlalchemy", "agentctl.commands.runs"}
        atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))
        from agentctl.__main__ import main
        main()
        """
    asked = {"_AGENTCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert (done.stdout.split(), done.stderr) == (offered, "[]\n")


def test_what_a_shell_shows_of_a_command_is_the_beginning_of_its_help() -> None:
    group: Any = get_command(app)
    context = group.make_context("agentctl", [], resilient_parsing=True)
    shown = {name: group.get_command(context, name).get_short_help_str() for name in group.list_commands(context)}
    assert {name: place.summary for name, place in COMMANDS.items()} == shown


def test_the_documentation_has_the_same_exit_codes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "agentctl.md").read_text()
    assert [code for code, meaning in MEANINGS.items() if f"| {code.value} | {meaning} |" not in text] == []


# --- webhooks ---


def test_the_webhook_secret_is_the_only_thing_on_standard_output(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"secret": "whsec_abc", "previous_signs_until": "2026-01-01T00:00:00+00:00"}))
    code, out, notes = agentctl("webhook-secret")
    assert (code, out) == (0, "whsec_abc\n")
    assert "too until 202" in notes
    assert [(request.method, request.path) for request in api.requests] == [("GET", "/agent/webhook-secret")]


def test_a_rotation_is_not_sent_twice_when_it_may_have_arrived(script: Script, agentctl: Agentctl) -> None:
    api = script(NOTHING, answer(200, {"secret": "whsec_abc", "previous_signs_until": None}))
    assert agentctl("webhook-secret", "--rotate")[0] == 5
    assert [(request.method, request.path) for request in api.requests] == [("POST", "/agent/webhook-secret/rotate")]


def test_a_run_is_given_its_webhook(script: Script, agentctl: Agentctl) -> None:
    api = script(CREATED)
    assert agentctl("run", "# x", "--no-follow", "--webhook", "https://example.org/hook")[0] == 0
    assert json.loads(api.requests[0].body)["webhook_url"] == "https://example.org/hook"


# --- start ---


def test_a_forked_run_that_is_not_started_says_how_it_is(script: Script, agentctl: Agentctl) -> None:
    script(CREATED)
    code, printed, notes = agentctl("fork", RUN, "--no-start")
    assert (code, printed, f"start {RUN}" in notes) == (0, f"{RUN}\n", True)


def test_a_created_run_is_started_and_followed(script: Script, agentctl: Agentctl) -> None:
    api = script(CREATED, *ending("failed"))
    assert agentctl("start", RUN)[0] == 1
    assert json.loads(api.requests[0].body) == {"action": "start", "run_id": RUN}


def test_a_run_whose_file_is_refused_is_created_and_says_how_it_is_started(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("x")
    script(CREATED, problem(413, "too_large", "Too large."))
    code, _, notes = agentctl("run", "# x", "--file", "a.txt")
    assert (code, f"start {RUN}" in notes, "Too large." in notes) == (4, True, True)


def test_settings_with_a_default_that_is_made_are_shown_with_it(agentctl: Agentctl) -> None:
    _, printed, _ = agentctl("settings", "--json")
    assert "Undefined" not in printed
    assert {one["name"]: one["default"] for one in json.loads(printed)}["RESOURCE_CONCURRENCY"] == "{}"
