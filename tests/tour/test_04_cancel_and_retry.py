"""You can stop a run, and set one going again that failed.

`cancel` is written down before it is announced, so it takes effect whatever happens next: a queued run ends at once, a
running one within a heartbeat, together with every process that it started. `retry` puts a failed run back into the
queue: it goes on at the step that failed, with the files as the finished steps left them.
"""

import httpx

from tests.platform.workers import processes_with
from tests.tour.watching import watch


async def test_a_run_is_cancelled_in_the_middle_of_a_step(api: httpx.AsyncClient, a_worker: None) -> None:
    prompt = "```sh\necho asleep\nsleep 600.0914\n```\n"
    run_id = (await api.post("/agent/execute", json={"action": "run", "prompt": prompt})).json()["run_id"]

    async for event in watch(api, run_id):
        if event.data.get("line") == "asleep":
            await api.post("/agent/execute", json={"action": "cancel", "run_id": run_id})

    assert (event.type, event.data["status"]) == ("end", "cancelled")
    assert processes_with("600.0914") == []

    again = await api.post("/agent/execute", json={"action": "start", "run_id": run_id})
    assert (again.status_code, again.json()["code"]) == (409, "transition_not_allowed")


async def test_a_failed_run_goes_on_where_it_failed(api: httpx.AsyncClient, a_worker: None) -> None:
    prompt = (
        "```sh\necho once >> log.txt\n```\n\n```sh\ncat input.txt >> log.txt\n```\n\n```sh\necho end >> log.txt\n```\n"
    )
    run_id = (await api.post("/agent/execute", json={"action": "run", "prompt": prompt})).json()["run_id"]
    events = [event async for event in watch(api, run_id)]
    assert events[-1].data["status"] == "failed"
    assert events[-1].data["error"]["step"] == "step-2"

    await api.put(f"/agent/runs/{run_id}/files/input.txt", content=b"the missing input\n")
    await api.post("/agent/execute", json={"action": "retry", "run_id": run_id})

    events = [event async for event in watch(api, run_id, last_event_id=events[-1].id)]
    assert events[-1].data["status"] == "completed"
    log = await api.get(f"/agent/runs/{run_id}/files/log.txt")
    assert log.text.splitlines() == ["once", "the missing input", "end"]
