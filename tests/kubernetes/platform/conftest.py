"""The platform, deployed once a session by its own script, with its servers on the cluster's node.

It needs a cluster of its own (KUBECONFIG), whose node is this machine, and the image in it:

    KUBECONFIG=… AGENT_IMAGE=localhost/agent-api:test make test-kubernetes

The namespaces `agents` and `agents-tools` must not be there before; they are removed afterwards.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import started
from tests.kubernetes.platform.deployment import (
    NAMESPACE,
    PRIORITY_CLASS,
    PROJECT,
    TOOLS_NAMESPACE,
    Deployment,
    User,
)
from tests.kubernetes.platform.node_servers import ApiServerProxy, NodePostgres, NodeRedis, NodeS3

SETTINGS = {
    "S3_CREATE_BUCKET": "true",
    "LEASE_SECONDS": "4",
    "HEARTBEAT_SECONDS": "1",
    "QUEUE_MAX_WAITING": "0",
    "QUEUE_MAX_WAITING_ALL": "0",
    "API_RATE_PER_SECOND": "0",
    "WORKER_GRACE_SECONDS": "5",
    "SANDBOX_CPUS": "0.05",
    "SANDBOX_MEMORY_BYTES": str(64 * 1024**2),
    "WORKSPACE_MAX_BYTES": str(64 * 1024**2),
    "QUEUES": "gpu",
}
"""Of `agent-site`: a lost worker is noticed soon, and a small node has room for a dozen sandboxes."""


ROLE = '''
import asyncio, os
import redis.asyncio
from worker.roles import Agent, Message, Role


async def count(key: str) -> int:
    async with redis.asyncio.from_url(os.environ["REDIS_URL"]) as client:
        return int(await client.incr(f"counted:{key}"))


class Echo(Role):
    """Counts each piece of a turn in Redis, and takes a second for it."""

    async def on_message(self, message: Message, agent: Agent) -> str:
        done = [await self.piece(message, agent, number) for number in range(int(message.text))]
        return " ".join(map(str, done))

    async def piece(self, message: Message, agent: Agent, number: int) -> int:
        counted = await agent.step(f"piece-{number}", count, f"{agent.name}:{message.turn}:{number}")
        await asyncio.sleep(1)
        return counted
'''
"""Needs no model. A piece that is done twice is counted twice, and the answer shows it."""


def lacking(what: str) -> None:
    """Skips on a machine without, and fails where it was promised."""
    message = f"needs {what}"
    if os.environ.get("CI") and os.environ.get("KUBERNETES_REQUIRED"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def kubectl(kubeconfig: str) -> str:
    found = shutil.which(os.environ.get("KUBECTL", "kubectl"))
    if found is None:
        lacking("kubectl in PATH, or its path in KUBECTL")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def node_address(kubectl: str) -> str:
    """The node's address as its pods see it; it is one of this machine's, so that servers can be bound to it."""
    template = 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    address = subprocess.run(
        [kubectl, "get", "nodes", "-o", template], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        lacking("a cluster whose node is this machine, where its pods reach servers of the tests")
    return address


@pytest.fixture(scope="module")
def servers(
    kubectl: str, node_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NodeRedis, NodePostgres, NodeS3, dict[str, str]]]:
    """Redis, PostgreSQL, S3, and where pods reach the API server."""
    folder = tmp_path_factory.mktemp("servers")
    view = [kubectl, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]
    server = urlsplit(subprocess.run(view, capture_output=True, text=True, check=True).stdout)
    assert server.hostname
    with ExitStack() as stack:
        redis = stack.enter_context(started(lambda: NodeRedis(folder / "redis", node_address)))
        postgres = stack.enter_context(started(lambda: NodePostgres(folder / "postgres", node_address)))
        s3 = stack.enter_context(started(lambda: NodeS3(folder / "s3", node_address)))
        target = (server.hostname, server.port or 443)
        proxy = stack.enter_context(started(lambda: ApiServerProxy(folder / "proxy", node_address, target)))
        yield redis, postgres, s3, {"KUBERNETES_SERVICE_HOST": node_address, "KUBERNETES_SERVICE_PORT": str(proxy.port)}


@pytest.fixture(scope="module")
def deployment(
    kubectl: str,
    servers: tuple[NodeRedis, NodePostgres, NodeS3, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """Not applied yet: the overlay, and the credentials as a file. It goes with the last test of the platform, since
    others need the processors that it asks for."""
    image = os.environ.get("AGENT_IMAGE", "")
    if not image:
        lacking("an image that the cluster has: set AGENT_IMAGE")
    redis, postgres, s3, api_server = servers
    folder = tmp_path_factory.mktemp("deployment").resolve()
    credentials = {
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url(postgres.create_database()),
        "S3_BUCKET": "workspaces",
        "S3_ENDPOINT": s3.endpoint,
        "S3_REGION": s3.region,
        "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
    }
    file = folder / "credentials.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in credentials.items()))
    overlay = folder / "overlay"
    overlay.mkdir()
    write_overlay(overlay, SETTINGS | {"SANDBOX_IMAGE": image} | api_server)
    platform = Deployment(kubectl, overlay, file, image)
    for namespace in (NAMESPACE, TOOLS_NAMESPACE):
        if platform.run("get", "namespace", namespace, "--ignore-not-found"):
            pytest.fail(f"the cluster has a namespace {namespace} already; give these tests one of their own")
    try:
        yield platform
    finally:
        for namespace in (NAMESPACE, TOOLS_NAMESPACE):
            platform.run("delete", "deployments,jobs", "--all", "-n", namespace, "--wait=false")
            platform.run("delete", "pods", "--all", "-n", namespace, "--force", "--grace-period=0", "--wait=false")
        platform.run("delete", "namespace", NAMESPACE, TOOLS_NAMESPACE, "--ignore-not-found", "--timeout=110s")
        platform.run("delete", "priorityclass", PRIORITY_CLASS, "--ignore-not-found")


def write_overlay(folder: Path, settings: dict[str, str]) -> None:
    """What `k8s/overlays/minimal` has, with a site's settings: the way an operator would set them."""
    base = os.path.relpath(PROJECT / "k8s" / "overlays" / "minimal", folder)
    literals = "".join(f"      - {name}={value}\n" for name, value in settings.items())
    (folder / "kustomization.yaml").write_text(
        f"bases:\n  - {base}\n"
        f"configMapGenerator:\n  - name: agent-site\n    namespace: {NAMESPACE}\n    literals:\n{literals}"
        f"  - name: agent-roles\n    namespace: {NAMESPACE}\n    files:\n      - echo.py\n"
        "patchesStrategicMerge:\n  - roles.yaml\n"
    )
    (folder / "echo.py").write_text(ROLE)
    (folder / "roles.yaml").write_text(example("# my-site/roles.yaml"))


def example(beginning: str) -> str:
    """The example in docs/kubernetes.md that begins so."""
    page = (PROJECT / "docs" / "kubernetes.md").read_text()
    [found] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if beginning in block]
    return str(found)


@pytest.fixture(scope="module")
def first_deployment(deployment: Deployment) -> "subprocess.CompletedProcess[str]":
    """The script's end, from nothing: what each test of the platform builds on."""
    done = deployment.deploy("--timeout", "180")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def user(deployment: Deployment, first_deployment: "subprocess.CompletedProcess[str]") -> User:
    return User(deployment, deployment.token("tester"))
