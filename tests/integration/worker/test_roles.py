"""Turns of agents by roles of Python, on a real worker: their state, their answers, what they ask of one another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import RunStatus
from backplane.process.loop_watchdog import watched
from tests.integration.worker.team import Team, team_of, working
from tests.platform.workers import Platform
from tests.waiting import wait_until


@pytest.fixture
async def team(platform: Platform) -> AsyncIterator[Team]:
    """At work: three scripted agents, and one that counts."""
    made = await team_of(platform, ada="scripted", bob="scripted", eve="scripted", carl="counter")
    async with working(made) as team:
        yield team


def asking(agent: str, data: Any = None, **options: Any) -> dict[str, Any]:
    return {"do": "ask", "agent": agent, "data": data, "options": options}


async def test_turns_come_one_after_another_and_keep_the_state_of_those_before(team: Team) -> None:
    ids = [await team.sent("carl", text) for text in ("a", "b", "c")]
    answers = [(await team.ended(run_id)).result for run_id in ids]
    assert [answer and answer["value"] for answer in answers] == [{"turn": n, "messages": n} for n in (1, 2, 3)]
    assert await team.state("carl") == {"messages": ["a", "b", "c"]}


async def test_a_turn_that_raises_leaves_the_state_and_the_next_message_is_taken(team: Team) -> None:
    assert await team.answer("carl", "a") == {"turn": 1, "messages": 1}
    assert await team.answer("carl", "raise", max_retries=0) == "role_failed"
    assert await team.state("carl") == {"messages": ["a"]}
    assert await team.answer("carl", "b") == {"turn": 3, "messages": 2}


async def test_a_state_or_an_answer_that_cannot_be_kept_fails_the_turn(team: Team) -> None:
    for do, code in (
        ("state", "state_not_storable"),
        ("no-json-state", "state_not_storable"),
        ("list-state", "state_not_storable"),
        ("no-json", "result_not_storable"),
    ):
        assert await team.answer("ada", data={"do": do}, max_retries=0) == code, do
        assert await team.state("ada") == {}, do
        assert await team.answer("ada") == "heard: hello", do


async def test_a_turn_that_never_ends_is_ended_by_its_time(team: Team) -> None:
    assert await team.answer("ada", data={"do": "never"}, timeout_seconds=1, max_retries=0) == "run_timeout"
    assert await team.state("ada") == {}
    assert await team.answer("ada") == "heard: hello"


async def test_the_line_that_blocks_the_loop_is_in_the_log_of_the_run(team: Team) -> None:
    with watched(blocked_seconds=0.1, period_seconds=0.02):
        run_id = await team.sent("ada", data={"do": "block", "seconds": 0.4})
        await team.ended(run_id)
    [line] = [line for line in await team.platform.lines(run_id) if "blocked the event loop" in line]
    assert "plain.py, line" in line
    assert 'in on_message: time.sleep(data["seconds"])' in line
    await team.platform.ends_whole(run_id)


async def test_effects_of_a_turn_that_sleeps_are_done_once(team: Team, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    assert await team.answer("ada", data={"do": "marks", "marks": str(marks)}) == "1"
    assert marks.read_text() == "1\n"


async def test_a_role_that_is_not_there_fails_the_turn_and_the_agent_lives_on(platform: Platform) -> None:
    made = await team_of(platform, ada="no-such-role")
    async with working(made) as team:
        run = await team.ended(await team.sent("ada"))
        assert run.error is not None
        assert run.error.code == "role_unknown"
        assert "ROLES_DIR" in run.error.message
        assert await team.answer("ada") == "role_unknown"
        assert (await platform.resources.store.agents.get(platform.user.id, made.agents["ada"].id)).turns == 2


async def test_what_was_exchanged_before_is_the_conversation(team: Team) -> None:
    await team.answer("ada", "one")
    await team.answer("ada", "two", data={"do": "no-json"}, max_retries=0)
    assert await team.answer("ada", "three", data={"do": "conversation"}) == [
        ["one", "heard: one", "completed"],
        ["two", None, "failed (result_not_storable)"],
    ]


async def test_files_of_an_agent_are_there_in_its_next_turn_as_they_were_left(team: Team) -> None:
    wrote = {"do": "files", "write": "hello", "path": "run.sh"}
    assert await team.answer("ada", data=wrote) == "hello\n755\n"
    assert await team.answer("ada") == "heard: hello"
    assert await team.answer("ada", data={"do": "files", "path": "run.sh"}) == "hello\n755\n"
    only_its_mode = {"do": "files", "mode": 700, "path": "run.sh"}
    assert await team.answer("ada", data=only_its_mode) == "hello\n700\n"
    assert await team.answer("ada", data={"do": "files", "path": "run.sh"}) == "hello\n700\n"
    assert await team.answer("bob", data={"do": "files", "path": "run.sh"}, max_retries=0) == "command_failed"


async def test_what_a_file_of_an_agent_was_before_a_turn_is_kept_for_all_its_turns(team: Team) -> None:
    for text in ("one", "two", "three"):
        await team.answer("ada", data={"do": "files", "write": text, "path": "a.txt"})
    resources, user, ada = team.platform.resources, team.platform.user, team.agents["ada"]
    versions = resources.workspaces.versions(user.id, ada.id)
    [last] = await resources.store.agent_messages.of_agent(ada.id, newest_first=True, limit=1)
    beginning = await versions.beginning()
    assert beginning is not None
    assert beginning.run == last.id
    assert await versions.size() >= len("one\n") + len("two\n")
    steps = await team.platform.journal(last.id)
    assert [set(step.files or {}) for step in steps] == [{"a.txt"}, set()]


# --- asking ---


async def test_an_agent_that_asks_gets_the_answer_and_waits_without_a_slot(team: Team) -> None:
    run = await team.ended(await team.sent("ada", data=asking("bob", {"do": "nap"}, timeout=60)))
    assert run.result is not None
    assert run.result["value"] == "heard: hello"
    asked = await team.platform.resources.store.agent_messages.of_turn(team.agents["bob"].id, 1)
    assert asked is not None
    assert asked.origin == {
        "kind": "agent",
        "run_id": run.id,
        "agent_id": team.agents["ada"].id,
        "name": "ada",
        "by": "1.ask-bob",
        "depth": 1,
    }
    assert "waiting" in [status for status, _ in await team.platform.statuses(run.id)]
    assert run.generation == 2


async def test_several_can_be_asked_at_once(team: Team) -> None:
    questions = [["bob", None], ["eve", None], ["scripted_pool/eve", None]]
    assert await team.answer("ada", data={"do": "ask-all", "questions": questions}) == ["heard: hello"] * 3


async def test_a_message_that_cannot_be_sent_or_answered_is_an_error_for_the_sender(team: Team) -> None:
    for data, begin in (
        (asking("nobody"), "not_found: you have no agent 'nobody'; there are"),
        (asking("other_pool/bob"), "not_found: "),
        (asking("ada"), "ask_circle: agent ada asks itself"),
        (asking("bob", {"do": "no-json"}), "ask_failed: agent bob gave no answer"),
        ({"do": "send", "agent": "nobody"}, "not_found: "),
        ({"do": "send", "agent": "bob", "text": " "}, "invalid_message: "),
        ({"do": "send", "agent": "bob", "data": "x" * 300_000}, "invalid_message: "),
    ):
        answer = await team.answer("ada", data=data, max_retries=0)
        assert answer.startswith(begin), (data, answer)


async def test_a_circle_is_reported_to_the_one_that_closes_it(team: Team) -> None:
    # ada asks bob, who asks eve, who asks ada.
    answer = await team.answer("ada", data=asking("bob", asking("eve", asking("ada"))))
    assert answer.startswith("ask_circle: the agents would wait for one another for ever: ada waits for bob waits")
    # bob gets what eve gave, and ada what bob gave.
    assert answer.endswith("in place of a question")


async def test_of_two_that_close_a_circle_at_the_same_moment_one_gets_its_answer(team: Team) -> None:
    ids = [await team.sent("ada", data=asking("bob")), await team.sent("bob", data=asking("ada"))]
    values = [(run.result or {})["value"] for run in await asyncio.gather(*map(team.ended, ids))]
    assert sorted(value.split(":")[0] for value in values) in (["ask_circle", "heard"], ["heard", "heard"])


async def test_a_retry_of_a_turn_that_failed_of_a_question_asks_again(team: Team, tmp_path: Path) -> None:
    needed = {"do": "need", "file": str(tmp_path / "needed")}
    run_id = await team.sent("ada", data={"do": "ask-and-fail", "agent": "bob", "data": needed}, max_retries=0)
    failed = await team.ended(run_id)
    assert failed.error is not None
    assert (failed.error.code, failed.error.step) == ("ask_failed", "1.ask-bob")
    (tmp_path / "needed").touch()
    await team.platform.submission.retry(team.platform.user, run_id, uncertain_step_is_done=False)
    run = await team.platform.until(run_id, RunStatus.COMPLETED)
    assert (run.result or {})["value"] == "heard: hello"
    assert await team.platform.resources.store.agent_messages.of_turn(team.agents["bob"].id, 2) is not None


async def test_a_message_to_itself_is_the_next_turn_and_a_chain_of_them_has_an_end(team: Team) -> None:
    endless: dict[str, Any] = {"do": "send", "agent": "ada"}
    for _ in range(11):
        endless = {"do": "send", "agent": "ada", "data": endless}
    await team.answer("ada", data=endless)
    messages = team.platform.resources.store.agent_messages

    async def last() -> Any:
        [run] = await messages.of_agent(team.agents["ada"].id, newest_first=True, limit=1)
        return run if run.status is RunStatus.COMPLETED and "too_deep" in str(run.result) else None

    run = await wait_until(last)
    assert run.turn == 11


async def test_an_ask_ends_when_its_time_is_up(team: Team) -> None:
    run_id = await team.sent("ada", data=asking("bob", {"do": "waits", "type": "never.comes"}, timeout=0.2))
    await team.platform.until(run_id, RunStatus.WAITING)
    asked = await team.platform.resources.store.agent_messages.of_turn(team.agents["bob"].id, 1)
    assert asked is not None
    assert asked.expires_at is not None
