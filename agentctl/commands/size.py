"""agentctl size: how large a platform has to be for so many agents, by figures that were measured."""

from math import isfinite
from typing import Annotated, Literal

import typer

from agentctl.exit_codes import CommandError, ExitCode
from agentctl.sizing.platform_size import COEFFICIENTS, MAX_CONNECTIONS, PlatformSize, Workload, size_of
from agentctl.terminal.output import JsonFlag, Output

AGENTS_MAX = 100_000


def size(
    agents: Annotated[int, typer.Option(min=1, max=AGENTS_MAX, help="Agents that live, of all users.")],
    turns_per_hour: Annotated[float, typer.Option(min=0, max=3600, help="Turns of each agent in an hour.")] = 60.0,
    turn_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="How long a turn takes, most of it at the model.")
    ] = 10.0,
    tokens_per_turn: Annotated[int, typer.Option(min=0, max=10_000_000, help="Tokens of a turn, in and out.")] = 0,
    usd_per_million: Annotated[
        float | None, typer.Option(min=0, max=10_000, help="Price of a million tokens, in dollars.")
    ] = None,
    sandbox_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the turns that run a command in a sandbox.")
    ] = 0.0,
    database: Annotated[
        Literal["sqlite", "postgresql"] | None, typer.Option(help="Instead of the one that is chosen.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Say which form of the platform to run for so many agents, how large, and what ends first.

    An estimate from figures that were measured on two cores; python -m bench.sizing measures another machine.
    """
    output = Output(json_output)
    numbers = {"--turns-per-hour": turns_per_hour, "--turn-seconds": turn_seconds, "--sandbox-share": sandbox_share}
    numbers |= {} if usd_per_million is None else {"--usd-per-million": usd_per_million}
    if wrong := [name for name, value in numbers.items() if not isfinite(value)]:
        raise CommandError(ExitCode.USAGE, f"{wrong[0]} is no number: give one such as 1.5.")
    if usd_per_million is not None and not tokens_per_turn:
        raise CommandError(ExitCode.USAGE, "A price needs --tokens-per-turn too.")
    work = Workload(
        agents, turns_per_hour, turn_seconds, tokens_per_turn, sandbox_share, database or "", usd_per_million
    )
    found = size_of(work)
    if output.json:
        output.document(_document(work, found))
        return
    output.fields(_fields(work, found))
    if found.limits:
        output.line()
        output.table(
            ["ENDS FIRST", "TURNS/S", "WHAT HELPS"],
            [[limit.what, f"{limit.turns_per_second:.1f}", limit.remedy] for limit in found.limits],
            folding=["ENDS FIRST", "WHAT HELPS"],
        )
    for note in found.notes:
        output.note(note, "yellow")
    output.note(f"Measured with turns of one call and no tool ({COEFFICIENTS[0].source}); see docs/sizing.md.")


def _fields(work: Workload, found: PlatformSize) -> dict[str, str]:
    connections = ""
    if found.connections:
        fits = "more than" if found.pgbouncer else "within"
        connections = f"{found.connections} at most, {fits} the {MAX_CONNECTIONS} of PostgreSQL's default"
    return {
        "form": str(found.form),
        "turns": f"{work.turns_per_second:.2f} a second, {work.turns_at_once:.1f} at once",
        "processes": ", ".join(f"{name}: {count}" for name, count in found.processes.items()),
        "cpu": f"{found.cores:g} {'core' if found.cores == 1 else 'cores'}, with the database and Redis",
        "memory": f"{found.memory_mib:,} MiB, with the database and Redis",
        "database": connections,
        "redis": f"{found.redis_connections} connections",
        "settings": ", ".join(f"{name}={value}" for name, value in found.settings.items()),
        "models": "" if found.usd_per_day is None else f"${found.usd_per_day:,.2f} a day",
    }


def _document(work: Workload, found: PlatformSize) -> dict[str, object]:
    return {
        "form": found.form.name.lower(),
        "turns_per_second": round(work.turns_per_second, 3),
        "turns_at_once": round(work.turns_at_once, 2),
        "processes": found.processes,
        "cores": found.cores,
        "memory_mib": found.memory_mib,
        "database_connections": found.connections,
        "pgbouncer": found.pgbouncer,
        "redis_connections": found.redis_connections,
        "settings": found.settings,
        "usd_per_day": None if found.usd_per_day is None else round(found.usd_per_day, 2),
        "limits": [
            {"what": one.what, "turns_per_second": round(one.turns_per_second, 2), "remedy": one.remedy}
            for one in found.limits
        ],
        "notes": found.notes,
        "coefficients": [{"value": one.value, "unit": one.unit, "source": one.source} for one in COEFFICIENTS],
    }
