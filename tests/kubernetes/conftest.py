"""What every test on a real cluster may ask for: credentials, and a namespace that goes when the session ends.

The cluster is that of KUBECONFIG. Its nodes must have the image KUBERNETES_TEST_IMAGE, or be able to pull it. Without a
cluster the tests are skipped; where CI and KUBERNETES_REQUIRED are set that is a failure.
"""

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from tests.kubernetes.sandbox.workers import IMAGE
from tests.waiting import wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kubernetes)


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """Path of a file with the credentials of a cluster's administrator."""
    if found := os.environ.get("KUBECONFIG"):
        return found
    message = "needs a Kubernetes cluster: let KUBECONFIG name the file with its credentials"
    if os.environ.get("CI") and os.environ.get("KUBERNETES_REQUIRED"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    return IMAGE


@pytest.fixture(scope="session")
def namespace(kubeconfig: str) -> Iterator[str]:
    """A namespace of the session's own, ready for Jobs."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    asyncio.run(_make(kubeconfig, name))
    yield name
    asyncio.run(_remove(kubeconfig, name))


async def _make(kubeconfig: str, name: str) -> None:
    async with open_api_server(kubeconfig) as api:
        await api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        await wait_until(lambda: _has_account(api, name), what="the namespace's service account")


async def _has_account(api: ApiServer, name: str) -> bool:
    try:
        await api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default")
    except ApiRefused:
        return False
    return True


async def _remove(kubeconfig: str, name: str) -> None:
    async with open_api_server(kubeconfig) as api:
        await api.call("DELETE", f"/api/v1/namespaces/{name}")
