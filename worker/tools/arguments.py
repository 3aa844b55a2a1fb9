"""Types that arguments of several tools have, so that a plan is refused before its first step and not in the middle."""

from typing import Annotated

from pydantic import AfterValidator, Field

from backplane.errors import InvalidPath
from backplane.workspace.paths import check_path

MAX_PROGRAM_BYTES = 100_000
"""One argument of a Linux command holds 128 KiB."""

MAX_ENVIRONMENT_BYTES = 32 * 1024


def _possible_path(value: str) -> str:
    try:
        return check_path(value)
    except InvalidPath as error:
        raise ValueError(error.message) from error


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character, which no command can be given")
    return value


def _possible_program(value: str) -> str:
    if len(value.encode()) > MAX_PROGRAM_BYTES:
        raise ValueError(f"is longer than {MAX_PROGRAM_BYTES:,} bytes: write it to a file with file_write and run that")
    return value


def _possible_environment(value: dict[str, str]) -> dict[str, str]:
    if sum(len(name.encode()) + len(text.encode()) for name, text in value.items()) > MAX_ENVIRONMENT_BYTES:
        raise ValueError(f"is larger than {MAX_ENVIRONMENT_BYTES:,} bytes in all: put what is large into a file")
    return value


WorkspacePath = Annotated[str, AfterValidator(_possible_path)]
CommandText = Annotated[str, AfterValidator(_without_nul)]
Program = Annotated[CommandText, Field(min_length=1), AfterValidator(_possible_program)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Environment = Annotated[dict[VariableName, CommandText], AfterValidator(_possible_environment)]
