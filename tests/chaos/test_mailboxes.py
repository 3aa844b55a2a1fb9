"""Agents answer every message once and in order, whatever breaks; and when they do not, the checker finds it."""

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest

from tests.chaos.chaos_platform import Servers
from tests.chaos.faults import Fault
from tests.chaos.mailboxes import MailboxScenario, run_mailboxes
from tests.chaos.messages import (
    DEEPEST,
    KeptMessage,
    MailboxBreach,
    MailboxFacts,
    PlannedMessage,
    complaints_about,
    token,
)
from tests.servers import PostgresServer, RedisServer, S3Server

FAULTS = (
    Fault(0.8, "worker killed", target=0),
    Fault(2.2, "redis restarted empty", 0.4),
    Fault(3.0, "postgres cut", target=1000),
    Fault(3.5, "api killed"),
    Fault(4.5, "worker ended", target=1),
)
QUESTION = PlannedMessage("oracle-0", "7?", 5)
TOKEN = PlannedMessage("relay-0", "7", 2, QUESTION, (PlannedMessage("relay-1", "7.0", 3),))
FIRST, ASKED, LAST = KEPT = (
    KeptMessage("a", "relay-0", 1, "7", "completed", 1),
    KeptMessage("b", "oracle-0", 1, "7?", "completed", 1),
    KeptMessage("c", "relay-1", 1, "7.0", "completed", 1),
)
STATES = {
    "relay-0": {"count": 1, "sum": 2, "answers": 5},
    "oracle-0": {"count": 1, "sum": 5},
    "relay-1": {"count": 1, "sum": 3},
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for sockets, that all may read."""
    made = Path(tempfile.mkdtemp(prefix="agent-chaos-"))
    yield made
    rmtree(made)


@pytest.fixture
def servers(own_redis: Callable[..., RedisServer], postgres_server: PostgresServer, s3_server: S3Server) -> Servers:
    return Servers(own_redis(), postgres_server, s3_server)


@pytest.mark.slow
async def test_no_message_of_agents_is_lost_doubled_or_out_of_order_whatever_breaks(
    servers: Servers, folder: Path
) -> None:
    scenario = MailboxScenario(seed=5, tokens=20, seconds=5.0, faults=FAULTS, agents=8, oracles=2, processes=2)
    outcome = await run_mailboxes(scenario, servers, folder)
    assert complaints_about(outcome.facts) == [], outcome.counts
    assert outcome.counts["messages"] >= 200


def test_what_is_as_planned_gives_no_complaint() -> None:
    assert complaints_about(MailboxFacts((TOKEN,), KEPT, STATES)) == []


@pytest.mark.parametrize(
    ("kept", "breach"),
    [
        ((FIRST, ASKED), MailboxBreach.LOST),
        ((FIRST, ASKED, LAST, replace(LAST, run_id="d", turn=2, count=2)), MailboxBreach.DOUBLED),
        ((FIRST, ASKED, replace(LAST, status="failed", count=None)), MailboxBreach.UNFINISHED),
        ((*KEPT, replace(LAST, place="8", run_id="d", turn=2)), MailboxBreach.STRANGE),
        ((FIRST, ASKED, replace(LAST, count=2)), MailboxBreach.DISORDERED),
    ],
)
def test_each_breach_of_a_mailbox_is_found(kept: tuple[KeptMessage, ...], breach: MailboxBreach) -> None:
    assert breach in {complaint.breach for complaint in complaints_about(MailboxFacts((TOKEN,), kept, STATES))}


def test_a_state_that_is_not_the_sum_of_the_messages_is_found() -> None:
    states = {**STATES, "relay-1": {"count": 1, "sum": 4}}
    [complaint] = complaints_about(MailboxFacts((TOKEN,), KEPT, states))
    assert (complaint.breach, complaint.subject) == (MailboxBreach.STATE, "relay-1")


def test_tokens_follow_from_the_seed_and_no_chain_is_deeper_than_agents_may_send() -> None:
    agents, oracles = [f"relay-{number}" for number in range(5)], ["oracle-0"]
    tokens = [token(number, agents, oracles, random.Random(3)) for number in range(40)]
    assert tokens == [token(number, agents, oracles, random.Random(3)) for number in range(40)]
    places = [one.place for each in tokens for one in each.all()]
    assert len(places) == len(set(places))
    assert max(place.count(".") for place in places) == DEEPEST
