"""What holds for the sandboxes of the worker's own machine only: how one is found, and that it dies with its worker."""

import asyncio
import errno
import json
import os
import sys
from pathlib import Path

import pytest

from backplane.errors import Unavailable
from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import MIB, needs_group, new_mark, processes_with
from tests.waiting import wait_until
from worker.sandbox.base import Sandbox
from worker.sandbox.local import cgroup
from worker.sandbox.local import sandbox as local
from worker.sandbox.local.bubblewrap import Bubblewrap, find_bubblewrap
from worker.sandbox.local.cgroup import CPU, MEMORY, PIDS, ControlGroups, Tree
from worker.sandbox.local.process import NICE
from worker.sandbox.local.sandbox import LocalSandbox, open_local_sandbox


async def test_the_commands_of_a_worker_that_is_killed_go_with_it(tmp_path: Path, bubblewrap: Sandbox) -> None:
    mark = new_mark()
    program = f"""
import asyncio, sys
from pathlib import Path
from tests.contracts.sandbox.sandboxes import ignore, new_command
from worker.sandbox.local.sandbox import open_local_sandbox

async def main():
    sandbox = await open_local_sandbox(require_isolation=True)
    command = new_command("sh", "-c", "setsid sleep {mark} & echo on; wait")
    await sandbox.run(command, Path({str(tmp_path)!r}), lambda chunk: print(chunk.decode(), flush=True), ignore)

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"on\n"
    worker.kill()
    await worker.communicate()
    await wait_until(lambda: processes_with(mark) == [])


async def test_of_the_machine_only_what_is_harmless_is_there(bubblewrap: Sandbox, run: Run) -> None:
    _, said = await run(bubblewrap, "sh", "-c", "cat /etc/shadow /etc/ssl/private/* /root/.ssh/*; ls /home /sys; true")
    assert said.count("No such file") == 5


async def test_the_environment_is_just_what_is_named(local_sandbox: Sandbox, run: Run) -> None:
    _, said = await run(local_sandbox, "env", environment={"GREETING": "good day"})
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "HOME",
        "LANG",
        "TERM",
        "PYTHONDONTWRITEBYTECODE",
        "GREETING",
    }


async def test_a_command_goes_behind_what_runs_beside_it(local_sandbox: Sandbox, run: Run) -> None:
    _, said = await run(local_sandbox, "nice")
    assert int(said) == min(os.nice(0) + NICE, 19)


@pytest.mark.parametrize(("version", "file", "weight"), [(1, "cpu.shares", "102"), (2, "cpu.weight", "10")])
def test_the_group_of_a_command_has_a_tenth_of_the_weight_of_others(
    tmp_path: Path, version: int, file: str, weight: str
) -> None:
    group = ControlGroups((Tree(tmp_path, frozenset({CPU}), version),)).create(memory_bytes=MIB, processes=1)
    [processes] = group.join_files
    assert (processes.parent / file).read_text() == weight


def test_a_kernel_that_refuses_weights_caps_memory_and_processes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does beside processes of real-time priority."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    write = Path.write_text

    def refusing(path: Path, text: str) -> int:
        if "+cpu" in text:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refusing)
    assert cgroup._unified(tmp_path) == [Tree(tmp_path, frozenset({MEMORY, PIDS}), 2)]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


async def test_a_sandbox_that_does_not_start_is_given_up_with_what_was_started(
    bubblewrap: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(bubblewrap, LocalSandbox)
    mark = new_mark()
    hanging = tmp_path / "bwrap"
    hanging.write_text(f"#!/bin/sh\nsleep {mark}\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(local, "START_SECONDS", 0.3)
    made = Bubblewrap(hanging, nested_user_namespaces=True, system_calls=None)
    sandbox = LocalSandbox(made, ControlGroups.find(), bubblewrap.isolation)
    with pytest.raises(Unavailable, match=r"not started within 0\.3 seconds"):
        await run(sandbox, "true")
    await wait_until(lambda: processes_with(mark) == [])


async def test_the_kernel_takes_the_weight_of_a_command(local_sandbox: Sandbox) -> None:
    needs_group(local_sandbox, CPU)
    group = ControlGroups.find().create(memory_bytes=MIB, processes=1)
    weights = [path.read_text() for file in group.join_files for path in file.parent.glob("cpu.[sw][he]*")]
    assert group.remove()
    assert weights in (["102\n"], ["10\n"])


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


async def test_a_control_group_is_gone_after_its_command(local_sandbox: Sandbox, run: Run) -> None:
    groups = ControlGroups.find()
    if not groups.controllers:
        pytest.skip("no control group can be made here")
    group = groups.create(memory_bytes=MIB, processes=1)
    folders = [file.parents[1] for file in group.join_files]
    assert group.remove()
    await run(local_sandbox, "sh", "-c", "sleep 100 & echo on")
    assert [left for folder in folders for left in folder.glob(f"sandbox-{os.getpid()}-*")] == []


@pytest.mark.slow
async def test_a_bubblewrap_that_hangs_is_tried_once_and_the_next_one_is_used(
    bubblewrap: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = new_mark()
    hanging = tmp_path / "bwrap"
    hanging.write_text(f"#!/bin/sh\necho tried >> {tmp_path}/tries\nsleep {mark}\n")
    hanging.chmod(0o755)
    real = find_bubblewrap()
    monkeypatch.setattr(local, "TRY_SECONDS", 3.0)
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [hanging, *real])
    sandbox = await open_local_sandbox(require_isolation=True)
    assert sandbox.isolation.isolated
    assert (tmp_path / "tries").read_text() == "tried\n"
    await wait_until(lambda: processes_with(mark) == [])
    monkeypatch.setattr(local, "find_bubblewrap", lambda: [hanging])
    with pytest.raises(Unavailable, match="3 s"):
        await open_local_sandbox(require_isolation=True)


@pytest.mark.slow
async def test_the_loop_of_a_worker_starts_the_same_sandbox_as_that_of_the_tests(
    bubblewrap: Sandbox, tmp_path: Path
) -> None:
    """A worker's loop is uvloop, which does not take all that asyncio's takes."""
    worker = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "worker", "--check"],
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    said, _ = await worker.communicate()
    assert json.loads(said)["sandbox"]["isolated"]
