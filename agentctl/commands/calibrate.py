"""agentctl calibrate: find the rate of tokens that a worker's machine bears, and write it down as a setting."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.address import find_token, find_url
from agentctl.api.client import connect
from agentctl.api.proxies import client_of
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.sizing.calibration import START_RATE, Measurement, Verdict, following_rate, starting_range, verdict
from agentctl.sizing.calibration_load import BuiltInLoad, Load, ServerLoad
from agentctl.sizing.cpu_use import CgroupMeter, CpuMeter, ProcessMeter, find_worker
from agentctl.terminal.output import JsonFlag, Output
from backplane.credentials import variables
from backplane.settings import ENV_FILE

SETTING = "AGENT_TOKENS_PER_SECOND"
BURST_SETTING = "AGENT_TOKENS_BURST"
BURST_SECONDS = 10

VERDICT_TEXTS = {
    Verdict.HOLDS: "it holds at 70–80 % of the CPU",
    Verdict.NOT_REACHED: "the tokens cannot be had any faster, and the CPU is not the reason",
    Verdict.GAVE_UP: "it did not settle, and this is the last rate: give it more --rounds, or a quieter machine",
}


def calibrate(
    agents: Annotated[int, typer.Option(min=1, max=1000, help="Agents at once.")] = 5,
    start: Annotated[float, typer.Option(min=0.01, help="Tokens/s of each agent to begin with.")] = START_RATE,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long each rate is measured.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rates that are measured at most.")] = 30,
    pid: Annotated[int | None, typer.Option(help="Process to measure, with all it starts. The worker here.")] = None,
    cgroup: Annotated[
        Path | None, typer.Option(help="Folder of the container's cgroup (v2) to measure instead of a process.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Load by this model server, as http://127.0.0.1:11434/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds its key.")] = None,
    token_ms: Annotated[float, typer.Option(min=0.01, help="Built-in load: CPU of a token, in milliseconds.")] = 50.0,
    write: Annotated[Path, typer.Option(help="File that gets the settings; its other lines stay.")] = Path(".env"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Find the rate of tokens at which agents use 70–80 % of a worker's CPU, and write it as a setting.

    Without --server the load is built in and needs a running platform (AGENT_URL, AGENT_TOKEN), but no model.
    """
    output = Output(json_output)
    if (server is None) != (model is None):
        raise CommandError(ExitCode.USAGE, "--server and --model go together.")
    if pid is not None and cgroup is not None:
        raise CommandError(ExitCode.USAGE, "Measure either --pid or --cgroup.")
    meter = CgroupMeter(cgroup) if cgroup else ProcessMeter(pid or find_worker())
    key = key_of(api_key_env)

    async def run() -> list[Measurement]:
        async with _load(server, model, key, token_ms / 1000, output) as load:
            low, high = starting_range(int(meter.cores))
            output.note(f"Measuring {meter.what}; load: {load.what}.")
            output.note(f"{meter.cores:g} cores: {low} to {high} tokens/s an agent are usual.")
            return await search(load, meter, output, agents=agents, start=start, seconds=seconds, rounds=rounds)

    measured = asyncio.run(run())
    ended, rate = verdict(measured, rounds), settled_rate(measured)
    if not dry_run:
        write_settings(write, {SETTING: f"{rate:.2f}", BURST_SETTING: f"{rate * BURST_SECONDS:.0f}"})
    if output.json:
        output.document(
            {"tokens_per_second": round(rate, 2), "verdict": ended.value, "rounds": [asdict(one) for one in measured]}
        )
    else:
        output.line(f"{SETTING}={rate:.2f}")
        output.note(
            f"{VERDICT_TEXTS[ended]}.{'' if dry_run else f' Written to {write}; restart the workers to use it.'}"
        )
    if ended is not Verdict.HOLDS:
        raise typer.Exit(ExitCode.GAVE_UP)


async def search(
    load: Load, meter: CpuMeter, output: Output, *, agents: int, start: float, seconds: float, rounds: int
) -> list[Measurement]:
    """Measure rate after rate until it holds, or there is no sense in going on."""
    measured: list[Measurement] = []
    rate = start
    while True:
        async with load.running(rate, agents, seconds) as window:
            used, began = meter.used_seconds(), time.monotonic()
            await asyncio.sleep(window.seconds)
            spent = time.monotonic() - began
            cpu = 100 * (meter.used_seconds() - used) / (spent * meter.cores)
        measured.append(Measurement(rate, window.reached(), max(cpu, 0.0)))
        last = measured[-1]
        output.note(
            f"round {len(measured)} of {rounds}: {last.rate:.2f} tokens/s for each of {agents} agents "
            f"(had {last.reached:.2f}), CPU {last.cpu:.0f} %"
        )
        if verdict(measured, rounds) is not Verdict.GO_ON:
            return measured
        rate = following_rate(last)


def settled_rate(measured: list[Measurement]) -> float:
    """What is written: the last rate that was asked for, but no more than was had."""
    last = measured[-1]
    return min(last.rate, last.reached) if last.reached < 0.8 * last.rate else last.rate


def write_settings(file: Path, settings: dict[str, str]) -> None:
    """Replace or add these lines; the file is never half written. Raises CommandError."""
    try:
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
        kept = [line for line in lines if line.partition("=")[0].strip() not in settings]
        unfinished = file.with_name(f".{file.name}.new")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as new:
            new.write("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items()), ""]))
        unfinished.replace(file)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(ExitCode.USAGE, f"{file} cannot be written: {error}. Name another with --write.") from None


def key_of(variable: str | None) -> str:
    if variable is None:
        return ""
    key = variables().get(variable, "")
    if not key:
        raise CommandError(
            ExitCode.USAGE,
            f"{variable} is neither in the environment nor in {ENV_FILE}: let it hold the server's key.",
        )
    return key


@asynccontextmanager
async def _load(
    server: str | None, model: str | None, key: str, token_seconds: float, output: Output
) -> AsyncIterator[Load]:
    if server and model:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with client_of(server, headers=headers, timeout=60.0) as http:
            yield ServerLoad(http, server, model)
    else:
        async with connect(find_url(), find_token(), output.note) as client:
            yield BuiltInLoad(client, token_seconds)
