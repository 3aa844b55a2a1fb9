"""The turn of an agent: what its role is given beside the message, and what the end of the turn writes.

A turn is a run, carried out as a handler's is. Its state is read when the turn begins and written by the transaction
that ends it well; the API refuses to change it meanwhile. So code that is run again from its start sees the same state
again, and a turn that fails leaves it as it was.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from backplane.domain.agents import Agent
from backplane.domain.runs import Run, RunError
from backplane.settings import fixed
from worker.handlers.run import MODEL, STEP, Driver, EffectRequest, HandlerEffect, JournalledCode, Options, value_of
from worker.handlers.values import NotStorable, arguments_of, as_json
from worker.roles.conversation import Conversation, Conversations
from worker.roles.messages import ASK, SEND
from worker.steps.outcomes import StepFailed
from worker.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What the end of a turn changes of its agent; None: nothing."""

    state: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None


class TurnChanges:
    """The agent's state while the code changes it, and the summary of older turns that it has made. `state` itself is
    left as it is: the code may be run again from its start, and begins with it then."""

    def __init__(self, state: Any) -> None:
        self.state = deepcopy(state)
        self.summary: dict[str, Any] | None = None
        self._before = json.dumps(state, sort_keys=True)

    def end(self) -> TurnEnd:
        """Raises StepFailed for a state that is no JSON object, or too large."""
        try:
            state = as_json(self.state, "agent.state", fixed.AGENT_STATE_MAX_BYTES)
        except NotStorable as error:
            raise StepFailed(RunError("state_not_storable", str(error))) from None
        if not isinstance(state, dict):
            message = f"agent.state is a {type(self.state).__name__}; it must be a dict, so that it has room for more"
            raise StepFailed(RunError("state_not_storable", message))
        is_changed = json.dumps(state, sort_keys=True) != self._before
        return TurnEnd(state if is_changed else None, self.summary)


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn that is carried out. `model`: the one that its role names, where neither its message nor its agent names
    one."""

    run: Run
    agent: Agent
    model: str | None
    changes: TurnChanges
    conversations: Conversations


class AgentTurn(JournalledCode):
    """The agent, for the length of one turn. `id` is the agent's, `run_id` the turn's run. `state` is a dict of JSON
    that the code may change; the turn's end keeps it."""

    def __init__(self, driver: Driver, turn: "OpenTurn", tools: ToolRegistry) -> None:
        super().__init__(driver, turn.agent.id, turn.model)
        self.run_id = turn.run.id
        self.name = turn.agent.name
        self.pool = turn.agent.pool
        self.metadata: Mapping[str, Any] = turn.agent.metadata
        self.turn = turn.run.turn or 0
        self.tools = tools
        """Those that its run may use."""
        self._changes = turn.changes
        self._conversations = turn.conversations

    @property
    def state(self) -> Any:
        return self._changes.state

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self._changes.state = value

    def send(self, agent: str, text: str, data: Any = None) -> HandlerEffect[str]:
        """Send a message to another agent of the user's, and go on; the id of the run that it is. `agent`: its id, its
        name, or POOL/NAME. It is sent once. Raises StepError of the codes not_found, agent_ambiguous, agent_terminated,
        mailbox_full, storage_quota_exceeded, too_deep and invalid_message."""
        arguments = {"agent": agent, "text": text, "data": arguments_of(data)}
        request = EffectRequest(SEND, f"send-{agent}", arguments, lambda result: str(value_of(result)), args=(data,))
        return HandlerEffect(self._driver, request)

    def ask(self, agent: str, text: str, data: Any = None, *, timeout: float | None = None) -> HandlerEffect[Any]:
        """Send a message and wait for what the other agent answers, without a worker. `timeout`: in seconds. Raises
        StepError of the codes of `send`, and of ask_circle (the other one waits for this agent already), ask_timeout,
        and ask_failed (its turn failed or was cancelled)."""
        arguments = {"agent": agent, "text": text, "data": arguments_of(data), "timeout": timeout}
        request = EffectRequest(ASK, f"ask-{agent}", arguments, value_of, args=(data,))
        return HandlerEffect(self._driver, request)

    def conversation(self, tokens: int = 6_000) -> HandlerEffect[Conversation]:
        """The agent's last turns before this one, as many as have about so many tokens, and the summary of older ones,
        where one is kept."""
        return self._look_back(tokens, with_colleagues=False)

    def look_around(self, tokens: int) -> HandlerEffect[Conversation]:
        """As `conversation`, with the user's other agents."""
        return self._look_back(tokens, with_colleagues=True)

    def _look_back(self, tokens: int, *, with_colleagues: bool) -> HandlerEffect[Conversation]:
        request = EffectRequest(
            STEP,
            "conversation",
            {"args": [tokens, with_colleagues]},
            lambda result: Conversation.model_validate(value_of(result)),
            self._conversations.load,
            (tokens, with_colleagues),
            Options(repeatable=True),
        )
        return HandlerEffect(self._driver, request)

    def answer_of_model(
        self, name: str, arguments: Mapping[str, Any], check: Any, compared: Mapping[str, Any]
    ) -> HandlerEffect[Any]:
        """A call of a model whose prompt is no part of what the journal compares: it is made of instructions that may
        change while the turn goes on. `check` takes the answer's object and raises ValueError where it does not fit;
        None: the answer is a text."""
        arguments = {"model": self._default_model, **arguments}
        request = EffectRequest(MODEL, name, arguments, value_of, check, compared=dict(compared))
        return HandlerEffect(self._driver, request)

    def keep_summary(self, until_turn: int, text: str) -> None:
        """Let the end of the turn keep this as the summary of all turns up to that one."""
        self._changes.summary = {"until_turn": until_turn, "text": text}
