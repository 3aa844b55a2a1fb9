"""The commands about runs: run, start, logs, runs, show, cancel, retry, queue."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.pages import following
from agentctl.calls import RunArgument, call, call_on, listed
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.new_run import new_run_of, opened_file, uploads_of
from agentctl.terminal.follow import FollowedRun, follow, how_it_goes_on, with_flag
from agentctl.terminal.output import (
    JsonFlag,
    Output,
    duration,
    first_line,
    program,
    short_time,
)
from agentctl.terminal.queue_room import LONGEST_WAIT_SECONDS, once_there_is_room
from agentctl.terminal.run_view import between, position, print_run, wait_in_words
from backplane.domain.runs import RunStatus


def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT|FILE|-", help="A text, a file of it, or - for standard input.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="The steps to carry out: a JSON or YAML file.")] = None,
    handler: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function that carries it out, in place of a plan.")
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(metavar="NAME", help="The deployed agent that carries it out, or its deployment's id.")
    ] = None,
    input: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE", help="What the handler or the deployed agent is given.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH[:NAME]", help="Put this file into the workspace first. May be given often."),
    ] = None,
    follow_run: Annotated[bool, typer.Option("--follow/--no-follow", help="Show its events until its end.")] = True,
    timeout: Annotated[int | None, typer.Option(min=1, help="Limit of each attempt, in seconds.")] = None,
    max_retries: Annotated[int | None, typer.Option(min=0, help="Further attempts after a passing failure.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Kept with the run. May be given often.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Gets a POST when the run is over, or waits for a person.")
    ] = None,
    wait: Annotated[float | None, typer.Option(min=0, help="Follow for so many seconds at most.")] = None,
    wait_for_room: Annotated[
        bool, typer.Option("--wait-for-room/--no-wait", help="Where the queue is full, wait until it takes the run.")
    ] = True,
    agent: Annotated[str | None, typer.Option(help="The agent's name: its memory and artifacts.")] = None,
    queue_name: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="The queue where it waits; else the default one.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="SERVER/NAME", help="The model; else the server's own.")] = None,
    planner: Annotated[str | None, typer.Option(metavar="runbook|model", help="Who makes the plan.")] = None,
    mcp_server: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An MCP server for its steps. May be given often.")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option(min=0, help="The most dollars that it may spend.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=0, help="The most model tokens.")] = None,
    budget_steps: Annotated[int | None, typer.Option(min=0, help="The most steps, each try counts.")] = None,
    budget_seconds: Annotated[int | None, typer.Option(min=0, help="The most seconds of steps and calls.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Start a run and follow it to its end.

    With --file the run is created, the files are put into its workspace, and then it is started. A file keeps its
    relative path there; NAME gives it another.
    """
    output = Output(json_output)
    carrier = {"handler": handler, "deployment": deployment}
    new_run = new_run_of(prompt, plan, timeout, max_retries, metadata or [], carrier=carrier, given=input)
    if webhook is not None:
        new_run["webhook_url"] = webhook
    budget = {"usd": budget_usd, "tokens": budget_tokens, "steps": budget_steps, "seconds": budget_seconds}
    given = {name: amount for name, amount in budget.items() if amount is not None}
    more = {"agent": agent, "model": model, "planner": planner, "mcp_servers": mcp_server, "budget": given or None}
    new_run |= {name: value for name, value in {**more, "queue": queue_name}.items() if value}
    with ExitStack() as opened:
        uploads = [(opened.enter_context(opened_file(local)), name) for local, name in uploads_of(file or [])]
        longest = LONGEST_WAIT_SECONDS if wait_for_room else 0.0
        try:
            answer = call(output, lambda client: _submit(client, output, new_run, uploads, longest))
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    if not follow_run:
        output.document(answer) if output.json else output.line(answer["run_id"])
        if answer.get("planner_note"):
            output.note(f"planner {answer['planner']}: {with_flag(answer['planner'], answer['planner_note'])}")
        return
    if not output.json:
        output.note(f"run {answer['run_id']}")
    follow_to_its_end(output, answer["run_id"], 0, wait)


async def _submit(
    client: Client, output: Output, new_run: JsonObject, uploads: list[tuple[BinaryIO, str]], longest_wait: float
) -> JsonObject:
    if not uploads:
        return await once_there_is_room(output, lambda: client.create(new_run, start=True), longest_wait)
    run_id = (await client.create(new_run, start=False))["run_id"]
    try:
        for content, name in uploads:
            await client.upload(run_id, name, content, os.fstat(content.fileno()).st_size)
        return await once_there_is_room(output, lambda: client.execute("start", run_id), longest_wait)
    except BaseException:  # Ctrl-C, too.
        output.note(f"Run {run_id} is created and not started: {program()} start {run_id}", "bold")
        raise


def start(
    run_id: RunArgument,
    follow_run: Annotated[bool, typer.Option("--follow/--no-follow", help="Show its events until its end.")] = True,
    wait: Annotated[float | None, typer.Option(min=0, help="Follow for so many seconds at most.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Start a run that was created and not started, as by `fork --no-start`, and follow it to its end."""
    output = Output(json_output)
    answer = call_on(output, run_id, lambda client, whole: client.execute("start", whole))
    if not follow_run:
        _print_answer(output, answer)
        return
    follow_to_its_end(output, answer["run_id"], 0, wait)


def logs(
    run_id: RunArgument,
    follow_run: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run's end.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    wait: Annotated[float | None, typer.Option(min=0, help="With -f: follow for so many seconds at most.")] = None,
    search: Annotated[str, typer.Option(metavar="TEXT", help="Only lines of the log with this text in them.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """Show a run's events: those there are, or with -f all until its end."""
    output = Output(json_output)
    if search:
        call_on(output, run_id, lambda client, whole: _print_matches(output, client, whole, search, after))
        return
    if follow_run:
        follow_to_its_end(output, run_id, after, wait)
        return

    async def print_pages(client: Client, run_id: str) -> None:
        view, cursor = FollowedRun(output), after
        while (page := await client.logs(run_id, cursor))["events"]:
            for event in page["events"]:
                view.show(event)
            cursor = following(cursor, page["next_after"]) or cursor

    call_on(output, run_id, print_pages)


async def _print_matches(output: Output, client: Client, run_id: str, text: str, after: int) -> None:
    """JSON: one match a line."""
    cursor: int | None = after
    while cursor is not None:
        page = await client.search_log(run_id, text, cursor)
        for match in page["matches"]:
            if output.json:
                output.json_line(match)
            else:
                output.line(f"{match['id']:>6}  {match['step'] or ''}  {match['line']}")
        cursor = page["next_after"]


def follow_to_its_end(output: Output, run_id: str, after: int, wait: float | None) -> None:
    try:
        code = call_on(output, run_id, lambda client, whole: follow(client, output, whole, after, wait))
    except KeyboardInterrupt:
        output.note(f"The run goes on. Follow it: {program()} logs -f {run_id}", "bold")
        output.note(f"Cancel it: {program()} cancel {run_id}", "bold")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(code)


def runs(
    status: Annotated[RunStatus | None, typer.Option(help="Only runs in this state.")] = None,
    text: Annotated[str | None, typer.Option(help="Only runs with this text in their prompt.")] = None,
    queue_name: Annotated[str | None, typer.Option("--queue", help="Only runs of this queue.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only runs that this handler carries out.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
    user: Annotated[
        str | None, typer.Option(help="For administrators: only runs of this user; '*': everybody's.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """List runs, the newest first. TOTAL is the time from a run's creation to its end: in the queue, waiting for a
    person, and at work."""
    output = Output(json_output)
    asked = {"text": text, "queue": queue_name, "handler": handler, "agent": agent, "user": user}
    found = listed(
        output,
        lambda client, cursor, most: client.runs(status.value if status else None, cursor, most, **asked),
        "runs",
        limit,
    )
    if output.json:
        output.document(found)
        return
    rows = [
        [
            run["run_id"],
            run["status"],
            short_time(run["created_at"]),
            between(run["created_at"], run["finished_at"]),
            first_line(run["prompt"]),
        ]
        for run in found
    ]
    output.table(["RUN", "STATUS", "CREATED", "TOTAL", "PROMPT"], rows, cutting=["PROMPT"])


def show(run_id: RunArgument, json_output: JsonFlag = False) -> None:
    """Show a run: its state, times, steps and error."""
    output = Output(json_output)
    run = call_on(output, run_id, lambda client, whole: client.run(whole))
    if output.json:
        output.document(run)
        return
    print_run(output, run)


def cancel(run_id: RunArgument, json_output: JsonFlag = False) -> None:
    """Cancel a run: at once while it is queued, within a heartbeat while it is running."""
    output = Output(json_output)
    _print_answer(output, call_on(output, run_id, lambda client, whole: client.execute("cancel", whole)))


def retry(
    run_id: RunArgument,
    take_as_done: Annotated[bool, typer.Option(help="A step may have happened: take it as done.")] = False,
    repeat: Annotated[bool, typer.Option(help="A step may have happened: do it again.")] = False,
    from_step: Annotated[
        str | None,
        typer.Option(
            metavar="STEP", help="Do this step and all that need it again, with the files as they were; also when done."
        ),
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Put a failed run in the queue again, or let a waiting one go on. Completed steps are not repeated. Where a step
    may have happened, say what becomes of it."""
    output = Output(json_output)
    if take_as_done and repeat:
        raise CommandError(ExitCode.USAGE, "Give one of --take-as-done and --repeat.")
    arguments = {"uncertain_step": "done"} if take_as_done else {"uncertain_step": "repeat"} if repeat else {}
    if from_step is not None:
        arguments["from_step"] = from_step
    _print_answer(output, call_on(output, run_id, lambda client, whole: client.execute("retry", whole, **arguments)))


def explain(run_id: RunArgument, json_output: JsonFlag = False) -> None:
    """Say why a run waits, and about how long."""
    output = Output(json_output)

    async def work(client: Client, whole: str) -> tuple[JsonObject, str]:
        explained = await client.explain(whole)
        waits = explained["status"] == "waiting"
        return explained, how_it_goes_on(await client.run(whole)) if waits else ""

    found, next_commands = call_on(output, run_id, work)
    if output.json:
        output.document(found)
        return
    output.line(found["text"])
    if next_commands:
        output.line(next_commands)
    waited = found["waiting_seconds"]
    output.fields({"position": position(found), "waited": "" if waited is None else duration(waited)})


def queue(
    name: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="The queue; else the default one.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Show what is queued and running, and about how long a new run would wait."""
    output = Output(json_output)
    view = call(output, lambda client: client.queue(name))
    if output.json:
        output.document(view)
        return
    by_priority = ", ".join(f"{count} {name}" for name, count in view["queued_by_priority"].items() if count)
    output.fields(
        {
            "queued": f"{view['queued']}{f' ({by_priority})' if by_priority else ''}",
            "held back": str(sum(view["held_back_by_priority"].values())),
            "scheduled": str(view["scheduled"]),
            "running": str(view["running"]),
            "slots": f"{view['max_concurrent']} in {view['workers']} worker{'' if view['workers'] == 1 else 's'}",
            "dead letters": str(view["dead"]),
            "wait": "nobody knows: no live worker serves it"
            if view["estimated_wait_seconds"] is None
            else f"{wait_in_words(view)} for a run of normal priority",
        }
    )


def queues(json_output: JsonFlag = False) -> None:
    """List the queues: what waits and runs in each, and who serves it."""
    output = Output(json_output)
    found = call(output, lambda client: client.queues())
    if output.json:
        output.document({"queues": found})
        return
    output.table(
        ["QUEUE", "QUEUED", "HELD BACK", "OLDEST", "RUNNING", "WORKERS", "SLOTS"],
        [
            [
                view["queue"],
                str(view["queued"]),
                str(sum(view["held_back_by_priority"].values())),
                duration(view["oldest_seconds"]) if view["queued"] else "",
                str(view["running"]),
                str(view["workers"]),
                str(view["max_concurrent"]),
            ]
            for view in found
        ],
    )


def _print_answer(output: Output, answer: JsonObject) -> None:
    if output.json:
        output.document(answer)
    else:
        output.fields({"run": answer["run_id"], "status": answer["status"], "position": position(answer)})
