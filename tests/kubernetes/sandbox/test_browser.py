"""The browser tool in a pod that has no network: what it visits goes over the stream to the worker."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browsing import Visitor, served_pages, visiting
from tests.contracts.sandbox.sandboxes import Place, opened

pytestmark = pytest.mark.kubernetes


@pytest.fixture
async def visitor(tmp_path: Path, namespace: str, kubeconfig: str) -> AsyncIterator[Visitor]:
    image = os.environ.get("KUBERNETES_BROWSER_IMAGE")
    if not image:
        pytest.skip("KUBERNETES_BROWSER_IMAGE names no image with a browser (make browser-image)")
    async with (
        opened(Place("kubernetes", namespace=namespace, image=image, kubeconfig=kubeconfig)) as sandbox,
        visiting(sandbox, tmp_path, "python3") as visitor,
    ):
        yield visitor


async def test_a_page_is_visited_from_a_pod_without_a_network(visitor: Visitor) -> None:
    with served_pages() as site:
        result, said = await visitor.browse(
            site,
            {"do": "open", "url": f"http://{site}/"},
            {"do": "fill", "selector": "[name=who]", "value": "pod"},
            {"do": "screenshot", "path": "form.png"},
            {"do": "click", "selector": "text=Go"},
            {"do": "text"},
            {"do": "open", "url": f"http://{site}/"},
            {"do": "click", "selector": "text=elsewhere"},
            {"do": "text"},
        )
    assert (result.exit_code, result.files_changed) == (0, ("form.png",)), said
    assert "who=pod" in said
    assert "tools may not reach evil.test" in said
