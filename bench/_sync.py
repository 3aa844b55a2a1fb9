"""The contestants of `bench.workspace`: the worker's checkout and, as a user would start them, rclone and s5cmd.

Each has a prefix in one bucket and two folders, as if on two machines: `here` is brought up, `there` is brought down.
The checkout works in this process, as in a worker; the peers are a process a sync, and its start is in their time.
Their options are the fastest of those tried on this server that still find every change.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from backplane.workspace.quota import Quota
from backplane.workspace.s3 import S3WorkspaceStore
from bench._contest import PEERS
from tests.servers import S3Server, find_rclone
from worker.files.checkout import Checkout

ATTEMPTS = 3
"""The server answers a 500 now and then, which s5cmd does not repeat. All attempts are in the time."""

QUOTA = Quota(max_bytes=10**10, max_files=100_000, max_depth=64)


class PeerFailed(Exception):
    """A program did not come to its end, however often it was tried."""


class Syncer(ABC):
    """`name` is also the prefix in the bucket. Folders exist from the start and are removed with `folder`."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.here = folder / "here"
        self.there = folder / "there"
        for made in (self.here, self.there):
            made.mkdir(parents=True)

    @abstractmethod
    def up(self) -> float:
        """Make the bucket equal to `here`; the seconds it took."""

    @abstractmethod
    def down(self) -> float:
        """Make `there` equal to the bucket; the seconds it took."""

    @abstractmethod
    def close(self) -> None: ...


class Ours(Syncer):
    name = "ours"

    def __init__(self, folder: Path, server: S3Server, bucket: str, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._store = S3WorkspaceStore(
            bucket,
            endpoint=server.endpoint,
            region=server.region,
            access_key=server.access_key,
            secret_key=server.secret_key,
        )
        workspace = self._store.workspace(self.name, "run")
        self._here = Checkout(workspace, QUOTA, folder / "ours-here")
        self._there = Checkout(workspace, QUOTA, folder / "ours-there")
        runner.run(self._here.pull())
        self.here, self.there = self._here.folder, self._there.folder

    def up(self) -> float:
        return self._runner.run(self._up())

    def down(self) -> float:
        return self._runner.run(self._down())

    def close(self) -> None:
        self._runner.run(self._store.close())

    async def _up(self) -> float:
        began = time.perf_counter()
        await self._here.push(await self._here.changes())
        return time.perf_counter() - began

    async def _down(self) -> float:
        began = time.perf_counter()
        await self._there.pull()
        return time.perf_counter() - began


class Program(Syncer):
    """A program that makes a target equal to a source."""

    def __init__(self, folder: Path, environment: dict[str, str], to: str) -> None:
        super().__init__(folder)
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
        self._to = to

    @abstractmethod
    def command(self, source: str, target: str) -> list[str]: ...

    def up(self) -> float:
        return self._timed(self.command(f"{self.here}/", self._to))

    def down(self) -> float:
        return self._timed(self.command(self._to, f"{self.there}/"))

    def close(self) -> None:
        """Nothing is left open."""

    def _timed(self, command: list[str]) -> float:
        began = time.perf_counter()
        for attempt in range(ATTEMPTS):
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
            if done.returncode == 0:
                return time.perf_counter() - began
            print(f"{self.name}, attempt {attempt + 1}: {done.stderr[-500:]}", file=sys.stderr)
        raise PeerFailed(f"{self.name} ended with {done.returncode}")


class Rclone(Program):
    name = "rclone"

    def __init__(self, folder: Path, server: S3Server, bucket: str) -> None:
        environment = {
            "RCLONE_CONFIG": str(folder / "none.conf"),
            "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
            "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint,
            "RCLONE_CONFIG_BENCH_REGION": server.region,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": server.access_key,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": server.secret_key,
        }
        super().__init__(folder, environment, f"bench:{bucket}/{self.name}")

    def command(self, source: str, target: str) -> list[str]:
        # By content (etags in the listing): times would cost a request a file, sizes would overlook changes.
        compared = ["--checksum", "--fast-list"]
        parallel = ["--transfers=32", "--checkers=32", "--s3-upload-concurrency=8", "--buffer-size=0"]
        spared = ["--s3-no-check-bucket", "--s3-no-head", "--s3-use-accept-encoding-gzip=false"]
        return [str(find_rclone()), "sync", source, target, *compared, *parallel, *spared, "--quiet"]


class S5cmd(Program):
    name = "s5cmd"

    def __init__(self, folder: Path, server: S3Server, bucket: str, program: str) -> None:
        environment = {
            "S3_ENDPOINT_URL": server.endpoint,
            "AWS_REGION": server.region,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
        super().__init__(folder, environment, f"s3://{bucket}/{self.name}/")
        self._program = program

    def command(self, source: str, target: str) -> list[str]:
        if source.startswith("s3://"):
            source += "*"
        return [self._program, "--log=error", "--numworkers=32", "sync", "--delete", source, target]


def contestants(folder: Path, server: S3Server, bucket: str, runner: asyncio.Runner) -> Iterator[Syncer]:
    yield Ours(folder / "ours", server, bucket, runner)
    yield Rclone(folder / "rclone", server, bucket)
    if program := shutil.which("s5cmd", path=os.pathsep.join([str(PEERS), os.environ.get("PATH", "")])):
        yield S5cmd(folder / "s5cmd", server, bucket, program)
