"""GET /agent/runs/{run_id}: what became of a run. Lists of runs are `app.routes.run_lists`."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path, Query

from app.agents.explanation import mailbox_reasons, no_process
from app.agents.shortages import with_shortage
from app.auth import CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.explanation import Reason, Situation, in_words, moment, reasons, waiting_seconds
from app.routes.execute import standing_of
from app.schemas.dead_letters import FailureView
from app.schemas.fields import Limit, RunId
from app.schemas.model_calls import ModelCallDetails, ModelCallPage, ModelCallView
from app.schemas.runs import (
    Explanation,
    PlanVersions,
    PlanVersionView,
    QueueStanding,
    ReasonView,
    RunSummary,
    RunView,
    StepView,
    WebhookView,
)
from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.runs import Run, RunStatus
from backplane.domain.users import Tier
from backplane.domain.webhooks import DeliveryStatus
from backplane.errors import NotFound, Unavailable
from backplane.run_actions.deletion import delete_run

router = Operations(tags=["runs"])

CallId = Annotated[str, Path(max_length=64, description="`call_id` of one of the run's calls.")]

STEPS_SHOWN = 1_000
"""Of a run with a handler, which may have ten times as many, the newest."""
_ASKED_MAX = 20
"""Open questions that an explanation names."""


@router.get("/agent/runs/{run_id}", responses=responses(404, 422))
async def show_run(run_id: RunId, user: CurrentUser, context: ContextOf) -> RunView:
    """A run with its plan, its steps and their results."""
    store = context.resources.store
    run = await store.runs.get(user.id, run_id)
    steps = await store.journal.steps(run_id)
    left_out = max(len(steps) - STEPS_SHOWN, 0) if run.is_of_code else 0
    failures = await store.dead_letters.failures(run_id)
    standing = await standing_of(context, run)
    return RunView(
        **RunSummary.fields_of(run),
        input=run.input,
        timeout_seconds=run.timeout_seconds,
        max_retries=run.max_retries,
        cancel_requested=run.cancel_requested_at is not None,
        plan=run.plan or run.given_plan,
        plan_version=run.plan_version,
        result=run.result,
        budget=run.budget,
        mcp_servers=run.mcp_servers or [],
        steps=[
            StepView(
                id=step.step_id,
                title=step.title,
                tool=step.tool,
                status=step.status,
                tries=step.tries,
                started_at=step.started_at,
                finished_at=step.finished_at,
                result=step.result,
            )
            for step in steps[left_out:]
        ],
        steps_left_out=left_out or None,
        failures=[FailureView.of(failure, with_traceback=user.tier is Tier.ADMIN) for failure in failures],
        webhook=await _webhook(context, run),
        files_expired_at=run.files_expired_at,
        **standing,
    )


@router.delete("/agent/runs/{run_id}", operation_id="delete_run", status_code=204, responses=responses(404, 409, 422))
async def delete_one(run_id: RunId, user: CurrentUser, context: ContextOf) -> None:
    """Delete a run that is over, with its events and files, for good."""
    resources = context.resources
    await delete_run(resources.store.retention, resources.workspaces, resources.storage, user.id, run_id)


async def _webhook(context: ApiContext, run: Run) -> WebhookView | None:
    if run.webhook_url is None:
        return None
    state = await context.resources.store.webhooks.last_of(run.id)
    if state is None:
        return WebhookView(url=run.webhook_url)
    return WebhookView(
        url=run.webhook_url,
        event=state.event,
        status=state.status,
        attempts=state.attempts,
        last_error=state.last_error,
        response_code=state.response_code,
        next_at=state.next_at if state.status is DeliveryStatus.PENDING else None,
    )


@router.get("/agent/runs/{run_id}/plans", responses=responses(404, 422))
async def list_plans(run_id: RunId, user: CurrentUser, context: ContextOf) -> PlanVersions:
    """All plans of a run. Those that a newer one has replaced, each with the reason, and the one in force."""
    store = context.resources.store
    run = await store.runs.get(user.id, run_id)
    plans = [
        PlanVersionView(version=old.version, plan=old.plan, replaced_at=old.replaced_at, reason=old.reason)
        for old in await store.plans.replaced(run_id)
    ]
    if run.plan is not None:
        plans.append(PlanVersionView(version=run.plan_version, plan=run.plan))
    return PlanVersions(plans=plans)


@router.get("/agent/runs/{run_id}/model-calls", responses=responses(404, 422))
async def list_model_calls(
    run_id: RunId,
    user: CurrentUser,
    context: ContextOf,
    cursor: Annotated[int, Query(ge=0, le=10**9, description="`next_cursor` of the page before.")] = 0,
    limit: Limit = 50,
) -> ModelCallPage:
    """The calls of models that a run has made, in their order, without their texts."""
    store = context.resources.store
    await store.runs.get(user.id, run_id)
    calls = await store.model_calls.of_run(run_id)
    until = cursor + limit
    return ModelCallPage(
        calls=[ModelCallView(**ModelCallView.fields_of(call)) for call in calls[cursor:until]],
        next_cursor=until if len(calls) > until else None,
    )


@router.get("/agent/runs/{run_id}/model-calls/{call_id}", responses=responses(404, 422))
async def show_model_call(run_id: RunId, call_id: CallId, user: CurrentUser, context: ContextOf) -> ModelCallDetails:
    """What a model was asked and what it answered, without secrets."""
    store = context.resources.store
    await store.runs.get(user.id, run_id)
    found = next((call for call in await store.model_calls.of_run(run_id) if call.id == call_id), None)
    call = await store.model_calls.find(run_id, found.key) if found else None
    if call is None:
        raise NotFound(f"run {run_id} has no such call; GET /agent/runs/{run_id}/model-calls lists those it has")
    return ModelCallDetails(**ModelCallView.fields_of(call), request=call.request, response=call.response)


@router.get("/agent/runs/{run_id}/explain", responses=responses(404, 422))
async def explain_run(run_id: RunId, user: CurrentUser, context: ContextOf) -> Explanation:
    """Why a run waits, in words and in fields."""
    run = await context.resources.store.runs.get(user.id, run_id)
    situation, now = await situation_of(context, run), datetime.now(UTC)
    found = reasons(run, situation, now)
    statistics, standing = situation.statistics, situation.standing
    return Explanation(
        run_id=run.id,
        status=run.status,
        text=in_words(run, found),
        reasons=[ReasonView(code=reason.code, text=reason.text) for reason in found],
        priority=run.priority.name.lower(),
        queue=run.queue,
        waiting_seconds=waiting_seconds(run, now),
        ahead=standing.position - 1 if standing else None,
        cap=standing.cap if standing and standing.gate else None,
        next_attempt_at=situation.next_attempt_at,
        free_slots=max(statistics.slots - statistics.running, 0) if statistics else None,
        max_concurrent=statistics.slots if statistics else None,
        workers=statistics.workers if statistics else None,
        **(QueueStanding.standing_fields(standing) if standing else {}),
    )


async def situation_of(context: ApiContext, run: Run) -> Situation:
    queue, slots = context.resources.queue, context.resources.slots
    asked: list[Decision] = []
    of_agent = await _of_agent(context, run)
    if run.in_mailbox:
        return Situation(None, None, None, of_agent=of_agent)
    if run.status is RunStatus.WAITING:
        decisions = context.resources.store.decisions
        asked = await decisions.page(run.user_id, run_id=run.id, status=DecisionStatus.PENDING, limit=_ASKED_MAX)
    try:
        statistics = await queue.statistics(run.queue)
        [standing] = await queue.standing([run.id]) if run.status is RunStatus.QUEUED else [None]
        model = await slots.waiting(run.id) if run.status is RunStatus.RUNNING else None
        next_attempt = moment(await queue.next_attempt(run.id))
        is_nowhere = run.status is RunStatus.QUEUED and standing is None and next_attempt is None
        return Situation(
            statistics,
            standing,
            next_attempt,
            model,
            tuple(asked),
            await queue.whereabouts(run.id) if is_nowhere else None,
            context.settings.heartbeat_seconds,
            of_agent,
            await _crashes_before_last_try(context, run) if next_attempt is not None else 0,
        )
    except Unavailable:
        return Situation(None, None, None, asked=tuple(asked))


async def _crashes_before_last_try(context: ApiContext, run: Run) -> int:
    crashes = await context.resources.queue.crashes(run.id)
    return crashes if crashes > 0 and context.settings.worker_crash_limit - 1 <= crashes else 0


async def _of_agent(context: ApiContext, run: Run) -> tuple[Reason, ...]:
    """Of a message that waits for its agent, or for a process of its agent: why."""
    store = context.resources.store
    if run.agent_id is None or run.turn is None or not (run.in_mailbox or run.status is RunStatus.QUEUED):
        return ()
    agent = await store.agents.find(run.agent_id)
    if agent is None:
        return ()
    registry = context.resources.agent_registry
    if run.in_mailbox:
        place = await store.agent_views.place_in_mailbox(agent, run.turn)
        return tuple(mailbox_reasons(replace(place, situation=await with_shortage(registry, place.situation))))
    situation = await with_shortage(registry, await store.agent_views.situation(agent))
    if situation.has_live_process:
        return (Reason("on_its_way", f"the process {agent.process_id}, which has its agent, takes it at this moment"),)
    return (no_process(situation),)
