"""Redis as it stands in larger installations: a cluster, a master behind a sentinel, and a server that speaks TLS."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import redis
import trustme
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from agentctl.local.embedded import free_port
from tests.servers import HOST, RedisServer

SLOTS = 16384
BUS = 10_000
NODE_TIMEOUT_SECONDS = 0.5
DOWN_SECONDS = 1.0
SERVICE = "agents"
WAIT_SECONDS = 30.0


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with contextlib.suppress(redis.RedisError):
            if answer := condition():
                return answer
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(0.01)


class Node(RedisServer):
    """A server with options of its own; `ask` sends it a command."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.options = options

    def command(self) -> list[str]:
        return [*super().command(), "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", *self.options]

    def ask(self, *command: Any) -> Any:
        retry = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=2, retry=retry) as client:
            return client.execute_command(*command)

    def role(self) -> str:
        return str(self.ask("ROLE")[0])

    def is_replica(self) -> bool:
        """False also where it hangs up on who asks, as it does to all at the moment when it becomes one."""
        try:
            return self.role() == "slave"
        except redis.ConnectionError:
            return False


class ClusterMember(Node):
    def __init__(self, folder: Path) -> None:
        timeout = str(int(NODE_TIMEOUT_SECONDS * 1000))
        super().__init__(folder, "--cluster-enabled", "yes", "--cluster-node-timeout", timeout)
        while self.port >= 50_000 or not _is_free(self.port + BUS):
            self.port = free_port()

    def info(self) -> dict[str, str]:
        said = self.ask("CLUSTER INFO")
        return dict(said) if isinstance(said, dict) else dict(line.split(":", 1) for line in said.split())

    def id(self) -> str:
        return str(self.ask("CLUSTER MYID"))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Cluster:
    """`masters` share the slots; the one that owns `key`'s has a replica."""

    def __init__(self, folder: Path, key: str, masters: int = 3) -> None:
        self.slot = key_slot(key.encode())
        self.masters = [ClusterMember(folder / f"master-{number}") for number in range(masters)]
        self.replica = ClusterMember(folder / "replica")
        self.nodes = [*self.masters, self.replica]
        self._promoted = 0.0
        share = -(-SLOTS // masters)
        self._slots = [range(start, min(start + share, SLOTS)) for start in range(0, SLOTS, share)]
        self.owner = next(m for m, slots in zip(self.masters, self._slots, strict=True) if self.slot in slots)

    @property
    def others(self) -> list[ClusterMember]:
        """The nodes that have nothing to do with the key."""
        return [node for node in self.masters if node is not self.owner]

    def url(self, seeds: Sequence[ClusterMember] = ()) -> str:
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in seeds or self.others)}"

    def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    def _start(self) -> None:
        for node in self.nodes:
            node.start()
        for epoch, (node, slots) in enumerate(zip(self.masters, self._slots, strict=True), 1):
            node.ask("CLUSTER SET-CONFIG-EPOCH", epoch)
            node.ask("CLUSTER ADDSLOTS", *slots)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.ask("CLUSTER MEET", HOST, other.port)
        owner = self.owner.id()
        until(lambda: self.replica.ask("CLUSTER REPLICATE", owner), "the replica knows its master")
        until(lambda: all(self._is_whole(node) for node in self.nodes), "all nodes know one another")
        until(lambda: self.replica.ask("ROLE")[3] == "connected", "the replica follows")

    def _is_whole(self, node: ClusterMember) -> bool:
        info = node.info()
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    def flush(self) -> None:
        for node in self.nodes:
            if node.role() == "master":
                node.ask("FLUSHALL")

    def promote(self) -> None:
        """The replica and the owner of the key's slot change places, in order; returns when both have."""
        old, new = self.owner, self.replica
        until(lambda: new.ask("ROLE")[3] == "connected", "the replica follows")
        # The other masters vote for a replica of the same node only so often.
        until(lambda: time.monotonic() > self._promoted + 2 * NODE_TIMEOUT_SECONDS + 0.1, "there can be a vote again")
        asked = 0.0

        def is_promoted() -> bool:
            nonlocal asked
            if new.role() == "slave" and time.monotonic() > asked + 2 * NODE_TIMEOUT_SECONDS + 0.1:
                # A vote that is not won in its time is dropped, and nobody asks for another one.
                new.ask("CLUSTER FAILOVER")
                asked = time.monotonic()
            return (old.role(), new.role()) == ("slave", "master")

        until(is_promoted, "the replica is promoted")
        self._promoted = time.monotonic()
        self.owner, self.replica = new, old
        self.masters[self.masters.index(old)] = new

    def begin_to_move(self, target: ClusterMember) -> None:
        """From here on the key's slot is on its way to another master."""
        target.ask("CLUSTER SETSLOT", self.slot, "IMPORTING", self.owner.id())
        self.owner.ask("CLUSTER SETSLOT", self.slot, "MIGRATING", target.id())

    def end_move(self, target: ClusterMember) -> None:
        while keys := self.owner.ask("CLUSTER GETKEYSINSLOT", self.slot, 100):
            self.owner.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, *(master for master in self.masters if master is not target)):
            node.ask("CLUSTER SETSLOT", self.slot, "NODE", target.id())
        self.owner = target

    def move_slot(self, target: ClusterMember) -> None:
        """Give the key's slot, with the keys in it, to another master."""
        self.begin_to_move(target)
        self.end_move(target)


class LoneMember(ClusterMember):
    """A cluster of one node, that sends clients to `announced` instead of its own port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.announced = free_port()
        self.options = (*self.options, "--cluster-announce-port", str(self.announced))

    def start(self) -> None:
        super().start()
        self.ask("CLUSTER ADDSLOTS", *range(SLOTS))
        until(lambda: self.info()["cluster_state"] == "ok", "the cluster is whole")


class SentinelServer(Node):
    """Watches one master, and alone decides that it is gone."""

    def __init__(self, folder: Path, master: Node) -> None:
        super().__init__(folder)
        self._master = master

    def command(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"bind {HOST}\nport {self.port}\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} {HOST} {self._master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {int(DOWN_SECONDS * 1000)}\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        return [*_before_options(super().command(), self.program), str(self.program), str(config), "--sentinel"]


def _before_options(command: Sequence[str], program: Path) -> list[str]:
    return list(command[: command.index(str(program))])


class Watched:
    """A master, its replica, and a sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        self.master = Node(folder / "master")
        self.replica = Node(folder / "replica", "--replicaof", HOST, str(self.master.port))
        self.sentinel = SentinelServer(folder / "sentinel", self.master)

    @property
    def url(self) -> str:
        # The first of the two is nobody: one that is gone must not keep the others from being asked.
        return f"redis+sentinel://{HOST}:1,{HOST}:{self.sentinel.port}/{SERVICE}/0"

    def start(self) -> None:
        try:
            self.master.start()
            self.replica.start()
            until(lambda: self.replica.ask("ROLE")[3] == "connected", "the replica follows")
            self.sentinel.start()
            until(lambda: self._state()["num-slaves"] == "1", "the sentinel knows the replica")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for node in (self.sentinel, self.replica, self.master):
            node.kill()

    def promote(self) -> None:
        """The sentinel makes the replica a master, as if the master were gone. The old master, which is well, learns of
        its own change about ten seconds later."""
        until(lambda: self.sentinel.ask("SENTINEL FAILOVER", SERVICE), "the sentinel may")
        until(lambda: int(self._state()["port"]) == self.replica.port, "it did")

    def _state(self) -> dict[str, str]:
        said = self.sentinel.ask("SENTINEL MASTER", SERVICE)
        found = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
        return {str(name): str(value) for name, value in found.items()}


# --- TLS ---


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, with that of who signed it, and its key."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    chain = [*issued.cert_chain_pems, authority.cert_pem]
    certificate.write_bytes(b"".join(part.bytes() for part in chain))
    return certificate, key


@contextlib.asynccontextmanager
async def tls_before(
    port: int, certificate: Path, key: Path, *, asks_for_one: bool = False, listen: int = 0
) -> AsyncIterator[int]:
    """A port that speaks TLS and passes on to `port`: the Redis of the wheel was built without TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    if asks_for_one:
        context.load_verify_locations(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    open_ends = set[asyncio.Task[None]]()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(hand_on(*pair))
            open_ends.add(task)
            task.add_done_callback(open_ends.discard)

    server = await asyncio.start_server(serve, HOST, listen, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(open_ends):
            task.cancel()
        await asyncio.gather(*open_ends, return_exceptions=True)
