"""The Kubernetes API as the controller uses it: a client for a while, and its errors as the platform's own.

Inside a cluster the pod's service account is used, outside the kubeconfig (KUBECONFIG, else ~/.kube/config).
"""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from backplane.errors import Unavailable

REQUEST_SECONDS = 15.0
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def own_namespace() -> str:
    """The namespace of this pod; empty outside a cluster, and in a pod without a service account's token."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return ""


@asynccontextmanager
async def connect_cluster() -> AsyncIterator[ApiClient]:
    """Raises Unavailable when nothing says where the API server is, or how to log in."""
    configuration = Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
            cast(Any, load_incluster_config)(client_configuration=configuration)
        else:
            file = os.environ.get("KUBECONFIG") or None
            await cast(Any, load_kube_config)(config_file=file, client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise Unavailable(
            f"cannot tell which cluster to use ({error}); run in a pod with a service account, or set KUBECONFIG",
            part="kubernetes",
        ) from error
    async with ApiClient(configuration=configuration) as client:
        yield client


async def answered(call: Awaitable[Any]) -> dict[str, Any]:
    """The JSON that one of the client's calls `…_without_preload_content` was answered with. Raises ApiException.

    The client's own models check every field: that takes twenty times as long, all at once, and a server of another
    release may not please them.
    """
    response = await call
    content = await response.read()
    if not 200 <= response.status < 300:
        raise ApiException(status=response.status, reason=response.reason)
    answer: dict[str, Any] = json.loads(content)
    return answer


@contextmanager
def translated(what: str) -> Iterator[None]:
    """`what` was asked for, such as "list jobs in agents-tools"; it stands in what Unavailable says."""
    try:
        yield
    except ApiException as error:
        advice = f"; let the controller's service account {what}" if error.status in (401, 403) else ""
        message = f"the API server refuses to {what}: {error.status} {error.reason}{advice}"
        raise Unavailable(message, part="kubernetes") from error
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        message = f"the API server does not answer: {type(error).__name__}: {error}"
        raise Unavailable(message, part="kubernetes") from error
