"""The commands about many runs at once: bulk cancel, retry, redrive, replay, remove; list, show, stop.

The platform carries a bulk action out in the background. The command asks how many runs are meant, asks the person,
starts it, and shows how far it is; a person who leaves (Ctrl-C) leaves it running.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_bulk_id, whole_dead_letter_id, whole_run_id
from agentctl.calls import call, listed
from agentctl.exit_codes import ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, local_time, program, short_time
from agentctl.terminal.progress import Bar
from agentctl.terminal.prompts import confirm
from backplane.domain.background_jobs import POSSIBLE, BulkAction, ItemStatus, JobStatus
from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunStatus

T = TypeVar("T")

LOOK_SECONDS = 0.5
REFUSALS_SHOWN = 20

BulkId = Annotated[str, typer.Argument(metavar="BULK", help="Id of the bulk action, or how it begins.")]

app = typer.Typer(
    cls=Group, help="Do one thing to all runs that a filter names, in the background.", no_args_is_help=True
)

HELP = {
    BulkAction.CANCEL: "Cancel all of your runs that are meant.",
    BulkAction.RETRY: "Put all of your failed or waiting runs that are meant into the queue again.",
    BulkAction.REDRIVE: "Put all dead letters that are meant into the queue again, whoever owns them. For admins.",
    BulkAction.REPLAY: "Show all of your runs that are meant again from their records, each as a new run.",
    BulkAction.REMOVE: "Remove all of your runs that are over and are meant, with their events and files, for good.",
}


def _states(action: BulkAction) -> str:
    return ", ".join(status for status in RunStatus if status in POSSIBLE[action])


def _command(action: BulkAction) -> None:
    def command(
        status: Annotated[
            list[RunStatus] | None,
            typer.Option(metavar="STATE", help=f"Only runs in this state: {_states(action)}. May be given often."),
        ] = None,
        run: Annotated[
            list[str] | None,
            typer.Option(metavar="RUN", help="Only this run: its id, or how that begins. May be given often."),
        ] = None,
        agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
        reason: Annotated[
            DeadReason | None,
            typer.Option(
                metavar="REASON",
                help=f"Only dead letters with this reason: {', '.join(DeadReason)}.",
                hidden=action is not BulkAction.REDRIVE,
            ),
        ] = None,
        after: Annotated[
            datetime | None, typer.Option("--created-after", help="Only runs that were created then or later.")
        ] = None,
        before: Annotated[
            datetime | None, typer.Option("--created-before", help="Only runs that were created before.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many runs are meant.")] = False,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
        follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show how far it is until its end.")] = True,
        json_output: JsonFlag = False,
    ) -> None:
        given: JsonObject = {
            "statuses": [one.value for one in status] if status else None,
            "agent": agent,
            "reason": reason.value if reason else None,
            "created_after": after.astimezone().isoformat() if after else None,
            "created_before": before.astimezone().isoformat() if before else None,
        }
        wanted = {name: value for name, value in given.items() if value is not None}
        output = Output(json_output)
        if run:
            wanted["run_ids"] = call(output, lambda client: _whole_ids(client, action, run))
        start(output, action, wanted, dry_run=dry_run, yes=yes, follow=follow)

    app.command(action.value, help=HELP[action])(command)


async def _whole_ids(client: Client, action: BulkAction, given: list[str]) -> list[str]:
    whole = whole_dead_letter_id if action is BulkAction.REDRIVE else whole_run_id
    return [await whole(client, one) for one in given]


for _action in BulkAction:
    _command(_action)


def call_on_bulk(output: Output, bulk_id: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
    """Do `work` with a client and the whole id of the bulk action that `bulk_id` is, or begins."""

    async def resolved(client: Client) -> T:
        return await work(client, await whole_bulk_id(client, bulk_id))

    return call(output, resolved)


def start(output: Output, action: BulkAction, wanted: JsonObject, *, dry_run: bool, yes: bool, follow: bool) -> None:
    if dry_run or not yes:
        meant = call(output, lambda client: client.bulk(action.value, wanted, dry_run=True))
        if dry_run:
            output.document(meant) if output.json else output.fields({"runs": str(meant["runs"])})
            return
        if not meant["runs"]:
            output.document(meant) if output.json else output.note("No run is meant; nothing was done.")
            return
        confirm(f"{action.value.capitalize()} {meant['runs']:,} {'run' if meant['runs'] == 1 else 'runs'}?")
    job = call(output, lambda client: client.bulk(action.value, wanted))
    if not follow:
        output.document(job) if output.json else output.line(job["bulk_id"])
        return
    try:
        job = call(output, lambda client: _until_over(client, output, job))
    except KeyboardInterrupt:
        output.note(f"It goes on. See how far it is: {program()} bulk show {job['bulk_id']}", "bold")
        output.note(f"Stop it: {program()} bulk stop {job['bulk_id']}", "bold")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    _report(output, job)


async def _until_over(client: Client, output: Output, job: JsonObject) -> JsonObject:
    with Bar(output, job["action"]) as bar:
        while job["status"] in {JobStatus.QUEUED, JobStatus.RUNNING}:
            bar.show(job["done"] + job["refused"], job["total"])
            await asyncio.sleep(LOOK_SECONDS)
            job = await client.bulk_action(job["bulk_id"])
        bar.show(job["done"] + job["refused"], job["total"])
    return job


def _report(output: Output, job: JsonObject) -> None:
    refused = call(output, lambda client: client.bulk_runs(job["bulk_id"], "refused")) if job["refused"] else []
    if output.json:
        output.document({**job, "refusals": refused})
    else:
        for one in refused[:REFUSALS_SHOWN]:
            output.note(f"{one['run_id']}: {one['detail']}", "red")
        if job["refused"] > REFUSALS_SHOWN:
            output.note(f"… and {job['refused'] - REFUSALS_SHOWN:,} more", "red")
        _fields(output, job)
    if job["status"] != JobStatus.COMPLETED or job["refused"]:
        raise typer.Exit(ExitCode.RUN_FAILED)


def _fields(output: Output, job: JsonObject) -> None:
    values: dict[str, Any] = {
        "bulk action": job["bulk_id"],
        "action": job["action"],
        "filter": ", ".join(f"{name} {_short(value)}" for name, value in job["filter"].items()),
        "status": job["status"],
        "error": job["error"] or "",
        "runs": str(job["total"]),
        "done": str(job["done"]),
        "refused": str(job["refused"] or ""),
        "created": local_time(job["created_at"]),
        "ended": local_time(job["finished_at"]) if job["finished_at"] else "",
    }
    output.fields(values)


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


@app.command("list")
def list_bulk_actions(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """List your bulk actions, the newest first."""
    output = Output(json_output)
    found = listed(output, lambda client, cursor, most: client.bulk_actions(cursor, most), "bulk_actions", limit)
    if output.json:
        output.document(found)
        return
    rows = [
        [
            job["bulk_id"],
            job["action"],
            job["status"],
            str(job["total"]),
            str(job["done"]),
            str(job["refused"]),
            short_time(job["created_at"]),
        ]
        for job in found
    ]
    output.table(["BULK", "ACTION", "STATUS", "RUNS", "DONE", "REFUSED", "CREATED"], rows)


@app.command()
def show(bulk_id: BulkId, json_output: JsonFlag = False) -> None:
    """Show how far a bulk action is, and which runs refused it."""
    output = Output(json_output)
    job = call_on_bulk(output, bulk_id, lambda client, whole: client.bulk_action(whole))
    refused = call(output, lambda client: client.bulk_runs(job["bulk_id"], "refused")) if job["refused"] else []
    if output.json:
        output.document({**job, "refusals": refused})
        return
    _fields(output, job)
    if refused:
        output.line()
        rows = [[one["run_id"], one["detail"] or ""] for one in refused]
        output.table(["RUN", "WHY IT REFUSED"], rows, folding=["WHY IT REFUSED"])


@app.command()
def runs(
    bulk_id: BulkId,
    status: Annotated[ItemStatus | None, typer.Option(help="Only those of which this has come.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """List what came of each run: done, or refused and why. Of a replay, DETAIL is the new run."""
    output = Output(json_output)
    wanted = status.value if status else None
    found = call_on_bulk(output, bulk_id, lambda client, whole: client.bulk_runs(whole, wanted))
    if output.json:
        output.document(found)
        return
    rows = [[one["run_id"], one["status"], one["detail"] or ""] for one in found]
    output.table(["RUN", "STATUS", "DETAIL"], rows, folding=["DETAIL"])


@app.command()
def stop(bulk_id: BulkId, json_output: JsonFlag = False) -> None:
    """Leave undone what is not done yet. What was done stays done."""
    output = Output(json_output)
    job = call_on_bulk(output, bulk_id, lambda client, whole: client.stop_bulk_action(whole))
    output.document(job) if output.json else _fields(output, job)
    if job["status"] != JobStatus.STOPPED:
        output.note("It was over already; nothing was left to stop.")
