"""How a worker works: how much at once, how its claims hold, what it keeps of its steps."""

from typing import Annotated

from pydantic import AfterValidator, Field

from backplane.domain.agents import format_ranges, parse_ranges
from backplane.domain.runs import DEFAULT_QUEUE
from backplane.domain.sizes import KIB, MIB
from backplane.errors import InvalidInput
from backplane.settings.queue import QueueNames


def _range(text: str) -> str:
    try:
        return format_ranges(parse_ranges(text)) if text.strip() else ""
    except InvalidInput as error:
        raise ValueError(error.message.removeprefix("AGENT_RANGE: ")) from None


AgentRange = Annotated[str, AfterValidator(_range)]


class WorkerSettings:
    worker_queues: QueueNames = Field(
        [DEFAULT_QUEUE],
        min_length=1,
        description="The queues that a worker serves, with commas between them: it takes the run that comes first in "
        "all of them.",
    )
    agent_range: AgentRange = Field(
        "",
        description="Numbers of the agents that the pool processes of this machine take: 1-50, or 1-50,101-150; "
        "empty: any that no other machine has named.",
    )
    worker_concurrency: int = Field(10, ge=1, le=1000, description="Runs that a worker process holds at once.")
    worker_grace_seconds: float = Field(
        25.0, ge=0, description="After SIGTERM: how long a running step may still take."
    )
    worker_crash_limit: int = Field(3, ge=1, description="Lost workers after which a run is failed as the cause.")
    lease_seconds: float = Field(15.0, gt=0, description="How long a claim holds without being renewed.")
    heartbeat_seconds: float = Field(
        5.0, gt=0, description="How often claims are renewed, and runs that Redis forgot are looked for."
    )
    step_timeout_seconds: int = Field(600, ge=1, description="Limit of a step that names none, in seconds.")
    step_output_max_bytes: int = Field(1 * MIB, ge=1, description="Output of a step that is kept as events, in bytes.")
    step_result_max_bytes: int = Field(
        16 * KIB, ge=1, description="Output of a step that is kept in its result, in bytes."
    )
    step_output_file_max_bytes: int = Field(
        64 * MIB, ge=0, description="Output of a step that is kept as a file when log lines were dropped, in bytes."
    )
    run_log_lines_per_second: int = Field(
        1000, ge=0, description="Log lines that a run's steps may publish in a second; 0: any number."
    )
    step_concurrency: int = Field(4, ge=1, le=100, description="Steps of one run that are carried out at once.")
