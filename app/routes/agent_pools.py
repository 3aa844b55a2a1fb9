"""/api/v1/agents/pools: how full the pools are, making agents in them, and for administrators their sizes."""

from datetime import UTC, datetime

from fastapi import HTTPException, Response

from app.agents.shortages import shortages
from app.auth import Admin, CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.agents import AgentView, NewAgent, NewPool, PoolChange, PoolList, PoolName, PoolView
from backplane.domain.agents import Pool
from backplane.errors import Conflict, NotFound
from backplane.settings import fixed

router = Operations(route_class=JsonRoute, tags=["agents"])


@router.get("/api/v1/agents/pools", responses=responses())
async def list_agent_pools(_: CurrentUser, context: ContextOf) -> PoolList:
    """The pools by name. Each with its processes, how many agents they can take, and how many there are."""
    counts, why = await context.resources.store.agent_pools.counts(), await shortages(context.resources.agent_registry)
    return PoolList(pools=[PoolView.of(one, why.get(one.pool.name)) for one in counts])


@router.post("/api/v1/agents/pools", status_code=201, responses=responses(403, 409, 413, 422))
async def create_agent_pool(new: NewPool, _: Admin, context: ContextOf) -> PoolView:
    """Make a pool. Its processes are started when its agents need them. `warning`: no live worker has its role."""
    pools = context.resources.store.agent_pools
    pool = Pool(
        name=new.name,
        role=new.role,
        created_at=datetime.now(UTC),
        agents_per_process=new.agents_per_process,
        min_processes=new.min_processes,
        max_processes=new.max_processes,
        sleep_after_seconds=new.sleep_after_seconds,
    )
    if not await pools.create(pool):
        raise Conflict(f"there is a pool {new.name} already; PATCH /api/v1/agents/pools/{new.name} changes it")
    return await _view(context, new.name, await context.known_tools.why_no_role(new.role))


@router.api_route("/api/v1/agents/pools", methods=["PATCH", "DELETE"], include_in_schema=False)
async def take_pools_for_no_agent(_: CurrentUser) -> None:
    """`pools` would be read as an agent's id else."""
    raise HTTPException(405)


@router.patch("/api/v1/agents/pools/{pool}", responses=responses(403, 404, 422))
async def change_agent_pool(pool: PoolName, change: PoolChange, _: Admin, context: ContextOf) -> PoolView:
    """Change a pool. Agents have a new role from their next turn on; processes that run keep their number of places.
    `warning`: no live worker has the new role."""
    pools = context.resources.store.agent_pools
    values = change.model_dump(exclude_none=True)
    if values:
        await pools.patch(pool, values)
    warning = None if change.role is None else await context.known_tools.why_no_role(change.role)
    return await _view(context, pool, warning)


@router.delete("/api/v1/agents/pools/{pool}", status_code=204, responses=responses(403, 404, 409, 422))
async def delete_agent_pool(pool: PoolName, _: Admin, context: ContextOf) -> Response:
    """Delete a pool that has no agents, also no terminated ones, and no processes."""
    await context.resources.store.agent_pools.delete(pool)
    return Response(status_code=204)


@router.post(
    "/api/v1/agents/pools/{pool}/agents",
    status_code=201,
    responses={
        200: {"description": "You have an agent of this name there: it is this one.", "model": AgentView},
        **responses(404, 409, 413, 422),
    },
)
async def spawn_agent(
    pool: PoolName, new: NewAgent, user: CurrentUser, context: ContextOf, response: Response
) -> AgentView:
    """Make an agent. The same name again answers the same agent, as it is. It gets a place in a process where one is
    free; else a message to it makes one."""
    store = context.resources.store
    context.agent_actions.check_agent(new.model, new.metadata, new.state)
    agent, is_new = await store.agents.spawn(
        user.id, pool, new.name, model=new.model, metadata=new.metadata, state=new.state, most=fixed.AGENTS_MAX_PER_USER
    )
    if not is_new:
        response.status_code = 200
    return AgentView.of(agent, (await store.agent_views.statuses([agent]))[agent.id])


async def _view(context: ApiContext, name: str, warning: str | None = None) -> PoolView:
    """Raises NotFound."""
    why = await shortages(context.resources.agent_registry)
    for counts in await context.resources.store.agent_pools.counts():
        if counts.pool.name == name:
            return PoolView.of(counts, why.get(name), warning)
    raise NotFound(f"there is no pool {name}; GET /api/v1/agents/pools lists those there are")
