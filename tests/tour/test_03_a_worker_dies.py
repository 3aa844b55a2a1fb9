"""A worker is killed in the middle of a run, and nothing is lost.

A worker holds its runs by leases that it renews. When it dies, the leases end, and another worker takes its runs over:
it reads in the journal which steps were finished and goes on at the first one that was not. Whoever watches the run
sees it go on; the numbers of the events have no gap, and none comes twice.
"""

from collections.abc import Awaitable, Callable

import httpx
import pytest

from tests.platform.workers import WorkerProcess
from tests.tour.watching import watch

PLAN = {
    "steps": [
        {"id": "first", "tool": "shell", "arguments": {"script": "echo first >> steps.txt"}},
        {
            "id": "second",
            "tool": "shell",
            "arguments": {
                "script": "echo waiting; until [ -e go-on ]; do sleep 0.02; done; echo second >> steps.txt",
            },
        },
        {"id": "third", "tool": "shell", "arguments": {"script": "echo third >> steps.txt"}},
    ]
}


@pytest.mark.usefixtures("isolated")
async def test_another_worker_finishes_the_run_and_repeats_no_finished_step(
    api: httpx.AsyncClient, start_worker: Callable[[], Awaitable[WorkerProcess]]
) -> None:
    doomed = await start_worker()
    request = {"action": "run", "prompt": "three steps", "plan": PLAN}
    run_id = (await api.post("/agent/execute", json=request)).json()["run_id"]

    seen = []
    async for event in watch(api, run_id):
        seen.append(event)
        if event.data.get("line") == "waiting" and doomed.is_running:
            await doomed.kill()
            await api.put(f"/agent/runs/{run_id}/files/go-on", content=b"")
            await start_worker()

    assert seen[-1].data["status"] == "completed"
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    began = [event.data["step"] for event in seen if event.type == "step" and event.data["status"] == "started"]
    assert began == ["first", "second", "second", "third"]
    steps = await api.get(f"/agent/runs/{run_id}/files/steps.txt")
    assert steps.text.split() == ["first", "second", "third"]
