"""The configuration of the tunnel (cloudflared) from the services that have a public endpoint, and the tunnel's rules.

Facts from its documentation: rules are tried in order, and the first that matches is taken; the last one must match
everything; a wildcard matches every name that ends so; options of `originRequest` that concern access count at a rule
only; the file is read when the tunnel starts, and not again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode
from backplane.net.go_patterns import go_pattern_fault

NOT_FOUND = {"service": "http_status:404"}
SCHEMES = frozenset({"http", "https", "tcp", "ssh", "rdp", "smb", "unix", "unix+tls", "ws", "wss"})
KEYS = frozenset({"hostname", "path", "service", "originRequest"})

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_STATUS = re.compile(r"http_status:([1-9][0-9]{2})")


def tunnel_config(services: Sequence[JsonObject], base: Mapping[str, Any], access: Mapping[str, Any]) -> dict[str, Any]:
    """`services`: as a file or the API has them. `base`: what else the file has (tunnel, credentials-file, …).
    `access`: for each rule; empty: none. Raises CommandError with all that is wrong."""
    public = [service for service in services if service.get("public_endpoint") and not service.get("deleting")]
    # Of one host name, rules with a path go before that without, and longer paths before shorter ones.
    public.sort(key=lambda each: (each["public_endpoint"].lower(), -len(each.get("public_path") or ""), each["name"]))
    rules = [_rule(service, access) for service in public]
    config = {**{key: value for key, value in base.items() if key != "ingress"}, "ingress": [*rules, dict(NOT_FOUND)]}
    if wrong := list(faults(config)):
        raise CommandError(ExitCode.USAGE, "\n".join(["The tunnel would not take this:", *wrong]))
    return config


def _rule(service: JsonObject, access: Mapping[str, Any]) -> dict[str, Any]:
    host = service.get("host") or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    rule: dict[str, Any] = {"hostname": service["public_endpoint"].lower()}
    if service.get("public_path"):
        rule["path"] = service["public_path"]
    rule["service"] = f"{service.get('protocol') or 'http'}://{host}:{service['port']}"
    return rule | ({"originRequest": {"access": dict(access)}} if access else {})


def faults(config: Any) -> Iterator[str]:
    """All that is wrong with a configuration, each with its place."""
    if not isinstance(config, Mapping) or not isinstance(config.get("ingress"), list) or not config["ingress"]:
        yield "ingress: it must be a list with a rule that matches everything at its end"
        return
    options = config.get("originRequest") or {}
    if not isinstance(options, Mapping):
        yield "originRequest: it must be an object"
    elif "access" in options:
        yield "originRequest.access: at the top it has no effect; write it at each rule"
    seen = dict[str, tuple[int, set[str]]]()
    last = len(config["ingress"]) - 1
    for number, rule in enumerate(config["ingress"]):
        place = f"ingress.{number}"
        if not isinstance(rule, Mapping):
            yield f"{place}: it must be an object"
            continue
        for key in sorted(set(rule) - KEYS):
            yield f"{place}.{key}: a rule has no such field"
        yield from _service_faults(f"{place}.service", rule.get("service"))
        hostname, path = rule.get("hostname") or "", rule.get("path") or ""
        if not hostname and not path:
            if number != last:
                yield f"{place}: it matches everything, so the rules behind it never do; only the last one may"
            continue
        if number == last:
            yield f"{place}: the last rule must match everything; add one with `service: http_status:404`"
        yield from _hostname_faults(f"{place}.hostname", hostname)
        yield from _path_faults(f"{place}.path", path)
        path = str(path)
        first, paths = seen.setdefault(str(hostname).lower(), (number, set()))
        if path in paths or "" in paths:
            yield f"{place}: a rule before it (from ingress.{first} on) takes all that it would match"
        paths.add(path)


def _hostname_faults(place: str, hostname: Any) -> Iterator[str]:
    if not hostname:
        return
    if not isinstance(hostname, str):
        yield f"{place}: it must be a text"
    elif "*" in hostname:
        if not hostname.startswith("*.") or "*" in hostname[1:]:
            yield f"{place}: a wildcard may only be the whole first label"
        else:
            yield f"{place}: a wildcard matches every name that ends so; write exact host names"
    elif ":" in hostname:
        yield f"{place}: a host name has no port"
    elif "/" in hostname or len(hostname) > 253 or not all(_LABEL.fullmatch(part) for part in hostname.split(".")):
        yield f"{place}: {hostname[:100]!r} is no host name"


def _path_faults(place: str, path: Any) -> Iterator[str]:
    if path and not isinstance(path, str):
        yield f"{place}: it must be a text"
    elif path and (found := go_pattern_fault(path)):
        yield f"{place}: {found}"


def _service_faults(place: str, service: Any) -> Iterator[str]:
    if not isinstance(service, str) or not service:
        yield f"{place}: a rule needs a service: a URL without a path, unix:PATH or http_status:CODE"
        return
    if service.startswith("http_status:"):
        if not _STATUS.fullmatch(service):
            yield f"{place}: http_status takes a status from 100 to 999, such as http_status:404"
        return
    if service in ("hello_world", "hello-world", "bastion", "socks-proxy"):
        return
    scheme, _, rest = service.partition(":")
    if scheme not in SCHEMES:
        yield f"{place}: it must begin with one of {', '.join(sorted(SCHEMES))}, or http_status:"
    elif scheme.startswith("unix"):
        if not rest:
            yield f"{place}: {scheme}: names no socket"
    else:
        yield from _url_faults(place, service)


def _url_faults(place: str, service: str) -> Iterator[str]:
    try:
        url = httpx.URL(service)
    except httpx.InvalidURL as error:
        yield f"{place}: it is no URL: {error}"
        return
    if not url.host or "%" in url.host:
        yield f"{place}: the URL has no host"
    if url.port is not None and not 0 < url.port < 65536:
        yield f"{place}: the URL has no port that can be"
    if url.path not in ("", "/") or url.query or url.fragment or service.endswith("/"):
        yield f"{place}: a URL has no path here; a rule's own path says what it matches"
    if url.userinfo:
        yield f"{place}: leave the user and the password out"
