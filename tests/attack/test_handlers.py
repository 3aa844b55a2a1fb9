"""Handlers that hand over what no journal and no database takes, and secrets: the run ends with a clear error, and
nothing of a secret is kept or shown."""

import json
from pathlib import Path

import pytest

from backplane.domain.decisions import DecisionStatus
from backplane.domain.runs import RunStatus
from backplane.process import log as process_log
from backplane.sealing import new_key
from tests.attack.test_secrets_stay_secret import VALUE, keep, open_question, shows_nothing_of
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.team import team_of, working
from tests.integration.worker.test_handlers import failed, handling, submit, value_of

# --- what no journal takes ---

ENDS = {
    "a name": "completed",
    "an argument": "completed",
    "a result": "completed",
    "a line": "completed",
    "a run's input": "completed",
    "a run's prompt": "completed",
    "an error": "function_failed",
    "its own error": "handler_failed",
    "a tool": "invalid_plan",
    "a path": "invalid_plan",
    "a tool's name": "invalid_input",
    "no name": "invalid_input",
    "no time": "invalid_input",
    "a long time": "invalid_input",
    "no function": "handler_failed",
    "no type": "invalid_input",
    "a match of no object": "invalid_input",
    "a question": "invalid_plan",
    "a match": "event_required",  # it waits, and can never fit
    "a sleep": "invalid_input",
    "a wait": "invalid_input",
    "a wait for text": "invalid_input",
    "a run's queue": "invalid_input",
}


@pytest.mark.slow
async def test_what_a_handler_must_not_hand_over_is_a_clear_error_of_its_run(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url, queue_max_waiting=100, worker_concurrency=8)
    async with handling(platform):
        runs = {how: await submit(platform, "hostile", how, timeout_seconds=20, max_retries=0) for how in ENDS}
        ended = {}
        for how, run_id in runs.items():
            run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.WAITING)
            ended[how] = str(run.status) if run.error is None else run.error.code
    assert ended == ENDS


# --- secrets ---


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hands on", "raises"])
async def test_a_secret_that_a_handler_hands_on_stands_in_nothing_that_is_kept_shown_or_logged(
    start_platform: StartPlatform, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    process_log.configure(format="json", level="info", process="worker")
    platform = await start_platform(secrets_key=new_key())
    await keep(platform, "TOKEN", VALUE)
    (tmp_path / "value").write_text(VALUE)
    async with handling(platform):
        run_id = await submit(platform, "gives-away", {"file": str(tmp_path / "value"), "how": how})
        if how == "raises":
            code, message = await failed(platform, run_id)
            assert (code, "LookupError: no [secret TOKEN]" in message) == ("handler_failed", True)
        else:
            decision = await open_question(platform, run_id)
            answer = {"text": "no"}
            await platform.submission.decide(platform.user, run_id, decision.id, DecisionStatus.ANSWERED, answer)
            given = value_of(await platform.completed(run_id))
            assert json.dumps(given).count("[secret TOKEN]") == 7
            assert "7.named--secret-TOKEN-" in [step.step_id for step in await platform.journal(run_id)]
    await shows_nothing_of(platform, run_id, VALUE, VALUE.lower())
    assert VALUE not in "".join(capfd.readouterr())


@pytest.mark.slow
async def test_a_secret_that_a_role_hands_on_to_another_agent_stands_in_nothing_that_is_kept(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = await start_platform(secrets_key=new_key())
    await keep(platform, "TOKEN", VALUE)
    (tmp_path / "value").write_text(VALUE)
    async with working(await team_of(platform, ada="scripted", bob="scripted")) as team:
        asked = {"do": "give-away", "file": str(tmp_path / "value")}
        # A person's message has to name a secret that is to be used in it.
        run_id = await team.sent("ada", "use ${secrets.TOKEN}", asked)
        run = await team.ended(run_id)
        assert (run.status, run.result and run.result["value"]) == (RunStatus.COMPLETED, "[secret TOKEN]"), run.error
        assert await team.state("ada") == {"value": "[secret TOKEN]"}
        heard = await platform.resources.store.agent_messages.of_turn(team.agents["bob"].id, 1)
        assert heard is not None
        assert (heard.prompt, heard.input) == ("it is [secret TOKEN]", {"[secret TOKEN]": ["[secret TOKEN]"]})
        await team.ended(heard.id)
    await shows_nothing_of(platform, run_id, VALUE)
