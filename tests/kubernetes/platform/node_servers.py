"""Redis, PostgreSQL and an S3 server on the cluster's node, where its pods reach them: bound to the node's own address
and to nothing else, each behind a password.

A one-node cluster for tests has no kube-proxy, so pods cannot reach the API server by its Service; `ApiServerProxy`
passes connections on to it, with their TLS as it is.
"""

import socket
import subprocess
import sys
from pathlib import Path
from secrets import token_hex

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backplane.process.supervisor import dies_with_parent
from tests.servers import PostgresServer, RedisServer, S3Server, Server, as_nobody


class NodeRedis(RedisServer):
    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(folder)
        self.host, self.password = host, token_hex(16)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}/0"

    def command(self) -> list[str]:
        options = ["--bind", self.host, "--port", str(self.port), "--requirepass", self.password, "--save", ""]
        return dies_with_parent([str(self.program), *options, "--dir", str(self.folder)])

    def client(self) -> redis.Redis:
        return redis.Redis(
            host=self.host, port=self.port, password=self.password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class NodePostgres(PostgresServer):
    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(folder)
        self.host, self.password = host, token_hex(16)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.password}@{self.host}:{self.port}/{database}"

    def command(self) -> list[str]:
        data, password = self.folder / "data", self.folder / "password"
        if not data.exists():
            password.write_text(self.password)
            initdb = [self.programs / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--no-sync"]
            initdb += ["--locale=C", "--encoding=UTF8", f"--pwfile={password}"]
            subprocess.run([*as_nobody(), *map(str, initdb)], check=True, stdout=subprocess.DEVNULL)
            (data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 400,
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return as_nobody() + dies_with_parent([str(self.programs / "postgres"), "-D", str(data), *options], self.ending)

    def _connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url(database), connect_timeout=2, autocommit=True)


class NodeS3(S3Server):
    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(folder)
        self.host = host
        self.access_key, self.secret_key = token_hex(8), token_hex(16)

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        options = [
            f"--addr={self.host}:{self.port}",
            f"--auth-key={self.access_key},{self.secret_key}",
            f"--config={self.folder.with_suffix('.conf')}",
            f"--cache-dir={self.folder.with_suffix('.cache')}",
        ]
        return dies_with_parent([str(self.program), "serve", "s3", *options, str(self.folder)])

    def answers(self) -> bool:
        return answers(self.host, self.port)


class ApiServerProxy(Server):
    """`target`: host and port of the API server as this machine reaches it."""

    def __init__(self, folder: Path, host: str, target: tuple[str, int]) -> None:
        super().__init__(folder)
        self.host, self.target = host, target

    def command(self) -> list[str]:
        addresses = [self.host, str(self.port), self.target[0], str(self.target[1])]
        return dies_with_parent([sys.executable, str(Path(__file__).with_name("tcp_proxy.py")), *addresses])

    def answers(self) -> bool:
        return answers(self.host, self.port)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
