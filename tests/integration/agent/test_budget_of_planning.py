"""A plan costs tokens too: where there are none, a person is asked before anything is planned."""

from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from tests.integration.agent.conftest import StartWithModels, plan_of, says
from tests.platform.workers import Platform
from tests.scripted_models import ScriptedModels

WRITE = {"id": "write", "tool": "file_write", "arguments": {"path": "a.txt", "content": "one"}}


async def waiting(platform: Platform, run_id: str) -> str:
    """The id of what it asks."""
    run = await platform.until(run_id, RunStatus.WAITING)
    assert run.error is not None
    assert (run.error.code, run.error.step) == ("budget_exhausted", None)
    decision = (await platform.resources.store.decisions.of_run(run_id))[-1]
    assert (decision.step_id, decision.status) == ("", DecisionStatus.PENDING)
    return decision.id


async def test_it_goes_on_with_more(start_with_models: StartWithModels, models: ScriptedModels) -> None:
    models.script(plan_of(WRITE), says("Written."))
    platform: Platform = await start_with_models()
    run_id = await platform.submit(prompt="Write one to a.txt.", budget={"tokens": 1})
    decision = await waiting(platform, run_id)
    assert models.asked == []
    more = {"budget": {"tokens": 100_000}}
    await platform.submission.decide(platform.user, run_id, decision, DecisionStatus.APPROVED, more)
    run = await platform.completed(run_id)
    assert run.result is not None
    assert (run.result["summary"], run.result["files"]) == ("Written.", ["a.txt"])
    assert run.result["cost"]["model_calls"] == 2
    assert list((await platform.resources.store.ledger.audit()).differences) == []


async def test_a_no_ends_the_run_and_a_retried_one_asks_again(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    platform: Platform = await start_with_models()
    run_id = await platform.submit(prompt="Write one to a.txt.", budget={"tokens": 1})
    decision = await waiting(platform, run_id)
    await platform.submission.decide(platform.user, run_id, decision, DecisionStatus.REJECTED, {"reason": "no"})
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "budget_exhausted"
    await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=False)
    assert await waiting(platform, run_id) != decision
    assert models.asked == []
