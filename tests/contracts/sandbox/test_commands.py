"""What a command gets and gives back, and how it ends: alike in every sandbox."""

import asyncio
import os
import resource
from pathlib import Path

import pytest

from backplane.errors import InvalidInput, Unavailable
from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import (
    MIB,
    Running,
    files_in,
    ignore,
    needs_group,
    new_command,
    new_mark,
    processes_with,
)
from tests.waiting import wait_until
from worker.sandbox.base import Ending, Sandbox
from worker.sandbox.local.cgroup import PIDS

# --- what a command gets, and gives back ---


async def test_output_and_error_come_in_the_order_they_were_written(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "sh", "-c", "for n in 1 3 5 7 9; do echo $n; echo $((n + 1)) >&2; done")
    assert (outcome.exit_code, outcome.ending, said.split()) == (0, Ending.EXITED, [str(n) for n in range(1, 11)])


async def test_output_is_handed_on_while_the_command_still_runs(sandbox: Sandbox, folder: Path) -> None:
    running = Running(sandbox, folder, "sh", "-c", "echo ready; sleep 1000")
    await running.says(b"ready\n")
    await running.cancel()


async def test_a_command_reads_its_whole_input_and_then_its_end(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "wc", "-c", stdin=b"x" * 3 * MIB)
    assert (outcome.exit_code, said.strip()) == (0, str(3 * MIB))


async def test_a_command_without_input_finds_its_end_at_once(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "wc", "-c")
    assert (outcome.exit_code, said.strip()) == (0, "0")


async def test_a_command_that_does_not_read_its_input_is_fine(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "true", stdin=b"x" * 3 * MIB)
    assert outcome.exit_code == 0


async def test_all_that_a_command_says_arrives_also_when_it_leaves_input_unread(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "sh", "-c", "head -c 2; seq 100000", stdin=b"x\n" * MIB)
    assert (outcome.exit_code, said) == (0, "".join(["x\n", *(f"{number}\n" for number in range(1, 100_001))]))


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 125", 125),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("exec no-such-command", 127),
    ],
)
async def test_the_exit_code_is_what_a_shell_makes_of_it(sandbox: Sandbox, run: Run, script: str, code: int) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", script)
    assert (outcome.exit_code, outcome.ending) == (code, Ending.EXITED)


async def test_a_command_that_does_not_exist_is_127_and_says_so(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "no-such-command", "argument")
    assert outcome.exit_code == 127
    assert "no-such-command: not found" in said


async def test_a_file_that_is_no_program_is_126(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "/etc/passwd")
    assert outcome.exit_code == 126
    assert "/etc/passwd: Permission denied" in said


async def test_bytes_that_are_no_text_arrive_as_they_are(sandbox: Sandbox, folder: Path) -> None:
    running = Running(sandbox, folder, "printf", r"\377\0\376\r\n\r")
    await running.ends()
    assert running.said == b"\xff\x00\xfe\r\n\r"


async def test_arguments_and_variables_arrive_as_they_are(sandbox: Sandbox, run: Run) -> None:
    strange = "-x 'a' \"b\" $HOME `id` \\ \n \u20ac"
    _, said = await run(sandbox, "sh", "-c", 'printf "%s|%s" "$1" "$ODD"', "sh", strange, environment={"ODD": strange})
    assert said == f"{strange}|{strange}"


async def test_the_folder_is_left_as_the_command_left_it(sandbox: Sandbox, run: Run, folder: Path) -> None:
    (folder / "old").write_text("old")
    outcome, _ = await run(sandbox, "sh", "-c", "cat old > new; rm old; mkdir inner; echo 1 > inner/file")
    assert outcome.exit_code == 0
    assert files_in(folder) == ["inner", "inner/file", "new"]
    assert (folder / "new").read_text() == "old"


async def test_files_that_only_the_worker_may_touch_are_the_commands_to_read_and_change(
    sandbox: Sandbox, run: Run, folder: Path
) -> None:
    (folder / "inner").mkdir(mode=0o700)
    (folder / "inner/file").write_text("1\n")
    (folder / "inner/file").chmod(0o700)
    outcome, said = await run(sandbox, "sh", "-c", "cat inner/file && echo 2 >> inner/file && echo 3 > inner/more")
    assert (outcome.exit_code, said) == (0, "1\n")
    assert (folder / "inner/file").read_text() == "1\n2\n"


async def test_the_environment_is_what_is_named_and_nothing_of_the_platform(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "platform-secret")
    _, said = await run(sandbox, "env", environment={"GREETING": "good day"})
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert names >= {"PATH", "HOME", "LANG", "TERM", "GREETING"}
    # What else there is comes from the image.
    own = {"PATH", "HOME", "LANG", "TERM", "PYTHONDONTWRITEBYTECODE"}
    assert names & os.environ.keys() <= {*own, "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME"}
    assert "platform-secret" not in said
    assert "GREETING=good day" in said
    assert "TERM=dumb" in said


async def test_python3_is_there(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "python3", "-c", "import ssl, sqlite3; print(6 * 7)")
    assert (outcome.exit_code, said) == (0, "42\n")


async def test_a_command_too_long_for_the_kernel_is_refused_with_what_to_do(sandbox: Sandbox, run: Run) -> None:
    with pytest.raises(InvalidInput, match="put what is long into a file"):
        await run(sandbox, "echo", "x" * MIB)


@pytest.mark.parametrize(("argument", "environment"), [("\ud800", {}), ("", {"NAME": "\ud800"}), ("", {"\ud800": ""})])
async def test_a_command_that_no_encoding_takes_is_refused_and_not_waited_for(
    sandbox: Sandbox, run: Run, argument: str, environment: dict[str, str]
) -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        await run(sandbox, "echo", argument, environment=environment)


async def test_a_sink_that_raises_ends_the_command_and_its_error_is_raised(nearby: Sandbox, folder: Path) -> None:
    mark = new_mark()

    def sink(chunk: bytes) -> None:
        raise RuntimeError("no room for output")

    with pytest.raises(RuntimeError, match="no room for output"):
        await nearby.run(new_command("sh", "-c", f"echo hello; sleep {mark}"), folder, sink, ignore)
    assert processes_with(mark) == []


async def test_a_sandbox_that_cannot_be_built_is_an_error_and_no_outcome(nearby: Sandbox, tmp_path: Path) -> None:
    if not nearby.isolation.isolated:
        pytest.skip("builds nothing")
    with pytest.raises(Unavailable, match="could not start"):
        await nearby.run(new_command("true"), tmp_path / "not there", ignore, ignore)
    assert files_in(tmp_path) == []


async def test_two_commands_of_one_sandbox_run_at_once(sandbox: Sandbox, folder: Path, other_folder: Path) -> None:
    first = Running(sandbox, folder, "sh", "-c", "echo first; sleep 1000")
    await first.says(b"first\n")
    outcome, said = await Running(sandbox, other_folder, "echo", "second").ends()
    assert (outcome.exit_code, said) == (0, "second\n")
    assert not first.task.done()
    await first.cancel()


# --- ends ---


@pytest.mark.slow
async def test_a_gigabyte_of_output_passes_through_without_being_kept_in_memory(nearby: Sandbox, folder: Path) -> None:
    passed = 0
    largest = 0

    def sink(chunk: bytes) -> None:
        nonlocal passed, largest
        passed += len(chunk)
        largest = max(largest, len(chunk))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = await nearby.run(new_command("head", "-c", "1000000000", "/dev/zero"), folder, sink, ignore)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (outcome.exit_code, passed) == (0, 1_000_000_000)
    assert largest <= 64 * 1024
    assert grown < 64 * 1024  # kilobytes


async def test_a_command_that_takes_too_long_is_ended_with_what_it_has_said(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "sh", "-c", "echo before; sleep 1000; echo after", wall_seconds=1.0)
    assert (outcome.ending, outcome.exit_code, said) == (Ending.TIMEOUT, 137, "before\n")


async def test_time_up_ends_a_command_that_ignores_every_polite_signal(nearby: Sandbox, run: Run) -> None:
    mark = new_mark()
    outcome, _ = await run(nearby, "sh", "-c", f"trap '' TERM INT HUP; sleep {mark}; sleep {mark}", wall_seconds=0.3)
    assert (outcome.ending, outcome.exit_code) == (Ending.TIMEOUT, 137)
    assert processes_with(mark) == []


async def test_a_daemon_does_not_outlive_its_command_nor_hold_it_up(nearby: Sandbox, run: Run) -> None:
    if not nearby.isolation.isolated:
        needs_group(nearby, PIDS)
    mark = new_mark()
    daemons = f"setsid sh -c 'setsid sleep {mark} & touch up; exec sleep {mark}' &"
    outcome, said = await run(nearby, "sh", "-c", f"{daemons} while [ ! -e up ]; do sleep 0.01; done; echo on")
    assert (outcome.exit_code, said) == (0, "on\n")
    assert processes_with(mark) == []


async def test_cancelling_kills_the_whole_tree_before_it_is_raised(nearby: Sandbox, folder: Path) -> None:
    if not nearby.isolation.isolated:
        needs_group(nearby, PIDS)
    mark = new_mark()
    running = Running(nearby, folder, "sh", "-c", f"trap '' TERM; setsid sleep {mark} & sleep {mark} & echo on; wait")
    await running.says(b"on\n")
    await running.cancel()
    assert processes_with(mark) == []


@pytest.mark.parametrize("turns", range(0, 40, 4))
async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(nearby: Sandbox, folder: Path, turns: int) -> None:
    mark = new_mark()
    files_before = set(os.listdir("/proc/self/fd"))
    running = Running(nearby, folder, "sleep", mark)
    for _ in range(turns):
        await asyncio.sleep(0)
    await running.cancel()
    assert processes_with(mark) == []
    await wait_until(lambda: set(os.listdir("/proc/self/fd")) <= files_before, what="files that were opened are closed")


async def test_a_run_leaves_no_file_open(nearby: Sandbox, run: Run) -> None:
    await run(nearby, "true")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await run(nearby, "sh", "-c", "echo hello; exit 3", stdin=b"hello")
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_command_inherits_no_file_but_its_three(sandbox: Sandbox, run: Run) -> None:
    _, said = await run(sandbox, "sh", "-c", "ls /proc/$$/fd")
    assert said.split() == ["0", "1", "2"]
