"""A run that an older release began is carried on, and replayed, by this one: its steps and model calls are found by
what their ids say."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, null, update

from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from backplane.store.tables import decisions, model_calls, steps
from tests.attack.outside import ended
from tests.databases import downgrade, upgrade
from tests.integration.agent.conftest import StartWithModels, asks_for, plan_of, says
from tests.platform.workers import Platform
from tests.scripted_models import ScriptedModels

WRITE = {"id": "write", "tool": "file_write", "arguments": {"path": "a.txt", "content": "one"}}
FAIL = {"id": "fail", "tool": "file_read", "arguments": {"path": "nowhere.txt"}, "needs": ["write"]}
FIND = {"id": "find", "tool": "agent", "arguments": {"goal": "Write what a.txt says to b.txt."}, "needs": ["write"]}


def before_the_migration(connection: Connection) -> None:
    downgrade(connection, "0013")
    upgrade(connection, "head")


def by_an_older_worker(connection: Connection) -> None:
    for table, columns in (
        (steps, ("parent", "round")),
        (decisions, ("parent",)),
        (model_calls, ("step", "round", "plan_version", "ordinal")),
    ):
        connection.execute(update(table).values({column: null() for column in columns}))


@pytest.mark.parametrize("written", [before_the_migration, pytest.param(by_an_older_worker, marks=pytest.mark.slow)])
async def test_a_run_of_an_older_release_goes_on_and_is_replayed_without_another_call(
    start_with_models: StartWithModels, models: ScriptedModels, written: Callable[[Connection], None]
) -> None:
    models.script(
        plan_of(WRITE, FAIL),
        plan_of(FIND),
        asks_for(("file_read", {"path": "a.txt"}), ("artifact_write", {"path": "b.txt", "content": "one"})),
        says("It is written."),
        says("All is done."),
    )
    platform: Platform = await start_with_models(approval_tools=["artifact_write"], approval_risk="high")
    database = platform.resources.store.database
    run_id = await platform.submit(prompt="Write what a.txt says to b.txt.")
    await platform.until(run_id, RunStatus.WAITING)
    assert len(models.asked) == 3
    await database.write(written)
    [decision] = await platform.resources.store.decisions.of_run(run_id)
    assert (decision.step_id, decision.parent) == ("find/0.1.2", "find")
    await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.APPROVED, {})
    run = await platform.completed(run_id)
    assert (run.result or {})["summary"] == "All is done."
    assert len(models.asked) == 5
    await database.write(written)
    made = await platform.submission.replay(platform.user, run_id, None, execute=False)
    replay = await ended(platform, made.id)
    assert (replay.status, replay.error) == (RunStatus.COMPLETED, None)
    assert (replay.result or {})["cost"]["model_calls"] == 5
    assert len(models.asked) == 5
    journal = {record.step_id: record.status for record in await platform.journal(run_id)}
    assert {record.step_id: record.status for record in await platform.journal(made.id)} == journal
