"""Under LOG_FORMAT=json every line that a process writes is JSON; otherwise a person can read it."""

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agentctl.local.embedded import find_redis_server, free_port
from backplane.domain.events import EventType
from tests.integration.worker.conftest import StartPlatform, start_platform, start_process
from tests.integration.worker.test_crashes import StartProcess
from tests.platform.workers import ROOT, UNTIL_GO, Platform, environment_of
from tests.submitted import shell
from tests.waiting import wait_until

__all__ = ["start_platform", "start_process"]

LONG_SECONDS = 60.0

EVERY_WAY = """
import asyncio, logging, sys, threading, warnings
from backplane.process import log as process_log
process_log.configure(format=sys.argv[1], level="info", process="test")
process_log.own_this_process()
warnings.warn("a warning\\nof two lines")
logging.getLogger("library").error("it says %s", "something")
def fail(what): raise ValueError(f"{what}\\nwith a second line")
thread = threading.Thread(target=fail, args=("in a thread",)); thread.start(); thread.join()
class Finalized:
    def __del__(self): fail("in a finalizer")
del_it = Finalized(); del del_it
async def main():
    task = asyncio.create_task(asyncio.sleep(0)); await task
    asyncio.get_running_loop().call_soon(fail, "in a callback"); await asyncio.sleep(0.01)
asyncio.run(main())
import traceback
from backplane.process.log import log
log.warning("held", stack="".join(traceback.format_stack()))
try: fail("caught")
except ValueError: logging.getLogger("library").exception("it failed")
fail("in the end")
"""
FAULTS = ["in a thread", "in a finalizer", "in a callback", "caught", "in the end"]


def said_by(format: str) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", EVERY_WAY, format], cwd=ROOT, capture_output=True, text=True, timeout=LONG_SECONDS
    )
    assert (process.returncode, process.stdout) == (1, "")
    return process.stderr.splitlines()


def test_warnings_libraries_and_faults_of_every_kind_are_lines_of_json() -> None:
    lines = [json.loads(line) for line in said_by("json")]
    assert {line["process"] for line in lines} == {"test"}
    assert all(line["level"] and line["timestamp"] for line in lines)
    traces = [line["exception"] for line in lines if "exception" in line]
    for fault in FAULTS:
        [trace] = [trace for trace in traces if f"ValueError: {fault}\nwith a second line" in trace]
        assert trace.startswith("Traceback (most recent call last):\n")
    assert any("a warning" in line["event"] and line["logger"] == "py.warnings" for line in lines)
    assert any((line["event"], line.get("logger")) == ("it says something", "library") for line in lines)


def test_in_a_log_for_people_a_traceback_is_readable_and_begins_no_line() -> None:
    lines = said_by("console")
    for fault in FAULTS:
        at = lines.index(f"    ValueError: {fault}")
        assert lines[at + 1] == "    with a second line"
    assert any(line.startswith("20") and "held" in line for line in lines)
    assert any(line.startswith('      File "<string>", line ') for line in lines)
    assert all(line.startswith(("    ", "20")) for line in lines)
    assert not any("\\n" in line for line in lines if "File" in line)


def process(module: str, environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", *module.split()], env=environment, stdout=output, stderr=output)


def json_lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


API = "uvicorn app.main:create_app --factory"
MODULES = [API, "worker", "controller"]


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
async def test_a_process_that_refuses_its_settings_says_so_in_one_line_of_json(tmp_path: Path, module: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "LOG_FORMAT": "JSON", "LEASE_SECONDS": "soon"}
    refused = process(module, environment, tmp_path / "log")
    assert await asyncio.to_thread(refused.wait, LONG_SECONDS) == 2
    [line] = json_lines(tmp_path / "log")
    assert "LEASE_SECONDS" in line["event"]


@pytest.mark.slow
@pytest.mark.parametrize("module", [API, "standalone", "controller"])
async def test_all_that_a_process_writes_from_its_start_to_its_end_is_json(
    start_platform: StartPlatform, tmp_path: Path, module: str
) -> None:
    platform = await start_platform()
    port = free_port()
    listens = "" if module == "controller" else f" --port {port}"
    environment = {
        **environment_of(platform.settings),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(platform.scratch),
    }
    started = process(module + listens, environment, tmp_path / "log")
    try:
        if module == "controller":
            await wait_until(lambda: "controller ready" in (tmp_path / "log").read_text(), LONG_SECONDS)
        else:
            await wait_until(lambda: asyncio.to_thread(answers, port), LONG_SECONDS)
    finally:
        started.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(started.wait, LONG_SECONDS)
    lines = json_lines(tmp_path / "log")
    assert code in (0, -signal.SIGTERM)
    assert all(line["event"] and line["level"] for line in lines)
    if module != "controller":
        [asked] = [line for line in lines if "GET /health/live HTTP/1.1" in line["event"]]
        assert asked["logger"] == "uvicorn.access"


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live?token=1", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("module", [API, "worker", "controller", "standalone"])
async def test_a_process_whose_names_of_files_are_not_utf_8_does_not_start_and_says_what_to_set(
    tmp_path: Path, module: str
) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    refused = process(module, {"PYTHONPATH": str(ROOT), "LOG_FORMAT": "json", **ascii_alone}, tmp_path / "log")
    assert await asyncio.to_thread(refused.wait, LONG_SECONDS) == 2
    [line] = json_lines(tmp_path / "log")
    assert "PYTHONUTF8=1" in line["event"]


@pytest.mark.slow
async def test_the_life_of_a_run_is_a_line_each_with_run_worker_and_attempt(
    start_platform: StartPlatform, start_process: StartProcess
) -> None:
    """Taken, lost by a worker that is killed, taken by another, handed back by that one, taken and ended."""
    platform: Platform = await start_platform()
    first = await start_process(platform)
    run_id = await platform.submit(shell("a", f"{UNTIL_GO}", repeatable=True))
    await platform.until_begun(run_id)
    await first.kill()
    second = await start_process(platform, worker_grace_seconds=0.1)
    await platform.until_begun(run_id, times=2)
    second.signal(signal.SIGTERM)
    await second.ended()
    await platform.write(run_id, "go", b"")
    third = await start_process(platform)
    run = await platform.completed(run_id)
    await wait_until(lambda: any(line["event"] == "run ended" for line in third.logged()))
    workers = (first, second, third)
    names = [next(line["worker"] for line in one.logged() if line["event"] == "worker ready") for one in workers]
    logged = [
        (line["event"], names.index(line["worker"]), line.get("attempt"), line.get("lost_worker", ""))
        for one in workers
        for line in one.logged()
        if line.get("run") == run_id
    ]
    assert logged == [
        ("run taken", 0, 1, ""),
        ("run lost: it is queued again", 1, None, names[0]),
        ("run taken", 1, 1, names[0]),
        ("run handed back: the worker drains", 1, 1, ""),
        ("run taken", 2, 1, ""),
        ("run ended", 2, 1, ""),
    ]
    assert run.worker_id == names[2]
    reasons = [data.get("reason", "") for data in await platform.event_data(run_id, EventType.STATUS)]
    assert any(f"its worker {names[0]} was lost" in reason for reason in reasons)
    assert any("the worker stops" in reason for reason in reasons)


@pytest.mark.slow
@pytest.mark.skipif(find_redis_server() is None, reason="needs redis-server")
async def test_agentctl_up_and_all_that_it_starts_write_json(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "LOG_FORMAT": "json", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    data = tmp_path / "data"
    module = f"agentctl up --port {free_port()} --data {data}"
    started = process(module, environment, tmp_path / "up.log")
    try:
        await wait_until(lambda: '"ready"' in (tmp_path / "up.log").read_text(), LONG_SECONDS)
    finally:
        started.send_signal(signal.SIGTERM)
        await asyncio.to_thread(started.wait, LONG_SECONDS)
    logs = [tmp_path / "up.log", *(log for log in (data / "logs").glob("*.log") if log.name != "redis.log")]
    assert {log.stem for log in logs} == {"up", "api", "worker-1", "controller", "jobs", "pools"}
    assert all(line["event"] for log in logs for line in json_lines(log))
