"""A run has files of its own: yours before it starts, its results afterwards.

`create` makes a run without starting it, so that there is time to put files into its workspace. Each step finds the
files that the steps before it left, and what it changes is kept when it succeeds. Files are streamed both ways, and a
part of one can be asked for.
"""

import httpx

from tests.tour.watching import watch

PROMPT = """\
```sh
sort data/names.txt > data/sorted.txt
```

```python
print(open("data/sorted.txt").readline().strip(), "is the first")
```
"""


async def test_files_go_in_before_the_run_and_come_out_after_it(api: httpx.AsyncClient, a_worker: None) -> None:
    run_id = (await api.post("/agent/execute", json={"action": "create", "prompt": PROMPT})).json()["run_id"]

    put = await api.put(f"/agent/runs/{run_id}/files/data/names.txt", content=b"grace\nada\n")
    assert put.is_success

    await api.post("/agent/execute", json={"action": "start", "run_id": run_id})
    lines = [event.data["line"] async for event in watch(api, run_id) if event.type == "log"]
    assert lines == ["ada is the first"]

    listed = (await api.get(f"/agent/runs/{run_id}/files")).json()["files"]
    assert [(file["path"], file["size"]) for file in listed] == [("data/names.txt", 10), ("data/sorted.txt", 10)]

    whole = await api.get(f"/agent/runs/{run_id}/files/data/sorted.txt")
    assert whole.content == b"ada\ngrace\n"
    part = await api.get(f"/agent/runs/{run_id}/files/data/sorted.txt", headers={"Range": "bytes=4-8"})
    assert (part.status_code, part.content) == (206, b"grace")
