"""The doorbells of agents: wake the streams of an agent when one of its messages has got events.

Redis announces that a run of a user has events, and not whose message it is. That is asked of the database, in one
query for all runs that have appeared since the last one, and kept: it never changes.
"""

import asyncio
from collections.abc import Iterable

import structlog

from app.streams.buffer import Watched
from backplane.errors import Unavailable
from backplane.store import Store

log = structlog.get_logger()

ASK_SECONDS = 0.02
"""The shortest time between two queries."""
OUTAGE_SECONDS = 1.0
REMEMBERED = 10_000


class WatchedMailbox(Watched[int]):
    """It has no frames. Its epoch grows when its agent may have a further message."""

    def __init__(self, agent_id: str, user_id: str) -> None:
        super().__init__(0, 0, 0)
        self.agent_id = agent_id
        self.user_id = user_id

    def ring(self) -> None:
        self.epoch += 1
        self.wake()


class Mailboxes:
    """`watched`: by the agent's id. `run` it in a task."""

    def __init__(self, store: Store) -> None:
        self.watched: dict[str, WatchedMailbox] = {}
        self._store = store
        self._users = frozenset[str]()
        self._agents: dict[str, str | None] = {}
        self._unknown = set[str]()
        self._some_unknown = asyncio.Event()

    def add(self, agent_id: str, user_id: str) -> WatchedMailbox:
        """The agent's, made where there is none."""
        mailbox = self.watched.setdefault(agent_id, WatchedMailbox(agent_id, user_id))
        self._users |= {user_id}
        return mailbox

    def swept(self) -> None:
        """Some of `watched` are gone."""
        self._users = frozenset(mailbox.user_id for mailbox in self.watched.values())

    def are_of(self, user_id: str) -> int:
        """How many of the user's are watched."""
        return sum(mailbox.user_id == user_id for mailbox in self.watched.values())

    def announced(self, user_id: str, run_id: str) -> None:
        if user_id not in self._users:
            return
        if run_id in self._agents:
            self._ring(self._agents[run_id])
        else:
            self._unknown.add(run_id)
            self._some_unknown.set()

    def ring_all(self) -> None:
        for mailbox in self.watched.values():
            mailbox.ring()

    async def run(self) -> None:
        while True:
            await self._some_unknown.wait()
            self._some_unknown.clear()
            asked, self._unknown = self._unknown, set()
            try:
                await self._find(asked)
            except Unavailable as error:
                log.warning("new messages of agents are found a little later", error=error.message)
                self.ring_all()
                await asyncio.sleep(OUTAGE_SECONDS)
            await asyncio.sleep(ASK_SECONDS)

    async def _find(self, run_ids: Iterable[str]) -> None:
        """Raises Unavailable."""
        found = await self._store.agent_views.agents_of(run_ids)
        if len(self._agents) >= REMEMBERED:
            self._agents.clear()
        for run_id in run_ids:
            self._agents[run_id] = found.get(run_id)
            self._ring(found.get(run_id))

    def _ring(self, agent_id: str | None) -> None:
        if (mailbox := self.watched.get(agent_id or "")) is not None:
            mailbox.ring()
