"""A stream can be left and joined again at any moment.

Every event has a number. Who comes back says which one was the last (`Last-Event-ID`, as browsers do by themselves) and
gets what came after it: first what happened in between, then what happens now. Who comes late gets everything from the
start. Nobody misses an event, and nobody gets one twice.
"""

import httpx

from tests.tour.watching import Seen, watch

PROMPT = """\
```sh
for number in $(seq 1 40); do echo $number; sleep 0.02; done
```
"""


async def some(api: httpx.AsyncClient, run_id: str, count: int, last_event_id: int) -> list[Seen]:
    """The next events, at most so many; then the connection is dropped."""
    seen = []
    stream = watch(api, run_id, last_event_id=last_event_id)
    async for event in stream:
        if event.type == "position":  # of a run that still waits for a worker; it has no number of its own
            continue
        seen.append(event)
        if len(seen) == count:
            break
    await stream.aclose()
    return seen


async def test_a_watcher_that_comes_back_gets_each_event_once(api: httpx.AsyncClient, a_worker: None) -> None:
    run_id = (await api.post("/agent/execute", json={"action": "run", "prompt": PROMPT})).json()["run_id"]

    seen = await some(api, run_id, 5, 0)
    while seen[-1].type != "end":
        seen += await some(api, run_id, 5, seen[-1].id)

    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert [event.data["line"] for event in seen if event.type == "log"] == [str(number) for number in range(1, 41)]

    late = [event async for event in watch(api, run_id)]
    assert late == seen

    nothing_left = await api.get(f"/agent/logs/{run_id}/stream", headers={"Last-Event-ID": str(seen[-1].id)})
    assert nothing_left.status_code == 204
