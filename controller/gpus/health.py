"""Whether the model server on a machine serves: asked with the machine's own token over TLS, as workers do."""

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from backplane.domain.sizes import MIB
from backplane.net.hang_ups import hang_ups_as

CHECK_SECONDS = 5.0
ANSWER_MAX_BYTES = 1 * MIB
_LISTS = {"ollama": "/api/tags", "openai": "/models"}


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked. `certificate`: the only one that is trusted, as PEM; empty: those that the system trusts.
    `models`: what the server has to offer."""

    url: str
    kind: str
    token: str
    certificate: str
    models: Sequence[str]


async def fault_of(probe: Probe) -> str | None:
    """Why the model server does not serve, in a short sentence without its token; None: it does."""
    try:
        async with httpx.AsyncClient(
            verify=_trust(probe.certificate), timeout=CHECK_SECONDS, follow_redirects=False, trust_env=False
        ) as client:
            headers = {"Authorization": f"Bearer {probe.token}"} if probe.token else {}
            with hang_ups_as(httpx.ConnectError):
                async with client.stream("GET", f"{probe.url}{_LISTS[probe.kind]}", headers=headers) as response:
                    if not response.is_success:
                        return f"its model server answered {response.status_code}"
                    body = bytearray()
                    async for piece in response.aiter_bytes():
                        body += piece
                        if len(body) > ANSWER_MAX_BYTES:
                            return "its model server answered with too much"
    except httpx.TimeoutException:
        return f"its model server did not answer within {CHECK_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        return f"its model server cannot be reached ({type(error).__name__})"
    there = _models(bytes(body))
    if there is None:
        return "its model server answered with no list of models"
    missing = [model for model in probe.models if model not in there and f"{model}:latest" not in there]
    return f"its model server has not loaded {', '.join(missing)} yet" if missing else None


def _trust(certificate: str) -> ssl.SSLContext:
    """The certificate is the machine's own: whatever its name, nobody else has its key."""
    context = ssl.create_default_context(cadata=certificate or None)
    context.check_hostname = not certificate
    return context


def _models(body: bytes) -> set[str] | None:
    try:
        value = json.loads(body)
        listed = value.get("models", value.get("data"))
        return {str(one.get("name") or one.get("id")) for one in listed}
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
