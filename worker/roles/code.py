"""The role of an agent as code that a driver carries out."""

from collections.abc import Coroutine
from typing import Any

from backplane.domain.agents import AgentAtTurn
from backplane.domain.runs import Run, RunError
from backplane.limits.storage.limits import StorageLimits
from backplane.process.retrying import until_available
from backplane.resources import Resources
from backplane.store import Store
from worker.handlers.code import Code, file_of
from worker.handlers.run import Driver
from worker.roles.conversation import Conversations
from worker.roles.messages import SentMessages
from worker.roles.registry import RegisteredRole, RoleRegistry
from worker.roles.role import AgentMessage
from worker.roles.turn import AgentTurn, OpenTurn, TurnChanges, TurnEnd
from worker.run.redaction import Redactor
from worker.steps.outcomes import StepFailed
from worker.tools.registry import ToolRegistry


class RoleTurns:
    """One turn, which may be run several times from its start. `ended`: what the last of them changes of the agent."""

    def __init__(self, sent: SentMessages, store: Store, role: RegisteredRole, run: Run, found: AgentAtTurn) -> None:
        self.ended = TurnEnd()
        self._role = role
        self._run = run
        self._found = found
        self._sent = sent
        self._conversations = Conversations(store, run, found.agent, found.state.summary)

    def code(self, tools: ToolRegistry) -> Code:
        def begin(driver: Driver) -> Coroutine[Any, Any, Any]:
            return self._carry_out(driver, tools)

        file = file_of(type(self._role.role).on_message)
        return Code("role", self._role.name, self._role.code, begin, "role_failed", file, self._sent.effects)

    async def _carry_out(self, driver: Driver, tools: ToolRegistry) -> Any:
        changes = TurnChanges(self._found.state.value)
        model = self._role.role.model if self._run.model is None else None
        turn = OpenTurn(self._run, self._found.agent, model, changes, self._conversations)
        answer = await self._role.role.on_message(AgentMessage.of(self._run), AgentTurn(driver, turn, tools))
        self.ended = changes.end()
        return answer


async def open_turns(
    resources: Resources, roles: RoleRegistry, limits: StorageLimits, run: Run, redactor: Redactor
) -> RoleTurns:
    """Waits while the database is away. Raises StepFailed where the agent or its role is not there any more."""
    assert run.agent_id is not None
    agent_id = run.agent_id
    found = await until_available(lambda: resources.store.agents.at_turn(agent_id))
    if found is None:
        raise StepFailed(RunError("agent_unknown", f"agent {agent_id} is deleted; send this to another one"))
    role = roles.get(found.role)
    if role is None:
        raise StepFailed(
            RunError(
                "role_unknown",
                f"the worker that took the run has no role {found.role!r} (it has: {', '.join(roles.names)}). Put its "
                "file into ROLES_DIR or install its package for all processes of the pool "
                f"{found.agent.pool!r}, then retry the run; the agent takes its next message all the same",
            )
        )
    sent = SentMessages(resources, limits, run, found.agent, redactor.arguments)
    return RoleTurns(sent, resources.store, role, run, found)
