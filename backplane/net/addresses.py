"""Which addresses are public, and which address a host's text stands for.

Written down here, network by network, because Python's own lists differ between its versions. What a name resolves to
is checked where the connection is made (`backplane.net.egress`).
"""

import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

HOST_MAX_CHARS = 253

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


def is_public(address: Address) -> bool:
    """Whether an address is public. An IPv4 address inside an IPv6 one counts where the network itself translates it
    (mapped, NAT64)."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_6)


def is_host(host: str) -> bool:
    """Whether it can be a host in a URL: a name in ASCII or an address; IPv6 without brackets and without a zone."""
    if ":" in host:
        return "%" not in host and isinstance(written_address(host), IPv6Address)
    return len(host) <= HOST_MAX_CHARS and _NAME.fullmatch(host) is not None


def written_address(host: str) -> Address | None:
    """The address that a host is written as, also in the forms that only C libraries know: `0x7f.1`, `2130706433`."""
    with suppress(ValueError):
        return ip_address(host)
    with suppress(OSError):
        return IPv4Address(socket.inet_aton(host))
    return None
