"""The handlers of `examples/handlers`, as a reader would try them."""

from pathlib import Path

import pytest

from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from tests.integration.worker.test_handlers import answer, submit, value_of
from tests.platform.workers import Platform, worker

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples" / "handlers"


async def test_the_weekly_report_is_drawn_approved_and_sent_by_another_run(platform: Platform) -> None:
    async with worker(platform.settings.model_copy(update={"handlers_file": str(EXAMPLES / "weekly_report.py")})):
        run_id = await submit(platform, "weekly-report", {"week": 48, "pause_seconds": 0.1})
        await platform.until(run_id, RunStatus.WAITING, RunStatus.FAILED)
        await answer(platform, run_id, DecisionStatus.APPROVED, {})
        run = await platform.completed(run_id)
        assert value_of(run) == "sent: 124 were sold in week 48."
        assert b"Monday" in await platform.read(run_id, "report.txt")


async def test_an_agent_of_langgraph_is_one_effect_of_a_handler(platform: Platform) -> None:
    pytest.importorskip("langgraph", reason="pip install langgraph, with the Python that runs the tests")
    async with worker(platform.settings.model_copy(update={"handlers_file": str(EXAMPLES / "langgraph_agent.py")})):
        run_id = await submit(platform, "langgraph-agent", {"question": "How many primes are below 30?"})
        run = await platform.completed(run_id)
    assert value_of(run).startswith("10, because the primes below 30 are [2, 3, 5")
    assert [step.step_id for step in await platform.journal(run_id)] == ["1.graph"]
