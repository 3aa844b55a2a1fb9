"""A webhook's whole way: a run by HTTP, carried out by a worker, reported by a controller."""

import asyncio

import pytest

from backplane.settings import fixed
from controller.service import serve
from tests.integration.api.running import StartApi, StartWorker
from tests.integration.controller.receiving import receiving
from tests.waiting import wait_until

FAILS = {"steps": [{"id": "only", "tool": "file_read", "arguments": {"path": "missing.txt"}}]}


@pytest.mark.parametrize(("plan", "status"), [(None, "completed"), (FAILS, "failed")])
async def test_the_webhook_of_a_run_receives_how_it_ended(
    start_api: StartApi, start_worker: StartWorker, plan: object, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "WEBHOOK_POLL_SECONDS", 0.02)
    api = await start_api(webhook_allow_private=True)
    person, stop = await api.person(), asyncio.Event()
    start_worker(api.settings)
    controller = asyncio.create_task(serve(api.settings, stop))
    try:
        async with receiving() as receiver:
            given = {"plan": plan} if plan else {}
            run_id = await person.make(
                "run", webhook_url=receiver.url(), max_retries=0, metadata={"ticket": 7}, **given
            )
            await wait_until(lambda: receiver.received, timeout=20.0)
            [received] = receiver.received
            secret = (await person.http.get("/agent/webhook-secret")).json()["secret"]
            assert received.is_signed_with(secret)
            run = await person.show(run_id)
            sent = received.json
            assert (sent["event"], sent["run_id"], sent["metadata"]) == (f"run.{status}", run_id, {"ticket": 7})
            assert sent["error"] == run["error"]

            async def delivered() -> bool:
                return bool((await person.show(run_id))["webhook"]["status"] == "delivered")

            await wait_until(delivered)
    finally:
        stop.set()
        await controller
