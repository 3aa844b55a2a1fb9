"""The commands about GPU machines: gpus offers, list, start, stop, explain. For administrators."""

from typing import Annotated

import typer

from agentctl.calls import call
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, short_time

MachineArgument = Annotated[str, typer.Argument(metavar="MACHINE", help="Its id, as `gpus list` shows it.")]

app = typer.Typer(
    cls=Group, help="GPU machines: what there is, what it costs, and starting and stopping them.", no_args_is_help=True
)


@app.command()
def offers(json_output: JsonFlag = False) -> None:
    """List what could be rented when a controller last looked, the cheapest first."""
    output = Output(json_output)
    found = call(output, lambda client: client.gpu_fleet())
    if output.json:
        output.document(found["offers"])
        return
    rows = [
        [
            offer["id"],
            f"{offer['gpu_count']} x {offer['gpu_type']}",
            f"${offer['usd_per_hour']}",
            "" if offer["gpu_ram_gb"] is None else f"{offer['gpu_ram_gb']:g} GB",
            "" if offer["reliability"] is None else f"{offer['reliability']:.1%}",
        ]
        for offer in found["offers"]
    ]
    output.table(["OFFER", "GPU", "AN HOUR", "MEMORY", "RELIABLE"], rows)


@app.command("list")
def list_machines(
    all_machines: Annotated[bool, typer.Option("--all", help="Those too that have ended.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """List the GPU machines, the youngest first."""
    output = Output(json_output)
    found = call(output, lambda client: client.gpu_machines(ended=all_machines))
    if output.json:
        output.document(found)
        return
    rows = [
        [
            machine["id"],
            machine["status"],
            f"{machine['gpu_count']} x {machine['gpu_type']}",
            f"${machine['usd_per_hour']}",
            f"${machine['usd_booked']}",
            machine["reason"],
        ]
        for machine in found
    ]
    output.table(["MACHINE", "STATUS", "GPU", "AN HOUR", "BOOKED", "REASON"], rows, folding=["REASON"])


@app.command()
def start(
    gpu_type: Annotated[str | None, typer.Option(help="As RTX_4090; else GPU_TYPE.")] = None,
    gpu_count: Annotated[int | None, typer.Option(min=1, help="Else GPU_COUNT.")] = None,
    image: Annotated[str | None, typer.Option(help="Else GPU_IMAGE.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Ask for a GPU machine, within the caps."""
    given = {"gpu_type": gpu_type, "gpu_count": gpu_count, "image": image}
    wanted = {name: value for name, value in given.items() if value is not None}
    output = Output(json_output)
    made = call(output, lambda client: client.start_gpu_machine(wanted))
    output.document(made) if output.json else output.line(
        f"{made['id']} is wanted; `agentctl gpus explain {made['id']}` says what becomes of it."
    )


@app.command()
def stop(machine: MachineArgument, json_output: JsonFlag = False) -> None:
    """Ask for the end of a GPU machine: it ends its calls first."""
    output = Output(json_output)
    found = call(output, lambda client: client.stop_gpu_machine(machine))
    output.document(found) if output.json else output.line(
        f"{machine} is {found['status']}" + (f"; {found['reason']}" if found["reason"] else "")
    )


@app.command()
def explain(
    machine: Annotated[str | None, typer.Argument(metavar="MACHINE", help="A machine; else all of them.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Say why there are so many machines, or why one is not ready, and what it costs."""
    output = Output(json_output)
    if machine is not None:
        found = call(output, lambda client: client.explain_gpu_machine(machine))
        output.document(found) if output.json else output.line(found["text"])
        return
    fleet = call(output, lambda client: client.gpu_fleet())
    if output.json:
        output.document(fleet)
        return
    waiting = fleet["waiting"]
    output.fields(
        {
            "decision": fleet["decision"],
            "looked": short_time(fleet["looked_at"]),
            "waiting": "not known" if waiting is None else str(waiting),
            "an hour": f"${fleet['usd_per_hour']} of ${fleet['usd_per_hour_max']}",
            "today": f"${fleet['usd_today']} of ${fleet['usd_per_day_max']}",
            "provider": fleet["error"] or ("answers" if fleet["looked_at"] else ""),
        }
    )
