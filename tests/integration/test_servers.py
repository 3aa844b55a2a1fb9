"""The servers that tests run against really answer, and really go away."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from botocore.exceptions import ClientError
from redis import Redis
from redis.exceptions import ConnectionError

from tests.servers import PostgresServer, RedisServer, S3Server
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("round", [1, 2])
def test_each_test_finds_redis_empty(redis: str, round: int) -> None:
    with Redis.from_url(redis) as client:
        assert client.dbsize() == 0
        client.set("left", round)


ADD_USER = "INSERT INTO users (id, name, tier, created_at) VALUES ('a', 'a', 'free', now())"
ADD_EVENT = "INSERT INTO events (run_id, id, user_id, line) VALUES ('none', 1, 'a', '') RETURNING seq"


@pytest.mark.parametrize("round", [1, 2])
def test_each_test_finds_the_tables_of_postgres_empty(postgres_database: str, round: int) -> None:
    with psycopg.connect(postgres_database.replace("+psycopg", "")) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(ADD_USER)
        assert connection.execute(ADD_EVENT).fetchone() == (1,)


def test_a_database_is_emptied_though_somebody_has_its_tables_locked(
    postgres_server: PostgresServer, postgres_tables: str, postgres_database: str
) -> None:
    url = postgres_database.replace("+psycopg", "")
    with closing(psycopg.connect(url)) as holder:
        holder.execute(ADD_USER)
        holder.commit()
        holder.execute("LOCK TABLE users")
        postgres_server.empty_database(postgres_tables)
        with psycopg.connect(url) as other:
            assert other.execute("SELECT count(*) FROM users").fetchone() == (0,)


def test_the_bucket_takes_a_file_and_gives_it_back(s3_server: S3Server, bucket: str) -> None:
    with closing(s3_server.client()) as client:
        client.put_object(Bucket=bucket, Key="a/b.txt", Body=b"content")
        assert client.get_object(Bucket=bucket, Key="a/b.txt")["Body"].read() == b"content"


def test_the_s3_server_refuses_a_wrong_secret(s3_server: S3Server, bucket: str) -> None:
    with closing(s3_server.client(secret_key="wrong")) as client, pytest.raises(ClientError, match="SignatureDoesNot"):
        client.put_object(Bucket=bucket, Key="a.txt", Body=b"content")


def test_an_own_redis_comes_back_empty_on_the_same_port(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    with Redis.from_url(server.url) as client:
        client.set("key", "value")
        server.kill()
        with pytest.raises(ConnectionError):
            client.get("key")
        server.start()
        assert client.get("key") is None


def test_an_own_redis_that_keeps_its_data_has_it_after_a_kill(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(keeps_data=True)
    with Redis.from_url(server.url) as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert client.get("key") == b"value"


@pytest.mark.slow
def test_an_own_postgres_keeps_its_data_over_a_kill(own_postgres: Callable[[], PostgresServer]) -> None:
    server = own_postgres()
    name = server.create_database()
    server.kill()
    assert not server.answers()
    server.start()
    with psycopg.connect(server.url(name).replace("+psycopg", "")):
        pass


def test_an_own_s3_keeps_its_files_over_a_restart(own_s3: Callable[[], S3Server]) -> None:
    server = own_s3()
    bucket = server.create_bucket()
    server.stop()
    assert not server.answers()
    server.start()
    with closing(server.client()) as client:
        assert [found["Name"] for found in client.list_buckets()["Buckets"]] == [bucket]


@pytest.fixture(params=["redis_server", "postgres_server", "s3_server"])
def kind(request: pytest.FixtureRequest) -> str:
    return type(request.getfixturevalue(request.param)).__name__


@pytest.mark.slow
async def test_a_server_ends_when_its_test_process_is_killed(kind: str, tmp_path: Path) -> None:
    program = (
        f"import pathlib, sys; from tests.servers import {kind}\n"
        f"server = {kind}(pathlib.Path(sys.argv[1])); server.start(); print(server.pid, flush=True); input()"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, tmp_path / "server", cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    server = int(await owner.stdout.readline())
    assert is_running(server)
    owner.kill()
    await owner.communicate()
    await wait_until(lambda: not is_running(server))


def is_running(pid: int) -> bool:
    """Whether the process does anything still; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
