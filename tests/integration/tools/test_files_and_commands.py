"""Tools of files and commands over a real workspace, a real checkout and the best sandbox that the machine allows."""

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import Conflict, InvalidPath, NotFound, QuotaExceeded, Superseded
from backplane.workspace.quota import Quota
from tests.tool_bench import LIMITS, Bench

# --- files ---


async def test_a_file_is_written_read_listed_and_deleted(bench: Bench) -> None:
    written = await bench.step("file_write", path="docs/a.txt", content="häppy\n")
    assert (written.exit_code, written.files_changed) == (0, ("docs/a.txt",))
    assert bench.said == b"wrote 7 bytes to docs/a.txt\n"

    await bench.step("file_read", path="docs/a.txt")
    assert bench.said.decode() == "häppy\n"

    await bench.step("file_list")
    assert bench.said.decode().split() == ["7", "docs/a.txt", "1", "file"]

    deleted = await bench.step("file_delete", path="docs/a.txt")
    assert deleted.files_changed == ("docs/a.txt",)
    assert await bench.files() == {}


async def test_an_empty_file_can_be_written(bench: Bench) -> None:
    await bench.step("file_write", path="empty", content="")
    assert await bench.files() == {"empty": b""}


async def test_a_part_of_a_file_says_how_to_read_on(bench: Bench) -> None:
    await bench.step("file_write", path="a", content="0123456789")
    await bench.step("file_read", path="a", start=2, max_bytes=3)
    assert bench.said.decode() == "234\n… 5 more bytes; read on with start=5\n"
    await bench.step("file_read", path="a", start=5)
    assert bench.said == b"56789"
    await bench.step("file_read", path="a", start=100)
    assert bench.said == b""


async def test_a_listing_can_be_of_one_folder(bench: Bench) -> None:
    for path in ("a/1", "a/2", "ab"):
        await bench.step("file_write", path=path, content="x")
    await bench.step("file_list", prefix="a")
    assert bench.said.decode().split() == ["1", "a/1", "1", "a/2", "2", "files"]


async def test_reading_what_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFound, match="nothing"):
        await bench.step("file_read", path="nothing")


async def test_deleting_twice_is_as_good_as_once(bench: Bench) -> None:
    result = await bench.step("file_delete", path="nothing")
    assert (result.exit_code, result.files_changed) == (0, ())


async def test_writing_over_the_quota_changes_nothing_and_announces_nothing(bench: Bench) -> None:
    small = bench.but(quota=Quota(max_bytes=5, max_files=10, max_depth=8))
    with pytest.raises(QuotaExceeded):
        await small.step("file_write", path="a", content="123456")
    assert await bench.files() == {}
    assert bench.changing == []


async def test_a_file_is_not_written_below_another_file(bench: Bench) -> None:
    await bench.step("file_write", path="a", content="x")
    with pytest.raises(Conflict):
        await bench.step("file_write", path="a/b", content="x")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("file_write", {"path": "a", "content": "new"}),
        ("file_delete", {"path": "a"}),
        ("shell", {"script": "echo new > a"}),
    ],
)
async def test_nothing_is_changed_once_another_worker_holds_the_run(
    bench: Bench, tool: str, arguments: dict[str, Any]
) -> None:
    await bench.step("file_write", path="a", content="old")

    async def superseded() -> None:
        raise Superseded("another worker holds the run")

    with pytest.raises(Superseded):
        await bench.but(about_to_change=superseded).step(tool, **arguments)
    assert await bench.files() == {"a": b"old"}


# --- commands ---


async def test_a_script_sees_the_runs_files_and_its_changes_are_kept(bench: Bench) -> None:
    await bench.step("file_write", path="in.txt", content="b\na\n")
    await bench.step("file_write", path="old", content="x")
    result = await bench.step(
        "shell", script="sort in.txt | tee out/sorted 2>/dev/null || { mkdir out; sort in.txt > out/sorted; }; rm old"
    )
    assert (result.exit_code, result.error, result.files_changed) == (0, None, ("old", "out/sorted"))
    assert await bench.files() == {"in.txt": b"b\na\n", "out/sorted": b"a\nb\n"}
    assert bench.changing == ["now"]


async def test_a_script_whose_lines_end_as_on_windows_runs(bench: Bench) -> None:
    result = await bench.step("shell", script="echo one > a.txt\r\ncat <<END\r\ntwo\r\nEND\r\n")
    assert (result.exit_code, bytes(bench.said)) == (0, b"two\n")
    assert await bench.files() == {"a.txt": b"one\n"}


async def test_a_script_with_some_carriage_returns_keeps_them(bench: Bench) -> None:
    await bench.step("shell", script="printf '%s' 'a\r\nb'\n")
    assert bytes(bench.said) == b"a\r\nb"


async def test_a_command_that_changes_nothing_announces_no_change(bench: Bench) -> None:
    result = await bench.step("shell", script="echo hello")
    assert (result.exit_code, result.files_changed, bytes(bench.said)) == (0, (), b"hello\n")
    assert bench.changing == []


async def test_a_python_program_sees_files_arguments_and_environment(bench: Bench) -> None:
    await bench.step("file_write", path="greeting.py", content="WORD = 'hello'\n")
    code = "import greeting, os, sys\nopen('out', 'w').write(f'{greeting.WORD} {sys.argv[1]} {os.environ[\"SIGN\"]}')"
    result = await bench.step("python", code=code, args=["world"], environment={"SIGN": "!"})
    assert result.files_changed == ("out",)
    assert (await bench.files())["out"] == b"hello world !"


async def test_a_script_ends_at_its_first_command_that_fails_also_inside_a_pipe(bench: Bench) -> None:
    for script in ("false; echo on", "(exit 7) | cat; echo on"):
        result = await bench.step("shell", script=script)
        assert result.exit_code != 0
        assert bench.said == b""


async def test_a_command_that_fails_leaves_the_workspace_as_it_was(bench: Bench) -> None:
    await bench.step("file_write", path="a", content="old")
    result = await bench.step("shell", script="echo new > a; echo new > b; exit 3")
    assert result.exit_code == 3
    assert result.error is not None
    assert result.error.code == "command_failed"
    assert await bench.files() == {"a": b"old"}
    assert bench.changing == []


async def test_the_step_after_one_that_failed_starts_from_the_workspace_again(bench: Bench) -> None:
    await bench.step("file_write", path="a", content="old")
    await bench.step("shell", script="echo new > a; echo new > b; exit 3")
    result = await bench.step("shell", script="cat a; ls")
    assert (result.files_changed, bytes(bench.said)) == ((), b"olda\n")


@pytest.mark.parametrize(
    ("script", "limits", "code"),
    [
        ("sleep 60", {"wall_seconds": 0.3}, "step_timeout"),
        ("head -c 9000000 /dev/zero > big; sleep 60", {}, "disk_quota_exceeded"),
        ("no-such-command", {}, "command_failed"),
    ],
)
async def test_the_error_says_what_ended_the_command(
    bench: Bench, script: str, limits: dict[str, float], code: str
) -> None:
    limited = bench.but(limits=replace(LIMITS, **limits))  # type: ignore[arg-type]
    result = await limited.step("shell", script=script)
    assert result.error is not None
    assert (result.error.code, await bench.files()) == (code, {})


@pytest.mark.parametrize("script", ["touch 'back\\slash'", "mkdir -p 'back\\slash'", "mkfifo 'back\\slash'"])
async def test_a_name_that_a_workspace_cannot_hold_is_refused_and_nothing_is_kept(bench: Bench, script: str) -> None:
    with pytest.raises(InvalidPath):
        await bench.step("shell", script=f"echo x > good; {script}")
    assert await bench.files() == {}
    assert bench.changing == []


async def test_what_would_stand_for_a_file_and_cannot_be_kept_is_refused(bench: Bench) -> None:
    await bench.step("shell", script="echo x > good")
    for script in ("rm good; mkfifo good", "ln -sf /etc/passwd good", "ln -sf nowhere good"):
        with pytest.raises(InvalidPath, match="'good' is a "):
            await bench.step("shell", script=script)
    assert await bench.files() == {"good": b"x\n"}


NOT_KEPT = {
    "mkfifo pipe": "1 pipe ('pipe'); it is gone after this step; make it in the step that uses it",
    "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'": "1 socket ('s'); it is gone after this",
    "echo x > a; ln a b": "2 hard links (",
    "echo x > a; chmod 4711 a": "1 mode ('a'); a file keeps its permission bits",
    "mkdir d; chmod 1777 d": "1 mode ('d'); ",
    'echo x > a; python3 -c \'import os; os.setxattr("a", "user.x", b"1")\'': "1 extended attribute ('a'); ",
    "ln -s \"$(head -c 1000 /dev/zero | tr '\\0' x)\" long": "1 symbolic link ('long'); it leads to a text that cannot",
    "for n in 1 2 3 4 5 6 7; do mkfifo p$n; done": " and 2 more); ",
}


@pytest.mark.parametrize("script", NOT_KEPT)
async def test_what_is_not_kept_is_named_in_the_step_that_leaves_it_and_in_no_other(bench: Bench, script: str) -> None:
    result = await bench.step("shell", script=script)
    assert (result.exit_code, len(bench.notices)) == (0, 1), bench.notices
    assert bench.notices[0].startswith("not kept with the run's files: ")
    assert NOT_KEPT[script] in bench.notices[0]
    bench.notices.clear()
    await bench.step("shell", script="echo y > other")
    assert bench.notices == []


async def test_more_than_the_quota_is_refused_when_the_command_was_too_quick_to_be_stopped(bench: Bench) -> None:
    with pytest.raises(QuotaExceeded):
        await bench.step("shell", script="touch $(seq 101)")
    assert await bench.files() == {}
