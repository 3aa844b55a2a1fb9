"""The commands about events: those of all runs (events), and those of the event bus (events publish, list, watch)."""

import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import CallableGroup
from agentctl.terminal.follow import describe
from agentctl.terminal.output import JsonFlag, Output, short_time
from backplane.process.terminal_text import printable

GAP = "gap"
PAGE = 500

TypeOption = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="PATTERN", help="Only this type, or as order.*; may be given often."),
]

app = typer.Typer(
    cls=CallableGroup,
    help="Show the events of all your runs as they happen, until Ctrl-C. Its commands are about the event bus.",
    invoke_without_command=True,
)


@app.callback()
def events(
    context: typer.Context,
    after: Annotated[
        str, typer.Option(help="`now`, `all` that are kept, or the cursor of an event, as --json shows it.")
    ] = "now",
    json_output: JsonFlag = False,
) -> None:
    """Show the events of all your runs as they happen, until Ctrl-C. Its commands are about the event bus."""
    if context.invoked_subcommand is None:
        _show_events_of_runs(after, json_output=json_output)


def _show_events_of_runs(after: str, *, json_output: bool) -> None:
    output = Output(json_output)

    async def show(client: Client) -> None:
        shown = ""
        async for cursor, event in client.all_events("" if after == "all" else after):
            if output.json:
                output.json_line({"cursor": cursor, **event})
                continue
            run_id, head = printable(event["run_id"]), f"{short_time(event['at']):>10}  "
            lines = describe(event["type"], event["data"])
            if not output.live:  # each line is to be found by its run
                head += f"{run_id}  "
            elif lines and run_id != shown:
                output.line(run_id, "bold")
                shown = run_id
            for line in lines:
                output.line(Text.assemble((head, "dim"), line))

    try:
        call(output, show)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@app.command()
def publish(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="A dotted name, as order.created.")],
    data: Annotated[str | None, typer.Option(metavar="JSON", help="What the event says.")] = None,
    source: Annotated[str, typer.Option(help="Who says so.")] = "agentctl",
    id: Annotated[
        str | None, typer.Option(metavar="ID", help="With the source it names the event: the same again is no other.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What it is about.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Publish an event on the event bus."""
    output = Output(json_output)
    event: JsonObject = {
        "specversion": "1.0",
        "id": id or str(uuid.uuid4()),
        "source": source,
        "type": type,
        "time": datetime.now(UTC).isoformat(),
    }
    if subject is not None:
        event["subject"] = subject
    if data is not None:
        event |= {"datacontenttype": "application/json", "data": _json(data)}
    published = call(output, lambda client: client.publish(event))
    if output.json:
        output.document(published)
        return
    was = "was there already" if published["duplicate"] else "is published"
    output.line(f"Event {published['id']} {was}, at {published['cursor']}.")


@app.command("list")
def list_events(
    type: TypeOption = None,
    after: Annotated[int, typer.Option(min=0, help="Only events behind this cursor.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    json_output: JsonFlag = False,
) -> None:
    """List the events that the event bus keeps, the oldest first."""
    output = Output(json_output)

    async def fetch(client: Client) -> JsonObject:
        found: list[JsonObject] = []
        cursor, more, missing = after, True, False
        while more and len(found) < limit:
            page = await client.bus_page(cursor, min(PAGE, limit - len(found)), type or ())
            found += page["events"]
            missing = missing or page["missing"]
            cursor, more = page["cursor"], page["has_more"]
        return {"events": found, "cursor": cursor, "has_more": more, "missing": missing}

    listed = call(output, fetch)
    if output.json:
        output.document(listed)
        return
    rows = [
        [short_time(event.get("time")), event["type"], event["source"], event.get("subject", ""), _data(event)]
        for event in listed["events"]
    ]
    output.table(["TIME", "TYPE", "SOURCE", "SUBJECT", "DATA"], rows, folding=["DATA", "SOURCE"])
    if listed["missing"]:
        output.note(f"Some events behind {after} are not kept any more.")
    if listed["has_more"]:
        output.note(f"There are more: --after {listed['cursor']}")


@app.command()
def watch(
    type: TypeOption = None,
    after: Annotated[
        str, typer.Option(help="`now`, `all` that are kept, or the cursor of an event, as --json shows it.")
    ] = "now",
    json_output: JsonFlag = False,
) -> None:
    """Show the events of the event bus as they are published, until Ctrl-C."""
    output = Output(json_output)

    async def show(client: Client) -> None:
        async for cursor, event in client.bus_events("" if after == "all" else after, type or ()):
            if output.json:
                output.json_line({"cursor": int(cursor), "event": event})
            elif event["type"] == GAP and "id" not in event:
                output.note(f"Events are missing here: {printable(str(event.get('reason', '')))}.")
            else:
                about = f"  {event['subject']}" if event.get("subject") else ""
                head = f"{short_time(event.get('time')):>10}  "
                line = printable(f"{event['type']}  {event['source']}{about}  {_data(event)}")
                output.line(Text.assemble((head, "dim"), line))

    try:
        call(output, show)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _json(text: str) -> Any:
    """Raises CommandError(USAGE)."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(
            ExitCode.USAGE, f"--data is no JSON ({error}); a text stands in quotes: '\"hello\"'."
        ) from None


def _data(event: JsonObject) -> str:
    if "data_base64" in event:
        return f"({len(event['data_base64'])} characters of base64)"
    return json.dumps(event["data"], ensure_ascii=False) if "data" in event else ""
