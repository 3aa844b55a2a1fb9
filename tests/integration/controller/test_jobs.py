"""Bulk actions by RQ: its own process, its thread in a process that has other work, and what brings lost ones back."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import redis

from agentctl.local.embedded import free_port
from backplane.background.rq import OLD_TIMER, SCHEDULER_SECONDS, RqQueue
from backplane.background_access import connect_background_queue
from backplane.domain.background_jobs import BackgroundJob, BulkAction, JobStatus, NewJob, RunFilter
from backplane.domain.runs import RunStatus, new_run_id
from backplane.errors import InvalidInput, Unavailable
from backplane.process.tasks import in_thread
from backplane.redis.blocking import blocking_redis
from backplane.redis.client import AS_THE_URL_SAYS
from backplane.redis.keys import Keys
from backplane.resources import connect
from controller.jobs import dispatch
from controller.jobs.dispatch import JobDispatch
from controller.jobs.task import carrying_out
from controller.jobs.worker import work_in_thread
from tests.contracts.test_queue import key_of
from tests.integration.controller.conftest import Platform, StartPlatform
from tests.metrics import Scraped, broken_conventions, scrape
from tests.platform.workers import ROOT, environment_of
from tests.servers import RedisServer
from tests.settings import settings_of
from tests.submitted import new_run
from tests.waiting import wait_until

SOME_SECONDS = 60.0
"""For what starts a Python process or two."""


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture
async def with_redis(start_platform: StartPlatform, server: RedisServer) -> Platform:
    return await start_platform(redis_url=server.url)


@pytest.fixture
def queue(with_redis: Platform) -> Iterator[RqQueue]:
    made = connect_background_queue(with_redis.settings)
    yield made
    made.close()


async def cancelling(platform: Platform, runs: int = 3) -> BackgroundJob:
    for _ in range(runs):
        await platform.store.runs.create(new_run(platform.user), start=True)
    user, wanted = platform.user, RunFilter(statuses=(RunStatus.QUEUED,))
    return await platform.store.background_jobs.create_bulk(
        NewJob(new_run_id(), user.id), BulkAction.CANCEL, wanted, user.id, most_runs=1000, most_jobs=5
    )


async def is_completed(platform: Platform, job: BackgroundJob) -> bool:
    found = await platform.store.background_jobs.get(platform.user.id, job.id, "bulk")
    return found.status is JobStatus.COMPLETED and found.done == job.total


@contextmanager
def jobs_process(platform: Platform) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m controller.jobs`, which is killed at the end where it still runs."""
    environment = {**os.environ, **environment_of(platform.settings), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "controller.jobs"], env=environment, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def jobs_thread(platform: Platform, queue: RqQueue) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=work_in_thread, args=(queue, carrying_out(platform.settings, queue), stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
async def test_the_process_carries_a_bulk_action_out_and_ends_when_it_is_asked_to(
    with_redis: Platform, queue: RqQueue, server: RedisServer
) -> None:
    job = await cancelling(with_redis)
    queue.put(job.id, 0)
    declared_with_their_lifetimes(server)
    with jobs_process(with_redis) as process:
        await wait_until(lambda: is_completed(with_redis, job), SOME_SECONDS)
        # The piece completes the job's row; RQ, which keeps the piece while it is carried out, removes it afterwards.
        await wait_until(lambda: not piece_names(server), SOME_SECONDS)
        declared_with_their_lifetimes(server)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, SOME_SECONDS) == 0


def piece_names(server: RedisServer) -> list[str]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        return list(client.scan_iter("rq:job:*"))


def declared_with_their_lifetimes(server: RedisServer) -> None:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        for name in client.scan_iter("rq:*"):
            entry, kind = key_of(name), str(client.type(name))
            if kind == "none":  # it has just ended
                continue
            assert kind == {"sorted set": "zset"}.get(entry.type, entry.type), name
            assert (client.ttl(name) == -1) == entry.lifetime.startswith("permanent"), name


@pytest.mark.slow
async def test_a_job_whose_process_is_killed_is_carried_out_by_another(
    with_redis: Platform, queue: RqQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, jobs = await cancelling(with_redis), with_redis.store.background_jobs
    killed = await jobs.claim(job.id, seconds=0.5)
    assert killed is not None
    [first, *_] = await jobs.left(killed, 10)
    await jobs.begin(killed, first, seconds=0.5)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    async with connect(with_redis.settings) as resources:
        looking = JobDispatch(resources, queue)
        with jobs_thread(with_redis, queue):
            assert await looking.put_due() == 0
            await wait_until(looking.put_due)
            await wait_until(lambda: is_completed(with_redis, job), SOME_SECONDS)


async def test_a_thread_carries_a_bulk_action_out(with_redis: Platform, queue: RqQueue) -> None:
    job = await cancelling(with_redis)
    queue.put(job.id, 0)
    with jobs_thread(with_redis, queue):
        await wait_until(lambda: is_completed(with_redis, job), SOME_SECONDS)


async def test_what_redis_has_lost_is_put_into_the_queue_again(
    with_redis: Platform, queue: RqQueue, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await cancelling(with_redis)
    queue.put(job.id, 0)
    with redis.Redis(port=server.port) as client:
        client.flushall()
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    async with connect(with_redis.settings) as resources:
        looking = JobDispatch(resources, queue)
        assert [await looking.put_due(), await looking.put_due(), queue.waiting()] == [1, 0, 1]


async def test_what_waits_for_whoever_carries_it_out_is_reported(
    with_redis: Platform, queue: RqQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    reported: list[int] = []
    async with connect(with_redis.settings) as resources:
        looking = JobDispatch(resources, queue, reported.append)
        await looking.put_due()
        job = await cancelling(with_redis)
        await looking.put_due()
        await with_redis.store.background_jobs.stop(with_redis.user.id, job.id)
        await looking.put_due()
    assert reported == [0, 1, 0]


async def test_the_timer_of_earlier_releases_is_forgotten_and_no_other_schedulers_tasks(
    queue: RqQueue, server: RedisServer
) -> None:
    now = time.time()
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.zadd("rq:cron_jobs", {OLD_TIMER: now, "theirs": now})
        client.zadd(f"rq:cron_job:{OLD_TIMER}:jobs", {"a": now})
        client.zadd("rq:cron_job:theirs:jobs", {"b": now})
        client.zadd("rq:cron_schedulers", {"gone": now - SCHEDULER_SECONDS - 60, "alive": now})
        queue.forget_old_timer()
        queue.forget_old_timer()
        assert client.zrange("rq:cron_jobs", 0, -1) == ["theirs"]
        assert client.zrange("rq:cron_schedulers", 0, -1) == ["alive"]
        assert set(client.scan_iter("rq:cron_job:*")) == {"rq:cron_job:theirs:jobs"}


@pytest.mark.slow
async def test_the_process_counts_its_pieces_on_a_port_of_its_own(
    start_platform: StartPlatform, server: RedisServer
) -> None:
    platform = await start_platform(redis_url=server.url, metrics_port=free_port())
    url = f"http://127.0.0.1:{platform.settings.metrics_port}"

    async def pieces(number: int) -> Scraped | None:
        with suppress(httpx.TransportError):
            found = await scrape(url)
            return found if found.value("agent_job_pieces_total", end="ended") == number else None
        return None

    with jobs_process(platform) as process:
        assert await wait_until(lambda: pieces(0), SOME_SECONDS)
        job, queue = await cancelling(platform), connect_background_queue(platform.settings)
        queue.put(job.id, 0)
        queue.close()
        found = await wait_until(lambda: pieces(1), SOME_SECONDS)
        assert found
        assert broken_conventions(found.families) == []
        assert found.value("agent_job_pieces_total", end="killed") == 0
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/health/ready")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, SOME_SECONDS) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a piece with its process")
async def test_a_piece_ends_with_the_process_that_waits_for_it(with_redis: Platform, queue: RqQueue) -> None:
    job = await cancelling(with_redis, 600)
    with jobs_process(with_redis) as process:
        queue.put(job.id, 0)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        piece = int((await wait_until(lambda: children.read_text().split(), SOME_SECONDS))[0])
        process.kill()
        process.wait()
        await wait_until(lambda: has_ended(piece), SOME_SECONDS)
    found = await with_redis.store.background_jobs.get(with_redis.user.id, job.id, "bulk")
    assert found.done < found.total


def has_ended(pid: int) -> bool:
    """Also of one that nobody waits for in this container."""
    try:
        return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_no_more_is_put_into_a_queue_that_nobody_works_off(
    with_redis: Platform, queue: RqQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await cancelling(with_redis, 1)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "QUEUE_MOST", 1)
    async with connect(with_redis.settings) as resources:
        assert [await JobDispatch(resources, queue).put_due() for _ in range(2)] == [1, 0]
    assert queue.waiting() == 1


async def test_a_queue_without_redis_says_that_it_is_unavailable(start_platform: StartPlatform) -> None:
    platform = await start_platform(redis_url="redis://127.0.0.1:1")
    queue = connect_background_queue(platform.settings)
    for call in (queue.waiting, lambda: queue.put("x", 0), queue.forget_old_timer):
        with pytest.raises(Unavailable):
            await in_thread(call)


async def test_nothing_but_the_one_task_is_ever_called(
    with_redis: Platform, queue: RqQueue, server: RedisServer, tmp_path: os.PathLike[str]
) -> None:
    """Whoever can write to Redis cannot name a function for this process to call, nor have anything unpickled."""
    mark = f"{tmp_path}/called"
    called = list[str]()
    queue.queue.enqueue_call("os.mkdir", args=[mark], on_success=None, job_id="hostile")
    with redis.Redis(port=server.port) as client:
        client.hset("rq:job:hostile", "success_callback_name", "os.abort")
    stop = threading.Event()

    def task(job_id: str) -> None:
        called.append(job_id)
        stop.set()

    working = threading.Thread(target=work_in_thread, args=(queue, task, stop))
    working.start()
    try:
        await wait_until(stop.is_set)
    finally:
        stop.set()
        await asyncio.to_thread(working.join)
    assert (called, os.path.exists(mark)) == ([mark], False)


def test_jobs_have_a_redis_of_their_own_where_one_is_named() -> None:
    settings = settings_of(
        redis_url="redis+cluster://a:1",
        redis_key_prefix="{a}:",
        jobs_redis_url="redis://:secret@b:2/3",
        redis_password="x",
    )
    queue = connect_background_queue(settings)
    options = queue.queue.connection.connection_pool.connection_kwargs
    assert [options[name] for name in ("host", "port", "db", "password")] == ["b", 2, 3, "secret"]
    with pytest.raises(InvalidInput, match="JOBS_REDIS_URL"):
        blocking_redis("redis+cluster://127.0.0.1:1", AS_THE_URL_SAYS)


def test_the_name_of_the_queue_distinguishes_platforms() -> None:
    assert Keys("{a}:").background_queue != Keys("{b}:").background_queue
