"""What an isolated command cannot see, reach or change."""

import os
import socket
import uuid
from pathlib import Path

import pytest

from tests.contracts.sandbox.conftest import Run
from tests.contracts.sandbox.sandboxes import MIB, Running, new_mark, processes_with
from worker.sandbox.base import Sandbox


async def test_nothing_outside_the_folder_can_be_written(isolated: Sandbox, run: Run) -> None:
    script = """
for path in /x /usr/x /usr/bin/x /etc/x /etc/passwd /dev/x /proc/x /root/x /var/x /var/tmp/x /run/x /home/x; do
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
    name = f"left-behind-{uuid.uuid4().hex}"
    script = f"for place in /tmp /dev/shm; do ls -A $place; echo x > $place/{name} && cat $place/{name}; done"
    for _ in range(2):
        _, said = await run(isolated, "sh", "-c", script)
        assert said.split() == ["x", "x"]
    assert name not in os.listdir("/tmp")


async def test_temporary_files_are_bounded(isolated: Sandbox, run: Run) -> None:
    script = "head -c 300000000 /dev/zero > /tmp/big"
    outcome, _ = await run(isolated, "sh", "-c", script, memory_bytes=1024 * MIB, file_bytes=1024 * MIB)
    assert outcome.exit_code != 0


async def test_secrets_of_the_machine_are_not_there(isolated: Sandbox, run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("platform-secret")
    files = f"{tmp_path}/secret /etc/shadow /etc/ssl/private/* /root/.ssh/* /home/*/.ssh/* /root/.docker/*"
    _, said = await run(isolated, "sh", "-c", f"echo seen: $(cat {files} 2>/dev/null)")
    assert said == "seen:\n"


async def test_no_token_is_there(isolated: Sandbox, run: Run) -> None:
    places = "/var/run/secrets /run/secrets /run/containerd /run/podman /run/docker.sock /var/run/docker.sock"
    _, said = await run(isolated, "sh", "-c", f"for place in {places}; do [ -e $place ] && echo $place; done; true")
    assert said == ""


async def test_a_commands_variables_stand_in_no_command_line_of_the_machine(nearby: Sandbox, folder: Path) -> None:
    mark = new_mark()
    script = 'printf "%s" "$KEY" | wc -c; sleep 1000'
    running = Running(nearby, folder, "sh", "-c", script, environment={"KEY": mark})
    await running.says(f"{len(mark)}\n".encode())
    assert processes_with(mark) == []
    await running.cancel()


async def test_a_variable_that_a_shell_keeps_for_itself_keeps_no_command_from_running(
    nearby: Sandbox, run: Run
) -> None:
    outcome, said = await run(
        nearby, "sh", "-c", 'echo "$AFTER"', environment={"UID": "7", "PPID": "8", "AFTER": "yes"}
    )
    assert (outcome.exit_code, said) == (0, "yes\n")


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


async def test_no_network_and_no_metadata_address_is_reached(isolated: Sandbox, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"""
import socket
for address in [("127.0.0.1", {listener.getsockname()[1]}), ("192.0.2.1", 80), ("169.254.169.254", 80)]:
    try:
        socket.create_connection(address, timeout=5)
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""
        _, said = await run(isolated, "python3", "-c", program)
    assert said.split()[0] == "ConnectionRefusedError"
    assert "connected" not in said


async def test_a_command_has_no_capability_and_can_get_none(isolated: Sandbox, run: Run) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status; hostname; id -u; unshare -Ur id -u || echo none"
    _, said = await run(isolated, "sh", "-c", script)
    values = said.split()
    assert values[:9] == [
        *("CapPrm:", "0" * 16, "CapEff:", "0" * 16, "CapBnd:", "0" * 16),
        *("NoNewPrivs:", "1", "sandbox"),
    ]
    assert int(values[9]) > 0
    assert values[-1] == "none"


async def test_a_preloaded_library_of_the_command_never_reaches_the_builder_of_its_walls(
    isolated: Sandbox, run: Run, tmp_path: Path
) -> None:
    variables = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(tmp_path / "linker")}
    outcome, _ = await run(isolated, "true", environment=variables)
    assert outcome.exit_code == 0
    assert os.listdir(tmp_path) == ["files"]


async def test_two_sandboxes_at_once_know_nothing_of_each_other(
    isolated: Sandbox, folder: Path, other_folder: Path
) -> None:
    mark = new_mark()
    program = f"""
import socket, subprocess, time
for place in ("/workspace", "/tmp", "/dev/shm"):
    open(f"{{place}}/{mark}", "w").close()
listener = socket.create_server(("127.0.0.1", 45454))
hidden = socket.socket(socket.AF_UNIX)
hidden.bind("\\0{mark}")
hidden.listen()
subprocess.Popen(["sleep", "{mark}"])
print("on", flush=True)
time.sleep(1000)
"""
    spy = f"""
import glob, os, socket
found = [place for place in ("/workspace", "/tmp", "/dev/shm") if "{mark}" in os.listdir(place)]
me = str(os.getpid())
for line in glob.glob("/proc/[0-9]*/cmdline"):
    if line.split("/")[2] != me and b"{mark}" in open(line, "rb").read() and b"spy" not in open(line, "rb").read():
        found.append(line)
for address in (("127.0.0.1", 45454), "\\0{mark}"):
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as caller:
        if caller.connect_ex(address) == 0:
            found.append(address)
print(found)
"""
    first = Running(isolated, folder, "python3", "-c", program)
    await first.says(b"on\n")
    # The same from within, to see that the spy would find what is there.
    outcome, said = await Running(isolated, other_folder, "python3", "-c", spy).ends()
    assert not first.task.done()
    await first.cancel()
    assert (outcome.exit_code, said) == (0, "[]\n")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "NO_PROXY"])
async def test_a_proxy_of_the_machine_is_not_in_the_environment_but_one_of_the_step_is(
    nearby: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://user:platform-secret@proxy")
    _, said = await run(nearby, "sh", "-c", f'echo "[${{{name}-}}]"')
    assert said == "[]\n"
    _, said = await run(nearby, "sh", "-c", f'echo "[${{{name}-}}]"', environment={name: "own"})
    assert said == "[own]\n"
