"""`agentctl dev`: the handlers of a file are served at once, and again after each change, also after one that breaks
it."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest

from agentctl.local.embedded import find_redis_server, free_port
from tests.e2e.test_agentctl_up import LONG_SECONDS, Up, agentctl, environment, read_lines, up

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="needs redis-server ≥ 6.2")

FILE = """\
from worker.handlers import Run, handler

@handler("says")
async def says(run: Run, input: str) -> str:
    return "{word} " + input
"""


@contextmanager
def dev(folder: Path) -> Iterator[Up]:
    argv = [sys.executable, "-m", "agentctl", "dev", "mine.py", "--json"]
    with subprocess.Popen(
        argv, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        started = Up(process, Queue())
        assert process.stdout is not None
        reader = threading.Thread(target=read_lines, args=(process.stdout, started.said))
        reader.start()
        try:
            yield started
        finally:
            process.kill()
            reader.join()


def says(folder: Path, port: int) -> str:
    """What the handler answers, by way of the API."""
    token = (folder / ".data" / "token").read_text().strip()
    where = {"AGENT_URL": f"http://127.0.0.1:{port}", "AGENT_TOKEN": token}
    made = agentctl("run", "--handler", "says", "--input", '"you"', "--no-follow", folder=folder, **where)
    run_id = made.stdout.strip()
    assert agentctl("logs", "-f", run_id, folder=folder, **where).returncode == 0, made.stderr
    return agentctl("show", run_id, folder=folder, **where).stdout


@pytest.mark.slow
def test_a_file_of_handlers_is_served_at_once_and_again_after_each_change(tmp_path: Path) -> None:
    file, port = tmp_path / "mine.py", free_port()
    file.write_text(FILE.format(word="hello"))
    with up(tmp_path, port), dev(tmp_path) as serving:
        serving.next("serving")
        assert '"hello you"' in says(tmp_path, port)

        file.write_text("x = (\n")
        assert "SyntaxError" in serving.next("ended")["message"]

        file.write_text(FILE.format(word="good morning,"))
        serving.next("serving")
        assert '"good morning, you"' in says(tmp_path, port)

        serving.process.send_signal(signal.SIGINT)
        serving.next("stopped")
        assert serving.process.wait(LONG_SECONDS) == 0


@pytest.mark.slow
def test_without_a_platform_it_says_how_to_start_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    ended = agentctl("dev", "mine.py", folder=tmp_path)
    assert ended.returncode == 2
    assert "start `agentctl up` in another terminal" in ended.stderr
