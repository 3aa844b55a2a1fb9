"""What the API takes and gives of agents and their pools. A message to an agent is a run, and has the run's id."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, Field, model_validator

from app.schemas.described import DescribedAs
from app.schemas.execute import MODEL_PATTERN
from app.schemas.fields import ID_PATTERN, JsonObject, JsonValue, NextCursor, NextNumber, RunId, StrictRequest, Text
from app.schemas.outcomes import ErrorView, PriorityName
from app.schemas.runs import ReasonView
from backplane.domain.agents import AGENT_NAME_PATTERN, POOL_PATTERN, Agent, AgentState, AgentStatus, PoolCounts
from backplane.domain.runs import Run, RunStatus

WAIT_MAX_SECONDS = 60.0
"""Proxies end a call that is silent for longer; the stream of an agent has no such limit."""
TTL_MAX_SECONDS = 30 * 24 * 3600
AGENTS_PER_PROCESS_MAX = 1000
"""A process has one event loop, and a slot for each."""
POOL_PROCESSES_MAX = 1000

_AGENT_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"

AgentKey = Annotated[str, Path(pattern=ID_PATTERN, examples=[_AGENT_ID], description="Id of an agent.")]
PoolName = Annotated[
    str, Path(pattern=POOL_PATTERN, examples=["developer_pool"], description="Name of a pool of agents.")
]
_Name = Annotated[str, Field(pattern=AGENT_NAME_PATTERN)]
_ModelName = Annotated[str, Field(max_length=200, pattern=MODEL_PATTERN, examples=["ollama/qwen2.5:7b"])]
_Few = Annotated[int, Field(ge=1, le=AGENTS_PER_PROCESS_MAX, description="Agents that a process takes at most.")]
_Processes = Annotated[int, Field(le=POOL_PROCESSES_MAX)]
_SleepAfter = Annotated[
    int, Field(ge=1, le=TTL_MAX_SECONDS, description="After so many idle seconds an agent gives its place up.")
]


class NewPool(StrictRequest):
    name: _Name = Field(examples=["research_pool"])
    role: _Name = Field(description="What its agents are: a role that its processes know.", examples=["developer"])
    agents_per_process: _Few = 10
    min_processes: _Processes = Field(0, ge=0, description="So many run, also when no agent needs one.")
    max_processes: _Processes = Field(4, ge=1, description="So many run at most.")
    sleep_after_seconds: _SleepAfter = 600

    @model_validator(mode="after")
    def _fits(self) -> "NewPool":
        if self.min_processes > self.max_processes:
            raise ValueError("min_processes: it is more than max_processes; raise the one or lower the other")
        return self


class PoolChange(StrictRequest):
    """What is left out stays as it is."""

    role: _Name | None = Field(None, examples=["developer"])
    agents_per_process: _Few | None = None
    min_processes: Annotated[_Processes, Field(ge=0)] | None = None
    max_processes: Annotated[_Processes, Field(ge=1)] | None = Field(None, examples=[8])
    sleep_after_seconds: _SleepAfter | None = None


class PoolView(BaseModel):
    pool_name: str = Field(examples=["developer_pool"])
    role: str = Field(examples=["developer"])
    process_count: int = Field(description="Live processes that take its agents; not those that end.", examples=[2])
    active_worker_processes: int = Field(description="The same number.", examples=[2])
    total_capacity: int = Field(description="Agents that the active processes can take.", examples=[20])
    used_capacity: int = Field(description="Agents that have a place in a process.", examples=[11])
    available_capacity: int = Field(description="Places that are free.", examples=[9])
    utilization: float = Field(description="Used of total capacity, from 0 to 1.", examples=[0.55])
    agent_count: int = Field(description="Agents that there are, the sleeping ones too.", examples=[11])
    agents_per_process: int = Field(examples=[10])
    min_processes: int = Field(examples=[0])
    max_processes: int = Field(examples=[4])
    sleep_after_seconds: int = Field(examples=[600])
    shortage: str | None = Field(
        description="Why it has fewer processes than its agents need, where what starts processes knows of a reason.",
        examples=[None],
    )
    warning: str | None = Field(
        description="In the answer to who makes or changes it: what is likely to be wrong, as a role that no live "
        "worker has.",
        examples=[None],
    )
    created_at: datetime

    @classmethod
    def of(cls, counts: PoolCounts, shortage: str | None = None, warning: str | None = None) -> "PoolView":
        pool, total, used = counts.pool, counts.capacity, counts.placed
        return cls(
            pool_name=pool.name,
            role=pool.role,
            process_count=counts.processes,
            active_worker_processes=counts.processes,
            total_capacity=total,
            used_capacity=used,
            available_capacity=max(total - used, 0),
            utilization=round(used / total, 4) if total else 0.0,
            agent_count=counts.agents,
            agents_per_process=pool.agents_per_process,
            min_processes=pool.min_processes,
            max_processes=pool.max_processes,
            sleep_after_seconds=pool.sleep_after_seconds,
            shortage=shortage,
            warning=warning,
            created_at=pool.created_at,
        )


class PoolList(BaseModel):
    pools: list[PoolView] = Field(description="By name.")


class NewAgent(StrictRequest):
    name: _Name = Field(
        description="Among your agents in this pool: the same name again is the same agent.", examples=["ada"]
    )
    model: _ModelName | None = Field(None, description="SERVER/NAME in place of its role's model.")
    metadata: JsonObject = Field(
        default_factory=dict, description="Kept with the agent and given back; not interpreted.", examples=[{"team": 7}]
    )
    state: JsonObject = Field(
        default_factory=dict,
        description="With which it begins; at most 256 KiB.",
        examples=[{"language": "en"}],
    )


class AgentChange(StrictRequest):
    """What is left out stays as it is."""

    model: _ModelName | None = Field(None, description="null: its role's model.")
    metadata: JsonObject = Field(
        default_factory=dict, description="In place of all that it had.", examples=[{"team": 7}]
    )


class AgentView(BaseModel):
    agent_id: str = Field(examples=[_AGENT_ID])
    name: str = Field(examples=["ada"])
    pool: str = Field(examples=["developer_pool"])
    number: int = Field(description="In its pool, from 1: a process may take numbers of a range only.", examples=[1])
    status: AgentStatus
    model: str | None = Field(description="In place of its role's model.")
    metadata: dict[str, Any]
    turns: int = Field(description="Messages that it has got so far.")
    open_run_id: RunId | None = Field(description="The message that it is at work on, or whose answer it waits for.")
    process: str | None = Field(description="The process that has it; null while it sleeps.")
    generation: int = Field(description="How often it was given to a process.")
    created_at: datetime
    placed_at: datetime | None = Field(description="When it was given to its process.")
    last_active_at: datetime | None
    paused_at: datetime | None
    terminated_at: datetime | None

    @classmethod
    def of(cls, agent: Agent, status: AgentStatus) -> "AgentView":
        return cls(
            agent_id=agent.id,
            name=agent.name,
            pool=agent.pool,
            number=agent.number,
            status=status,
            model=agent.model,
            metadata=agent.metadata,
            turns=agent.turns,
            open_run_id=agent.open_run_id,
            process=agent.process_id,
            generation=agent.generation,
            created_at=agent.created_at,
            placed_at=agent.placed_at,
            last_active_at=agent.last_active_at,
            paused_at=agent.paused_at,
            terminated_at=agent.terminated_at,
        )


class AgentPage(BaseModel):
    agents: list[AgentView] = Field(description="The oldest first.")
    next_cursor: NextCursor


class AgentStateView(BaseModel):
    state: dict[str, Any] = Field(examples=[{"language": "en"}])
    version: int = Field(description="Rises by one with each change.", examples=[3])

    @classmethod
    def of(cls, state: AgentState) -> "AgentStateView":
        return cls(state=state.value, version=state.version)


class AgentStateChange(StrictRequest):
    state: JsonObject = Field(description="In place of all of it; at most 256 KiB.", examples=[{"language": "de"}])
    version: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Only where the state still has this version (409 where not)."
    )


class NewMessage(StrictRequest):
    text: Text = Field(min_length=1, description="What the agent is asked.", examples=["Write a test for the parser."])
    data: JsonValue = Field(None, description="What programs need beside it; at most 256 KiB.", examples=[{"issue": 7}])
    priority: PriorityName | None = Field(
        None, strict=False, description="Between agents, not within a mailbox. At most that of your tier, which it has."
    )
    ttl_seconds: int | None = Field(
        None, ge=1, le=TTL_MAX_SECONDS, description="When it is not answered by then, it is cancelled."
    )
    wait_seconds: float | None = Field(
        None, ge=0, le=WAIT_MAX_SECONDS, strict=False, description="Wait so long for the answer: 200 when it has come."
    )


class SenderKind(StrEnum):
    USER = "user"
    AGENT = "agent"
    EVENT = "event"
    SCHEDULE = "schedule"


class SenderView(BaseModel):
    kind: Annotated[str, DescribedAs(SenderKind)] = Field(examples=["user"])
    name: str | None = Field(None, description="Of an agent or a schedule its name, of an event its type.")
    agent_id: str | None = Field(None, description="Of an agent: which.")
    run_id: RunId | None = Field(None, description="Of an agent or a handler: in which run.")


class MessageView(BaseModel):
    """A message and what came of it."""

    run_id: RunId
    agent_id: str = Field(examples=[_AGENT_ID])
    turn: int = Field(description="Its number in the mailbox, from 1.", examples=[1])
    status: RunStatus
    in_mailbox: bool = Field(description="It waits for the messages before it, or for a process.")
    text: str = Field(examples=["Write a test for the parser."])
    data: Any = None
    answer: str | None = Field(description="What the agent answered, in words; null until then.")
    value: Any = Field(None, description="What it answered, where that is more than a text.")
    error: ErrorView | None
    priority: Annotated[str, DescribedAs(PriorityName)]
    sender: SenderView
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(None, description="When it is cancelled, where it is not answered by then.")

    @classmethod
    def of(cls, run: Run) -> "MessageView":
        result = run.result or {}
        value, summary = result.get("value"), result.get("summary")
        return cls(
            run_id=run.id,
            agent_id=run.agent_id or "",
            turn=run.turn or 0,
            status=run.status,
            in_mailbox=run.in_mailbox,
            text=run.prompt,
            data=run.input,
            answer=value if isinstance(value, str) else summary,
            value=None if isinstance(value, str) else value,
            error=ErrorView(**run.error.as_dict()) if run.error else None,
            priority=run.priority.name.lower(),
            sender=_sender(run),
            created_at=run.created_at,
            started_at=run.started_at,
            finished_at=run.finished_at,
            expires_at=run.expires_at,
        )


class MessagePage(BaseModel):
    messages: list[MessageView]
    next_cursor: NextNumber


class AgentExplanation(BaseModel):
    """What an agent does, or why it does nothing."""

    agent_id: str = Field(examples=[_AGENT_ID])
    status: AgentStatus
    text: str = Field(description="All reasons in words.")
    reasons: list[ReasonView] = Field(description="The nearest first.")
    waiting_messages: int = Field(description="In its mailbox.")
    open_run_id: RunId | None
    process: str | None = Field(description="The process that has it.")


def _sender(run: Run) -> SenderView:
    origin = run.origin or {}
    return SenderView(
        kind=origin.get("kind", SenderKind.USER),
        name=origin.get("name"),
        agent_id=origin.get("agent_id"),
        run_id=origin.get("run_id"),
    )
