"""How much a command can take: memory, processes, processor time, disk."""

import os
import signal

import pytest

from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import LIMITS, MIB, needs_group
from worker.sandbox.base import Ending, Sandbox
from worker.sandbox.local.cgroup import MEMORY, PIDS, ControlGroups
from worker.sandbox.local.sandbox import LocalSandbox


async def test_a_fork_bomb_gets_no_further_than_its_cap(sandbox: Sandbox, run: Run) -> None:
    if os.getuid() == 0 or not sandbox.isolation.isolated:
        needs_group(sandbox, PIDS)
    bomb = """
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            os.write(1, b"+")
    except OSError:
        pass
"""
    outcome, said = await run(sandbox, "python3", "-c", bomb, wall_seconds=1.5)
    assert outcome.ending is Ending.TIMEOUT
    assert 1 <= said.count("+") <= LIMITS.processes + 2


async def test_as_many_processes_as_are_allowed_can_be_had(sandbox: Sandbox, run: Run) -> None:
    program = f"""
import os
for _ in range({LIMITS.processes - 1}):
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
print("all")
"""
    outcome, said = await run(sandbox, "python3", "-c", program, stdin=b"x" * 1000)
    assert (outcome.exit_code, said) == (0, "all\n")


async def test_a_memory_bomb_is_ended_by_its_cap(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(sandbox, "python3", "-c", f"held = b'x' * {LIMITS.memory_bytes * 2}; print(len(held))")
    assert outcome.exit_code != 0
    assert str(LIMITS.memory_bytes * 2) not in said
    if not isinstance(sandbox, LocalSandbox) or MEMORY in ControlGroups.find().controllers:
        assert outcome.ending is Ending.MEMORY
        assert "SANDBOX_MEMORY_BYTES" in outcome.detail


async def test_memory_is_capped_for_all_processes_of_a_command_together(sandbox: Sandbox, run: Run) -> None:
    needs_group(sandbox, MEMORY)
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
    needs_group(sandbox, MEMORY)
    outcome, _ = await run(sandbox, "sh", "-c", f"python3 -c \"b'x' * {LIMITS.memory_bytes * 2}\" || true")
    assert (outcome.ending, outcome.exit_code) == (Ending.EXITED, 0)


async def test_cpu_time_is_capped_however_long_the_command_may_take(sandbox: Sandbox, run: Run) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", "while :; do :; done", cpu_seconds=1)
    assert (outcome.exit_code, outcome.ending) == (128 + signal.SIGXCPU, Ending.EXITED)
    assert "SANDBOX_CPU_SECONDS" in outcome.detail


async def test_a_file_cannot_be_longer_than_its_cap(sandbox: Sandbox, run: Run) -> None:
    outcome, said = await run(
        sandbox, "sh", "-c", "(exec head -c 9000000 /dev/zero > big); echo $?; wc -c < big", file_bytes=8 * MIB
    )
    assert outcome.exit_code == 0
    assert said.split()[-2:] == [str(128 + signal.SIGXFSZ), str(8 * MIB)]


@pytest.mark.parametrize(
    "script",
    [
        "while :; do head -c 1000000 /dev/zero >> big; done",
        "truncate -s 60M sparse; sleep 60",
        "n=0; while :; do n=$((n+1)); : > $n; done",
        pytest.param("while :; do mkdir d && cd d || sleep 60; done", marks=pytest.mark.slow),
        "mkdir d; cd d; exec 5> big; chmod 000 .; while :; do head -c 1000000 /dev/zero >&5; done",
    ],
)
async def test_a_folder_that_grows_too_large_ends_the_command(sandbox: Sandbox, run: Run, script: str) -> None:
    outcome, _ = await run(sandbox, "sh", "-c", script, files=400)
    assert (outcome.ending, outcome.exit_code) == (Ending.DISK, 137)


async def test_symbolic_links_are_not_followed_when_the_folder_is_measured(nearby: Sandbox, run: Run) -> None:
    outcome, _ = await run(nearby, "sh", "-c", "ln -s / root; ln -s . loop; sleep 0.5", files=100)
    assert outcome.ending is Ending.EXITED
