"""Why a run waits: from what is known of it and of the queue to reasons that its user can act on. Pure."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from backplane.domain.decisions import Decision, DecisionKind
from backplane.domain.runs import DEFAULT_QUEUE, FINAL, WAITS_FOR_EVENT, WAITS_FOR_RUN, Run, RunStatus
from backplane.domain.sizes import shortened
from backplane.limits.slots.base import WaitingForModel
from backplane.process.terminal_text import escaped
from backplane.queue.base import PUSH_SECONDS, Gate, Standing, Statistics, Whereabouts

WAITS_FOR_MODEL_SLOT, WAITS_FOR_MODEL_TOKENS = "waits_for_model_slot", "waits_for_model_tokens"
WAITS_FOR_MODEL = frozenset({WAITS_FOR_MODEL_SLOT, WAITS_FOR_MODEL_TOKENS})

_QUEUES_SHOWN = 10
_ASKED_CHARS = 300
"""The most characters that are shown of a question, and of the arguments of a step that is to be approved."""


@dataclass(frozen=True, slots=True)
class Reason:
    """`code` is stable; `text` is a sentence without its full stop."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Situation:
    """`statistics` is None when the queue does not answer; the others are None also where they do not apply. `asked`:
    what a person has to decide. `whereabouts`: where the queue has a queued run that stands nowhere in it;
    `compared_seconds`: how often the queue is compared with the database. `crashes`: workers that were lost with a run
    whose last try is to be alone in its process; else 0. `of_agent`: of a message to an agent, why the
    agent has not come to it, or has no process."""

    statistics: Statistics | None
    standing: Standing | None
    next_attempt_at: datetime | None
    model: WaitingForModel | None = None
    asked: tuple[Decision, ...] = ()
    whereabouts: Whereabouts | None = None
    compared_seconds: float = 5.0
    of_agent: tuple[Reason, ...] = ()
    crashes: int = 0


def reasons(run: Run, situation: Situation, now: datetime) -> list[Reason]:
    """What keeps the run from going on, the nearest first; that it goes on, or is over, is a reason too."""
    match run.status:
        case RunStatus.CREATED:
            return [Reason("not_started", "it was created and not started; start it")]
        case RunStatus.RUNNING if run.cancel_requested_at:
            return [Reason("being_cancelled", "its worker ends it within a heartbeat")]
        case RunStatus.RUNNING if situation.model:
            return [_waits_for_model(situation.model)]
        case RunStatus.RUNNING:
            return [Reason("running", f"a worker carries it out (attempt {run.attempt})")]
        case RunStatus.WAITING if situation.of_agent:
            return list(situation.of_agent)
        case RunStatus.WAITING if situation.asked:
            return [Reason("waits_for_person", _asks(decision)) for decision in situation.asked]
        case RunStatus.WAITING if run.error is not None and run.error.code in (WAITS_FOR_RUN, WAITS_FOR_EVENT):
            return [
                Reason("waits_for_run" if run.error.code == WAITS_FOR_RUN else "waits_for_event", run.error.message)
            ]
        case RunStatus.WAITING:
            return [Reason("waits_for_person", _needs_person(run))]
        case RunStatus.QUEUED if _sleeps(run) and run.queued_at is not None and run.queued_at > now:
            who = "its agent" if run.agent_id is not None else "its handler"
            return [Reason("sleeps", f"{who} sleeps until {run.queued_at:%Y-%m-%d %H:%M:%S} UTC")]
        case RunStatus.QUEUED:
            return _queued(run, situation, now)
    return [Reason("over", f"it is {run.status}" + (f": {run.error.message}" if run.error else ""))]


def _sleeps(run: Run) -> bool:
    return run.handler is not None or run.agent_id is not None


def _needs_person(run: Run) -> str:
    """What a run without an open decision waits for, and how it goes on."""
    text = "a person has to decide: " + (run.error.message if run.error else "it needs an answer")
    if run.error and run.error.code == "step_uncertain":
        text += " (retry the run with uncertain_step `done`, or with `repeat`)"
    return text


def _asks(decision: Decision) -> str:
    """What a run asks, and the id of the decision that is to be answered."""
    where = f"decision {decision.id}"
    of_step = f"step {decision.step_id}" if decision.step_id else "its planner"
    asked = decision.asked
    match decision.kind:
        case DecisionKind.QUESTION:
            question = escaped(shortened(str(asked.get("question", "")), _ASKED_CHARS))
            return f'{of_step} asks: "{question}" ({where})'
        case DecisionKind.BUDGET:
            text = f"{of_step} needs {asked.get('needed')} {asked.get('resource')} and {asked.get('account')} has "
            return text + f"{asked.get('left')} left ({where})"
    reason = f", because {asked['reason']}" if asked.get("reason") else ""
    return f"{of_step} is to be approved, which uses {asked.get('tool')} {_arguments(decision)}{reason} ({where})"


def _arguments(decision: Decision) -> str:
    """As the worker has stored them, without secrets. A long text is cut; the decision has all of it."""
    text = json.dumps(decision.asked.get("arguments") or {}, ensure_ascii=False)
    if len(text) <= _ASKED_CHARS:
        return escaped(text)
    return escaped(shortened(text, _ASKED_CHARS))


def _queued(run: Run, situation: Situation, now: datetime) -> list[Reason]:
    statistics, standing = situation.statistics, situation.standing
    if statistics is None:
        text = "the queue does not answer; the run is kept in the database and is queued again once it does"
        return [Reason("queue_away", text)]
    if situation.next_attempt_at:
        seconds = max((situation.next_attempt_at - now).total_seconds(), 0.0)
        if situation.crashes:
            return [Reason("last_try_alone", _is_set_aside(situation.crashes, seconds))]
        failed = f" after it failed: {run.error.message}" if run.error else ""
        return [Reason("next_attempt", f"attempt {run.attempt} begins in {seconds:.0f} s{failed}")]
    if situation.of_agent:
        held_back = [_held_back(run, standing)] if standing is not None and standing.gate else []
        return [*held_back, *situation.of_agent]
    if standing is None:
        return [_not_standing(run, situation, statistics, now)]
    found = []
    if standing.gate:
        found.append(_held_back(run, standing))
    if statistics.workers == 0:
        found.append(_no_worker(run, statistics))
    elif statistics.running >= statistics.slots:
        found.append(Reason("no_free_slot", _all_taken(run, statistics)))
    if standing.position > 1:
        ahead = standing.position - 1
        in_queue = "" if run.queue == DEFAULT_QUEUE else f" in the queue {run.queue}"
        text = f"{_count(ahead, 'run')} {'is' if ahead == 1 else 'are'} taken before it{in_queue}"
        found.append(Reason("runs_ahead", text))
    return found or [Reason("next", "it is the next one and is taken at once")]


def _is_set_aside(crashes: int, seconds: float) -> str:
    """Why a run begins no try, though a worker has a free slot."""
    were_lost = "was lost while it" if crashes == 1 else "were lost while they"
    return (
        f"{_count(crashes, 'worker')} {were_lost} carried it out, so its last try begins in a process that carries "
        f"out nothing else; no such process is free, and it asks again in {seconds:.0f} s"
    )


def _no_worker(run: Run, statistics: Statistics) -> Reason:
    """Why nobody takes the run: no worker is alive, or none of those that are serves its queue."""
    if run.queue == DEFAULT_QUEUE and not statistics.served:
        return Reason("no_worker", "no worker is alive; start one")
    start = f"start one with WORKER_QUEUES={run.queue}"
    if not statistics.served:
        return Reason("no_worker", f"no worker is alive; {start}")
    served = sorted(statistics.served)
    names = ", ".join(served[:_QUEUES_SHOWN]) + (" and others" if len(served) > _QUEUES_SHOWN else "")
    text = f"no live worker serves the queue {run.queue} (live workers serve {names}); {start}"
    return Reason("queue_not_served", text)


def _all_taken(run: Run, statistics: Statistics) -> str:
    """That no slot is free, and what the workers that serve the queue are busy with, where they serve others too."""
    workers = _count(statistics.workers, "worker")
    text = f"all {statistics.slots} slots of {workers} are taken"
    if run.queue == DEFAULT_QUEUE and set(statistics.busy_with) <= {DEFAULT_QUEUE}:
        return text
    most_first = sorted(statistics.busy_with.items(), key=lambda kind: (-kind[1], kind[0]))[:_QUEUES_SHOWN]
    busy = ", ".join(f"{_count(runs, 'run')} of {queue}" for queue, runs in most_first)
    serve = "serves" if statistics.workers == 1 else "serve"
    return f"all {statistics.slots} slots of {workers} that {serve} the queue {run.queue} are taken ({busy})"


def _not_standing(run: Run, situation: Situation, statistics: Statistics, now: datetime) -> Reason:
    """Why a queued run stands nowhere in the queue, so that no worker would get it."""
    if situation.whereabouts is Whereabouts.CLAIMED:
        return Reason("on_its_way", "a worker has claimed it and begins; if that worker is lost, it is queued again")
    is_new = (waiting_seconds(run, now) or 0.0) < PUSH_SECONDS
    if situation.whereabouts in (None, Whereabouts.WAITS) or (is_new and situation.whereabouts is not Whereabouts.LOST):
        return Reason("on_its_way", "it is on its way into the queue, or a worker takes it at this moment")
    lost = "Redis has lost its place in the queue; the database has the run, and "
    if statistics.workers == 0 and not statistics.served:
        return Reason("lost_in_queue", f"{lost}the first worker that is started queues it again; start one")
    soon = f"the leading worker compares the two every {situation.compared_seconds:g} s and queues it again"
    return Reason("lost_in_queue", lost + soon)


def _held_back(run: Run, standing: Standing) -> Reason:
    tier = run.priority.name.lower()
    match standing.gate:
        case Gate.USER:
            text = f"{_count(standing.cap, 'run')} of yours may be under way at once, and as many are"
            return Reason("user_cap", text)
        case Gate.TIER:
            text = f"{_count(standing.cap, 'run')} of the priority {tier} may be under way at once, and as many are"
            return Reason("tier_cap", text)
    text = f"{_count(standing.cap, 'run')} may use {run.resource} at once, and as many do"
    return Reason("resource_cap", text)


def _waits_for_model(waiting: WaitingForModel) -> Reason:
    if waiting.what == "tokens":
        soon = f", for about {waiting.seconds:.0f} s" if waiting.seconds is not None else ""
        text = f"its agent or its user has used up the model tokens that it may have at once; it waits for more{soon}"
        return Reason(WAITS_FOR_MODEL_TOKENS, text)
    place = f": place {waiting.position}" if waiting.position else ""
    place += f" of {waiting.waiting}" if place and waiting.waiting else ""
    taken = f", all {waiting.slots} are taken" if waiting.slots else ""
    return Reason(WAITS_FOR_MODEL_SLOT, f"it waits for a slot of the model server {waiting.server}{place}{taken}")


def in_words(run: Run, found: list[Reason]) -> str:
    """One sentence of all reasons."""
    goes_on = run.status is RunStatus.RUNNING and not {reason.code for reason in found} & WAITS_FOR_MODEL
    beginning = "The run does not wait" if goes_on or run.status in FINAL else "The run waits"
    return f"{beginning}: {'; '.join(reason.text.rstrip('.') for reason in found)}."


def waiting_seconds(run: Run, now: datetime) -> float | None:
    """How long a queued run has waited; None for others."""
    if run.status is not RunStatus.QUEUED or run.queued_at is None:
        return None
    return round(max((now - run.queued_at).total_seconds(), 0.0), 1)


def moment(seconds: float | None) -> datetime | None:
    """The time of so many seconds since the epoch (1970, UTC); None for None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
