"""`agentctl up`: the whole platform on one machine, by the same programs that production runs.

What the environment does not name is embedded: a real redis-server, SQLite, a folder for the workspaces. The API, the
workers and the controller are processes with settings in their environment, so what runs here is what runs elsewhere.

In which order its parts start and stop: `agentctl.local.platform`.

It ends in that order on SIGINT, SIGTERM and SIGHUP, the last being what a terminal sends that is closed; under `nohup`,
which ignores SIGHUP, it goes on. When only its reader is gone (`agentctl up | head -1`), or what it prints can be
written nowhere any more, it goes on too, without printing.
"""

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.address import DEFAULT_TOKEN_FILE, DEFAULT_URL
from agentctl.api.proxies import LOOPBACK
from agentctl.local.configuration import load_settings
from agentctl.local.platform import Locations, Platform, ended_by_signals, running
from agentctl.local.redis_cli import redis_cli_line
from agentctl.terminal.output import JsonFlag, Output, duration, program
from backplane.process.log_stream import LogStream
from backplane.process.supervisor import (
    PROJECT,
    ChildProcess,
    Report,
)
from backplane.settings import Settings

EXAMPLE_PROMPT = "# Count words\n\n```sh\necho one two three > words.txt\nwc -w words.txt\n```\n"


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    data: Annotated[Path, typer.Option(help="Folder that everything is kept in.")] = Path(".data"),
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    json_output: JsonFlag = False,
) -> None:
    """Run everything on this machine until Ctrl-C: Redis, database, API and workers.

    REDIS_URL, DATABASE_URL and S3_BUCKET, where they are set, are used instead of what is embedded. The data stays, and
    the next start goes on with it.
    """
    sys.stdout, sys.stderr = LogStream(sys.stdout), LogStream(sys.stderr)
    settings = load_settings()
    # What it prints is the log of this process.
    output = Output(json_output or settings.log_format == "json")
    asyncio.run(_until_stopped(Locations(host, port, data, workers), settings, output))


async def _until_stopped(place: Locations, settings: Settings, output: Output) -> None:
    report = reporter(output)
    children: list[ChildProcess] = []
    with ended_by_signals(children, report):
        try:
            async with running(place, settings, report, children) as platform:
                _announce(platform, settings, output)
                await asyncio.gather(*platform.keepers)
        except asyncio.CancelledError:
            report("stopped", "Everything is stopped; the data stays.")


def reporter(output: Output) -> Report:
    def report(event: str, message: str) -> None:
        if output.json:
            output.json_line({"event": event, "message": message})
            return
        for line in message.splitlines():
            output.note(line, "" if event in {"stopping", "stopped"} else "yellow")

    return report


def print_parts(platform: Platform, output: Output) -> None:
    place = platform.place
    output.line(f"The platform is up on {place.url} after {duration(platform.seconds)}.", "bold green")
    names = ["redis", "database", "workspaces", "sandbox"]
    shown = {name: platform.parts[name] for name in names}
    output.fields({**shown, "workers": str(place.workers), "logs": str(place.data / "logs")})
    if "NOT ISOLATED" in platform.parts["sandbox"]:
        output.note(
            f"WARNING: what runs execute can read and write what this user can; `{program()} doctor` says what to do.",
            "bold red",
        )


def _announce(platform: Platform, settings: Settings, output: Output) -> None:
    place = platform.place
    if output.json:
        output.json_line(
            {
                "event": "ready",
                "url": place.url,
                "token_file": str(place.token_file.absolute()),
                "redis_url_file": str(place.data.absolute() / "redis.url"),
                "redis_cli": redis_cli_line(place.data, platform.redis_socket),
                "parts": platform.parts,
                "pids": platform.pids,
                "commands": curl_lines(place),
            }
        )
        return
    print_parts(platform, output)
    if place.host not in LOOPBACK:
        output.note(f"WARNING: {place.host} may be reached from elsewhere, and nothing here encrypts.", "bold red")
    output.line("\nTry it in another terminal, in this folder: create, start, watch.", "bold")
    for line in curl_lines(place):
        output.line(f"\n{line}")
    output.line("\nOr:", "bold")
    if place.url != DEFAULT_URL:
        output.line(f"export AGENT_URL={place.url}")
    if place.token_file != DEFAULT_TOKEN_FILE:
        output.line(f"export AGENT_TOKEN=$(cat {shlex.quote(str(place.token_file.absolute()))})")
    output.line(f"{program()} run {os.path.relpath(PROJECT / 'examples' / 'word-count.md')} --planner runbook")
    if line := redis_cli_line(place.data, platform.redis_socket):
        output.line("\nThe queue in Redis:", "bold")
        output.line(f"{line} LLEN jobs:pending")
    output.line("\nCtrl-C stops everything.", "bold")


def curl_lines(place: Locations) -> list[str]:
    """Create, start and watch a run, to be pasted into bash one after the other."""
    token = f'-H "Authorization: Bearer $(cat {shlex.quote(str(place.token_file.absolute()))})"'
    body = shlex.quote(json.dumps({"action": "create", "prompt": EXAMPLE_PROMPT}))
    execute = f"curl -sS {place.url}/agent/execute {token} -H 'Content-Type: application/json'"
    return [
        f"RUN=$({execute} -d {body} | grep -oE '[0-9a-f-]{{36}}' | head -n 1); echo $RUN",
        f'{execute} -d "{{\\"action\\":\\"start\\",\\"run_id\\":\\"$RUN\\"}}"',
        f"curl -sS -N {place.url}/agent/logs/$RUN/stream {token}",
    ]
