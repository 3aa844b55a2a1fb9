"""The MCP servers that runs may name, as MCP_SERVERS describes them. An operator writes it, so it decides what the
tools of a server may do; what a server says of itself decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backplane.domain.validation_messages import sentence_of
from backplane.errors import InvalidInput
from worker.tools.base import Risk

ServerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]


class _ServerEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str | None = None
    headers: dict[str, str] = {}
    command: list[str] | None = Field(None, min_length=1, max_length=100)
    environment: dict[str, str] = {}
    tools: list[str] | None = None
    repeatable: list[str] = []
    risk: Literal["low", "medium", "high"] = "medium"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("give either url (a server over HTTP) or command (one that is started in the sandbox)")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with https:// or http://")
        if (self.headers and self.command) or (self.environment and self.url):
            raise ValueError("headers go with url, environment with command")
        return self


@dataclass(frozen=True, slots=True)
class McpServer:
    """`url` or `command`. Values of `headers` and `environment` may hold `${secrets.NAME}`. `tools`: those that runs
    may use; None: all. `repeatable`: those that may be called again when a crash left it unknown whether they were."""

    name: str
    url: str | None
    headers: Mapping[str, str]
    command: tuple[str, ...] | None
    environment: Mapping[str, str]
    tools: frozenset[str] | None
    repeatable: frozenset[str]
    risk: Risk


def servers_of(configured: Mapping[str, Any]) -> dict[str, McpServer]:
    """By name. Raises InvalidInput, which names the entry at fault."""
    return {name: _server_of(name, entry) for name, entry in configured.items()}


def _server_of(name: str, raw: Any) -> McpServer:
    try:
        _Named(name=name)
        entry = _ServerEntry.model_validate(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(["MCP_SERVERS", name[:64], *(str(part) for part in fault["loc"])])
        raise InvalidInput(f"{where}: {sentence_of(fault)}", field=where) from None
    return McpServer(
        name=name,
        url=entry.url,
        headers=entry.headers,
        command=tuple(entry.command) if entry.command else None,
        environment=entry.environment,
        tools=None if entry.tools is None else frozenset(entry.tools),
        repeatable=frozenset(entry.repeatable),
        risk=Risk[entry.risk.upper()],
    )


class _Named(BaseModel):
    name: ServerName
