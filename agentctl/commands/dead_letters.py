"""The commands about dead-lettered runs: dlq list, show, redrive, purge. They need the token of an admin."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_dead_letter_id
from agentctl.calls import RunArgument, call, listed
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, first_line, local_time, program, short_time
from agentctl.terminal.prompts import confirm
from backplane.domain.dead_letters import DeadReason

BATCH = 100

T = TypeVar("T")

OneRun = Annotated[str | None, typer.Argument(metavar="RUN", help="Id of the run, or how it begins.")]

app = typer.Typer(
    cls=Group, help="List, redrive and purge the runs that the platform gave up on.", no_args_is_help=True
)


def call_on_dead(output: Output, run_id: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
    """As `call_on`, with a dead letter of anybody's."""

    async def resolved(client: Client) -> T:
        return await work(client, await whole_dead_letter_id(client, run_id))

    return call(output, resolved)


@app.command("list")
def list_dead_letters(
    reason: Annotated[DeadReason | None, typer.Option(help="Only those with this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """List dead letters, the newest first."""
    output = Output(json_output)
    found = listed(
        output,
        lambda client, cursor, most: client.dead_letters(reason.value if reason else None, cursor, most),
        "dead_letters",
        limit,
    )
    if output.json:
        output.document(found)
        return
    rows = [
        [
            letter["run_id"],
            letter["reason"],
            short_time(letter["at"]),
            str(letter["attempts"]),
            letter["user"],
            letter["error"]["code"] if letter["error"] else "",
            first_line(letter["prompt"]),
        ]
        for letter in found
    ]
    output.table(["RUN", "REASON", "DIED", "ATTEMPTS", "USER", "ERROR", "PROMPT"], rows, cutting=["PROMPT"])


@app.command()
def show(run_id: RunArgument, json_output: JsonFlag = False) -> None:
    """Show a dead letter, and what each attempt died of."""
    output = Output(json_output)
    letter = call_on_dead(output, run_id, lambda client, whole: client.dead_letter(whole))
    if output.json:
        output.document(letter)
        return
    output.fields(
        {
            "run": letter["run_id"],
            "reason": letter["reason"],
            "died": local_time(letter["at"]),
            "attempts": str(letter["attempts"]),
            "lost workers": str(letter["crashes"] or ""),
            "user": f"{letter['user']} ({letter['user_id']})",
            "created": local_time(letter["created_at"]),
            "prompt": first_line(letter["prompt"]),
        }
    )
    for failure in letter["failures"]:
        error = failure["error"]
        output.line()
        output.fields(
            {
                "attempt": str(failure["attempt"]),
                "failed": local_time(failure["at"]),
                "worker": failure["worker_id"] or "",
                "step": error["step"] or "",
                "error": f"{error['message']} [{error['code']}]",
            }
        )
        for line in (failure["traceback"] or "").splitlines():
            output.line(line, "dim")


@app.command()
def redrive(
    run_id: OneRun = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All there are now, the oldest first, while the queue has room.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Queue a dead-lettered run again, with all its attempts. Completed steps are not repeated."""
    output = Output(json_output)
    _one_or_all("redrive", run_id, everything)
    if run_id is not None:
        run = call_on_dead(output, run_id, lambda client, whole: client.redrive(whole))
        if output.json:
            output.document(run)
        else:
            output.fields({"run": run["run_id"], "status": run["status"]})
        return
    answer = call(output, _redrive_all)
    if output.json:
        output.document(answer)
    else:
        output.fields({"redriven": str(answer["redriven"]), "left": str(answer["left"])})


async def _redrive_all(client: Client) -> JsonObject:
    """As many as there were at the first call: what dies again meanwhile is not redriven for ever."""
    answer = await client.redrive_oldest(BATCH)
    redriven, at_first = answer["redriven"], answer["redriven"] + answer["left"]
    while answer["redriven"] and redriven < at_first:
        answer = await client.redrive_oldest(min(BATCH, at_first - redriven))
        redriven += answer["redriven"]
    return {"redriven": redriven, "left": answer["left"]}


@app.command()
def purge(
    run_id: OneRun = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Forget a dead letter. Its run stays failed, and its user may still retry it."""
    output = Output(json_output)
    _one_or_all("purge", run_id, everything)
    what = "all dead letters" if everything else f"the dead letter of run {run_id}"
    if not yes:
        confirm(f"Forget {what}?")
    if run_id is not None:
        answer = call_on_dead(output, run_id, lambda client, whole: client.purge(whole))
    else:
        answer = call(output, lambda client: client.purge(None))
    if output.json:
        output.document(answer)
    else:
        output.fields({"purged": str(answer["purged"])})


def _one_or_all(command: str, run_id: str | None, everything: bool) -> None:
    if (run_id is None) != everything:
        raise CommandError(ExitCode.USAGE, f"Name one run, or all: {program()} dlq {command} RUN | --all.")
