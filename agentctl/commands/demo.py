"""`agentctl demo`: the main job from nothing to nothing. Starts everything in a fresh folder, as `up` does, carries
out an example while showing its events as they are streamed, shows the files it made, and stops everything.

It always uses what is embedded, so that a demonstration never lands in somebody's real queue or bucket.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import typer

from agentctl.api.client import Client, connect
from agentctl.commands.files import print_files
from agentctl.commands.up import print_parts, reporter
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.local.configuration import load_settings
from agentctl.local.embedded import HOST, free_port
from agentctl.local.platform import Locations, ended_by_signals, running
from agentctl.terminal.follow import follow
from agentctl.terminal.output import JsonFlag, Output, duration
from backplane.process.supervisor import PROJECT, ChildProcess

EXAMPLE = PROJECT / "examples" / "word-count.md"
RESULT = "report.txt"
RUN_SECONDS = 60.0


def demo(json_output: JsonFlag = False) -> None:
    """Start everything in a temporary folder, carry out an example, show its events and files, stop everything."""
    output = Output(json_output)
    data = Path(tempfile.mkdtemp(prefix="agentctl-demo-"))
    try:
        code = asyncio.run(_demo(Locations(HOST, free_port(), data, workers=1), output))
    except BaseException:
        output.note(f"What was left is in {data}; the logs are in {data / 'logs'}.")
        raise
    if code is ExitCode.OK:
        shutil.rmtree(data)
    else:
        output.note(f"The run did not complete. What was left is in {data}; the logs are in {data / 'logs'}.", "red")
    raise typer.Exit(code)


async def _demo(place: Locations, output: Output) -> ExitCode:
    report, children = reporter(output), list[ChildProcess]()
    with ended_by_signals(children, report):
        try:
            async with running(place, load_settings(), report, children, embedded_only=True) as platform:
                if not output.json:
                    print_parts(platform, output)
                async with connect(place.url, platform.token, output.note) as client:
                    return await _carry_out(client, output)
        except asyncio.CancelledError:
            return ExitCode.INTERRUPTED


async def _carry_out(client: Client, output: Output) -> ExitCode:
    try:
        prompt = EXAMPLE.read_text("utf-8")
    except OSError as error:
        raise CommandError(ExitCode.RUN_FAILED, f"The example cannot be read: {error}.") from None
    began = time.monotonic()
    run_id = (await client.create({"prompt": prompt, "planner": "runbook"}, start=True))["run_id"]
    if not output.json:
        output.line(f"\nRun {run_id}: {EXAMPLE.relative_to(PROJECT)}", "bold")
    code = await follow(client, output, run_id, wait=RUN_SECONDS)
    took = time.monotonic() - began
    files = await client.files(run_id)
    if output.json:
        output.json_line({"run_id": run_id, "seconds": round(took, 3), "exit_code": int(code), "files": files})
        return code
    output.line("\nFiles in its workspace", "bold")
    print_files(output, files)
    if any(file["path"] == RESULT for file in files):
        output.line(f"\n{RESULT}", "bold")
        async with client.download(run_id, RESULT) as chunks:
            content = b"".join([chunk async for chunk in chunks])
        for line in content.decode(errors="replace").splitlines():
            output.line(f"  {line}")
    output.line(f"\nThe run took {duration(took)}.", "bold")
    return code
