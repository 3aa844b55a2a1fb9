"""Roles of Python that raise, return, keep and send what nothing can hold: the turn ends with an error that names it,
what it gave can be shown, and the agent and its neighbours take their next message."""

from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import FINAL, RunStatus
from backplane.sealing import new_key
from tests.attack.test_secrets_stay_secret import VALUE, keep, shows_nothing_of
from tests.integration.api.live_agents import AGENTS
from tests.integration.api.running import StartApi
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.roles import hostile
from tests.integration.worker.team import Team, team_of, working
from tests.platform.workers import Platform

KEPT = {"half a character", "NUL", "as deep as may be", "a long number"}
STOP_THE_CODE = {"its own cancel", "the end of a generator", "a group"}
"""Raised in a step, these end the code that waits for the step."""
NOT_SENT = "invalid_message"
SENT = {"NUL": "completed", "half a character": "completed"}


def asked() -> dict[str, tuple[dict[str, Any], str]]:
    """By name, the data of a message, and how its turn has to end: the status, or the code of the error."""
    found = dict[str, tuple[dict[str, Any], str]]()
    for what in hostile.RAISED:
        found[f"raise {what}"] = {"do": "raise", "what": what}, "role_failed"
        in_step = "role_failed" if what in STOP_THE_CODE else "function_failed"
        found[f"raise {what} in a step"] = {"do": "raise in a step", "what": what}, in_step
    for what in hostile.RETURNED:
        is_kept = what in KEPT
        found[f"return {what}"] = {"do": "return", "what": what}, "completed" if is_kept else "result_not_storable"
        # Such a step has happened, and a person decides about it.
        in_step = "completed" if is_kept else "step_uncertain"
        found[f"return {what} from a step"] = {"do": "return from a step", "what": what}, in_step
        found[f"keep {what}"] = {"do": "keep", "what": what}, "completed" if is_kept else "state_not_storable"
    for what in hostile.SENT:
        end = SENT.get(what, "not_found" if what.startswith("to ") else NOT_SENT)
        found[f"send {what}"] = {"do": "send", "what": what}, end
    for what in hostile.ASKED:
        found[f"ask for {what}"] = {"do": "ask", "what": what}, NOT_SENT
    for what in hostile.LOOKED_BACK:
        end = "function_failed" if what in ("text", "none") else "completed"
        found[f"look back {what}"] = {"do": "look back", "what": what}, end
    found["recurse"] = {"do": "recurse"}, "role_failed"
    found["log"] = {"do": "log"}, "completed"
    found["progress"] = {"do": "progress"}, "role_failed"
    return found


async def ended(team: Team, data: dict[str, Any], **values: Any) -> tuple[str, str]:
    """The run, and how it ended, or that it waits for a person; then it is cancelled."""
    platform = team.platform
    run = await platform.until(await team.sent("eve", data=data, max_retries=0, **values), *FINAL, RunStatus.WAITING)
    if run.status is RunStatus.WAITING:
        await platform.submission.cancel(platform.user, run.id)
    await platform.ends_whole(run.id)
    return run.id, str(run.status) if run.error is None else run.error.code


async def team_with_api(start_api: StartApi, folder: Path, **values: Any) -> tuple[Team, Any]:
    api = await start_api(queue_max_waiting=1000, **values)
    person = await api.person()
    user = (await person.access(api)).user
    platform = Platform(api.settings, api.resources, user, folder)
    return await team_of(platform, eve="hostile", other="scripted"), person


@pytest.mark.slow
async def test_what_a_role_gives_away_ends_its_turn_and_can_be_shown(
    start_api: StartApi, database_url: str, tmp_path: Path
) -> None:
    made, person = await team_with_api(start_api, tmp_path, database_url=database_url)
    eve = f"{AGENTS}/{made.agents['eve'].id}"
    wrong = dict[str, Any]()
    async with working(made) as team:
        for name, (data, end) in asked().items():
            run_id, found = await ended(team, data, timeout_seconds=20)
            if found != end:
                wrong[name] = (found, end)
            paths = ["", "/state", "/messages?limit=1", "/explain"]
            run = f"/agent/runs/{run_id}"
            for path in [*(f"{eve}{path}" for path in paths), run, f"{run}/explain", f"/agent/logs/{run_id}"]:
                answer = await person.http.get(path)
                if answer.status_code != 200:
                    wrong[f"{name} {path.replace(run_id, 'RUN')}"] = answer.status_code
        assert await team.answer("other") == "heard: hello"
    assert wrong == {}


@pytest.mark.slow
async def test_a_secret_that_a_role_hands_on_reaches_no_agent_and_no_row(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = await start_platform(secrets_key=new_key())
    await keep(platform, "TOKEN", VALUE)
    (tmp_path / "value").write_text(VALUE)
    async with working(await team_of(platform, eve="hostile", other="scripted")) as team:
        run_id, end = await ended(team, {"do": "give away", "file": str(tmp_path / "value")})
        assert end == "completed"
        texts = [
            run.prompt
            for run in await platform.resources.store.agent_messages.of_agent(team.agents["other"].id)
            if await team.ended(run.id)
        ]
    assert texts == ["use [secret TOKEN]", "is it [secret TOKEN]?"]
    await shows_nothing_of(platform, run_id, VALUE)


@pytest.mark.slow
async def test_a_role_that_will_not_be_cancelled_is_left_behind_and_its_agent_goes_on(platform: Platform) -> None:
    async with working(await team_of(platform, eve="hostile", other="scripted")) as team:
        assert (await ended(team, {"do": "stay", "gives in": True}, timeout_seconds=1))[1] == "run_timeout"
        assert await team.answer("eve") == "heard: hello"
