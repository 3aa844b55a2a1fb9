"""Which Redis server is found, and the line by which a person reaches it."""

import sys
from pathlib import Path

import pytest

from agentctl.local import embedded
from agentctl.local.embedded import find_redis_server, run_bounded
from agentctl.local.redis_cli import redis_cli, url_for_redis_cli


def program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder in PATH; the wheel is not there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    return tmp_path


def test_a_valkey_server_alone_is_found_with_its_client(path: Path) -> None:
    server = program(path, "valkey-server", "Valkey server v=8.0.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    program(path, "valkey-cli", "")
    assert (find_redis_server(), redis_cli()) == (server, "valkey-cli")


def test_a_redis_server_goes_before_a_valkey_server_unless_it_is_too_old(path: Path) -> None:
    valkey = program(path, "valkey-server", "Valkey server v=8.0.1")
    redis = program(path, "redis-server", "Redis server v=7.0.15 sha=00000000:0")
    assert find_redis_server() == redis
    program(path, "redis-server", "Redis server v=6.0.16")
    assert find_redis_server() == valkey


def test_none_is_found_where_none_runs(path: Path) -> None:
    (path / "valkey-server").write_text("no program")
    (path / "valkey-server").chmod(0o755)
    assert find_redis_server() is None


@pytest.mark.parametrize(
    ("url", "username", "password", "line"),
    [
        ("redis://:pw@h:1/0", "", "", "redis://default:pw@h:1/0"),
        ("rediss://:pw@h", "", "", "rediss://default:pw@h"),
        ("redis://ada:pw@h", "", "", "redis://ada:pw@h"),
        ("redis://h:1", "", "", "redis://h:1"),
        ("redis://h:1", "", "p@/w", "redis://default:p%40%2Fw@h:1"),
        ("redis://:old@h:1", "ada", "new", "redis://ada:new@h:1"),
        ("redis+sentinel://:pw@a,b/main", "", "", "redis+sentinel://:pw@a,b/main"),
        ("unix://:pw@/run/redis.sock", "", "", "unix://:pw@/run/redis.sock"),
    ],
)
def test_a_password_without_a_user_is_that_of_the_default_user(
    url: str, username: str, password: str, line: str
) -> None:
    assert url_for_redis_cli(url, username, password) == line


def test_a_program_that_hangs_is_ended_in_time() -> None:
    assert run_bounded([sys.executable, "-c", "import time; time.sleep(1000)"], seconds=0.3) == (None, "")
    assert run_bounded([sys.executable, "-c", "print('a'); exit(3)"], seconds=60) == (3, "a\n")
