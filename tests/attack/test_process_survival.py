"""Nobody to read, nowhere to write, a broken file: a process goes on, or ends in order with a clear sentence.

What processes print is tried on real pipes, real terminals and a full device; what Redis keeps is broken as a crash, a
full disk or another version leaves it.
"""

import asyncio
import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from agentctl.local.embedded import EmbeddedRedis
from backplane.domain.runs import RunStatus
from backplane.process.log_stream import LogStream
from tests.e2e.test_agentctl_up import is_running
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import ROOT, Platform, WorkerProcess
from tests.ports import own_port
from tests.submitted import shell
from tests.waiting import wait_until

LONG_SECONDS = 60.0


# --- where a process's log can go, and cannot ---


@contextlib.contextmanager
def without_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield from closing(writer)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    yield from closing(os.open("/dev/full", os.O_WRONLY))


@contextlib.contextmanager
def pipe_that_nobody_reads() -> Iterator[int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def lost_terminal() -> Iterator[int]:
    ours, theirs = pty.openpty()
    os.close(ours)
    yield from closing(theirs)


@contextlib.contextmanager
def terminal_that_stands_still() -> Iterator[int]:
    ours, theirs = pty.openpty()
    os.set_blocking(theirs, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(theirs, b"x" * 4096)
    os.set_blocking(theirs, True)
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


NOWHERE: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "a pipe without a reader": without_reader,
    "a full disk": full_disk,
    "a pipe that nobody reads": pipe_that_nobody_reads,
    "a lost terminal": lost_terminal,
    "a terminal that stands still": terminal_that_stands_still,
}


@pytest.mark.parametrize("place", NOWHERE)
def test_a_line_that_can_be_written_nowhere_is_left_out_at_once(place: str) -> None:
    with NOWHERE[place]() as descriptor, open(descriptor, "w", closefd=False) as stream:
        log = LogStream(stream)
        began = time.monotonic()
        for number in range(1000):
            log.write(f"line {number}\n")
        # On an idle machine some milliseconds; to wait a tenth of a second for each would take 100 s.
        assert time.monotonic() - began < 60, "it waits for nobody"


def test_a_reader_that_reads_again_gets_whole_lines_and_the_number_of_missing_ones() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as read, open(writer, "w") as stream:
        log = LogStream(stream)
        for number in range(2000):
            log.write(f"{number:08} {'x' * 91}\n")
        first = read.read(2**20)
        assert first is not None
        log.write("after\n")
        lines = (first + (read.read(2**20) or b"")).decode().splitlines()
    *whole, note, last = lines
    assert [line[:8] for line in whole] == [f"{number:08}" for number in range(len(whole))]
    assert {len(line) for line in whole} == {100}
    assert note == f"{2000 - len(whole)} lines of this log could not be written"
    assert last == "after"


def test_a_log_that_is_closed_from_the_start_takes_lines() -> None:
    assert LogStream(None).write("line\n") == 5


def test_lines_come_whole_and_in_order_to_a_reader_that_is_slow() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as read, open(writer, "w") as stream:
        log = LogStream(stream)
        log.write("a" * 300_000 + "\n")  # more than a pipe holds
        first = os.read(reader, 2**20)
        log.write("b\n")
        rest = b""
        while not rest.endswith(b"b\n"):
            rest += os.read(reader, 2**20)
            log.write("b\n")
        assert (first + rest).split(b"\n")[0] == b"a" * 300_000
        assert read


# --- the processes ---


PROCESSES = {
    "worker": ["-m", "worker"],
    "controller": ["-m", "controller"],
    "api": ["-m", "uvicorn", "app.main:create_app", "--factory", "--port", "{port}"],
    "standalone": ["-m", "standalone", "--port", "{port}"],
}


@contextlib.contextmanager
def process(
    platform: Platform, name: str, output: int, port: int = 0, *, closed: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """One of the platform's processes whose whole output goes there; `closed`: it has none from its start."""
    argv = [sys.executable, *(part.format(port=port) for part in PROCESSES[name])]
    if closed:
        argv = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *argv]
    started = WorkerProcess(platform.settings, platform.scratch).environment | {"LOG_LEVEL": "debug"}
    with subprocess.Popen(
        argv, cwd=platform.scratch, env=started, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("place", [*NOWHERE, "closed from the start"])
async def test_a_worker_whose_log_can_be_written_nowhere_carries_runs_out_and_ends_in_order(
    start_platform: StartPlatform, place: str
) -> None:
    platform = await start_platform()
    where = NOWHERE.get(place, full_disk)
    with where() as output, process(platform, "worker", output, closed=place not in NOWHERE) as worker:

        async def is_there() -> bool:
            assert worker.poll() is None
            return bool(await platform.resources.queue.workers())

        # Its start is no part of the time that a run may take.
        await wait_until(is_there, LONG_SECONDS)
        for _ in range(3):
            await platform.completed(await platform.submit(shell("a", "echo a; exit 0")))
        failed = await platform.submit(shell("a", "exit 3"))
        await platform.until(failed, RunStatus.FAILED)
        assert worker.poll() is None
        await asyncio.to_thread(ended, worker)
        assert worker.returncode == 0


def ended(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(LONG_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["controller", "api", "standalone"])
@pytest.mark.parametrize("place", [*NOWHERE, "closed from the start"])
async def test_a_process_whose_log_can_be_written_nowhere_works_and_ends_in_order(
    start_platform: StartPlatform, name: str, place: str
) -> None:
    if (name, place) == ("api", "closed from the start"):
        pytest.skip("uvicorn itself does not start so")
    port = own_port()
    platform = await start_platform(metrics_port=port if name == "controller" else 0)
    where = NOWHERE.get(place, full_disk)
    with where() as output, process(platform, name, output, port, closed=place not in NOWHERE) as running:
        path = "/health/live" if name != "controller" else "/health/ready"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def answers() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get(path)).status_code == 200
                return False

            await wait_until(answers, LONG_SECONDS)
            for _ in range(300):  # each is a line of the API's own log
                assert (await client.get(path)).status_code == 200
        assert running.poll() is None
        await asyncio.to_thread(ended, running)
        assert running.returncode in (0, -signal.SIGTERM)


# --- agentctl up: its terminal, its reader ---


def environment(**more: str) -> dict[str, str]:
    """Nothing of the settings around the tests: what is not named is embedded."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return {**kept, "PYTHONPATH": str(ROOT), "SINGLE_PROCESS": "true", **more}


def up_argv(port: int) -> list[str]:
    return [sys.executable, "-m", "agentctl", "up", "--port", str(port)]


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants(child)
    return found


async def is_up(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await client.get("/health/ready")).status_code == 200
            return False

        await wait_until(ready, LONG_SECONDS)


@contextlib.contextmanager
def in_a_terminal(
    folder: Path, port: int, *before: str
) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], None]]]:
    """An `up` whose controlling terminal is a new one, and what closes that. `before`: put before the command."""
    ours, theirs = pty.openpty()
    up = subprocess.Popen(
        ["setsid", "--ctty", *before, *up_argv(port)],
        cwd=folder,
        env=environment(TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield up, lambda: os.close(ours)
    finally:
        up.kill()
        up.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
async def test_an_up_whose_terminal_is_closed_stops_everything_in_order(tmp_path: Path) -> None:
    port = own_port()
    with in_a_terminal(tmp_path, port) as (up, close_terminal):
        await is_up(port)
        below = descendants(up.pid)
        close_terminal()  # the kernel sends SIGHUP, and whatever is printed from here on fails with EIO
        assert await asyncio.to_thread(up.wait, LONG_SECONDS) == 0
    assert [child for child in below if is_running(child)] == []
    assert not (tmp_path / ".data" / "lock").exists()


@pytest.mark.slow
async def test_an_up_under_nohup_goes_on_without_its_terminal_and_obeys_sigterm(tmp_path: Path) -> None:
    port = own_port()
    with in_a_terminal(tmp_path, port, "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as (up, close_terminal):
        await is_up(port)
        close_terminal()
        below = descendants(up.pid)
        await a_part_dies(tmp_path, below)
        await is_up(port)
        below |= descendants(up.pid)
        assert await asyncio.to_thread(ended, up) == 0
    assert [child for child in below if is_running(child)] == []


@pytest.mark.slow
@pytest.mark.parametrize("json_lines", [True, False])
async def test_an_up_whose_reader_has_gone_goes_on_and_obeys_sigterm(tmp_path: Path, json_lines: bool) -> None:
    port = own_port()
    with started_up(tmp_path, port, *(["--json"] if json_lines else [])) as up:
        try:
            assert up.stdout is not None
            assert await asyncio.to_thread(up.stdout.readline)
            up.stdout.close()  # as `head -1` does
            await is_up(port)
            below = descendants(up.pid)
            await a_part_dies(tmp_path, below)
            await is_up(port)
            assert up.poll() is None
            below |= descendants(up.pid)
            assert await asyncio.to_thread(ended, up) == 0
            assert [child for child in below if is_running(child)] == []
        finally:
            up.kill()


def started_up(folder: Path, port: int, *more: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*up_argv(port), *more],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def a_part_dies(folder: Path, below: set[int]) -> None:
    """One is killed and started again, which `up` would print."""
    redis = [pid for pid in below if "redis-server" in Path(f"/proc/{pid}/cmdline").read_text()]
    log = folder / ".data" / "redis" / "redis.log"
    starts = log.read_text().lower().count("ready to accept connections")
    os.kill(redis[0], signal.SIGKILL)
    await wait_until(lambda: log.read_text().lower().count("ready to accept connections") > starts, LONG_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["--help"], ["settings"], ["doctor", "--json"]])
def test_a_command_whose_reader_has_gone_ends_without_a_word(tmp_path: Path, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "agentctl", *command],
        cwd=tmp_path,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=LONG_SECONDS,
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode != 0


# --- what a crash, a full disk or another version leaves behind ---


def damage(start: bytes) -> Callable[[Path], None]:
    def damaged(file: Path) -> None:
        file.write_bytes(start + file.read_bytes()[len(start) :])

    return damaged


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "its beginning overwritten": damage(b"no append-only file"),
    "a preamble of a newer version": lambda file: file.write_bytes(b"REDIS0099" + b"\0" * 64),
    "a preamble that is cut off": lambda file: file.write_bytes(b"REDIS0009\xfa\x09redis-ver"),
    "a length that lies": damage(b"*999999999\r\n$6\r\n"),
    "a folder in its place": made_a_folder,
}


@pytest.mark.parametrize("how", UNREADABLE)
async def test_redis_starts_empty_when_it_cannot_read_its_data_which_is_kept(tmp_path: Path, how: str) -> None:
    file = tmp_path / "appendonly.aof"
    await filled(tmp_path)
    UNREADABLE[how](file)
    shown: list[str] = []
    async with EmbeddedRedis(tmp_path, shown.append) as server:
        with Redis.from_url(server.url) as client:
            assert client.dbsize() == 0
            client.set("key", "after")
    [sentence] = shown
    [kept] = tmp_path.glob("unreadable-*")
    assert str(kept) in sentence
    assert os.listdir(kept) == ["appendonly.aof"]
    async with EmbeddedRedis(tmp_path, shown.append) as server:
        with Redis.from_url(server.url) as client:
            assert client.get("key") == b"after"
    assert len(shown) == 1


READABLE: dict[str, Callable[[Path], object]] = {
    "an end that is cut off": cut_off,
    "a snapshot that is damaged beside it": lambda file: file.with_name("dump.rdb").write_bytes(b"REDIS0099"),
    "the folder of a newer version beside it": lambda file: file.with_name("appendonlydir").mkdir(),
}


@pytest.mark.parametrize("what", READABLE)
async def test_redis_goes_on_with_what_it_can_read(tmp_path: Path, what: str) -> None:
    await filled(tmp_path)
    READABLE[what](tmp_path / "appendonly.aof")
    shown: list[str] = []
    async with EmbeddedRedis(tmp_path, shown.append) as server:
        with Redis.from_url(server.url) as client:
            assert client.get("first") == b"value"
    assert shown == []


async def filled(folder: Path) -> None:
    async with EmbeddedRedis(folder) as server:
        with Redis.from_url(server.url) as client:
            client.set("first", "value")
            client.set("second", "value")


async def test_a_crash_with_data_that_cannot_be_read_any_more_is_mended_by_the_next_start(tmp_path: Path) -> None:
    shown: list[str] = []
    async with EmbeddedRedis(tmp_path, shown.append) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.exited()
        damage(b"no append-only file")(tmp_path / "appendonly.aof")
        (tmp_path / "appendonly.aof").write_bytes(b"no append-only file")
        await server.start()
        with Redis.from_url(server.url) as client:
            assert client.ping()
    assert len(shown) == 1


@pytest.mark.slow
def test_an_up_whose_database_is_damaged_says_what_to_do_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "agent.db").write_bytes(b"no database" * 1000)
    done = subprocess.run(
        up_argv(own_port()), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=LONG_SECONDS
    )
    assert (done.returncode, "backup" in done.stderr, "Traceback" in done.stderr) == (5, True, False)
    assert (tmp_path / ".data" / "agent.db").read_bytes() == b"no database" * 1000


# --- what code leaves behind ---

LEAVES_THREADS = """
import asyncio, sys, threading, time
from backplane import entry_point

async def work(settings, stop):
    threading.Thread(target=time.sleep, args=(600,), name="left by a role").start()
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)

entry_point.THREADS_SECONDS = 0.2
sys.exit(entry_point.run("test", work))
"""


@pytest.mark.slow
def test_a_process_ends_though_code_has_left_threads_behind_that_do_not() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES_THREADS], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0
    assert "left by a role" in ended.stdout + ended.stderr
