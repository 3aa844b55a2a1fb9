"""Runs that are made from runs, and what there is to compare them by: fork, replay, plans, model-calls."""

import json
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.api.ids import whole_call_id
from agentctl.calls import RunArgument, call_on
from agentctl.commands.runs import follow_to_its_end
from agentctl.exit_codes import ExitCode
from agentctl.new_run import text_of
from agentctl.plan_file import read_plan
from agentctl.terminal.follow import follow, still_waits
from agentctl.terminal.output import JsonFlag, Output, local_time, program, some_of
from backplane.domain.runs import FINAL


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """`is_equal` when `original` and `replayed` are the same."""

    what: str
    original: Any
    replayed: Any

    @property
    def is_equal(self) -> bool:
        return bool(self.original == self.replayed)


def fork(
    run_id: RunArgument,
    step: Annotated[
        str | None, typer.Option(help="The last step that is taken over, with the files as they were then; else none.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="PROMPT|FILE", help="In place of the run's own.")] = None,
    plan: Annotated[Path | None, typer.Option(help="In place of the run's own: a JSON or YAML file.")] = None,
    start: Annotated[bool, typer.Option(help="Start it at once; else put files into it first, and start it.")] = True,
    follow_run: Annotated[bool, typer.Option("--follow/--no-follow", help="Show its events until its end.")] = True,
    json_output: JsonFlag = False,
) -> None:
    """Make a new run that goes on from a step of another one."""
    output = Output(json_output)
    arguments: JsonObject = {"step": step, "start": start}
    if prompt is not None:
        arguments["prompt"] = text_of(prompt)
    if plan is not None:
        arguments["plan"] = read_plan(plan)
    made = call_on(output, run_id, lambda client, whole: client.derive("fork", whole, **arguments))
    if not (start and follow_run):
        output.document(made) if output.json else output.line(made["run_id"])
        if not start:
            output.note(f"Put files into it, and start it: {program()} start {made['run_id']}")
        return
    if not output.json:
        output.note(f"run {made['run_id']}")
    follow_to_its_end(output, made["run_id"], 0, None)


def replay(
    run_id: RunArgument,
    execute: Annotated[
        bool, typer.Option("--execute", help="Carry its steps out again, requests to the outside too.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Show a run again from its records, and compare: models' answers, people's decisions and steps' results are taken
    from there, and nothing is carried out. With --execute its steps are."""
    output = Output(json_output)

    async def work(client: Client, run_id: str) -> tuple[str, list[ReplayOutcome]]:
        made: str = (await client.derive("replay", run_id, **({"execute": True} if execute else {})))["run_id"]
        if output.json:
            await _until_over(client, made)
        else:
            output.note(f"run {made} replays {run_id}")
            await follow(client, output, made)
        found = [await _described(client, one) for one in (run_id, made)]
        return made, compared(*found)

    made, comparisons = call_on(output, run_id, work)
    different = [one for one in comparisons if not one.is_equal]
    if output.json:
        output.document(
            {
                "run_id": made,
                "replays": run_id,
                "equal": not different,
                "compared": [one.what for one in comparisons],
                "differences": [
                    {"what": one.what, "original": one.original, "replayed": one.replayed} for one in different
                ],
            }
        )
    else:
        for one in comparisons:
            output.line(f"= {one.what}" if one.is_equal else _difference(one), "" if one.is_equal else "yellow")
        count = f"{len(different)} of {len(comparisons)} differ" if different else "all is equal"
        output.note(f"{count}: {program()} show {made}", "bold")
    raise typer.Exit(ExitCode.RUN_FAILED if different else ExitCode.OK)


async def _until_over(client: Client, run_id: str) -> None:
    while True:
        async with aclosing(client.events(run_id)) as events:
            async for event in events:
                if await still_waits(client, run_id, event):
                    break
        if (await client.run(run_id))["status"] in {*FINAL, "waiting"}:
            return


async def _described(client: Client, run_id: str) -> tuple[JsonObject, list[JsonObject]]:
    return await client.run(run_id), await client.plans(run_id)


def compared(
    original: tuple[JsonObject, list[JsonObject]], replayed: tuple[JsonObject, list[JsonObject]]
) -> list[ReplayOutcome]:
    """What is to be the same of two runs: state, plans, and what came of each step. Times and costs are not."""
    (run, plans), (again, plans_again) = original, replayed
    found = [ReplayOutcome("status", run["status"], again["status"])]
    for number in range(max(len(plans), len(plans_again))):
        found.append(ReplayOutcome(f"plan {number + 1}", *(_plan_at(of, number) for of in (plans, plans_again))))
    steps, steps_again = ({step["id"]: step for step in of["steps"]} for of in (run, again))
    for step_id in dict.fromkeys((*steps, *steps_again)):
        first, second = _outcome(steps.get(step_id)), _outcome(steps_again.get(step_id))
        found += [ReplayOutcome(f"step {step_id}: {part}", first[part], second[part]) for part in first]
    error, error_again = ((of["error"] or {}).get("code") for of in (run, again))
    found.append(ReplayOutcome("error", error, error_again))
    for part in ("summary", "files"):
        found.append(ReplayOutcome(part, *((of.get("result") or {}).get(part) for of in (run, again))))
    return found


def _plan_at(plans: list[JsonObject], number: int) -> Any:
    return plans[number]["plan"] if number < len(plans) else None


def _outcome(step: JsonObject | None) -> dict[str, Any]:
    result = (step or {}).get("result") or {}
    return {
        "status": (step or {}).get("status"),
        "exit code": result.get("exit_code"),
        "output": result.get("output"),
        "files changed": sorted(result.get("files_changed") or ()),
        "files left out": result.get("files_left_out", 0),
    }


def _difference(one: ReplayOutcome) -> str:
    return f"\u2260 {one.what}: {_short(one.replayed)}, was {_short(one.original)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def plans(run_id: RunArgument, json_output: JsonFlag = False) -> None:
    """Show all plans that a run has had, and why each was replaced."""
    output = Output(json_output)
    found = call_on(output, run_id, lambda client, whole: client.plans(whole))
    if output.json:
        output.document(found)
        return
    for version in found:
        replaced = f"replaced {local_time(version['replaced_at'])}: {version['reason']}"
        plan = version["plan"]
        output.fields(
            {
                "version": str(version["version"]),
                "state": replaced if version["replaced_at"] else "in force",
                "planner": plan["planner"],
            }
        )
        rows = [[step["id"], step["tool"], _needs(step), step.get("title") or ""] for step in plan["steps"]]
        output.table(["STEP", "TOOL", "NEEDS", "TITLE"], rows, folding=["NEEDS", "TITLE"])
        output.line()


def _needs(step: JsonObject) -> str:
    """A step that says nothing of it needs all that stand before it."""
    needs = step.get("needs")
    return "all before it" if needs is None else some_of(needs)


def model_calls(
    run_id: RunArgument,
    call_id: Annotated[
        str | None, typer.Argument(metavar="CALL", help="Show what was asked and answered, as JSON.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """List the calls of models that a run has made, or show one of them."""
    output = Output(json_output)
    if call_id is not None:

        async def one_of(client: Client, run_id: str) -> JsonObject:
            return await client.model_call(run_id, await whole_call_id(client, run_id, call_id))

        output.document(call_on(output, run_id, one_of))
        return
    found = call_on(output, run_id, lambda client, whole: client.model_calls(whole))
    if output.json:
        output.document(found)
        return
    rows = [
        [
            one["call_id"],
            one["step"],
            f"{one['purpose']} {one['number']}",
            one["status"],
            f"{one['server']}/{one['model']}",
            f"{one['input_tokens']} + {one['output_tokens']}",
            "" if one["usd"] is None else f"${one['usd']:.6f}",
        ]
        for one in found
    ]
    output.table(["CALL", "STEP", "PURPOSE", "STATUS", "MODEL", "TOKENS", "COST"], rows)
