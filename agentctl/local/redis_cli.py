"""How a person reaches the platform's Redis with its own client."""

import os
import shlex
import shutil
from pathlib import Path
from urllib.parse import quote

from agentctl.local.embedded import CLIENTS, find_redis_server


def url_for_redis_cli(url: str, username: str = "", password: str = "") -> str:
    """With the credentials that the settings name beside it, and with the user of a password named: where there is
    none, redis-cli sends an empty name, which Redis refuses."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"redis", "rediss"}:
        return url
    before, _, place = rest.rpartition("@")
    user, _, secret = before.partition(":")
    secret = quote(password, safe="") or secret
    return f"{scheme}://{quote(username, safe='') or user or 'default'}:{secret}@{place}" if secret else url


def redis_cli_line(data: Path, socket: Path | None) -> str:
    """How a person reaches Redis from any folder, to be pasted into a shell; the password stays in its file. Empty for
    a Redis that redis-cli takes no URL of: sentinels, a cluster, a socket of others.

    `data` is the platform's folder, `socket` that of the embedded Redis.
    """
    data = data.absolute()
    if socket is None:
        file = data / "redis.url"
        takes_url = file.read_text("utf-8").startswith(("redis://", "rediss://"))
        return f'{redis_cli()} -u "$(cat {shlex.quote(str(file))})"' if takes_url else ""
    password = shlex.quote(str(data / "redis.password"))
    return f'REDISCLI_AUTH="$(cat {password})" {redis_cli()} -s {shlex.quote(str(socket.absolute()))}'


def redis_cli() -> str:
    """The client's name, or its path where it is not in PATH but comes with the server."""
    if in_path := next(filter(shutil.which, CLIENTS), None):
        return in_path
    server = find_redis_server()
    beside = [server.with_name(name) for name in CLIENTS] if server else []
    return next((shlex.quote(str(path)) for path in beside if os.access(path, os.X_OK)), "redis-cli")
