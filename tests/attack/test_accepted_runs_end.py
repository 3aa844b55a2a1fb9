"""Nothing that was accepted waits for ever: Redis loses what it holds, or belongs to somebody else."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from app.explanation import reasons
from app.routes.runs import situation_of
from backplane.domain.events import EventType
from backplane.queue.base import Whereabouts
from backplane.resources import connect
from tests.event_data import data_of
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import ROOT, Platform, environment_of, worker
from tests.servers import RedisServer
from tests.submitted import shell
from worker import reconciler

OTHER_PLATFORM = "their-database"


async def ends_in_order(platform: Platform, run_ids: list[str]) -> None:
    """One worker with one slot carries all out, in this order."""
    async with worker(platform.settings.model_copy(update={"worker_concurrency": 1})):
        ended = [await platform.completed(run_id) for run_id in run_ids]
    started = [run.started_at for run in ended]
    assert started == sorted(started, key=lambda at: at.timestamp() if at else 0.0)


# --- what Redis loses ---


@pytest.mark.parametrize(
    "key",
    [
        "order",
        pytest.param("pending", marks=pytest.mark.slow),
        pytest.param("waiting and order", marks=pytest.mark.slow),
        "everything",
    ],
)
async def test_runs_whose_key_redis_lost_end_in_the_order_in_which_they_were_accepted(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    platform = await start_platform()
    run_ids = [await platform.submit(shell("a", "true")) for _ in range(3)]
    redis, keys = platform.resources.redis.commands, platform.resources.redis.keys
    match key:
        case "order" | "pending":
            await redis.delete(f"{keys.jobs}{key}")
        case "waiting and order":
            await redis.delete(keys.order, f"{keys.jobs}waiting:{platform.user.id}")
        case _:
            await redis.flushall()
    monkeypatch.setattr(reconciler, "PUSH_SECONDS", 0.0)  # none of them is on its way
    await ends_in_order(platform, run_ids)


async def test_a_run_whose_job_redis_lost_ends_though_others_were_quicker(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform()
    run_ids = [await platform.submit(shell("a", "true")) for _ in range(3)]
    await platform.resources.redis.commands.delete(platform.resources.redis.keys.job(run_ids[1]))
    monkeypatch.setattr(reconciler, "PUSH_SECONDS", 0.0)
    async with worker(platform.settings):
        for run_id in run_ids:
            await platform.completed(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_runs_end_though_redis_goes_on_losing_a_part_of_its_keys(
    start_platform: StartPlatform, seed: int
) -> None:
    chance = random.Random(seed)
    platform = await start_platform(user_concurrency_standard=2)
    run_ids = [await platform.submit(shell("a", "true")) for _ in range(8)]
    redis, losing = platform.resources.redis.commands, True

    async def lose() -> None:
        while losing:
            keys = [key async for key in redis.scan_iter("jobs:*")]
            if keys:
                await redis.delete(*chance.sample(keys, max(len(keys) // 4, 1)))
            await asyncio.sleep(chance.uniform(0.05, 0.3))

    thief = asyncio.create_task(lose())
    with structlog.testing.capture_logs() as logged:
        async with worker(platform.settings):
            await asyncio.sleep(4.0)
            losing = False
            await thief
            ended = [await platform.completed(run_id) for run_id in run_ids]
    # A machine so busy that a heartbeat comes too late ends a lease, and the run is carried out anew.
    leases_ended = {line["run"] for line in logged if line["event"] == "run lost: it is queued again"}
    assert {run.id for run in ended if run.generation > 1} <= leases_ended, logged
    for run_id in run_ids:
        await ends_whole_but_for_gaps_that_say_so(platform, run_id)


async def ends_whole_but_for_gaps_that_say_so(platform: Platform, run_id: str) -> None:
    events, seen = await platform.history(run_id), 0
    for event in events:
        if event.id != seen + 1:
            assert event.type is EventType.GAP
            assert (data_of(event)["after"], data_of(event)["before"]) == (seen, event.id)
        seen = event.id
    assert [event.type for event in events].count(EventType.END) == 1
    assert events[-1].type is EventType.END


async def test_explain_says_that_redis_has_lost_a_run_and_who_queues_it_again(start_platform: StartPlatform) -> None:
    platform = await start_platform()
    run_id = await platform.submit(shell("a", "true"))
    queue, keys = platform.resources.queue, platform.resources.redis.keys
    assert await queue.whereabouts(run_id) is Whereabouts.WAITS
    await platform.resources.redis.commands.delete(keys.order)
    assert await queue.whereabouts(run_id) is Whereabouts.LOST
    context: Any = type("ApiContext", (), {"resources": platform.resources, "settings": platform.settings})
    run = await platform.run(run_id)
    assert run.queued_at is not None
    [reason] = reasons(run, await situation_of(context, run), run.queued_at)
    assert reason.code == "lost_in_queue"
    assert "no worker" not in reason.text
    assert "start one" in reason.text
    await queue.renew("worker", 1, [])
    [reason] = reasons(run, await situation_of(context, run), run.queued_at)
    assert "the leading worker compares the two every 0.2 s" in reason.text


# --- whose queue it is ---


def started_with(platform: Platform, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
    """A Python process with these arguments, which must end by itself."""
    settings = platform.settings.model_copy(update=values)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment_of(settings)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


ONLY_THE_API_LOOKS = """
import sys
from standalone import __main__ as standalone

async def wait(settings, stop):
    await stop.wait()

standalone.serve_worker = standalone.serve_controller = wait
sys.exit(standalone.main())
"""
"""Of the three parts, each of which looks whose queue it is, the API is first, and the others are stopped before they
have looked."""
STARTED = {
    "worker": ("-m", "worker"),
    "controller": ("-m", "controller"),
    "standalone": ("-m", "standalone", "--port", "0"),
    "standalone, API first": ("-c", ONLY_THE_API_LOOKS, "--port", "0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", STARTED.values(), ids=STARTED.keys())
async def test_a_process_of_a_second_platform_ends_with_one_sentence_and_takes_no_run(
    start_platform: StartPlatform, arguments: tuple[str, ...]
) -> None:
    platform = await start_platform()
    await platform.resources.queue.open(OTHER_PLATFORM)
    ended = await asyncio.to_thread(started_with, platform, *arguments)
    assert ended.returncode == 1, ended
    assert "Set REDIS_KEY_PREFIX to one that no other platform uses" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


async def test_a_worker_of_a_second_platform_does_not_begin(start_platform: StartPlatform) -> None:
    platform = await start_platform()
    await platform.resources.queue.open(OTHER_PLATFORM)
    with pytest.raises(Exception, match="Set REDIS_KEY_PREFIX"):
        async with worker(platform.settings) as working:
            await working


async def test_two_platforms_with_prefixes_of_their_own_share_a_redis(start_platform: StartPlatform) -> None:
    platform = await start_platform()
    await platform.resources.queue.open(OTHER_PLATFORM)
    apart = platform.settings.model_copy(update={"redis_key_prefix": "ours:"})
    async with worker(apart), connect(apart) as resources:
        mine = Platform(apart, resources, platform.user, platform.scratch)
        await mine.completed(await mine.submit(shell("a", "true")))


# --- eviction ---


@contextmanager
def policy(server: RedisServer, name: str) -> Iterator[None]:
    import redis  # noqa: PLC0415

    with redis.Redis(port=server.port) as client:
        client.config_set("maxmemory-policy", name)
    yield


@pytest.mark.parametrize(("name", "warns"), [("allkeys-lru", True), ("volatile-ttl", True), ("noeviction", False)])
async def test_a_redis_that_may_drop_the_queue_is_reported_at_start(
    start_platform: StartPlatform, own_redis: Callable[..., RedisServer], name: str, warns: bool
) -> None:
    server = own_redis()
    with policy(server, name):
        platform = await start_platform(redis_url=server.url)
        with structlog.testing.capture_logs() as logged:
            await platform.resources.open_queue()
    assert [line["maxmemory_policy"] for line in logged if "maxmemory_policy" in line] == ([name] if warns else [])
