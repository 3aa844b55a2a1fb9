"""What a controller asks an API server, and what it makes of refusals and silence."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import Unavailable
from backplane.kubernetes.api import ApiServer, open_api_server
from controller.cleanup.sandbox_jobs import SandboxJob, delete_jobs, list_jobs
from controller.deletion_cost import ANNOTATION, write_cost
from tests.ports import own_port
from tests.scripted_api import ScriptedApi, answer, scripted_api

CONFIG = """
current-context: c
contexts: [{{name: c, context: {{cluster: c}}}}]
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
"""
FORBIDDEN = answer(403, {"kind": "Status", "message": "forbidden"})
JOB = SandboxJob("step-1", "u1", "7", "", 0, "", is_warm=False, age_seconds=1)


class Clusters:
    """Makes API servers that give certain answers."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def config(self, url: str) -> str:
        file = self._folder / "config"
        file.write_text(CONFIG.format(url=url))
        return str(file)

    def that_answers(self, *answers: bytes) -> tuple[ScriptedApi, str]:
        server = self._stack.enter_context(scripted_api(answers))
        return server, self.config(server.url)


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Clusters]:
    with ExitStack() as stack:
        yield Clusters(tmp_path, stack)


def listed(*names: str, following: str = "") -> bytes:
    items = [
        {"metadata": {"name": name, "uid": name, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}}
        for name in names
    ]
    return answer(200, {"metadata": {"continue": following}, "items": items})


async def test_a_list_of_several_pages_is_read_to_its_end(clusters: Clusters) -> None:
    server, config = clusters.that_answers(listed("a", "b", following="more"), listed("c"))
    async with open_api_server(config) as api:
        assert [job.name for job in await list_jobs(api, "tools")] == ["a", "b", "c"]
    assert "continue=more" in server.requests[1].path


@pytest.mark.parametrize(("status", "deleted"), [(200, 1), (404, 0), (409, 0)])
async def test_a_job_that_is_gone_or_changed_does_not_count_as_deleted(
    clusters: Clusters, status: int, deleted: int
) -> None:
    server, config = clusters.that_answers(answer(status, {"kind": "Status"}))
    async with open_api_server(config) as api:
        assert await delete_jobs(api, "tools", [JOB]) == deleted
    [request] = server.requests
    assert json.loads(request.body)["preconditions"] == {"uid": "u1", "resourceVersion": "7"}


async def test_a_cost_is_written_through_the_pods_status(clusters: Clusters) -> None:
    server, config = clusters.that_answers(answer(200, {}))
    async with open_api_server(config) as api:
        await write_cost(api, "agents", "worker-1", "3")
    [request] = server.requests
    assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/agents/pods/worker-1/status")
    assert json.loads(request.body) == {"metadata": {"annotations": {ANNOTATION: "3"}}}
    assert request.headers["Content-Type"] == "application/merge-patch+json"


async def _list(api: ApiServer) -> Any:
    return await list_jobs(api, "tools")


async def _delete(api: ApiServer) -> Any:
    return await delete_jobs(api, "tools", [JOB])


async def _write(api: ApiServer) -> Any:
    return await write_cost(api, "agents", "worker-1", "3")


@pytest.mark.parametrize(
    ("ask", "right"),
    [(_list, "list jobs in tools"), (_delete, "delete jobs in tools"), (_write, "patch pods/status in agents")],
)
async def test_a_right_that_is_missing_is_named(clusters: Clusters, ask: Any, right: str) -> None:
    _, config = clusters.that_answers(FORBIDDEN)
    async with open_api_server(config) as api:
        with pytest.raises(Unavailable, match=f"let this process's service account {right}") as raised:
            await ask(api)
    assert raised.value.part == "kubernetes"


async def test_a_cluster_that_does_not_answer_is_unavailable(clusters: Clusters) -> None:
    async with open_api_server(clusters.config(f"http://127.0.0.1:{own_port()}")) as api:
        with pytest.raises(Unavailable, match="does not answer"):
            await list_jobs(api, "tools")
