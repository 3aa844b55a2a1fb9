"""`agentctl bulk`, `export` and `exports`: what they ask of the API, how far they say it is, and how they are left."""

import asyncio
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from agentctl.api.client import connect
from agentctl.commands import bulk, exports
from agentctl.terminal.output import Output, _CleanConsole
from agentctl.terminal.progress import Bar
from tests.scripted_api import NOTHING, answer, problem, raw
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
BULK = "01936f80-1a2b-7c3d-8e4f-5a6b7c8d9e0f"
EXPORT = "01936f81-1a2b-7c3d-8e4f-5a6b7c8d9e0f"
AT = "2026-11-01T00:00:00Z"
NO_EXPORT = problem(404, "not_found", "there is no export")


def job(status: str = "completed", done: int = 3, refused: int = 0, total: int = 3) -> dict[str, Any]:
    return {
        "bulk_id": BULK,
        "action": "retry",
        "filter": {"statuses": ["failed"]},
        "status": status,
        "total": total,
        "done": done,
        "refused": refused,
        "error": None,
        "created_at": AT,
        "started_at": AT,
        "finished_at": AT if status == "completed" else None,
    }


def an_export(status: str = "completed", files: int = 2) -> dict[str, Any]:
    return {
        "export_id": EXPORT,
        "run_id": RUN,
        "status": status,
        "files": files,
        "files_total": 2,
        "bytes": 3,
        "archive": f"/agent/exports/{EXPORT}/archive",
        "expires_at": AT,
        "error": None,
        "created_at": AT,
        "finished_at": AT,
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(exports, "LOOK_SECONDS", 0.0)


# --- bulk ---


def test_a_bulk_action_is_followed_to_its_end_and_what_refused_is_shown(script: Script, agentctl: Agentctl) -> None:
    refusal = {"run_id": RUN, "status": "refused", "detail": "it is running"}
    page = {"runs": [refusal], "next_cursor": None}
    api = script(
        answer(202, job("queued", 0)),
        answer(200, job("running", 1)),
        answer(200, job(refused=1, done=2)),
        answer(200, page),
    )
    code, printed, noted = agentctl("bulk", "retry", "--status", "failed", "--yes")
    assert code == 1
    assert f"{RUN}: it is running" in noted
    assert "done         2" in printed
    assert [request.method for request in api.requests] == ["POST", "GET", "GET", "GET"]


@pytest.mark.parametrize(
    "command", [("bulk", "retry", "--status", "failed", "--yes", "--no-follow"), ("export", RUN, "--no-fetch")]
)
def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(
    script: Script, agentctl: Agentctl, command: tuple[str, ...]
) -> None:
    before = [NO_EXPORT] if command[0] == "export" else []
    api = script(*before, NOTHING, answer(202, {**job("queued"), **an_export("queued")}))
    assert agentctl(*command)[0] == 0
    keys = [request.headers["Idempotency-Key"] for request in api.requests if request.method == "POST"]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_a_dry_run_asks_only_for_the_number(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"action": "retry", "runs": 7}))
    code, printed, _ = agentctl("bulk", "retry", "--status", "failed", "--dry-run")
    assert (code, printed.split()) == (0, ["runs", "7"])
    assert [json.loads(request.body)["dry_run"] for request in api.requests] == [True]


def test_runs_of_a_bulk_action_may_be_named_by_how_their_ids_begin(script: Script, agentctl: Agentctl) -> None:
    found = {"runs": [{"run_id": RUN, "status": "failed", "created_at": AT, "prompt": "p"}], "next_cursor": None}
    api = script(answer(200, found), answer(200, {"action": "retry", "runs": 1}))
    assert agentctl("bulk", "retry", "--run", RUN[:8], "--dry-run")[0] == 0
    assert json.loads(api.requests[-1].body)["filter"] == {"run_ids": [RUN]}


def test_a_page_that_follows_itself_is_not_fetched_for_ever(script: Script, agentctl: Agentctl) -> None:
    page = {"runs": [{"run_id": RUN, "status": "done", "detail": None}], "next_cursor": 1}
    script(answer(200, page), answer(200, page))
    code, _, noted = agentctl("bulk", "runs", BULK)
    assert (code, "the same page" in noted) == (5, True)


@pytest.mark.parametrize("command", ["show", "stop", "runs"])
def test_a_bulk_action_may_be_named_by_how_its_id_begins(script: Script, agentctl: Agentctl, command: str) -> None:
    listed = {"bulk_actions": [job()], "next_cursor": None}
    end = {"runs": [{"run_id": RUN, "status": "done", "detail": "new"}], "next_cursor": None}
    api = script(answer(200, listed), answer(200, end if command == "runs" else job()))
    code, printed, _ = agentctl("bulk", command, BULK[:10])
    assert (code, BULK in api.requests[-1].path) == (0, True)
    assert ("new" if command == "runs" else BULK) in printed


@pytest.mark.parametrize(("status", "was_over"), [("stopped", False), ("completed", True)])
def test_who_stops_a_bulk_action_that_is_over_reads_so(
    script: Script, agentctl: Agentctl, status: str, was_over: bool
) -> None:
    script(answer(200, job(status)))
    code, _, noted = agentctl("bulk", "stop", BULK)
    assert (code, "It was over already" in noted) == (0, was_over)


def test_who_leaves_a_bulk_action_reads_how_to_see_and_to_stop_it(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(answer(202, job("queued", 0)))
    monkeypatch.setattr(bulk, "_until_over", interrupted)
    code, _, noted = agentctl("bulk", "retry", "--status", "failed", "--yes")
    assert code == 130
    assert f"bulk show {BULK}" in noted
    assert f"bulk stop {BULK}" in noted


async def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


# --- the bar ---


def on_terminal(width: int = 80, *, json_output: bool = False) -> tuple[Output, io.StringIO]:
    shown = io.StringIO()
    output = Output(json_output)
    output.err = _CleanConsole(file=shown, force_terminal=True, width=width, color_system=None)
    return output, shown


@pytest.mark.parametrize("total", [3, 10_000])
def test_the_bar_shows_how_many_of_how_many_from_the_first_line_on_and_fits(script: Script, total: int) -> None:
    api = script(answer(200, job("running", 1, 1, total)), answer(200, job("completed", total - 1, 1, total)))
    output, shown = on_terminal(40)

    async def follow() -> Any:
        async with connect(api.url, "agt_test", output.note) as client:
            return await bulk._until_over(client, output, job("queued", 0, 0, total))

    assert asyncio.run(follow())["status"] == "completed"
    drawn = shown.getvalue()
    assert "?" not in drawn.replace("\x1b[?25", "")
    assert f"{total}/{total}" in drawn
    lines = [line for line in re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\r", "\n", drawn).splitlines() if "retry" in line]
    assert lines
    assert all(len(line) <= 40 for line in lines)


def test_the_cursor_is_shown_again_when_following_breaks_off() -> None:
    output, shown = on_terminal()

    def broken_off() -> None:
        with Bar(output, "retry") as bar:
            bar.show(1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert shown.getvalue().endswith("\x1b[?25h")


@pytest.mark.parametrize("is_json", [True, False])
def test_nothing_is_drawn_in_a_pipe_nor_with_json(is_json: bool) -> None:
    output, shown = on_terminal(json_output=is_json)
    if not is_json:
        output.err = _CleanConsole(file=shown, force_terminal=False)
    with Bar(output, "retry") as bar:
        bar.show(1, 2)
    assert shown.getvalue() == ""


# --- export ---


def test_a_file_that_is_there_is_refused_before_anything_is_exported(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    api = script(NO_EXPORT)
    (tmp_path / f"run-{RUN}.zip").write_bytes(b"mine")
    code, _, noted = agentctl("export", RUN)
    assert (code, "is there already" in noted) == (2, True)
    code, _, noted = agentctl("export", RUN, "--output", str(tmp_path / "no" / "a.zip"))
    assert (code, "No such file or directory." in noted) == (2, True)
    assert [request.method for request in api.requests] == ["GET", "GET"]
    assert os.listdir(tmp_path) == [f"run-{RUN}.zip"]


def test_an_archive_goes_to_standard_output_and_nothing_else_does(script: Script, agentctl: Agentctl) -> None:
    script(NO_EXPORT, answer(202, an_export("queued", 0)), answer(200, an_export()), raw(200, b"zip"))
    code, printed, noted = agentctl("export", RUN, "-o", "-")
    assert (code, printed) == (0, "zip")
    assert "keeps it until" in noted
    assert agentctl("export", RUN, "-o", "-", "--json")[0] == 2


def test_an_export_that_was_asked_for_before_is_fetched_by_its_id(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    api = script(answer(200, an_export("running", 1)), answer(200, an_export()), raw(200, b"zip"))
    assert agentctl("export", EXPORT)[0] == 0
    assert (tmp_path / f"run-{RUN}.zip").read_bytes() == b"zip"
    assert [request.method for request in api.requests] == ["GET", "GET", "GET"]


def test_who_leaves_an_export_reads_how_to_fetch_that_one_later(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(NO_EXPORT, answer(202, an_export("queued", 0)))
    monkeypatch.setattr(exports, "_until_over", interrupted)
    code, _, noted = agentctl("export", RUN)
    assert (code, f"export {EXPORT}" in noted, os.listdir(tmp_path)) == (130, True, [])


def test_an_export_that_failed_says_why_and_leaves_no_file(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    failed = {**an_export("failed"), "error": "the run holds too much"}
    script(NO_EXPORT, answer(202, an_export("queued", 0)), answer(200, failed))
    code, _, noted = agentctl("export", RUN)
    assert (code, "the run holds too much" in noted, os.listdir(tmp_path)) == (1, True, [])


def test_a_run_that_is_not_there_is_reported_as_a_run(script: Script, agentctl: Agentctl) -> None:
    script(NO_EXPORT, problem(404, "not_found", "there is no run"))
    code, _, noted = agentctl("export", RUN)
    assert (code, "there is no run" in noted) == (4, True)


def test_exports_are_listed_and_only_an_archive_that_is_there_has_a_size(script: Script, agentctl: Agentctl) -> None:
    other = "01936f82-1a2b-7c3d-8e4f-5a6b7c8d9e0f"
    gone = {**an_export(), "export_id": other, "archive": None, "expires_at": None}
    api = script(answer(200, {"exports": [gone, an_export()], "next_cursor": None}))
    code, printed, _ = agentctl("exports", "list", "--limit", "2", "--json")
    assert (code, [job["export_id"] for job in json.loads(printed)]) == (0, [other, EXPORT])
    assert api.requests[0].path == "/agent/exports?limit=2"
    script(answer(200, {"exports": [gone, an_export()], "next_cursor": None}))
    code, printed, _ = agentctl("exports", "list")
    assert (code, printed.count(EXPORT), printed.count(other), printed.count("3 B")) == (0, 1, 1, 1)


@pytest.mark.parametrize("given", [EXPORT, EXPORT[:8]])
def test_an_export_is_deleted_by_its_id_or_by_how_that_begins(script: Script, agentctl: Agentctl, given: str) -> None:
    page = answer(200, {"exports": [an_export()], "next_cursor": None})
    api = script(*([page] if given != EXPORT else []), answer(200, an_export()))
    code, printed, _ = agentctl("exports", "delete", given, "--yes", "--json")
    assert (code, json.loads(printed)) == (0, {"deleted": [EXPORT], "refused": []})
    assert (api.requests[-1].method, api.requests[-1].path) == ("DELETE", f"/agent/exports/{EXPORT}")


def test_an_export_that_is_not_there_does_not_keep_the_others_from_being_deleted(
    script: Script, agentctl: Agentctl
) -> None:
    script(NO_EXPORT, answer(200, an_export()))
    code, printed, _ = agentctl("exports", "delete", RUN, EXPORT, "--yes", "--json")
    assert (code, json.loads(printed)["deleted"], json.loads(printed)["refused"][0]["export_id"]) == (4, [EXPORT], RUN)


def test_an_export_is_deleted_only_when_somebody_agrees(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, an_export()))
    code, _, _ = agentctl("exports", "delete", EXPORT)
    assert (code != 0, api.requests) == (True, [])
