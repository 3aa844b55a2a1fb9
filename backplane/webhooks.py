"""Webhooks as values: which URLs are taken, which addresses are public, and how a message is signed.

Signatures are those of the Standard Webhooks specification (standardwebhooks.com), so that receivers check them with a
library that exists. Which addresses are public is written down here, network by network, because Python's own lists
differ between its versions. What a name resolves to is checked where the connection is made (`controller.egress`): a
check of the URL alone, which is all that can be done here, can be got around by any name server.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from backplane.errors import InvalidInput
from backplane.runs import Run

URL_MAX_CHARS = 2048
SECRET_PREFIX = "whsec_"  # noqa: S105 - what all secrets begin with, as the specification says
SECRET_BYTES = 32

Address = IPv4Address | IPv6Address

_NOT_PUBLIC = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # behind a provider's NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, with the metadata servers of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",
        ),
    )
)
# All that is public in IPv6 lies in the first, apart from these others: protocols' own (Teredo among them),
# documentation, 6to4, documentation.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")


_NAME = re.compile(r"([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?", re.IGNORECASE)


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """What became of one message. `attempts` counts those that were begun."""

    event: str
    status: DeliveryStatus
    attempts: int
    last_error: str | None
    response_code: int | None
    next_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that whoever claimed it is to send now; `attempt` counts from 1. `secrets` sign it, the newest
    first."""

    id: str
    run_id: str
    user_id: str
    url: str
    event: str
    body: str
    attempt: int
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Delivery({self.id}, attempt {self.attempt})"


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """`previous` signs too until `previous_until`."""

    secret: str
    previous: str | None = None
    previous_until: datetime | None = None

    def __repr__(self) -> str:
        return "WebhookSecret(…)"


def check_url(url: str) -> httpx.URL:
    """The URL, read as the sender will read it. Raises InvalidInput."""
    if len(url) > URL_MAX_CHARS:
        raise _refused(f"at most {URL_MAX_CHARS} characters")
    try:
        parsed = httpx.URL(url)
        port = 80 if parsed.port is None else parsed.port
        usable = parsed.scheme in ("http", "https") and _is_host(parsed.raw_host.decode()) and 0 < port < 65536
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise _refused("send an http or https URL with a host, such as https://example.org/hook")
    if parsed.userinfo:
        raise _refused("leave the user and the password out: the signature says who calls")
    return parsed


def check_public_url(url: str) -> None:
    """Raises InvalidInput for a host that is written as an address which is not public. Of names it can say
    nothing."""
    host = check_url(url).raw_host.decode().rstrip(".").lower()
    address = _written_address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and not is_public(address)):
        raise _refused("its host is not public; the operator of the platform may allow that with WEBHOOK_ALLOW_PRIVATE")


def is_public(address: Address) -> bool:
    """Whether an address is one of the whole Internet's. An IPv4 address inside an IPv6 one counts where the network
    itself translates it (mapped, NAT64)."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_6)


def _is_host(host: str) -> bool:
    if ":" in host:
        return "%" not in host and isinstance(_written_address(host), IPv6Address)
    return len(host) <= 253 and _NAME.fullmatch(host) is not None


def _written_address(host: str) -> Address | None:
    """The address that a host is written as, also in the forms that only C libraries know: `0x7f.1`, `2130706433`."""
    with suppress(ValueError):
        return ip_address(host)
    with suppress(OSError):
        return IPv4Address(socket.inet_aton(host))
    return None


def _refused(what: str) -> InvalidInput:
    return InvalidInput(f"webhook_url: {what}", field="webhook_url")


def message(run: Run, delivery_id: str) -> str:
    """What a webhook is told of the state that its run is in now. Raises KeyError for none that is told."""
    body = {
        "event": event_of(run),
        "delivery_id": delivery_id,
        "run_id": run.id,
        "status": run.status,
        "attempt": run.attempt,
        "error": run.error.as_dict() if run.error else None,
        "metadata": run.metadata,
        "created_at": run.created_at.isoformat(),
        "started_at": run.started_at.isoformat() if run.started_at else None,
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }
    return json.dumps(body, separators=(",", ":"))


def event_of(run: Run) -> str:
    return f"run.{run.status}"


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secrets: Sequence[str], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The header `Webhook-Signature`: one signature for each secret. `timestamp` is in seconds since the epoch."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(_hmac(secret, signed)).decode()}" for secret in secrets)


def _hmac(secret: str, signed: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret in the database is no base64") from None
    return hmac.new(key, signed, hashlib.sha256).digest()
