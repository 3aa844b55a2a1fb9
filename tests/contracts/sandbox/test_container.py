"""What holds for containers only: how an engine is found, what becomes of containers, and what its failures mean."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backplane.containers.program import PROXIES, engine_environment
from backplane.domain import sandbox_labels
from backplane.errors import Unavailable
from tests.conftest import children
from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import (
    MIB,
    Running,
    ignore,
    new_command,
    new_mark,
    open_container,
    processes_with,
)
from tests.waiting import wait_until
from worker.sandbox.base import Sandbox, SandboxError, SandboxImageNotFound, SandboxRefused
from worker.sandbox.container.arguments import container_name
from worker.sandbox.container.engine import Engine
from worker.sandbox.container.owner import is_gone, own_mark
from worker.sandbox.container.sandbox import ContainerSandbox
from worker.sandbox.container.seccomp import SystemCalls, strengthened

# ruff: noqa: ASYNC221 - a call of the engine here and there may hold the test up


@pytest.fixture
def engine(container: Sandbox) -> Engine:
    assert isinstance(container, ContainerSandbox)
    return container.engine


@pytest.fixture
def image(container: Sandbox, engine: Engine) -> Iterator[str]:
    """Another name of the image, the test's own."""
    assert isinstance(container, ContainerSandbox)
    name = f"localhost/test-{uuid.uuid4().hex}:1"
    subprocess.run([*engine.words, "tag", container.image, name], check=True)
    yield name
    subprocess.run([*engine.words, "rmi", name], capture_output=True)


def program(folder: Path, script: str) -> str:
    """A path of a program that stands for an engine."""
    file = folder / "engine"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


async def containers(engine: Engine, *filters: str) -> list[str]:
    words = [word for text in filters for word in ("--filter", text)]
    return (await engine.ask("ps", "--all", "--format", "{{.Names}}", *words)).output.split()


# --- what becomes of containers ---


@pytest.mark.slow
async def test_nothing_of_a_container_is_left(container: Sandbox, engine: Engine, folder: Path) -> None:
    for script in ("exit 0", "exit 3", "sleep 1000"):
        command = new_command("sh", "-c", script, wall_seconds=2)
        await container.run(command, folder, ignore, ignore)
        assert await containers(engine, f"name={container_name(command.call)}") == []


async def test_a_container_says_whose_it_is(container: Sandbox, engine: Engine, folder: Path) -> None:
    command = new_command("sh", "-c", "echo on; sleep 1000")
    said = bytearray()
    running = asyncio.create_task(container.run(command, folder, said.extend, ignore))
    await wait_until(lambda: said == b"on\n")
    labels = {
        sandbox_labels.RUN: command.call.run_id,
        sandbox_labels.GENERATION: "1",
        sandbox_labels.WORKER: own_mark(),
    }
    found = await containers(engine, *(f"label={name}={value}" for name, value in labels.items()))
    running.cancel()
    await asyncio.wait({running})
    assert found == [container_name(command.call)]


async def test_a_container_has_a_small_share_of_the_cpu(container: Sandbox, folder: Path) -> None:
    """As the kernel has it: in control groups v1 the share, of 1024; in v2 what the engine's runtime makes of it, of
    100."""
    weights = "cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight 2>/dev/null"
    said = bytearray()
    await container.run(new_command("sh", "-c", weights), folder, said.extend, ignore)
    assert int(said) == 102 or 0 < int(said) < 20


@pytest.mark.slow
async def test_a_call_that_comes_again_ends_what_the_first_has_left(
    container: Sandbox, engine: Engine, image: str, folder: Path
) -> None:
    mark = new_mark()
    command = new_command("echo", "second")
    name = container_name(command.call)
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--stop-signal", "SIGKILL"]
    subprocess.run([*engine.words, "run", "--detach", "--name", name, *limits, image, "sleep", mark], check=True)
    said, notices = bytearray(), list[str]()
    outcome = await container.run(command, folder, said.extend, notices.append)
    assert (outcome.exit_code, bytes(said)) == (0, b"second\n")
    assert "earlier try" in notices[0]
    assert processes_with(mark) == []


@pytest.mark.slow
async def test_containers_of_a_worker_that_was_killed_are_removed_by_the_next(container: Sandbox, folder: Path) -> None:
    assert isinstance(container, ContainerSandbox)
    mark = new_mark()
    program = f"""
import asyncio
from pathlib import Path
from tests.contracts.sandbox.sandboxes import ignore, new_command, open_container

async def main():
    sandbox = await open_container()
    command = new_command("sh", "-c", "echo on; sleep {mark}")
    await sandbox.run(command, Path({str(folder)!r}), lambda chunk: print(chunk.decode(), flush=True), ignore)

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert worker.stdout is not None
    while await worker.stdout.readline() != b"on\n":
        pass
    await container.remove_abandoned()
    assert processes_with(f"sleep {mark}")
    worker.kill()
    await worker.wait()
    assert processes_with(f"sleep {mark}")
    await container.remove_abandoned()
    await wait_until(lambda: processes_with(mark) == [])


@pytest.mark.parametrize("part", range(4))
def test_of_a_worker_that_nothing_is_known_of_nobody_says_that_it_is_gone(part: int) -> None:
    assert not is_gone(own_mark())
    parts = own_mark().split(".")
    parts[part] = "1"
    # Another machine, other processes, another process, an earlier one of this number.
    assert is_gone(".".join(parts)) is (part != 1)


def test_a_label_that_is_no_mark_says_nothing() -> None:
    assert not is_gone("")
    assert not is_gone("worker-1")


async def test_a_container_that_is_killed_from_outside_is_an_error_that_may_pass(
    container: Sandbox, engine: Engine, folder: Path
) -> None:
    command = new_command("sh", "-c", "echo on; sleep 1000")
    said = bytearray()
    running = asyncio.create_task(container.run(command, folder, said.extend, ignore))
    await wait_until(lambda: said == b"on\n")
    await engine.ask("kill", container_name(command.call))
    with pytest.raises(SandboxError, match="ended from outside") as failure:
        await running
    assert failure.value.retryable


@pytest.mark.parametrize(
    "report", [":", "echo sandbox-ended 0 > /proc/1/fd/9", "echo sandbox-ended 137 > /proc/1/fd/9"]
)
async def test_a_container_goes_when_the_engines_program_does_whatever_the_command_reports(
    container: Sandbox, folder: Path, report: str
) -> None:
    before = children()
    mark = new_mark()
    running = Running(container, folder, "sh", "-c", f"{report}; echo on; sleep {mark}")
    await running.says(b"on\n")
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(SandboxError, match="ended from outside"):
        await running.ends()
    assert processes_with(mark) == []


@pytest.mark.slow
async def test_a_container_that_does_not_start_in_time_is_not_left(container: Sandbox, engine: Engine) -> None:
    failures = list[tuple[str, str]]()
    with pytest.raises(Unavailable, match="SANDBOX_START_SECONDS"):
        await open_container(start_seconds=0.001, failed=lambda *failure: failures.append(failure))
    assert failures == [("container", Unavailable.code)]
    assert await containers(engine, f"label={sandbox_labels.WORKER}={own_mark()}") == []


# --- what it is given ---


async def test_the_fewest_processes_are_enough_for_one(container: Sandbox, run: Run) -> None:
    outcome, said = await run(container, "echo", "on", processes=1)
    assert (outcome.exit_code, said) == (0, "on\n")


@pytest.mark.slow
async def test_a_start_is_counted_with_its_time(container: Sandbox, folder: Path) -> None:
    starts = list[tuple[str, str, float]]()
    sandbox = await open_container(started=lambda *start: starts.append(start))
    await sandbox.run(new_command("true"), folder, ignore, ignore)
    await sandbox.close()
    (_, (kind, start, seconds)) = starts  # the first is the one it was tried out with
    assert (kind, start) == ("container", "cold")
    assert 0 < seconds < 60


@pytest.mark.slow
async def test_a_volume_that_the_image_asks_for_is_bounded_like_tmp(
    container: Sandbox, engine: Engine, image: str, run: Run
) -> None:
    made = subprocess.run([*engine.words, "create", "--network", "none", image], check=True, capture_output=True)
    name = made.stdout.decode().strip()
    try:
        change = ["--change", "VOLUME /data"]
        subprocess.run([*engine.words, "commit", *change, name, image], check=True, capture_output=True)
    finally:
        subprocess.run([*engine.words, "rm", name], check=True, capture_output=True)
    sandbox = await open_container(image=image, tmp_bytes=32 * MIB)
    _, said = await run(sandbox, "sh", "-c", "echo x > /data/x; grep -E '/(data|tmp) ' /proc/mounts")
    await sandbox.close()
    mounts = [line.split() for line in said.splitlines()]
    assert {mount[1]: mount[0] for mount in mounts} == {"/data": "tmpfs", "/tmp": "tmpfs"}
    assert all("size=32768k" in mount[3] for mount in mounts)


async def test_a_folder_that_no_mount_can_name_is_refused(container: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    with pytest.raises(SandboxRefused, match="TMPDIR"):
        await container.run(new_command("true"), tmp_path / "a:b", ignore, ignore)


def test_the_engine_gets_nothing_of_the_platforms_environment() -> None:
    environment = dict.fromkeys(("DATABASE_URL", "S3_SECRET_KEY", "LD_PRELOAD", *PROXIES), "secret")
    kept = {"PATH": "/bin", "HOME": "/root", "DOCKER_HOST": "unix:///x", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert engine_environment({**environment, **kept}) == kept
    # A registry may be behind a proxy.
    assert engine_environment({**environment, **kept}, with_proxies=True).keys() == {*kept, *PROXIES}


# --- finding out ---


@pytest.mark.slow
async def test_an_image_that_has_gone_since_the_start_is_an_error_of_its_own(
    container: Sandbox, engine: Engine, image: str, folder: Path
) -> None:
    sandbox = await open_container(image=image)
    subprocess.run([*engine.words, "rmi", image], check=True, capture_output=True)
    with pytest.raises(SandboxImageNotFound, match=f"pull {image}") as failure:
        await sandbox.run(new_command("true"), folder, ignore, ignore)
    await sandbox.close()
    assert not failure.value.retryable


@pytest.mark.slow
async def test_a_name_that_no_image_can_have_is_refused_at_the_start(container: Sandbox) -> None:
    with pytest.raises(SandboxImageNotFound, match="SANDBOX_IMAGE"):
        await open_container(image="NO Image:x:y")


@pytest.mark.slow
async def test_a_runtime_that_is_not_there_is_refused_at_the_start(container: Sandbox) -> None:
    with pytest.raises(Unavailable, match="no-such-runtime"):
        await open_container(runtime="no-such-runtime")


async def test_a_program_that_is_not_there_is_refused_with_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="install podman or docker") as refused:
        await open_container(engine=f"{tmp_path}/podman --option")
    assert f"cannot start {tmp_path}/podman: No such file" in refused.value.message
    assert refused.value.part == "sandbox"


async def test_no_program_at_all_is_refused_with_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"SANDBOX_CONTAINER_ENGINE.*neither program is in PATH"):
        await open_container(engine="")


async def test_a_client_without_its_engine_is_refused_with_what_to_do(tmp_path: Path) -> None:
    script = """
[ "$1" = --version ] && { echo "Docker version 28.2.2, build e6534b4"; exit 0; }
echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?" >&2
exit 1
"""
    with pytest.raises(Unavailable, match="Start it, and let this user talk to it"):
        await open_container(engine=program(tmp_path, script))


async def test_a_program_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="neither docker nor podman: something else"):
        await open_container(engine=program(tmp_path, "echo something else"))


async def test_an_engine_whose_containers_fail_is_refused_with_its_words(tmp_path: Path) -> None:
    script = """
case $1 in
    --version) echo Docker version 28.2.2;;
    image) echo null;;
    run) echo "Error: no cgroups for you" >&2; exit 126;;
esac
"""
    with pytest.raises(Unavailable, match="could not start a container: Error: no cgroups for you"):
        await open_container(engine=program(tmp_path, script), image="any")


def test_a_call_has_a_name_of_its_own() -> None:
    call = new_command("true").call
    others = [
        replace(call, tries=2),
        replace(call, generation=2),
        replace(call, step_id="2"),
        replace(call, user_id=""),
    ]
    assert len({container_name(each) for each in [call, *others]}) == 5
    assert container_name(replace(call)) == container_name(call)


def test_a_list_of_system_calls_without_namespaces_allows_what_it_did_but_for_these() -> None:
    allowed = ["clone", "clone3", "read", "setns", "unshare"]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}]}
    stricter = json.loads(strengthened(json.dumps(profile)))
    assert stricter["defaultAction"] == "SCMP_ACT_ERRNO"
    rules = {name: rule for rule in stricter["syscalls"] for name in rule["names"] if "includes" not in rule}
    still = {name for name, rule in rules.items() if rule["action"] == "SCMP_ACT_ALLOW"}
    assert still == {"read", "clone", "unshare"}
    assert rules["setns"]["errnoRet"] == errno.EPERM
    new_user_namespace = 0x10000000
    assert rules["clone"]["args"][0]["value"] & new_user_namespace
    assert rules["clone3"]["errnoRet"] == errno.ENOSYS


def test_a_list_of_system_calls_is_one_for_who_inherits_it_and_cannot_be_changed() -> None:
    calls = SystemCalls("{}")
    try:
        assert Path(calls.path).read_text() == "{}"
        with pytest.raises(PermissionError):
            os.write(calls.file, b"x")
    finally:
        calls.close()
