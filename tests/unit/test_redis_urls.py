"""What REDIS_URL and its companions may say, and what is refused before anything is connected."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ResponseError

from backplane.errors import InvalidInput
from backplane.process.log import complaint as complaint_of
from backplane.redis.client import RedisAccess, RedisClients
from backplane.redis.servers import error_code, target_of
from backplane.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")

SECRET = "hunter2-correct-horse"


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service"),
    [
        ("redis://one:7000/3", "", [("one", 7000)], ""),
        ("redis://one", "", [("one", 6379)], ""),
        ("redis+sentinel://one,two:7000/agents/3", "sentinel", [("one", 26379), ("two", 7000)], "agents"),
        ("redis+sentinel://[::1]:7000,two/agents", "sentinel", [("::1", 7000), ("two", 26379)], "agents"),
        ("redis+cluster://one,two:7000", "cluster", [("one", 6379), ("two", 7000)], ""),
        ("rediss+cluster://u:p@one:7000/0", "cluster", [("one", 7000)], ""),
    ],
)
def test_a_url_names_hosts_and_service(url: str, kind: str, hosts: list[tuple[str, int]], service: str) -> None:
    target = target_of(url)
    assert (target.kind, list(target.hosts), target.service) == (kind, hosts, service)


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://h", Connection),
        ("rediss://h", SSLConnection),
        ("rediss+sentinel://h/s", SSLConnection),
        ("redis+cluster://h", Connection),
        ("unix:///run/redis.sock", UnixDomainSocketConnection),
    ],
)
def test_the_scheme_says_whether_there_is_tls(url: str, connection: type) -> None:
    assert target_of(url).connection_class is connection


def test_login_database_and_query_are_read_for_several_hosts_too() -> None:
    options = target_of("redis+sentinel://me:p%40ss@one,two/agents/3?client_name=x").options
    assert options == {"username": "me", "password": "p@ss", "db": 3, "client_name": "x"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host",
        "redis+other://host",
        "unix+cluster://host",
        "redis+sentinel://host",
        "redis+sentinel:///agents",
        "redis+cluster://one,,two",
        "redis+cluster://host/3",
        "redis+cluster://host:port",
        f"redis+cluster://:{SECRET}@host:99999999",
    ],
)
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidInput, match="REDIS_URL") as refused:
        RedisClients(url)
    assert SECRET not in refused.value.message


def test_no_text_made_of_an_access_shows_a_password() -> None:
    assert SECRET not in repr(RedisAccess(password=SECRET, sentinel_password=SECRET))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY"),
        ("Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write", "READONLY"),
        ("ERR unknown command", "ERR"),
        ("something READONLY in the middle", "ERR"),
    ],
)
def test_an_error_is_known_by_its_word_also_inside_a_script(said: str, code: str) -> None:
    assert error_code(ResponseError(said)) == code


# --- settings ---


def complaint(**values: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        Settings(**values)
    return complaint_of(refused.value)


@pytest.mark.parametrize("prefix", ["", "agents:", "{}:", "{a}{b}:", "{a", "a}:"])
def test_a_cluster_without_one_hash_tag_is_refused_with_what_to_set(prefix: str) -> None:
    assert "set REDIS_KEY_PREFIX={agents}:" in complaint(redis_url="redis+cluster://host", redis_key_prefix=prefix)


@pytest.mark.parametrize("prefix", ["{agents}:", "live:{agents}:"])
def test_a_cluster_with_one_hash_tag_is_accepted(prefix: str) -> None:
    assert Settings(redis_url="rediss+cluster://host", redis_key_prefix=prefix).redis_key_prefix == prefix


def test_one_server_needs_no_prefix() -> None:
    assert Settings(redis_url="redis://host").redis_key_prefix == ""


@pytest.mark.parametrize("name", ["redis_tls_ca_file", "redis_tls_cert_file", "redis_tls_key_file"])
def test_a_tls_file_without_tls_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    assert name.upper() in complaint(redis_url="redis://host", **{name: str(file)})


def test_a_tls_file_that_is_not_there_is_refused() -> None:
    assert "REDIS_TLS_CA_FILE" in complaint(redis_url="rediss://host", redis_tls_ca_file="/none.pem")


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    said = complaint(redis_url="rediss://host", redis_tls_cert_file=str(file))
    assert "REDIS_TLS_KEY_FILE" in said


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"REDIS_HOST": "h"}, "redis://h:6379/0"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "7000", "REDIS_DB": "2"}, "redis://h:7000/2"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_HOST": "h", "REDIS_URL": "redis://other"}, "redis://other"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "tcp://10.0.0.1:6379"}, "redis://h:6379/0"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, "redis://127.0.0.1:6379/0"),
    ],
)
def test_a_host_may_be_named_instead_of_a_url(
    variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings().redis_url.get_secret_value() == url


def test_a_port_that_is_none_is_refused() -> None:
    assert "REDIS_PORT" in complaint(redis_host="h", redis_port="0")


@pytest.mark.parametrize(("name", "value"), [("api_rate_per_second", -1), ("api_rate_burst", 0)])
def test_a_rate_below_its_least_is_refused(name: str, value: int) -> None:
    assert name.upper() in complaint(**{name: value})
    assert Settings.model_validate({name: value + 1})
