"""A message to an agent: stored in its mailbox by one commit, which opens it where the agent is free; then pushed.

The mailbox is in the database, so a message that is accepted is not lost, and how full the mailbox is decides whether one
more is taken. What a turn does is the workers' (`worker.roles`); nothing here carries one out.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from app.schemas.agents import NewMessage
from app.submission import Submission
from backplane.domain.agents import Agent
from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import InvalidInput, Unavailable
from backplane.limits.storage.limits import StorageLimits
from backplane.run_actions.actions import idempotency_of
from backplane.settings import Settings, fixed
from backplane.store import Store


class AgentMessages:
    def __init__(
        self, settings: Settings, store: Store, submission: Submission, storage_limits: StorageLimits
    ) -> None:
        self._settings = settings
        self._store = store
        self._submission = submission
        self._storage_limits = storage_limits

    async def send(self, user: User, agent_id: str, new: NewMessage, idempotency_key: str | None) -> Run:
        """The message, or the one that the same key and body made before. Raises NotFound, InvalidInput, Conflict (the
        agent was terminated), MailboxFull, StorageExceeded, IdempotencyKeyReused, Unavailable (database)."""
        agent = await self._store.agents.get(user.id, agent_id)
        priority = _priority(new, user)
        _check(new)
        asked = new.model_dump(mode="json", exclude={"wait_seconds"}, exclude_defaults=True)
        idempotency = idempotency_of(idempotency_key, ["message", agent_id, asked])
        await self._storage_limits.check_new_run(user.id)
        added = await self._store.agent_messages.add(self._run_of(agent, new, priority), idempotency=idempotency)
        ...
        return added.run

    def _run_of(self, agent: Agent, new: NewMessage, priority: Priority) -> Run:
        now = datetime.now(UTC)
        return Run(
            id=new_run_id(),
            user_id=agent.user_id,
            status=RunStatus.WAITING,
            priority=priority,
            prompt=new.text,
            input=new.data,
            created_at=now,
            timeout_seconds=self._settings.run_timeout_seconds,
            max_retries=self._settings.run_max_retries,
            queue=agent.queue,
            agent=agent.memory_name,
            agent_id=agent.id,
            in_mailbox=True,
            expires_at=None if new.ttl_seconds is None else now + timedelta(seconds=new.ttl_seconds),
        )


def _priority(new: NewMessage, user: User) -> Priority:
    """Raises InvalidInput."""
    if new.priority is None:
        return user.priority
    asked = Priority[new.priority.name]
    if asked > user.priority:
        most = user.priority.name.lower()
        raise InvalidInput(f"priority: at most {most}, the priority of your tier {user.tier}", field="priority")
    return asked


def _check(new: NewMessage) -> None:
    """Raises InvalidInput."""
    if len(new.text) > fixed.PROMPT_MAX_CHARS:
        raise InvalidInput(
            f"text: {len(new.text)} characters; at most {fixed.PROMPT_MAX_CHARS} are taken", field="text"
        )
    if len(json.dumps(new.data)) > fixed.HANDLER_VALUE_MAX_BYTES:
        raise InvalidInput(f"data: at most {fixed.HANDLER_VALUE_MAX_BYTES} bytes of JSON", field="data")
