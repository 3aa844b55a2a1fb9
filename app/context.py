"""What the routes work with, made once in the lifespan and reached through the request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.agents.actions import AgentActions
from app.bus.publishing import BusPublisher
from app.jobs import JobQueue
from app.kept_answer import KeptAnswer
from app.known_tools import KnownTools
from app.limits.rollout_waits import RolloutWaits
from app.limits.transfers import Transfers
from app.metrics import PlatformMetrics
from app.schemas.health import Readiness
from app.streams.hub import Hub
from app.streams.sse import History
from app.submission import Submission
from app.validation import Validator
from backplane.resources import Resources
from backplane.settings import Settings
from backplane.workspace.quota import Quota


@dataclass(frozen=True, slots=True)
class ApiContext:
    settings: Settings
    resources: Resources
    submission: Submission
    agent_actions: AgentActions
    known_tools: KnownTools
    publisher: BusPublisher
    validator: Validator
    jobs: JobQueue
    rollout_waits: RolloutWaits
    hub: Hub
    history: History
    quota: Quota
    transfers: Transfers
    platform_metrics: PlatformMetrics
    readiness: KeptAnswer[Readiness]


async def context_of(request: Request) -> ApiContext:
    # Asynchronous for its price alone: FastAPI calls a plain function in a thread.
    context: ApiContext = request.app.state.context
    return context


ContextOf = Annotated[ApiContext, Depends(context_of)]
