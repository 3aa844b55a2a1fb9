"""The commands about handlers: `handlers` lists them, `dev` serves a file of them while it is being written."""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.local.configuration import load_settings
from agentctl.local.platform import WORKER_LAST_WORDS_SECONDS, ended_by_signals, environment_of_running
from agentctl.terminal.output import JsonFlag, Output, first_line, program
from backplane.process.supervisor import ChildProcess, Report, how_it_ended, python_module

LOOK_SECONDS = 0.3
"""Between two looks whether the file has changed."""
START_SECONDS = 60.0
READY = "worker ready"


def handlers(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one, with its input.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """List the handlers that live workers have, or show one with its input."""
    output = Output(json_output)
    if name is not None:
        found = call(output, lambda client: client.handler(name))
        output.document(found) if output.json else _show(output, found)
        return
    listed = call(output, lambda client: client.handlers())
    if output.json:
        output.document(listed)
        return
    rows = [[one["name"], one["package"], first_line(one["description"])] for one in listed["handlers"]]
    output.table(["HANDLER", "FROM", "WHAT IT DOES"], rows, folding=["WHAT IT DOES"])
    if not listed["complete"]:
        output.note("Not all are known: no worker is alive, or one has not published its handlers.", "yellow")


def _show(output: Output, found: JsonObject) -> None:
    output.line(found["description"])
    properties = found["input"].get("properties") or {}
    required = found["input"].get("required") or []
    rows = [
        [name, str(one.get("type", "")), "yes" if name in required else "", str(one.get("description", ""))]
        for name, one in properties.items()
    ]
    if rows:
        output.table(["INPUT", "TYPE", "NEEDED", "WHAT IT IS"], rows, folding=["WHAT IT IS"])
    output.fields({"from": found["package"]})


def dev(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="A Python file with handlers.")],
    data: Annotated[Path, typer.Option(help="The folder of the `agentctl up` that runs.")] = Path(".data"),
    json_output: JsonFlag = False,
) -> None:
    """Serve the handlers of a file at once, and again after each change, until Ctrl-C.

    A worker of its own takes runs of the platform that `agentctl up` runs, or that REDIS_URL and DATABASE_URL name.
    When the file changes, what it runs is handed back between two effects, and goes on with the new code.
    """
    if not file.is_file():
        raise CommandError(ExitCode.USAGE, f"{file} is no file.")
    settings = load_settings()
    environment = environment_of_running(data, settings) | {"HANDLERS_FILE": str(file.resolve())}
    output = Output(json_output)
    with tempfile.TemporaryDirectory(prefix="agentctl-dev-") as folder:
        log = Path(folder) / "worker.log"
        child = ChildProcess("the worker", python_module("worker"), environment=environment, log=log)
        grace = settings.worker_grace_seconds + WORKER_LAST_WORDS_SECONDS
        asyncio.run(_serve(child, file, log, grace, _reporter(output, file)))


def _reporter(output: Output, file: Path) -> Report:
    def report(event: str, message: str) -> None:
        if output.json:
            output.json_line({"event": event, "message": message})
        elif event == "serving":
            output.note(f"{message} Try one: {program()} run --handler NAME --input '{{…}}'", "bold green")
        else:
            output.note(message, "" if event in {"stopping", "stopped", "changed"} else "yellow")

    return report


async def _serve(child: ChildProcess, file: Path, log: Path, grace_seconds: float, report: Report) -> None:
    with ended_by_signals([child], report):
        try:
            while True:
                seen = _stamp(file)
                _forget(log)
                await child.start()
                serving = asyncio.create_task(_until_it_ends(child, file, log, report))
                try:
                    await _until_changed(file, seen)
                finally:
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
                report("changed", f"{file} has changed; the worker starts again.")
                await child.stop(grace_seconds)
        except asyncio.CancelledError:
            await child.stop(grace_seconds)
            report("stopped", "The worker is stopped.")


async def _until_it_ends(child: ChildProcess, file: Path, log: Path, report: Report) -> None:
    """Report that the worker serves, or why it ended; then there is nothing to do until the file changes."""

    async def is_ready() -> bool:
        return READY in _text_of(log)

    ready = asyncio.create_task(child.until_ready(is_ready, START_SECONDS))
    ended = asyncio.create_task(child.exited())
    await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done() and ready.exception() is None:
        report("serving", f"The handlers of {file} are served.")
    else:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
    code = await ended
    sentence = f"The worker {how_it_ended(code)}; it starts again when {file} changes."
    report("ended", f"{sentence}\n{child.last_words()}".rstrip())


async def _until_changed(file: Path, seen: tuple[int, int]) -> None:
    """A file that is away for a moment, as editors replace it, has not changed yet."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if _stamp(file) not in (seen, (0, 0)):
            return


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _forget(log: Path) -> None:
    log.unlink(missing_ok=True)


def _text_of(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")
    return ""
