"""The commands about a run's files: files ls, get, put. Contents are streamed, however large."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.calls import RunArgument, call_on
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, Sink, local_time
from backplane.domain.sizes import readable_size

app = typer.Typer(cls=Group, help="List, fetch and put the files of a run's workspace.", no_args_is_help=True)


@app.command()
def ls(
    run_id: RunArgument,
    prefix: Annotated[str, typer.Argument(help="Only files whose path begins with this.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """List the files."""
    output = Output(json_output)
    files = call_on(output, run_id, lambda client, whole: client.files(whole, prefix))
    if output.json:
        output.document(files)
        return
    print_files(output, files)


def print_files(output: Output, files: list[JsonObject]) -> None:
    rows = [[file["path"], readable_size(file["size"]), local_time(file["modified_at"])] for file in files]
    output.table(["PATH", "SIZE", "MODIFIED"], rows, folding=["PATH"])


@app.command()
def get(
    run_id: RunArgument,
    path: Annotated[str, typer.Argument(help="Path in the workspace.")],
    to: Annotated[str, typer.Option("--output", "-o", help="Where to; - is standard output.")] = "",
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite a file that is there.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Fetch a file: whole or not at all, into the current folder unless --output says otherwise."""
    output = Output(json_output)
    if to == "-":
        if json_output:
            raise CommandError(ExitCode.USAGE, "Standard output is for the file or for JSON; leave out one of them.")
        call_on(output, run_id, lambda client, whole: _copy(client, whole, path, output.sink()))
        return
    target = Path(to) if to else Path(PurePosixPath(path).name or "file")
    if target.is_dir():
        target /= PurePosixPath(path).name
    try:
        with whole_or_not_at_all(target, force=force) as sink:
            count = call_on(output, run_id, lambda client, whole: _copy(client, whole, path, sink))
    except FileExistsError:
        message = f"{target} is there already. --force overwrites it; --output names another."
        raise CommandError(ExitCode.USAGE, message) from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{target} cannot be written: {error}.") from None
    if output.json:
        output.document({"path": path, "size": count, "saved_to": str(target)})
    else:
        output.line(f"{target}\t{readable_size(count)}")


async def _copy(client: Client, run_id: str, path: str, sink: Sink) -> int:
    """Bytes written."""
    count = 0
    async with client.download(run_id, path) as chunks:
        async for chunk in chunks:
            count += sink.write(chunk)
    sink.flush()
    return count


@contextmanager
def whole_or_not_at_all(target: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Writes beside the target first, so that what breaks off leaves it as it was. A device or pipe is written to.
    Raises FileExistsError for a file that is there, also when it was made meanwhile, unless `force` is set."""
    if target.exists() and not target.is_file():
        with target.open("wb") as device:
            yield device
        return
    if not force and os.path.lexists(target):
        raise FileExistsError(target)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with unfinished.open("xb") as file:
            yield file
        if force:
            unfinished.replace(target)
        else:
            _put_in_place(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Raises FileExistsError. A file system without hard links cannot do it in one step."""
    try:
        target.hardlink_to(unfinished)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        unfinished.replace(target)


@app.command()
def put(
    run_id: RunArgument,
    local: Annotated[str, typer.Argument(metavar="FILE|-", help="The file; - is standard input.")],
    path: Annotated[str, typer.Argument(help="Path in the workspace; the file's own name when left out.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """Put a file into the workspace."""
    output = Output(json_output)
    if local == "-" and not path:
        raise CommandError(ExitCode.USAGE, "Standard input has no name: say which PATH it gets in the workspace.")

    source = Path(local)
    try:
        with nullcontext(sys.stdin.buffer) if local == "-" else source.open("rb") as content:
            length = None if local == "-" else os.fstat(content.fileno()).st_size
            name = path or source.name
            file = call_on(output, run_id, lambda client, whole: client.upload(whole, name, content, length))
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"{local} cannot be read: {error}.") from None
    if output.json:
        output.document(file)
    else:
        output.line(f"{file['path']}\t{readable_size(file['size'])}")
