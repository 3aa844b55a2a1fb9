"""Which database an operator's command works on, and that it is one that is used.

The default of DATABASE_URL is a file in the current folder, and SQLite makes a file that is not there: a token that was
made in the wrong folder would stand in a database that no process ever opens. So each command names its database, and a
new one is made only when that is asked for.
"""

from pathlib import Path
from typing import Annotated

import typer

from agentctl.exit_codes import CommandError, ExitCode
from agentctl.local.configuration import load_settings, masked
from backplane.errors import NoTables, NotFound
from backplane.resources import connect_store, database_file
from backplane.settings import Settings

FILE = "agent.db"

DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="The folder of an `agentctl up`: its database, instead of DATABASE_URL."),
]


def settings_of(data: Path | None) -> Settings:
    """The settings, with the database of a data folder where one is named. Raises CommandError."""
    settings = load_settings()
    if data is None:
        return settings
    if not (data / FILE).is_file():
        message = f"{data} has no {FILE}: it is not the folder of an `agentctl up`, or its DATABASE_URL names another."
        raise CommandError(ExitCode.USAGE, message)
    return with_settings(settings, database_url=f"sqlite:///{(data / FILE).resolve()}")


def with_settings(settings: Settings, **others: object) -> Settings:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return load_settings(**{**given, **others})


def database_of(settings: Settings) -> str:
    """For people: the whole path of a file, a URL without its password."""
    file = database_file(settings)
    return str(file) if file else masked(settings.database_url)


async def check_is_there(settings: Settings) -> None:
    """Raises CommandError for a database that no platform has used yet; makes nothing."""
    if await has_tables(settings):
        return
    where, what_to_do = database_of(settings), "Set DATABASE_URL as the API and the workers have it"
    if "database_url" not in settings.model_fields_set:
        what_to_do += ", or name the folder of `agentctl up` with --data"
    raise CommandError(
        ExitCode.USAGE, f"There is no platform's database at {where}. {what_to_do}. `agentctl migrate` makes a new one."
    )


def _file_is_missing(settings: Settings) -> bool:
    file = database_file(settings)
    return file is not None and not file.exists()


async def has_tables(settings: Settings) -> bool:
    """Whether a platform has used it. Makes nothing. Raises Unavailable when it does not answer."""
    if _file_is_missing(settings):
        return False
    async with connect_store(settings) as store:
        try:
            await store.users.find("")
        except NotFound:
            return True
        except NoTables:
            return False
    return True
