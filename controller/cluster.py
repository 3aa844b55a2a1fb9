"""The Kubernetes API as the controller uses it: a client for a while, and its errors as the platform's own.

Inside a cluster the pod's service account is used, outside the kubeconfig (KUBECONFIG, else ~/.kube/config).

The client's library takes two seconds to load, more than half of the controller's start, so it is loaded when a cluster
is first used.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backplane.errors import Unavailable

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

REQUEST_SECONDS = 15.0
_GONE, _GONE_OR_CHANGED = (404,), (404, 409)
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def own_namespace() -> str:
    """The namespace of this pod; empty outside a cluster, and in a pod without a service account's token."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text("utf-8").strip()
    except OSError:
        return ""


class Cluster:
    """The calls that a controller makes. Each raises Unavailable, which says what right is missing if one is."""

    def __init__(self, client: "ApiClient") -> None:
        library = _library()
        self.client = client
        self._jobs: Any = library.BatchV1Api(client)
        self._pods: Any = library.CoreV1Api(client)

    async def jobs(self, namespace: str, selector: str, *, page: int) -> AsyncIterator[dict[str, Any]]:
        """All Jobs that `selector` selects by their labels, so many in a request."""
        following: dict[str, str] = {}
        while True:
            with _translated(f"list jobs in {namespace}"):
                listed = await _answered(
                    self._jobs.list_namespaced_job_without_preload_content(
                        namespace, label_selector=selector, limit=page, _request_timeout=REQUEST_SECONDS, **following
                    )
                )
            for item in listed["items"]:
                yield item
            if not listed["metadata"].get("continue"):
                return
            following = {"_continue": listed["metadata"]["continue"]}

    async def delete_job(self, namespace: str, name: str, *, uid: str, version: str) -> bool:
        """Delete a Job with its pods; False when it is gone, or another one, or was changed since that version."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid, "resourceVersion": version}}
        return await self._unless(
            _GONE_OR_CHANGED,
            f"delete jobs in {namespace}",
            self._jobs.delete_namespaced_job_without_preload_content(
                name, namespace, body=body, _request_timeout=REQUEST_SECONDS
            ),
        )

    async def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        with _translated(f"list pods in {namespace}"):
            listed = await _answered(
                self._pods.list_namespaced_pod_without_preload_content(
                    namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
                )
            )
        found: list[dict[str, Any]] = listed["items"]
        return found

    async def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str]) -> bool:
        """False when it is gone. By way of the pod's status, whose right does not include its specification: who may
        patch pods themselves may give them another image."""
        return await self._unless(
            _GONE,
            f"patch pods/status in {namespace}",
            self._pods.patch_namespaced_pod_status_without_preload_content(
                name,
                namespace,
                body={"metadata": {"annotations": dict(annotations)}},
                _request_timeout=REQUEST_SECONDS,
            ),
        )

    @staticmethod
    async def _unless(expected: Collection[int], what: str, call: Awaitable[Any]) -> bool:
        with _translated(what):
            try:
                await _answered(call)
            except _library().ApiException as error:
                if error.status not in expected:
                    raise
                return False
        return True


@asynccontextmanager
async def connect_cluster() -> AsyncIterator[Cluster]:
    """Raises Unavailable when nothing says where the API server is, or how to log in."""
    library = await asyncio.to_thread(_library)
    loading = await asyncio.to_thread(import_module, "kubernetes.aio.config")
    configuration = library.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
            loading.load_incluster_config(client_configuration=configuration)
        else:
            file = os.environ.get("KUBECONFIG") or None
            await loading.load_kube_config(config_file=file, client_configuration=configuration)
    except (loading.ConfigException, OSError) as error:
        raise Unavailable(
            f"cannot tell which cluster to use ({error}); run in a pod with a service account, or set KUBECONFIG",
            part="kubernetes",
        ) from error
    async with library.ApiClient(configuration=configuration) as client:
        yield Cluster(client)


def _library() -> Any:
    library: Any = import_module("kubernetes.aio.client")
    # These are loaded when they are first asked for, and take most of the time.
    _ = library.BatchV1Api, library.CoreV1Api
    return library


async def _answered(call: Awaitable[Any]) -> dict[str, Any]:
    """The JSON that one of the client's calls `…_without_preload_content` was answered with. Raises ApiException.

    The client's own models check every field: that takes twenty times as long, all at once, and a server of another
    release may not please them.
    """
    response = await call
    content = await response.read()
    if not 200 <= response.status < 300:
        raise _library().ApiException(status=response.status, reason=response.reason)
    answer: dict[str, Any] = json.loads(content)
    return answer


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """`what` was asked for, such as "list jobs in agents-tools"; it stands in what Unavailable says."""
    try:
        yield
    except _library().ApiException as error:
        advice = f"; let the controller's service account {what}" if error.status in (401, 403) else ""
        message = f"the API server refuses to {what}: {error.status} {error.reason}{advice}"
        raise Unavailable(message, part="kubernetes") from error
    except (import_module("aiohttp").ClientError, TimeoutError, OSError, ValueError) as error:
        message = f"the API server does not answer: {type(error).__name__}: {error}"
        raise Unavailable(message, part="kubernetes") from error
