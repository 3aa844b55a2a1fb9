"""RQ in the controller: once a machine, started again when it ends, and never longer there than its controller."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from backplane.errors import InvalidInput
from backplane.redis import keys as redis_keys
from backplane.redis.blocking import blocking_redis
from backplane.redis.client import AS_THE_URL_SAYS
from backplane.settings import Settings
from controller.cron import environment_of
from tests.conftest import started
from tests.contracts.test_queue import key_of
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.integration.test_redis_connections import AGENTS, PREFIX, acl_line
from tests.redis_servers import Watched
from tests.servers import RedisServer
from tests.waiting import wait_until

TICKS = "rq:cron_job:controller.tasks.remove_old_sessions:jobs"
QUICK = {"session_check_seconds": 3600, "lease_seconds": 0.9, "heartbeat_seconds": 0.3}
SOME_SECONDS = 30.0
"""For what starts a Python process or two."""


def rq_kinds(parent: int) -> dict[int, str]:
    """RQ's processes that this process has started: what each is, by its pid."""
    listings = [listing.read_text() for listing in Path(f"/proc/{parent}/task").glob("*/children")]
    kinds = {int(pid): rq_kind(int(pid)) for listing in listings for pid in listing.split()}
    return {pid: kind for pid, kind in kinds.items() if kind}


def rq_processes(parent: int) -> dict[str, int]:
    """Their pids by kind."""
    return {kind: pid for pid, kind in rq_kinds(parent).items()}


def argv_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def rq_kind(pid: int) -> str:
    argv = argv_of(pid)
    return argv[argv.index("controller.rq_processes") + 1] if "controller.rq_processes" in argv else ""


def ticks(server: RedisServer) -> int:
    with redis.Redis(port=server.port) as client:
        return int(client.zcard(TICKS))


def done(server: RedisServer) -> int:
    """Tasks that were carried out and are remembered."""
    with redis.Redis(port=server.port) as client:
        return sum(1 for _ in client.scan_iter("rq:results:*"))


async def both(parent: int) -> dict[str, int]:
    def look() -> dict[str, int] | None:
        found = rq_processes(parent)
        return found if len(found) == 2 else None

    found = await wait_until(look, SOME_SECONDS, what="RQ's scheduler and worker")
    assert found
    return found


@contextmanager
def controller_process(platform: Platform) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m controller`, which is killed at the end where it still runs."""
    argv = [sys.executable, "-m", "controller"]
    with subprocess.Popen(argv, env=environment_of(platform.settings)) as process:
        yield process
        process.kill()


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no sweep looks at what others have left on this machine."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
async def with_redis(start_platform: StartPlatform, server: RedisServer) -> Platform:
    return await start_platform(redis_url=server.url, **QUICK)


async def test_a_task_is_queued_and_carried_out(
    with_redis: Platform, controllers: Controllers, server: RedisServer
) -> None:
    controllers.start(with_redis.settings)
    await wait_until(lambda: done(server) == 1, SOME_SECONDS)
    assert ticks(server) == 1


@pytest.mark.slow
async def test_two_controllers_tick_once(with_redis: Platform, controllers: Controllers, server: RedisServer) -> None:
    controllers.start(with_redis.settings)
    second = controllers.start(with_redis.settings)
    await wait_until(lambda: done(server) == 1, SOME_SECONDS)
    # The one that has no lease has no process either, so there are two and not four.
    assert sorted(rq_kinds(os.getpid()).values()) == ["scheduler", "worker"]
    # Before one is stopped: where it is the one with the lease, the other begins with a tick of its own.
    assert ticks(server) == 1
    controllers.stop(second)
    await second


@pytest.mark.slow
async def test_the_other_controller_takes_over_when_one_is_stopped(
    with_redis: Platform, controllers: Controllers
) -> None:
    with controller_process(with_redis) as first:
        await both(first.pid)
        controllers.start(with_redis.settings)
        first.send_signal(signal.SIGTERM)
        await both(os.getpid())
        assert await asyncio.to_thread(first.wait, SOME_SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scheduler", "worker"])
async def test_a_process_of_rq_that_is_killed_comes_back(
    with_redis: Platform, controllers: Controllers, kind: str
) -> None:
    controllers.start(with_redis.settings)
    before = await both(os.getpid())
    os.kill(before[kind], signal.SIGKILL)
    await wait_until(lambda: rq_processes(os.getpid()).get(kind, before[kind]) != before[kind], SOME_SECONDS)


@pytest.mark.slow
async def test_rq_works_again_after_a_restart_of_redis(
    start_platform: StartPlatform, controllers: Controllers, server: RedisServer
) -> None:
    platform = await start_platform(**{**QUICK, "redis_url": server.url, "session_check_seconds": 1})
    controllers.start(platform.settings)
    await wait_until(lambda: done(server) > 0, SOME_SECONDS)
    server.kill()
    await wait_until(lambda: not rq_processes(os.getpid()), SOME_SECONDS, what="the end of RQ without Redis")
    server.start()
    await wait_until(lambda: done(server) > 0, SOME_SECONDS, what="a task in the Redis that lost everything")


@pytest.mark.slow
async def test_nothing_outlives_a_controller_that_is_killed(with_redis: Platform) -> None:
    with controller_process(with_redis) as controller:
        children = await both(controller.pid)
        controller.kill()
        controller.wait()
        await wait_until(lambda: not any(map(rq_kind, children.values())))


async def test_a_controller_that_is_asked_to_end_ends_its_processes_and_gives_up_its_lease(
    with_redis: Platform, controllers: Controllers, server: RedisServer
) -> None:
    task = controllers.start(with_redis.settings)
    await both(os.getpid())
    controllers.stop(task)
    await task
    assert rq_processes(os.getpid()) == {}
    with redis.Redis(port=server.port) as client:
        assert [*client.scan_iter("controller:cron:*")] == []


@pytest.mark.slow
async def test_no_password_is_in_the_arguments_of_a_process(
    start_platform: StartPlatform, controllers: Controllers, server: RedisServer
) -> None:
    with redis.Redis(port=server.port) as client:
        client.acl_setuser("agents", enabled=True, passwords=["+open-sesame"], keys=["*"], commands=["+@all"])
    settings = {"redis_url": server.url, "redis_username": "agents", "redis_password": "open-sesame", **QUICK}
    platform = await start_platform(**settings)
    controllers.start(platform.settings)
    await wait_until(lambda: done(server) == 1, SOME_SECONDS)
    assert not any("open-sesame" in argument for pid in rq_processes(os.getpid()).values() for argument in argv_of(pid))


@pytest.mark.slow
async def test_the_documented_user_may_do_what_rq_needs(
    start_platform: StartPlatform, controllers: Controllers, server: RedisServer
) -> None:
    with redis.Redis(port=server.port) as client:
        client.execute_command(*acl_line())
    login = {"redis_username": AGENTS.username, "redis_password": AGENTS.password, "redis_key_prefix": PREFIX}
    platform = await start_platform(redis_url=server.url, **login, **QUICK)
    controllers.start(platform.settings)
    await wait_until(lambda: done(server) == 1, SOME_SECONDS)


@pytest.mark.slow
async def test_rq_finds_its_server_by_a_sentinel(
    start_platform: StartPlatform, controllers: Controllers, tmp_path: Path
) -> None:
    with started(lambda: Watched(tmp_path)) as watched:
        platform = await start_platform(redis_url=watched.url, **{**QUICK, "session_check_seconds": 1})
        controllers.start(platform.settings)
        await wait_until(lambda: done(watched.master) > 0, SOME_SECONDS)
        watched.master.kill()
        await wait_until(lambda: watched.replica.role() == "master" and done(watched.replica) > 0, SOME_SECONDS)
        before = ticks(watched.replica)
        await wait_until(lambda: ticks(watched.replica) > before, SOME_SECONDS)


@pytest.mark.slow
async def test_every_key_of_rq_is_declared_with_its_lifetime(
    with_redis: Platform, controllers: Controllers, server: RedisServer
) -> None:
    controllers.start(with_redis.settings)
    await wait_until(lambda: done(server) == 1, SOME_SECONDS)
    with redis.Redis(port=server.port, decode_responses=True) as client:
        for name in client.scan_iter():
            entry = key_of(name)
            assert str(client.type(name)) == {"sorted set": "zset"}.get(entry.type, entry.type), name
            assert (client.ttl(name) == -1) == entry.lifetime.startswith("permanent"), name


@pytest.mark.slow
async def test_a_queue_of_a_machine_that_is_gone_is_forgotten(
    with_redis: Platform, controllers: Controllers, server: RedisServer
) -> None:
    with redis.Redis(port=server.port) as client:
        client.sadd("rq:queues", "rq:queue:controller-gone", "rq:queue:another-program")
        client.zadd("rq:finished:controller-gone", {"task": 1})
        controllers.start(with_redis.settings)
        await wait_until(lambda: done(server) == 1, SOME_SECONDS)
        assert b"rq:queue:another-program" in client.smembers("rq:queues")
        assert b"rq:queue:controller-gone" not in client.smembers("rq:queues")
        assert not client.exists("rq:finished:controller-gone")


async def test_on_a_cluster_the_work_is_done_without_rq(
    start_platform: StartPlatform, controllers: Controllers, tmp_path: Path
) -> None:
    url = "redis+cluster://127.0.0.1:1"
    platform = await start_platform(redis_url=url, redis_key_prefix="{agents}:", session_max_seconds=1, **QUICK)
    folder = tmp_path / "agent-worker-left"
    folder.mkdir()
    os.utime(folder, (1, 1))
    controllers.start(platform.settings)
    await wait_until(lambda: not folder.exists())
    assert rq_processes(os.getpid()) == {}


def test_rq_is_not_given_a_cluster() -> None:
    with pytest.raises(InvalidInput, match="Cluster"):
        blocking_redis("redis+cluster://127.0.0.1:1", AS_THE_URL_SAYS)


def test_settings_reach_a_process_as_they_are(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "redis_password": "a b\"c'$d",
        "workspace_dir": tmp_path / "x",
        "s3_virtual_host": True,
        "resource_concurrency": {"gpu": 2},
        "sandbox_pull_secrets": ["one", "two"],
        "session_max_seconds": 2.5,
    }
    settings = Settings.model_validate(given)
    environment = environment_of(settings, {"Redis_Password": "another", "HOME": "/"})
    assert "Redis_Password" not in environment
    told = subprocess.run(
        [sys.executable, "-c", "from backplane.settings import Settings; print(Settings().model_dump_json())"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert told.stdout.strip() == settings.model_dump_json()
    assert environment["REDIS_PASSWORD"] == given["redis_password"]
    assert environment["HOME"] == "/"


def test_the_name_of_a_machines_queue_tells_platforms_apart() -> None:
    assert redis_keys.Keys("{a}:").controller_queue("host") != redis_keys.Keys("{b}:").controller_queue("host")
