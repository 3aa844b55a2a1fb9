"""What runs ask people: decisions, approve, reject, answer."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_decision_id, whole_run_id
from agentctl.api.pages import FetchPage, newest
from agentctl.calls import call, call_on
from agentctl.completion import asking_run_ids, run_ids
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.follow import UNCERTAIN, how_it_goes_on
from agentctl.terminal.output import JsonFlag, Output, short_time
from agentctl.terminal.questions import asked_in_words, texts_in_lines
from backplane.input import unique_json

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of the run, or how it begins.", autocompletion=asking_run_ids)
]
DecisionArgument = Annotated[
    str | None, typer.Argument(metavar="DECISION", help="May be left out when the run asks one thing.")
]


def decisions(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Only of this run, the answered ones too.", autocompletion=run_ids),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what has been decided.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """List what your runs ask you, the newest first; before that, runs of which a step may have happened."""
    output = Output(json_output)
    status = None if everything or run_id is not None else "pending"

    async def work(client: Client) -> list[JsonObject]:
        of_run = await whole_run_id(client, run_id) if run_id is not None else None
        page: FetchPage = lambda cursor, most: client.decisions(of_run, status, cursor, most)  # noqa: E731
        found = await newest(page, "decisions", limit)
        return [*[as_decision(run) for run in await uncertain_runs(client, of_run, limit)], *found]

    found = call(output, work)
    if output.json:
        output.document(found)
        return
    rows = [
        [
            decision["run_id"],
            decision["decision_id"] or "",
            decision["status"],
            short_time(decision["created_at"]),
            decision["step"],
            decision["asked"]["commands"] if decision["kind"] == UNCERTAIN else asked_in_words(decision),
        ]
        for decision in found
    ]
    output.table(["RUN", "DECISION", "STATUS", "ASKED", "STEP", "WHAT"], rows, folding=["WHAT"])
    for decision in found:
        if lines := texts_in_lines(decision):
            output.line()
            output.line(f"{decision['decision_id']}, step {decision['step']}", "bold")
            for line in lines:
                output.line(f"  {line}")


async def uncertain_runs(client: Client, run_id: str | None, limit: int) -> list[JsonObject]:
    """Those that wait because a step of theirs may have happened: of all, or this one."""
    if run_id is not None:
        waiting = [await client.run(run_id)]
    else:
        page: FetchPage = lambda cursor, most: client.runs("waiting", cursor, most)  # noqa: E731
        waiting = await newest(page, "runs", limit)
    return [run for run in waiting if run["status"] == "waiting" and (run.get("error") or {}).get("code") == UNCERTAIN]


def as_decision(run: JsonObject) -> JsonObject:
    """What such a run asks, in the form of a decision. It has no id: it is answered by a retry that says what becomes
    of the step."""
    error = run["error"]
    return {
        "decision_id": None,
        "run_id": run["run_id"],
        "step": error.get("step") or "",
        "kind": UNCERTAIN,
        "asked": {"message": error["message"], "commands": how_it_goes_on(run)},
        "status": "pending",
        "answer": None,
        "created_at": None,
    }


def approve(
    run_id: RunArgument,
    decision_id: DecisionArgument = None,
    arguments: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE", help="Carry the step out with these arguments instead of its own."),
    ] = None,
    add_usd: Annotated[float | None, typer.Option(min=0, help="Add so many dollars to the run's budget.")] = None,
    add_tokens: Annotated[int | None, typer.Option(min=0, help="Add so many tokens to it.")] = None,
    add_steps: Annotated[int | None, typer.Option(min=0, help="Add so many steps to it.")] = None,
    add_seconds: Annotated[int | None, typer.Option(min=0, help="Add so many seconds to it.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Let a step be carried out, or a run go on whose budget is used up. The run goes on by itself."""
    answer: JsonObject = {"decision": "approve"}
    if arguments is not None:
        answer["arguments"] = json_object_of(arguments)
    added = {"usd": add_usd, "tokens": add_tokens, "steps": add_steps, "seconds": add_seconds}
    if any(amount is not None for amount in added.values()):
        answer["budget"] = {name: amount for name, amount in added.items() if amount is not None}
    kinds = {"approval"} if arguments is not None else {"budget"} if "budget" in answer else {"approval", "budget"}
    _decide(run_id, decision_id, answer, json_output, kinds)


def reject(
    run_id: RunArgument,
    decision_id: DecisionArgument = None,
    reason: Annotated[str, typer.Option(help="The run gets it with the answer.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """Refuse what a run asks for."""
    _decide(
        run_id, decision_id, {"decision": "reject", "reason": reason}, json_output, {"approval", "budget", "question"}
    )


def answer(
    run_id: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer.")],
    decision_id: Annotated[
        str | None, typer.Option("--decision", metavar="DECISION", help="Which, when the run asks several things.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Answer a question of a run."""
    _decide(run_id, decision_id, {"decision": "answer", "text": text}, json_output, {"question"})


def _decide(run_id: str, decision_id: str | None, answer: JsonObject, json_output: bool, kinds: Set[str]) -> None:
    output = Output(json_output)

    async def work(client: Client, run_id: str) -> JsonObject:
        if decision_id:
            chosen = await whole_decision_id(client, run_id, decision_id)
        else:
            chosen = only_one((await client.decisions(run_id, "pending"))["decisions"], run_id, kinds)
        return await client.decide(run_id, chosen, answer)

    made = call_on(output, run_id, work)
    if output.json:
        output.document(made)
        return
    output.fields(
        {
            "run": made["run_id"],
            "decision": made["decision_id"],
            "step": made["step"],
            "what": asked_in_words(made),
            "status": made["status"],
        }
    )
    for line in texts_in_lines(made):
        output.line(f"  {line}")


def only_one(pending: list[JsonObject], run_id: str, kinds: Set[str]) -> str:
    """The id of the only decision; of several, of the only one that is of these kinds. Raises CommandError."""
    if not pending:
        raise CommandError(ExitCode.REFUSED, f"Run {run_id} asks nothing at present.")
    fitting = [decision for decision in pending if decision["kind"] in kinds]
    if len(pending) > 1 and len(fitting) == 1:
        pending = fitting
    if len(pending) > 1:
        listed = "\n".join(f"  {decision['decision_id']}  {asked_in_words(decision)}" for decision in pending)
        raise CommandError(ExitCode.USAGE, f"Run {run_id} asks several things; name one of them:\n{listed}")
    chosen: str = pending[0]["decision_id"]
    return chosen


def json_object_of(text: str) -> dict[str, Any]:
    """Given as it is, or as @FILE. Raises CommandError(USAGE)."""
    try:
        given = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode("utf-8", "surrogatepass")
        found = unique_json.loads(given)
        json.dumps(found, allow_nan=False)
    except unique_json.DuplicateName as error:
        raise CommandError(ExitCode.USAGE, f"--arguments: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(ExitCode.USAGE, f"--arguments wants JSON, or @FILE with it: {error}") from None
    if not isinstance(found, dict):
        raise CommandError(ExitCode.USAGE, '--arguments wants a JSON object, like {"script": "true"}.')
    return found
