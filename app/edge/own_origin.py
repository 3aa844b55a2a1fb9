"""Whether a request that carries a session's cookie was made by a page of the API's own origin.

A browser sends the cookie whoever asked, so the cookie alone says nothing. What a page cannot write by itself says who
asked: `Origin`, and `Sec-Fetch-Site`, which browsers send to hosts that they trust (https, and this machine).

- What changes something needs an `Origin` that is the API's own.
- What only reads needs that too, or `Sec-Fetch-Site: same-origin`. Where a browser sends neither, over plain http, it
  needs the header `X-Agent-Console`: a page of another origin would have to be allowed it, and the API allows none.

The own origin is the scheme and the host that the browser sees: `Host`, or X-Forwarded-Host and X-Forwarded-Proto of a
proxy that API_TRUSTED_PROXIES names. A proxy that takes TLS away and does not say so is no obstacle: there the
browser's `Sec-Fetch-Site: same-origin` vouches for an `Origin` that differs by https alone.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import Scope

from app.auth import COOKIE
from app.edge.connections import TrustedProxies
from app.edge.protocol import SCOPE_CONNECTION, LimitedProtocol
from app.edge.root_path import CAME_AS
from backplane.errors import ForeignOrigin

OWN_HEADER = b"x-agent-console"
_DEFAULT_PORT = {"http": 80, "https": 443}
_THIS_HOST_ALONE = "__Host-"
"""With it, browsers take a cookie from this very host alone, over https: no other host of its domain can set one."""


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection; empty where nobody knows it."""
    connection: LimitedProtocol | None = scope.get(SCOPE_CONNECTION)
    peer: str = connection.peer if connection is not None else (scope.get("client") or ("",))[0]
    return peer


def own_origin(scope: Scope, proxies: TrustedProxies) -> str:
    """Like `https://agents.example.org:8443`, without the port where it is the scheme's; "" without a valid Host."""
    headers = _headers(scope)
    scheme, hosts = scope.get("scheme", "http"), headers.get(b"host", [])
    if peer_of(scope) in proxies:
        scheme = _first(headers, b"x-forwarded-proto") or scheme
        forwarded = _first(headers, b"x-forwarded-host")
        hosts = [forwarded] if forwarded else hosts
    return normalised(f"{scheme.lower()}://{hosts[0]}") if len(hosts) == 1 else ""


def check_own(scope: Scope, own: str) -> None:
    """Raises ForeignOrigin. `own` is what `own_origin` gave."""
    headers = _headers(scope)
    reads = scope["method"] in ("GET", "HEAD")
    origins, sites = headers.get(b"origin", []), headers.get(b"sec-fetch-site", [])
    if len(origins) > 1 or len(sites) > 1:
        raise ForeignOrigin("send `Origin` and `Sec-Fetch-Site` once each")
    is_vouched = sites == ["same-origin"]
    if sites and not is_vouched:
        raise _foreign(f"`Sec-Fetch-Site` is {sites[0][:40]!r}")
    if origins:
        if not _is_own(origins[0], own, is_vouched=is_vouched):
            raise _foreign(f"`Origin` is {origins[0][:200]!r}, and the API's own is {own!r}")
    elif not (reads and (is_vouched or OWN_HEADER in headers)):
        raise _foreign("there is no `Origin`")


def check_not_foreign(scope: Scope, own: str) -> None:
    """As `check_own`, of what carries no cookie: a program, which sends none of a browser's headers, may ask too."""
    headers = _headers(scope)
    if b"origin" in headers or b"sec-fetch-site" in headers:
        check_own(scope, own)


def normalised(origin: str) -> str:
    """`scheme://host[:port]` in lower case, without the scheme's own port; "" where it is no origin of the web."""
    try:
        parts = urlsplit(origin.lower())
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in _DEFAULT_PORT or not parts.hostname or "@" in parts.netloc:
        return ""
    if parts.path or parts.query or parts.fragment or origin.endswith(("?", "#")):
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, _DEFAULT_PORT[parts.scheme]) else "")


def cookie_name(*, is_https: bool, path: str) -> str:
    return f"{_THIS_HOST_ALONE}{COOKIE}" if is_https and path == "/" else COOKIE


def cookie_path(scope: Scope) -> str:
    """The path below which the browser sees the API, as far as the API knows it."""
    came_as: str = scope.get(CAME_AS, scope["path"])
    return came_as.removesuffix(scope["path"]) or "/"


def session_value(scope: Scope, own: str) -> str | None:
    """The value of the session's cookie. None where there is none, or where there are several: another host of the
    domain, or another path, has set one too, and nobody can say which is the person's."""
    found: dict[str, list[str]] = {COOKIE: [], _THIS_HOST_ALONE + COOKIE: []}
    for header in _headers(scope).get(b"cookie", []):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name in found:
                found[name].append(value.strip())
    expected = cookie_name(is_https=own.startswith("https:"), path=cookie_path(scope))
    values = found[_THIS_HOST_ALONE + COOKIE] or found[expected]
    return values[0] or None if len(values) == 1 else None


def _is_own(origin: str, own: str, *, is_vouched: bool) -> bool:
    given = normalised(origin)
    if not given or not own:
        return False
    return given == own or (is_vouched and given == own.replace("http://", "https://", 1))


def _headers(scope: Scope) -> Mapping[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value.decode("latin-1"))
    return found


def _first(headers: Mapping[bytes, list[str]], name: bytes) -> str:
    return headers[name][0].partition(",")[0].strip() if name in headers else ""


def _foreign(why: str) -> ForeignOrigin:
    return ForeignOrigin(
        f"a session's cookie counts only for pages of the API's own origin, and {why}; send the header "
        "`Authorization: Bearer TOKEN`, or, where a proxy stands before the API, let it pass `Host` on, or name it in "
        "API_TRUSTED_PROXIES and let it send X-Forwarded-Host and X-Forwarded-Proto"
    )
