"""A controller without its cluster says what is wrong."""

from pathlib import Path

import pytest
from controller.cluster import connect_cluster

from backplane.errors import Unavailable
from tests.ports import own_port

NOWHERE = """
apiVersion: v1
kind: Config
current-context: nowhere
contexts: [{{name: nowhere, context: {{cluster: nowhere, user: nobody}}}}]
clusters: [{{name: nowhere, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: nobody, user: {{token: none}}}}]
"""


@pytest.mark.slow  # loads the library
async def test_a_cluster_that_nothing_names_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Unavailable, match="set KUBECONFIG"):
        async with connect_cluster():
            pass


@pytest.mark.slow  # loads the library
async def test_a_cluster_that_does_not_answer_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(NOWHERE.format(port=own_port()))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with connect_cluster() as cluster:
        with pytest.raises(Unavailable, match="does not answer"):
            await cluster.pods("workers", "app=worker")
