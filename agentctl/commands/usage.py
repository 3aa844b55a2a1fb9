"""What one has stored and, with `--by`, what models took in tokens and dollars.

A table has as many places after the point as its longest amount needs, two at least, so that amounts stand below one
another and add up to the last place.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.api.client import Client
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.output import JsonFlag, Output, local_time
from backplane.domain.model_usage import UsageKey

KEYS = ", ".join(UsageKey)
PAGE = 200
_NUMBERS = {"calls": "CALLS", "input_tokens": "TOKENS IN", "output_tokens": "OUT"}


def usage(
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help=f"What models took, by {KEYS}. May be given often, or as KEY,KEY."),
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, in UTC: 2026-11-01.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day, in UTC.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user alone; for administrators.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many lines at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """Show how much of runs, events and files you have stored, and how much you may; with --by what models cost."""
    output = Output(json_output)
    keys = _keys(by or [])
    if keys:
        view = call(output, lambda client: _of_models(client, keys, limit, {"from": first, "to": last, "user": user}))
        if output.json:
            output.document(view)
        else:
            _show_models(output, keys, view)
        return
    if first or last or user:
        raise CommandError(ExitCode.USAGE, "--from, --to and --user are for what models took: add --by model")
    view = call(output, lambda client: client.usage())
    if output.json:
        output.document(view)
        return
    output.fields(
        {
            "runs": _of(view["runs"]),
            "events": _of(view["events"]),
            "counted": local_time(view.get("rows_counted_at")),
            "bytes of files": _of(view["bytes"]),
            "files counted": local_time(view.get("files_counted_at")),
        }
    )


def _keys(given: Sequence[str]) -> list[str]:
    keys = [key.strip() for one in given for key in one.split(",")]
    for key in keys:
        if key not in set(UsageKey):
            raise CommandError(ExitCode.USAGE, f"--by {key}: name one of {KEYS}")
    return list(dict.fromkeys(keys))


async def _of_models(client: Client, keys: list[str], limit: int, wanted: dict[str, str | None]) -> JsonObject:
    """Up to `limit` groups as one answer, whose `next_cursor` says whether there are more."""
    view: JsonObject = {"groups": [], "next_cursor": None}
    while True:
        left = limit - len(view["groups"])
        page = await client.usage({**wanted, "by": keys, "cursor": view["next_cursor"], "limit": min(left, PAGE)})
        view = {**page, "groups": [*view["groups"], *page["groups"]]}
        if page["next_cursor"] is None or len(view["groups"]) >= limit:
            return view


def _show_models(output: Output, keys: list[str], view: JsonObject) -> None:
    if not view["groups"]:
        output.note("no model was called")
        return
    totals = view["totals"]
    rows = [*view["groups"], *([totals] if len(view["groups"]) > 1 or view["next_cursor"] is not None else [])]
    columns = [[key.upper(), *(_name(key, group) for group in view["groups"])] for key in keys]
    columns[0] += ["all together"] * (len(rows) - len(view["groups"]))
    numbers = [_to_the_right([head, *(f"{row[field]:,}" for row in rows)]) for field, head in _NUMBERS.items()]
    table = [*_padded(columns), *numbers, _to_the_right(["USD", *_dollars([row["usd"] for row in rows])])]
    [head, *lines] = zip(*table, strict=True)
    output.table(head, lines, cutting=[column[0] for column in table[: len(keys)]])
    if view["next_cursor"] is not None:
        output.note(f"there are more: raise --limit above {len(view['groups'])}")
    if totals["unpriced"]:
        output.note(f"the price of {totals['unpriced']:,} of these calls is not known: set MODEL_PRICES", "yellow")


def _name(key: str, group: JsonObject) -> str:
    if key == UsageKey.AGENT:
        return str(group.get("agent_name") or group["agent"])
    if key == UsageKey.USER:
        return str(group.get("user") or group["user_id"])
    return str(group[key]) or "-"


def _padded(columns: list[list[str]]) -> list[list[str]]:
    most = max(map(len, columns))
    return [[*column, *[""] * (most - len(column))] for column in columns]


def _to_the_right(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _dollars(amounts: list[str]) -> list[str]:
    places = max(2, *(len(amount.partition(".")[2]) for amount in amounts))
    return [f"{Decimal(amount):,.{places}f}" for amount in amounts]


def _of(one: JsonObject) -> str:
    used = "not counted yet" if one["used"] is None else f"{one['used']:,}"
    return f"{used} of {one['limit']:,}" if one["limit"] else f"{used}, without a limit"
