"""Which Redis server to connect to: the one that is named, the master behind Sentinel, or a Cluster's node.

There is always one server that does the work, also of a Cluster, because all keys of a platform lie in one slot. It is
asked for before each connection, and a connection is dropped when its server says that it is not the one, or no more.
So nothing else has to know of fail-overs, and pipelines, blocking calls and pub/sub are the same everywhere; redis-py's
own cluster client would do each of them differently.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

LOCATE_SECONDS = 1.0
"""How long a sentinel or a node may take to say which server is the one, before another is asked."""
ASK_AGAIN_SECONDS = 2.0
PORT = {"": 6379, "sentinel": 26379, "cluster": 6379}

# What a command inside a script was answered stands in the middle of Redis 6.2's error, and what one of a pipeline was
# answered in the middle of the library's.
_CODE = re.compile(r"(?:^|: -?|caused error: \(['\"])([A-Z]+) ")
NOT_THE_ONE = frozenset({"READONLY", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED"})

Address = tuple[str, int]


def error_code(error: RedisError) -> str:
    """The word by which Redis names an error, such as READONLY; ERR where it has no name."""
    named = error.status_code or ""
    found = None if named not in ("", "ERR") else _CODE.search(str(error))
    return found[1] if found else named or "ERR"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts. `kind` is "", "sentinel" or "cluster"; `options` are those of redis-py's connections."""

    kind: str
    hosts: tuple[Address, ...]
    service: str
    connection_class: type[Any]
    options: Mapping[str, Any]

    @property
    def encrypted(self) -> bool:
        return self.connection_class is SSLConnection


def target_of(url: str) -> Target:
    """Raises ValueError when it is no URL of Redis."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind not in PORT or (kind and scheme not in ("redis", "rediss")):
        raise ValueError("unknown scheme")
    user, at, hosts = parts.netloc.rpartition("@")
    service, database = "", parts.path
    if kind == "sentinel":
        service, _, database = parts.path.removeprefix("/").partition("/")
        if not service:
            raise ValueError("no service name")
    if kind == "cluster" and database.strip("/0"):
        raise ValueError("a cluster has one database")
    # Query and login are read as redis-py reads them; of several hosts it knows nothing.
    one = parts._replace(scheme=scheme, netloc=f"{user}{at}host" if kind else parts.netloc, path=database)
    options: dict[str, Any] = dict(parse_url(one.geturl()))
    connection_class = options.pop("connection_class", Connection)
    if connection_class is UnixDomainSocketConnection:
        return Target("", (), "", connection_class, options)
    first = (options.pop("host", "localhost"), options.pop("port", PORT[""]))
    found = tuple(_address(host, PORT[kind]) for host in hosts.split(",")) if kind else (first,)
    return Target(kind, found, service, connection_class, options)


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or port


class ServerLocator(ABC):
    """Knows which server is the one at this moment."""

    @abstractmethod
    async def address(self) -> Address:
        """Raises redis-py's ConnectionError when nobody can say."""

    async def is_another_than(self, address: Address) -> bool:
        """Asked before each command on a connection that stands: whether to leave it. A server that knows by itself
        that it is not the one need not be watched."""
        return False

    async def close(self) -> None:  # noqa: B027 - few have anything to close
        """Close the connections that it keeps of its own."""


class NamedServer(ServerLocator):
    """The one of the URL. Its name may come to mean another machine, so it is looked up anew for each connection."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def address(self) -> Address:
        return self._address


class SentinelMaster(ServerLocator):
    """A master that was replaced while it was well goes on taking writes, which get lost, until a sentinel demotes it
    ten seconds later. So a sentinel is asked again and again while there is something to do."""

    def __init__(self, sentinels: Sequence[Address], service: str, options: Mapping[str, Any]) -> None:
        quick = {"socket_timeout": LOCATE_SECONDS, "socket_connect_timeout": LOCATE_SECONDS}
        self._service = service
        self._address: Address | None = None
        self._asked_at = 0.0
        self._sentinel = cast(Any, Sentinel)(
            list(sentinels), sentinel_kwargs={**options, **quick, "retry": Retry(NoBackoff(), 0), "driver_info": None}
        )

    async def address(self) -> Address:
        try:
            host, port = await self._sentinel.discover_master(self._service)
        except MasterNotFoundError:
            message = f"no sentinel knows a master of {self._service!r} that is well"
            raise RedisConnectionError(message) from None
        self._asked_at = time.monotonic()
        self._address = str(host), int(port)
        return self._address

    async def is_another_than(self, address: Address) -> bool:
        if time.monotonic() - self._asked_at > ASK_AGAIN_SECONDS:
            self._asked_at = time.monotonic()
            with suppress(RedisError, OSError):
                await self.address()
        return self._address not in (None, address)

    async def close(self) -> None:
        await self._sentinel.aclose()


class ClusterNode(ServerLocator):
    """The node that owns `slot`, as any node of the cluster says.

    Not always the same node is asked: one that is cut off from the others does not know what it has lost.
    """

    def __init__(
        self, seeds: Sequence[Address], slot: int, connection_class: type[Any], options: Mapping[str, Any]
    ) -> None:
        self._seeds = tuple(seeds)
        self._nodes = list(seeds)
        self._slot = slot
        self._connection_class = connection_class
        quick = {"socket_timeout": LOCATE_SECONDS, "socket_connect_timeout": LOCATE_SECONDS}
        self._options = {**options, **quick, "retry": Retry(NoBackoff(), 0)}

    async def address(self) -> Address:
        faults = []
        for node in tuple(self._nodes):
            try:
                slots = await self._slots(node)
            except (RedisError, OSError) as error:
                faults.append(f"{node[0]}:{node[1]}: {error}")
                continue
            owners = [nodes[0] for first, last, *nodes in slots if first <= self._slot <= last]
            # The seeds stay, should all the others be replaced one day.
            known = {_of_slots(other, node): None for _, _, *nodes in slots for other in nodes}
            self._nodes = [other for other in {**known, **dict.fromkeys(self._seeds)} if other != node] + [node]
            if owners:
                return _of_slots(owners[0], node)
            faults.append(f"{node[0]}:{node[1]}: nobody owns slot {self._slot}")
        raise RedisConnectionError(f"no node of the cluster can say who owns slot {self._slot} ({'; '.join(faults)})")

    async def _slots(self, node: Address) -> list[Any]:
        connection = self._connection_class(host=node[0], port=node[1], **self._options)
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            slots: list[Any] = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        return slots


def _of_slots(entry: Sequence[Any], asked: Address) -> Address:
    """A node that does not know its own name leaves it out: it is the one that was asked."""
    host = entry[0]
    return (asked[0] if host in (None, "", "?") else str(host)), int(entry[1])


class _Located:
    """Mixed into redis-py's connections: asks for the server before it connects, and leaves one that is not the one."""

    def __init__(self, *, server: ServerLocator, **options: Any) -> None:
        self._server = server
        super().__init__(**options)

    async def connect(self) -> None:
        if cast(Any, self).is_connected and await self._server.is_another_than((self.host, self.port)):
            await cast(Any, self).disconnect(nowait=True)
        await cast(Any, super()).connect()

    async def _connect(self) -> None:
        self.host, self.port = await self._server.address()
        await cast(Any, super())._connect()

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await cast(Any, super()).read_response(*args, **options)
        except ResponseError as error:
            if (code := error_code(error)) not in NOT_THE_ONE:
                raise
            await cast(Any, self).disconnect(nowait=True)
            message = f"{self.host}:{self.port} does not do the work now ({code})"
            raise RedisConnectionError(message, status_code=code) from error


class LocatedConnection(_Located, Connection):
    pass


class LocatedTlsConnection(_Located, SSLConnection):
    pass
