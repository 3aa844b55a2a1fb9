"""The commands about pools of agents: pools list, create, change, delete."""

from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output

NameArgument = Annotated[str, typer.Argument(metavar="POOL", help="Its name, as developer_pool.")]
PerProcess = Annotated[int | None, typer.Option(min=1, help="Agents that a process takes at most.")]
MinProcesses = Annotated[int | None, typer.Option(min=0, help="So many processes run, also without work.")]
MaxProcesses = Annotated[int | None, typer.Option(min=1, help="So many processes run at most.")]
SleepAfter = Annotated[
    int | None, typer.Option(min=1, metavar="SECONDS", help="An agent that is idle so long gives its place up.")
]

app = typer.Typer(
    cls=Group, help="Pools of agents: how full they are, and for administrators their sizes.", no_args_is_help=True
)


@app.command("list")
def list_pools(json_output: JsonFlag = False) -> None:
    """List the pools: their processes, places and agents."""
    output = Output(json_output)
    found = call(output, lambda client: client.pools())
    if output.json:
        output.document(found)
        return
    rows = [
        [
            pool["pool_name"],
            pool["role"],
            f"{pool['active_worker_processes']}/{pool['max_processes']}",
            f"{pool['used_capacity']}/{pool['total_capacity']}",
            f"{pool['utilization']:.0%}",
            str(pool["agent_count"]),
        ]
        for pool in found
    ]
    output.table(["POOL", "ROLE", "PROCESSES", "PLACES", "USED", "AGENTS"], rows, cutting=["ROLE"])
    for pool in found:
        if shortage := pool.get("shortage"):
            output.line(f"{pool['pool_name']} has fewer processes than its agents need: {shortage}")


@app.command()
def create(
    name: NameArgument,
    role: Annotated[str, typer.Option(help="What its agents are.")],
    agents_per_process: PerProcess = None,
    min_processes: MinProcesses = None,
    max_processes: MaxProcesses = None,
    sleep_after: SleepAfter = None,
    json_output: JsonFlag = False,
) -> None:
    """Make a pool. For administrators."""
    pool = {"name": name, "role": role, **_sizes(agents_per_process, min_processes, max_processes, sleep_after)}
    output = Output(json_output)
    _print(output, call(output, lambda client: client.create_pool(pool)))


@app.command()
def change(
    name: NameArgument,
    role: Annotated[str | None, typer.Option(help="What its agents are from their next turn on.")] = None,
    agents_per_process: PerProcess = None,
    min_processes: MinProcesses = None,
    max_processes: MaxProcesses = None,
    sleep_after: SleepAfter = None,
    json_output: JsonFlag = False,
) -> None:
    """Change a pool: what is not named stays as it is. For administrators."""
    wanted = _sizes(agents_per_process, min_processes, max_processes, sleep_after)
    if role is not None:
        wanted["role"] = role
    if not wanted:
        raise CommandError(ExitCode.USAGE, "Nothing to change: name a size or --role.")
    output = Output(json_output)
    _print(output, call(output, lambda client: client.change_pool(name, wanted)))


@app.command()
def delete(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Delete a pool without agents. For administrators."""
    output = Output(json_output)
    call(output, lambda client: client.delete_pool(name))
    output.document({"deleted": name}) if output.json else output.line(f"{name} is deleted.")


def _sizes(per_process: int | None, least: int | None, most: int | None, sleep_after: int | None) -> JsonObject:
    sizes = {
        "agents_per_process": per_process,
        "min_processes": least,
        "max_processes": most,
        "sleep_after_seconds": sleep_after,
    }
    return {name: value for name, value in sizes.items() if value is not None}


def _print(output: Output, pool: JsonObject) -> None:
    if output.json:
        output.document(pool)
        return
    output.fields(
        {
            "pool": pool["pool_name"],
            "role": pool["role"],
            "processes": f"{pool['min_processes']} to {pool['max_processes']}, of {pool['agents_per_process']} agents",
            "sleeps": f"after {pool['sleep_after_seconds']} s",
        }
    )
    if warning := pool.get("warning"):
        output.note(f"Warning: {warning}.", style="yellow")
