"""A team of agents with models, at work: the example by recorded traffic."""

import pytest

from tests.integration.agent.conftest import Recording, StartWithModels
from tests.integration.worker.team import team_of, working
from tests.platform.workers import Platform
from tests.scripted_models import ScriptedModels

TASK = "Is 1900 a leap year? Let a program say so for any year, and let it be tested."


@pytest.mark.slow  # what agents ask of one another, and recorded traffic, are each shown by a shorter one
async def test_the_example_of_a_team_by_recorded_traffic(
    isolated: None, start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    recording = Recording.load("ollama-team.json")
    models.answer(recording)
    platform: Platform = await start_with_models(working=False)
    async with working(await team_of(platform, lea="team_leader", dev="developer", tess="tester")) as team:
        run = await team.ended(await team.sent("lea", TASK))
        assert recording.wrong == []
        assert recording.played == len(recording.exchanges)
        assert run.result is not None, run.error
        assert run.result["value"].startswith("1900 was no leap year")
        steps = [step.step_id for step in await platform.journal(run.id)]
        assert steps == [
            "1.conversation",
            *("2.round-1", "3.ask-dev", "4.round-2", "5.ask-tess"),
            *("6.round-3", "7.ask-dev", "8.round-4", "9.ask-tess", "10.round-5"),
        ]
        turns = {
            name: (await platform.resources.store.agents.get(platform.user.id, one.id)).turns
            for name, one in team.agents.items()
        }
        assert turns == {"lea": 1, "dev": 2, "tess": 2}
        files = platform.resources.workspaces.workspace(platform.user.id, team.agents["dev"].id)
        assert b"year % 400 == 0" in (await files.get("leap.py"))[1]
        await platform.ends_whole(run.id)
