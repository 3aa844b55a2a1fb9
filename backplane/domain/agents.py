"""Agents, pools and their processes as values, and the decisions about them that need no database.

An agent is an identity with a role (its pool's), a state and a mailbox. A message to it is a run: so a turn has all
that runs have. One message of an agent is open at a time; the others wait in its mailbox, in the order of their turns.

A process of a pool carries out turns of the agents that are placed there. Where an agent is placed decides who takes
its runs, and nothing else: leases and generations of runs keep two processes apart.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from backplane.domain.events import Event
from backplane.domain.runs import (
    AGENT_QUEUES,
    IN_MAILBOX,
    WAITS_FOR_EVENT,
    WAITS_FOR_RUN,
    Run,
    RunError,
    RunStatus,
)
from backplane.errors import InvalidInput

AGENT_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of agents that live, unique in a pool and user."""
POOL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of pools. They become parts of Redis keys and labels of metrics."""
RANGES_MAX_CHARS = 200
MESSAGE_EXPIRED = "message_expired"
"""The code of the error of a message whose time was up before it was over."""
AGENT_TERMINATED = "agent_terminated"
"""The code of the error of a turn that its agent's end has cancelled."""

_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})", re.ASCII)


class AgentStatus(StrEnum):
    IDLE = "idle"
    WORKING = "working"
    WAITING_FOR_PERSON = "waiting_for_person"
    WAITING_FOR_AGENT = "waiting_for_agent"
    WAITING = "waiting"
    """For an event, for a time, or for a process."""
    ASLEEP = "asleep"
    """It has no process. A message wakes it."""
    PAUSED = "paused"
    TERMINATED = "terminated"
    FAILED = "failed"
    """Its last turn failed, and none is open. The next message is taken all the same."""


@dataclass(frozen=True, slots=True)
class Pool:
    """`role`: of its agents. `agents_per_process`: how many one process has, each with a slot. A process more is
    started while there are fewer than `max_processes`. `sleep_after_seconds`: how long an agent may be idle before it
    loses its place."""

    name: str
    role: str
    created_at: datetime
    agents_per_process: int = 10
    min_processes: int = 0
    max_processes: int = 4
    sleep_after_seconds: int = 600


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """`processes` and their `capacity` are of those that live and do not drain. `agents` are not terminated; `placed`
    of them have a process; `unplaced` need one, for they have something to do, and have none."""

    pool: Pool
    processes: int
    capacity: int
    agents: int
    placed: int
    unplaced: int


@dataclass(frozen=True, slots=True)
class PoolActivity:
    """How many agents of a pool do the same. `state`: working, waiting (for an event, a time, an agent or a process),
    approval, question, budget (what a person is asked), idle, asleep or paused. `longest_wait_seconds`: since when the
    first of them asks."""

    pool: str
    role: str
    state: str
    agents: int
    longest_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """The row of an agent but for its state. `number`: in its pool, from 1. `model`: in place of its role's. `turns`:
    how many messages it was sent. `open_run_id`: the message that is open. `generation` counts its placements."""

    id: str
    user_id: str
    pool: str
    name: str
    number: int
    created_at: datetime
    last_active_at: datetime
    state_version: int = 0
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    turns: int = 0
    open_run_id: str | None = None
    process_id: str | None = None
    generation: int = 0
    placed_at: datetime | None = None
    paused_at: datetime | None = None
    terminated_at: datetime | None = None

    @property
    def queue(self) -> str:
        return queue_of(self.id)

    @property
    def memory_name(self) -> str:
        """The name under which it keeps memory and artifacts (`Run.agent`)."""
        return f"agent-{self.id}"


@dataclass(frozen=True, slots=True)
class AgentState:
    """`value`: JSON. `summary`: {"until_turn", "text"} of the older turns, once there is one."""

    value: Any
    version: int
    summary: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AgentAtTurn:
    """What a turn of an agent begins with. `role`: its pool's."""

    agent: Agent
    role: str
    state: AgentState


@dataclass(frozen=True, slots=True)
class ListeningAgent:
    """An agent behind whose place (`cursor`) its user has events; `patterns`: of those that its role listens to."""

    agent: Agent
    patterns: tuple[str, ...]
    cursor: int


@dataclass(frozen=True, slots=True)
class PoolProcess:
    """A process that lives while its lease is not over. `ranges`: the numbers of the agents that it takes; None: any.
    `draining_since`: it takes no agent any more."""

    id: str
    pool: str
    node: str
    capacity: int
    started_at: datetime
    heartbeat_at: datetime
    lease_until: datetime
    ranges: str | None = None
    draining_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """A process, and how many agents are placed there."""

    process: PoolProcess
    agents: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a process is answered when it renews its lease: the ids of its agents."""

    agents: tuple[str, ...]
    is_draining: bool


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """An agent that was placed. `opened`: the id of the message that was opened by that."""

    agent_id: str
    pool: str
    process_id: str
    opened: str | None = None


@dataclass(frozen=True, slots=True)
class AddedMessage:
    """`is_new`: False where the idempotency key had made it before. `opened`: the id of the message that was opened by
    that, this one or an older one. `placed`: the agent's new place, where it had none. `events`: its first ones, where
    it is new, as they were stored before the agent was placed."""

    run: Run
    is_new: bool
    opened: str | None = None
    placed: AgentPlace | None = None
    events: tuple[Event, ...] = ()


def queue_of(agent_id: str) -> str:
    return AGENT_QUEUES + agent_id


def message_to(agent: Agent, run: Run) -> Run:
    """The run as a message to this agent, where its user and its prompt, input and limits are given already."""
    return replace(
        run,
        agent_id=agent.id,
        queue=agent.queue,
        agent=agent.memory_name,
        model=run.model or agent.model,
        handler=None,
        given_plan=None,
    )


def root_of(origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of the origin of a run, what the runs that it leads to have in theirs: the event with which all began, if it was
    one."""
    return {"root": origin["root"]} if origin and "root" in origin else {}


def mailbox_error() -> RunError:
    """Why a message waits that its agent has not come to."""
    return RunError(IN_MAILBOX, "it is in its agent's mailbox: it waits for the messages before it, or for a process")


def message_expired() -> RunError:
    """Why a message was cancelled that was not over in the time that its sender gave it."""
    return RunError(MESSAGE_EXPIRED, "it was not over when its time was up, which its sender has set")


def agent_terminated() -> RunError:
    """Why a message was cancelled whose agent was terminated."""
    return RunError(AGENT_TERMINATED, "its agent was terminated before it was over")


def status_of(
    agent: Agent, open_run: Run | None, last_run: Run | None, *, is_alive: bool, has_mail: bool = False
) -> AgentStatus:
    """What the agent does. `last_run`: the one with the highest turn that is over. `is_alive`: whether the agent has a
    process whose lease is not over. `has_mail`: whether a message is in its mailbox, where none is open."""
    if agent.terminated_at is not None:
        return AgentStatus.TERMINATED
    if open_run is not None and open_run.status is RunStatus.RUNNING:
        return AgentStatus.WORKING
    if agent.paused_at is not None:
        return AgentStatus.PAUSED
    if open_run is not None and open_run.status is RunStatus.QUEUED:
        sleeps = open_run.queued_at is not None and open_run.queued_at > datetime.now(UTC)
        return AgentStatus.WORKING if is_alive and not sleeps else AgentStatus.WAITING
    if open_run is not None and open_run.status is RunStatus.WAITING:
        code = open_run.error.code if open_run.error else ""
        if code == WAITS_FOR_RUN:
            return AgentStatus.WAITING_FOR_AGENT
        return AgentStatus.WAITING if code in (WAITS_FOR_EVENT, IN_MAILBOX) else AgentStatus.WAITING_FOR_PERSON
    if open_run is None and has_mail:
        return AgentStatus.WORKING if is_alive else AgentStatus.WAITING
    if last_run is not None and last_run.status is RunStatus.FAILED:
        return AgentStatus.FAILED
    return AgentStatus.IDLE if is_alive else AgentStatus.ASLEEP


# --- ranges of numbers ---

Ranges = tuple[tuple[int, int], ...]
"""Both ends belong to each."""


def parse_ranges(text: str, field: str = "AGENT_RANGE") -> Ranges:
    """`1-50` or `1-50,101-150`, in order and joined where they touch. Raises InvalidInput."""
    if len(text) > RANGES_MAX_CHARS:
        raise InvalidInput(f"{field}: at most {RANGES_MAX_CHARS} characters", field=field)
    found = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InvalidInput(
                f"{field}: {part.strip()[:40]!r} is no range; write numbers from 1 as 1-50 or 1-50,101-150", field=field
            )
        found.append((int(match[1]), int(match[2])))
    found.sort()
    joined = [found[0]]
    for first, last in found[1:]:
        if first <= joined[-1][1]:
            raise InvalidInput(f"{field}: {first} is in two of its ranges; name each number once", field=field)
        if first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def format_ranges(ranges: Ranges) -> str:
    return ",".join(f"{first}-{last}" for first, last in ranges)


def is_in(number: int, ranges: Ranges) -> bool:
    return any(first <= number <= last for first, last in ranges)


def overlaps(of_nodes: Sequence[Ranges]) -> Ranges:
    """Numbers that more than one of these have."""
    ends = sorted((first, last) for ranges in of_nodes for first, last in ranges)
    found: list[tuple[int, int]] = []
    highest = 0
    for first, last in ends:
        if first <= highest:
            found.append((first, min(last, highest)))
        highest = max(highest, last)
    return _joined(found)


def gaps(of_nodes: Sequence[Ranges], highest: int) -> Ranges:
    """Numbers from 1 to `highest` that none of these has."""
    found, expected = [], 1
    for first, last in _joined(sorted(one for ranges in of_nodes for one in ranges)):
        if first > highest:
            break
        if first > expected:
            found.append((expected, first - 1))
        expected = last + 1
    if expected <= highest:
        found.append((expected, highest))
    return tuple(found)


def _joined(ends: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for first, last in ends:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


# --- placement ---


def choose_process(agent_id: str, number: int, occupancies: Iterable[Occupancy]) -> PoolProcess | None:
    """Where an agent is placed; None where no process that may take it has room.

    A process with ranges takes their numbers alone, and comes before those without. Among nodes the highest hash of
    node and agent decides (rendezvous hashing), so a node that leaves moves its own agents only. On the node the
    process with the most agents that still has room takes it, so that others become empty and can end."""
    named: list[Occupancy] = []
    any_number: list[Occupancy] = []
    for one in occupancies:
        if one.agents >= one.process.capacity or one.process.draining_since is not None:
            continue
        if one.process.ranges is None:
            any_number.append(one)
        elif is_in(number, parse_ranges(one.process.ranges)):
            named.append(one)
    possible = named or any_number
    if not possible:
        return None
    node = max({one.process.node for one in possible}, key=lambda name: _weight(name, agent_id))
    of_node = (one for one in possible if one.process.node == node)
    return max(of_node, key=lambda one: (one.agents, one.process.id)).process


def takes_number(process: PoolProcess, number: int) -> bool:
    """Whether the process may take the agent with this number, where it has room."""
    return process.ranges is None or is_in(number, parse_ranges(process.ranges))


def _weight(node: str, agent_id: str) -> bytes:
    return hashlib.blake2b(f"{node}\0{agent_id}".encode(), digest_size=8).digest()
