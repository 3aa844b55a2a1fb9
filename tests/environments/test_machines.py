"""The machines that `agentctl up` and `agentctl doctor` meet: homes, folders, locales, time zones and limits, and
servers as distributions pack them. Each row is one fault; in each a run writes a file whose name and content are not
ASCII, and all ends in order.

Elsewhere: a `.env` that is not UTF-8 (tests/unit/test_settings.py), a `bwrap` that hangs and `valkey-server`
(tests/unit/, tests/integration/test_embedded_redis.py), Redis with TLS and an ACL user
(tests/integration/test_redis_connections.py)."""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentctl.local.embedded import free_port
from tests.conftest import started
from tests.e2e.test_agentctl_up import agentctl, up
from tests.servers import PgBouncer, PostgresServer, RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="as Linux has them")]

PROMPT = "# Greet\n\n```sh\nprintf 'grüße, 世界\\n' > 'grüße.txt'\ncat *.txt\n```\n"


@dataclass(frozen=True)
class Machine:
    """`folder`: below the test's own, where the command is given. `variables`: of its environment. `before`: what
    stands before the command."""

    folder: str = "."
    variables: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()


MACHINES = {
    "a home that is not there": Machine(variables={"HOME": "/nonexistent/home"}),
    "a home where nothing can be written": Machine(variables={"HOME": "/proc"}),
    "an empty HOME": Machine(variables={"HOME": ""}),
    "spaces and quotes in the path": Machine(folder='it\'s a "$HOME" & `more`; #1 %41'),
    "a path that is not ASCII": Machine(folder="dossier été/文件/😀"),
    "a path of 300 characters and more": Machine(folder=f"{'x' * 149}/{'y' * 150}"),
    "the locale C": Machine(variables={"LANG": "C", "LC_ALL": "C"}),
    "the locale C, and a Python that takes it for ASCII": Machine(
        variables={"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ),
    "a Turkish locale": Machine(variables={"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8"}),
    "a locale that is not installed": Machine(variables={"LANG": "xx_XX.ISO-8859-1", "LC_ALL": "xx_XX.ISO-8859-1"}),
    "a time zone of +05:45": Machine(variables={"TZ": "Asia/Kathmandu"}),
    "a time zone beyond the date line": Machine(variables={"TZ": "Pacific/Kiritimati"}),
    "a time zone that does not exist": Machine(variables={"TZ": "Nowhere/Land"}),
    "64 open files": Machine(before=("prlimit", "--nofile=64:64")),
}


def lives(folder: Path, machine: Machine) -> None:
    """An `up`, a run in it, the doctor's look at it, and its end."""
    port = free_port()
    variables = {"AGENT_URL": f"http://127.0.0.1:{port}", **machine.variables}
    (folder / "greet.md").write_text(PROMPT, "utf-8")
    with up(folder, port, before=machine.before, **variables) as running:
        ran = agentctl("run", "--json", "greet.md", folder=folder, before=machine.before, **variables)
        said = json.dumps([json.loads(line) for line in ran.stdout.splitlines()], ensure_ascii=False)
        assert (ran.returncode, "grüße, 世界" in said) == (0, True), ran.stdout + ran.stderr
        doctor = agentctl("doctor", "--json", folder=folder, before=machine.before, **variables)
        states = {each["part"]: each["state"] for each in json.loads(doctor.stdout)["findings"]}
        assert states["api"] == "ok", doctor.stdout
        assert running.stop() == 0


def test_up_refuses_a_folder_that_is_too_deep_for_sqlite_and_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["x" * 199] * 4)
    folder.mkdir(parents=True)
    ended = agentctl("up", "--port", str(free_port()), folder=folder)
    assert (ended.returncode != 0, "SQLite takes 504" in ended.stderr, "--data" in ended.stderr) == (True, True, True)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_up_lives_on_a_machine_with(machine: Machine, tmp_path: Path) -> None:
    if machine.before and shutil.which(machine.before[0]) is None:
        pytest.skip(f"needs {machine.before[0]}")
    folder = tmp_path / machine.folder
    folder.mkdir(parents=True, exist_ok=True)
    lives(folder, machine)


def test_up_lives_on_pgbouncer_in_transaction_mode_without_its_setting(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    name = postgres_server.create_database()
    with started(lambda: PgBouncer(tmp_path / "pgbouncer", postgres_server, pool_mode="transaction")) as bouncer:
        lives(tmp_path, Machine(variables={"DATABASE_URL": bouncer.url(name)}))
    postgres_server.drop_database(name)


@pytest.mark.skipif(not Path("/usr/bin/redis-server").exists(), reason="needs the distribution's redis-server")
def test_up_lives_on_the_distribution_s_redis(tmp_path: Path) -> None:
    def distributed() -> RedisServer:
        server = RedisServer(tmp_path / "redis")
        server.program = Path("/usr/bin/redis-server")
        return server

    with started(distributed) as server:
        lives(tmp_path, Machine(variables={"REDIS_URL": server.url}))
