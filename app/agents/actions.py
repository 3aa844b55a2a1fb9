"""Messages to agents, and what else the API does to an agent that queues, cancels or removes something.

A message is stored in the agent's mailbox by one commit, which opens it where the agent is free; then it is pushed. The
mailbox is in the database, so a message that is accepted is not lost. What a turn does is the workers' part.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from app.schemas.agents import NewMessage
from app.submission import Submission
from backplane.domain.agents import Agent, agent_terminated
from backplane.domain.runs import Priority, Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import InvalidInput, StorageExceeded, TooLarge
from backplane.limits.storage.limits import StorageLimits
from backplane.resources import Resources
from backplane.run_actions.actions import idempotency_of
from backplane.settings import Settings, fixed

REMOVED_AT_ONCE = 100


class AgentActions:
    def __init__(
        self, settings: Settings, resources: Resources, submission: Submission, storage_limits: StorageLimits
    ) -> None:
        self._settings = settings
        self._resources = resources
        self._store = resources.store
        self._submission = submission
        self._storage_limits = storage_limits

    async def send(self, user: User, agent_id: str, new: NewMessage, idempotency_key: str | None) -> Run:
        """The message, or the one that the same key and body made before. Raises NotFound, InvalidInput,
        AgentTerminated, MailboxFull, StorageExceeded, IdempotencyKeyReused, Unavailable (database)."""
        agent = await self._store.agents.get(user.id, agent_id)
        self.check_message(new.text, new.data)
        asked = new.model_dump(mode="json", exclude={"wait_seconds"}, exclude_defaults=True)
        idempotency = idempotency_of(idempotency_key, ["message", agent_id, asked])
        try:
            await self._storage_limits.check_new_run(user.id)
        except StorageExceeded:
            # Asked again, a request gets the answer that it got, however full the store is by now.
            if idempotency and (earlier := await self._store.runs.made_before(user.id, *idempotency)):
                return earlier
            raise
        added = await self._store.agent_messages.add(
            self._run_of(agent, new, _priority(new, user)),
            mailbox_max=fixed.AGENT_MAILBOX_MAX,
            idempotency=idempotency,
        )
        if added.is_new:
            await self._submission.push_added(added)
        return added.run

    async def resume(self, user_id: str, agent_id: str) -> Agent:
        """Raises NotFound, AgentTerminated."""
        await self._store.agents.resume(user_id, agent_id)
        await self._submission.push_message_of(agent_id)
        return await self._store.agents.get(user_id, agent_id)

    async def terminate(self, user: User, agent_id: str, *, force: bool, remove_messages: bool) -> Agent:
        """End the agent, and with `remove_messages` cancel what waits in its mailbox. Raises NotFound."""
        agent = await self._submission.terminate(user, agent_id, force=force)
        while remove_messages and (waiting := await self._store.agents.mailbox(agent_id, limit=REMOVED_AT_ONCE)):
            for run_id in waiting:
                await self._submission.end_message(run_id, agent_terminated())
        return agent

    async def delete(self, user_id: str, agent_id: str) -> None:
        """Delete a terminated agent with its files. Raises NotFound, Conflict, Unavailable; again, it goes on."""
        await self._store.agents.check_deletable(user_id, agent_id)
        # Its row goes last: files without one would be found by nobody.
        await self._resources.workspaces.remove(user_id, agent_id)
        await self._store.agents.delete(user_id, agent_id)

    def check_agent(self, model: str | None, metadata: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Raises InvalidInput, TooLarge."""
        if model is not None:
            self._submission.check_model(model)
        for name, value, most in (
            ("metadata", metadata, fixed.METADATA_MAX_BYTES),
            ("state", state, fixed.AGENT_STATE_MAX_BYTES),
        ):
            if len(json.dumps(value)) > most:
                raise TooLarge(f"{name}: at most {most:,} bytes of JSON; put large data into a file of the agent")

    def check_message(self, text: str, data: Any) -> None:
        """Raises InvalidInput."""
        most = fixed.PROMPT_MAX_CHARS
        if len(text) > most:
            raise InvalidInput(f"text: {len(text)} characters; at most {most} are taken", field="text")
        most = fixed.HANDLER_VALUE_MAX_BYTES
        if len(json.dumps(data)) > most:
            raise InvalidInput(f"data: at most {most} bytes of JSON; put large data into a file", field="data")

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
            model=agent.model,
            agent_id=agent.id,
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
