"""Types that arguments of several tools have, so that a plan is refused before its first step and not in the middle.

`${secrets.NAME}` may stand where a tool puts the value in: in variables of commands and in headers. In a program's text
or a URL it would end up in logs and files, so it is refused there.
"""

import re
from collections.abc import Callable
from typing import Annotated, get_args

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from backplane.domain.secrets import SECRET_REFERENCE, unescaped
from backplane.errors import InvalidInput, InvalidPath
from backplane.net.egress import parse_url
from backplane.workspace.paths import file_path, folder_path

MAX_PROGRAM_BYTES = 100_000
"""One argument of a Linux command holds 128 KiB."""

MAX_ENVIRONMENT_BYTES = 32 * 1024

MAX_HEADERS = 50
MAX_HEADERS_BYTES = 16 * 1024

_LIKE_A_SECRET = re.compile(r"(?<!\$)\$\{secrets\.")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_OWN_HEADERS = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)


def _possible_path(value: str) -> str:
    try:
        return file_path(value)
    except InvalidPath as error:
        raise ValueError(error.message) from error


def _possible_folder(value: str) -> str:
    try:
        return folder_path(value)
    except InvalidPath as error:
        raise ValueError(error.message) from error


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character, which no command can be given")
    return value


def _without_secrets(value: str) -> str:
    if _LIKE_A_SECRET.search(value):
        raise ValueError(
            "a secret cannot be put in here: give it as a variable of the environment (shell, python) or as a header "
            "(http_fetch); to mean these characters themselves, write $${secrets…"
        )
    return unescaped(value)


def _with_possible_secrets(value: str) -> str:
    if len(_LIKE_A_SECRET.findall(value)) != len(SECRET_REFERENCE.findall(value)):
        raise ValueError("a secret is written ${secrets.NAME}, its name in capital letters, digits and _")
    return value


def _possible_url(value: str) -> str:
    try:
        return str(parse_url(value))
    except InvalidInput as error:
        raise ValueError(error.message.removeprefix("url: ")) from None


def _possible_header(value: str) -> str:
    if not is_header_value(value):
        raise ValueError("a header's value is one line of printable ASCII characters")
    return value


def _possible_header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("a header's name has letters, digits and -")
    if value.lower() in _OWN_HEADERS:
        raise ValueError(f"the header {value} is set by the tool itself: leave it out")
    return value


def _possible_headers(value: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in value}) != len(value):
        raise ValueError("a header is given twice, in capital and in small letters: give each once")
    if sum(len(name) + len(text) for name, text in value.items()) > MAX_HEADERS_BYTES:
        raise ValueError(f"are larger than {MAX_HEADERS_BYTES:,} bytes in all")
    return value


def is_header_value(value: str) -> bool:
    return value.isascii() and all(character.isprintable() or character == "\t" for character in value)


def _possible_program(value: str) -> str:
    if len(value.encode()) > MAX_PROGRAM_BYTES:
        raise ValueError(f"is longer than {MAX_PROGRAM_BYTES:,} bytes: write it to a file with file_write and run that")
    return value


def _possible_instruction(value: str) -> str:
    return _without_nul(value)


def _possible_environment(value: dict[str, str]) -> dict[str, str]:
    if sum(len(name.encode()) + len(text.encode()) for name, text in value.items()) > MAX_ENVIRONMENT_BYTES:
        raise ValueError(f"is larger than {MAX_ENVIRONMENT_BYTES:,} bytes in all: put what is large into a file")
    return value


def is_program(field: FieldInfo) -> bool:
    """Whether its value is executed or followed as an instruction: nothing from outside may be put into it."""
    return _is_checked_by(field, _possible_program, _possible_instruction)


def is_path(field: FieldInfo) -> bool:
    """Whether it is the path of a file in the workspace."""
    return _is_checked_by(field, _possible_path)


def is_folder(field: FieldInfo) -> bool:
    """Whether it is the path of a folder in the workspace."""
    return _is_checked_by(field, _possible_folder)


def _is_checked_by(field: FieldInfo, *checks: Callable[[str], str]) -> bool:
    """Whether the field has one of these checks. Where the field may be None, the check stands in a part of its
    type."""
    parts = [*field.metadata, *(part for type in get_args(field.annotation) for part in get_args(type)[1:])]
    return any(isinstance(part, AfterValidator) and part.func in checks for part in parts)


WorkspacePath = Annotated[str, AfterValidator(_possible_path)]
"""Of a file: `./a.txt` becomes `a.txt`."""
WorkspaceFolder = Annotated[str, AfterValidator(_possible_folder)]
"""`./src/` becomes `src`, `.` becomes the empty text."""
CommandText = Annotated[str, AfterValidator(_without_nul)]
CommandArgument = Annotated[CommandText, AfterValidator(_without_secrets)]
Program = Annotated[CommandArgument, Field(min_length=1), AfterValidator(_possible_program)]
Instruction = Annotated[str, AfterValidator(_possible_instruction)]
"""A text with instructions for a model."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Environment = Annotated[
    dict[VariableName, Annotated[CommandText, AfterValidator(_with_possible_secrets)]],
    AfterValidator(_possible_environment),
]
HeaderName = Annotated[str, AfterValidator(_possible_header_name)]
Url = Annotated[str, Field(min_length=1), AfterValidator(_without_secrets), AfterValidator(_possible_url)]
Headers = Annotated[
    dict[
        HeaderName,
        Annotated[str, AfterValidator(_possible_header), AfterValidator(_with_possible_secrets)],
    ],
    Field(max_length=MAX_HEADERS),
    AfterValidator(_possible_headers),
]
