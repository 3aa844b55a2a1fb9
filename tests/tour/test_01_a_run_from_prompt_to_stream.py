"""You write a prompt, and watch it being carried out.

A prompt can be a runbook: Markdown whose fenced blocks are the steps. `POST /agent/execute` with the action `run` makes
a run of it and queues it; a worker, which is a process of its own, takes it, plans it and carries it out. Everything
that happens on the way is an event, and `GET /agent/logs/{run_id}/stream` gives each of them once, in order, as
server-sent events. After the event `end` nothing more comes, and the stream ends by itself.
"""

import httpx

from tests.tour.watching import watch

PROMPT = """\
# Write the words

```words.txt
one two three
```

# Count them

```sh
wc -w < words.txt
```
"""


async def test_a_run_goes_from_its_prompt_to_the_end_of_its_stream(api: httpx.AsyncClient, a_worker: None) -> None:
    answer = await api.post("/agent/execute", json={"action": "run", "prompt": PROMPT})
    assert answer.status_code == 201
    run_id = answer.json()["run_id"]

    events = [event async for event in watch(api, run_id)]

    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.data["status"] for event in events if event.type == "status"] == [
        "created",
        "queued",
        "running",
        "completed",
    ]
    [plan] = [event.data for event in events if event.type == "plan"]
    assert [(step["title"], step["tool"]) for step in plan["steps"]] == [
        ("Write the words", "file_write"),
        ("Count them", "shell"),
    ]
    assert [event.data["line"] for event in events if event.type == "log"][-1] == "3"
    assert events[-1].type == "end"

    run = (await api.get(f"/agent/runs/{run_id}")).json()
    assert run["status"] == "completed"
    assert [step["result"]["exit_code"] for step in run["steps"]] == [0, 0]
