"""One parser a worker, so that what reads texts of others has one bound in all."""

from typing import Any

import pytest

from backplane.input.parsing import Parser
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import worker
from tests.submitted import new_run


async def test_whatever_reads_texts_in_a_worker_shares_the_places_of_one_parser(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform()
    used, call = dict[str, set[Parser]](), Parser.call

    async def noted(self: Parser, user_id: str, what: str, *arguments: Any, **more: Any) -> Any:
        used.setdefault(what, set()).add(self)
        return await call(self, user_id, what, *arguments, **more)

    monkeypatch.setattr(Parser, "call", noted)
    patch = "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+a\n"
    async with worker(platform.settings):
        await platform.completed(
            await platform.submit({"id": "a", "tool": "apply_patch", "arguments": {"patch": patch}})
        )
        run = await platform.resources.store.runs.create(new_run(platform.user), start=True)
        await platform.completed(run.id)
    assert used.keys() == {"the patch", "the prompt"}
    assert used["the patch"] == used["the prompt"]
