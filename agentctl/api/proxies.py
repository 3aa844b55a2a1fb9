"""Which proxy of the environment leads to a server: one decision for the one server that a command speaks with.

httpx reads the same variables, but turns every entry of NO_PROXY into a pattern of URLs, and raises where that is none
(`[::1]`, which other programs take). The rules are those of curl: the lower-case name goes first, ALL_PROXY is for what
has no variable of its own, NO_PROXY lists hosts, domains, addresses and networks that are reached without one.
"""

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from agentctl.exit_codes import CommandError, ExitCode

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def client_of(url: str, environment: Mapping[str, str] = os.environ, **arguments: object) -> httpx.AsyncClient:
    """A client for `url`, over the proxy that the environment names for it. Raises CommandError."""
    variable, proxy = proxy_of(url, environment)
    try:
        # With a transport or a proxy of its own, httpx does not look for one.
        route = {"proxy": proxy} if proxy else {"transport": httpx.AsyncHTTPTransport()}
        return httpx.AsyncClient(**{**arguments, **route})  # type: ignore[arg-type]
    except ImportError:
        message = (
            f"{variable} names a SOCKS proxy, and the package socksio is missing: `pip install httpx[socks]`, or put "
            "the server's name into NO_PROXY."
        )
        raise CommandError(ExitCode.USAGE, message) from None
    except (ValueError, httpx.InvalidURL) as error:
        what = f"{variable} is no proxy that can be used" if variable else f"{url!r} is no URL that can be used"
        raise CommandError(ExitCode.USAGE, f"{what}: {_without_password(str(error), proxy)}.") from None
    except OSError as error:
        message = f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be used: {error}."
        raise CommandError(ExitCode.USAGE, message) from None


def proxy_of(url: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The variable that names a proxy for `url`, and its URL; both empty where there is none."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if host in LOOPBACK or _is_excepted(host, _value("NO_PROXY", environment)[1]):
        return "", ""
    for name in (f"{parts.scheme.upper()}_PROXY", "ALL_PROXY"):
        variable, proxy = _value(name, environment)
        if proxy:
            return variable, proxy if "://" in proxy else f"http://{proxy}"
    return "", ""


def _value(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    for spelling in (name.lower(), name):
        if value := environment.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _is_excepted(host: str, exceptions: str) -> bool:
    for entry in exceptions.split(","):
        name = entry.strip().lower().strip("[]").lstrip(".").rstrip(".")
        if not name:
            continue
        if name == "*" or host == name or host.endswith(f".{name}"):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:  # one of them is a name
            continue
    return False


def _without_password(text: str, proxy: str) -> str:
    return text.replace(proxy, "***") if "@" in proxy else text
