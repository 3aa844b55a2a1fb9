"""Connections to addresses that users and agents name, and never to those that only the platform may reach.

A name is resolved here, every address of it is checked, and the connection goes to an address that was checked: nothing
looks the name up a second time, so a name server that answers differently then (DNS rebinding) gains nothing. The
certificate is still that of the name. A connection serves one request: two names on one address must not share one.

Two rules use this. Webhooks go to any host of the Internet (`CheckedTransport`). What tools reach for an agent goes to
hosts that the operator named (`OutsidePolicy`): an agent may follow instructions in the pages that it reads.
"""

import asyncio
import socket
import ssl
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import httpx

from backplane.errors import Forbidden, InvalidInput
from backplane.net.addresses import Address, is_public
from backplane.net.hang_ups import hang_ups_as
from backplane.net.hosts import STANDARD_PORTS, HostRules, normal_host

URL_MAX_CHARS = 8000

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class AddressRefused(Exception):
    """The host is, or resolves to, an address that is not public. The message does not name it."""


class OutsideRefused(Forbidden):
    """The operator's policy does not let tools reach this."""

    code = "outside_refused"


async def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a host, in the system's order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return list(dict.fromkeys(addresses))


class _PinnedTransport(httpx.AsyncBaseTransport):
    """Raises httpx.ConnectError for a name that does not resolve.

    `tls`: which certificates are trusted; those that browsers trust when left out.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        no_reuse = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(verify=tls or True, trust_env=False, limits=no_reuse)

    @abstractmethod
    async def _addresses(self, url: httpx.URL) -> Sequence[Address]:
        """The addresses to which a request for this URL may be sent. Raises the error that the caller is to see, before
        anything is sent, and OSError for a name that does not resolve."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.raw_host.decode("ascii")
        try:
            addresses = await self._addresses(url)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError("the name does not resolve", request=request) from error
        unreached: httpx.ConnectError | None = None
        for address in addresses:
            # The header Host is set already. SNI and the certificate go by the name, too.
            to_address = httpx.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                with hang_ups_as(httpx.ConnectError):
                    return await self._inner.handle_async_request(to_address)
            except httpx.ConnectError as error:
                unreached = error
        raise unreached or httpx.ConnectError("the name has no address", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class CheckedTransport(_PinnedTransport):
    """Sends requests to any public host, or with `allow_private` to any host. Raises AddressRefused before anything is
    sent."""

    def __init__(self, *, allow_private: bool, resolver: Resolve = resolve, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self._allow_private = allow_private
        self._resolve = resolver

    async def _addresses(self, url: httpx.URL) -> Sequence[Address]:
        addresses = await self._resolve(url.raw_host.decode("ascii"), url.port or STANDARD_PORTS[url.scheme])
        if not self._allow_private and not all(map(is_public, addresses)):
            raise AddressRefused("the host's address is not public (WEBHOOK_ALLOW_PRIVATE)")
        return addresses


class OutsidePolicy:
    """What tools may reach. `hosts` are patterns (`backplane.net.hosts`); without any, nothing may be reached.
    Addresses that are not public are reached with `allow_private` only, and then only where a pattern names the host:
    `*` means the Internet.

    Everything here raises OutsideRefused for what the policy does not allow, and InvalidInput for what is no URL."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        allow_private: bool = False,
        resolver: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = HostRules.of(hosts)
        self.allow_private = allow_private
        self._resolve = resolver
        self._tls = tls

    def check(self, url: str | httpx.URL) -> httpx.URL:
        """The URL as it will be requested, its host in normal form. What the name resolves to is not known yet."""
        parsed = parse_url(url)
        self.check_host(parsed.raw_host.decode("ascii"), parsed.port or STANDARD_PORTS[parsed.scheme])
        return parsed

    def check_host(self, host: str, port: int) -> None:
        if not self._rules.rules:
            raise OutsideRefused(
                "no tool may reach the outside here: whoever runs the platform names the hosts in OUTSIDE_HOSTS, as "
                '["example.org", "*.example.com"]'
            )
        if not self._rules.allow(host, port):
            raise OutsideRefused(
                f"tools may not reach {host} on port {port}: whoever runs the platform may add it to OUTSIDE_HOSTS "
                "(with its port, when that is not 80 or 443)"
            )

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The addresses that may be connected to; connect to these and look nothing up again. `host` as `check` has
        it. Raises OSError for a name that does not resolve."""
        self.check_host(host, port)
        addresses = await self._resolve(host, port)
        if all(map(is_public, addresses)) or (self.allow_private and self._rules.name(host, port)):
            return addresses
        advice = "name the host itself in OUTSIDE_HOSTS" if self.allow_private else "see OUTSIDE_ALLOW_PRIVATE"
        raise OutsideRefused(f"tools may not reach {host}: its address is not public ({advice})")

    def transport(self) -> httpx.AsyncBaseTransport:
        """A transport for an `httpx.AsyncClient`: each request is checked, also those to which a redirect leads."""
        return _OutsideTransport(self, self._tls)

    def client(self, timeout_seconds: float) -> httpx.AsyncClient:
        """A client that follows no redirect and reads no environment. `timeout_seconds`: to connect, and between two
        pieces."""
        return httpx.AsyncClient(transport=self.transport(), timeout=timeout_seconds, trust_env=False)


class _OutsideTransport(_PinnedTransport):
    def __init__(self, policy: OutsidePolicy, tls: ssl.SSLContext | None) -> None:
        super().__init__(tls)
        self._policy = policy

    async def _addresses(self, url: httpx.URL) -> Sequence[Address]:
        checked = self._policy.check(url)
        return await self._policy.resolve(checked.raw_host.decode("ascii"), url.port or STANDARD_PORTS[url.scheme])


def parse_url(url: str | httpx.URL) -> httpx.URL:
    """An http or https URL without a user, its host in normal form. Raises InvalidInput."""
    if len(str(url)) > URL_MAX_CHARS:
        raise InvalidInput(f"the URL has more than {URL_MAX_CHARS:,} characters", field="url")
    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in STANDARD_PORTS and 0 < (parsed.port or STANDARD_PORTS[parsed.scheme]) < 65536
        usable = usable and parsed.port != 0
        host = normal_host(parsed.raw_host.decode("ascii"))
    except (httpx.InvalidURL, ValueError, UnicodeError):
        usable = False
    except InvalidInput as error:
        raise InvalidInput(f"url: {error.message}", field="url") from None
    if not usable:
        raise InvalidInput("url: send an http or https URL with a host, such as https://example.org/page", field="url")
    if parsed.userinfo:
        raise InvalidInput(
            "url: leave out what stands before the @; a password goes into the header Authorization, as "
            "${secrets.NAME}",
            field="url",
        )
    try:
        return parsed.copy_with(host=host)
    except httpx.InvalidURL:
        raise InvalidInput("url: its path cannot be read", field="url") from None
