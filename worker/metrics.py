"""What a worker counts. Labels have few values: tools that are registered, statuses, codes of the error tree; never a
run, a user or a path. `docs/operations.md` says what each metric shows.

Nothing here is counted for each line of output or each frame: at most once for each step, file or sandbox.
"""

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from backplane.domain.runs import FINAL, Priority, RunStatus
from backplane.errors import PlatformError

RUN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 14_400)
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
MODEL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
START_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

OTHER = "other"
REASONS_OF_RUNS = frozenset(
    {"command_failed", "disk_quota_exceeded", "out_of_memory", "step_failed", "step_timeout", "worker_lost"}
)
"""Codes that a run's error may have beside those of the error tree. Another one, of a new tool perhaps, is OTHER."""

Direction = Literal["down", "up"]
ModelWait = Literal["slot", "tokens"]
StepEnd = Literal["completed", "failed", "interrupted", "suspended", "unavailable"]


class WorkerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs_finished = Counter(
            "agent_runs_finished", "Runs that ended on this worker.", ["status"], registry=registry
        )
        self._turns = Counter(
            "agent_turns", "Turns of agents of a pool that ended here.", ["pool", "role", "status"], registry=registry
        )
        self._turn_seconds = Histogram(
            "agent_turn_seconds",
            "From the claim of a turn to its end here.",
            ["pool", "role"],
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        self._pool: tuple[str, str] | None = None
        self._run_seconds = Histogram(
            "agent_run_seconds",
            "From the claim of a run to its end on this worker.",
            ["status"],
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        self._run_wait_seconds = Histogram(
            "agent_run_wait_seconds",
            "From a run being queued to a worker taking it; first attempts only, since others wait on purpose.",
            ["priority"],
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        self._run_retries = Counter(
            "agent_run_retries", "Attempts that failed and are followed by another.", ["reason"], registry=registry
        )
        self._leases_lost = Counter(
            "agent_leases_lost", "Leases that ended because their worker was lost or stopped.", registry=registry
        )
        self._runs_superseded = Counter(
            "agent_runs_superseded", "Runs that this worker gave up because another had them.", registry=registry
        )
        self._steps = Counter("agent_steps", "Tries of steps that ended.", ["tool", "status"], registry=registry)
        self._step_seconds = Histogram(
            "agent_step_seconds", "Duration of one try of a step.", ["tool"], buckets=STEP_BUCKETS, registry=registry
        )
        self._slots = Gauge("agent_worker_slots", "Runs that this worker takes at once.", registry=registry)
        self._runs = Gauge("agent_worker_runs", "Runs that this worker carries out.", registry=registry)
        self._sandbox_starts = Counter(
            "agent_sandbox_starts", "Sandboxes that took a command.", ["kind", "start"], registry=registry
        )
        self._sandbox_start_seconds = Histogram(
            "agent_sandbox_start_seconds",
            "From a command being given to a sandbox to its start there.",
            ["kind", "start"],
            buckets=START_BUCKETS,
            registry=registry,
        )
        self._sandbox_failures = Counter(
            "agent_sandbox_failures",
            "Commands for which no sandbox could be had, or whose end is not known.",
            ["kind", "reason"],
            registry=registry,
        )
        self._pool_ready = Gauge(
            "agent_sandbox_pool_ready", "Sandboxes started ahead and not used yet.", registry=registry
        )
        self._transferred = Counter(
            "agent_workspace_transferred_bytes",
            "Bytes of files moved from (down) and to (up) workspaces.",
            ["direction"],
            registry=registry,
        )
        self._model_calls = Counter(
            "agent_model_calls", "Tries of model calls that ended.", ["server", "model", "status"], registry=registry
        )
        self._model_seconds = Histogram(
            "agent_model_seconds",
            "Duration of one try of a model call, its waiting left out.",
            ["server", "model"],
            buckets=MODEL_BUCKETS,
            registry=registry,
        )
        self._model_tokens = Counter(
            "agent_model_tokens",
            "Tokens of models, as their servers count them.",
            ["server", "model", "direction"],
            registry=registry,
        )
        self._model_cost = Counter(
            "agent_model_cost_dollars",
            "Dollars for models that have a price.",
            ["server", "model"],
            registry=registry,
        )
        self._model_wait_seconds = Histogram(
            "agent_model_wait_seconds",
            "How long a model call waited for its turn at the server (slot), or for its user's tokens.",
            ["server", "for"],
            buckets=MODEL_BUCKETS,
            registry=registry,
        )
        self._model_retries = Counter(
            "agent_model_retries", "Model calls that are tried again.", ["server", "reason"], registry=registry
        )
        # They begin with 0, so that an alert on an increase also sees the first of a kind.
        for status in FINAL:
            self._runs_finished.labels(status.value)
        for priority in Priority:
            self._run_wait_seconds.labels(priority.name.lower())
        for direction in ("down", "up"):
            self._transferred.labels(direction)

    def running_runs(self, slots: int, count: Callable[[], int]) -> None:
        """Show at each scrape what `count` returns then."""
        self._slots.set(slots)
        self._runs.set_function(count)

    def serves_pool(self, pool: str, role: str) -> None:
        """All runs of this process are turns of this pool's agents."""
        self._pool = (pool, role)
        for status in FINAL:
            self._turns.labels(pool, role, status.value)

    def run_taken(self, priority: Priority, waited_seconds: float) -> None:
        self._run_wait_seconds.labels(priority.name.lower()).observe(max(waited_seconds, 0.0))

    def run_finished(self, status: RunStatus, seconds: float) -> None:
        self._runs_finished.labels(status.value).inc()
        self._run_seconds.labels(status.value).observe(seconds)
        if self._pool is not None:
            self._turns.labels(*self._pool, status.value).inc()
            self._turn_seconds.labels(*self._pool).observe(seconds)

    def run_retried(self, reason: str) -> None:
        """`reason`: the code of the error with which the attempt failed."""
        self._run_retries.labels(_reason(reason)).inc()

    def run_superseded(self) -> None:
        self._runs_superseded.inc()

    def leases_lost(self, count: int) -> None:
        self._leases_lost.inc(count)

    def step_ended(self, tool: str, status: StepEnd, seconds: float) -> None:
        """`tool`: the name of a registered one."""
        self._steps.labels(tool, status).inc()
        self._step_seconds.labels(tool).observe(seconds)

    def sandbox_started(self, kind: str, start: str, seconds: float) -> None:
        """`kind`: container or kubernetes; `start`: cold, warm, reused or adopted."""
        self._sandbox_starts.labels(kind, start).inc()
        self._sandbox_start_seconds.labels(kind, start).observe(seconds)

    def sandbox_failed(self, kind: str, reason: str) -> None:
        """`reason`: the code of the error that is raised."""
        self._sandbox_failures.labels(kind, _reason(reason)).inc()

    def pool_ready(self, count: int) -> None:
        self._pool_ready.set(count)

    def model_called(self, server: str, model: str, status: str, seconds: float) -> None:
        """`model`: one that settings name, or `other`; `status`: completed, cancelled, or the code of the error."""
        self._model_calls.labels(server, model, status).inc()
        self._model_seconds.labels(server, model).observe(seconds)

    def model_spent(self, server: str, model: str, input_tokens: int, output_tokens: int, dollars: float) -> None:
        self._model_tokens.labels(server, model, "input").inc(input_tokens)
        self._model_tokens.labels(server, model, "output").inc(output_tokens)
        self._model_cost.labels(server, model).inc(dollars)

    def model_waited(self, server: str, waited_for: ModelWait, seconds: float) -> None:
        self._model_wait_seconds.labels(server, waited_for).observe(seconds)

    def model_retried(self, server: str, reason: str) -> None:
        """`reason`: the code of the error of the try before."""
        self._model_retries.labels(server, reason).inc()

    def transferred(self, direction: Direction, size: int) -> None:
        self._transferred.labels(direction).inc(size)


def _reason(code: str) -> str:
    return code if code in REASONS_OF_RUNS or code in _codes(PlatformError) else OTHER


def _codes(kind: type[PlatformError]) -> set[str]:
    """Those of the error and of all that are derived from it."""
    return {kind.code}.union(*(_codes(derived) for derived in kind.__subclasses__()))
