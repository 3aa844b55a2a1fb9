"""Connections to where users say, and not to where only the platform may.

A name is resolved here, every address of it is checked, and the connection goes to an address that was checked: nothing
looks the name up a second time, so a name server that answers differently then (DNS rebinding) gains nothing. The
certificate is still that of the name. A connection serves one request: two names on one address must not share one.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import httpx

from backplane.webhooks import Address, is_public

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class AddressRefused(Exception):
    """The host is, or resolves to, an address that is not public. The message does not name it."""


async def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a host, in the system's order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return list(dict.fromkeys(addresses))


class CheckedTransport(httpx.AsyncBaseTransport):
    """Raises AddressRefused, before anything is sent, and httpx.ConnectError for a name that does not resolve.

    `tls`: which certificates are trusted; those that browsers trust when left out.
    """

    def __init__(self, *, allow_private: bool, resolver: Resolve = resolve, tls: ssl.SSLContext | None = None) -> None:
        self._allow_private = allow_private
        self._resolve = resolver
        no_reuse = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(verify=tls or True, trust_env=False, limits=no_reuse)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(host, url.port or {"http": 80, "https": 443}[url.scheme])
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError("the name does not resolve", request=request) from error
        if not self._allow_private and not all(map(is_public, addresses)):
            raise AddressRefused("the host's address is not public (WEBHOOK_ALLOW_PRIVATE)")
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
                return await self._inner.handle_async_request(to_address)
            except httpx.ConnectError as error:
                unreached = error
        raise unreached or httpx.ConnectError("the name has no address", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()
