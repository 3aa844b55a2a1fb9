"""GET /agent/runs: the runs that one looks for, in pages, and how many there are."""

from typing import Annotated

from fastapi import Depends, HTTPException, Query

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.fields import Limit, Moment, RunId, Text
from app.schemas.runs import ListedRunView, RunCount, RunPage, RunSummary
from backplane.domain.budgets import MICRO, Resource, amount_text
from backplane.domain.run_lists import ListedRun, RunsWanted
from backplane.domain.runs import QUEUE_PATTERN, RunStatus
from backplane.domain.users import Tier, User
from backplane.errors import Forbidden

router = Operations(tags=["runs"])

IdBeginning = Annotated[
    str | None,
    Query(
        pattern=r"^[0-9a-f-]{1,36}$",
        examples=["01936f7e-9f5c"],
        description="Only runs whose id begins so, as a person gives it.",
    ),
]

LISTED_PROMPT_CHARS = 200
EVERYBODY = "*"
MOST_USD = 10**9


async def _wanted(
    user: CurrentUser,
    context: ContextOf,
    status: Annotated[
        list[RunStatus] | None, Query(max_length=len(RunStatus), description="Only runs in one of these states.")
    ] = None,
    id_beginning: IdBeginning = None,
    text: Annotated[
        Text | None, Query(min_length=1, max_length=200, description="Only runs whose prompt has this text in it.")
    ] = None,
    queue: Annotated[str | None, Query(pattern=QUEUE_PATTERN, description="Only runs of this queue.")] = None,
    handler: Annotated[
        Text | None, Query(min_length=1, max_length=64, description="Only runs that this handler carries out.")
    ] = None,
    agent: Annotated[
        Text | None, Query(min_length=1, max_length=64, description="Only runs of this agent (`agent`).")
    ] = None,
    of_user: Annotated[
        Text | None,
        Query(
            alias="user",
            min_length=1,
            max_length=200,
            description="For administrators: only runs of this user, by name or id; `*`: everybody's.",
        ),
    ] = None,
    created_from: Annotated[Moment | None, Query(description="Only runs that were created then or later.")] = None,
    created_to: Annotated[Moment | None, Query(description="Only runs that were created before.")] = None,
    cost_min: Annotated[
        float | None, Query(ge=0, le=MOST_USD, description="Only runs whose calls of models cost so many dollars.")
    ] = None,
    cost_max: Annotated[
        float | None, Query(ge=0, le=MOST_USD, description="Only runs whose calls of models cost no more dollars.")
    ] = None,
) -> RunsWanted:
    wanted = RunsWanted(
        user_id=user.id if of_user is None else await _user_id(user, of_user, context),
        statuses=tuple(dict.fromkeys(status or ())),
        beginning=id_beginning,
        text=text,
        queue=queue,
        handler=handler,
        agent=agent,
        created_from=created_from,
        created_to=created_to,
        cost_min=None if cost_min is None else round(cost_min * MICRO),
        cost_max=None if cost_max is None else round(cost_max * MICRO),
    )
    wanted.check()
    return wanted


Wanted = Annotated[RunsWanted, Depends(_wanted)]


@router.get("/agent/runs", responses=responses(403, 404, 422))
async def list_runs(
    wanted: Wanted,
    context: ContextOf,
    cursor: Annotated[RunId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> RunPage:
    """One's runs, newest first; for administrators with `user` those of others. A page looks through 20,000 runs at
    most for a text, a queue, a handler, an agent or a cost, so it may have fewer runs than asked for, and another page
    behind it."""
    found = await context.resources.store.run_lists.page(wanted, before=cursor, limit=limit)
    return RunPage(runs=[listed(each) for each in found.runs], next_cursor=found.before)


@router.get("/agent/runs/count", responses=responses(403, 404, 422))
async def count_runs(wanted: Wanted, context: ContextOf) -> RunCount:
    """How many runs there are that `GET /agent/runs` would list, up to 10,000."""
    count, is_more = await context.resources.store.run_lists.count(wanted)
    return RunCount(count=count, is_more=is_more)


@router.api_route("/agent/runs/count", methods=["DELETE"], include_in_schema=False)
async def take_count_for_no_run(_: CurrentUser) -> None:
    """`count` would be read as a run's id else."""
    raise HTTPException(405)


async def _user_id(user: User, named: str, context: ContextOf) -> str | None:
    """Raises Forbidden, NotFound."""
    if named in (user.id, user.name):
        return user.id
    if user.tier is not Tier.ADMIN:
        raise Forbidden(f"user: runs of others are for users of the tier admin, and {user.name} has {user.tier}")
    return None if named == EVERYBODY else (await context.resources.store.users.find(named)).id


def listed(found: ListedRun) -> ListedRunView:
    """As lists show it."""
    run = found.run
    return ListedRunView(
        **{**RunSummary.fields_of(run), "prompt": run.prompt[:LISTED_PROMPT_CHARS]},
        user=found.user_name,
        cost_usd=amount_text(Resource.MICRO_USD, found.micro_usd),
    )
