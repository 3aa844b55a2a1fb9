"""What containers use, by a real engine; and a cluster without a metrics API."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.containers.engine import ContainerEngine
from backplane.errors import Unavailable
from controller.containers.kubernetes import JobsPlace
from controller.containers.loop import CannotBeRead
from tests.podman_images import podman
from tests.scripted_api import answer, scripted_api

ENGINE = ContainerEngine(["podman"])


@pytest.fixture
def label(image: str) -> Iterator[str]:
    """Of one container that runs, and of one that has ended."""
    label = f"agent-platform.test={uuid.uuid4().hex}"
    for command in (["sleep", "600"], ["true"]):
        podman("run", "--detach", f"--label={label}", "--network=none", image, "/bin/sh", "-c", " ".join(command))
    yield label
    for id in podman("ps", "--all", "--quiet", "--filter", f"label={label}").split():
        podman("rm", "--force", "--time", "0", id)


async def test_an_engine_says_what_a_running_container_uses(label: str) -> None:
    [one] = await ENGINE.use(label)
    assert one.cores >= 0
    assert one.memory_bytes >= 0


async def test_a_label_that_nothing_has_is_no_error(label: str) -> None:
    assert list(await ENGINE.use(f"{label}-not")) == []


async def test_an_engine_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await ContainerEngine(["no-such-engine"]).use("a=b")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    return file


def leads_to(file: Path, url: str) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.write_text(json.dumps(config))


async def test_a_cluster_says_what_sandboxes_use(cluster: Path) -> None:
    pod = {"containers": [{"usage": {"cpu": "500m", "memory": "2Ki"}}]}
    with scripted_api([answer(200, {"items": [pod], "metadata": {}})]) as api:
        leads_to(cluster, api.url)
        [one] = await JobsPlace("agents-tools").use()
    assert (one.cores, one.memory_bytes) == (0.5, 2048)
    assert api.requests[0].path.startswith("/apis/metrics.k8s.io/v1beta1/namespaces/agents-tools/pods?labelSelector=")


@pytest.mark.parametrize("status", [403, 404])
async def test_a_cluster_without_a_metrics_api_is_not_asked_again(cluster: Path, status: int) -> None:
    with scripted_api([answer(status, {"kind": "Status", "reason": "No", "message": "not here"})]) as api:
        leads_to(cluster, api.url)
        with pytest.raises(CannotBeRead, match="not here"):
            await JobsPlace("agents-tools").use()
