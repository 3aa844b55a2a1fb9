"""What every sandbox does alike, and what the isolated ones keep apart.

`bubblewrap` is the local sandbox as it should be, `unisolated` what it falls back to: time, output and exit codes hold
for both, walls only for the first.
"""

import asyncio
import os
import resource
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import InvalidInput, Unavailable
from backplane.workspace.files import empty, open_folder
from tests.waiting import wait_until
from worker.sandbox import local
from worker.sandbox.base import Command, Ending, Isolation, Limits, Outcome, Sandbox
from worker.sandbox.cgroup import MEMORY, PIDS, ControlGroups
from worker.sandbox.local import LocalSandbox, open_local_sandbox

MIB = 1024 * 1024
LIMITS = Limits(
    wall_seconds=30,
    memory_bytes=256 * MIB,
    cpus=1,
    cpu_seconds=20,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=32 * MIB,
    files=1000,
)

Run = Callable[..., Coroutine[Any, Any, tuple[Outcome, str]]]


async def isolated_sandbox() -> Sandbox:
    try:
        return await open_local_sandbox(require_isolation=True)
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(error.message, pytrace=False)
        pytest.skip(error.message)


async def unisolated_sandbox() -> Sandbox:
    return LocalSandbox(None, ControlGroups.find(), Isolation("none", isolated=False))


@pytest.fixture(params=["bubblewrap", "unisolated"])
async def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return await (isolated_sandbox() if request.param == "bubblewrap" else unisolated_sandbox())


@pytest.fixture
async def isolated() -> Sandbox:
    return await isolated_sandbox()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "files"
    made.mkdir()
    yield made
    with open_folder(made) as opened:
        empty(opened)  # pytest cannot remove what lies as deep as some tests let it


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs a command in the folder and gives its outcome and its output as text."""

    async def run(sandbox: Sandbox, *argv: str, stdin: bytes = b"", **changed: Any) -> tuple[Outcome, str]:
        said = bytearray()
        environment = changed.pop("environment", {})
        command = Command(argv, replace(LIMITS, **changed), stdin, environment)
        outcome = await sandbox.run(command, folder, said.extend)
        return outcome, said.decode("utf-8", "replace")

    return run


def needs_group(controller: str) -> None:
    if controller not in ControlGroups.find().controllers:
        pytest.skip(f"no control group with the controller {controller} can be made here")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def processes_with(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if mark in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def new_mark() -> str:
    """A duration that `sleep` understands and no other process in the world has in its arguments."""
    return f"1000.{uuid.uuid4().int}"


# --- what a command gets, and gives back ---


async def test_output_and_error_come_in_the_order_they_were_written(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2")
    assert (outcome.exit_code, outcome.ending, said) == (0, Ending.EXITED, "1\n2\n3\n4\n")


async def test_output_is_handed_on_while_the_command_still_runs(sandbox: Sandbox, folder: Path) -> None:
    said = bytearray()
    script = "echo ready; while [ ! -e seen ]; do sleep 0.01; done; echo done"
    running = asyncio.create_task(sandbox.run(Command(("sh", "-c", script), LIMITS), folder, said.extend))
    await wait_until(lambda: said == b"ready\n")
    (folder / "seen").touch()
    await running
    assert said == b"ready\ndone\n"


async def test_a_command_reads_its_whole_input_and_then_its_end(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "wc", "-c", stdin=b"x" * 3 * MIB)
    assert (outcome.exit_code, said.strip()) == (0, str(3 * MIB))


async def test_a_command_that_does_not_read_its_input_is_fine(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "true", stdin=b"x" * 3 * MIB)
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exec no-such-command", 127)],
)
async def test_the_exit_code_is_what_a_shell_makes_of_it(sandbox: Sandbox, run: Run, script: str, code: int) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", script)
    assert (outcome.exit_code, outcome.ending) == (code, Ending.EXITED)


async def test_a_command_that_does_not_exist_is_127_and_says_so(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "no-such-command", "argument")
    assert outcome.exit_code == 127
    assert "no-such-command: not found" in said


async def test_bytes_that_are_no_text_arrive_as_they_are(sandbox: Sandbox, folder: Path) -> None:
    said = bytearray()
    command = Command(("printf", r"\377\0\376"), LIMITS)
    await sandbox.run(command, folder, said.extend)
    assert said == b"\xff\x00\xfe"


async def test_the_folder_is_left_as_the_command_left_it(sandbox: Sandbox, run: Run, folder: Path) -> None:
    (folder / "old").write_text("old")
    await run(sandbox, "sh", "-c", "cat old > new; rm old; mkdir inner; echo 1 > inner/file")
    assert files_in(folder) == ["inner", "inner/file", "new"]
    assert (folder / "new").read_text() == "old"


async def test_the_environment_is_what_is_named_and_nothing_of_the_platform(
    sandbox: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "platform-secret")
    _, said = await run(sandbox, "env", environment={"GREETING": "good day"})
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "HOME", "LANG", "TERM", "GREETING"}
    assert "GREETING=good day" in said


async def test_python3_is_there(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "python3", "-c", "import ssl, sqlite3; print(6 * 7)")
    assert (outcome.exit_code, said) == (0, "42\n")


async def test_a_command_too_long_for_the_kernel_is_refused_with_what_to_do(sandbox: Sandbox, run: Run) -> None:
    with pytest.raises(InvalidInput, match="put what is long into a file"):
        await run(sandbox, "echo", "x" * MIB)


async def test_a_sink_that_raises_ends_the_command_and_is_heard(sandbox: Sandbox, folder: Path) -> None:
    mark = new_mark()

    def sink(chunk: bytes) -> None:
        raise RuntimeError("no room for output")

    with pytest.raises(RuntimeError, match="no room for output"):
        await sandbox.run(Command(("sh", "-c", f"echo hello; sleep {mark}"), LIMITS), folder, sink)
    assert processes_with(mark) == []


# --- ends ---


async def test_a_gigabyte_of_output_passes_through_without_being_held(sandbox: Sandbox, folder: Path) -> None:
    passed = 0
    largest = 0

    def sink(chunk: bytes) -> None:
        nonlocal passed, largest
        passed += len(chunk)
        largest = max(largest, len(chunk))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    command = Command(("head", "-c", "1000000000", "/dev/zero"), LIMITS)
    outcome = await sandbox.run(command, folder, sink)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (outcome.exit_code, passed) == (0, 1_000_000_000)
    assert largest <= 64 * 1024
    assert grown < 64 * 1024  # kilobytes


async def test_time_up_ends_a_command_that_ignores_every_polite_signal(sandbox: Sandbox, run: Run) -> None:
    mark = new_mark()
    outcome, _ = await run(sandbox, "sh", "-c", f"trap '' TERM INT HUP; sleep {mark}; sleep {mark}", wall_seconds=0.3)
    assert (outcome.ending, outcome.exit_code) == (Ending.TIMEOUT, 137)
    assert processes_with(mark) == []


async def test_a_daemon_does_not_outlive_its_command_nor_hold_it_up(sandbox: Sandbox, run: Run) -> None:
    if not sandbox.isolation.isolated:
        needs_group(PIDS)
    mark = new_mark()
    daemons = f"setsid sh -c 'setsid sleep {mark} & touch up; exec sleep {mark}' &"
    outcome, said = await run(sandbox, "sh", "-c", f"{daemons} while [ ! -e up ]; do sleep 0.01; done; echo on")
    assert (outcome.exit_code, said) == (0, "on\n")
    assert processes_with(mark) == []


async def test_cancelling_kills_the_whole_tree_before_it_is_raised(sandbox: Sandbox, folder: Path) -> None:
    if not sandbox.isolation.isolated:
        needs_group(PIDS)
    mark = new_mark()
    script = f"trap '' TERM; setsid sleep {mark} & sleep {mark} & echo on; wait"
    said = bytearray()
    running = asyncio.create_task(sandbox.run(Command(("sh", "-c", script), LIMITS), folder, said.extend))
    await wait_until(lambda: said == b"on\n")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert processes_with(mark) == []


@pytest.mark.parametrize("turns", range(0, 40, 4))
async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(sandbox: Sandbox, folder: Path, turns: int) -> None:
    mark = new_mark()
    files_before = set(os.listdir("/proc/self/fd"))
    running = asyncio.create_task(sandbox.run(Command(("sleep", mark), LIMITS), folder, lambda chunk: None))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert processes_with(mark) == []
    await wait_until(lambda: set(os.listdir("/proc/self/fd")) <= files_before, what="files that were opened are closed")


async def test_the_commands_of_a_worker_that_is_killed_go_with_it(tmp_path: Path, isolated: Sandbox) -> None:
    mark = new_mark()
    program = f"""
import asyncio, sys
from pathlib import Path
from tests.contracts.test_sandbox import LIMITS
from worker.sandbox.base import Command
from worker.sandbox.local import open_local_sandbox

async def main():
    sandbox = await open_local_sandbox(require_isolation=True)
    command = Command(("sh", "-c", "setsid sleep {mark} & echo on; wait"), LIMITS)
    await sandbox.run(command, Path({str(tmp_path)!r}), lambda chunk: print(chunk.decode(), flush=True))

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"on\n"
    worker.kill()
    await worker.communicate()
    await wait_until(lambda: processes_with(mark) == [])


async def test_a_run_leaves_no_file_open(sandbox: Sandbox, run: Run) -> None:
    await run(sandbox, "true")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await run(sandbox, "sh", "-c", "echo hello; exit 3", stdin=b"hello")
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_command_inherits_no_file_but_its_three(sandbox: Sandbox, run: Run) -> None:
    _, said = await run(sandbox, "sh", "-c", "ls /proc/$$/fd")
    assert said.split() == ["0", "1", "2"]


# --- caps ---


async def test_a_fork_bomb_gets_no_further_than_its_cap_and_is_gone_afterwards(sandbox: Sandbox, run: Run) -> None:
    if os.getuid() == 0 or not sandbox.isolation.isolated:
        needs_group(PIDS)
    mark = new_mark()
    bomb = f"""
import os, sys
def bomb():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                os.write(1, b"+")
        except OSError:
            pass
bomb() # {mark}
"""
    outcome, said = await run(sandbox, "python3", "-c", bomb, wall_seconds=1.5)
    assert outcome.ending is Ending.TIMEOUT
    assert 1 <= said.count("+") <= LIMITS.processes + 2
    assert processes_with(mark) == []


async def test_a_memory_bomb_is_ended_by_its_cap(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "python3", "-c", f"held = b'x' * {LIMITS.memory_bytes * 2}; print(len(held))")
    assert outcome.exit_code != 0
    if MEMORY in ControlGroups.find().controllers:
        assert outcome.ending is Ending.MEMORY


async def test_memory_is_capped_for_all_processes_of_a_command_together(sandbox: Sandbox, run: Run) -> None:
    needs_group(MEMORY)
    program = f"""
import os, sys, time
for _ in range(4):
    if os.fork() == 0:
        held = b"x" * {LIMITS.memory_bytes // 3}
        time.sleep(60)
os.wait()
sys.exit("a process was killed")
"""
    outcome, _ = await run(sandbox, "python3", "-c", program)
    assert outcome.ending is Ending.MEMORY


async def test_a_command_that_copes_with_the_loss_of_a_process_to_its_memory_cap_succeeds(
    sandbox: Sandbox, run: Run
) -> None:
    needs_group(MEMORY)
    outcome, _ = await run(sandbox, "sh", "-c", f"python3 -c \"b'x' * {LIMITS.memory_bytes * 2}\" || true")
    assert (outcome.ending, outcome.exit_code) == (Ending.EXITED, 0)


async def test_cpu_time_is_capped_however_long_the_command_may_take(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", "while :; do :; done", cpu_seconds=1)
    assert (outcome.exit_code, outcome.ending) == (128 + signal.SIGXCPU, Ending.EXITED)
    assert "SANDBOX_CPU_SECONDS" in outcome.detail


async def test_a_file_cannot_be_longer_than_its_cap(sandbox: Sandbox, run: Run, folder: Path) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", "exec head -c 9000000 /dev/zero > big", file_bytes=8 * MIB)
    assert outcome.exit_code == 128 + signal.SIGXFSZ
    assert (folder / "big").stat().st_size == 8 * MIB


@pytest.mark.parametrize(
    "script",
    [
        "while :; do head -c 1000000 /dev/zero >> big; done",
        "truncate -s 60M sparse; sleep 20",
        "n=0; while :; do n=$((n+1)); : > $n; done",
        "while :; do mkdir d && cd d || sleep 20; done",
        "mkdir d; cd d; exec 5> big; chmod 000 .; while :; do head -c 1000000 /dev/zero >&5; done",
    ],
)
async def test_a_folder_that_grows_too_large_ends_the_command(sandbox: Sandbox, run: Run, script: str) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", script, files=400)
    assert (outcome.ending, outcome.exit_code) == (Ending.DISK, 137)


async def test_symbolic_links_are_not_followed_when_the_folder_is_measured(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", "ln -s / root; ln -s . loop; sleep 0.5", files=100)
    assert outcome.ending is Ending.EXITED


# --- walls ---


async def test_nothing_outside_the_folder_can_be_written(isolated: Sandbox, run: Run) -> None:
    script = """
for path in /x /usr/x /usr/bin/x /etc/x /etc/passwd /dev/x /proc/x /root/x /var/x /run/x /home/x; do
    (echo x > $path) 2> /dev/null && echo "wrote $path"
done
true
"""
    _, said = await run(isolated, "sh", "-c", script)
    assert said == ""


async def test_settings_of_the_kernel_can_not_be_written(isolated: Sandbox, run: Run) -> None:
    _, said = await run(
        isolated, "sh", "-c", "find /proc/sys /proc/irq /proc/bus -type f -exec test -w {} ';' -print -quit"
    )
    assert said == ""


async def test_temporary_files_are_the_commands_own_and_go_with_it(isolated: Sandbox, run: Run) -> None:
    _, said = await run(
        isolated, "sh", "-c", "ls -A /tmp /dev/shm; echo x > /tmp/left-behind; echo x > /dev/shm/left-behind"
    )
    assert said.split() == ["/dev/shm:", "/tmp:"]
    assert "left-behind" not in os.listdir("/tmp")
    _, said = await run(isolated, "ls", "-A", "/tmp", "/dev/shm")
    assert said.split() == ["/dev/shm:", "/tmp:"]


async def test_temporary_files_are_bounded(isolated: Sandbox, run: Run) -> None:
    script = "head -c 300000000 /dev/zero > /tmp/big"
    outcome, _ = await run(isolated, "sh", "-c", script, memory_bytes=1024 * MIB, file_bytes=1024 * MIB)
    assert outcome.exit_code != 0


async def test_secrets_of_the_machine_are_not_there(isolated: Sandbox, run: Run) -> None:
    _, said = await run(isolated, "sh", "-c", "cat /etc/shadow /etc/ssl/private/* /root/.ssh/*; ls /home /sys; true")
    assert said.count("No such file") == 5


async def test_the_platforms_environment_cannot_be_read_from_any_process(
    isolated: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "platform-secret")
    _, said = await run(isolated, "sh", "-c", "cat /proc/*/environ | tr '\\0' '\\n'")
    assert "HOME=/workspace" in said
    assert "platform-secret" not in said


async def test_no_process_outside_is_seen_or_reached(isolated: Sandbox, run: Run) -> None:
    pid = os.getpid()
    script = f"ls /proc | grep -c '^[0-9]'; test -e /proc/{pid} && echo seen; kill -0 {pid} && echo reached"
    _, said = await run(isolated, "sh", "-c", script)
    assert int(said.splitlines()[0]) < 10
    assert "seen" not in said
    assert "reached" not in said


async def test_no_socket_of_the_machine_is_reached(isolated: Sandbox, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"""
import socket
for address in [("127.0.0.1", {listener.getsockname()[1]}), ("192.0.2.1", 80)]:
    try:
        socket.create_connection(address, timeout=5)
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""
        _, said = await run(isolated, "python3", "-c", program)
    assert said.split() == ["ConnectionRefusedError", "OSError"]


async def test_a_command_has_no_capability_and_can_get_none(isolated: Sandbox, run: Run) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status; id -u; hostname; unshare -Ur id -u"
    _, said = await run(isolated, "sh", "-c", script)
    values = said.split()
    assert values[:11] == [
        *("CapPrm:", "0" * 16, "CapEff:", "0" * 16, "CapBnd:", "0" * 16),
        *("NoNewPrivs:", "1", "1000", "sandbox", "unshare:"),
    ]


async def test_a_preloaded_library_of_the_command_never_reaches_the_builder_of_its_walls(
    isolated: Sandbox, run: Run, tmp_path: Path
) -> None:
    log = tmp_path / "linker"
    variables = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(log)}
    outcome, _ = await run(isolated, "true", environment=variables)
    assert outcome.exit_code == 0
    assert files_in(tmp_path) == ["files"]


# --- finding out ---


async def test_required_isolation_that_cannot_be_had_is_refused_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [broken])
    with pytest.raises(Unavailable, match="no namespaces here") as refusal:
        await open_local_sandbox(require_isolation=True)
    assert refusal.value.part == "sandbox"
    assert "apt install bubblewrap" in refusal.value.message


async def test_isolation_that_is_not_required_and_cannot_be_had_is_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [])
    sandbox = await open_local_sandbox(require_isolation=False)
    assert not sandbox.isolation.isolated
    assert "apt install bubblewrap" in sandbox.isolation.missing
    said = capsys.readouterr()
    assert "NOT ISOLATED" in said.out + said.err
    outcome, _ = await run(sandbox, "true")
    assert outcome.exit_code == 0


async def test_a_sandbox_that_cannot_be_built_is_an_error_and_no_outcome(isolated: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="could not start"):
        await isolated.run(Command(("true",), LIMITS), tmp_path / "not there", lambda chunk: None)


async def test_a_control_group_is_gone_after_its_command(sandbox: Sandbox, run: Run) -> None:
    groups = ControlGroups.find()
    if not groups.controllers:
        pytest.skip("no control group can be made here")
    group = groups.create(memory_bytes=MIB, processes=1)
    folders = [file.parents[1] for file in group.join_files]
    assert group.remove()
    await run(sandbox, "sh", "-c", "sleep 100 & echo on")
    assert [left for folder in folders for left in folder.glob(f"sandbox-{os.getpid()}-*")] == []
