"""The redis-server that `agentctl up` owns: its password, its data, and who may end it."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from agentctl.local import embedded
from agentctl.local.embedded import SOCKET_PATH_BYTES, EmbeddedRedis, find_redis_server, redis_version
from backplane.errors import Conflict, Unavailable
from backplane.process.supervisor import dies_with_parent
from tests.conftest import started
from tests.servers import RedisServer
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def redis_program(redis_server: RedisServer) -> None:
    """Without a redis-server there is nothing to embed: skipped as every test that needs one is."""


@pytest.mark.slow
async def test_only_the_password_opens_it_and_only_its_user_can_read_the_password(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "redis") as server:
        with Redis.from_url(server.url) as client:
            assert client.ping()
        with Redis(unix_socket_path=str(server.socket)) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "redis" / "redis.conf").stat().st_mode) == 0o600


async def test_its_data_is_there_for_the_next_owner(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            client.set("key", "value")
    async with EmbeddedRedis(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"


async def test_after_a_crash_it_starts_again_under_the_same_url(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        url, pid = server.url, server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await server.exited() == -signal.SIGKILL
        await server.start()
        assert server.url == url
        with Redis.from_url(url) as client:
            assert client.ping()


async def test_a_second_owner_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        with pytest.raises(Conflict, match="Another process"):
            async with EmbeddedRedis(tmp_path):
                pass
        with Redis.from_url(server.url) as client:
            assert client.ping()


async def test_a_server_that_outlived_its_owner_is_ended_and_its_data_kept(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path):
        pass
    leftover = await asyncio.create_subprocess_exec(
        str(find_redis_server()), "redis.conf", cwd=tmp_path, stdout=asyncio.subprocess.DEVNULL
    )
    settings = dict(line.split(" ", 1) for line in (tmp_path / "redis.conf").read_text().splitlines())
    never, path = Retry(NoBackoff(), 0), settings["unixsocket"].strip('"')
    with Redis(unix_socket_path=path, password=settings["requirepass"], retry=never) as client:
        await wait_until(lambda: answers(client), what="the leftover server to answer")
        client.set("key", "value")
    async with EmbeddedRedis(tmp_path) as server:
        assert await leftover.wait() == 0
        with Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"


async def test_another_server_on_the_remembered_port_is_left_alone(tmp_path: Path) -> None:
    with started(lambda: RedisServer(tmp_path / "stranger")) as stranger:
        (tmp_path / "redis").mkdir()
        (tmp_path / "redis" / "redis.conf").write_text(f"port {stranger.port}\nrequirepass not-its-password\n")
        async with EmbeddedRedis(tmp_path / "redis"):
            assert stranger.answers()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends the leftover")
async def test_it_ends_with_an_owner_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys; from agentctl.local.embedded import EmbeddedRedis\n"
        "async def main():\n"
        "    async with EmbeddedRedis(pathlib.Path(sys.argv[1])) as server:\n"
        "        print(server.url, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, tmp_path, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    url = (await owner.stdout.readline()).decode().strip()
    with Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()
        owner.kill()
        await owner.communicate()
        await wait_until(lambda: not answers(client), what="the server to end with its owner")


async def test_a_program_whose_parent_is_gone_before_it_starts_does_not_run(tmp_path: Path) -> None:
    wrapped = dies_with_parent(["touch", str(tmp_path / "ran")])
    # A shell between this process and the program: not the parent that the wrapper was made for.
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", '"$@"; exit 0', "sh", *wrapped, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert b"is gone" in said
    assert not (tmp_path / "ran").exists()


async def test_without_a_server_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="apt install redis-server"):
        async with EmbeddedRedis(tmp_path / "redis"):
            pass


async def test_a_server_that_cannot_start_is_reported_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "redis.sock").mkdir()
    with pytest.raises(Unavailable, match=r"(?i)unix socket"):
        async with EmbeddedRedis(tmp_path):
            pass


async def test_it_listens_on_no_port(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            assert client.config_get("port") == {"port": "0"}


@pytest.mark.parametrize("name", ["with space", 'with "quotes" and \\', "ünïcode", "per%cent?and#more"])
async def test_its_folder_may_have_any_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as short:  # a path of a socket has a limit
        folder = Path(short) / name
        async with EmbeddedRedis(folder) as server:
            assert server.socket == folder / "redis.sock"
            with Redis.from_url(server.url) as client:
                assert client.ping()


@pytest.mark.parametrize(("length", "is_moved"), [(SOCKET_PATH_BYTES, False), (SOCKET_PATH_BYTES + 1, True)])
async def test_a_path_that_is_too_long_for_a_socket_is_replaced_by_a_short_one_of_its_users(
    tmp_path: Path, length: int, is_moved: bool
) -> None:
    rest = length - len(os.fsencode(tmp_path)) - len("//redis.sock")
    async with EmbeddedRedis(tmp_path / ("x" * rest)) as server:
        assert (server.socket.parent != tmp_path / ("x" * rest)) is is_moved
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
        with Redis.from_url(server.url) as client:
            assert client.ping()
    assert server.socket.parent.exists() is not is_moved


@pytest.mark.parametrize(
    ("said", "version"), [("Redis server v=6.0.16 sha=00", (6, 0)), ("Redis server v=7.4.1", (7, 4)), ("nothing", None)]
)
def test_a_program_is_known_by_the_version_it_says(tmp_path: Path, said: str, version: tuple[int, int] | None) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    assert redis_version(program) == version


def test_a_redis_server_in_path_that_does_not_run_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redis-server").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_redis_server() != tmp_path / "redis-server"


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
