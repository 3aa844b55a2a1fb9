"""A role as a YAML file: standing instructions for a model, with the tools that it may use (docs/roles.md).

What is not known, or is of another type, is an error that names the file, the field, and what to do: a role that has
silently lost a line of its file would work otherwise than its author reads it.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import ErrorDetails

from backplane.domain.bus import NAMED_MAX, check_pattern
from backplane.domain.runs import HANDLER_PATTERN
from backplane.domain.sizes import KIB
from backplane.errors import InvalidInput
from backplane.input import unique_yaml

FILE_MAX_BYTES = 256 * KIB
INSTRUCTIONS_CHARS = 20_000
"""Of standing instructions, which each call of the model carries."""
TOOLS_MAX = 200
SUGGESTED_FROM = 0.6
"""How like a known field an unknown one is, from 0 to 1, before it is taken for a slip of the pen."""

_MODEL = r"^[^/\s]+/\S+$"


class RoleFileRefused(Exception):
    """The message names the file and each of its faults, with what to do."""


class RoleLimits(BaseModel):
    """`rounds`: answers of the model in one turn, the last of which must be the answer to the message. `actions`: calls
    of tools in one round. `conversation_tokens`: of earlier turns, what the model is shown as it was; older ones are
    summed up."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rounds: int = Field(12, ge=1, le=100)
    actions: int = Field(8, ge=1, le=16)
    conversation_tokens: int = Field(6_000, ge=200, le=50_000)


class RoleFile(BaseModel):
    """`tools` is None where the role may use all but those of high risk."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=HANDLER_PATTERN)
    description: str = Field("", max_length=500)
    instructions: str = Field(min_length=1, max_length=INSTRUCTIONS_CHARS)
    tools: list[Annotated[str, StringConstraints(min_length=1, max_length=200)]] | None = Field(
        None, max_length=TOOLS_MAX
    )
    model: str | None = Field(None, pattern=_MODEL, max_length=200)
    limits: RoleLimits = RoleLimits()
    listens_to: list[str] = Field([], max_length=NAMED_MAX)

    @field_validator("tools", "listens_to")
    @classmethod
    def _each_once(cls, value: list[str] | None) -> list[str] | None:
        twice = sorted({one for one in value or () if (value or []).count(one) > 1})
        if twice:
            raise ValueError(f"{twice[0]!r} stands there twice; name it once")
        return value

    @field_validator("listens_to")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            if len(pattern) > 128:
                raise ValueError("a type has at most 128 characters")
            try:
                check_pattern(pattern, "each of them")
            except InvalidInput as error:
                raise ValueError(error.message) from None
        return value


def read_role_file(file: Path) -> RoleFile:
    """Raises RoleFileRefused."""
    try:
        if file.stat().st_size > FILE_MAX_BYTES:
            raise RoleFileRefused(f"{file}: it has more than {FILE_MAX_BYTES // KIB} KiB; make it shorter")
        found = unique_yaml.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise RoleFileRefused(f"{file}: it cannot be read ({error}); look at its rights") from None
    except unique_yaml.DuplicateKey as error:
        raise RoleFileRefused(f"{file}: {error}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise RoleFileRefused(f"{file}: it is no valid YAML ({_one_line(error)}); put that right") from None
    if not isinstance(found, dict):
        raise RoleFileRefused(f"{file}: a role is a mapping with name and instructions (docs/roles.md)")
    try:
        return RoleFile.model_validate(found)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RoleFileRefused("; ".join(f"{file}: {_fault(fault)}" for fault in faults)) from None


def _fault(fault: ErrorDetails) -> str:
    place = ".".join(map(str, fault["loc"]))
    match fault["type"]:
        case "extra_forbidden":
            return f"{place} is no field of a role; {_instead(fault['loc'])}"
        case "missing":
            return f"{place} is missing; a role has a name and instructions"
        case "string_pattern_mismatch" if place == "name":
            return (
                "name must have small letters, digits, '.', '_' and '-', at most 64, and begin with a letter or digit"
            )
        case "string_pattern_mismatch" if place == "model":
            return "model must be SERVER/NAME, such as ollama/qwen2.5:7b"
        case "string_type":
            return f"{place} must be a text; put it between quotes"
        case _:
            return f"{place}: {fault['msg'].removeprefix('Value error, ')}"


def _instead(place: tuple[Any, ...]) -> str:
    kind = RoleLimits if place[0] == "limits" else RoleFile
    names = sorted(kind.model_fields)
    like = difflib.get_close_matches(str(place[-1]), names, 1, SUGGESTED_FROM)
    return f"write {like[0]}" if like else f"the fields are {', '.join(names)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
