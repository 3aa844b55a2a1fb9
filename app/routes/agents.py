"""/api/v1/agents: agents that live, what they do, and what changes them."""

from typing import Annotated

from fastapi import Query, Response

from app.agents.explanation import agent_reasons, in_words_of_agent
from app.agents.shortages import with_shortage
from app.auth import CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.explanation import reasons
from app.routes.run_lists import IdBeginning
from app.routes.runs import situation_of
from app.schemas.agents import (
    AgentChange,
    AgentExplanation,
    AgentKey,
    AgentPage,
    AgentStateChange,
    AgentStateView,
    AgentView,
)
from app.schemas.fields import Limit, RunId
from app.schemas.runs import ReasonView
from backplane.domain.agents import AGENT_NAME_PATTERN, POOL_PATTERN, Agent
from backplane.errors import NotFound

router = Operations(route_class=JsonRoute, tags=["agents"])

_Force = Annotated[bool, Query(description="Cancel the turn that it is at; else that goes to its end.")]
_RemoveMessages = Annotated[bool, Query(description="Cancel what waits in its mailbox; else that is kept and shown.")]


@router.get("/api/v1/agents", responses=responses(422))
async def list_agents(
    user: CurrentUser,
    context: ContextOf,
    pool: Annotated[str | None, Query(pattern=POOL_PATTERN, description="Only those of this pool.")] = None,
    name: Annotated[str | None, Query(pattern=AGENT_NAME_PATTERN, description="Only those of this name.")] = None,
    id_beginning: IdBeginning = None,
    terminated: Annotated[bool, Query(description="Also those that were terminated.")] = False,
    cursor: Annotated[RunId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> AgentPage:
    """Your agents, the oldest first."""
    found = await context.resources.store.agents.page(
        user.id,
        pool=pool,
        name=name,
        beginning=id_beginning,
        terminated=terminated,
        after=cursor,
        limit=limit + 1,
    )
    shown = found[:limit]
    statuses = await context.resources.store.agent_views.statuses(shown)
    return AgentPage(
        agents=[AgentView.of(agent, statuses[agent.id]) for agent in shown],
        next_cursor=shown[-1].id if len(found) > limit else None,
    )


@router.get("/api/v1/agents/{agent_id}", responses=responses(404, 422))
async def show_agent(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> AgentView:
    """An agent and what it does. Its state: GET /api/v1/agents/{agent_id}/state."""
    return await _view(context, await context.resources.store.agents.get(user.id, agent_id))


@router.patch("/api/v1/agents/{agent_id}", responses=responses(404, 409, 413, 422))
async def change_agent(agent_id: AgentKey, change: AgentChange, user: CurrentUser, context: ContextOf) -> AgentView:
    """Change an agent's model or metadata, from its next turn on."""
    values = {name: getattr(change, name) for name in change.model_fields_set}
    context.agent_actions.check_agent(values.get("model"), values.get("metadata", {}), {})
    agents = context.resources.store.agents
    changed = await (agents.patch(user.id, agent_id, values) if values else agents.get(user.id, agent_id))
    return await _view(context, changed)


@router.delete("/api/v1/agents/{agent_id}", status_code=204, responses=responses(404, 409, 422))
async def delete_agent(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> Response:
    """Delete an agent that was terminated, with its state and its files, for good. Its runs stay."""
    await context.agent_actions.delete(user.id, agent_id)
    return Response(status_code=204)


@router.get("/api/v1/agents/{agent_id}/explain", responses=responses(404, 422))
async def explain_agent(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> AgentExplanation:
    """What an agent does, or why it does nothing, in words and in fields."""
    store = context.resources.store
    agent = await store.agents.get(user.id, agent_id)
    situation = await with_shortage(context.resources.agent_registry, await store.agent_views.situation(agent))
    of_open_run = []
    if situation.open_run is not None:
        try:
            run = await store.runs.get(user.id, situation.open_run.id)
            of_open_run = reasons(run, await situation_of(context, run), situation.at)
        except NotFound:
            pass  # it was over and deleted in this moment
    found = agent_reasons(situation, of_open_run)
    return AgentExplanation(
        agent_id=agent.id,
        status=situation.status,
        text=in_words_of_agent(situation, found),
        reasons=[ReasonView(code=reason.code, text=reason.text) for reason in found],
        waiting_messages=situation.waiting,
        open_run_id=agent.open_run_id,
        process=agent.process_id,
    )


@router.post("/api/v1/agents/{agent_id}/pause", responses=responses(404, 409, 413, 422))
async def pause_agent(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> AgentView:
    """Let an agent begin no further turn. The one that it is at goes on; messages are taken and wait."""
    return await _view(context, await context.resources.store.agents.pause(user.id, agent_id))


@router.post("/api/v1/agents/{agent_id}/resume", responses=responses(404, 409, 413, 422))
async def resume_agent(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> AgentView:
    """Let a paused agent go on with its messages."""
    return await _view(context, await context.agent_actions.resume(user.id, agent_id))


@router.post("/api/v1/agents/{agent_id}/terminate", responses=responses(404, 409, 413, 422))
async def terminate_agent(
    agent_id: AgentKey,
    user: CurrentUser,
    context: ContextOf,
    force: _Force = False,
    remove_messages: _RemoveMessages = False,
) -> AgentView:
    """End an agent for good: it takes no message any more. Terminating it again changes nothing but what `force` and
    `remove_messages` ask for."""
    return await _view(
        context, await context.agent_actions.terminate(user, agent_id, force=force, remove_messages=remove_messages)
    )


@router.get("/api/v1/agents/{agent_id}/state", responses=responses(404, 422))
async def show_agent_state(agent_id: AgentKey, user: CurrentUser, context: ContextOf) -> AgentStateView:
    """An agent's state, and its version."""
    return AgentStateView.of(await context.resources.store.agents.state(user.id, agent_id))


@router.put("/api/v1/agents/{agent_id}/state", responses=responses(404, 409, 413, 422))
async def put_agent_state(
    agent_id: AgentKey, new: AgentStateChange, user: CurrentUser, context: ContextOf
) -> AgentStateView:
    """Replace an agent's state. Refused (409 `agent_busy`) while a turn is open, which may change it too."""
    context.agent_actions.check_agent(None, {}, new.state)
    return AgentStateView.of(await context.resources.store.agents.put_state(user.id, agent_id, new.state, new.version))


async def _view(context: ApiContext, agent: Agent) -> AgentView:
    return AgentView.of(agent, (await context.resources.store.agent_views.statuses([agent]))[agent.id])
