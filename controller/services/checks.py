"""Asks services whether they answer. A check never takes longer than its own limit.

Administrators name the host, so any address of the network inside may be asked, but none that is only this machine's
neighbour (link-local, where clouds have their metadata servers), and nothing of what answers is kept but the status. A
name is resolved once, checked, and connected to as it was checked. No redirect is followed.
"""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address

import httpx
import structlog

from backplane import VERSION
from backplane.domain.services import CheckKind, CheckResult, HealthCheck, ServiceSpec
from backplane.net.addresses import Address
from backplane.net.egress import AddressRefused, CheckedTransport, Resolve, resolve
from backplane.net.hang_ups import hang_ups_as

CLOSE_SECONDS = 1.0
METADATA_SERVERS = (IPv6Address("fd00:ec2::254"),)
"""Of clouds' metadata servers, those that are not link-local."""

log = structlog.get_logger()


class ServiceChecker:
    """`resolver`: of names. Its client is made when a check first needs it, and serves all: to read the certificates of
    the world's authorities takes longer than a check."""

    def __init__(self, resolver: Resolve = resolve) -> None:
        self._resolver = resolver
        self._client: httpx.AsyncClient | None = None

    async def check(self, spec: ServiceSpec) -> CheckResult:
        """One check, now. It raises nothing: what goes wrong is what the check says."""
        check = spec.check
        if check.kind is not CheckKind.TCP:
            self._connected()  # outside of the check's time, for to make it may take longer than a short check
        at, began = datetime.now(UTC), time.monotonic()
        try:
            async with asyncio.timeout(check.timeout_seconds):
                error = await (self._tcp(spec) if check.kind is CheckKind.TCP else self._http(spec))
        except (TimeoutError, httpx.TimeoutException):
            return CheckResult(at, f"no answer within {check.timeout_seconds:g} s")
        except AddressRefused as refused:
            return CheckResult(at, str(refused))
        except (httpx.HTTPError, OSError, UnicodeError) as failed:
            return CheckResult(at, _why(failed))
        except Exception as fault:
            log.error("a check of a service failed by a fault of the platform", exc_info=fault)
            return CheckResult(at, f"the check failed by a fault of the platform ({type(fault).__name__})")
        return CheckResult(at, error, round((time.monotonic() - began) * 1000, 1))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _tcp(self, spec: ServiceSpec) -> str:
        """That somebody takes the connection."""
        failed: OSError | None = None
        for address in await self._addresses(spec.host, spec.port):
            try:
                with hang_ups_as(ConnectionResetError):
                    _, writer = await asyncio.open_connection(str(address), spec.port)
            except OSError as error:
                failed = error
                continue
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await writer.wait_closed()
            return ""
        raise failed or OSError("its host's name has no address")

    async def _http(self, spec: ServiceSpec) -> str:
        """That it answers with the expected status. Its body is not read: it may have no end."""
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        url = f"{spec.check.kind.value}://{host}:{spec.port}{spec.check.path}"
        async with self._connected().stream("GET", url, timeout=spec.check.timeout_seconds) as response:
            return _unexpected(spec.check, response.status_code)

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=CheckedTransport(allow_private=True, resolver=self._addresses),
                trust_env=False,
                follow_redirects=False,
                cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
                headers={"User-Agent": f"agent-platform/{VERSION}"},
            )
        return self._client

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        """Those that may be asked. Raises AddressRefused, OSError."""
        addresses = await self._resolver(host, port)
        if not all(map(may_be_asked, addresses)):
            raise AddressRefused("the host's address is link-local, multicast or none; checks do not go there")
        return addresses


def may_be_asked(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return may_be_asked(address.ipv4_mapped)
    refused = address.is_link_local or address.is_multicast or address.is_unspecified
    return not refused and address != IPv4Address("255.255.255.255") and address not in METADATA_SERVERS


def _unexpected(check: HealthCheck, code: int) -> str:
    return "" if code == check.expected_status else f"it answered {code}, not {check.expected_status}"


def _why(error: Exception) -> str:
    if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
        return "nothing listens on the port"
    if isinstance(error, httpx.RemoteProtocolError):
        return "it does not speak HTTP, or closed the connection"
    if isinstance(error, httpx.ReadError):
        return "it closed the connection before it answered"
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return "its host's name has no address"
    words = str(error) or type(error).__name__
    return f"no connection: {words}"[:200]


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
