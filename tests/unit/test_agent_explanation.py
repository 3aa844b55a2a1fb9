"""Why an agent does nothing, and why a message to it is not opened, from what is known of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.agents.explanation import agent_reasons, in_words_of_agent, mailbox_reasons
from app.explanation import Reason
from backplane.domain.agent_situation import AgentSituation, MailboxPlace
from backplane.domain.agents import Agent, AgentStatus, Occupancy, Pool, PoolProcess
from backplane.domain.runs import Priority, Run, RunError, RunStatus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL = Pool("developer_pool", "developer", NOW, max_processes=2)


def agent(**values: Any) -> Agent:
    given = {"id": "agent-1", "user_id": "u", "pool": POOL.name, "name": "ada", "number": 7}
    return Agent(**{**given, "created_at": NOW, "last_active_at": NOW, **values})


def process(id: str = "p1", *, agents: int = 0, lives: bool = True, **values: Any) -> Occupancy:
    lease = NOW + timedelta(seconds=10 if lives else -10)
    given = {"pool": POOL.name, "node": id, "capacity": 10, "started_at": NOW, "heartbeat_at": NOW}
    return Occupancy(PoolProcess(id, **{**given, "lease_until": lease, **values}), agents)


def run(status: RunStatus = RunStatus.RUNNING, **values: Any) -> Run:
    given = {"id": "run-1", "user_id": "u", "status": status, "priority": Priority.NORMAL, "prompt": ""}
    return Run(**{**given, "created_at": NOW, "timeout_seconds": 60, "max_retries": 0, "turn": 3, **values})


def situation(*processes: Occupancy, of: Agent | None = None, **values: Any) -> AgentSituation:
    given: dict[str, Any] = {"status": AgentStatus.IDLE, "pool": POOL, "open_run": None, "waiting": 0, "at": NOW}
    return AgentSituation(agent=of or agent(), processes=processes, **{**given, **values})


def codes(of: AgentSituation) -> list[str]:
    return [reason.code for reason in agent_reasons(of)]


PLACED = agent(process_id="p1")


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (situation(process(), of=PLACED), ["idle"]),
        (situation(), ["asleep"]),
        (situation(process(lives=False), of=PLACED), ["asleep"]),
        (situation(process(), of=PLACED, status=AgentStatus.FAILED), ["last_turn_failed"]),
        (situation(process(), of=agent(paused_at=NOW)), ["agent_paused"]),
        (situation(process(), of=agent(terminated_at=NOW), waiting=2), ["agent_terminated"]),
        (situation(process(), of=PLACED, waiting=1), ["on_its_way"]),
        (situation(waiting=1), ["no_process"]),
        (situation(process(draining_since=NOW), waiting=1), ["no_process"]),
        (situation(process(agents=10), waiting=1), ["process_starts"]),
        (situation(process(agents=10), process("p2", agents=10), waiting=1), ["pool_full"]),
        (situation(process(agents=9), waiting=1), ["on_its_way"]),
        (situation(process(ranges="1-5"), waiting=1), ["number_not_served", "ranges_missing"]),
        (situation(process(ranges="1-9", agents=10), waiting=1), ["pool_full"]),
        (situation(process(ranges="1-9"), waiting=1), ["on_its_way"]),
        (situation(process(ranges="1-9"), process("p2", ranges="5-12"), of=PLACED), ["idle", "ranges_overlap"]),
        (situation(process(ranges="1-3"), process("p2", ranges="6-9"), of=PLACED), ["idle", "ranges_missing"]),
        (situation(process(ranges="1-3"), process("p2"), of=PLACED), ["idle"]),
        (situation(process(), of=PLACED, open_run=run()), ["turn_open"]),
        (situation(process(), of=PLACED, open_run=run(), waiting=4), ["turn_open", "messages_wait"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_agent_says_what_keeps_it_from_doing_more(of: AgentSituation, expected: list[str]) -> None:
    assert codes(of) == expected


def test_the_reason_of_the_open_turn_is_the_agents_too() -> None:
    waiting = run(RunStatus.WAITING, error=RunError("approval_required", "it asks"))
    of = situation(process(), of=PLACED, status=AgentStatus.WAITING_FOR_PERSON, open_run=waiting)
    found = agent_reasons(of, [Reason("waits_for_person", "step a is to be approved")])
    assert [reason.code for reason in found] == ["turn_open", "waits_for_person"]
    text = in_words_of_agent(of, found)
    assert text.startswith("The agent ada is waiting for person: it is at turn 3, run run-1 (waiting); ")
    assert text.endswith("of that turn: step a is to be approved.")


def test_an_agent_whose_last_turn_failed_says_why() -> None:
    failed = run(RunStatus.FAILED, turn=4, error=RunError("role_failed", "it broke"))
    [reason] = agent_reasons(situation(process(), of=PLACED, status=AgentStatus.FAILED, failed_run=failed))
    assert "its last turn (4) failed: it broke [role_failed]" in reason.text


def test_an_agent_that_asks_others_names_them_and_says_it_once() -> None:
    waits = run(RunStatus.WAITING, error=RunError("waits_for_run", "it waits for run r"))
    of = situation(process(), of=PLACED, open_run=waits, asked=["hugo", "ines"])
    text = in_words_of_agent(of, agent_reasons(of, [Reason("waits_for_run", "it waits for run r")]))
    assert "it waits for the answer of hugo and of ines" in text
    assert "waits for run r" not in text


def test_a_full_pool_says_how_many_places_are_taken_and_what_would_help() -> None:
    of = situation(process(agents=10), process("p2", agents=10), waiting=1)
    [reason] = agent_reasons(of)
    assert "all 20 places of 2 processes of the pool developer_pool are taken" in reason.text
    assert "max_processes 2" in reason.text


@pytest.mark.parametrize(
    ("of", "code", "words"),
    [
        (situation(waiting=1, shortage="no image"), "no_process", "is alive, and none can be started: no image"),
        (
            situation(process(agents=10), waiting=1, shortage="no image"),
            "pool_full",
            "are taken, and no further process starts: no image; an agent there that is idle makes room, and one "
            "that has had its place for 30 s does between two turns",
        ),
        # As many processes as there may be: what keeps others from starting does not matter.
        (
            situation(process(agents=10), process("p2", agents=10), waiting=1, shortage="no image"),
            "pool_full",
            "max_processes 2",
        ),
        (situation(process(agents=9), waiting=1, shortage="no image"), "on_its_way", "takes it at this moment"),
    ],
)
def test_where_no_process_can_be_started_the_reason_stands_in_place_of_a_promise(
    of: AgentSituation, code: str, words: str
) -> None:
    [reason] = agent_reasons(of)
    assert (reason.code, words in reason.text) == (code, True), reason.text


@pytest.mark.parametrize(
    ("of", "ahead", "expected"),
    [
        (situation(process(), of=PLACED, open_run=run(), waiting=3), 2, ["agent_busy", "messages_ahead"]),
        (situation(process(), of=PLACED, open_run=run(), waiting=1), 0, ["agent_busy"]),
        (situation(process(), of=agent(paused_at=NOW), waiting=1), 0, ["agent_paused"]),
        (situation(of=agent(terminated_at=NOW), waiting=1), 0, ["agent_terminated"]),
        (situation(waiting=2), 1, ["no_process", "messages_ahead"]),
        (situation(process(agents=10), process("p2", agents=10), waiting=1), 0, ["pool_full"]),
        (situation(process(), of=PLACED, waiting=1), 0, ["on_its_way"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_message_in_the_mailbox_says_what_it_waits_for(of: AgentSituation, ahead: int, expected: list[str]) -> None:
    assert [reason.code for reason in mailbox_reasons(MailboxPlace(ahead, of))] == expected
