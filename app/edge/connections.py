"""How many connections there may be, of whom, and for how long they may be silent.

A connection is anonymous until a request on it carries a valid token; then it is that user's. Anonymous ones are
limited an address, and together they get a share of all places. Where such a limit is reached the oldest anonymous
connection is closed, not the new one: a user sends the token within milliseconds, and whoever holds connections open
without one is the first to lose them.

Users share the places without a fixed limit for each. Only when all places are taken, whoever has most of them loses
the oldest connection: one user, or all strangers together. So neither a user nor strangers can keep others out.

What this does not do: it lets nobody more in when every place is taken by another user, and it does not replace a
proxy, which takes TLS and what comes faster than one process can accept.
"""

import asyncio
import ipaddress
from collections import OrderedDict
from typing import Protocol

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

ANONYMOUS_SHARE = 0.25
"""The share of all connections that may have shown no token."""
LARGE_SHARE = 0.01
"""Of all connections. Whoever has more is looked at when all places are taken; so these are a hundred users at most."""
SWEEP_SECONDS = 1.0


class ClientConnection(Protocol):
    """What is known of a connection here. `peer`: host of the other end; empty on a Unix socket."""

    peer: str

    def check(self, now: float) -> None:
        """Close it when its time is up."""

    def abort(self) -> None: ...


class TrustedProxies:
    """`addresses`: addresses and networks (CIDR), with commas between them. Only their X-Forwarded-For is believed."""

    def __init__(self, addresses: str) -> None:
        # uvicorn's own list, which understands networks and ports.
        self._hosts = ProxyHeadersMiddleware(_no_application, trusted_hosts=addresses or []).trusted_hosts

    def __contains__(self, host: str) -> bool:
        return host in self._hosts

    def client(self, peer: str, forwarded_for: str) -> str:
        """The address that a request came from: the last one in the list that is no proxy of ours."""
        if not forwarded_for or peer not in self._hosts:
            return peer
        return self._hosts.get_trusted_client_address(forwarded_for)[0] or peer


class ConnectionLimits:
    """The connections of one process.

    `total`: all of them; less where the process may not open so many descriptors. `per_address`: anonymous ones of one
    address (0: any number); proxies are exempt. `keep_alive_seconds`: silence between two requests.
    `send_seconds`: a reader that takes nothing for so long is cut off.
    """

    def __init__(
        self,
        *,
        total: int,
        per_address: int,
        keep_alive_seconds: float,
        send_seconds: float,
        proxies: TrustedProxies,
        sweep_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self.total = total
        self.per_address = per_address
        self.keep_alive_seconds = keep_alive_seconds
        self.send_seconds = send_seconds
        self.installed = False
        self._proxies = proxies
        self.sweep_seconds = sweep_seconds
        self._all = set[ClientConnection]()
        self._anonymous = OrderedDict[ClientConnection, None]()
        self._user_of: dict[ClientConnection, str] = {}
        self._of_user: dict[str, OrderedDict[ClientConnection, None]] = {}
        self._large_users = set[str]()
        self._of_address: dict[str, OrderedDict[ClientConnection, None]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def anonymous_max(self) -> int:
        return max(1, int(self.total * ANONYMOUS_SHARE))

    def opened(self, connection: ClientConnection) -> None:
        """Closes others, or this one, when there are too many."""
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(self.sweep_seconds, self._sweep)
        self._all.add(connection)
        self._anonymous[connection] = None
        if connection.peer and connection.peer not in self._proxies:
            of_address = self._of_address.setdefault(address_key(connection.peer), OrderedDict())
            of_address[connection] = None
            if self.per_address and len(of_address) > self.per_address:
                self._drop(next(iter(of_address)))
        if len(self._anonymous) > self.anonymous_max:
            self._drop(next(iter(self._anonymous)))
        elif len(self._all) > self.total:
            self._drop(next(iter(self._largest_group())))

    def recognised(self, connection: ClientConnection, user_id: str) -> None:
        """A request on it carried a valid token of this user. A proxy's connection is whose request came last."""
        if self._user_of.get(connection) == user_id or connection not in self._all:
            return
        self._forget_anonymous(connection)
        self._forget_user(connection)
        self._user_of[connection] = user_id
        of_user = self._of_user.setdefault(user_id, OrderedDict())
        of_user[connection] = None
        if len(of_user) > self.total * LARGE_SHARE:
            self._large_users.add(user_id)

    def closed(self, connection: ClientConnection) -> None:
        self._all.discard(connection)
        self._forget_anonymous(connection)
        self._forget_user(connection)

    def _largest_group(self) -> OrderedDict[ClientConnection, None]:
        """The connections of the user who has most, or the anonymous ones where no user has more than these."""
        users = (self._of_user[user_id] for user_id in self._large_users)
        return max((self._anonymous, *users), key=len)

    def _drop(self, connection: ClientConnection) -> None:
        self.closed(connection)
        connection.abort()

    def _forget_user(self, connection: ClientConnection) -> None:
        user_id = self._user_of.pop(connection, None)
        if user_id is None:
            return
        of_user = self._of_user[user_id]
        del of_user[connection]
        if len(of_user) <= self.total * LARGE_SHARE:
            self._large_users.discard(user_id)
        if not of_user:
            del self._of_user[user_id]
            self._large_users.discard(user_id)

    def _forget_anonymous(self, connection: ClientConnection) -> None:
        self._anonymous.pop(connection, None)
        key = address_key(connection.peer)
        if (of_address := self._of_address.get(key)) is not None:
            of_address.pop(connection, None)
            if not of_address:
                del self._of_address[key]

    def _sweep(self) -> None:
        self._sweeping = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._all):
            connection.check(now)
        if self._all:
            self._sweeping = loop.call_later(self.sweep_seconds, self._sweep)


def address_key(host: str) -> str:
    """What counts as one address: all of an IPv6 /64 belong to one customer of a provider."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


async def _no_application(*_: object) -> None:
    raise NotImplementedError("only its list of hosts is used")
