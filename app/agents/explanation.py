"""Why an agent does nothing, and why a message to it is not opened: from what is known of the agent, its mailbox and
the processes of its pool to reasons that its user, or an operator, can act on. Pure."""

from collections.abc import Sequence

from app.explanation import Reason
from backplane.domain.agent_places import PLACE_FOR
from backplane.domain.agent_situation import AgentSituation, MailboxPlace
from backplane.domain.agents import AgentStatus, choose_process, gaps, overlaps, parse_ranges, takes_number
from backplane.domain.runs import Run, RunStatus

_PROCESSES_SHOWN = 5
_MAKES_ROOM = (
    f"an agent there that is idle makes room, and one that has had its place for {PLACE_FOR.seconds} s does between "
    "two turns"
)


def agent_reasons(situation: AgentSituation, of_open_run: Sequence[Reason] = ()) -> list[Reason]:
    """What the agent does, or what keeps it from doing something, the nearest first. `of_open_run`: why the message
    that is open does not go on, or that it does (`app.explanation.reasons`)."""
    agent, waiting = situation.agent, situation.waiting
    if agent.terminated_at is not None:
        kept = f"; {_messages(waiting)} in its mailbox {_are(waiting)} kept" if waiting else ""
        return [Reason("agent_terminated", f"it was terminated, and takes no message any more{kept}")]
    found = []
    if situation.open_run is not None:
        found += _at_work(situation, situation.open_run, of_open_run)
    if agent.paused_at is not None:
        then = f"{_messages(waiting)} {_wait(waiting)} until then" if waiting else "messages wait until then"
        found.append(Reason("agent_paused", f"it begins no further turn until it is resumed; {then}"))
    elif situation.open_run is None and waiting and not situation.has_live_process:
        found.append(no_process(situation))
    elif situation.open_run is None and waiting:
        found.append(Reason("on_its_way", "its next message is opened at this moment"))
    elif situation.open_run is None:
        found.append(_idle(situation))
    if situation.open_run is not None and waiting:
        behind = f"{_messages(waiting)} {_wait(waiting)} in its mailbox, one after another"
        found.append(Reason("messages_wait", behind))
    if (wrong := _wrong_ranges(situation)) is not None:
        found.append(wrong)
    return found


def mailbox_reasons(place: MailboxPlace) -> list[Reason]:
    """Why a message at this place in the mailbox is not opened, the nearest first."""
    ahead, situation = place.ahead, place.situation
    agent, open_run = situation.agent, situation.open_run
    found = []
    if agent.terminated_at is not None:
        return [Reason("agent_terminated", "its agent was terminated, and takes no message any more; cancel this one")]
    if open_run is not None:
        found.append(
            Reason("agent_busy", f"its agent is at turn {open_run.turn}, run {open_run.id} ({_doing(open_run)})")
        )
    if agent.paused_at is not None:
        found.append(Reason("agent_paused", "its agent is paused; resume it"))
    elif open_run is None and not situation.has_live_process:
        found.append(no_process(situation))
    if ahead:
        found.append(Reason("messages_ahead", f"{_messages(ahead)} of the mailbox {_come(ahead)} before it"))
    return found or [Reason("on_its_way", "it is opened at this moment")]


def no_process(situation: AgentSituation) -> Reason:
    """Why an agent that has something to do has no process."""
    agent, pool, live = situation.agent, situation.pool, situation.live
    taking = [one for one in live if one.process.draining_since is None]
    by_hand = f"or with AGENT_LAUNCHER=none you do: `python -m worker.pool {pool.name}`"
    if not taking:
        ending = f" ({_count(len(live), 'process')} of it {_are(len(live))} ending)" if live else ""
        if situation.shortage:
            text = f"no process of the pool {pool.name} is alive{ending}, and none can be started: {situation.shortage}"
            return Reason("no_process", text)
        text = f"no process of the pool {pool.name} is alive{ending}; the manager starts one within seconds, {by_hand}"
        return Reason("no_process", text)
    if choose_process(agent.id, agent.number, taking) is not None:
        return Reason("on_its_way", f"a process of the pool {pool.name} takes it at this moment")
    possible = [one for one in taking if takes_number(one.process, agent.number)]
    if not possible:
        there = ", ".join(sorted({one.process.ranges or "" for one in taking})[:_PROCESSES_SHOWN])
        text = f"no live process takes its number {agent.number}: their ranges (AGENT_RANGE) are {there}"
        return Reason("number_not_served", text)
    room = sum(one.process.capacity for one in possible)
    taken = f"all {room} places of {_count(len(possible), 'process')} of the pool {pool.name}"
    if any(one.process.ranges is not None for one in taking):
        text = f"{taken} that may take its number {agent.number} are taken"
        return Reason("pool_full", f"{text}; {_MAKES_ROOM}")
    text = f"{taken} are taken"
    if len(live) < pool.max_processes and situation.shortage:
        text = f"{text}, and no further process starts: {situation.shortage}; {_MAKES_ROOM}"
        return Reason("pool_full", text)
    if len(live) < pool.max_processes:
        starts = f"the manager starts another one within seconds; until then {_MAKES_ROOM}"
        return Reason("process_starts", f"{text}; {starts}")
    most = f"and it may have no more processes (max_processes {pool.max_processes})"
    return Reason("pool_full", f"{text}, {most}; {_MAKES_ROOM}, or an administrator raises it")


def in_words_of_agent(situation: AgentSituation, found: Sequence[Reason]) -> str:
    """One sentence of all reasons."""
    texts = "; ".join(one.text.rstrip(".") for one in found)
    return f"The agent {situation.agent.name} is {situation.status.value.replace('_', ' ')}: {texts}."


def _at_work(situation: AgentSituation, run: Run, reasons: Sequence[Reason]) -> list[Reason]:
    of_turn = f"turn {run.turn}, run {run.id}"
    if situation.asked:
        details = f"it waits for the answer of {' and of '.join(situation.asked)}"
    else:
        details = "; ".join(one.text for one in reasons)
    return [
        Reason("turn_open", f"it is at {of_turn} ({run.status.value if details else _doing(run)})"),
        *([Reason(reasons[0].code, f"of that turn: {details}")] if reasons else []),
    ]


def _idle(situation: AgentSituation) -> Reason:
    if situation.status is AgentStatus.FAILED:
        run = situation.failed_run
        why = f" ({run.turn}) failed: {run.error.message} [{run.error.code}]" if run and run.error else " failed"
        return Reason("last_turn_failed", f"its last turn{why}; no message waits for it, and it takes the next one")
    if situation.has_live_process:
        return Reason("idle", "no message waits for it")
    return Reason("asleep", "no message waits for it, and it has no process; a message wakes it")


def _wrong_ranges(situation: AgentSituation) -> Reason | None:
    """Numbers that two nodes take, or none does, where nodes have ranges: what an operator has to mend."""
    of_node = {
        one.process.node: parse_ranges(one.process.ranges)
        for one in situation.live
        if one.process.draining_since is None and one.process.ranges is not None
    }
    if not of_node:
        return None
    if twice := overlaps(list(of_node.values())):
        text = f"two nodes take the same numbers of its pool (AGENT_RANGE): {_shown(twice)}"
        return Reason("ranges_overlap", text)
    has_others = any(one.process.ranges is None for one in situation.live)
    highest = max(situation.agent.number, *(last for ranges in of_node.values() for _, last in ranges))
    if not has_others and (missing := gaps(list(of_node.values()), highest)):
        return Reason("ranges_missing", f"no node takes these numbers of its pool (AGENT_RANGE): {_shown(missing)}")
    return None


def _shown(ranges: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges[:_PROCESSES_SHOWN])
    return shown + (" and others" if len(ranges) > _PROCESSES_SHOWN else "")


def _doing(run: Run) -> str:
    return f"{run.status}: {run.error.message}" if run.status is RunStatus.WAITING and run.error else run.status.value


def _count(number: int, thing: str) -> str:
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number} {thing if number == 1 else plural}"


def _messages(number: int) -> str:
    return _count(number, "message")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _wait(number: int) -> str:
    return "waits" if number == 1 else "wait"


def _come(number: int) -> str:
    return "comes" if number == 1 else "come"
