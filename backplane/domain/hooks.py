"""Hooks: addresses that others post to, and how what they post is checked and becomes an event of the bus.

A hook has an address that cannot be guessed, and a secret. Two ways of signing are known: that of the Standard Webhooks
specification (standardwebhooks.com), which this platform's own webhooks have, and GitHub's `X-Hub-Signature-256`.

What a signature covers decides what counts. Standard Webhooks signs the id and the time with the body, so an old
message is refused, and the id is the event's. GitHub signs the body alone: its headers may be anybody's, so the event's
id is the digest of the body, and a body that comes again is the same event.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from backplane.domain.bus import ID_MAX_CHARS, PLATFORM_TYPES, is_type, type_rule
from backplane.domain.webhooks import SECRET_PREFIX, is_signed, new_secret
from backplane.errors import InvalidInput, Unauthenticated

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
ADDRESS_PATTERN = r"^[A-Za-z0-9_-]{32}$"
MAX_HOOKS = 100
SECRET_MIN_CHARS, SECRET_MAX_CHARS = 16, 256
KEY_MIN_BYTES, KEY_MAX_BYTES = 24, 64
"""Of a secret of Standard Webhooks, as its specification has it."""
TOLERANCE_SECONDS = 300
"""How far the time of a message may be from now, in either direction: what Standard Webhooks recommends."""
NO_SECRET = new_secret()
"""What an unknown address is checked against, so that it takes as long as a known one with a wrong signature. Nobody
ever gets it."""

_SUBJECT = re.compile(r"[a-z_]{1,64}", re.ASCII)


class HookKind(StrEnum):
    STANDARD = "standard"
    GITHUB = "github"


@dataclass(frozen=True, slots=True)
class Hook:
    """`address`: the last part of its URL. `sealed`: the secret as `backplane.sealing` made it."""

    user_id: str
    name: str
    address: str
    kind: HookKind
    type: str
    sealed: str = field(repr=False)
    created_at: datetime
    updated_at: datetime

    @property
    def source(self) -> str:
        return f"/api/v1/hooks/{self.name}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message whose signature is right: what the event takes from its headers."""

    id: str
    time: str
    subject: str | None = None


def new_address() -> str:
    """144 random bits."""
    return secrets.token_urlsafe(24)


def sealed_name(name: str) -> str:
    """Under which the secret of a hook is sealed. No secret of a user has such a name."""
    return f"hook:{name}"


def check_hook_type(type: str) -> str:
    """Raises InvalidInput."""
    if not is_type(type):
        raise InvalidInput(f"type: {type_rule()}", field="type")
    if type.split(".")[0] in PLATFORM_TYPES:
        raise InvalidInput(f"type: {type.split('.')[0]}. begins the platform's own types; choose another", field="type")
    return type


def check_secret(kind: HookKind, secret: str) -> str:
    """A secret that the user has from the sender. Raises InvalidInput, whose message does not contain it."""
    if not SECRET_MIN_CHARS <= len(secret) <= SECRET_MAX_CHARS or not secret.isascii() or not secret.isprintable():
        what = f"{SECRET_MIN_CHARS} to {SECRET_MAX_CHARS} printable ASCII characters"
        raise InvalidInput(f"secret: send {what}, or none to get one", field="secret")
    if kind is HookKind.STANDARD:
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not KEY_MIN_BYTES <= len(key) <= KEY_MAX_BYTES:
            what = f"{SECRET_PREFIX} and {KEY_MIN_BYTES} to {KEY_MAX_BYTES} bytes in base64"
            raise InvalidInput(f"secret: Standard Webhooks takes {what}; or send none to get one", field="secret")
    return secret


def accept(kind: HookKind, secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> Accepted:
    """Check who signed a message. `headers`: with names in small letters. Raises Unauthenticated, which says nothing of
    what was wrong."""
    if kind is HookKind.GITHUB:
        return _accept_github(secret, headers, body, now)
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    is_whole = bool(message_id) and len(message_id) <= ID_MAX_CHARS
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12
    at = int(timestamp) if is_number else 0
    # The digest is always made, so that a refusal takes the same time whatever was wrong.
    signed = is_signed(secret, message_id, at, body, headers.get("webhook-signature", ""))
    if not (signed and is_whole and is_number and abs(now.timestamp() - at) <= TOLERANCE_SECONDS):
        raise refused()
    return Accepted(message_id, datetime.fromtimestamp(at, UTC).isoformat())


def _accept_github(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> Accepted:
    own = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(own.encode(), headers.get("x-hub-signature-256", "").encode("utf-8", "replace")):
        raise refused()
    named = headers.get("x-github-event", "")
    subject = named if _SUBJECT.fullmatch(named) else None
    return Accepted(f"sha256-{hashlib.sha256(body).hexdigest()}", now.astimezone(UTC).isoformat(), subject)


def refused() -> Unauthenticated:
    return Unauthenticated("the signature is missing or wrong")


def attributes(hook: Hook, accepted: Accepted, content_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The event of an accepted message. `data`: `data` or `data_base64`, with its value."""
    return {
        "specversion": "1.0",
        "id": accepted.id,
        "source": hook.source,
        "type": hook.type,
        "subject": accepted.subject,
        "time": accepted.time,
        "datacontenttype": content_type or None,
        **data,
    }
