"""Webhooks as values: which URLs are taken, and how a message is signed.

Signatures are those of the Standard Webhooks specification (standardwebhooks.com), so that receivers check them with a
library that exists. What a name resolves to is checked where the connection is made (`backplane.net.egress`): a check
of the URL alone, which is all that can be done here, can be got around by any name server.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import httpx

from backplane.domain.runs import Run
from backplane.errors import InvalidInput
from backplane.net.addresses import is_host, is_public, written_address

URL_MAX_CHARS = 2048
SECRET_PREFIX = "whsec_"  # noqa: S105 - what all secrets begin with, as the specification says
SECRET_BYTES = 32


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
    """A message that whoever claimed it is to send now; `attempt` counts from 1. `run_id`: None: it is about a
    service. `secrets` sign it, the newest first."""

    id: str
    run_id: str | None
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
        usable = parsed.scheme in ("http", "https") and is_host(parsed.raw_host.decode()) and 0 < port < 65536
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
    address = written_address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and not is_public(address)):
        raise _refused("its host is not public; the operator of the platform may allow that with WEBHOOK_ALLOW_PRIVATE")


def _refused(what: str) -> InvalidInput:
    return InvalidInput(f"webhook_url: {what}", field="webhook_url")


def message(run: Run, delivery_id: str, asked: Sequence[Mapping[str, Any]] = ()) -> str:
    """The message for a webhook about the present state of its run. `asked`: what a person is to decide. Raises
    KeyError for a state that has no message."""
    body: dict[str, Any] = {
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
    if asked:
        body["decisions"] = list(asked)
    return json.dumps(body, separators=(",", ":"))


def event_of(run: Run) -> str:
    return f"run.{run.status}"


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secrets: Sequence[str], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The header `Webhook-Signature`: one signature for each secret. `timestamp` is in seconds since the epoch."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(_hmac(secret, signed)).decode()}" for secret in secrets)


def is_signed(secret: str, delivery_id: str, timestamp: int, body: bytes, signatures: str) -> bool:
    """Whether one of the signatures of a header `Webhook-Signature`, of which the first ten count, is this secret's."""
    own = sign([secret], delivery_id, timestamp, body).encode()
    # All are compared, whichever fits.
    fitting = [hmac.compare_digest(own, each.encode("utf-8", "replace")) for each in signatures.split()[:10]]
    return any(fitting)


def _hmac(secret: str, signed: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret in the database is no base64") from None
    return hmac.new(key, signed, hashlib.sha256).digest()
