"""agentctl export: a run with its plans, steps, events, model calls and files as one archive; and exports list, delete:
the archives that there are."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import is_whole, whole_export_id, whole_run_id
from agentctl.calls import call, listed
from agentctl.commands.files import whole_or_not_at_all
from agentctl.commands.storage import delete_each
from agentctl.completion import run_ids
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, Sink, local_time, program, short_time
from agentctl.terminal.progress import Bar
from agentctl.terminal.prompts import confirm
from backplane.domain.background_jobs import JobStatus
from backplane.domain.sizes import readable_size

LOOK_SECONDS = 0.5

app = typer.Typer(cls=Group, help="List and delete the archives that `export` makes.", no_args_is_help=True)


def export(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN|EXPORT",
            help="Id of the run, or how it begins; or the id of an export that was asked for before.",
            autocompletion=run_ids,
        ),
    ],
    to: Annotated[
        str, typer.Option("--output", "-o", help="Where to; run-ID.zip when left out; - is standard output.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite a file that is there.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch/--no-fetch", help="Fetch the archive, once it is there.")] = True,
    json_output: JsonFlag = False,
) -> None:
    """Fetch a run as one ZIP archive: its plans, steps, decisions, events, model calls and files."""
    output = Output(json_output)
    if to == "-" and fetch and json_output:
        raise CommandError(ExitCode.USAGE, "Standard output is for the archive or for JSON; leave out one of them.")
    whole, earlier = call(output, lambda client: _meant(client, run_id))
    if not fetch:
        job = earlier or call(output, lambda client: client.export(whole))
        output.document(job) if output.json else output.line(job["export_id"])
        return
    if to == "-":
        sink = output.sink()
        job = _made(output, whole, earlier)
        call(output, lambda client: _copy(client, job["export_id"], sink))
    else:
        target = Path(to) if to else Path(f"run-{whole}.zip")
        if target.is_dir():
            target /= f"run-{whole}.zip"
        # The target is opened first: what cannot be written is not exported for nothing.
        with _opened(target, force=force) as sink:
            job = _made(output, whole, earlier)
            size = call(output, lambda client: _copy(client, job["export_id"], sink))
        if output.json:
            output.document({**job, "saved_to": str(target), "size": size})
            return
        output.line(f"{target}\t{readable_size(size)}")
    output.note(f"The platform keeps it until {local_time(job['expires_at'])}.")


@contextmanager
def _opened(target: Path, *, force: bool) -> Iterator[Sink]:
    try:
        with whole_or_not_at_all(target, force=force) as sink:
            yield sink
    except FileExistsError:
        message = f"{target} is there already. --force overwrites it; --output names another."
        raise CommandError(ExitCode.USAGE, message) from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{target} cannot be written: {error.strerror or error}.") from None


async def _meant(client: Client, given: str) -> tuple[str, JsonObject | None]:
    """The whole id of the run, and the export where it is one's id that was given."""
    if is_whole(given):
        try:
            earlier = await client.export_of(given)
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return earlier["run_id"], earlier
    return await whole_run_id(client, given), None


def _made(output: Output, run_id: str, earlier: JsonObject | None) -> JsonObject:
    """The export, once its archive is there."""
    job = earlier or call(output, lambda client: client.export(run_id))
    try:
        job = call(output, lambda client: _until_over(client, output, job))
    except KeyboardInterrupt:
        output.note(f"It goes on. Fetch it later: {program()} export {job['export_id']}", "bold")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if job["status"] != JobStatus.COMPLETED:
        raise CommandError(ExitCode.RUN_FAILED, f"The run was not exported: {job['error'] or job['status']}.")
    return job


async def _until_over(client: Client, output: Output, job: JsonObject) -> JsonObject:
    with Bar(output, "export") as bar:
        while job["status"] in {JobStatus.QUEUED, JobStatus.RUNNING}:
            bar.show(job["files"], job["files_total"])
            await asyncio.sleep(LOOK_SECONDS)
            job = await client.export_of(job["export_id"])
    return job


async def _copy(client: Client, export_id: str, sink: Sink) -> int:
    count = 0
    async with client.archive(export_id) as chunks:
        async for chunk in chunks:
            count += sink.write(chunk)
    sink.flush()
    return count


@app.command("list")
def list_exports(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """List your exports, the newest first. One without a size has no archive: not yet, or not any more."""
    output = Output(json_output)
    found = listed(output, lambda client, cursor, most: client.exports(cursor, most), "exports", limit)
    if output.json:
        output.document(found)
        return
    rows = [
        [
            job["export_id"],
            job["run_id"],
            job["status"],
            readable_size(job["bytes"]) if job["archive"] else "",
            short_time(job["created_at"]),
            short_time(job["expires_at"]) if job["archive"] else "",
        ]
        for job in found
    ]
    output.table(["EXPORT", "RUN", "STATUS", "SIZE", "CREATED", "KEPT UNTIL"], rows)


@app.command()
def delete(
    export_ids: Annotated[list[str], typer.Argument(metavar="EXPORT...", help="Ids of exports, or how they begin.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Delete archives before their time. One that is not made yet is not made. The runs stay as they are."""
    output = Output(json_output)
    if not yes:
        confirm(f"Delete {'the archive' if len(export_ids) == 1 else f'{len(export_ids)} archives'}?")
    delete_each(output, export_ids, _delete_export, key="export_id")


async def _delete_export(client: Client, given: str) -> str:
    export_id = await whole_export_id(client, given)
    await client.remove_export(export_id)
    return export_id
