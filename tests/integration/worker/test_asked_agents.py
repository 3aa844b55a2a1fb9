"""What an agent gets that has asked another one, when that one does not answer: its time is up, or it is terminated."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from backplane.domain.runs import Run, RunStatus
from backplane.resources import run_actions
from tests.integration.worker.team import Team, agents_looked_after, team_of, working
from tests.integration.worker.test_roles import asking
from tests.platform.workers import Platform
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

NEVER = {"do": "waits", "type": "never.comes"}


@pytest.fixture
async def team(platform: Platform) -> AsyncIterator[Team]:
    made = await team_of(platform, ada="scripted", bob="scripted", eve="scripted")
    async with working(made) as team, agents_looked_after(platform):
        yield team


async def asked(team: Team, turn: int = 1) -> Run:
    """What ada has asked bob, once she has and waits."""

    async def found() -> Run | None:
        return await team.platform.resources.store.agent_messages.of_turn(team.agents["bob"].id, turn)

    run = await wait_until(found)
    assert run is not None
    return run


async def answer(team: Team, run_id: str) -> str:
    run = await team.ended(run_id)
    assert run.status is RunStatus.COMPLETED, run.error
    return str((run.result or {})["value"])


async def terminate(team: Team, *, force: bool = False) -> None:
    actions = run_actions(team.platform.settings, team.platform.resources)
    await actions.terminate(team.platform.user, team.agents["bob"].id, force=force)


@pytest.mark.parametrize("is_busy", [False, True])
async def test_who_asks_with_a_time_limit_goes_on_when_it_is_up(team: Team, is_busy: bool) -> None:
    """Whether the other one has begun with the question, or has not come to it."""
    if is_busy:
        await team.platform.until(await team.sent("bob", data=NEVER), RunStatus.WAITING)
    run_id = await team.sent("ada", data=asking("bob", NEVER, timeout=1.0))
    question = await asked(team, 2 if is_busy else 1)
    assert (await answer(team, run_id)).startswith("ask_timeout: agent bob gave no answer in time")
    over = await team.platform.until(question.id, RunStatus.CANCELLED)
    assert over.error is not None
    assert over.error.code == "message_expired"
    await team.platform.ends_whole(question.id)


async def test_who_asks_an_agent_that_is_terminated_before_it_comes_to_the_question_goes_on(team: Team) -> None:
    await team.platform.until(await team.sent("bob", data=NEVER), RunStatus.WAITING)
    run_id = await team.sent("ada", data=asking("bob", None))
    question = await asked(team, 2)
    assert question.in_mailbox
    await terminate(team)
    assert (await answer(team, run_id)).startswith("agent_terminated: agent bob gave no answer")
    await team.platform.ends_whole(question.id)


async def test_who_asks_an_agent_that_is_terminated_while_its_turn_waits_goes_on(team: Team) -> None:
    run_id = await team.sent("ada", data=asking("bob", NEVER))
    await team.platform.until((await asked(team)).id, RunStatus.WAITING)
    await terminate(team)
    assert (await answer(team, run_id)).startswith("agent_terminated: agent bob gave no answer")


@pytest.mark.parametrize(
    ("force", "begin"), [(False, "heard: hello"), (True, "agent_terminated: agent bob gave no answer")]
)
async def test_an_agent_that_is_terminated_in_a_turn_answers_unless_it_is_forced(
    team: Team, tmp_path: Any, force: bool, begin: str
) -> None:
    marks = tmp_path / "marks"
    run_id = await team.sent("ada", data=asking("bob", {"do": "slowly", "marks": str(marks)}))
    await wait_until(marks.exists)
    await terminate(team, force=force)
    assert (await answer(team, run_id)).startswith(begin)


async def test_of_several_that_ask_a_terminated_agent_each_goes_on_and_others_are_refused(team: Team) -> None:
    await team.platform.until(await team.sent("bob", data=NEVER), RunStatus.WAITING)
    asking_ones = [await team.sent(name, data=asking("bob", None)) for name in ("ada", "eve")]
    for turn in (2, 3):
        await asked(team, turn)
    await terminate(team)
    for run_id in asking_ones:
        assert (await answer(team, run_id)).startswith("agent_terminated: ")
    later = await answer(team, await team.sent("ada", data=asking("bob", None)))
    assert later.startswith(("not_found: ", "agent_terminated: "))
