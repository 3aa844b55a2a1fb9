"""What was said to an agent before, and what it answered: its last turns, as many as have room, and the summary of
those before them."""

import json
from typing import Any

from pydantic import BaseModel

from backplane.domain.agents import Agent
from backplane.domain.runs import FINAL, Run, RunStatus
from backplane.process.retrying import until_available
from backplane.store import Store
from worker.llm.answer import estimated_tokens
from worker.llm.prompts import head_and_tail
from worker.roles.role import MessageSender

TURNS_READ = 200
"""The most turns that are looked at, and PAGE at once; what is older and in no summary is left out."""
PAGE = 20
WORDS_CHARS = 4_000
"""Of one message, and of one answer: a longer one is cut in its middle."""
ROOM_FOR_SUMMARY = 3
"""How much more is read than is shown as it was, as a factor: that is summed up."""
LOADED_MAX_BYTES = 200_000
"""So that it fits the journal, which keeps it with the turn."""
COLLEAGUES_MAX = 50


class ConversationTurn(BaseModel):
    """`answer` is None where the turn gave none; `status` says why."""

    turn: int
    sender: str
    message: str
    answer: str | None
    status: str

    @property
    def tokens(self) -> int:
        return estimated_tokens(len(self.message.encode()) + len((self.answer or "").encode()) + len(self.sender) + 20)


class Colleague(BaseModel):
    name: str
    pool: str
    role: str


class Conversation(BaseModel):
    """`turns`: oldest first. `summary`: of the turns up to `summary_until`; empty: there is none. `colleagues`: the
    user's other agents, where they were asked for."""

    summary: str = ""
    summary_until: int = 0
    turns: list[ConversationTurn] = []
    colleagues: list[Colleague] = []

    def split(self, tokens: int) -> tuple[list[ConversationTurn], list[ConversationTurn]]:
        """The turns to be summed up, and those to be shown as they were. All are shown where they have room; where they
        have not, the newest of them take half of it, so that the next turns have room again."""
        if sum(turn.tokens for turn in self.turns) <= tokens:
            return [], self.turns
        left, shown = tokens // 2, 0
        for turn in reversed(self.turns):
            left -= turn.tokens
            if left < 0:
                break
            shown += 1
        at = len(self.turns) - shown
        return self.turns[:at], self.turns[at:]


class Conversations:
    """Looks back from one turn. `summary`: the agent's, as the turn began."""

    def __init__(self, store: Store, run: Run, agent: Agent, summary: dict[str, Any] | None) -> None:
        self._store = store
        self._run = run
        self._agent = agent
        self._summary = summary or {}

    async def load(self, tokens: int, with_colleagues: bool) -> Conversation:
        until = int(self._summary.get("until_turn", 0))
        turns = await self._turns(until, tokens * ROOM_FOR_SUMMARY)
        colleagues = await self._colleagues() if with_colleagues else []
        text = str(self._summary.get("text", ""))
        return Conversation(summary=text, summary_until=until, turns=turns, colleagues=colleagues)

    async def _turns(self, until: int, tokens: int) -> list[ConversationTurn]:
        found: list[ConversationTurn] = []
        before, room = self._run.turn or 0, LOADED_MAX_BYTES
        while len(found) < TURNS_READ:
            page = await until_available(
                lambda turn=before: self._store.agent_messages.of_agent(  # type: ignore[misc]
                    self._agent.id, after_turn=turn, limit=PAGE, newest_first=True
                )
            )
            for run in page:
                before = run.turn or 0
                if before <= until:
                    return found[::-1]
                if run.status not in FINAL:
                    continue  # a turn that was put back
                turn = _turn_of(run)
                tokens, room = tokens - turn.tokens, room - len(json.dumps(turn.model_dump()))
                if tokens < 0 or room < 0:
                    return found[::-1]
                found.append(turn)
            if len(page) < PAGE:
                break
        return found[::-1]

    async def _colleagues(self) -> list[Colleague]:
        found = await until_available(lambda: self._store.agents.page(self._agent.user_id, limit=COLLEAGUES_MAX + 1))
        roles = {pool.name: pool.role for pool in await until_available(self._store.agent_pools.list_all)}
        others = [agent for agent in found if agent.id != self._agent.id][:COLLEAGUES_MAX]
        return [Colleague(name=one.name, pool=one.pool, role=roles.get(one.pool, "")) for one in others]


def _turn_of(run: Run) -> ConversationTurn:
    answer = None
    status = str(run.status)
    if run.status is RunStatus.COMPLETED:
        answer = head_and_tail(words_of((run.result or {}).get("value")), WORDS_CHARS)
    elif run.error is not None:
        status = f"{run.status} ({run.error.code})"
    message = head_and_tail(run.prompt, WORDS_CHARS)
    return ConversationTurn(
        turn=run.turn or 0, sender=str(MessageSender.of(run)), message=message, answer=answer, status=status
    )


def words_of(value: Any) -> str:
    """A value as text: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
