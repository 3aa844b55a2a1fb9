"""agentctl export: a run with its plans, steps, events, model calls and files as one archive."""

import asyncio
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.calls import RunArgument, call, call_on
from agentctl.commands.files import whole_or_not_at_all
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.output import JsonFlag, Output, local_time, program
from agentctl.terminal.progress import Bar
from backplane.domain.background_jobs import JobStatus
from backplane.domain.sizes import readable_size

LOOK_SECONDS = 0.5


def export(
    run_id: RunArgument,
    to: Annotated[str, typer.Option("--output", "-o", help="Where to; run-ID.zip when left out.")] = "",
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite a file that is there.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch/--no-fetch", help="Fetch the archive, once it is there.")] = True,
    json_output: JsonFlag = False,
) -> None:
    """Fetch a run as one ZIP archive: its plans, steps, decisions, events, model calls and files."""
    output = Output(json_output)
    job = call_on(output, run_id, lambda client, whole: client.export(whole))
    if not fetch:
        output.document(job) if output.json else output.line(job["export_id"])
        return
    try:
        job = call(output, lambda client: _until_over(client, output, job))
    except KeyboardInterrupt:
        output.note(f"It goes on; the archive is kept for a while. Again: {program()} export {run_id}", "bold")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if job["status"] != JobStatus.COMPLETED:
        raise CommandError(ExitCode.RUN_FAILED, f"The run was not exported: {job['error'] or job['status']}.")
    target = Path(to) if to else Path(f"run-{job['run_id']}.zip")
    if target.is_dir():
        target /= f"run-{job['run_id']}.zip"
    try:
        with whole_or_not_at_all(target, force=force) as sink:
            size = call(output, lambda client: _copy(client, job["export_id"], sink))
    except FileExistsError:
        message = f"{target} is there already. --force overwrites it; --output names another."
        raise CommandError(ExitCode.USAGE, message) from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{target} cannot be written: {error}.") from None
    if output.json:
        output.document({**job, "saved_to": str(target), "size": size})
    else:
        output.line(f"{target}\t{readable_size(size)}")
        output.note(f"The platform keeps it until {local_time(job['expires_at'])}.")


async def _until_over(client: Client, output: Output, job: JsonObject) -> JsonObject:
    with Bar(output, "export") as bar:
        while job["status"] in {JobStatus.QUEUED, JobStatus.RUNNING}:
            bar.show(job["files"], job["files_total"])
            await asyncio.sleep(LOOK_SECONDS)
            job = await client.export_of(job["export_id"])
    return job


async def _copy(client: Client, export_id: str, sink: BinaryIO) -> int:
    count = 0
    async with client.archive(export_id) as chunks:
        async for chunk in chunks:
            count += sink.write(chunk)
    return count
