"""`agentctl up` as its user meets it: what it prints can be pasted, what dies comes back, what is stopped is gone, and
the next start goes on with the data. One start serves several looks, since a start takes seconds."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from agentctl.local.embedded import find_redis_server, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LONG_SECONDS = 60.0
NEED_A_MODEL = {"ollama.md", "research.yaml", "team.md"}

pytestmark = pytest.mark.skipif(
    find_redis_server() is None and not os.environ.get("CI"), reason="needs redis-server ≥ 6.2"
)


@dataclass
class Up:
    """A running `agentctl up --json` and what it said, line by line."""

    process: subprocess.Popen[str]
    said: "Queue[dict[str, Any] | None]"
    ready: dict[str, Any] = field(default_factory=dict)

    def next(self, event: str) -> dict[str, Any]:
        """The next thing it says of this kind; others are passed over."""
        while (line := self.said.get(timeout=LONG_SECONDS)) is not None:
            if line["event"] == event:
                return line
        raise AssertionError(f"it ended with {self.process.wait()} and never said {event}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LONG_SECONDS)


def environment(**more: str) -> dict[str, str]:
    """Nothing of the settings around the tests: what is not named is embedded."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def agentctl(
    *arguments: str, folder: Path, before: Sequence[str] = (), **more: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*before, sys.executable, "-m", "agentctl", *arguments],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
    )


@contextlib.contextmanager
def up(folder: Path, port: int, *, data: str = ".data", before: Sequence[str] = (), **more: str) -> Iterator[Up]:
    """`before` is what stands before the command, such as `prlimit`."""
    argv = [*before, sys.executable, "-m", "agentctl", "up", "--json", "--port", str(port), "--data", data]
    with subprocess.Popen(
        argv, cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        started = Up(process, Queue())
        assert process.stdout is not None
        reader = threading.Thread(target=read_lines, args=(process.stdout, started.said))
        reader.start()
        try:
            started.ready = started.next("ready")
            yield started
        finally:
            process.kill()
            reader.join()


def read_lines(lines: Iterator[str], said: "Queue[dict[str, Any] | None]") -> None:
    for line in lines:
        # What is no JSON is an error message, which `next` is to show.
        said.put(json.loads(line) if line.startswith("{") else {"event": "error", "message": line})
    said.put(None)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def descendants(pid: int) -> dict[int, str]:
    """Every process below, and what it runs."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                found |= descendants(child)
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_day_in_the_life_of_an_up(tmp_path: Path) -> None:
    data, port = tmp_path / ".data", free_port()
    client = {"AGENT_URL": f"http://127.0.0.1:{port}"}
    with up(tmp_path, port) as running:
        # Secrets are their owner's alone.
        secret = ("token", "redis.url", "redis.password", "secrets.key")
        assert (mode(data), *(mode(data / name) for name in secret)) == (0o700, 0o600, 0o600, 0o600, 0o600)
        assert (data / "lock").read_text() == f"{running.process.pid}\n"
        token = (data / "token").read_text()

        # The lines that it prints work as they are pasted: create, start, watch.
        if shutil.which("bash") and shutil.which("curl"):
            pasted = subprocess.run(
                ["bash", "-c", "\n".join(running.ready["commands"])],
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=LONG_SECONDS,
            )
            assert "event: end" in pasted.stdout
            assert "3 words.txt" in pasted.stdout
            assert '"status":"completed"' in pasted.stdout.splitlines()[-2]

        # So does the line that leads to Redis, where its client is.
        if shutil.which("bash"):
            line = f"{running.ready['redis_cli']} LLEN jobs:pending"
            asked = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True
            )
            assert asked.returncode == 127 or asked.stdout == "0\n", asked.stderr

        # The doctor finds every part of it, and that the API uses what it looks at.
        found = json.loads(agentctl("doctor", "--json", folder=tmp_path, **client).stdout)
        states = {part["part"]: part["state"] for part in found["findings"]}
        assert {states[part] for part in ("api", "data", "redis", "database", "workspaces")} == {"ok"}

        # Whoever started it may do what administrators may.
        assert agentctl("dlq", "list", folder=tmp_path, **client).returncode == 0

        # A second one on the same data learns which process uses it, before it starts anything.
        second = agentctl("up", "--port", str(free_port()), folder=tmp_path)
        assert (second.returncode, str(running.process.pid) in second.stderr) == (4, True)
        elsewhere = agentctl("up", "--port", str(port), "--data", "other", folder=tmp_path)
        assert (elsewhere.returncode, "--port" in elsewhere.stderr) == (1, True)
        assert not (tmp_path / "other").exists()

        # An API, a worker and a controller that are killed come back, and work.
        for name, pid in running.ready["pids"].items():
            os.kill(pid, signal.SIGKILL)
            assert running.next("ended")["message"].startswith(f"{name} was ended by SIGKILL")
        assert {running.next("started")["message"] for _ in range(3)} == {
            "api is started again.",
            "worker-1 is started again.",
            "controller is started again.",
        }
        api_is_back = lambda: agentctl("queue", folder=tmp_path, **client).returncode == 0  # noqa: E731
        asyncio.run(wait_until(api_is_back, LONG_SECONDS))
        no_run = NEED_A_MODEL | {"deployment.yaml", "services.yaml"}
        examples = {path for path in (ROOT / "examples").iterdir() if path.is_file() and path.name not in no_run}
        for example in sorted(examples):
            what = ["--plan", str(example)] if example.suffix == ".yaml" else [str(example)]
            run = agentctl("run", *what, folder=tmp_path, **client)
            assert run.returncode == 0, run.stdout + run.stderr

        # SIGTERM ends everything, and leaves nothing but the data.
        below = descendants(running.process.pid)
        lines = " ".join(below.values())
        assert all(program in lines for program in ("redis-server", "uvicorn", "-m worker", "-m controller"))
        assert running.stop() == 0
        assert [line for pid, line in below.items() if is_running(pid)] == []
        assert not (data / "lock").exists()

    with up(tmp_path, port) as again:
        # The next start goes on: same token, same runs.
        assert (data / "token").read_text() == token
        listed = json.loads(agentctl("runs", "--json", folder=tmp_path, **client).stdout)
        assert listed[0]["status"] == "completed"
        # Killed itself, it takes its children along, and the next start goes on all the same.
        below = descendants(again.process.pid)
        again.stop(signal.SIGKILL)
        asyncio.run(wait_until(lambda: not any(map(is_running, below)), what="the children to be gone"))

    (data / "token").write_text("agt_of_another_database\n")
    with up(tmp_path, port) as last:
        # A token that the database does not know is replaced by one that it knows.
        assert agentctl("queue", folder=tmp_path, **client).returncode == 0
        assert last.stop(signal.SIGINT) == 0


@pytest.mark.slow
def test_a_part_that_does_not_come_up_is_named_and_nothing_stays(tmp_path: Path) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody:hidden@127.0.0.1:1/none"}
    failed = agentctl("up", "--port", str(free_port()), folder=tmp_path, **nowhere)
    assert (failed.returncode, failed.stdout) == (5, "")
    assert "the database does not answer" in failed.stderr
    assert "hidden" not in failed.stderr
    assert not (tmp_path / ".data" / "lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("single_process", ["false", "true"])
def test_the_demo_carries_out_the_example_and_leaves_nothing(tmp_path: Path, single_process: str) -> None:
    # Settings that name real parts are left aside.
    theirs = {"REDIS_URL": "redis://127.0.0.1:1/0", "S3_BUCKET": "theirs"}
    done = agentctl("demo", folder=tmp_path, TMPDIR=str(tmp_path), SINGLE_PROCESS=single_process, **theirs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "● completed" in done.stdout
    assert "report.txt" in done.stdout
    assert list(tmp_path.iterdir()) == []
