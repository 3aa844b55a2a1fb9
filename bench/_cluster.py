"""A namespace for a benchmark, on the cluster that KUBECONFIG names: a bare pod in it, and what the API server counts.

The account must be an administrator's: it makes the namespace, and looks at nodes and at the server's own metrics.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from kubernetes.client import ApiClient
from kubernetes.config import new_client_from_config

from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.process.retrying import pauses

READY_SECONDS = 120.0
LOOK_SECONDS = 0.1
SPARE_PODS = 5
"""Left to others on the cluster, who come and go."""
_ACTIVE = "status.phase!=Succeeded,status.phase!=Failed"
_COUNTED = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class Namespace:
    """Made by `open_namespace`."""

    def __init__(self, api: ApiServer, name: str) -> None:
        self._api = api
        self._pods_path = f"/api/v1/namespaces/{name}/pods"

    async def run_pod(self, name: str, image: str, *command: str) -> float:
        """What `kubectl run --restart=Never` does: seconds from the pod's creation until it is known to have ended."""
        pod = {
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": name, "image": image, "command": list(command)}],
            },
        }
        began = time.perf_counter()
        made = await self._api.call("POST", self._pods_path, body=pod)
        query = [("fieldSelector", f"metadata.name={name}")]
        changes = self._api.watch(self._pods_path, query, made["metadata"]["resourceVersion"])
        async with contextlib.aclosing(changes):
            async for _, seen in changes:
                phase = seen.get("status", {}).get("phase")
                if phase == "Succeeded":
                    took = time.perf_counter() - began
                    await self._api.call("DELETE", f"{self._pods_path}/{name}")
                    return took
                if phase == "Failed":
                    break
        raise RuntimeError(f"the bare pod {name} did not succeed")

    async def settled(self, pods: int) -> None:
        """Wait until only so many pods run here: what has ended is cleared away, and costs the node nothing more."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                active = await self._api.call("GET", self._pods_path, [("fieldSelector", _ACTIVE)])
                if len(active["items"]) <= pods:
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def fitting(self, cpus: float, memory_bytes: int) -> int:
        """How many more pods with such requests the nodes can take."""
        nodes = (await self._api.call("GET", "/api/v1/nodes"))["items"]
        pods = (await self._api.call("GET", "/api/v1/pods", [("fieldSelector", _ACTIVE)]))["items"]
        fitting = 0
        for node in nodes:
            there = [pod["spec"] for pod in pods if pod["spec"].get("nodeName") == node["metadata"]["name"]]
            allocatable = node["status"]["allocatable"]

            def free(what: str, there: list[Any] = there, allocatable: Any = allocatable) -> float:
                asked = (each.get("resources", {}).get("requests", {}) for pod in there for each in pod["containers"])
                return quantity(allocatable[what]) - sum(quantity(requests.get(what, "0")) for requests in asked)

            places = int(allocatable["pods"]) - len(there) - SPARE_PODS
            fitting += max(0, min(places, int(free("cpu") / cpus), int(free("memory") / memory_bytes)))
        return fitting


def quantity(text: str) -> float:
    number = text.rstrip("mkMGiK")
    return float(number) * _UNITS[text[len(number) :]]


async def counted() -> Counter[str]:
    """How many requests the API server has answered so far, whoever sent them, by verb and resource."""
    text = await asyncio.to_thread(_metrics)
    found: Counter[str] = Counter()
    for labels, value in _COUNTED.findall(text):
        label = dict(_LABEL.findall(labels))
        what = "/".join(part for part in (label["resource"], label["subresource"]) if part)
        found[f"{label['verb']} {what}"] += int(float(value))
    return found


def _metrics() -> str:
    api: ApiClient
    with new_client_from_config() as api:  # type: ignore[no-untyped-call]
        settings = api.configuration.auth_settings().get("BearerToken")
        headers = {settings["key"]: settings["value"]} if settings else {}
        answer = api.call_api("GET", f"{api.configuration.host}/metrics", header_params=headers)
        return bytes(answer.read()).decode()  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def open_namespace(name: str) -> AsyncIterator[Namespace]:
    """A new namespace, which goes at the end with all that is in it. Raises Unavailable without a cluster."""
    async with open_api_server() as api:
        await _removed(api, name)
        await api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        try:
            # Without its default account no pod can be made in it.
            await _until(lambda: api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default"), there=True)
            yield Namespace(api, name)
        finally:
            await _removed(api, name)


async def _removed(api: ApiServer, name: str) -> None:
    path = f"/api/v1/namespaces/{name}"
    with contextlib.suppress(ApiRefused):
        await api.call("DELETE", path)
    await _until(lambda: api.call("GET", path), there=False)


async def _until(look: Callable[[], Any], *, there: bool) -> None:
    async with asyncio.timeout(READY_SECONDS):
        for pause in pauses():
            try:
                await look()
                found = True
            except ApiRefused as refused:
                if refused.status != 404:
                    raise
                found = False
            if found == there:
                return
            await asyncio.sleep(pause)
