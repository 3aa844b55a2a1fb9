"""How large a platform has to be for so many agents: processes, CPU, memory, connections, and what ends first. Pure.

Each number that was measured is a `Coefficient` with where it comes from. The rest is counting: what a turn costs times
the turns of an hour, and turns at once by Little's law (turns a second × seconds of a turn). CPU is sized so that two
thirds of it are used at the mean rate, since messages come in bursts.

It knows turns of one call of a model and no tool. It does not know what the model costs where it runs, beyond the price
of its tokens, nor the machine that it is asked for: `python -m bench.sizing` measures that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

SIZING = "bench.sizing, 2026-12-01, two cores"
AGENTS = "bench.agents, 2026-12-01, two cores"
SANDBOX = "bench.sandbox, docs/performance.md"


@dataclass(frozen=True, slots=True)
class Coefficient:
    """`unit`: of the value. `source`: the benchmark and its date."""

    value: float
    unit: str
    source: str


POOL_TURN = Coefficient(12.0, "ms of CPU a turn, process of a pool", SIZING)
API_TURN = Coefficient(6.0, "ms of CPU a turn, API or all in one", SIZING)
DATABASE_TURN = Coefficient(6.0, "ms of CPU a turn, PostgreSQL", SIZING)
REDIS_TURN = Coefficient(1.0, "ms of CPU a turn, Redis", SIZING)
IDLE = Coefficient(0.05, "cores of a platform that does nothing", SIZING)
SQLITE_TURNS = Coefficient(40.0, "turns/s of SQLite and one process", SIZING)

STANDALONE_MEMORY = Coefficient(200.0, "MiB, all in one", SIZING)
API_MEMORY = Coefficient(120.0, "MiB, an API process", SIZING)
WORKER_MEMORY = Coefficient(160.0, "MiB, a worker", SIZING)
CONTROLLER_MEMORY = Coefficient(260.0, "MiB, controller and controller.pools", SIZING)
POOL_MEMORY = Coefficient(170.0, "MiB, a process of a pool", SIZING)
AGENT_MEMORY = Coefficient(12.0, "KiB, an agent that has a place", AGENTS)
DATABASE_MEMORY = Coefficient(180.0, "MiB, PostgreSQL", SIZING)
REDIS_MEMORY = Coefficient(16.0, "MiB, Redis", SIZING)

SANDBOX_TURN = Coefficient(31.0, "ms of CPU, a command in the local sandbox (its p95)", SANDBOX)
SANDBOX_MEMORY = Coefficient(64.0, "MiB, a command in a sandbox: an assumption", "none: it is the command's")

COEFFICIENTS: tuple[Coefficient, ...] = (
    *(POOL_TURN, API_TURN, DATABASE_TURN, REDIS_TURN, IDLE, SQLITE_TURNS),
    *(STANDALONE_MEMORY, API_MEMORY, WORKER_MEMORY, CONTROLLER_MEMORY, POOL_MEMORY, AGENT_MEMORY),
    *(DATABASE_MEMORY, REDIS_MEMORY, SANDBOX_TURN, SANDBOX_MEMORY),
)

POSTGRESQL_FROM, SEVERAL_FROM = 50, 200
"""Agents. What was measured does not ask for these bounds (docs/sizing.md): they leave room for turns with tools, and
from 200 agents a machine that is lost should not be all there is."""
MEASURED_AGENTS = 1_000
SHARE_USED = 2 / 3
PLACES = 250
"""Agents a process of a pool, as measured."""
TURNS_AT_ONCE = 50
"""Of a process of a pool (`AGENT_TURNS_AT_ONCE`)."""
POOL_CONNECTIONS, PROCESS_CONNECTIONS = 2 * 3 + 5, 2 * 5
"""Of PostgreSQL at most, with the default sizes: connections for transactions, for single statements, and more under
load."""
REDIS_CONNECTIONS = 12
"""Of a process."""
MAX_CONNECTIONS, RESERVED = 100, 3
"""PostgreSQL's defaults."""


class PlatformForm(StrEnum):
    SQLITE = "one container with SQLite"
    POSTGRESQL = "one container with PostgreSQL"
    SEVERAL = "several containers with PostgreSQL and Redis"


@dataclass(frozen=True, slots=True)
class Workload:
    """`turns_per_hour`: of each agent. `turn_seconds`: from a turn's begin to its end, most of it the model's.
    `sandbox_share`: of the turns, those that run a command. `database`: `sqlite`, `postgresql` or empty (chosen).
    `usd_per_million_tokens`: None where there is no price."""

    agents: int
    turns_per_hour: float
    turn_seconds: float = 10.0
    tokens_per_turn: int = 0
    sandbox_share: float = 0.0
    database: str = ""
    usd_per_million_tokens: float | None = None

    @property
    def turns_per_second(self) -> float:
        return self.agents * self.turns_per_hour / 3600

    @property
    def turns_at_once(self) -> float:
        return self.turns_per_second * self.turn_seconds


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """What ends a platform at `turns_per_second`, and what to do about it."""

    what: str
    turns_per_second: float
    remedy: str


@dataclass(frozen=True, slots=True)
class PlatformSize:
    """`cores` and `memory_mib`: of all processes, with the database and Redis. `connections`: of PostgreSQL at most; 0
    with SQLite. `limits`: the first is the one that is reached first. `usd_per_day`: None without a price."""

    form: PlatformForm
    processes: dict[str, int]
    cores: float
    memory_mib: int
    connections: int
    pgbouncer: bool
    redis_connections: int
    settings: dict[str, str]
    limits: tuple[SizeLimit, ...]
    usd_per_day: float | None
    notes: tuple[str, ...]


def form_of(work: Workload) -> PlatformForm:
    """By the number of agents, and with SQLite only where it keeps up."""
    fits_sqlite = work.turns_per_second <= SHARE_USED * SQLITE_TURNS.value
    if work.database == "sqlite":
        return PlatformForm.SQLITE
    if work.agents < POSTGRESQL_FROM and fits_sqlite and not work.database:
        return PlatformForm.SQLITE
    return PlatformForm.POSTGRESQL if work.agents < SEVERAL_FROM else PlatformForm.SEVERAL


def size_of(work: Workload) -> PlatformSize:
    form = form_of(work)
    processes = _processes(form, work)
    pools = processes["process of a pool"]
    turn_ms = _turn_ms(form, work)
    cores = max(ceil((IDLE.value + work.turns_per_second * turn_ms / 1000) / SHARE_USED), 1)
    connections = 0 if form is PlatformForm.SQLITE else _connections(processes)
    limits = sorted(_limits(form, work, processes, cores), key=lambda limit: limit.turns_per_second)
    price = work.usd_per_million_tokens
    return PlatformSize(
        form=form,
        processes=processes,
        cores=float(cores),
        memory_mib=ceil(_memory_mib(form, work, processes)),
        connections=connections,
        pgbouncer=connections > MAX_CONNECTIONS - RESERVED,
        redis_connections=REDIS_CONNECTIONS * sum(processes.values()),
        settings=_settings(form, work, pools),
        limits=tuple(limits),
        usd_per_day=None if price is None else work.turns_per_second * 86_400 * work.tokens_per_turn * price / 1e6,
        notes=tuple(_notes(form, work, connections)),
    )


def _processes(form: PlatformForm, work: Workload) -> dict[str, int]:
    pools = max(
        ceil(work.agents / PLACES),
        ceil(work.turns_at_once / TURNS_AT_ONCE / SHARE_USED),
        ceil(work.turns_per_second * POOL_TURN.value / 1000 / SHARE_USED),
        2 if form is PlatformForm.SEVERAL else 1,
    )
    if form is not PlatformForm.SEVERAL:
        return {"all in one": 1, "process of a pool": pools}
    apis = max(ceil(work.turns_per_second * API_TURN.value / 1000 / SHARE_USED), 2)
    return {"API": apis, "worker": 1, "controller": 1, "controller.pools": 1, "process of a pool": pools}


def _turn_ms(form: PlatformForm, work: Workload) -> float:
    database = 0.0 if form is PlatformForm.SQLITE else DATABASE_TURN.value
    return POOL_TURN.value + API_TURN.value + REDIS_TURN.value + database + work.sandbox_share * SANDBOX_TURN.value


def _memory_mib(form: PlatformForm, work: Workload, processes: dict[str, int]) -> float:
    found = REDIS_MEMORY.value + processes["process of a pool"] * POOL_MEMORY.value
    found += work.agents * AGENT_MEMORY.value / 1024
    found += ceil(work.turns_at_once * work.sandbox_share) * SANDBOX_MEMORY.value
    if form is not PlatformForm.SQLITE:
        found += DATABASE_MEMORY.value
    if form is not PlatformForm.SEVERAL:
        return found + STANDALONE_MEMORY.value
    return found + processes["API"] * API_MEMORY.value + WORKER_MEMORY.value + CONTROLLER_MEMORY.value


def _connections(processes: dict[str, int]) -> int:
    return sum(
        count * (POOL_CONNECTIONS if name == "process of a pool" else PROCESS_CONNECTIONS)
        for name, count in processes.items()
    )


def _limits(form: PlatformForm, work: Workload, processes: dict[str, int], cores: int) -> Sequence[SizeLimit]:
    pools = processes["process of a pool"]
    found = [
        SizeLimit(
            "the agents: each carries out one turn at a time",
            work.agents / work.turn_seconds,
            "more agents, or shorter turns",
        ),
        SizeLimit(
            f"turns at once: {TURNS_AT_ONCE} a process of a pool",
            pools * TURNS_AT_ONCE / work.turn_seconds,
            "max_processes of the pool",
        ),
        SizeLimit(
            "the event loops of the pool's processes", pools * 1000 / POOL_TURN.value, "max_processes of the pool"
        ),
        SizeLimit("the machine's CPU", cores * 1000 / _turn_ms(form, work), "more cores"),
        SizeLimit(
            "the event loops of the API",
            processes.get("API", 1) * 1000 / API_TURN.value,
            "more API processes",
        ),
    ]
    if form is PlatformForm.SQLITE:
        found.append(SizeLimit("SQLite and one process", SQLITE_TURNS.value, "PostgreSQL"))
    return found


def _settings(form: PlatformForm, work: Workload, pools: int) -> dict[str, str]:
    """Of the environment, and of the pool (`agentctl pools change`)."""
    at_once = max(ceil(work.turns_at_once / SHARE_USED), 1)
    found = {
        "agents_per_process": str(min(ceil(work.agents / pools), PLACES)),
        "max_processes": str(pools),
        "USER_CONCURRENCY_STANDARD": f"{max(at_once, 10)} (where all agents are one user's)",
    }
    if form is not PlatformForm.SQLITE:
        found["DATABASE_URL"] = "postgresql://…"
    if form is PlatformForm.SEVERAL:
        found |= {"REDIS_URL": "redis://…", "S3_BUCKET": "… (workspaces of several machines)"}
    return found


def _notes(form: PlatformForm, work: Workload, connections: int) -> Sequence[str]:
    found = []
    if work.turns_per_hour * work.turn_seconds >= 3600:
        found.append(
            f"An agent cannot do {work.turns_per_hour:g} turns of {work.turn_seconds:g} s in an hour: its mailbox "
            "grows until messages are refused with 429. Use more agents, or shorter turns."
        )
    if form is PlatformForm.SQLITE and work.turns_per_second > SHARE_USED * SQLITE_TURNS.value:
        found.append(f"SQLite was measured to end at {SQLITE_TURNS.value:g} turns/s: use PostgreSQL.")
    if form is PlatformForm.SQLITE and work.agents >= POSTGRESQL_FROM:
        found.append("SQLite is for one machine; so many agents are usually given PostgreSQL.")
    if connections > MAX_CONNECTIONS - RESERVED:
        found.append(
            f"{connections} connections are more than PostgreSQL gives by default ({MAX_CONNECTIONS}): set "
            f"PGBOUNCER_URL, or max_connections of at least {connections + RESERVED}."
        )
    if work.agents > MEASURED_AGENTS:
        found.append(
            f"No more than {MEASURED_AGENTS:,} agents that work were measured: beyond that it is counted, not seen."
        )
    return found
