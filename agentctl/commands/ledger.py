"""The commands about who may spend how much: `budget` for everybody; ledger balance, entries, top-up, withdraw,
transfer, close, audit for admins.

An owner is a user's name, or tier:NAME or run:ID; a resource tokens, usd, steps or seconds. Each movement gets a name
before it is sent, so that it can be sent again when the line breaks, and happens once.
"""

import uuid
from enum import StrEnum
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.calls import call, listed
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.terminal.output import JsonFlag, Output, local_time


class ResourceName(StrEnum):
    TOKENS = "tokens"
    USD = "usd"
    STEPS = "steps"
    SECONDS = "seconds"


Owner = Annotated[str, typer.Argument(metavar="OWNER", help="A user's name, tier:NAME or run:ID.")]
ResourceArgument = Annotated[ResourceName, typer.Argument(metavar="RESOURCE", help="tokens, usd, steps or seconds.")]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="A whole number; of usd, dollars: 12.50.")]
Note = Annotated[str, typer.Option(help="Is kept with the entries.")]
TransferId = Annotated[
    str | None, typer.Option(help="A name of your choice, by which it happens once. Made when left out.")
]

app = typer.Typer(
    cls=Group, help="See and change who may spend how much. It needs the token of an admin.", no_args_is_help=True
)


@app.command()
def balance(
    owner: Annotated[str | None, typer.Argument(metavar="OWNER", help="A user's name, tier:NAME or run:ID.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many accounts at most.")] = 200,
    json_output: JsonFlag = False,
) -> None:
    """List the accounts of an owner, or all: what is left, what is reserved by runs, and what is spent."""
    output = Output(json_output)
    found = listed(
        output,
        lambda client, cursor, most: client.accounts(_owner(owner) if owner else None, cursor, most),
        "accounts",
        limit,
    )
    if output.json:
        output.document(found)
    else:
        _show_accounts(output, found)


@app.command()
def entries(
    owner: Owner,
    resource: ResourceArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    json_output: JsonFlag = False,
) -> None:
    """List what changed an account, the newest first."""
    output = Output(json_output)
    found = listed(
        output, lambda client, cursor, most: client.account(_account(owner, resource), cursor, most), "entries", limit
    )
    if output.json:
        output.document(found)
    else:
        _show_entries(output, found)


@app.command("top-up")
def top_up(
    owner: Owner,
    resource: ResourceArgument,
    amount: Amount,
    note: Note = "",
    transfer_id: TransferId = None,
    json_output: JsonFlag = False,
) -> None:
    """Put something into an account. An owner without one gets one, and with it a limit: of what is put in."""
    _move("top-up", owner, resource, amount, note, transfer_id, Output(json_output))


@app.command()
def withdraw(
    owner: Owner,
    resource: ResourceArgument,
    amount: Amount,
    note: Note = "",
    transfer_id: TransferId = None,
    json_output: JsonFlag = False,
) -> None:
    """Take something out of an account that is neither reserved nor spent."""
    _move("withdraw", owner, resource, amount, note, transfer_id, Output(json_output))


@app.command()
def transfer(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A user's name, tier:NAME or run:ID.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Another owner that has an account.")],
    resource: ResourceArgument,
    amount: Amount,
    note: Note = "",
    transfer_id: TransferId = None,
    json_output: JsonFlag = False,
) -> None:
    """Move something from one owner's account to another's, in one step."""
    output = Output(json_output)
    between = {"source": _account(source, resource), "target": _account(target, resource)}
    movement = {**between, **_movement(amount, note, transfer_id)}
    _show_booked(output, call(output, lambda client: client.transfer(movement)))


@app.command()
def close(owner: Owner, resource: ResourceArgument, json_output: JsonFlag = False) -> None:
    """Take an owner's limit of a resource away. What is left is withdrawn; the entries stay."""
    output = Output(json_output)
    closed = call(output, lambda client: client.close_account(_account(owner, resource)))
    if output.json:
        output.document(closed)
    else:
        _show_accounts(output, [closed])


@app.command()
def audit(json_output: JsonFlag = False) -> None:
    """Add the whole ledger up. Where an account is not what its entries make, that is shown, and the exit code is 1."""
    output = Output(json_output)
    found = call(output, lambda client: client.audit())
    differences = found["differences"]
    if output.json:
        output.document(found)
    elif differences:
        rows = [[one["account_id"], one["what"], str(one["expected"]), str(one["found"])] for one in differences]
        output.table(["ACCOUNT", "WHAT", "EXPECTED", "FOUND"], rows)
    else:
        output.line(f"{found['accounts']} accounts are what their {found['entries']} entries make.")
    if differences:
        message = f"The books are wrong in {len(differences)} places: the database was changed by something else."
        raise CommandError(ExitCode.RUN_FAILED, message)


def budget(json_output: JsonFlag = False) -> None:
    """Show what is left to you of what limits your runs, and what they took so far."""
    output = Output(json_output)
    found = call(output, lambda client: client.budget())
    if output.json:
        output.document(found)
        return
    if found["accounts"]:
        _show_accounts(output, found["accounts"])
        output.line()
    else:
        output.note("Nothing limits your runs but the budgets that they are given.")
    spent = found["spent"]
    output.fields({"tokens spent": str(spent["tokens"]), "usd spent": spent["usd"], "steps taken": str(spent["steps"])})


def _owner(named: str) -> str:
    return named if ":" in named else f"user:{named}"


def _account(owner: str, resource: ResourceName) -> str:
    return f"{_owner(owner)}:{'micro_usd' if resource is ResourceName.USD else resource}"


def _movement(amount: str, note: str, transfer_id: str | None) -> JsonObject:
    return {"amount": amount, "transfer_id": transfer_id or str(uuid.uuid4()), "note": note}


def _move(
    action: str, owner: str, resource: ResourceName, amount: str, note: str, transfer_id: str | None, output: Output
) -> None:
    account, movement = _account(owner, resource), _movement(amount, note, transfer_id)
    _show_booked(output, call(output, lambda client: client.move(action, account, movement)))


def _show_booked(output: Output, booked: JsonObject) -> None:
    if output.json:
        output.document(booked)
    else:
        _show_entries(output, booked["entries"])


def _show_accounts(output: Output, accounts: list[JsonObject]) -> None:
    rows = [
        [
            f"user:{account['owner_name']}" if account["owner_name"] else account["owner"],
            _unit(account["resource"]),
            account["balance"],
            account["reserved"],
            account["spent"],
            local_time(account["closed_at"]),
        ]
        for account in accounts
    ]
    output.table(["OWNER", "RESOURCE", "LEFT", "RESERVED", "SPENT", "CLOSED"], rows)


def _show_entries(output: Output, entries: list[JsonObject]) -> None:
    rows = [
        [
            local_time(entry["at"]),
            entry["kind"],
            entry["balance_change"],
            entry["reserved_change"],
            entry["spent_change"],
            entry["balance_after"],
            _where(entry),
            entry["note"],
        ]
        for entry in entries
    ]
    output.table(["AT", "KIND", "BALANCE", "RESERVED", "SPENT", "LEFT", "FOR", "NOTE"], rows, folding=["NOTE"])


def _where(entry: JsonObject) -> str:
    """The run and the step, or the movement's name."""
    if not entry["run_id"]:
        return str(entry["transfer_id"])
    return f"{entry['run_id']} {entry['step_id'] or ''}".rstrip()


def _unit(resource: str) -> str:
    return "usd" if resource == "micro_usd" else resource
