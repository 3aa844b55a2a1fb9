"""The commands about agents that live: agents spawn, list, show, set, send, messages, watch, explain, state, and those
that pause, resume, terminate and delete one."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import typer
from rich.text import Text

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_agent_id
from agentctl.api.pages import newest
from agentctl.calls import T, call, listed
from agentctl.exit_codes import CommandError, ExitCode, exit_code_of_status
from agentctl.groups import Group
from agentctl.new_run import input_of, metadata_of, text_of
from agentctl.terminal.follow import describe, how_it_goes_on
from agentctl.terminal.output import JsonFlag, Output, local_time, short_time
from agentctl.terminal.prompts import confirm
from backplane.domain.runs import FINAL
from backplane.process.terminal_text import printable

SHORT = {"waiting_for_person": "asks a person", "waiting_for_agent": "asks an agent"}
"""In a table there is room for so much of a status, beside an id, on a terminal of 80 columns."""

AgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT", help="Its name, POOL/NAME, its id, or how the id begins.")
]

app = typer.Typer(
    cls=Group,
    help="Agents that live: make them, send them messages, see and change what they do.",
    no_args_is_help=True,
)


def on_agent(output: Output, given: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
    """Do `work` with a client and the whole id of the agent that `given` names."""

    async def resolved(client: Client) -> T:
        return await work(client, await whole_agent_id(client, given))

    return call(output, resolved)


@app.command()
def spawn(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Its pool, which gives it its role.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The same name again is the same agent.")],
    model: Annotated[str | None, typer.Option(metavar="SERVER/NAME", help="The model; else its role's.")] = None,
    state: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="The state with which it begins.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Kept with the agent. May be given often.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Make an agent in a pool, or show the one of this name."""
    output = Output(json_output)
    agent: JsonObject = {"name": name}
    if model is not None:
        agent["model"] = model
    if state is not None:
        agent["state"] = input_of(state, "--state")
    if metadata:
        agent["metadata"] = metadata_of(metadata)
    made = call(output, lambda client: client.spawn(pool, agent))
    if output.json:
        output.document(made)
        return
    output.line(made["agent_id"])


@app.command("list")
def list_agents(
    pool: Annotated[str | None, typer.Option(help="Only those of this pool.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were terminated.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """List your agents, the oldest first."""
    output = Output(json_output)
    found = listed(
        output,
        lambda client, cursor, most: client.agents(cursor, most, pool=pool, terminated=everything or None),
        "agents",
        limit,
    )
    if output.json:
        output.document(found)
        return
    rows = [
        [
            agent["name"],
            agent["pool"],
            SHORT.get(agent["status"], agent["status"]),
            str(agent["turns"]),
            agent["agent_id"],
        ]
        for agent in found
    ]
    output.table(["NAME", "POOL", "STATUS", "TURNS", "AGENT"], rows, cutting=["POOL"])


@app.command()
def show(agent: AgentArgument, json_output: JsonFlag = False) -> None:
    """Show an agent: what it does, where it is, and its turns."""
    output = Output(json_output)
    _print_agent(output, on_agent(output, agent, lambda client, whole: client.agent(whole)))


def _print_agent(output: Output, found: JsonObject) -> None:
    if output.json:
        output.document(found)
        return
    output.fields(
        {
            "agent": found["agent_id"],
            "name": found["name"],
            "pool": f"{found['pool']}, number {found['number']}",
            "status": found["status"],
            "turns": str(found["turns"]),
            "open run": found["open_run_id"] or "",
            "process": found["process"] or "",
            "model": found["model"] or "",
            "metadata": json.dumps(found["metadata"]) if found["metadata"] else "",
            "created": local_time(found["created_at"]),
            "active": local_time(found["last_active_at"]),
            "paused": local_time(found["paused_at"]),
            "terminated": local_time(found["terminated_at"]),
        }
    )


@app.command("set")
def set_agent(
    agent: AgentArgument,
    model: Annotated[str | None, typer.Option(metavar="SERVER/NAME", help="The model, from its next turn on.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="That of its role again.")] = False,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="In place of all that it had. May be given often.")
    ] = None,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="None any more.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Change the model or the metadata of an agent: what is not named stays as it is."""
    for option, value, none in (("model", model, no_model), ("metadata", metadata, no_metadata)):
        if value and none:
            raise CommandError(ExitCode.USAGE, f"--{option} and --no-{option} contradict each other; keep one.")
    change: JsonObject = {}
    if model is not None or no_model:
        change["model"] = model
    if metadata or no_metadata:
        change["metadata"] = metadata_of(metadata or [])
    if not change:
        raise CommandError(ExitCode.USAGE, "Nothing to change: name --model, --metadata, --no-model or --no-metadata.")
    output = Output(json_output)
    _print_agent(output, on_agent(output, agent, lambda client, whole: client.change_agent(whole, change)))


@app.command()
def send(
    agent: AgentArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of it, or - for standard input.")],
    data: Annotated[str | None, typer.Option(metavar="JSON|@FILE", help="What a program needs beside it.")] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, max=60, help="Wait so many seconds for the answer, and print it.")
    ] = None,
    ttl: Annotated[
        int | None, typer.Option(min=1, help="Cancel it when it is not answered by then, in seconds.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="low|normal|high|critical", help="Between agents; at most that of your tier.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Send an agent a message, and print the id of its run; with --wait its answer."""
    output = Output(json_output)
    message: JsonObject = {"text": text_of(text)}
    if data is not None:
        message["data"] = input_of(data, "--data")
    if ttl is not None:
        message["ttl_seconds"] = ttl
    if wait is not None:
        message["wait_seconds"] = wait
    if priority is not None:
        message["priority"] = priority

    async def work(client: Client, whole: str) -> tuple[JsonObject, str]:
        sent = await client.send_message(whole, message)
        is_waiting = sent["status"] not in FINAL and not output.json and (wait is not None or sent.get("in_mailbox"))
        return sent, (await client.explain_agent(whole))["text"] if is_waiting else ""

    sent, why = on_agent(output, agent, work)
    if output.json:
        output.document(sent)
    elif wait is None:
        output.line(sent["run_id"])
    else:
        output.note(f"turn {sent['turn']}, run {sent['run_id']}: {status_in_words(sent)}")
        print_answer(output, sent)
    if why:
        output.note(why)
    if wait is not None:
        raise typer.Exit(exit_code_of_status(sent["status"]))


def status_in_words(message: JsonObject) -> str:
    status: str = message["status"]
    return f"{status}, in the mailbox" if message.get("in_mailbox") else status


def print_answer(output: Output, message: JsonObject) -> None:
    """What came of a message, where something has."""
    if message["answer"] is not None:
        for line in message["answer"].splitlines() or [""]:
            output.line(line)
    if message.get("value") is not None:
        output.line(json.dumps(message["value"], ensure_ascii=False))
    if message["error"] and not message.get("in_mailbox"):
        style = "red" if message["status"] in FINAL else "dim"
        output.note(f"{message['error']['message']} [{message['error']['code']}]", style)


@app.command()
def messages(
    agent: AgentArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """Show the conversation with an agent: its newest messages with their answers, the newest last."""
    output = Output(json_output)
    page = lambda client, whole: newest(partial(client.messages, whole), "messages", limit)  # noqa: E731
    found = on_agent(output, agent, page)[::-1]
    if output.json:
        output.document(found)
        return
    for message in found:
        sender = message["sender"]
        who = f"{sender['kind']} {sender.get('name') or ''}".strip() if sender["kind"] != "user" else "you"
        head = (
            f"{message['turn']}  {short_time(message['created_at'])}  {status_in_words(message)}  {message['run_id']}"
        )
        output.line(head, "dim")
        for line in message["text"].splitlines():
            output.line(Text.assemble((f"{who}: ", "bold"), printable(line)))
        print_answer(output, message)


@app.command()
def watch(
    agent: AgentArgument,
    after: Annotated[str, typer.Option(help="`now`, `all` that are kept, or a cursor, as --json shows it.")] = "now",
    json_output: JsonFlag = False,
) -> None:
    """Show the events of all turns of an agent as they happen, until Ctrl-C."""
    output = Output(json_output)

    async def show_events(client: Client, whole: str) -> None:
        shown = ""
        async for cursor, event in client.turns(whole, "" if after == "all" else after):
            if output.json:
                output.json_line({"cursor": cursor, **event})
                continue
            lines = describe(event["type"], event["data"])
            if lines and event["run_id"] != shown:
                shown = event["run_id"]
                output.line(f"turn {cursor.partition('-')[0]}, run {shown}", "bold")
            for line in lines:
                output.line(Text.assemble((f"{short_time(event['at']):>10}  ", "dim"), line))

    try:
        on_agent(output, agent, show_events)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@app.command()
def explain(agent: AgentArgument, json_output: JsonFlag = False) -> None:
    """Say what an agent does, or why it does nothing."""
    output = Output(json_output)

    async def work(client: Client, whole: str) -> tuple[JsonObject, str]:
        found = await client.explain_agent(whole)
        asks = found["status"] == "waiting_for_person" and found["open_run_id"]
        return found, how_it_goes_on(await client.run(found["open_run_id"])) if asks and not output.json else ""

    found, then = on_agent(output, agent, work)
    output.document(found) if output.json else output.line(found["text"])
    if then:
        output.line(then)


@app.command()
def pause(agent: AgentArgument, json_output: JsonFlag = False) -> None:
    """Let an agent begin no further turn. Its messages wait."""
    _act(agent, "pause", json_output)


@app.command()
def resume(agent: AgentArgument, json_output: JsonFlag = False) -> None:
    """Let a paused agent go on."""
    _act(agent, "resume", json_output)


@app.command()
def terminate(
    agent: AgentArgument,
    force: Annotated[bool, typer.Option("--force", help="Cancel the turn that it is at.")] = False,
    remove_messages: Annotated[
        bool, typer.Option("--remove-messages", help="Cancel what waits in its mailbox; else it is kept.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """End an agent for good. The turn that it is at goes to its end, unless --force."""
    if not yes:
        confirm(f"End the agent {agent} for good?")
    _act(agent, "terminate", json_output, force=force, remove_messages=remove_messages)


def _act(agent: str, action: str, json_output: bool, **options: bool) -> None:
    output = Output(json_output)
    changed = on_agent(output, agent, lambda client, whole: client.act_on_agent(action, whole, **options))
    output.document(changed) if output.json else output.line(f"{changed['name']} is {changed['status']}.")


@app.command()
def delete(
    agent: AgentArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete an agent that was terminated, with its state. Its runs stay."""
    output = Output(json_output)
    if not yes:
        confirm(f"Delete the agent {agent} with its state?")

    async def work(client: Client, whole: str) -> str:
        await client.delete_agent(whole)
        return whole

    whole = on_agent(output, agent, work)
    output.document({"deleted": whole}) if output.json else output.line(f"{whole} is deleted.")


@app.command()
def state(
    agent: AgentArgument,
    put: Annotated[str | None, typer.Option("--set", metavar="JSON|@FILE", help="Put this in its place.")] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="With --set: only where it still has this version.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Show the state of an agent, or put another one in its place while no turn is open."""
    output = Output(json_output)
    if put is None and version is not None:
        raise CommandError(ExitCode.USAGE, "--version is for --set: it says which state is to be replaced.")
    if put is None:
        found = on_agent(output, agent, lambda client, whole: client.agent_state(whole))
    else:
        new = {"state": input_of(put, "--set"), **({} if version is None else {"version": version})}
        found = on_agent(output, agent, lambda client, whole: client.put_agent_state(whole, new))
    if output.json:
        output.document(found)
        return
    output.note(f"version {found['version']}")
    output.document(found["state"])
