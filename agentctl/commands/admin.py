"""What an operator does in the database and in Redis directly, where there is no API to ask: token, migrate,
take-over-redis."""

import asyncio
import re
from datetime import timedelta
from typing import Annotated, Any

import typer

from agentctl.api.ids import the_only
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.local.configuration import load_settings, masked
from agentctl.local.databases import DataFolder, check_is_there, database_of, settings_of
from agentctl.terminal.output import JsonFlag, Output, short_time
from agentctl.terminal.prompts import confirm
from backplane.domain.users import Tier, Token
from backplane.resources import connect_store
from backplane.resources import migrate as migrate_database
from backplane.resources import take_over_redis as take_over

tokens = typer.Typer(
    cls=Group, help="Make, list and revoke the bearer tokens of users, in DATABASE_URL or --data.", no_args_is_help=True
)

LONGEST_LIFETIME = timedelta(days=3660)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@tokens.command("create")
def create_token(
    user: Annotated[str, typer.Option(help="Name of the user, who is made when new.")],
    tier: Annotated[Tier, typer.Option(help="Decides the priority of the user's runs.")] = Tier.STANDARD,
    label: Annotated[str, typer.Option(help="What the token is for.")] = "",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It sees all that its user sees, and changes nothing.")
    ] = False,
    expires_in: Annotated[
        str, typer.Option(metavar="TIME", help="It ends after this time: 90m, 12h, 30d. Else it lasts until revoked.")
    ] = "",
    data: DataFolder = None,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="Make the database of DATABASE_URL, where there is none.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Make a token. It is shown now and never again: only its digest is stored."""
    output, settings = Output(json_output), settings_of(data)
    valid_for = lifetime_of(expires_in)

    async def create() -> tuple[Token, str]:
        if not new_database:
            await check_is_there(settings)
        await migrate_database(settings)
        async with connect_store(settings) as store:
            return await store.users.create_token(user, tier, label, is_read_only=read_only, valid_for=valid_for)

    token, plain = asyncio.run(create())
    if output.json:
        output.document({**_token_view(token), "token": plain, "database": database_of(settings)})
    else:
        output.line(plain)
        output.note(
            f"Token {token.id} of {token.user.name} ({token.user.tier}), in the database {database_of(settings)}."
        )
        output.note("It is not shown again.")


@tokens.command("list")
def list_tokens(data: DataFolder = None, json_output: JsonFlag = False) -> None:
    """List the tokens, without themselves."""
    output, settings = Output(json_output), settings_of(data)

    async def listing() -> list[Token]:
        await check_is_there(settings)
        async with connect_store(settings) as store:
            return await store.users.list_tokens()

    found = [_token_view(token) for token in asyncio.run(listing())]
    if output.json:
        output.document(found)
        return
    rows = [
        [
            view["id"],
            view["user"],
            view["tier"],
            "look" if view["read_only"] else "all",
            view["label"],
            *(short_time(view[when]) for when in ("created_at", "expires_at", "revoked_at")),
        ]
        for view in found
    ]
    output.note(f"In the database {database_of(settings)}:")
    output.table(["TOKEN", "USER", "TIER", "MAY", "LABEL", "CREATED", "EXPIRES", "REVOKED"], rows)


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, or how it begins.")],
    data: DataFolder = None,
    json_output: JsonFlag = False,
) -> None:
    """Revoke a token. API processes that have just checked it trust it for TOKEN_CACHE_SECONDS more."""
    output, settings = Output(json_output), settings_of(data)

    async def revoke() -> str:
        await check_is_there(settings)
        async with connect_store(settings) as store:
            found = {token.id: f"{token.user.name}  {token.label}" for token in await store.users.list_tokens()}
            whole = the_only("token", token_id, found, "agentctl token list")
            await store.users.revoke_token(whole)
            return whole

    revoked = asyncio.run(revoke())
    if output.json:
        output.document({"id": revoked, "revoked": True})
    else:
        output.note(f"Token {revoked} is revoked; it stops working within {settings.token_cache_seconds:g} s.")


def lifetime_of(text: str) -> timedelta | None:
    """A time as `90m`, `12h` or `30d`; None for an empty one. Raises CommandError."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", text.strip())
    lifetime = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
    if lifetime is None or not timedelta() < lifetime <= LONGEST_LIFETIME:
        raise CommandError(
            ExitCode.USAGE,
            f"--expires-in: {text!r} is no time up to {LONGEST_LIFETIME.days} days; write minutes, hours or days, as "
            "90m, 12h or 30d",
        )
    return lifetime


def _token_view(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user.name,
        "user_id": token.user.id,
        "tier": token.user.tier.value,
        "label": token.label,
        "read_only": token.is_read_only,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
        "created_at": token.created_at.isoformat(),
        "revoked_at": token.revoked_at.isoformat() if token.revoked_at else None,
    }


def migrate(json_output: JsonFlag = False) -> None:
    """Bring the database's tables to the newest state. Any number may do so at once."""
    output, settings = Output(json_output), load_settings()
    newer = asyncio.run(migrate_database(settings))
    if output.json:
        output.document({"migrated": masked(settings.database_url), "newer_revision": newer})
    elif newer:
        output.note(
            f"The tables of {database_of(settings)} are of a newer release (revision {newer}) and stay as they are; "
            "this release works with them. Use the newer one to change them.",
            "yellow",
        )
    else:
        output.note(f"The tables of {database_of(settings)} are up to date.")


def take_over_redis(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Make the queue in Redis this database's, when another platform's was there that is gone.

    What that platform had queued is removed from Redis; its own database keeps it. What this database has queued is put
    in by the first worker.
    """
    output, settings = Output(json_output), load_settings()
    where = f"{masked(settings.redis_url)}, prefix {settings.redis_key_prefix!r}"
    if not yes:
        confirm(f"Remove the queue of whatever platform used {where} before? Its processes must be stopped.")
    asyncio.run(take_over(settings))
    if output.json:
        output.document({"taken_over": where})
    else:
        output.note(f"The queue in {where} belongs to {masked(settings.database_url)} now.")
