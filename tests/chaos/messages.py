"""What agents send one another while everything breaks, and what must be true of it when it is over.

A token is a message with all that shall follow from it: rings, in which each agent passes it on to the next, and trees,
in which each passes it on to two. Some messages let their agent ask another one first. So every message that must exist
is known before, by its place. Pure functions: nothing here knows how the facts came about.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

DEEPEST = 9
"""Messages that follow from one another are at most ten."""


@dataclass(frozen=True)
class PlannedMessage:
    """`place`: its name among all messages. `value`: what its agent adds to its sum."""

    agent: str
    place: str
    value: int
    asks: "PlannedMessage | None" = None
    passes_on: tuple["PlannedMessage", ...] = ()

    def data(self) -> dict[str, Any]:
        return {
            "agent": self.agent,
            "place": self.place,
            "value": self.value,
            "asks": self.asks.data() if self.asks else None,
            "passes_on": [one.data() for one in self.passes_on],
        }

    def all(self) -> Iterator["PlannedMessage"]:
        """This one, and all that follow from it."""
        yield self
        if self.asks:
            yield from self.asks.all()
        for one in self.passes_on:
            yield from one.all()


def token(number: int, agents: Sequence[str], oracles: Sequence[str], draw: random.Random) -> PlannedMessage:
    """A ring or a tree. Only oracles are asked, and they ask nobody, so nobody waits in a circle."""
    branches, depth = draw.choice(((1, DEEPEST), (1, DEEPEST), (2, 4)))
    return _message(f"{number}", draw.randrange(len(agents)), depth, (branches, agents, oracles, draw))


def _message(
    place: str, index: int, depth: int, plan: tuple[int, Sequence[str], Sequence[str], random.Random]
) -> PlannedMessage:
    branches, agents, oracles, draw = plan
    asks = None
    if draw.random() < 0.1:
        asks = PlannedMessage(draw.choice(oracles), f"{place}?", draw.randrange(100))
    following = tuple(
        _message(f"{place}.{number}", (index + 1 + number) % len(agents), depth - 1, plan)
        for number in range(branches if depth else 0)
    )
    return PlannedMessage(agents[index], place, draw.randrange(100), asks, following)


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A message as the database has it at the end. `count`: how many messages its agent had had with it, as its answer
    gives it."""

    run_id: str
    agent: str
    turn: int
    place: str
    status: str
    count: int | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class MailboxFacts:
    """`states`: of the agents, by name."""

    planned: tuple[PlannedMessage, ...]
    kept: tuple[KeptMessage, ...]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class MailboxBreach(StrEnum):
    LOST = "message lost"
    UNFINISHED = "message not completed"
    DOUBLED = "message sent twice"
    STRANGE = "message that nobody sent"
    DISORDERED = "messages out of order"
    STATE = "state is not the sum of the messages"


@dataclass(frozen=True, slots=True)
class MailboxComplaint:
    breach: MailboxBreach
    subject: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.breach}: {self.subject}: {self.detail}"


def complaints_about(facts: MailboxFacts) -> list[MailboxComplaint]:
    planned = {one.place: one for token in facts.planned for one in token.all()}
    sent = Counter(one.place for one in facts.kept)
    found = [MailboxComplaint(MailboxBreach.LOST, place) for place in planned if place not in sent]
    for message in facts.kept:
        if message.place not in planned or planned[message.place].agent != message.agent:
            found.append(MailboxComplaint(MailboxBreach.STRANGE, message.place, f"to {message.agent}"))
        if message.status != "completed":
            detail = f"{message.run_id} is {message.status} {message.error}".rstrip()
            found.append(MailboxComplaint(MailboxBreach.UNFINISHED, message.place, detail))
    found += [
        MailboxComplaint(MailboxBreach.DOUBLED, place, f"{count} times") for place, count in sent.items() if count > 1
    ]
    return found + _of_agents(facts, planned)


def _of_agents(facts: MailboxFacts, planned: Mapping[str, PlannedMessage]) -> list[MailboxComplaint]:
    found, by_agent = [], defaultdict[str, list[KeptMessage]](list)
    for message in facts.kept:
        if message.status == "completed" and message.place in planned:
            by_agent[message.agent].append(message)
    for agent, messages in by_agent.items():
        counts = [message.count for message in sorted(messages, key=lambda one: one.turn)]
        if counts != list(range(1, len(counts) + 1)):
            found.append(MailboxComplaint(MailboxBreach.DISORDERED, agent, _first_difference(counts)))
        asked = [planned[message.place].asks for message in messages]
        wanted = {
            "count": len(messages),
            "sum": sum(planned[message.place].value for message in messages),
            "answers": sum(one.value for one in asked if one),
        }
        state = {"answers": 0, **facts.states.get(agent, {})}
        if state != wanted:
            found.append(MailboxComplaint(MailboxBreach.STATE, agent, f"{state}, and not {wanted}"))
    return found


def _first_difference(counts: Sequence[int | None]) -> str:
    number = next(number for number, count in enumerate(counts, start=1) if count != number)
    return f"message {number} of {len(counts)} was counted as {counts[number - 1]}"
