"""Messages that a turn sends to other agents: to send and go on, or to ask and wait.

A message is sent in the transaction that notes it in the journal, under the id of its step, so it is sent once. A
question has the run of the turn as its parent: the run waits without a worker, as it does for a run that a handler
starts, and goes on when the message is over in whatever way. A question that would close a circle of agents that wait
for one another is refused by that transaction (`store.agents.circles`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from backplane.domain.agents import AGENT_TERMINATED, MESSAGE_EXPIRED, Agent, message_to, root_of
from backplane.domain.runs import FINAL, Run, RunError, RunStatus, new_run_id
from backplane.domain.steps import StepStatus
from backplane.errors import InvalidInput, RateLimited, Refused
from backplane.limits.storage.limits import StorageLimits
from backplane.process.retrying import until_available
from backplane.resources import Resources
from backplane.run_actions.pushing import push_open_message
from backplane.settings import fixed
from worker.handlers.code import CarryOut, OpenEffect, given
from worker.handlers.run import EFFECTS
from worker.handlers.values import NotStorable, as_json, due_after
from worker.handlers.waiting import EffectWaits
from worker.llm.untrusted_json import storable

SEND, ASK = f"{EFFECTS}send", f"{EFFECTS}ask_agent"
NAMED_MAX = 20
"""Names of agents that an error lists."""

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _NotSent(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = RunError(code, message)


class SentMessages:
    """Of one turn. `limits`: of what its user may keep. `agent`: whose turn it is. `redact`: takes the run's secrets
    out of what is sent."""

    def __init__(
        self,
        resources: Resources,
        limits: StorageLimits,
        run: Run,
        agent: Agent,
        redact: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        self._limits = limits
        self._redact = redact
        self._resources = resources
        self._store = resources.store
        self._run = run
        self._agent = agent

    @property
    def effects(self) -> Mapping[str, CarryOut]:
        return {SEND: self._send, ASK: self._ask}

    async def _send(self, effect: OpenEffect) -> None:
        run_id = await self._sent(effect, is_question=False)
        await effect.journal.end(effect.step, StepStatus.COMPLETED, given(run_id))

    async def _ask(self, effect: OpenEffect) -> None:
        run_id = await self._sent(effect, is_question=True)
        asked = await until_available(lambda: self._store.runs.find(run_id))
        if asked is not None and asked.status not in FINAL:
            raise EffectWaits(run_id=run_id)
        if asked is not None and asked.status is RunStatus.COMPLETED:
            value = (asked.result or {}).get("value")
            await effect.journal.end(effect.step, StepStatus.COMPLETED, given(value))
            return
        error = _why(effect.request.arguments["agent"], run_id, asked)
        is_cut_off = asked is not None and asked.status is RunStatus.CANCELLED and asked.error is None
        if asked is not None and is_cut_off and await self._is_terminated(asked):
            error = replace(error, code=AGENT_TERMINATED)
        await effect.journal.fail(effect.step, replace(error, step=effect.step.id))

    async def _is_terminated(self, asked: Run) -> bool:
        """A turn that is cut off because its agent is terminated ends as one that somebody has cancelled."""
        agent_id = asked.agent_id or ""
        agent = await until_available(lambda: self._store.agents.find(agent_id))
        return agent is None or agent.terminated_at is not None

    async def _sent(self, effect: OpenEffect, *, is_question: bool) -> str:
        """The id of the message, which is sent where it was not yet."""
        if effect.noted is not None:
            return str(effect.noted["value"])
        step = effect.step
        # An effect that failed, and is carried out again by a retry, sends another message.
        sent_as = f"{step.id}\n{effect.round}" if effect.round else step.id
        try:
            message = await self._message(effect, is_question=is_question)
            await self._limits.check_new_run(message.user_id)
            await effect.journal.note(
                step,
                given(message.id),
                lambda transaction: transaction.send_message(sent_as, message, mailbox_max=fixed.AGENT_MAILBOX_MAX),
            )
        except _NotSent as error:
            await effect.journal.fail(step, replace(error.error, step=step.id))
        except (Refused, RateLimited) as refused:
            await effect.journal.fail(step, RunError(refused.code, refused.message, refused.retryable, step.id))
        resources, agent_id = self._resources, message.agent_id or ""
        await push_open_message(resources.store, resources.queue, resources.event_log, agent_id)
        return message.id

    async def _message(self, effect: OpenEffect, *, is_question: bool) -> Run:
        """Raises _NotSent."""
        depth, run, now = int((self._run.origin or {}).get("depth", 0)), self._run, datetime.now(UTC)
        if depth >= fixed.AGENT_SEND_DEPTH_MAX:
            most = fixed.AGENT_SEND_DEPTH_MAX
            raise _NotSent("too_deep", f"messages may lead to messages {most} deep, and this one would be deeper")
        arguments = effect.request.arguments
        text = arguments["text"]
        if not isinstance(text, str) or not text.strip() or len(text) > fixed.PROMPT_MAX_CHARS:
            raise _NotSent("invalid_message", f"a message has a text of 1 to {fixed.PROMPT_MAX_CHARS:,} characters")
        timeout = arguments.get("timeout")
        try:
            data = as_json(effect.request.args[0], "the data of a message")
            expires_at = None if timeout is None else due_after(timeout, "timeout")
        except (NotStorable, InvalidInput) as error:
            raise _NotSent("invalid_message", str(error)) from None
        handed_on = self._redact({"text": text, "data": data})
        origin = {"kind": "agent", "run_id": run.id, "agent_id": self._agent.id, "name": self._agent.name}
        made = Run(
            id=new_run_id(),
            user_id=run.user_id,
            status=RunStatus.CREATED,
            priority=run.priority,
            prompt=storable(handed_on["text"]),
            created_at=now,
            timeout_seconds=run.timeout_seconds,
            max_retries=run.max_retries,
            resource=run.resource,
            budget=run.budget,
            mcp_servers=run.mcp_servers,
            origin={**origin, "by": effect.step.id, "depth": depth + 1, **root_of(run.origin)},
            input=handed_on["data"],
            parent_id=run.id if is_question else None,
            expires_at=expires_at,
        )
        return message_to(await self._addressee(storable(str(arguments["agent"]))), made)

    async def _addressee(self, wanted: str) -> Agent:
        """By id, POOL/NAME or name. Raises _NotSent."""
        agents, user_id = self._store.agents, self._run.user_id
        if _ID.fullmatch(wanted):
            found = await until_available(lambda: agents.find(wanted))
            named = [found] if found is not None and found.user_id == user_id else []
        else:
            pool, _, name = wanted.rpartition("/")
            named = await until_available(lambda: agents.named(user_id, name, pool or None))
        if len(named) == 1:
            return named[0]
        if named:
            there = ", ".join(f"{agent.pool}/{agent.name}" for agent in named)
            raise _NotSent("agent_ambiguous", f"several agents have the name {wanted!r}: write one of {there}")
        others = await until_available(lambda: agents.page(user_id, limit=NAMED_MAX + 1))
        names = [f"{agent.name} ({agent.pool})" for agent in others if agent.id != self._agent.id][:NAMED_MAX]
        there = f"; there are {', '.join(names)}" if names else "; there is no other one"
        raise _NotSent("not_found", f"you have no agent {wanted[:100]!r}{there}")


def _why(agent: str, run_id: str, asked: Run | None) -> RunError:
    """Why a question has no answer."""
    if asked is None:
        return RunError("ask_failed", f"agent {agent} gave no answer: run {run_id} has been deleted")
    code, because = "ask_failed", f": {asked.error.message}" if asked.error else ""
    if asked.error is not None and asked.error.code == MESSAGE_EXPIRED:
        return RunError("ask_timeout", f"agent {agent} gave no answer in time (run {run_id})")
    if asked.error is not None and asked.error.code == AGENT_TERMINATED:
        code = AGENT_TERMINATED
    retryable = bool(asked.error and asked.error.retryable)
    return RunError(code, f"agent {agent} gave no answer: run {run_id} is {asked.status}{because}", retryable)
