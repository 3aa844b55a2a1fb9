"""Child processes, with real ones: started, ready, started again, stopped, and never there without their parent."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from backplane.errors import Unavailable
from backplane.process import supervisor
from backplane.process.supervisor import ChildProcess, RestartPauses, keep_running, stop_together
from backplane.process.tasks import end
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
FOR_EVER = ["sleep", "1000"]
DEAF = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]
"""Does not end when it is asked to."""


def is_there(pid: int | None) -> bool:
    """Whether the process runs; one that has ended and was not waited for yet does not."""
    try:
        return pid is not None and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def started(*argv: str, log: Path | None = None) -> ChildProcess:
    child = ChildProcess("child", argv, log=log)
    await child.start()
    return child


async def test_a_child_that_ends_in_time_is_not_killed() -> None:
    child = await started(*FOR_EVER)
    pid = child.pid
    await child.stop(10)
    assert (child.returncode, child.pid, is_there(pid)) == (-signal.SIGTERM, None, False)


async def test_a_child_that_ignores_the_signal_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    child = await started(*DEAF, log=tmp_path / "log")
    await wait_until(lambda: "deaf" in (tmp_path / "log").read_text())
    await child.stop(0.05)
    assert child.returncode == -signal.SIGKILL


async def test_what_a_killed_child_has_started_is_killed_with_it(tmp_path: Path) -> None:
    child = await started("sh", "-c", "sleep 1000 & echo $!; wait", log=tmp_path / "log")
    grandchild = int(await wait_until(lambda: (tmp_path / "log").read_text().strip()))
    child.kill()
    await child.exited()
    await wait_until(lambda: not is_there(grandchild))


async def test_children_are_stopped_at_the_same_time(tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    lasting = ["sh", "-c", f"trap 'echo asked' TERM; echo ready; until [ -e '{may_end}' ]; do sleep 0.02; done"]
    logs = [tmp_path / str(number) for number in range(3)]
    children = [await started(*lasting, log=log) for log in logs]
    await wait_until(lambda: all("ready" in log.read_text() for log in logs))
    stopping = asyncio.create_task(stop_together(children, 60))
    await wait_until(lambda: all("asked" in log.read_text() for log in logs))
    assert [child.returncode for child in children] == [None, None, None]
    may_end.touch()
    await stopping
    assert [child.returncode for child in children] == [0, 0, 0]


async def test_stopping_a_child_that_does_not_run_does_nothing() -> None:
    await ChildProcess("child", FOR_EVER).stop(0)
    child = await started("true")
    assert await child.exited() == 0
    await child.stop(0)


async def test_a_second_start_of_a_running_child_starts_no_second_process() -> None:
    child = await started(*FOR_EVER)
    pid = child.pid
    await child.start()
    assert child.pid == pid
    await child.stop(10)


async def test_a_start_that_is_cancelled_leaves_a_process_that_can_be_stopped() -> None:
    child = ChildProcess("child", FOR_EVER)
    starting = asyncio.create_task(child.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert is_there(child.pid)
    await child.stop(10)


async def test_a_program_that_is_not_there_is_an_error_of_the_start_or_an_end(tmp_path: Path) -> None:
    child = await started(str(tmp_path / "none"), log=tmp_path / "log")
    assert await child.exited() != 0
    with pytest.raises(FileNotFoundError):
        await started("true", log=tmp_path / "no-folder" / "log")


async def test_a_child_is_ready_when_it_says_so(tmp_path: Path) -> None:
    child = await started("sh", "-c", f"touch {tmp_path}/ready; sleep 1000")

    async def is_ready() -> bool:
        return (tmp_path / "ready").exists()

    await child.until_ready(is_ready, 10)
    await child.stop(10)


async def never() -> bool:
    return False


async def test_a_child_that_ends_before_it_is_ready_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = await started("sh", "-c", "echo no disk; exit 3", log=tmp_path / "log")
    with pytest.raises(Unavailable, match=r"(?s)child ended with exit code 3 at its start\..*no disk"):
        await child.until_ready(never, 10)


async def test_a_child_that_does_not_get_ready_is_reported_and_still_runs() -> None:
    child = await started(*FOR_EVER)
    with pytest.raises(Unavailable, match=r"child is not ready after 0\.05 s"):
        await child.until_ready(never, 0.05)
    assert is_there(child.pid)
    await child.stop(10)


async def test_a_child_that_is_killed_is_started_again() -> None:
    reports = list[tuple[str, str]]()
    child = await started(*FOR_EVER)
    keeper = asyncio.create_task(
        keep_running(child, "child", lambda *report: reports.append(report), RestartPauses(first=0.01))
    )
    first = child.pid
    child.kill()
    await wait_until(lambda: child.pid not in (None, first))
    await wait_until(lambda: len(reports) == 2)
    await end(keeper)
    await child.stop(10)
    assert reports == [
        ("ended", "child was ended by SIGKILL; starting it again in 0.01 s."),
        ("started", "child is started again."),
    ]


async def test_a_child_that_cannot_be_started_again_is_tried_again(tmp_path: Path) -> None:
    folder, reports = tmp_path / "logs", list[str]()
    folder.mkdir()
    child = await started(*FOR_EVER, log=folder / "log")
    keeper = asyncio.create_task(
        keep_running(child, "child", lambda what, _: reports.append(what), RestartPauses(first=0.01, longest=0.01))
    )
    folder.rename(tmp_path / "away")
    child.kill()
    await wait_until(lambda: reports.count("not_started") > 1)
    (tmp_path / "away").rename(folder)
    await wait_until(lambda: child.pid is not None)
    await end(keeper)
    await child.stop(10)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_steady_life() -> None:
    pauses = RestartPauses(first=1, longest=5, steady=60)
    found = [pauses.after(None, 0)]
    for lived in (0, 0, 0, 59.9, 60, 0):
        found.append(pauses.after(found[-1], lived))
    assert found == [1, 2, 4, 5, 5, 1, 2]


def test_the_first_end_of_a_child_is_followed_by_the_shortest_pause() -> None:
    assert RestartPauses(first=1, longest=5, steady=60).after(None, 0) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
async def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from backplane.process.supervisor import ChildProcess\n"
        "async def main():\n"
        "    child = ChildProcess('child', ['sleep', '1000'])\n"
        "    await child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert is_there(child)
    parent.kill()
    await parent.communicate()
    await wait_until(lambda: not is_there(child))


@pytest.mark.parametrize(("extra", "kept"), [(0, False), (1, True)])
async def test_a_log_is_moved_aside_only_when_it_is_longer_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int, kept: bool
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    log = tmp_path / "log"
    log.write_bytes(b"x" * (10 + extra))
    child = await started("true", log=log)
    await child.exited()
    assert (tmp_path / "log.1").exists() == kept


async def test_the_last_words_are_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier start\n")
    child = await started("echo", "this start", log=log)
    await child.exited()
    assert child.last_words().splitlines()[1:] == ["    this start"]


async def test_ctrl_c_in_the_parents_terminal_does_not_reach_a_child() -> None:
    # Whoever starts the tests in the background lets them, and their children, ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = await started(*FOR_EVER)
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.pid is not None
    assert os.getpgid(child.pid) != os.getpgid(0)
    with contextlib.suppress(ProcessLookupError):
        child.send(signal.SIGINT)
    assert await child.exited() == -signal.SIGINT
