"""The commands about schedules: schedules set, list, show, pause, resume, fire, delete."""

from datetime import datetime
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_agent_id
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.new_run import input_of, text_of
from agentctl.terminal.output import JsonFlag, Output, duration, first_line, local_time
from agentctl.terminal.prompts import confirm

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, `.`, `_`, `-`.")]

app = typer.Typer(
    cls=Group,
    help="Messages to agents at set times: by a cron expression, again and again, or once.",
    no_args_is_help=True,
)


@app.command("set")
def set_schedule(
    name: NameArgument,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Its name, POOL/NAME, its id, or how the id begins.")],
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of it, or - for standard input.")],
    cron: Annotated[
        str | None,
        typer.Option(metavar="CRON", help="Minute, hour, day of the month, month, day of the week: '0 9 * * mon-fri'."),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="With --cron: its time zone, as Europe/Berlin; else UTC.")
    ] = None,
    every: Annotated[int | None, typer.Option(metavar="SECONDS", min=60, help="Again and again, from now on.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Once: 2027-01-01T09:00, here or with an offset.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="What a program needs beside it.")] = None,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Send it also while its message before is not over; else that time is left out."),
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Make a schedule, or put another one in the place of the one of this name."""
    output = Output(json_output)
    if sum(one is not None for one in (cron, every, at)) != 1:
        raise CommandError(ExitCode.USAGE, "Give one of --cron, --every and --at: it says when.")
    if timezone is not None and cron is None:
        raise CommandError(ExitCode.USAGE, "--timezone is for --cron; --at takes an offset, as 2027-01-01T09:00+01:00.")
    times = {"cron": cron, "timezone": timezone, "every_seconds": every, "at": _time(at)}
    wanted: JsonObject = {key: value for key, value in times.items() if value is not None}
    wanted |= {"text": text_of(text), "overlap": "queue" if queue else "skip"}
    if data is not None:
        wanted["data"] = input_of(data, "--data")

    async def work(client: Client) -> JsonObject:
        return await client.put_schedule(name, {**wanted, "agent_id": await whole_agent_id(client, agent)})

    _show(output, call(output, work))


@app.command("list")
def list_schedules(json_output: JsonFlag = False) -> None:
    """List your schedules by name."""
    output = Output(json_output)
    found = call(output, lambda client: client.schedules())
    if output.json:
        output.document(found)
        return
    rows = [[one["name"], _when(one), _next(one), one["last_outcome"] or "", first_line(one["text"])] for one in found]
    output.table(["NAME", "WHEN", "NEXT", "LAST", "TEXT"], rows, cutting=["TEXT"])


@app.command()
def show(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Show a schedule: when it fires next, and what became of the last time."""
    output = Output(json_output)
    _show(output, call(output, lambda client: client.schedule(name)))


@app.command()
def pause(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Let a schedule fire no more until it is resumed."""
    _act(name, "pause", json_output)


@app.command()
def resume(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Let a schedule fire again, from the first time that comes."""
    _act(name, "resume", json_output)


@app.command()
def fire(name: NameArgument, json_output: JsonFlag = False) -> None:
    """Send the message of a schedule now, beside its times, and print the id of its run."""
    output = Output(json_output)
    sent = call(output, lambda client: client.fire_schedule(name))
    output.document(sent) if output.json else output.line(sent["run_id"])


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete a schedule. The messages that it has sent stay."""
    output = Output(json_output)
    if not yes:
        confirm(f"Delete the schedule {name}?")
    call(output, lambda client: client.delete_schedule(name))
    output.document({"deleted": name}) if output.json else output.line(f"{name} is deleted.")


def _act(name: str, action: str, json_output: bool) -> None:
    output = Output(json_output)
    _show(output, call(output, lambda client: client.act_on_schedule(action, name)))


def _show(output: Output, schedule: JsonObject) -> None:
    if output.json:
        output.document(schedule)
        return
    output.fields(
        {
            "schedule": schedule["name"],
            "agent": schedule["agent_id"],
            "when": _when(schedule),
            "next": _next(schedule),
            "last": f"{local_time(schedule['last_at'])}, {schedule['last_outcome']}" if schedule["last_at"] else "",
            "last run": schedule["last_run_id"] or "",
            "messages": str(schedule["sent"]),
            "overlap": schedule["overlap"],
            "text": schedule["text"],
        }
    )


def _when(schedule: JsonObject) -> str:
    if schedule["cron"]:
        return f"{schedule['cron']} {schedule['timezone']}"
    if schedule["every_seconds"]:
        return f"every {duration(schedule['every_seconds'])}"
    return "once"


def _next(schedule: JsonObject) -> str:
    if schedule["paused_at"]:
        return "paused"
    return local_time(schedule["next_at"]) or "never again"


def _time(given: str | None) -> str | None:
    """With this machine's offset, where it has none."""
    if given is None:
        return None
    try:
        return datetime.fromisoformat(given).astimezone().isoformat()
    except ValueError:
        raise CommandError(ExitCode.USAGE, f"--at: {given} is no time; write 2027-01-01T09:00.") from None
