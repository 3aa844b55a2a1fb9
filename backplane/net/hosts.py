"""Lists of hosts that a tool may reach, or that a secret may be sent to.

    example.org         this host, on the ports 80 and 443
    *.example.org       every host below it, not itself
    *                   every host (of the Internet: see `backplane.net.egress`)
    example.org:8080    this port instead; also [2001:db8::1]:8080, *.example.org:8443

Names are compared in the form in which they are looked up: small letters, international ones in ASCII, no dot at the
end.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import httpx

from backplane.errors import InvalidInput
from backplane.net.addresses import is_host, written_address

STANDARD_PORTS = {"http": 80, "https": 443}
PATTERN_MAX_CHARS = 300
HOST_FORMS = "a name, such as example.org, or an address, such as 10.0.0.7"
PATTERN_FORMS = "example.org, *.example.org, example.org:8080 or *"


@dataclass(frozen=True, slots=True)
class HostRule:
    """`name` is empty for all hosts. `below`: the rule means the hosts below `name`. `port` None: the standard
    ports."""

    name: str
    below: bool
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        if port != self.port if self.port is not None else port not in STANDARD_PORTS.values():
            return False
        return not self.name or (host.endswith(f".{self.name}") if self.below else host == self.name)


@dataclass(frozen=True, slots=True)
class HostRules:
    rules: tuple[HostRule, ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> "HostRules":
        """Raises InvalidInput for a pattern that is none of the above."""
        return cls(tuple(_rule(pattern) for pattern in patterns))

    def allow(self, host: str, port: int) -> bool:
        """`host` as `normal_host` gives it."""
        return any(rule.allows(host, port) for rule in self.rules)

    def name(self, host: str, port: int) -> bool:
        """Whether a rule means this host, and not merely all of them."""
        return any(rule.name and rule.allows(host, port) for rule in self.rules)

    def allow_host(self, written: str) -> bool:
        """Whether `host` or `host:port` is allowed; a port that is left out is a standard one. A text that cannot be
        read is not allowed."""
        try:
            host, port = split_port(written)
            return self.allow(normal_host(host), STANDARD_PORTS["https"] if port is None else port)
        except InvalidInput:
            return False


def normal_host(written: str, forms: str = HOST_FORMS) -> str:
    """A host in the form in which hosts are compared. `forms`: what may be written in its place. Raises InvalidInput
    for what is none, and for an address that is written so that only some programs know it for one (`0x7f.1`,
    `2130706433`)."""
    host = written.removesuffix(".").lower()
    if not host.isascii():
        try:
            host = httpx.URL(f"http://{host}/").raw_host.decode("ascii").lower()
        except (httpx.InvalidURL, ValueError):
            raise _no_host(written, forms) from None
    if not is_host(host) or host.endswith("."):
        raise _no_host(written, forms)
    address = written_address(host)
    if address is not None and ":" not in host and str(address) != host:
        raise InvalidInput(f"{host} is an address in an unusual form: write {address}", field="host")
    return host if address is None else str(address)


def split_port(written: str) -> tuple[str, int | None]:
    """`host`, `host:port`, `[address]` or `[address]:port`. Raises InvalidInput."""
    if written.startswith("["):
        host, bracket, rest = written[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _no_host(written, PATTERN_FORMS)
        port = rest[1:] if rest else None
    elif written.count(":") == 1:
        host, _, port = written.partition(":")
    else:
        host, port = written, None
    if port is None:
        return host, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise InvalidInput(f"{written!r} has no port that can be: write example.org:8080", field="host")
    return host, int(port)


def host_and_port(url: httpx.URL) -> str:
    """The host of a checked URL, with `:port` where that is no standard one."""
    host = url.raw_host.decode("ascii")
    if url.port is None or url.port in STANDARD_PORTS.values():
        return host
    return f"[{host}]:{url.port}" if ":" in host else f"{host}:{url.port}"


def _rule(pattern: str) -> HostRule:
    if len(pattern) > PATTERN_MAX_CHARS:
        raise InvalidInput(f"a host has at most {PATTERN_MAX_CHARS} characters", field="host")
    host, port = split_port(pattern.strip())
    if host == "*":
        return HostRule("", below=True, port=port)
    below = host.startswith("*.")
    return HostRule(normal_host(host.removeprefix("*."), PATTERN_FORMS), below=below, port=port)


def _no_host(written: str, forms: str) -> InvalidInput:
    return InvalidInput(f"{written[:100]!r} is no host: write {forms}", field="host")
