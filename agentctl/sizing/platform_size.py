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

SIZING = "bench.sizing, 2026-12-01, two cores with other work beside it"
SANDBOX = "bench.sandbox, docs/performance.md"


@dataclass(frozen=True, slots=True)
class Coefficient:
    """`unit`: of the value. `source`: the benchmark and its date."""

    value: float
    unit: str
    source: str


POOL_TURN = Coefficient(45.0, "ms of CPU a turn, process of a pool", SIZING)
STANDALONE_TURN = Coefficient(22.0, "ms of CPU a turn, all in one", SIZING)
API_TURN = Coefficient(12.0, "ms of CPU a turn, API", SIZING)
DATABASE_TURN = Coefficient(7.0, "ms of CPU a turn, PostgreSQL", SIZING)
REDIS_TURN = Coefficient(2.5, "ms of CPU a turn, Redis", SIZING)
IDLE = Coefficient(0.1, "cores of a platform that does nothing", SIZING)
SQLITE_TURNS = Coefficient(15.0, "turns/s that SQLite and one process were seen to bear", SIZING)

STANDALONE_MEMORY = Coefficient(200.0, "MiB, all in one", SIZING)
API_MEMORY = Coefficient(170.0, "MiB, an API process of two, with their parent", SIZING)
WORKER_MEMORY = Coefficient(158.0, "MiB, a worker", SIZING)
CONTROLLER_MEMORY = Coefficient(253.0, "MiB, controller and controller.pools", SIZING)
POOL_MEMORY = Coefficient(180.0, "MiB, a process of a pool with up to 250 agents", SIZING)
DATABASE_MEMORY = Coefficient(165.0, "MiB, PostgreSQL with 57 connections", SIZING)
REDIS_MEMORY = Coefficient(9.0, "MiB, Redis with 1,000 agents", SIZING)

SANDBOX_TURN = Coefficient(31.0, "ms of CPU, a command in the local sandbox (its p95)", SANDBOX)
SANDBOX_MEMORY = Coefficient(64.0, "MiB, a command in a sandbox: an assumption", "none: it is the command's")

COEFFICIENTS: tuple[Coefficient, ...] = (
    *(POOL_TURN, STANDALONE_TURN, API_TURN, DATABASE_TURN, REDIS_TURN, IDLE, SQLITE_TURNS),
    *(STANDALONE_MEMORY, API_MEMORY, WORKER_MEMORY, CONTROLLER_MEMORY, POOL_MEMORY),
    *(DATABASE_MEMORY, REDIS_MEMORY, SANDBOX_TURN, SANDBOX_MEMORY),
)

POSTGRESQL_FROM, SEVERAL_FROM = 50, 200
"""Agents. A choice, which leaves room for turns with tools; from 200 agents a machine that is lost should not be all
there is. docs/sizing.md has what was measured around these bounds."""
MEASURED_AGENTS = 200
SHARE_USED = 2 / 3
PLACES = 250
"""Agents a process of a pool, as measured."""
TURNS_AT_ONCE = 50
"""Of a process of a pool (`AGENT_TURNS_AT_ONCE`)."""
POOL_CONNECTIONS, PROCESS_CONNECTIONS, STANDALONE_CONNECTIONS = 2 * 3 + 5, 2 * 5, 4 * 2 * 5
"""Of PostgreSQL at most, with the default sizes: connections for transactions, for single statements, and more under
load. An all-in-one has those of an API, a worker, a controller and a controller of pools."""
REDIS_CONNECTIONS = 15
"""Of a process; an all-in-one has twice as many."""
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
        redis_connections=REDIS_CONNECTIONS * (sum(processes.values()) + processes.get("all in one", 0)),
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
    """CPU of a turn, of all processes."""
    database = 0.0 if form is PlatformForm.SQLITE else DATABASE_TURN.value
    return POOL_TURN.value + _api_ms(form) + REDIS_TURN.value + database + work.sandbox_share * SANDBOX_TURN.value


def _api_ms(form: PlatformForm) -> float:
    return API_TURN.value if form is PlatformForm.SEVERAL else STANDALONE_TURN.value


def _memory_mib(form: PlatformForm, work: Workload, processes: dict[str, int]) -> float:
    found = REDIS_MEMORY.value + processes["process of a pool"] * POOL_MEMORY.value
    found += ceil(work.turns_at_once * work.sandbox_share) * SANDBOX_MEMORY.value
    if form is not PlatformForm.SQLITE:
        found += DATABASE_MEMORY.value
    if form is not PlatformForm.SEVERAL:
        return found + STANDALONE_MEMORY.value
    return found + processes["API"] * API_MEMORY.value + WORKER_MEMORY.value + CONTROLLER_MEMORY.value


def _connections(processes: dict[str, int]) -> int:
    of_one = {"process of a pool": POOL_CONNECTIONS, "all in one": STANDALONE_CONNECTIONS}
    return sum(count * of_one.get(name, PROCESS_CONNECTIONS) for name, count in processes.items())


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
            processes.get("API", 1) * 1000 / _api_ms(form),
            "more API processes",
        ),
    ]
    if form is PlatformForm.SQLITE:
        found.append(SizeLimit("SQLite and one process: no more was seen", SQLITE_TURNS.value, "PostgreSQL"))
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
        found.append(f"SQLite was seen to bear {SQLITE_TURNS.value:g} turns/s and no more: use PostgreSQL.")
    if form is PlatformForm.SQLITE and work.agents >= POSTGRESQL_FROM:
        found.append("SQLite is for one machine; so many agents are usually given PostgreSQL.")
    if connections > MAX_CONNECTIONS - RESERVED:
        found.append(
            f"{connections} connections are more than PostgreSQL gives by default ({MAX_CONNECTIONS}): set "
            f"PGBOUNCER_URL, or max_connections of at least {connections + RESERVED}."
        )
    if work.agents > MEASURED_AGENTS:
        found.append(f"The bench has figures for up to {MEASURED_AGENTS} agents; those for more are computed.")
    return found
