"""Where the API is and who asks it, as the environment or `agentctl up` says."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from agentctl.exit_codes import CommandError, ExitCode

DEFAULT_URL = "http://127.0.0.1:8000"


DEFAULT_TOKEN_FILE = Path(".data/token")


def find_url(environment: Mapping[str, str] = os.environ) -> str:
    """AGENT_URL, checked. Raises CommandError."""
    url = environment.get("AGENT_URL", "").strip().rstrip("/") or DEFAULT_URL
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise CommandError(ExitCode.USAGE, f"AGENT_URL must be like {DEFAULT_URL}, not {url!r}.")
    return url


def find_token(environment: Mapping[str, str] = os.environ, file: Path = DEFAULT_TOKEN_FILE) -> str:
    """AGENT_TOKEN, else what `agentctl up` left in `.data/token`. Raises CommandError."""
    token, source = environment.get("AGENT_TOKEN", "").strip(), "AGENT_TOKEN"
    if not token:
        source = str(file)
        try:
            token = file.read_text("ascii").strip()
        except FileNotFoundError:
            raise CommandError(
                ExitCode.USAGE,
                "No token. Set AGENT_TOKEN, or start the platform in this folder by `agentctl up`, which makes one.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(ExitCode.USAGE, f"The token in {file} cannot be read: {error}.") from None
    if not token or not (token.isascii() and token.isprintable()) or " " in token:
        raise CommandError(
            ExitCode.USAGE, f"What {source} holds is no token; a token is one word that begins with agt_."
        )
    return token
