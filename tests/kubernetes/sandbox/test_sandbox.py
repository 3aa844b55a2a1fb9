"""What the Kubernetes sandbox does beside the contract of all sandboxes (tests/contracts/sandbox)."""

import asyncio
import contextlib
import os
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backplane.domain import sandbox_labels
from backplane.errors import Superseded, Unavailable
from tests.kubernetes.sandbox.workers import MIB, Worker, a_bad_network, a_worker, new_call
from tests.waiting import wait_until
from worker.sandbox.base import Ending, SandboxImageNotFound
from worker.sandbox.kubernetes.jobs import FoundJob
from worker.sandbox.kubernetes.sandbox import KubernetesSandbox

pytestmark = pytest.mark.kubernetes

COUNT = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.005; done"
COUNTED = "".join(f"line {number}\n" for number in range(1, 401))
SAYS_WHEN_IT_BEGAN = "date +%s.%N; echo on; while [ ! -e /tmp/go ]; do sleep 0.05; done"


async def jobs_of(sandbox: KubernetesSandbox, run_id: str) -> list[FoundJob]:
    return await sandbox.jobs.find({sandbox_labels.RUN: run_id})


def _has_said(worker: Worker, count: int) -> bool:
    return len(worker.said) > count


# --- the stream breaks ---


async def test_output_is_whole_and_in_order_however_often_the_stream_is_cut(
    namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    async with (
        a_bad_network(kubeconfig, tmp_path) as (proxy, through),
        a_worker(namespace, tmp_path / "files", kubeconfig=through) as worker,
    ):
        running = worker.begin(new_call(), "sh", "-c", COUNT)
        for share in (50, 1000, 2000, 3000):
            await wait_until(partial(_has_said, worker, share), 60)
            proxy.cut()
        outcome = await running
        assert (outcome.exit_code, worker.text) == (0, COUNTED)


async def test_files_arrive_whole_however_often_the_stream_is_cut(
    namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    async with (
        a_bad_network(kubeconfig, tmp_path) as (proxy, through),
        a_worker(namespace, tmp_path / "files", kubeconfig=through) as worker,
    ):
        (worker.folder / "big").write_bytes(bytes(range(256)) * 4096 * 20)
        for number in range(300):
            (worker.folder / f"small-{number}").write_text(str(number))
        running = worker.begin(new_call(), "sh", "-c", "mkdir out; for f in *[0-9] big; do cat $f > out/$f; done")

        async def cut_now_and_then() -> None:
            for _ in range(8):
                await asyncio.sleep(0.3)  # a fault at a moment of no meaning, not a wait for something
                proxy.cut()

        cutting = asyncio.create_task(cut_now_and_then())
        assert (await running).exit_code == 0
        await cutting
        assert (worker.folder / "out/big").read_bytes() == (worker.folder / "big").read_bytes()
        assert len(list((worker.folder / "out").iterdir())) == 301
        assert (worker.folder / "out/small-17").read_text() == "17"


async def test_a_call_that_found_the_api_server_away_goes_on_where_it_was(
    namespace: str, kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.kubernetes.session.LOST_SECONDS", 0.5)
    async with (
        a_bad_network(kubeconfig, tmp_path) as (proxy, through),
        a_worker(namespace, tmp_path / "files", kubeconfig=through) as worker,
    ):
        call, script = new_call(), f"{COUNT}; echo end"
        running = worker.begin(call, "sh", "-c", script)
        await wait_until(lambda: len(worker.said) > 50, 60)
        proxy.refuses = True
        proxy.cut()
        with pytest.raises(Unavailable) as away:
            await running
        assert away.value.part == "sandbox"
        proxy.refuses = False
        worker.said.clear()
        outcome = await worker.run(call, "sh", "-c", script)
        assert (outcome.exit_code, worker.text) == (0, COUNTED + "end\n")
        assert worker.starts == ["cold", "adopted"]


# --- the worker is lost ---


async def test_a_worker_that_drains_lets_the_next_one_take_over_its_command(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    script = "date +%s.%N; echo on; n=0; while [ $n -lt 60 ]; do n=$((n+1)); sleep 0.1; done; echo done > result"
    async with (
        a_worker(namespace, tmp_path / "first") as first,
        a_worker(namespace, tmp_path / "second") as second,
    ):
        running = first.begin(call, "sh", "-c", script)
        await wait_until(lambda: b"on\n" in first.said, 60)
        first.sandbox.detach()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        outcome = await second.run(new_call(run_id=call.run_id, generation=2, tries=2), "sh", "-c", script)
        assert (outcome.exit_code, second.starts) == (0, ["adopted"])
        assert second.said == first.said  # began once: the time in it is the same
        assert (second.folder / "result").read_text() == "done\n"


async def test_a_worker_that_goes_on_too_late_takes_nothing_from_the_one_that_has_its_command(
    namespace: str, tmp_path: Path
) -> None:
    call = new_call()
    script = "echo on; n=0; while [ $n -lt 40 ]; do n=$((n+1)); sleep 0.1; done"
    async with (
        a_worker(namespace, tmp_path / "first") as first,
        a_worker(namespace, tmp_path / "second") as second,
    ):
        stale = first.begin(call, "sh", "-c", script)
        await wait_until(lambda: first.said == b"on\n", 60)
        taken_over = second.begin(new_call(run_id=call.run_id, generation=2, tries=2), "sh", "-c", script)
        with pytest.raises(Superseded):
            await stale
        assert (await taken_over).exit_code == 0
        assert second.said == b"on\n"


async def test_the_command_of_a_step_that_does_not_come_again_is_removed_when_the_run_is_released(
    namespace: str, tmp_path: Path
) -> None:
    call = new_call()
    async with (
        a_worker(namespace, tmp_path / "first") as first,
        a_worker(namespace, tmp_path / "second") as second,
    ):
        running = first.begin(call, "sh", "-c", "echo on; sleep 100")
        await wait_until(lambda: first.said == b"on\n", 60)
        first.sandbox.detach()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        next_call = new_call(run_id=call.run_id, step_id="other", generation=2)
        assert (await second.run(next_call, "true")).exit_code == 0
        assert second.starts == ["cold"]
        await second.sandbox.release(call.run_id)
        [job] = await jobs_of(second.sandbox, call.run_id)
        assert job.labels[sandbox_labels.STEP] == "other"


async def test_commands_of_steps_at_once_are_each_taken_over(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    steps = ["a", "b"]
    async with (
        a_worker(namespace, tmp_path / "first") as first,
        a_worker(namespace, tmp_path / "second") as second,
    ):
        script = "echo $0; until [ -e go ]; do sleep 0.1; [ $((n += 1)) -lt 100 ] || exit 0; done"
        running = [first.begin(replace(call, step_id=step), "sh", "-c", script, step) for step in steps]
        await wait_until(lambda: sorted(first.text.split()) == steps, 60)
        first.sandbox.detach()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        again = [
            second.begin(replace(call, step_id=step, generation=2, tries=2), "sh", "-c", script, step) for step in steps
        ]
        outcomes = await asyncio.gather(*again)
        assert [outcome.exit_code for outcome in outcomes] == [0, 0]
        assert second.starts == ["adopted", "adopted"]
        assert sorted(second.text.split()) == steps


# --- cancel, ends, errors ---


async def test_a_cancelled_command_leaves_no_job(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files") as worker:
        running = worker.begin(call, "sh", "-c", "trap '' TERM; echo on; sleep 1000")
        await wait_until(lambda: worker.said == b"on\n", 60)
        [job] = await jobs_of(worker.sandbox, call.run_id)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await worker.sandbox.jobs.deleted(job.name, 20)


async def test_cancelling_while_the_sandbox_starts_leaves_no_job(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files") as worker:
        running = worker.begin(call, "sleep", "1000")
        jobs = await wait_until(lambda: jobs_of(worker.sandbox, call.run_id), 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await worker.sandbox.jobs.deleted(jobs[0].name, 20)


async def test_a_job_that_somebody_deletes_is_an_error_that_may_pass(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files") as worker:
        running = worker.begin(call, "sh", "-c", "echo on; sleep 1000")
        await wait_until(lambda: worker.said == b"on\n", 60)
        [job] = await jobs_of(worker.sandbox, call.run_id)
        await worker.sandbox.jobs.delete(job.name)
        with pytest.raises(Exception, match="was deleted") as refused:
            await running
        assert refused.value.retryable  # type: ignore[attr-defined]


async def test_a_finished_job_stays_for_a_while_with_the_commands_exit_code(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files") as worker:
        assert (await worker.run(call, "sh", "-c", "exit 3")).exit_code == 3
        [job] = await jobs_of(worker.sandbox, call.run_id)
        assert (await worker.sandbox.jobs.ended(job.name)).exit_code == 3


async def test_an_image_that_does_not_exist_is_said_and_not_waited_for(namespace: str, tmp_path: Path) -> None:
    async with a_worker(namespace, tmp_path / "files", image="localhost/Not A Name") as worker:
        with pytest.raises(SandboxImageNotFound, match="SANDBOX_IMAGE"):
            await worker.run(new_call(), "true")


# --- one sandbox for a run, and those started ahead ---


async def test_the_commands_of_a_run_follow_each_other_in_one_job(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files", reuses=True) as worker:
        (worker.folder / "input").write_text("1")
        await worker.run(call, "sh", "-c", "cat input > first; touch /tmp/mark; sleep 1000 &")
        (worker.folder / "input").write_text("2")
        (worker.folder / "first").unlink()
        second = new_call(run_id=call.run_id, step_id="second")
        await worker.run(second, "sh", "-c", "ls; cat input > second; ls /proc | grep -c '^[0-9]'")
        assert worker.starts == ["cold", "reused"]
        # The runner, the pipe of the worker, and the four of this command: nothing is left of the first one.
        assert worker.text.split()[:1] == ["input"]
        assert int(worker.text.split()[-1]) <= 6
        assert sorted(file.name for file in worker.folder.iterdir()) == ["input", "second"]
        assert len(await jobs_of(worker.sandbox, call.run_id)) == 1
        await worker.sandbox.release(call.run_id)
        [job] = await jobs_of(worker.sandbox, call.run_id)
        await worker.sandbox.jobs.ended(job.name)


async def test_a_command_in_a_reused_sandbox_gets_no_output_of_the_one_before(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files", reuses=True) as worker:
        for number in range(3):
            worker.said.clear()
            step = new_call(run_id=call.run_id, step_id=str(number))
            outcome = await worker.run(step, "sh", "-c", f"echo {number}; echo more of {number}")
            assert (outcome.exit_code, worker.text) == (0, f"{number}\nmore of {number}\n")
            if number == 1:
                await worker.sandbox.pool.kept[call.run_id][0].disconnect()
        assert worker.starts == ["cold", "reused", "reused"]


async def test_a_reused_sandbox_has_just_the_files_that_the_folder_has(namespace: str, tmp_path: Path) -> None:
    """With their times, modes and links; without what was removed here meanwhile, and without bytecode."""
    call = new_call()
    folder = tmp_path / "files"
    look = "find . -mindepth 1 -printf '%p %m %T@ %l\\n' | sort"
    async with a_worker(namespace, folder, reuses=True) as worker:
        made = (
            "mkdir gone empty becomes; echo 1 > gone/a; echo 1 > becomes/a; ln -s a link; ln -s a other; echo 1 > a; "
            "ln a b; echo 'x = 1' > m.py; python3 -m compileall -q m.py; test -d __pycache__; echo mine > __pycache__/n"
        )
        outcome = await worker.run(call, "sh", "-c", made)
        assert outcome.exit_code == 0, worker.text
        assert [line.partition(" (")[0] for line in outcome.not_kept] == [
            "not kept with the run's files: 1 entry of __pycache__",
            "not kept with the run's files: 2 hard links",
        ]
        assert not (folder / "__pycache__").exists()
        (folder / "gone/a").unlink()
        (folder / "gone").rmdir()
        (folder / "becomes/a").unlink()
        (folder / "becomes").rmdir()
        (folder / "becomes").write_text("a file now")
        (folder / "other").unlink()
        (folder / "b").chmod(0o640)
        os.utime(folder / "b", ns=(5, 5))
        os.utime(folder / "empty", ns=(6, 6))
        here = await asyncio.to_thread(subprocess.check_output, ["sh", "-c", look], cwd=folder, text=True)
        worker.said.clear()
        again = await worker.run(replace(call, step_id="look"), "sh", "-c", look + "; echo 2 >> a; cat b")
        assert again.exit_code == 0
        assert worker.text == here + "1\n"
        assert worker.starts == ["cold", "reused"]


async def test_a_step_that_is_tried_again_in_the_same_sandbox_runs_again(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files", reuses=True) as worker:
        for tries in (1, 2):
            worker.said.clear()
            outcome = await worker.run(replace(call, tries=tries), "sh", "-c", "echo x >> marks; wc -l < marks")
            assert (outcome.exit_code, worker.text.strip()) == (0, str(tries))
        assert worker.starts == ["cold", "reused"]


async def test_a_sandbox_that_is_lost_between_two_commands_is_replaced(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files", reuses=True) as worker:
        await worker.run(call, "touch", "kept")
        [job] = await jobs_of(worker.sandbox, call.run_id)
        await worker.sandbox.jobs.delete(job.name)
        assert await worker.sandbox.jobs.deleted(job.name, 30)
        outcome = await worker.run(new_call(run_id=call.run_id, step_id="second"), "cat", "kept")
        assert (outcome.exit_code, worker.starts) == (0, ["cold", "cold"])


async def test_after_a_command_that_failed_the_run_gets_a_new_sandbox(namespace: str, tmp_path: Path) -> None:
    call = new_call()
    async with a_worker(namespace, tmp_path / "files", reuses=True) as worker:
        await worker.run(call, "sh", "-c", "touch left; exit 1")
        await worker.run(new_call(run_id=call.run_id, step_id="second"), "ls")
        assert (worker.starts, worker.text) == (["cold", "cold"], "")


async def test_a_sandbox_started_ahead_is_used_by_one_run_alone(namespace: str, tmp_path: Path) -> None:
    async with a_worker(namespace, tmp_path / "files", pool_size=1) as worker:
        used = []
        for user in ("one", "two"):
            await wait_until(lambda: worker.ready and worker.ready[-1] == 1, 60)
            call = new_call(user_id=user)
            await worker.run(call, "sh", "-c", "ls /tmp; touch /tmp/mark")
            [job] = await jobs_of(worker.sandbox, call.run_id)
            assert sandbox_labels.POOL not in job.labels
            assert job.labels[sandbox_labels.USER] == user
            used.append(job.name)
            worker.ready.clear()
        assert worker.starts == ["warm", "warm"]
        assert len(set(used)) == 2
        assert worker.text == ""


async def test_a_sandbox_that_died_while_it_waited_is_replaced(namespace: str, tmp_path: Path) -> None:
    async with a_worker(namespace, tmp_path / "files", pool_size=1) as worker:
        await wait_until(lambda: worker.ready and worker.ready[-1] == 1, 60)
        [warm] = await worker.sandbox.jobs.find({sandbox_labels.POOL: "warm"})
        await worker.sandbox.jobs.delete(warm.name)
        assert await worker.sandbox.jobs.deleted(warm.name, 20)
        assert (await worker.run(new_call(), "true")).exit_code == 0


async def test_a_step_with_limits_of_its_own_gets_a_sandbox_with_these(namespace: str, tmp_path: Path) -> None:
    async with a_worker(namespace, tmp_path / "files", pool_size=1) as worker:
        await wait_until(lambda: worker.ready and worker.ready[-1] == 1, 60)
        outcome = await worker.run(new_call(), "python3", "-c", f"len(b'x' * {90 * MIB})", memory_bytes=64 * MIB)
        assert (outcome.ending, worker.starts) == (Ending.MEMORY, ["cold"])


async def test_a_worker_that_ends_leaves_no_sandbox_waiting(namespace: str, tmp_path: Path) -> None:
    async with a_worker(namespace, tmp_path / "files", pool_size=2) as worker:
        await wait_until(lambda: worker.ready and worker.ready[-1] == 2, 60)
        pods = list(worker.sandbox.pool.warm.waiting)
        names = [pod.job for pod in pods]
    async with a_worker(namespace, tmp_path / "files") as other:

        async def all_finished() -> bool:
            found = await other.sandbox.jobs.find({sandbox_labels.POOL: "warm"})
            return all(job.is_finished for job in found if job.name in names)

        await wait_until(all_finished, 60)
