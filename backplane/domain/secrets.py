"""Users' secrets as values: how they are named, referred to and limited.

A secret has a name, the tools that may use it and the hosts that it may be sent to. Plans hold `${secrets.NAME}`; the
value is put in where a tool uses it (`worker.run.secrets`), and nobody ever gets it back.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from backplane.errors import InvalidInput
from backplane.net.hosts import HostRules

Value = TypeVar("Value")

NAME_PATTERN = r"^[A-Z][A-Z0-9_]{0,63}$"
MIN_VALUE_CHARS = 6
"""What is shorter could not be taken out of outputs: it stands in every other word."""
MAX_VALUE_BYTES = 32 * 1024
MAX_SECRETS = 100
MAX_TOOLS = 50
MAX_HOSTS = 50
DEFAULT_TOOLS = ("shell", "python", "http_fetch")

SECRET_REFERENCE = re.compile(r"(?<!\$)\$\{secrets\.([A-Z][A-Z0-9_]{0,63})\}")
"""In a text: a secret's value is to stand here. `$${secrets…` stays as it is, without its first `$`."""

_TOOL = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What may be shown of a secret."""

    name: str
    tools: tuple[str, ...]
    hosts: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Secret:
    """`sealed` is the value as `backplane.sealing` made it."""

    name: str
    sealed: str
    tools: tuple[str, ...]
    hosts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Secret({self.name})"


def check_value(value: str) -> str:
    """Raises InvalidInput, whose message does not contain the value."""
    if len(value) < MIN_VALUE_CHARS:
        what = f"at least {MIN_VALUE_CHARS} characters: what is shorter could not be told from other words in outputs"
    elif len(value) > MAX_VALUE_BYTES or len(value.encode("utf-8", "replace")) > MAX_VALUE_BYTES:
        what = f"at most {MAX_VALUE_BYTES:,} bytes: put what is larger into a file, sealed with a key that is a secret"
    elif "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        what = "text in UTF-8 without NUL characters: encode anything else in base64"
    else:
        return value
    raise InvalidInput(f"value: send {what}", field="value")


def check_tools(tools: Iterable[str]) -> tuple[str, ...]:
    """Whether a tool exists is not known here: tools come from plug-ins and MCP servers, too."""
    found = tuple(dict.fromkeys(tools))
    if len(found) > MAX_TOOLS or not all(map(_TOOL.fullmatch, found)):
        raise InvalidInput(f"tools: send up to {MAX_TOOLS} names of tools, such as shell", field="tools")
    return found


def check_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(hosts))
    if len(found) > MAX_HOSTS:
        raise InvalidInput(f"hosts: send at most {MAX_HOSTS}", field="hosts")
    try:
        rules = HostRules.of(found).rules
    except InvalidInput as error:
        raise InvalidInput(f"hosts: {error.message}", field="hosts") from None
    if any(not rule.name for rule in rules):
        raise InvalidInput("hosts: name the hosts; a secret is not for all of them", field="hosts")
    return found


def escaped(text: str) -> str:
    """The text with its references to secrets made harmless: for what comes from outside and goes into arguments."""
    return text.replace("${secrets.", "$${secrets.")


def unescaped(text: str) -> str:
    return text.replace("$${secrets.", "${secrets.")


class SealedValue(NamedTuple):
    name: str
    sealed: str


class Redact(Protocol):
    """Gives the same JSON value without secrets."""

    def __call__(self, value: Value, /) -> Value: ...
