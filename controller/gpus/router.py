"""An external model router: it gets each machine's model server, and loses it before the machine goes.

`PUT {GPU_ROUTER_URL}/{name}` with the server, and `DELETE` of the same. Both may come twice.
"""

from typing import Any

import httpx

from backplane.domain.budgets import MICRO
from backplane.domain.gpus import RegisteredServer
from backplane.errors import Unavailable
from backplane.net.hang_ups import hang_ups_as

ROUTER_SECONDS = 10.0


class ModelRouter:
    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=ROUTER_SECONDS,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def register(self, server: RegisteredServer, token: str, certificate: str) -> None:
        """Raises Unavailable."""
        body = {
            "name": server.name,
            "type": server.kind,
            "endpoint": server.url,
            "models": list(server.models),
            "gpu_type": server.gpu_type,
            "cost_per_hour": server.micro_usd_per_hour / MICRO,
            "slots": server.slots,
            "token": token,
            "certificate": certificate,
        }
        await self._call("PUT", server.name, json=body)

    async def deregister(self, name: str) -> None:
        """One that is not there is no error. Raises Unavailable."""
        await self._call("DELETE", name)

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, name: str, **request: Any) -> None:
        try:
            with hang_ups_as(httpx.ConnectError):
                response = await self._client.request(method, f"{self._url}/{name}", **request)
        except httpx.HTTPError as error:
            message = f"the model router does not answer ({type(error).__name__})"
            raise Unavailable(message, part="router") from None
        if not response.is_success and not (method == "DELETE" and response.status_code == httpx.codes.NOT_FOUND):
            raise Unavailable(f"the model router answered {response.status_code} to {method}", part="router")
